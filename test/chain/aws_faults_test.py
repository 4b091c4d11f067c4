# SPDX-License-Identifier: Apache-2.0
"""The daemon killed at each HTTP exchange of a pod's start and of its end, before AWS hears of it and after
it has acted and before the daemon hears of that. The keeper starts the next one: StartVM is answered on
the connection that asked, AWS has made exactly one instance, and StopVM leaves none.

With the caller gone as well (the shim died with the daemon), none is left at once."""
import os
import signal
import threading
import time

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, HYPERVISOR, Node, annotations
from ttrpc import Client, message

SECOND = 10**9
EXCHANGES_MAX = 30


class Fault:
    """Kills the daemon at one exchange: number n since it was armed, counted over EC2 and IMDS."""

    def __init__(self, node):
        self.node = node
        self.world = node.cloud.world
        self.seen, self.at, self.fired = 0, None, None
        self.world.proxy.rules.append(lambda e: self.step("before", e.action))
        self.world.proxy.after.append(lambda e: self.step("after", e.action))
        self.world.imds.hook = self.step

    def arm(self, phase, number, then=None):
        self.seen, self.at, self.fired, self.then = 0, (phase, number), None, then

    def disarm(self):
        self.at = None
        return self.fired

    def fresh(self):
        """A daemon that knows nothing yet of AMI and network, and has reconciled."""
        old, asked = self.node.daemon_pid(), len(self.world.proxy.of("DescribeInstances"))
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: self.node.daemon_pid() not in (0, old) and self.node.serves() and
                 any(e.status for e in self.world.proxy.of("DescribeInstances")[asked:]))

    def step(self, phase, what):
        import world
        if self.at is None or phase != self.at[0]:
            return
        self.seen += 1
        if self.seen != self.at[1]:
            return
        self.at, self.fired = None, what
        if self.then:
            self.then()
        os.kill(self.node.daemon_pid(), signal.SIGKILL)
        raise world.Drop


@pytest.fixture
def node(short_dir):
    one = Node(short_dir)
    one.keeper_flags = ("-restart-max", "20ms")  # many deaths, one after the other, are the test's own
    yield one.start()
    one.stop()
    print(one.log())


def every_step(fault, phase, then=None):
    """1, 2, ... with what arms the fault there, as long as it fires."""
    fired = []
    for number in range(1, EXCHANGES_MAX):
        fault.at = None
        fault.fresh()
        yield number, lambda n=number: fault.arm(phase, n, then)
        if not fault.fired:
            fault.at = None
            print(f"killed {phase} each of: {fired}")
            assert {"RunInstances", "TerminateInstances"} & set(fired)
            return
        fired.append(fault.fired)
    raise AssertionError(fired)


def made(node, sandbox):
    """Every instance that AWS has ever made for the sandbox."""
    every = node.cloud.world.instances("pending", "running", "shutting-down", "terminated", "stopping",
                                       "stopped")
    return [i["InstanceId"] for i in every
            if {"Key": "peerpod-sandbox", "Value": sandbox} in i["Tags"]]


def begin(node, sandbox, client, arm):
    created = node.create(sandbox, notes=annotations(pod=sandbox))
    assert created.code == ttrpc.OK, created
    arm()
    client.start(HYPERVISOR, "StartVM", message((1, sandbox)), timeout_ns=600 * SECOND)
    return ttrpc.text(ttrpc.parse(created.payload), 1)


@pytest.mark.every_provider
@pytest.mark.parametrize("phase", ["before", "after"])
def test_killed_at_each_exchange_of_a_start(node, phase):
    fault = Fault(node)
    for number, arm in every_step(fault, phase):
        sandbox = f"{phase}-{number}"
        with Client(node.socket, timeout=60) as client:
            path = begin(node, sandbox, client, arm)
            answer = client.answer()
        fault.disarm()
        assert answer.code == ttrpc.OK, (number, fault.fired, answer)
        assert len(made(node, sandbox)) == 1, (number, fault.fired)
        with Client(path) as agent:
            assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        assert node.stop_vm(sandbox).code == ttrpc.OK
        wait_for(lambda s=sandbox: node.gone(s), 20)
    node.cloud.world.nothing_left()


# "after" leaves AWS with more than "before" does; both in the long form (STEP_FAULTS=all).
@pytest.mark.every_provider
@pytest.mark.parametrize("phase", ["before", "after"] if os.environ.get("STEP_FAULTS") else ["after"])
def test_killed_at_each_exchange_of_a_start_with_its_caller(node, phase):
    fault = Fault(node)
    client = None

    def hang_up():
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: the next one finds the caller gone
        client.sock.close()

    for number, arm in every_step(fault, phase, hang_up):
        sandbox = f"{phase}-{number}"
        client = Client(node.socket, timeout=60)
        begin(node, sandbox, client, arm)
        wait_for(lambda: fault.fired or node.record(sandbox)["state"] == "running", 30)
        os.kill(node.program.pid, signal.SIGCONT)
        client.close()
        wait_for(node.serves)
        if not fault.disarm():
            node.stop_vm(sandbox)
        wait_for(lambda s=sandbox: node.gone(s), 20)
        assert len(made(node, sandbox)) <= 1
    node.cloud.world.nothing_left()


@pytest.mark.every_provider
def test_a_stop_overtakes_the_create_of_a_dead_daemon(node):
    """AWS is still at RunInstances when the next daemon has answered StopVM and looks for an instance."""
    answered = threading.Event()

    def late(exchange):
        if exchange.action == "RunInstances":
            os.kill(node.daemon_pid(), signal.SIGKILL)
            assert answered.wait(20)
            time.sleep(0.5)

    node.cloud.world.proxy.rules.append(late)
    with Client(node.socket, timeout=60) as client:
        begin(node, "late", client, lambda: None)
        old = node.daemon_pid()
        wait_for(lambda: node.daemon_pid() not in (0, old) and node.serves())
        node.cloud.world.proxy.rules.remove(late)
        asked = len(node.cloud.world.proxy.of("DescribeInstances"))
        assert node.stop_vm("late").code == ttrpc.OK
    wait_for(lambda: len(node.cloud.world.proxy.of("DescribeInstances")) > asked)
    answered.set()
    wait_for(lambda: not node.sandboxes(), 20)
    wait_for(lambda: made(node, "late"))
    assert not node.instances(), "an instance that nobody knows"
    node.cloud.world.nothing_left()


@pytest.mark.every_provider
@pytest.mark.parametrize("phase", ["before", "after"])
def test_killed_at_each_exchange_of_a_stop(node, phase):
    fault = Fault(node)
    for number, arm in every_step(fault, phase):
        sandbox = f"{phase}-{number}"
        with Client(node.socket, timeout=60) as client:
            begin(node, sandbox, client, lambda: None)
            assert client.answer().code == ttrpc.OK
        arm()
        assert node.stop_vm(sandbox).code == ttrpc.OK
        wait_for(lambda s=sandbox: node.gone(s), 20)
        assert len(made(node, sandbox)) == 1
    node.cloud.world.nothing_left()
