# SPDX-License-Identifier: Apache-2.0
"""What takes a minute, in real time: a VM that boots for one while the daemon dies three times, and another whose
deletion lasts one, while its StopVM has a second (as runtime-rs asks)."""
import os
import signal
import time

import ttrpc
from conftest import wait_for
from node import HEALTH, HYPERVISOR, SANDBOX, annotations
from ttrpc import Client, message

SECOND = 10**9
OTHER = "other"


def start(node, sandbox, pod):
    assert node.create(sandbox, notes=annotations(pod=pod)).code == ttrpc.OK
    client = Client(node.socket, timeout=120)
    client.start(HYPERVISOR, "StartVM", message((1, sandbox)), timeout_ns=600 * SECOND)
    return client, wait_for(lambda: node.record(sandbox)["instance_id"])


def die(node):
    old = node.daemon_pid()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: node.daemon_pid() not in (0, old) and node.serves())


def test_a_boot_and_a_delete_of_a_minute(node_with):
    node = node_with("-boot-delay", "60s", "-delete-delay", "60s")
    began = time.monotonic()
    (client, instance), (other, _) = start(node, SANDBOX, "web-0"), start(node, OTHER, "web-1")
    for _ in range(3):
        time.sleep(3)
        die(node)
    stopped = time.monotonic()
    assert node.stop_vm(OTHER, timeout_ns=SECOND).code == ttrpc.OK
    assert time.monotonic() - stopped < 1
    assert other.answer().code != ttrpc.OK, "whoever waited for it is told"
    answer = client.answer(1)
    assert answer.code == ttrpc.OK and time.monotonic() - began > 59, answer
    assert client.silent(1), "one answer"
    assert node.record()["instance_id"] == instance and len(node.instances()) == 2, "one instance"
    with Client(node.record_socket()) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    assert node.record(OTHER)["state"] == "deleting"
    wait_for(lambda: OTHER not in node.sandboxes(), 60)
    assert time.monotonic() - stopped > 59 and len(node.instances()) == 1
    node = node_with()  # without the delays
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
