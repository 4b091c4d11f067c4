# SPDX-License-Identifier: Apache-2.0
"""Secrets are not in memory once they have been used: the real programs' memory is searched from outside."""
import os
import pathlib
import re
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "chain"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import memory
import ttrpc
from conftest import short_dir, wait_for  # noqa: F401 (a fixture)
from node import HEALTH, SANDBOX, Node
from ttrpc import Client

CREDENTIAL = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY" + os.urandom(4).hex()


def pids_of(name):
    return [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")
            if (p / "comm").exists() and (p / "comm").read_text().strip() == name[:15]]


@pytest.fixture(params=["native", "upstream"])
def node(short_dir, request):
    node = Node(short_dir, env={"AWS_SECRET_ACCESS_KEY": CREDENTIAL, "NOT_SECRET": CREDENTIAL[::-1]})
    node.compat = request.param
    node.start()
    yield node
    node.stop_vm()
    node.wait_gone()  # its processes too: the next test looks for its own by name
    node.stop()


def private_lines(file):
    """The base64 of the private keys in a file (PEM, or PEM in JSON), line by line: each is a needle."""
    text = file.read_text().replace("\\n", "\n")
    keys = re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", text, re.S)
    assert keys
    # The third and last line of a P-256 key is of its public part, which certificates repeat.
    return {f"{file.name} {i}": line.encode() for key in keys for i, line in enumerate(key.split()[:2])}


def working(node):
    with Client(node.record_socket()) as client:
        assert client.call(HEALTH, "Check").code == ttrpc.OK


def key_files(directory):
    return [p for p in pathlib.Path(directory).rglob("*")
            if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]


def test_credentials_leave_the_environment(node):
    """The control is beside it: what is no secret stays."""
    pid = node.daemon_pid()
    environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    assert CREDENTIAL[::-1].encode() in environment
    assert memory.find(pid, {"control": CREDENTIAL[::-1].encode()})
    assert CREDENTIAL.encode() not in environment
    assert not memory.find(pid, {"credential": CREDENTIAL.encode()})


def test_the_enrolment_secret(node):
    if node.compat != "native":
        return
    assert node.create().code == ttrpc.OK
    secret = bytes.fromhex((node.pods / SANDBOX / "secret").read_text())
    daemon = node.daemon_pid()
    assert memory.find(daemon, memory.forms(secret)), "the search finds nothing even when it must"
    assert node.start_vm().code == ttrpc.OK
    working(node)
    (forwarder,) = pids_of("agent-protocol-forwarder")
    for pid in (daemon, forwarder, node.program.pid):
        assert not memory.find(pid, memory.forms(secret)), pathlib.Path(f"/proc/{pid}/comm").read_text()
    # A forwarder that starts again reads apf.json again.
    os.kill(forwarder, signal.SIGKILL)
    wait_for(lambda: pids_of("agent-protocol-forwarder") not in ([], [forwarder]))
    working(node)
    (forwarder,) = pids_of("agent-protocol-forwarder")
    assert not memory.find(forwarder, memory.forms(secret))


def private_needles(node, forwarder):
    files = [*key_files(node.pods), *key_files(f"/proc/{forwarder}/root/run/peerpod")]
    assert len(files) >= 2, files  # the daemon's, and the forwarder's own or in its apf.json
    return {form: line for file in files for form, line in private_lines(file).items()}


def check_keys(node, needles):
    (forwarder,) = pids_of("agent-protocol-forwarder")
    for pid in (node.daemon_pid(), forwarder, node.program.pid):
        assert not memory.find(pid, needles), pathlib.Path(f"/proc/{pid}/comm").read_text()


def test_private_keys_as_text(node):
    node.run_pod()
    working(node)
    daemon = node.daemon_pid()
    (forwarder,) = pids_of("agent-protocol-forwarder")
    needles = private_needles(node, forwarder)
    check_keys(node, needles)
    if node.compat != "native":
        return
    # Their successors have read the keys from files, where these have made them.
    os.kill(daemon, signal.SIGKILL)
    os.kill(forwarder, signal.SIGKILL)
    wait_for(lambda: pids_of("agent-protocol-forwarder") not in ([], [forwarder]))
    wait_for(node.serves)
    working(node)
    check_keys(node, needles)
