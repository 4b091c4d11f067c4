# SPDX-License-Identifier: Apache-2.0
"""Bad input and a bad world: each is a clear error that says what to do; the daemon lives, nothing is
left behind."""
import json
import os
import pathlib
import socket
import subprocess
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from node import SANDBOX, Node, annotations, check_world

SECOND = 10**9


@pytest.fixture
def node(node_with):
    return node_with()


def daemon(*arguments, env=None):
    return subprocess.run([BIN / "cloud-api-adaptor", *map(str, arguments)], timeout=20,
                          capture_output=True, text=True, env={**os.environ, **(env or {})})


# -- requests --

@pytest.mark.parametrize("name", ["io.kubernetes.cri.sandbox-name",
                                  "io.kubernetes.cri.sandbox-namespace"])
def test_a_missing_annotation(node, name):
    before = node.world()
    notes = annotations()
    del notes[name]
    answer = node.create(notes=notes)
    assert answer.code == ttrpc.INVALID_ARGUMENT and f"annotation {name} is missing" in answer.text
    check_world(node, before)


@pytest.mark.parametrize("sandbox", ["../../etc", "a/b", "..", "", "x" * 300, "a\nb"])
def test_a_bad_id(node, sandbox):
    before = node.world()
    answer = node.create(sandbox)
    assert answer.code == ttrpc.INVALID_ARGUMENT and "sandbox id" in answer.text, answer
    assert node.start_vm(sandbox).code == ttrpc.NOT_FOUND
    assert node.stop_vm(sandbox).code == ttrpc.OK
    check_world(node, before)


@pytest.mark.parametrize("notes, part", [
    ({"default_vcpus": "many"}, "default_vcpus is not a number"),
    ({"default_memory": "-5"}, "default_memory is not a number"),
    ({"machine_type": "x" * 1000}, "machine_type is longer"),
    ({"cc_init_data": "not = [toml"}, "initdata"),
])
def test_bad_annotations(node, notes, part):
    before = node.world()
    answer = node.create(notes=annotations(**notes))
    assert answer.code == ttrpc.INVALID_ARGUMENT and part in answer.text, answer
    check_world(node, before)


def test_lenient_numbers(node):
    assert node.create(notes=annotations(default_vcpus="1.5", default_memory="")).code == ttrpc.OK
    assert node.record()["vcpus"] == 2
    node.stop_vm()


def test_a_missing_netns(node):
    answer = node.create(netns="")
    assert answer.code == ttrpc.INVALID_ARGUMENT and "networkNamespacePath" in answer.text


# -- the pod VM --

def test_a_forwarder_that_never_comes(node_with):
    node = node_with("-guest-fault", "no-forwarder", "-proxy-timeout", "2s")
    before = node.world()
    node.create()
    answer = node.start_vm()
    assert answer.code == ttrpc.DEADLINE_EXCEEDED, answer
    assert "agent-protocol-forwarder" in answer.text and "port 15150" in answer.text, answer.text
    node.wait_gone()
    check_world(node, before)


def test_a_guest_that_refuses_tls(node_with):
    node = node_with("-guest-fault", "no-tls", "-proxy-timeout", "3s")
    before = node.world()
    node.create()
    answer = node.start_vm()
    assert answer.code != ttrpc.OK and "TLS" in answer.text, answer
    node.wait_gone()
    check_world(node, before)


def test_an_address_that_never_comes(node_with):
    node = node_with("-fail-addresses")
    node.create()
    answer = node.start_vm(timeout_ns=3 * SECOND)
    assert answer.code != ttrpc.OK and "address" in answer.text, answer
    node.wait_gone()


# -- the node --

def test_a_full_state_directory(node_with, short_dir):
    pods = short_dir / "pods"
    pods.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "full", pods], check=True)
    node = node_with()
    before = node.world()
    with open(pods / ".filler", "wb", buffering=0) as filler:
        with pytest.raises(OSError):
            while True:
                filler.write(b"x" * 4096)
        answer = node.create()
        assert answer.code != ttrpc.OK, answer
        assert "No space left on device" in answer.text and str(pods) in answer.text, answer.text
    (pods / ".filler").unlink()
    check_world(node, before)
    assert node.create().code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


def test_a_socket_in_use(short_dir):
    path = short_dir / "hypervisor.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        node = Node(short_dir, keeper=False)
        node.start(wait=False)
        assert node.program.process.wait(10) == 1
        assert str(path) in node.log() and "serve" in node.log(), node.log()
        assert path.exists(), "somebody else's socket was removed"


# -- the command line --

@pytest.mark.parametrize("arguments, part", [
    ([], "provider is needed"),
    (["nimbus"], "no provider 'nimbus'"),
    (["local", "-colour", "red"], "unknown flag -colour"),
    (["local", "-proxy-timeout", "5"], "flag -proxy-timeout: '5' is not a duration"),
    (["local", "-forwarder-port", "0", "-forwarder-compat", "native"], "-forwarder-port 0"),
    (["local", "-forwarder-compat", "yes"], "upstream, native"),
    (["local", "-pods-dir", "relative", "-forwarder-compat", "native"], "absolute path"),
])
def test_a_bad_command_line(arguments, part):
    result = daemon(*arguments)
    assert result.returncode in (1, 2) and part in result.stderr, result


def test_a_bad_config_file(short_dir):
    (short_dir / "local.conf").write_text("# ours\nPROXY_TIMEOUT=2m\nPROXI_TIMEOUT=2m\n")
    result = daemon("local", env={"PEERPOD_CONFIG_DIR": str(short_dir)})
    assert result.returncode == 2
    assert "local.conf line 3: unknown key PROXI_TIMEOUT" in result.stderr, result


def test_a_bad_environment_is_a_warning(short_dir):
    result = daemon("local", "-print-config", env={"PROXY_TIMEOUT": "5", "FORWARDER_PORT": "15151"})
    assert result.returncode == 0
    assert "PROXY_TIMEOUT" in result.stderr and "WARN" in result.stderr
    assert "PROXY_TIMEOUT=5m0s" in result.stdout and "FORWARDER_PORT=15151" in result.stdout


def test_the_log_as_json(node_with):
    node = node_with("-log-format", "json")
    node.create(notes=annotations(default_vcpus='a "quote"\n'))
    node.create()
    lines = [json.loads(line) for line in node.log().splitlines()
             if '"program":"cloud-api-adaptor"' in line]
    assert any(line.get("sandbox") == SANDBOX and line["step"] == "create" for line in lines)
    assert all(line["time"].endswith("Z") and line["level"] and line["msg"] for line in lines)
    node.stop_vm()


def test_help_and_version():
    assert "local" in daemon("help").stdout
    assert daemon("version").stdout.startswith("cloud-api-adaptor ")
    text = daemon("local", "--help").stdout
    for flag in ("-socket", "-proxy-timeout", "-boot-delay", "not for production"):
        assert flag in text, flag
