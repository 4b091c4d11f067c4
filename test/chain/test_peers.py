# SPDX-License-Identifier: Apache-2.0
"""Daemon and forwarder of different ages: features of the tunnel are masked at either end, and the
pod goes on over resets and over the death of both programs all the same."""
import os
import signal
import subprocess

import pytest
import ttrpc
from conftest import wait_for
from node import Node, agent_command, wrapped_guest
from pod import PORT, pids_of
from ttrpc import Client

REWIND, AGENT_READY = 1, 2
FORWARDER = "agent-protocol-forwarder"


@pytest.fixture
def pod(short_dir, request):
    """The agent socket of a pod between a daemon and a forwarder that lack these features; in each of its
    sessions, what is left of them."""
    daemon, forwarder = request.param
    left = (REWIND | AGENT_READY) & ~daemon & ~forwarder
    guest = wrapped_guest(short_dir, FORWARDER,
                          f'exec "$0.real" -tunnel-feature-mask {forwarder} "$@"\n')
    node = Node(short_dir, "-tunnel-feature-mask", daemon, "-local-guest-dir", guest,
                "-local-agent", agent_command(short_dir, "agent_stub.py", "/tmp/seen"))
    try:
        path = node.start().run_pod()
        yield node, path
        hellos = [line for line in node.log().splitlines() if ": hello from " in line]
        assert len(hellos) >= len(FAULTS) - 1  # one that came behind the answer may not have been followed
        assert all(f"features {left:x} in common" in line for line in hellos), hellos
        node.stop_vm()
        node.wait_gone()
    finally:
        node.stop()
        print(node.log(), node.vm_log())


def forwarder_pid():
    return (pids_of(FORWARDER + ".real") or [0])[0]


def kill_forwarder():
    old = forwarder_pid()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: forwarder_pid() not in (0, old))


def reset(_):
    subprocess.run(["ss", "-K", "dport", "=", f":{PORT}"], check=True, capture_output=True)


FAULTS = [reset, lambda node: kill_forwarder(),
          lambda node: os.kill(node.daemon_pid(), signal.SIGKILL), reset]


@pytest.mark.parametrize("pod", [(REWIND, 0), (AGENT_READY, 0), (0, REWIND), (0, AGENT_READY),
                                 (REWIND | AGENT_READY, AGENT_READY)], indirect=True, ids=str)
def test_either_end_is_older(pod):
    node, path = pod
    payload = bytes(range(256)) * 800
    with Client(path, timeout=30) as agent:
        for n, fault in enumerate(FAULTS):
            waiting = agent.start("grpc.AgentService", "Echo", payload[n:])
            fault(node)
            answer = agent.answer(waiting)
            assert answer.code == ttrpc.OK and answer.payload == payload[n:]
