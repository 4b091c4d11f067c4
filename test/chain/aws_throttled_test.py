# SPDX-License-Identifier: Apache-2.0
"""A node that AWS lets make a few calls per second, all operations together, starts many pods at once: each
is told why it waits (in its log line and in `peerpodctl status`), and none fails.

THROTTLE_RATE calls per second, THROTTLE_PODS pods: 8 and 20 by default; `make throttled` runs it with 1 and
50, which takes minutes."""
import json
import os
import re
import subprocess
import threading
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from node import HYPERVISOR, Node, annotations
from ttrpc import Client, message

RATE = float(os.environ.get("THROTTLE_RATE", "8"))
PODS = int(os.environ.get("THROTTLE_PODS", "20"))
SECOND = 10**9


class Bucket:
    """As EC2's: RATE tokens a second, a second's worth at most; what finds none is refused."""

    def __init__(self, world):
        self.world, self.tokens, self.at = world, max(RATE, 1), time.monotonic()
        self.refused, self.accepted = 0, 0
        self.lock = threading.Lock()
        world.proxy.rules.append(self.rule)

    def rule(self, _exchange):
        import world
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.tokens + (now - self.at) * RATE, max(RATE, 1))
            self.at = now
            if self.tokens >= 1:
                self.tokens -= 1
                self.accepted += 1
                return None
            self.refused += 1
        return world.error("RequestLimitExceeded", "Request limit exceeded.", 503)


@pytest.fixture
def node(short_dir):
    one = Node(short_dir)
    yield one.start()
    one.stop()


def waiting(node):
    """Sandbox -> what its status says it waits for."""
    done = subprocess.run([BIN / "peerpodctl", "status", "-o", "json", "-control-socket", node.control],
                          capture_output=True, text=True, timeout=30, check=True)
    text = json.dumps(json.loads(done.stdout))
    return re.findall(r"AWS throttles this node's \w+ calls \(RequestLimitExceeded\)", text)


@pytest.mark.every_provider
def test_all_pods_start(node):
    bucket = Bucket(node.cloud.world)
    names = [f"pod-{n:02}" for n in range(PODS)]
    for name in names:
        assert node.create(name, notes=annotations(pod=name)).code == ttrpc.OK
    began = time.monotonic()
    clients = {name: Client(node.socket, timeout=300 + 3 * PODS / RATE) for name in names}
    for name, client in clients.items():
        client.start(HYPERVISOR, "StartVM", message((1, name)), timeout_ns=600 * SECOND)
    told = wait_for(lambda: waiting(node), 60)
    print("status:", len(told), set(told))
    answers = {name: client.answer() for name, client in clients.items()}
    print(f"{PODS} pods at {RATE}/s in {time.monotonic() - began:.1f} s, {bucket.accepted} calls, "
          f"{bucket.refused} refused")
    failed = {name: a for name, a in answers.items() if a.code != ttrpc.OK}
    assert not failed, failed
    assert len(node.instances()) == PODS
    waited = set(re.findall(r"sandbox=(pod-\d\d).*waits about \d+ s: AWS throttles this node's", node.log()))
    print("told in the log:", len(waited))
    assert len(waited) > PODS / 3
    assert bucket.refused < bucket.accepted, "the node slows down instead of asking again and again"
    for name in names:
        assert node.stop_vm(name).code == ttrpc.OK
    wait_for(lambda: not node.sandboxes() and not node.instances(), 120 + 4 * PODS / RATE, 0.2)
    node.cloud.world.nothing_left()
