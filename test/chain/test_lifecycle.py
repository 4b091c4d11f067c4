# SPDX-License-Identifier: Apache-2.0
"""The life of a sandbox through hypervisor.sock, on the `local` provider with the real programs in
the VM (kata-contract.md 2.4 and 7, cases 9-15 and 27)."""
import contextlib
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import time

import pytest
import ttrpc
from conftest import wait_for
from node import (AGENT, HEALTH, HYPERVISOR, SANDBOX, annotations, check_world, comm,
                  create_request)
from ttrpc import Client, message

SECOND = 10**9


@pytest.fixture
def node(node_with):
    return node_with()


def check_agent(path):
    with Client(path) as agent:
        answer = agent.call(HEALTH, "Check", message((1, "")))
        assert answer.code == ttrpc.OK and answer.payload == b"\x08\x01", answer


@pytest.mark.every_provider
def test_a_pod_from_create_to_stop(node):
    before = node.world()
    path = node.run_pod()
    assert path == str(node.pods / SANDBOX / "agent.ttrpc")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(node.pods / SANDBOX).st_mode) == 0o700
    check_agent(path)
    record = node.record()
    assert record["state"] == "running" and record["instance_name"] == "podvm-web-0-317c7ae2"
    assert not (node.pods / SANDBOX / "secret").exists(), "the secret outlives its use"
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    check_world(node, before)


def test_one_connection_for_all_calls(node):
    """The Rust shim's way."""
    with Client(node.socket, timeout=30) as client:
        assert client.call(HYPERVISOR, "CreateVM", create_request(), stream=1).code == ttrpc.OK
        start = client.call(HYPERVISOR, "StartVM", message((1, SANDBOX)), stream=3,
                            timeout_ns=10**13)
        assert start.code == ttrpc.OK, start
        assert client.call(HYPERVISOR, "StopVM", message((1, SANDBOX)), stream=5,
                           timeout_ns=SECOND).code == ttrpc.OK
    node.wait_gone()


def test_repeated_calls(node):
    assert node.stop_vm().code == ttrpc.OK, "StopVM of an unknown id"
    assert node.start_vm().code == ttrpc.NOT_FOUND
    first, second = node.create(), node.create()
    assert first.code == second.code == ttrpc.OK and first.payload == second.payload
    assert node.start_vm().code == ttrpc.OK
    assert node.start_vm().code == ttrpc.OK, "StartVM of a running sandbox"
    assert node.create().code == ttrpc.ALREADY_EXISTS
    assert len(node.instances()) == 1
    assert node.stop_vm().code == node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    assert node.stop_vm().code == ttrpc.OK


def test_stop_before_start(node):
    before = node.world()
    assert node.create().code == ttrpc.OK
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    check_world(node, before)


@pytest.mark.every_provider
def test_concurrent_calls_make_one_instance(node):
    clients = [Client(node.socket, timeout=30) for _ in range(8)]
    for client in clients:
        client.start(HYPERVISOR, "CreateVM", create_request())
    assert len({c.answer().payload for c in clients}) == 1
    for client in clients:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
    assert {c.answer().code for c in clients} == {ttrpc.OK}
    assert len(node.instances()) == 1
    for client in clients:
        client.start(HYPERVISOR, "StopVM", message((1, SANDBOX)))
    assert {c.answer().code for c in clients} == {ttrpc.OK}
    node.wait_gone()


@pytest.mark.every_provider
def test_the_callers_end_of_file_takes_the_start_back(node_with):
    node = node_with("-boot-delay", "30s")
    before = node.world()
    node.create()
    with Client(node.socket) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)), timeout_ns=600 * SECOND)
        wait_for(node.instances)
    node.wait_gone()
    check_world(node, before)
    assert node.create().code == ttrpc.OK, "the same id works again"
    node.stop_vm()


def test_a_half_close_does_not(node):
    node.create()
    with Client(node.socket, timeout=30) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        client.sock.shutdown(socket.SHUT_WR)
        assert client.answer().code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


