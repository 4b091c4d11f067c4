# SPDX-License-Identifier: Apache-2.0
"""Identity (design.md 7): a VM that does not hold what the daemon gave it is refused, at both ends
with a sentence that says why; nothing secret is ever in a log."""
import json
import pathlib

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, SANDBOX, Node, check_world, wrapped_guest
from ttrpc import Client

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
    assert word in node.vm_log(), "the other end says so too"
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
