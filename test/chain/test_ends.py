# SPDX-License-Identifier: Apache-2.0
"""How sandboxes end: whatever the shim, the node's network, the provider and the daemon do, in the end there is
exactly what there should be (kata-contract.md 2.1, 2.2, 2.4; design.md 6)."""
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, HYPERVISOR, SANDBOX, annotations, check_world, create_request, pod_netns
from ttrpc import Client, message

SECOND = 10**9
# Short, and long for what must not end.
GRACES = ("-grace-unstarted", "1s", "-grace-shim-gone", "1s")
NETNS = ("-grace-unstarted", "10m", "-grace-shim-gone", "10m", "-reconcile-interval", "200ms",
         "-grace-netns-gone", "500ms")
SEED = int(os.environ.get("SEED", time.time_ns() % 10**6))


def check(agent):
    assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK


# -- the pod's network namespace --

def remove_netns(sandbox):
    subprocess.run(["ip", "netns", "del", os.path.basename(pod_netns(sandbox))], check=True)


def test_a_pod_whose_network_namespace_is_gone(node_with):
    node = node_with(*NETNS)
    path, other = node.run_pod(), node.run_pod("other", notes=annotations(pod="other"))
    assert node.create("created", notes=annotations(pod="created")).code == ttrpc.OK
    with Client(path) as agent, Client(other) as bystander:
        check(agent)
        check(bystander)
        remove_netns(SANDBOX)
        remove_netns("created")
        assert agent.closed_by_peer(), "the shim that is left is told"
        wait_for(lambda: node.sandboxes() == ["other"])
        time.sleep(1)
        check(bystander)
    assert "network namespace was removed" in node.log()
    assert node.stop_vm("other").code == ttrpc.OK
    wait_for(lambda: not node.sandboxes() and not node.instances(), 15)


def test_a_namespace_that_this_daemon_has_never_seen_means_nothing(node_with):
    """Its container may lack the host's directory."""
    node = node_with(*NETNS)
    path = node.run_pod()
    with Client(path) as agent:
        check(agent)
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: no restart yet
        os.kill(node.daemon_pid(), signal.SIGKILL)
        remove_netns(SANDBOX)
        os.kill(node.program.pid, signal.SIGCONT)
        wait_for(node.serves)
        time.sleep(1.5)
        check(agent)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


# -- the shim is killed --

SHIM = """
import sys, time
sys.path.insert(0, sys.argv[1])
import ttrpc
from ttrpc import Client, message
from node import HEALTH, HYPERVISOR, create_request
socket, until = sys.argv[2:4]
def ask(method, payload, wait):
    client = Client(socket, timeout=60)
    stream = client.start(HYPERVISOR, method, payload)
    if wait:
        answer = client.answer(stream)
        assert answer.code == ttrpc.OK, answer
        client.close()
        return answer
    print("there", flush=True)
    time.sleep(600)
name = message((1, ttrpc_id := sys.argv[4]))
created = ask("CreateVM", create_request(ttrpc_id), until != "creating")
if until == "created":
    print("there", flush=True)
    time.sleep(600)
ask("StartVM", name, until != "starting")
agent = Client(ttrpc.text(ttrpc.parse(created.payload), 1), timeout=60)
assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
agent.start("grpc.AgentService", "GetOOMEvent", b"")
if until == "running":
    print("there", flush=True)
    time.sleep(600)
ask("StopVM", name, False)
"""


@pytest.mark.parametrize("daemon", ["lives", "dies"])
@pytest.mark.parametrize("state", ["creating", "created", pytest.param(
    "starting", marks=pytest.mark.every_provider), "running", "stopping"])
def test_the_shim_is_killed(node_with, state, daemon):
    """By SIGKILL, in each state; alone, or together with the daemon."""
    slow = ("-boot-delay", "30s") if state == "starting" else ("-delete-delay", "300ms")
    node = node_with(*GRACES, *slow)
    pod_netns(SANDBOX)
    before = node.world()
    shim = subprocess.Popen([sys.executable, "-c", SHIM, os.path.dirname(os.path.abspath(__file__)),
                             str(node.socket), state, SANDBOX], stdout=subprocess.PIPE, text=True)
    try:
        assert shim.stdout.readline() == "there\n"
        if state == "starting":
            wait_for(node.instances)
        if daemon == "dies":
            os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: no restart before the shim is dead
            os.kill(node.daemon_pid(), signal.SIGKILL)
            del before["processes"]  # the daemon's own number
    finally:
        shim.kill()
        shim.wait()
    if daemon == "dies":
        os.kill(node.program.pid, signal.SIGCONT)
        wait_for(node.serves)
    node.wait_gone(seconds=30)
    check_world(node, before)
    assert node.create().code == ttrpc.OK, "the same id works again"
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


# -- StartVM --

