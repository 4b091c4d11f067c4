# SPDX-License-Identifier: Apache-2.0
"""What the running programs may still do, from /proc: capabilities, no_new_privs, the filter of system calls, core
files. And that the daemon of a cloud provider has let go of what it does not need."""
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "chain"))

import ttrpc
from conftest import BIN, Program, short_dir, wait_for  # noqa: F401 (a fixture)
from node import HEALTH, Node
from ttrpc import Client

SANITIZED = any(word in str(BIN) for word in ("asan", "tsan"))
NET_ADMIN, SYS_ADMIN, DAC_OVERRIDE = 1 << 12, 1 << 21, 1 << 1


def status(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def capabilities(pid, which="CapEff"):
    return int(status(pid)[which], 16)


def pids_of(name):
    return [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")
            if (p / "comm").exists() and (p / "comm").read_text().strip() == name[:15]]


def check_no_core(pid):
    limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"], line


@pytest.fixture(params=["native", "upstream"])
def node(short_dir, request):
    node = Node(short_dir)
    node.compat = request.param
    node.start()
    yield node
    node.stop_vm()
    node.wait_gone()
    node.stop()


def test_a_pods_programs(node):
    node.run_pod()
    with Client(node.record_socket()) as client:
        assert client.call(HEALTH, "Check").code == ttrpc.OK
    (forwarder,) = pids_of("agent-protocol-forwarder")
    keepers = pids_of("peerpod-keeper")
    assert len(keepers) == 2  # the node's and the VM's
    for pid in (node.daemon_pid(), forwarder, *keepers):
        check_no_core(pid)
    # A forwarder lives in network namespaces, so it has had them all; now this is the last.
    assert capabilities(forwarder) == capabilities(forwarder, "CapPrm") == DAC_OVERRIDE
    assert capabilities(forwarder, "CapBnd") == DAC_OVERRIDE
    assert status(forwarder)["NoNewPrivs"] == "1"
    assert status(forwarder)["Seccomp"] == ("0" if SANITIZED else "2")
    for pid in keepers:
        assert capabilities(pid) == capabilities(pid, "CapPrm") == 0
    # Its child has its rights back: the daemon of `local` makes the VMs.
    assert capabilities(node.daemon_pid()) & (NET_ADMIN | SYS_ADMIN) == NET_ADMIN | SYS_ADMIN
    # And a forwarder that starts again finds all it needs, too.
    os.kill(forwarder, 9)
    wait_for(lambda: pids_of("agent-protocol-forwarder") not in ([], [forwarder]))
    if node.compat == "native":
        with Client(node.record_socket()) as client:
            assert client.call(HEALTH, "Check").code == ttrpc.OK


def test_a_store_alone(short_dir):
    """It starts nothing. That it works so, through every death, is shown by chain.keeper."""
    path = short_dir / "keeper.sock"
    program = Program([BIN / "peerpod-keeper", "-socket", path], short_dir / "log")
    try:
        wait_for(lambda: path.exists() and status(program.pid)["NoNewPrivs"] == "1")
        if not SANITIZED:
            wait_for(lambda: status(program.pid)["Seccomp"] == "2")
        for which in ("CapEff", "CapPrm", "CapBnd"):
            assert capabilities(program.pid, which) == 0, which
        check_no_core(program.pid)
    finally:
        program.stop()
    assert ("more rights" in program.log()) == SANITIZED


def cloud_daemon(directory, *wrapper):
    return Program([*wrapper, BIN / "cloud-api-adaptor", "aws", "-socket", directory / "h.sock", "-pods-dir",
                    directory / "pods", "-control-socket", directory / "c.sock", "-imageid", "ami-1",
                    "-aws-region", "eu-north-1", "-subnetid", "subnet-1"], directory / "log",
                   env={"PATH": os.environ["PATH"], "PEERPOD_CONFIG_DIR": str(directory),
                        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"})


@pytest.mark.parametrize("wrapper", [[], ["unshare", "--user", "--map-root-user", "--net", "--mount"]],
                         ids=["root", "user namespace"])
def test_a_cloud_providers_daemon(short_dir, wrapper):
    program = cloud_daemon(short_dir, *wrapper)
    try:
        wait_for(lambda: (short_dir / "h.sock").exists() or not program.alive())
        assert program.alive(), program.log()
        needed = NET_ADMIN | SYS_ADMIN | DAC_OVERRIDE
        assert capabilities(program.pid) == capabilities(program.pid, "CapPrm") == needed
        assert capabilities(program.pid, "CapBnd") == needed
        assert status(program.pid)["NoNewPrivs"] == "1"
        check_no_core(program.pid)
        for task in pathlib.Path(f"/proc/{program.pid}/task").iterdir():
            assert capabilities(f"{program.pid}/task/{task.name}") == needed
    finally:
        program.stop()
    assert "more rights" not in program.log()


def test_without_root():
    """Who has nothing to give up is not hindered, and says nothing."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for argv in ([BIN / "cloud-api-adaptor", "version"], [BIN / "peerpod-keeper", "--", "true"]):
        done = subprocess.run([*nobody, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "rights" not in done.stderr, done.stderr
