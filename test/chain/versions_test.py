# SPDX-License-Identifier: Apache-2.0
"""Up and down between versions of the daemon with pods running: by take-over, and by SIGKILL and a start of the
other one under the same keeper. The older version is built from an older commit (takeover/older.sh), the
newer ones from this tree: as it is, with raised minor versions of its formats, and with raised major ones."""
import hashlib
import json
import os
import pathlib
import signal
import struct
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from daemons import echo, fleet, fleet_with, generation
from node import HYPERVISOR
from ttrpc import Client

__all__ = ["fleet", "fleet_with"]

OLDER = pathlib.Path(os.environ["PEERPOD_OLDER"])
pytestmark = pytest.mark.skipif(not (OLDER / "commit").exists(),
                                reason="the older version was not built (chain.older)")
OLD = OLDER / "bin" / "cloud-api-adaptor"
NEW = {name: BIN / f"cloud-api-adaptor{name}" for name in ("", "-minor", "-major-record", "-major-relay")}
UP_AND_DOWN = pytest.mark.parametrize("new", ["", "-minor"], ids=["as it is", "minor"])
MAJOR = pytest.mark.parametrize("new", ["-major-record", "-major-relay"])
IDENTITY = struct.Struct("8sIIII")  # of a relay's file (lib/relay/relay_file.h); behind it the rest
ADDED = b"of 2.1, ..."[:8]


class Pods:
    """Each has a connection that is never made again, and on it 199 calls in flight."""

    def __init__(self):
        self.all = {}

    def add(self, node):
        sandbox = hashlib.sha256(b"%d" % len(self.all)).hexdigest()
        agent = Client(node.run_pod(sandbox), timeout=30)
        self.all[sandbox] = agent, [agent.start("any", "Hold", b"%d" % i) for i in range(199)]
        echo(agent, b"they have arrived")
        return sandbox

    def check(self, node):
        """All live, on the connections that they had and on new ones."""
        for sandbox, (agent, _) in self.all.items():
            echo(agent, os.urandom(5000))
            with Client(node.record_socket(sandbox), timeout=30) as another:
                echo(another, b"a new connection")

    def end(self, node):
        """What was in flight is answered, once; StopVM succeeds; nothing is left."""
        for sandbox, (agent, held) in self.all.items():
            held.append(agent.start("any", "Hold", b"199"))
            assert sorted(agent.answer().stream for _ in held) == held
            agent.close()
            assert node.stop_vm(sandbox).code == ttrpc.OK
        wait_for(lambda: not node.sandboxes(), 15)
        assert not node.instances()


@pytest.fixture
def pods():
    return Pods()


def program(daemon):
    return pathlib.Path(f"/proc/{daemon.daemon_pid()}/exe").resolve()


def relays(daemon, sandbox):
    return sorted((daemon.pods / sandbox).glob("c*.relay"))


def identity(path):
    """(major, minor, size of the header)"""
    magic, major, minor, _, size = IDENTITY.unpack(path.read_bytes()[:IDENTITY.size])
    assert magic == b"PPRELAY\0"
    return major, minor, size


# -- by take-over --


@UP_AND_DOWN
def test_take_over_up_down_up(fleet, pods, new):
    last = fleet.add(wait=True, adaptor=OLD)
    pods.add(last)
    for turn, adaptor in enumerate([NEW[new], OLD, NEW[new], OLD]):
        before, last = last, fleet.add(adaptor=adaptor)
        wait_for(before.handed_over)
        wait_for(last.took_over)
        assert program(last) == adaptor.resolve()
        assert generation(last) == turn + 2
        pods.check(last)
        pods.add(last)
    pods.end(last)


@UP_AND_DOWN
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_startvm_in_flight_over_a_take_over(fleet_with, new, down):
    fleet = fleet_with("-boot-delay", "1s")
    first, second = (NEW[new], OLD) if down else (OLD, NEW[new])
    before = fleet.add(wait=True, adaptor=first)
    assert before.create().code == ttrpc.OK
    with Client(before.socket, timeout=30) as shim:
        shim.start(HYPERVISOR, "StartVM", ttrpc.message((1, before.sandboxes()[0])))
        wait_for(before.instances)
        after = fleet.add(adaptor=second)
        wait_for(before.handed_over)
        assert shim.answer().code == ttrpc.OK
    assert len(after.instances()) == 1
    assert after.stop_vm().code == ttrpc.OK
    after.wait_gone()


# -- by SIGKILL --