@pytest.mark.every_provider
def test_stop_during_start(node_with):
    node = node_with("-boot-delay", "30s")
    node.create()
    with Client(node.socket, timeout=10) as starting:
        starting.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(node.instances)
        began = time.monotonic()
        assert node.stop_vm(timeout_ns=SECOND).code == ttrpc.OK
        assert time.monotonic() - began < 1
        answer = starting.answer()
        assert answer.code != ttrpc.OK and "stopped" in answer.text, answer
    node.wait_gone()


def test_a_start_ends_at_its_deadline(node_with):
    node = node_with("-boot-delay", "60s")
    node.create()
    began = time.monotonic()
    answer = node.start_vm(timeout_ns=3 * SECOND)
    assert 2 < time.monotonic() - began < 3, "before the caller's own deadline"
    assert answer.code == ttrpc.DEADLINE_EXCEEDED, answer
    assert "agent-protocol-forwarder" in answer.text and "15150" in answer.text, answer.text
    node.wait_gone()


def test_a_stop_is_answered_whatever_the_provider_does(node_with):
    node = node_with("-delete-delay", "3s", "-fail-deletes", "1")
    node.run_pod()
    began = time.monotonic()
    assert node.stop_vm(timeout_ns=SECOND).code == ttrpc.OK
    assert time.monotonic() - began < 1
    assert node.instances(), "still being deleted"
    assert node.create(notes=annotations(pod="other")).code == ttrpc.OK, "waits, then creates"
    assert not node.instances()
    assert "deleting podvm-web-0-317c7ae2 (try 1" in node.log(), "the failed delete is in the log"
    node.stop_vm()
    node.wait_gone()


@pytest.mark.every_provider
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_create_leaves_nothing(node_with, when):
    node = node_with("-fail-create", when)
    before = node.world()
    node.create()
    answer = node.start_vm()
    assert answer.code not in (ttrpc.OK, ttrpc.UNKNOWN), answer
    assert "creating instance podvm-web-0-317c7ae2" in answer.text, answer.text
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    check_world(node, before)


def test_never_started_is_taken_away(node_with):
    node = node_with("-grace-unstarted", "1s")
    node.create()
    node.wait_gone(seconds=5)


def test_a_vanished_shim_is_noticed(node_with):
    node = node_with("-grace-shim-gone", "1s")
    path = node.run_pod()
    check_agent(path)  # connects, speaks, closes; no StopVM
    node.wait_gone(seconds=10)


def test_a_silent_second_connection_means_nothing(node_with):
    node = node_with("-grace-shim-gone", "1s")
    path = node.run_pod()
    with Client(path) as agent, Client(path) as silent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        silent.close()
        time.sleep(2)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    node.stop_vm()


