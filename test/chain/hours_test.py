# SPDX-License-Identifier: Apache-2.0
"""One connection for hours, as a shim keeps it (kata-contract.md 7): each foreign client (foreign.py) has one
to each foreign library's agent and one to that node's hypervisor.sock, from the beginning to the end, and on
each agent's connection one call is under way all the time. Rounds of calls some seconds apart and of silence;
in both the tunnels are reset, and in the silence of every second round the daemons die too.

HOURS_SECONDS: how long (4); `make hours` has an hour: four rounds, each with ten minutes of silence.
HOURS_RESULT: a file for the figures, as JSON."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from foreign import LIBRARIES, Foreign
from node import AGENT, HYPERVISOR, Node
from pod import PORT
from ttrpc import field, parse, text

AGENT_SOCKET = "/run/kata-containers/agent.sock"
HELD = 200  # as many make the agent answer
SECONDS = float(os.environ.get("HOURS_SECONDS", "4"))
ROUNDS = max(2, round(SECONDS / 900))
TALK, SILENCE = SECONDS / ROUNDS / 3, SECONDS / ROUNDS * 2 / 3
GAP = min(3.0, TALK / 5)  # between calls
RESET_EVERY = 5  # calls


class Connection:
    """Of one client to one socket, opened once."""

    def __init__(self, client, path, held):
        self.client, self.held = client, None
        self.number = client.dial(path)
        if held:
            self.held = client.begin(self.number, AGENT, "Hold", field(1, 7))

    def begin(self):
        if self.held is None:
            return self.client.begin(self.number, HYPERVISOR, "Version", field(1, "0.0.0")), None
        payload = field(3, random.randbytes(random.choice((10, 3000, 200000))))
        return self.client.begin(self.number, AGENT, "Echo", payload), payload

    def finish(self, call, payload):
        answer = self.client.wait(call, 60)
        assert answer.code == ttrpc.OK, answer
        if payload is None:
            assert text(parse(answer.payload), 1), answer
        else:
            assert answer.payload == payload

    def still_held(self):
        return self.held is None or not self.client.answered(self.held)


class Figures:
    def __init__(self):
        self.calls = self.resets = self.deaths = 0
        self.longest_call = self.longest_silence = 0.0

    def reset(self):
        """Every tunnel's connection, at the daemon's end; ss lists what it has reset."""
        listed = subprocess.run(["ss", "-HKn", "dport", "=", f":{PORT}"], check=True, capture_output=True)
        self.resets += len(listed.stdout.splitlines())

    def ask_all(self, connections, disturb=False):
        begin = time.monotonic()
        calls = [c.begin() for c in connections]
        if disturb:
            self.reset()
        for connection, call in zip(connections, calls):
            connection.finish(*call)
        self.calls += len(calls)
        self.longest_call = max(self.longest_call, time.monotonic() - begin)

    def talk(self, connections):
        end, n = time.monotonic() + TALK, 0
        while time.monotonic() < end:
            n += 1
            self.ask_all(connections, n % RESET_EVERY == 0)
            time.sleep(GAP)

    def silence(self, nodes, death):
        begin = time.monotonic()
        time.sleep(SILENCE / 3)
        self.reset()
        time.sleep(SILENCE / 3)
        for node in nodes if death else ():
            os.kill(node.daemon_pid(), signal.SIGKILL)
            self.deaths += 1
        time.sleep(SILENCE / 3)
        for node in nodes if death else ():
            wait_for(node.serves)
        self.longest_silence = max(self.longest_silence, time.monotonic() - begin)


@pytest.fixture
def nodes(short_dir):
    """For each library a node with a pod whose agent it is: (node, the shim's socket)."""
    made, sandboxes = [], [f"{n + 1:064x}" for n in range(len(LIBRARIES))]
    try:
        for library in LIBRARIES:
            if not (BIN / f"foreign-{library}").exists():
                pytest.skip(f"no foreign-{library}: its toolchain or its modules are not here")
            place = short_dir / library
            place.mkdir()
            program = pathlib.Path(shutil.copy(BIN / f"foreign-{library}", place / "agent"))
            made.append(Node(place, "-local-agent", f"{program} serve {AGENT_SOCKET}",
                             "-vxlan-min-id", 600000 + 1000 * len(made)))
        yield [(node, node.start().run_pod(sandbox)) for node, sandbox in zip(made, sandboxes)]
        for node, sandbox in zip(made, sandboxes):
            assert node.stop_vm(sandbox).code == ttrpc.OK
            node.wait_gone(sandbox)
    finally:
        for node in made:
            if node.program:
                node.stop()
                print(node.log()[-20000:])


@pytest.fixture
def clients():
    made = [Foreign(library) for library in LIBRARIES if (BIN / f"foreign-{library}").exists()]
    yield made
    for client in made:
        client.stop()


def let_go(connections, node_count):
    """The calls that were under way all the time come back, each agent's when it has HELD of them."""
    per_agent = len(connections) // node_count
    for at in range(0, len(connections), per_agent):
        mine = connections[at:at + per_agent]
        first = mine[0]
        more = [first.client.begin(first.number, AGENT, "Hold", field(1, 8)) for _ in range(HELD - per_agent)]
        for connection in mine:
            answer = connection.client.wait(connection.held)
            assert (answer.code, answer.payload) == (ttrpc.OK, field(1, 7)), answer
        assert all(first.client.wait(call).code == ttrpc.OK for call in more)


def test_one_connection_for_hours(nodes, clients):
    begin, figures = time.monotonic(), Figures()
    agents = [Connection(client, path, True) for _, path in nodes for client in clients]
    every = agents + [Connection(client, node.socket, False) for node, _ in nodes for client in clients]
    for n in range(ROUNDS):
        figures.talk(every)
        assert all(c.still_held() for c in agents)
        figures.silence([node for node, _ in nodes], n % 2 == 1)
    figures.ask_all(every)
    let_go(agents, len(nodes))
    assert figures.resets >= ROUNDS and figures.deaths >= len(nodes)
    result = json.dumps({"name": "hours", "pass": True, "seconds": round(time.monotonic() - begin),
                         "connections": len(every), "calls": figures.calls, "resets": figures.resets,
                         "deaths": figures.deaths, "longest_silence_s": round(figures.longest_silence),
                         "longest_call_ms": round(figures.longest_call * 1000)})
    pathlib.Path(os.environ.get("HOURS_RESULT", "/dev/stdout")).write_text(result + "\n")
