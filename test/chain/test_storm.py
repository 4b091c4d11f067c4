# SPDX-License-Identifier: Apache-2.0
"""CreateVM, StartVM and StopVM of many sandboxes at once while the daemon is killed at random instants and
its keeper starts it again: no call hangs, no pod that was started is lost, StopVM always succeeds, and at the
end nothing is left. SEED and STORM_SECONDS choose another storm."""
import contextlib
import os
import pathlib
import random
import signal
import threading
import time

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, HYPERVISOR, Node, annotations, check_world, create_request
from ttrpc import Client, message

PODS = 20
SECONDS = float(os.environ.get("STORM_SECONDS", "12"))
SEED = int(os.environ.get("SEED", time.time_ns() % 10**6))
KILL_EVERY = (0.05, 1.2)  # seconds
# What a call may take in the storm, kills included; a cloud's double boots one VM after the other.
CALL_SECONDS = 30 if Node.provider == "local" else 120


class Failed(Exception):
    pass


class Storm:
    def __init__(self, node):
        self.node = node
        self.end = time.monotonic() + SECONDS
        self.kills = 0
        self.done = {"pods": 0, "started": 0, "abandoned": 0, "checked": 0}
        self.errors = []

    def over(self):
        return time.monotonic() > self.end or self.errors

    def killer(self):
        chance = random.Random(SEED)
        while not self.over():
            time.sleep(chance.uniform(*KILL_EVERY))
            pid = self.node.daemon_pid()
            if pid:
                signum = signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
                    self.kills += 1

    def worker(self, number):
        chance = random.Random(SEED * 1000 + number)
        turn = 0
        try:
            while not self.over():
                turn += 1
                self.pod(f"{number:04x}{turn:04x}" + "5" * 56, chance)
        except Exception as e:  # the test's thread reports it
            self.errors.append(f"pod {number}: {type(e).__name__}: {e}")

    def call(self, method, payload):
        """As a shim calls, but again when the connection was lost: one that the daemon had not yet
        stored when it died is closed (design.md 5)."""
        end = time.monotonic() + CALL_SECONDS
        while time.monotonic() < end:
            try:
                return self.node.call(method, payload, timeout=CALL_SECONDS)
            except (ttrpc.Closed, ConnectionError, BlockingIOError, FileNotFoundError):
                time.sleep(0.01)
            except TimeoutError as e:
                raise Failed(f"{method} hangs") from e
        raise Failed(f"{method} was cut off for {CALL_SECONDS} s")

    def pod(self, sandbox, chance):
        me = message((1, sandbox))
        created = self.call("CreateVM", create_request(sandbox, notes=annotations(pod=sandbox[:8])))
        if created.code not in (ttrpc.OK, ttrpc.ALREADY_EXISTS):
            raise Failed(f"CreateVM {sandbox[:8]}: {created}")
        fate = chance.random()
        if fate < 0.2:
            self.abandon(me, chance)
        elif fate < 0.9:
            self.run(sandbox, me)
        stopped = self.call("StopVM", me)
        if stopped.code != ttrpc.OK:
            raise Failed(f"StopVM {sandbox[:8]}: {stopped}")
        self.done["pods"] += 1

    def abandon(self, me, chance):
        """The caller of StartVM goes away."""
        with contextlib.suppress(OSError, ttrpc.Closed), Client(self.node.socket) as client:
            client.start(HYPERVISOR, "StartVM", me)
            time.sleep(chance.uniform(0, 0.3))
        self.done["abandoned"] += 1

    def run(self, sandbox, me):
        started = self.call("StartVM", me)
        # Its first connection may have been lost: the start was taken back then.
        if started.code in (ttrpc.NOT_FOUND, ttrpc.UNAVAILABLE, ttrpc.CANCELLED):
            return
        if started.code != ttrpc.OK:
            raise Failed(f"StartVM {sandbox[:8]}: {started}")
        self.done["started"] += 1
        path = self.node.pods / sandbox / "agent.ttrpc"
        for _ in range(3):
            with contextlib.suppress(ttrpc.Closed, ConnectionError, BlockingIOError):
                with Client(path, timeout=CALL_SECONDS) as agent:
                    if agent.call(HEALTH, "Check", b"").code != ttrpc.OK:
                        raise Failed(f"the agent of {sandbox[:8]}")
                    self.done["checked"] += 1
                return


def store_descriptors(node):
    return len(os.listdir(f"/proc/{node.program.pid}/fd"))


@pytest.fixture
def node(short_dir):
    node = Node(short_dir)
    # The deaths are the test's own; the keeper's pause grows to 5 s, and the storm would be a lull.
    node.keeper_flags = ("-restart-max", "20ms")
    yield node.start()
    node.stop()


def log_of(node):
    return "\n".join(l for l in node.log().splitlines() if " DEBUG " not in l)


def settled(node):
    return not node.sandboxes() and not node.instances()


@pytest.mark.every_provider
def test_kills_in_a_storm(node):
    node.run_pod(), node.stop_vm(), node.wait_gone()
    before, held = node.world(), store_descriptors(node)
    del before["processes"]  # the daemon's own number
    storm = Storm(node)
    threads = [threading.Thread(target=storm.worker, args=(n,), daemon=True) for n in range(PODS)]
    threads.append(threading.Thread(target=storm.killer, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 3 * CALL_SECONDS)
    try:
        assert not any(t.is_alive() for t in threads), "a call hangs"
        assert not storm.errors, storm.errors
        print(f"seed {SEED}: {storm.kills} kills, {storm.done}")
        assert storm.kills >= SECONDS / 2 and storm.done["checked"] > 0, storm.done
        wait_for(node.serves)
        wait_for(lambda: settled(node), 20)
        check_world(node, before)
        wait_for(lambda: store_descriptors(node) <= held)
        vms = [p for p in pathlib.Path("/proc").glob("[0-9]*")
               if (p / "comm").exists() and "agent" in (p / "comm").read_text()]
        assert not vms, vms
    except AssertionError:
        print(f"seed {SEED}; left: {node.sandboxes()} {node.instances()}")
        print(log_of(node))
        raise
