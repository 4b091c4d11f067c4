# SPDX-License-Identifier: Apache-2.0
"""What a pod survives (docs/man/peerpod-keeper.8.md, "What it survives"): the keeper, the keeper and the daemon,
and the store killed, and the container replaced with and without surge, in each set-up. A container is a keeper
with its daemon; the pod's calls go on all the while, one of them from before the first death."""
import contextlib
import os
import pathlib
import signal

import pytest
import ttrpc
from callers import Caller
from conftest import BIN, Program, wait_for
from daemons import Daemon, Fleet
from node import SANDBOX
from ttrpc import Client


def is_dead(pid):
    """Reaped or not: who is left behind is our namespace's first process's, which reaps nobody."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


class Container(Daemon):
    def __init__(self, directory, name, *flags):
        super().__init__(directory, name, *flags)
        if (directory / "meet").exists():
            self.keeper_flags = ("-socket", directory / "meet/keeper.sock")

    def kill(self):
        """All of it at once, as the OOM killer does with a whole container."""
        daemon = self.daemon_pid()
        os.kill(self.program.pid, signal.SIGSTOP)  # it must not start another one in between
        for pid in (daemon, self.program.pid):
            os.kill(pid, signal.SIGKILL)
        self.program.process.wait()
        wait_for(lambda: is_dead(daemon))

    def end(self):
        """As an update without surge does."""
        os.kill(self.program.pid, signal.SIGTERM)
        wait_for(self.ended, 20)


class World(Fleet):
    def __init__(self, directory, meets):
        super().__init__(directory)
        if meets:
            (directory / "meet").mkdir()
        self.stores = []

    def container(self):
        daemon = Container(self.dir, str(len(self.daemons)), *self.flags)
        self.daemons.append(daemon)
        daemon.start()
        wait_for(lambda: f" serves {daemon.socket}" in daemon.log(), 30)
        return daemon

    def store(self):
        name = f"store.log.{len(self.stores)}"
        path = self.dir / "meet/keeper.sock"
        self.stores.append(Program([BIN / "peerpod-keeper", "-socket", path], self.dir / name))
        wait_for(path.exists)
        return self.stores[-1]

    def has_everything(self, container):
        """The store and the keeper have met, and told each other."""
        return "descriptors" in self.stores[-1].log() and not \
            container.log().rstrip().endswith("is gone")

    def kill_store(self):
        self.stores[-1].process.kill()
        self.stores[-1].process.wait()

    def stop(self):
        super().stop()
        for store in self.stores:
            store.stop()
            print(f"-- store:\n{store.log()}")


@pytest.fixture
def world_with(short_dir):
    worlds = []

    def make(meets=True):
        worlds.append(World(short_dir, meets))
        return worlds[-1]

    yield make
    for world in worlds:
        world.stop()


class Pod:
    """One that must not notice anything."""

    def __init__(self, container):
        self.path = container.run_pod()
        self.agent = Client(self.path, timeout=60)
        self.held = [self.agent.start("any", "Hold", b"%d" % i) for i in range(199)]
        self.caller = Caller(self.path)
        self.caller.goes_on()

    def goes_on(self):
        self.caller.goes_on()

    def end(self, container):
        self.caller.stop()
        self.held.append(self.agent.start("any", "Hold", b"199"))
        for i, stream in enumerate(self.held):
            answer = self.agent.answer(stream)
            assert answer.code == ttrpc.OK and answer.payload == b"%d" % i
        self.agent.close()
        assert container.stop_vm().code == ttrpc.OK
        container.wait_gone()


def test_keeper_killed_beside_a_store(world_with):
    world = world_with()
    world.store()
    old = world.container()
    pod = Pod(old)
    daemon = old.daemon_pid()
    os.kill(old.program.pid, signal.SIGKILL)
    old.program.process.wait()
    pod.goes_on()
    new = world.container()  # its daemon takes over from the one that is left
    pod.goes_on()
    wait_for(lambda: is_dead(daemon))
    new.kill()
    pod.end(world.container())


def test_both_killed_beside_a_store(world_with):
    world = world_with()
    world.store()
    container = world.container()
    pod = Pod(container)
    for _ in range(4):
        container.kill()
        container = world.container()
        pod.goes_on()
    pod.end(container)


def test_store_killed_and_then_both(world_with):
    world = world_with()
    world.store()
    container = world.container()
    pod = Pod(container)
    for _ in range(3):
        world.kill_store()
        pod.goes_on()
        world.store()
        wait_for(lambda: world.has_everything(container))
        container.kill()
        container = world.container()
        pod.goes_on()
    pod.end(container)


@pytest.mark.parametrize("store", (False, True), ids=("keepers-alone", "beside-a-store"))
def test_replaced_with_surge(world_with, store):
    world = world_with()
    if store:
        world.store()
    container = world.container()
    pod = Pod(container)
    for _ in range(3):
        old, container = container, world.container()
        wait_for(old.ended, 20)
        assert "a successor has all" in old.log()  # the keepers' hand-over, not the daemons'
        pod.goes_on()
    pod.end(container)


def test_replaced_without_surge_beside_a_store(world_with):
    world = world_with()
    world.store()
    container = world.container()
    pod = Pod(container)
    for _ in range(3):
        container.end()
        container = world.container()
        pod.goes_on()
    pod.end(container)


def test_successor_that_cannot_serve(world_with):
    """A new version that ends at its start, again and again: the old one serves."""
    world = world_with()
    old = world.container()
    pod = Pod(old)
    broken = Container(world.dir, "broken", *world.flags, "-no-such-flag")
    world.daemons.append(broken)
    for _ in range(2):
        broken.start()
        wait_for(broken.ended, 20)
        assert "back to the predecessor" in broken.log()
        pod.goes_on()
    assert old.alive()
    pod.end(old)


@pytest.mark.parametrize("store", (False, True), ids=("alone", "and-the-store"))
def test_all_that_holds_is_killed(world_with, store):
    """Nothing holds the pod's connections: it ends, with a closed connection, and nothing is left behind."""
    world = world_with(meets=store)
    if store:
        world.store()
    container = world.container()
    path = container.run_pod()
    with Client(path) as agent:
        assert agent.call("any", "Echo", b"x").payload == b"x"
        if store:
            world.kill_store()
        container.kill()
        with pytest.raises((ttrpc.Closed, ConnectionError)):
            agent.call("any", "Echo", b"x")
    new = world.container()
    assert new.stop_vm().code == ttrpc.OK
    new.wait_gone()
    assert SANDBOX not in new.sandboxes()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
