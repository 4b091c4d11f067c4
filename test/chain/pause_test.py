# SPDX-License-Identifier: Apache-2.0
"""The output of a container takes the whole way: shim socket, daemon, TLS, forwarder, agent. Each
piece of the way is stopped in turn; the output stops, and then goes on with no number lost, doubled
or out of order."""
import os
import shutil
import signal
import subprocess
import time

import pytest

from pod import PORT, Daemon, Pod, pids_of, wait_for

NUMBERS = 250
COUNT = f"i=0; while [ $i -lt {NUMBERS} ]; do echo $i; i=$((i+1)); sleep 0.02; done"


@pytest.fixture
def pod(tmp_path):
    daemon = Daemon(tmp_path)
    pod = Pod("/bin/sh", "-c", COUNT)
    pod.daemon = daemon
    try:
        wait_for(lambda: len(pod.numbers()) > 10, 30, "the container prints its first numbers")
        yield pod
    finally:
        pod.process.kill()
        daemon.stop()
        print(daemon.log())


def stands_still(pod):
    """Nothing arrives for a second; what was under way may still come at first."""
    time.sleep(0.5)
    before = len(pod.numbers())
    time.sleep(1)
    return len(pod.numbers()) == before


def check_interruption(pod, stop, go):
    before = len(pod.numbers())
    stop()
    try:
        assert stands_still(pod), "the output went on although its way was closed"
    finally:
        go()
    wait_for(lambda: len(pod.numbers()) > before + 50, 20, "the output goes on")


def check_end(pod):
    assert pod.finish(60) == 0, pod.text()
    assert pod.numbers() == list(range(NUMBERS))


def check_paused_process(pod, program):
    pids = pids_of(program)
    assert pids, f"no {program} runs"

    def send(sig):
        for pid in pids:
            os.kill(pid, sig)
    check_interruption(pod, lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))


def test_paused_daemon(pod):
    check_paused_process(pod, "cloud-api-adaptor")
    check_end(pod)


def test_paused_forwarder(pod):
    check_paused_process(pod, "agent-protocol-forwarder")
    check_end(pod)


def nft(rules):
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def test_port_dropped(pod):
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    drop = "\n".join(f"""add table inet t
add chain inet t {hook} {{ type filter hook {hook} priority 0; }}
add rule inet t {hook} tcp {side} {PORT} drop""" for hook, side in (("input", "sport"),
                                                                    ("output", "dport")))
    check_interruption(pod, lambda: nft(drop), lambda: nft("delete table inet t"))
    check_end(pod)


def test_killed_daemon(pod):
    """Not a pause but a death, under the keeper."""
    old = pod.daemon.pid()
    before = len(pod.numbers())
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: pids_of("cloud-api-adaptor") not in ([], [old]), 10, "the keeper starts it")
    wait_for(lambda: len(pod.numbers()) > before + 50, 20, "the output goes on")
    check_end(pod)
