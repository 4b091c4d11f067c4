# SPDX-License-Identifier: Apache-2.0
"""Several daemons on one state directory, each under a keeper of its own, and the words of their take-over."""
import os
import signal
import struct

import pytest
import ttrpc
from conftest import BIN, Program, wait_for
from node import SANDBOX, Node, agent_command

# adaptor/takeover.c
ASK, REFUSED, DESCRIPTORS, HELD, ALL, STORED, UNLOCKED, SERVING = range(1, 9)
MESSAGE = struct.Struct("8sIIIIIIq32s32x")
HANDED_OVER = 79


class Daemon(Node):
    """One of several on the same directory; each has a log of its own."""

    def __init__(self, directory, name, *flags, **more):
        super().__init__(directory, *flags, **more)
        self.name = name

    def start(self, wait=False):
        env = {**os.environ, "PEERPOD_CONFIG_DIR": str(self.dir / "etc"),
               **self.cloud.environment(), **self.env}
        self.program = Program(self.argv(), self.dir / f"node.log.{self.name}", env=env)
        if wait:
            wait_for(self.serves)
        return self

    def took_over(self):
        return "the predecessor is gone" in self.log()

    def alive(self):
        return self.program.alive()

    def ended(self):
        return not self.alive()

    def handed_over(self):
        return self.ended() and self.program.process.returncode == HANDED_OVER


class Fleet:
    def __init__(self, directory, *flags):
        self.dir, self.daemons = directory, []
        self.agent = agent_command(directory, "agent_stub.py", directory / "agent-says")
        self.flags = ("-local-agent", self.agent, "-local-guest-dir", BIN, *flags)

    def add(self, wait=False, **more):
        daemon = Daemon(self.dir, str(len(self.daemons)), *self.flags, **more)
        self.daemons.append(daemon)
        return daemon.start(wait)

    def stop(self):
        for daemon in self.daemons:
            daemon.stop()
        for daemon in self.daemons:
            print(f"-- daemon {daemon.name}:\n{daemon.log()}")


@pytest.fixture
def fleet_with(short_dir):
    fleets = []

    def make(*flags):
        fleets.append(Fleet(short_dir, *flags))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def fleet(fleet_with):
    return fleet_with()


def generation(daemon):
    return int((daemon.pods / ".generation").read_text())


def echo(agent, text):
    answer = agent.call("any", "Echo", text)
    assert (answer.code, answer.payload) == (ttrpc.OK, text), answer


def kill_daemon(daemon):
    """The daemon alone; its keeper starts the next one."""
    before = generation(daemon)
    os.kill(wait_for(daemon.daemon_pid), signal.SIGKILL)
    wait_for(lambda: generation(daemon) > before and daemon.serves())
