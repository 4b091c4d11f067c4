# SPDX-License-Identifier: Apache-2.0
"""Two daemons, each under its own keeper, on one state directory: the second asks the first to hand over
(adaptor/takeover.c). Whatever happens, one of them serves afterwards, and the pods notice nothing."""
import fcntl
import os
import pathlib
import resource
import signal
import socket
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from daemons import (ALL, ASK, DESCRIPTORS, HELD, MESSAGE, REFUSED, STORED, UNLOCKED, echo,
                     fleet, fleet_with, generation, kill_daemon)
from node import HYPERVISOR, SANDBOX
from ttrpc import Client, message

__all__ = ["fleet", "fleet_with"]
HASTY = BIN / "cloud-api-adaptor-hasty"  # a quarter of the patience


@pytest.mark.every_provider
def test_the_new_one_goes_on(fleet):
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        held = [agent.start("any", "Hold", b"%d" % i) for i in range(199)]
        new = fleet.add()
        wait_for(old.handed_over)
        wait_for(new.took_over)
        held.append(agent.start("any", "Hold", b"199"))
        answers = {agent.answer().stream for _ in held}
        assert answers == set(held), "what was in flight is answered once"
        # All that the new one was given is in its own keeper's store.
        kill_daemon(new)
        echo(agent, b"after a death")
        with Client(new.record_socket(), timeout=30) as another:
            echo(another, b"a new connection")
    assert new.stop_vm().code == ttrpc.OK
    new.wait_gone()


@pytest.mark.every_provider
def test_there_and_back_again(fleet):
    last = fleet.add(wait=True)
    with Client(last.run_pod(), timeout=30) as agent:
        for i in range(4):
            before, last = last, fleet.add()
            wait_for(before.ended)
            wait_for(last.took_over)
            echo(agent, b"turn %d" % i)
            assert generation(last) == i + 2


@pytest.mark.every_provider
def test_calls_in_flight_are_answered_where_they_were_made(fleet_with):
    fleet = fleet_with("-boot-delay", "1s")
    old = fleet.add(wait=True)
    assert old.create().code == ttrpc.OK
    with Client(old.socket, timeout=30) as shim:
        shim.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(old.instances)
        new = fleet.add()
        wait_for(old.ended)
        assert shim.answer().code == ttrpc.OK
    assert len(new.instances()) == 1
    assert new.stop_vm().code == ttrpc.OK
    new.wait_gone()


def test_without_keepers(fleet):
    old = fleet.add(wait=True, keeper=False)
    with Client(old.run_pod(), timeout=30) as agent, Client(old.socket, timeout=30) as shim:
        new = fleet.add(keeper=False)
        wait_for(old.handed_over)
        wait_for(new.took_over)
        echo(agent, b"x")
        assert shim.call(HYPERVISOR, "Version").code == ttrpc.OK


def test_an_older_one_is_refused_for_good(fleet):
    serving = fleet.add(wait=True)
    with Client(serving.run_pod(), timeout=30) as agent:
        echo(agent, b"w")
        old = fleet.add(keeper=False, env={"PEERPOD_KEEPER_BORN": "1"})
        wait_for(old.handed_over)
        assert "younger" in old.log()
        echo(agent, b"x")
        assert generation(serving) == 1


def test_nobody_serves_while_another_keeper_has_the_descriptors(fleet):
    """The daemon is dead, and its keeper waits before it starts the next one."""
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        echo(agent, b"w")  # it is in the store
        os.kill(old.program.pid, signal.SIGSTOP)
        os.kill(old.daemon_pid(), signal.SIGKILL)
        new = fleet.add()
        wait_for(lambda: "held by another keeper" in new.log())
        assert generation(old) == 1
        os.kill(old.program.pid, signal.SIGCONT)
        wait_for(old.ended, 20)
        wait_for(new.took_over)
        echo(agent, b"x")


# -- what keeps a successor out may pass --