class Versions:
    """One keeper, whose command is a link to one version or another."""

    def __init__(self, fleet, adaptor):
        self.link = fleet.dir / "cloud-api-adaptor"
        self.link.symlink_to(adaptor)
        self.daemon = fleet.add(wait=True, adaptor=self.link)

    def change(self, adaptor, meanwhile=lambda: None):
        """The daemon dies, and its keeper starts another."""
        keeper = self.daemon.program.pid
        os.kill(keeper, signal.SIGSTOP)
        pid = self.daemon.daemon_pid()
        if pid:  # 0: it is between two of its own attempts
            os.kill(pid, signal.SIGKILL)
            stat = pathlib.Path(f"/proc/{pid}/stat")
            wait_for(lambda: stat.read_text().rpartition(") ")[2].startswith("Z"))
        meanwhile()
        self.link.unlink()
        self.link.symlink_to(adaptor)
        os.kill(keeper, signal.SIGCONT)

    def serves(self, adaptor):
        return self.daemon.serves() and program(self.daemon) == adaptor.resolve()


@UP_AND_DOWN
def test_restart_up_down_up(fleet, pods, new):
    versions = Versions(fleet, OLD)
    daemon = versions.daemon
    pods.add(daemon)
    for turn, adaptor in enumerate([NEW[new], OLD, NEW[new], OLD, NEW[new]]):
        versions.change(adaptor)
        wait_for(lambda a=adaptor: versions.serves(a))
        assert generation(daemon) == turn + 2
        pods.check(daemon)
        pods.add(daemon)
    pods.end(daemon)


def test_what_a_minor_version_adds_is_left_alone(fleet, pods):
    """The newer one adds to the record and to the relay's file; the older one writes both."""
    minor = NEW["-minor"]
    versions = Versions(fleet, minor)
    daemon = versions.daemon
    sandbox = pods.add(daemon)
    record, relay = daemon.pods / sandbox / "sandbox.json", relays(daemon, sandbox)[0]
    major, _, size = identity(relay)
    assert (daemon.record(sandbox)["version_minor"], identity(relay)[1]) == (2, 1)

    def add():
        with open(relay, "r+b") as file:
            file.seek(size - len(ADDED))
            assert file.read()[:len(ADDED)] == bytes(len(ADDED))
            file.seek(size - len(ADDED))
            file.write(ADDED)
        record.write_text(json.dumps({**daemon.record(sandbox), "added": {"by": ["2", 1]}}))

    before = daemon.record(sandbox)
    for adaptor, meanwhile in ((OLD, add), (minor, lambda: None)):
        versions.change(adaptor, meanwhile)
        wait_for(lambda a=adaptor: versions.serves(a))
        pods.check(daemon)
        now = daemon.record(sandbox)
        assert now["next_channel"] > before["next_channel"], "it has been written"
        assert (now["version_minor"], now["added"]) == (2, {"by": ["2", 1]})
        assert identity(relay) == (major, 1, size)
        assert relay.read_bytes()[size - len(ADDED):size] == ADDED
        before = now
    pods.end(daemon)


# -- a raised major version --


def contents(daemon):
    """All that is in the state directory, but for what says how far a process is."""
    return {p: p.read_bytes() for p in sorted(daemon.pods.rglob("*"))
            if p.is_file() and p.name != ".phase"}


@MAJOR
def test_the_older_one_stops_and_the_newer_one_finds_all_as_it_was(fleet, pods, new):
    versions = Versions(fleet, NEW[new])
    daemon = versions.daemon
    for _ in range(2):
        pods.add(daemon)
    pods.check(daemon)
    found = {}
    said = len(daemon.log())
    versions.change(OLD, lambda: found.update(contents(daemon)))
    wait_for(lambda: daemon.log()[said:].count("this program knows up to") >= 3)
    late = [agent.start("any", "Echo", b"late") for agent, _ in pods.all.values()]
    time.sleep(0.2)
    assert daemon.alive(), "the keeper holds on"
    assert contents(daemon) == found, "nothing was touched"
    versions.change(NEW[new])
    wait_for(lambda: versions.serves(NEW[new]))
    for (agent, _), stream in zip(pods.all.values(), late):
        assert agent.answer(stream).payload == b"late"
    pods.check(daemon)
    pods.end(daemon)


@MAJOR
def test_the_older_one_does_not_take_over(fleet, pods, new):
    last = fleet.add(wait=True, adaptor=OLD)
    pods.add(last)
    before, last = last, fleet.add(adaptor=NEW[new])
    wait_for(before.handed_over)
    wait_for(last.took_over)
    pods.add(last)
    older = fleet.add(adaptor=OLD)
    wait_for(lambda: older.log().count("this program knows up to") >= 2)
    assert older.alive(), "its keeper goes on trying"
    assert generation(last) == 2
    pods.check(last)
    older.stop()
    pods.end(last)