def test_get_info(node):
    def ask(client, wait, **more):
        return client.start("podvminfo.PodVMInfo", "GetInfo",
                            message((1, "web-0"), (2, "ns1"), (3, wait)), **more)

    with Client(node.socket, timeout=30) as client:
        assert client.answer(ask(client, False)).code == ttrpc.NOT_FOUND
        late = client.answer(ask(client, True, timeout_ns=SECOND // 5))
        assert late.code == ttrpc.DEADLINE_EXCEEDED, late
        waiting = ask(client, True)
        node.run_pod()
        answer = client.answer(waiting)
        assert answer.code == ttrpc.OK
        assert ttrpc.text(ttrpc.parse(answer.payload), 1) == node.record()["instance_id"]
        again = client.answer(ask(client, False))
        assert again.payload == answer.payload
    node.stop_vm()
    node.wait_gone()


def test_the_agent_is_reached_after_it_has_removed_its_socket(node):
    path = node.run_pod()
    with Client(path) as first:
        created = first.call(AGENT, "CreateSandbox", message((1, "web-0"), (5, SANDBOX)))
        assert created.code == ttrpc.OK, created
        check_agent(path)  # a second connection, dialled after CreateSandbox
        assert first.call(HEALTH, "Check", b"").code == ttrpc.OK
    node.stop_vm()


@pytest.mark.every_provider
def test_the_daemon_dies_and_the_pod_does_not(node):
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        for _ in range(3):
            old = node.daemon_pid()
            os.kill(old, signal.SIGKILL)
            assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK, "the same connection"
            wait_for(lambda: node.serves() and node.daemon_pid() not in (0, old))
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


def kill_vm():
    """PID 1 of the only VM: all of it ends, as when a cloud takes an instance away."""
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (proc / "cmdline").read_bytes()
            if words.startswith(b"peerpod-keeper\0") and b"agent-protocol-forwarder" in words:
                os.kill(int(proc.name), signal.SIGKILL)


@pytest.mark.every_provider
def test_a_vm_that_ends_fails_its_pod_fast(node):
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        agent.start(AGENT, "GetOOMEvent", b"")
        began = time.monotonic()
        kill_vm()
        assert agent.closed_by_peer()
        assert time.monotonic() - began < 5
    assert "has ended" in node.log()
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


def test_a_vm_that_cannot_be_reached_is_given_up(node_with):
    node = node_with("-tunnel-hold", "3s")
    path = node.run_pod()
    with Client(path, timeout=40) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        link = next(w["ifname"] for w in json.loads(subprocess.check_output(
            ["ip", "-j", "link", "show", "type", "veth"])) if w["ifname"].startswith("ppl"))
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        agent.start(HEALTH, "Check", b"")
        began = time.monotonic()
        assert agent.closed_by_peer()
        # 2 s until a ping is due, 6 s for its answer, then 3 s of holding
        assert 9 < time.monotonic() - began < 20
    assert "could not be reached for 3 s" in node.log()
    node.wait_gone()


def test_a_thousand_calls_leave_nothing_behind(node):
    node.create(), node.stop_vm(), node.wait_gone()
    before = node.world()
    for n in range(100):
        sandbox = f"sandbox-{n}"
        assert node.create(sandbox).code == ttrpc.OK
        assert node.stop_vm(sandbox).code == ttrpc.OK
    wait_for(lambda: not node.sandboxes())
    check_world(node, before)


def test_a_daemon_that_is_asked_to_end_comes_back_too(node):
    """Only the keeper's own end ends the node's service: pods depend on what it holds."""
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        old = node.daemon_pid()
        os.kill(old, signal.SIGTERM)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        wait_for(lambda: node.serves() and node.daemon_pid() not in (0, old))
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


@pytest.mark.every_provider
@pytest.mark.parametrize("boot", ["4s", "300ms"])
def test_a_start_goes_on_over_restarts(node_with, boot):
    """One instance, one answer, on the connection that asked. A minute: minute_test.py."""
    node = node_with("-boot-delay", boot)
    node.create()
    with Client(node.socket, timeout=120) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)), timeout_ns=600 * SECOND)
        old = 0
        for n in range(3):
            if n:
                wait_for(node.instances)
            old = wait_for(lambda last=old: node.daemon_pid() not in (0, last) and node.daemon_pid())
            os.kill(old, signal.SIGKILL)
            time.sleep(0.3)
        assert client.answer(1).code == ttrpc.OK
        assert len(node.instances()) == 1
        check_agent(node.record_socket())
    node.stop_vm()
    node.wait_gone()


@pytest.mark.every_provider
def test_a_start_whose_caller_dies_with_the_daemon_is_taken_back(node_with):
    node = node_with("-boot-delay", "60s")
    node.create()
    with Client(node.socket) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(node.instances)
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: no restart yet
        os.kill(node.daemon_pid(), signal.SIGKILL)
    os.kill(node.program.pid, signal.SIGCONT)
    node.wait_gone(seconds=20)


def test_a_dead_forwarder_comes_back(node):
    """The keeper in the VM starts it again, the tunnel is dialled again."""
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        for proc in pathlib.Path("/proc").iterdir():
            if proc.name.isdigit() and comm(proc.name).startswith("agent-protocol"):
                os.kill(int(proc.name), signal.SIGKILL)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()
