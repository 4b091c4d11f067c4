# SPDX-License-Identifier: Apache-2.0
"""Identity (design.md 7): a VM that does not hold what the daemon gave it is refused, at both ends
with a sentence that says why; nothing secret is ever in a log."""
import json
import os
import pathlib
import shutil
import signal

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, SANDBOX, Node, check_world, comm, wrapped_guest
from ttrpc import Client

OTHER = "b" * 64

# Runs behind the real process-user-data, in the VM.
TAMPER = """"$0.real" "$@" || exit
sed -i -E '{edit}' /run/peerpod/apf.json
"""


@pytest.fixture
def node_with_guest(short_dir):
    """A node whose VMs' apf.json has been edited with a sed expression before the forwarder reads it."""
    nodes = []

    def make(edit):
        guest = wrapped_guest(short_dir, "process-user-data", TAMPER.format(edit=edit))
        nodes.append(Node(short_dir, "-local-guest-dir", guest, "-proxy-timeout", "20s"))
        return nodes[-1].start()

    yield make
    for node in nodes:
        node.stop()
        print(node.log(), node.vm_log())


@pytest.mark.parametrize("edit, word", [
    (r's/("enrolment-secret": ?")..../\10000/', "secret"),
    (r's/("sandbox-id": ?")..../\1ffff/', "sandbox"),
])
def test_a_vm_with_the_wrong_papers_is_refused(node_with_guest, edit, word):
    node = node_with_guest(edit)
    before = node.world()
    node.create()
    secret = (node.pods / SANDBOX / "secret").read_text()
    answer = node.start_vm(timeout=30)
    assert answer.code != ttrpc.OK, answer
    assert "refuse" in answer.text and word in answer.text, answer.text
    node.wait_gone()
    for log in (node.log(), node.vm_log()):
        assert "refus" in log and word in log, "both ends say so"
    assert secret not in node.log() + node.vm_log() + answer.text
    check_world(node, before)


def test_a_vm_whose_papers_were_not_touched_is_not(node_with_guest):
    """The same way, with an edit that changes nothing: what refuses above is the check."""
    node = node_with_guest("s/nothing/nothing/")
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


def test_what_is_secret_stays_secret(node_with_guest):
    node = node_with_guest("s/nothing/nothing/")
    node.create()
    directory = node.pods / SANDBOX
    secret, key = (directory / "secret").read_text(), (directory / "client.key").read_text()
    assert node.start_vm().code == ttrpc.OK
    wait_for(lambda: not (directory / "secret").exists())
    for file in directory.iterdir():
        assert file.is_socket() or file.stat().st_mode & 0o777 == 0o600, file
    assert json.loads((directory / "apf.json").read_text())["pod-name"] == "web-0"
    for text in ((directory / "apf.json").read_text(), node.log(), node.vm_log(), json.dumps(node.record())):
        assert secret not in text and key.split("\n")[1] not in text
    environments = b"".join(p.read_bytes() for p in pathlib.Path("/proc").glob("[0-9]*/environ"))
    arguments = b"".join(p.read_bytes() for p in pathlib.Path("/proc").glob("[0-9]*/cmdline"))
    assert secret.encode() not in environments + arguments
    node.stop_vm()
    node.wait_gone()


# -- what ran well once, and is not what it was: each is refused, in the same words at both ends --

class Enrolled:
    """A node with two pods. Behind change() the daemon finds what the test has made of its files."""

    def __init__(self, directory):
        self.node = Node(directory)

    def begin(self):
        self.node.start()
        self.secrets = {}
        for sandbox in (SANDBOX, OTHER):
            assert self.node.create(sandbox).code == ttrpc.OK
            self.secrets[sandbox] = (self.file(sandbox, "secret")).read_text()
            assert self.node.start_vm(sandbox).code == ttrpc.OK
        wait_for(lambda: self.node.vm_log().count("enrolment secret is retired") == 2)
        self.check(SANDBOX)
        self.check(OTHER)
        return self

    def file(self, sandbox, name):
        return self.node.pods / sandbox / name

    def check(self, sandbox):
        with Client(self.file(sandbox, "agent.ttrpc")) as agent:
            assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK

    def change(self, what):
        self.node.stop()
        what()
        self.node.start()

    def edit_record(self, **more):
        record = self.node.record()
        record.update(more)
        self.file(SANDBOX, "sandbox.json").write_text(
            json.dumps({k: v for k, v in record.items() if v is not None}))

    def refused(self, daemon, forwarder=None, pods=(SANDBOX,)):
        """The daemon's line and the forwarder's for each of these pods, through which nothing comes; the
        others go on."""
        def lines(log, words):
            return [line for line in log.splitlines() if words in line and "refus" in line and " DEBUG " not in line]
        wait_for(lambda: len(lines(self.node.log(), daemon)) >= len(pods) and
                 len(lines(self.node.vm_log(), forwarder or daemon)) >= len(pods))
        ours = lines(self.node.log(), daemon)
        assert {line.split("sandbox=")[1][:64] for line in ours} == set(pods)
        for secret in self.secrets.values():
            assert secret not in self.node.log() + self.node.vm_log()
        for sandbox in (SANDBOX, OTHER):
            if sandbox not in pods:
                self.check(sandbox)
                continue
            with Client(self.file(sandbox, "agent.ttrpc")) as agent:
                agent.start(HEALTH, "Check", b"")
                assert agent.silent(0.3)


@pytest.fixture
def enrolled(short_dir):
    pods = Enrolled(short_dir)
    yield pods.begin()
    for sandbox in (SANDBOX, OTHER):
        pods.node.stop_vm(sandbox)
    wait_for(lambda: not pods.node.instances(), 15)
    pods.node.stop()
    print(pods.node.log(), pods.node.vm_log())


def test_a_secret_is_good_once(enrolled):
    def forget():
        enrolled.edit_record(peer_pin=None)
        enrolled.file(SANDBOX, "secret").write_text(enrolled.secrets[SANDBOX])
    enrolled.change(forget)
    enrolled.refused("this pod VM is enrolled already, and the daemon has lost its pin")


def test_another_key_of_the_vm(enrolled):
    """The VM's forwarder comes back with a key that was not enrolled."""
    def remake():
        for pid in (p for p in os.listdir("/proc") if p.isdigit() and comm(p).startswith("agent-protocol-")):
            root = pathlib.Path(f"/proc/{pid}/root/run/peerpod")
            if json.loads((root / "apf.json").read_text())["sandbox-id"] == SANDBOX:
                (root / "forwarder/identity.pem").unlink()
                os.kill(int(pid), signal.SIGKILL)
    enrolled.change(remake)
    enrolled.refused("the pod VM's key is not the one that was enrolled")


def test_another_sandboxs_key(enrolled):
    def take():
        for name in ("client.key", "client.crt"):
            shutil.copy(enrolled.file(OTHER, name), enrolled.file(SANDBOX, name))
    enrolled.change(take)
    enrolled.refused("the daemon's key is not the one in this pod VM's user data")


def test_another_sandboxs_vm(enrolled):
    enrolled.change(lambda: enrolled.edit_record(addresses=enrolled.node.record(OTHER)["addresses"]))
    enrolled.refused("the pod VM's key is not the one that was enrolled",
                     "the daemon's key is not the one in this pod VM's user data")


def test_an_older_generation(enrolled):
    enrolled.change(lambda: None)
    wait_for(lambda: enrolled.node.log().count("tunnel is up") == 2)
    enrolled.change(lambda: (enrolled.node.pods / ".generation").write_text("0"))
    enrolled.refused("daemon generation 1 is older than one that was here before", pods=(SANDBOX, OTHER))