def test_a_deadline_outlives_the_daemon(node_with):
    """The caller is answered in our words, and before its own deadline."""
    node = node_with("-boot-delay", "60s")
    node.create()
    began = time.monotonic()
    with Client(node.socket, timeout=30) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)), timeout_ns=5 * SECOND)
        wait_for(node.instances)
        for _ in range(2):
            old = node.daemon_pid()
            os.kill(old, signal.SIGKILL)
            wait_for(lambda last=old: node.serves() and node.daemon_pid() not in (0, last))
        answer = client.answer()
    assert answer.code == ttrpc.DEADLINE_EXCEEDED and "agent-protocol-forwarder" in answer.text, answer
    assert 3 < time.monotonic() - began < 5
    node.wait_gone()


# -- StopVM --

def test_a_stop_with_a_second_against_a_delete_of_a_minute(node_with):
    """As runtime-rs asks. The deletion outlives call, caller and daemon."""
    node = node_with("-delete-delay", "60s")
    node.run_pod()
    clients = [Client(node.socket, timeout=10) for _ in range(2)]
    began = time.monotonic()
    for client in clients:  # its monitor and its Shutdown handler: two at once are normal
        client.start(HYPERVISOR, "StopVM", message((1, SANDBOX)), timeout_ns=SECOND)
    assert {c.answer().code for c in clients} == {ttrpc.OK}
    assert time.monotonic() - began < 1
    for client in clients:
        client.close()
    time.sleep(1.5)
    assert node.record()["state"] == "deleting" and node.instances(), "beyond the callers' second"
    os.kill(node.daemon_pid(), signal.SIGKILL)
    wait_for(node.serves)
    assert node.record()["state"] == "deleting" and node.instances(), "the minute begins anew"
    assert node.stop_vm(timeout_ns=SECOND).code == ttrpc.OK, "once more"
    quick = node_with()
    quick.wait_gone()
    assert quick.stop_vm().code == ttrpc.OK


# -- whatever the provider does, and the daemon dies --

FAULTS = {
    "none": (),
    "create fails before": ("-fail-create", "before"),
    "create fails after": ("-fail-create", "after"),
    "no addresses": ("-fail-addresses",),
    "no list": ("-fail-list",),
    "two deletes fail": ("-fail-deletes", "2"),
    "delete is slow": ("-delete-delay", "500ms"),
    "boots slowly": ("-boot-delay", "700ms"),
    "does not boot": ("-guest-fault", "no-boot"),
    "no TLS": ("-guest-fault", "no-tls"),
}
PODS = 6
DEATHS = 4


class Lives:
    """Pods on a daemon that dies: each is started, given up by its caller or stopped at some instant; a shim
    that gets an error calls StopVM, a killed one calls nothing."""

    def __init__(self, node, seed):
        self.node, self.errors, self.most = node, [], 0
        self.chance = random.Random(seed)

    def again(self, method, payload):
        """As long as the connection ends without an answer: it was accepted and not yet stored."""
        while True:
            with contextlib.suppress(OSError, ttrpc.Closed):
                return self.node.call(method, payload, timeout=40)
            time.sleep(0.02)

    def live(self, number, how, pause):
        sandbox = f"{number:08x}" + "7" * 56
        created = self.again("CreateVM", create_request(sandbox, notes=annotations(pod=f"p{number}")))
        assert created.code == ttrpc.OK, created
        with contextlib.suppress(OSError, ttrpc.Closed), Client(self.node.socket, timeout=40) as client:
            client.start(HYPERVISOR, "StartVM", message((1, sandbox)))
            if how == "answered":
                client.answer()
            else:
                time.sleep(pause)
            if how == "stopped":
                assert self.again("StopVM", message((1, sandbox))).code == ttrpc.OK
        if how != "given up":
            assert self.again("StopVM", message((1, sandbox))).code == ttrpc.OK

    def thread(self, number, how, pause):
        try:
            self.live(number, how, pause)
        except Exception as e:  # the test's thread reports it
            self.errors.append(f"pod {number}, {how} after {pause:.3f} s: {type(e).__name__}: {e}")

    def run(self):
        hows = ("answered", "stopped", "given up")
        threads = [threading.Thread(target=self.thread, args=(
            n, hows[n % 3], 10 ** self.chance.uniform(-2.5, 0.2))) for n in range(PODS)]
        for t in threads:
            t.start()
        for _ in range(DEATHS):
            time.sleep(10 ** self.chance.uniform(-2.5, -0.1))
            pid = self.node.daemon_pid()
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for t in threads:
            t.join()
        assert not self.errors, self.errors


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.every_provider)
                                   if f in ("create fails after", "two deletes fail") else f
                                   for f in FAULTS])
def test_whatever_fails_and_whoever_dies(node_with, fault):
    print("SEED", SEED)
    graces = ("-grace-shim-gone", "1s", "-grace-unstarted", "30s")
    node = node_with("-proxy-timeout", "2s", *graces, *FAULTS[fault])
    pod_netns("warm")
    node.create("warm"), node.stop_vm("warm")
    wait_for(lambda: not node.sandboxes())
    before = node.world()
    del before["processes"]  # the daemon's own number
    Lives(node, f"{SEED} {fault}").run()
    wait_for(node.serves)
    if fault == "no list":  # what was not told may be there: nothing is forgotten, and it goes on later
        node = node_with(*graces)
    wait_for(lambda: not node.sandboxes() and not node.instances(), 40)
    check_world(node, before)
