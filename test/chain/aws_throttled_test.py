# SPDX-License-Identifier: Apache-2.0
"""A node that AWS lets make a few calls per second, all operations together, starts many pods at once: each
is told why it waits (in its log line and in `peerpodctl status`), and none fails.

THROTTLE_RATE calls per second, THROTTLE_PODS pods: 2 and 12 by default; `make throttled` runs it with 1 and
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

RATE = float(os.environ.get("THROTTLE_RATE", "2"))
PODS = int(os.environ.get("THROTTLE_PODS", "12"))
SECOND = 10**9
WAITED = 3.5  # seconds


def sandbox_of(form):
    return next(form[key.replace("Key", "Value")] for key, value in form.items()
                if value == "peerpod-sandbox")


class Bucket:
    """As EC2's: RATE tokens a second, a second's worth at most; what finds none is refused."""

    def __init__(self, world):
        self.world, self.tokens, self.at = world, max(RATE, 1), time.monotonic()
        self.refused, self.accepted, self.ran = 0, 0, {}
        self.lock = threading.Lock()
        world.proxy.rules.append(self.rule)

    def rule(self, exchange):
        import world
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.tokens + (now - self.at) * RATE, max(RATE, 1))
            self.at = now
            if self.tokens >= 1:
                self.tokens -= 1
                self.accepted += 1
                if exchange.action == "RunInstances":
                    self.ran[sandbox_of(exchange.form)] = now
                return None
            self.refused += 1
        return world.error("RequestLimitExceeded", "Request limit exceeded.", 503)


@pytest.fixture
def node(short_dir):
    one = Node(short_dir)
    yield one.start()
    one.stop()
    print(one.log())


class Watch(threading.Thread):
    """What `peerpodctl status` says that each pod waits for, as long as there are starts to wait for."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.told, self.over = node, {}, threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            done = subprocess.run([BIN / "peerpodctl", "status", "-o", "json", "-control-socket",
                                   self.node.control], capture_output=True, text=True, timeout=60, check=True)
            for sandbox in json.loads(done.stdout)["sandboxes"]:
                if sandbox.get("waits_for"):
                    self.told.setdefault(sandbox["id"], set()).add(sandbox["waits_for"])

    def throttled(self):
        return {name for name, words in self.told.items() if any(
            re.match(r"AWS throttles this node's \w+ calls \(RequestLimitExceeded\): \d+ before", w)
            for w in words)}


@pytest.mark.every_provider
def test_all_pods_start(node):
    bucket = Bucket(node.cloud.world)
    names = [f"pod-{n:02}" for n in range(PODS)]
    for name in names:
        assert node.create(name, notes=annotations(pod=name)).code == ttrpc.OK
    watch = Watch(node)
    watch.start()
    began = time.monotonic()
    clients = {name: Client(node.socket, timeout=300 + 3 * PODS / RATE) for name in names}
    for name, client in clients.items():
        client.start(HYPERVISOR, "StartVM", message((1, name)), timeout_ns=600 * SECOND)
    answers = {name: client.answer() for name, client in clients.items()}
    watch.over.set()
    watch.join()
    failed = {name: a for name, a in answers.items() if a.code != ttrpc.OK}
    assert not failed, failed
    assert len(node.instances()) == PODS
    print(f"{PODS} pods at {RATE}/s in {time.monotonic() - began:.1f} s, {bucket.accepted} calls, "
          f"{bucket.refused} refused")
    # Those whose turn came late were each told why: by status and in the log.
    waited = {name for name, at in bucket.ran.items() if at - began > WAITED}
    logged = set(re.findall(r"sandbox=(pod-\d\d).*waits .*: AWS throttles this node's", node.log()))
    print(f"waited: {len(waited)}; told by status: {len(watch.throttled())}, in the log: {len(logged)}")
    assert len(waited) > PODS / 3
    assert not waited - watch.throttled(), {n: watch.told.get(n) for n in waited - watch.throttled()}
    assert not waited - logged, waited - logged
    # All that were under way at the first refusal (-max-creates) are refused; then the node slows down.
    assert bucket.refused < bucket.accepted + min(PODS, 32), "it asks again and again"
    for name in names:
        assert node.stop_vm(name).code == ttrpc.OK
    wait_for(lambda: not node.sandboxes() and not node.instances(), 120 + 4 * PODS / RATE, 0.2)
    node.cloud.world.nothing_left()