def cpu_ticks(pid):
    return sum(map(int, pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


def check_taken_over_after(old, begin, end, words):
    """begin makes it impossible, said in words, once; after end a successor goes on at last."""
    begin()
    wait_for(lambda: words in old.log())
    before = cpu_ticks(old.daemon_pid())
    time.sleep(1)
    assert cpu_ticks(old.daemon_pid()) - before < 50, "it waits, and does not spin"
    assert old.log().count("no successor can take over") == 1
    end()


def test_the_socket_is_bound_at_last(fleet):
    obstacle = fleet.dir / "pods" / ".takeover"
    obstacle.mkdir(0o700, parents=True)
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        check_taken_over_after(old, lambda: None, obstacle.rmdir, "binding")
        wait_for(obstacle.is_socket)
        new = fleet.add()
        wait_for(old.handed_over)
        wait_for(new.took_over)
        echo(agent, b"x")


def test_a_successor_is_accepted_at_last(fleet):
    """The daemon has no descriptor left."""
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        echo(agent, b"w")  # it is in the store
        pid = old.daemon_pid()
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        check_taken_over_after(old, fleet.add, lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, limits),
                               "accepting")
        wait_for(old.handed_over)
        wait_for(fleet.daemons[1].took_over)
        echo(agent, b"x")


# -- successors that fail, played by the test --

class Successor:
    """As adaptor/takeover.c speaks; older_by: seconds by which its keeper is older than now."""

    def __init__(self, pods, older_by=0):
        self.pods = pods
        self.born = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - older_by * 10**9
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(str(pods / ".takeover"))
        self.names, self.fds = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)

    def say(self, kind):
        self.sock.send(MESSAGE.pack(b"PPTAKE", kind, 0, 1, 0, 0, os.getpid(), self.born, b"test"))

    def hear(self):
        data, fds, _, _ = socket.recv_fds(self.sock, 16384, 253)
        self.fds += fds
        if not data:
            return 0, ""
        _, kind, count, *_ = MESSAGE.unpack_from(data)
        rest = data[MESSAGE.size:]
        if kind == DESCRIPTORS:
            self.names += [rest[i * 21:(i + 1) * 21].rstrip(b"\0").decode() for i in range(count)]
        return kind, rest.split(b"\0")[0].decode() if kind == REFUSED else count

    def go_as_far_as(self, kind):
        """Until it has said, or heard, this."""
        self.say(ASK)
        answers = {DESCRIPTORS: HELD, ALL: STORED}
        while kind != ASK:
            heard, _ = self.hear()
            assert heard in (*answers, UNLOCKED), heard
            if heard == kind:
                return
            if heard in answers:
                self.say(answers[heard])
                if answers[heard] == kind:
                    return

    def raise_generation(self):
        file = self.pods / ".generation"
        file.with_name(".generation.x").write_text("%020d" % (int(file.read_text()) + 1))
        file.with_name(".generation.x").rename(file)


def token(daemon):
    return (daemon.pods / ".token").stat().st_ino


def locked(daemon):
    with open(daemon.pods / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_everything_is_offered(fleet):
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent, Client(old.socket) as shim:
        echo(agent, b"x")
        assert shim.call(HYPERVISOR, "Version").code == ttrpc.OK
        with Successor(old.pods) as successor:
            successor.go_as_far_as(ALL)
        key = old.record()["key"]
        for name in ("hypervisor", "control", f"{key}.l", f"{key}.c1"):
            assert successor.names.count(name) == 1, (name, successor.names)
        assert len([n for n in successor.names if n.startswith("token.")]) == 1
        assert len([n for n in successor.names if n.startswith("h.")]) == 1
        assert len(successor.names) == len(successor.fds) == 6
        echo(agent, b"y")


@pytest.mark.parametrize("step", [ASK, DESCRIPTORS, HELD, ALL, STORED, UNLOCKED])
def test_a_successor_that_dies_changes_nothing(fleet, step):
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        echo(agent, b"x")
        before, pid = token(old), old.daemon_pid()
        with Successor(old.pods) as successor:
            successor.go_as_far_as(step)
        echo(agent, b"y")
        assert (old.daemon_pid(), generation(old)) == (pid, 1)
        assert locked(old)
        assert token(old) != before, "what it was given proves nothing any more"
        kill_daemon(old)
        echo(agent, b"the store is whole")
        wait_for((old.pods / ".takeover").exists)
        new = fleet.add()
        wait_for(new.took_over)
        echo(agent, b"z")


@pytest.mark.every_provider
def test_a_successor_that_has_written_is_survived_as_a_crash(fleet):
    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        pid = old.daemon_pid()
        with Successor(old.pods) as successor:
            successor.go_as_far_as(UNLOCKED)
            with open(old.pods / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                successor.raise_generation()
                successor.sock.close()
                time.sleep(0.2)
        echo(agent, b"x")
        assert old.daemon_pid() != pid and generation(old) == 3


def test_the_lock_is_not_broken(fleet):
    """A successor that has the lock and says nothing more: until it ends nobody serves."""
    old = fleet.add(wait=True, adaptor=HASTY)
    with Client(old.run_pod(), timeout=60) as agent, Successor(old.pods) as successor:
        successor.go_as_far_as(UNLOCKED)
        with open(old.pods / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert successor.hear()[0] == 0, "the old one ends at last"
            agent.start("any", "Echo", b"x")
            time.sleep(0.5)
            assert generation(old) == 1
        assert agent.answer().payload == b"x"
        assert generation(old) == 2


def test_a_silent_successor_is_not_waited_for_long(fleet):
    old = fleet.add(wait=True, adaptor=HASTY)
    with Client(old.run_pod(), timeout=60) as agent, Successor(old.pods) as successor:
        successor.go_as_far_as(DESCRIPTORS)
        start = time.monotonic()
        echo(agent, b"x")
        assert 0.2 < time.monotonic() - start < 5, "it stood still, and went on"
        assert generation(old) == 1


def test_nonsense_is_refused(fleet):
    old = fleet.add(wait=True)
    for nonsense in (b"", b"x", b"PPTAKE", MESSAGE.pack(b"PPTAKE", 99, 0, 1, 0, 0, 1, 1, b""),
                     MESSAGE.pack(b"PPTAKE", DESCRIPTORS, 5, 1, 0, 0, 1, 1, b""), b"y" * 9000):
        with Successor(old.pods) as successor:
            successor.sock.send(nonsense)
            assert successor.hear()[0] == 0
    with Successor(old.pods, older_by=3600) as successor:
        successor.say(ASK)
        kind, text = successor.hear()
        assert kind == REFUSED and "younger" in text
    assert old.serves() and generation(old) == 1
