# SPDX-License-Identifier: Apache-2.0
"""A kata shim's calls for one pod, rebuilt from the summary of a real one's (the corpus's
kata-shim-normal-pod.txt) and played in its order against the chain; then the ways in which shims go on
when something fails (kata-contract.md 2 and 3). The rebuilt requests are as long as the real ones were,
to the byte, where the summary tells all that was in them."""
import hashlib
import json
import os
import pathlib
import re
import signal
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from node import AGENT, HEALTH, HYPERVISOR, Node, comm, create_request, make_netns
from ttrpc import Client, field, message, parse, text

TRACE = pathlib.Path(os.environ.get("PEERPOD_CORPUS") or
                     pathlib.Path(os.environ["PEERPOD_SOURCE"]) / "../shared/corpus"
                     ).resolve() / "kata-shim-normal-pod.txt"
IDS = {"SBID": "5b" * 32, "CTID": "c7" * 32}
SECOND = 10 ** 9
SHIM = [("containerd-namespace-ttrpc", "k8s.io")]
JOURNAL, BODIES = "/tmp/journal", "/tmp/bodies"
BLOCKING = ("GetOOMEvent", "WaitProcess")
AGAIN = ("SignalProcess", "WaitProcess")  # as a shim does at the end, of what may have ended
EDITED = ("CreateContainer", "CreateSandbox")
UNTOLD = ("CopyFile", "CreateContainer")  # the summary leaves fields out

pytestmark = pytest.mark.skipif(not TRACE.exists(), reason=f"no {TRACE}")

EVENT = re.compile(r"\[ *([\d.]+)\] (HV|AGENT) conn#(\d+) (open|closed \(EOF\)|sid=(\d+) type=1 flags=0 "
                   r"(\S+)/(\S+) timeout=(\S+) md=\[(.*?)\] len=(\d+) ?(.*))$")


def nanoseconds(duration):
    """Go's 9m59.999963307s."""
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?([\d.]+)s", duration).groups()
    whole, _, part = seconds.partition(".")
    return (int(minutes or 0) * 60 + int(whole)) * SECOND + int(part.ljust(9, "0"))


class Event:
    """A line of the summary: "open", "closed", or a call, with the lines of detail below it."""

    def __init__(self, match, details):
        self.side, self.connection = match[2], match[3]
        self.what = "call" if match[5] else match[4].split()[0]
        if self.what == "call":
            self.stream, self.service, self.method = int(match[5]), match[6], match[7]
            self.timeout, self.length = nanoseconds(match[8]), int(match[10])
            self.metadata = [tuple(m.split("=")) for m in match[9].split(",") if m]
            self.rest, self.details = match[11], details

    def payload(self):
        fields = json.loads(self.rest) if self.rest.startswith("{") else {}
        if self.method == "CreateVM":
            return create_request(fields["id"], fields["networkNamespacePath"], fields["annotations"])
        if self.method == "CreateSandbox":
            return message((1, fields["hostname"])) + b"".join(
                field(2, d) for d in fields["dns"]) + message((5, fields["sandboxId"]))
        if self.method == "CopyFile":
            return self.copy_file()
        if self.method == "CreateContainer":
            return self.create_container()
        if self.method in ("StartContainer", "RemoveContainer"):
            # The summary does not say which: they come in pairs with the call before.
            return message((1, self.container))
        if self.method == "SignalProcess":
            return message((1, fields["containerId"]), (3, fields["signal"]))
        if self.method == "WaitProcess":
            return message((1, fields["containerId"]), (2, fields["execId"]))
        if self.method == "GetGuestDetails":
            return message((1, True), (2, True))
        return message((1, fields.get("id", "")))

    def copy_file(self):
        path, size, offset, mode, data = re.fullmatch(
            r"path=(\S+) size=(\d+) off=(\d+) mode=(\d+) data=(\d+)", self.rest).groups()
        content = b"d" * int(data)
        return message((1, path), (2, int(size)), (3, int(mode, 8)), (4, 0o750), (7, int(offset)),
                       (8, content))

    def create_container(self):
        name, root = re.match(r"id=(\S+) pidns=false root=(\S+)", self.rest).groups()
        spec, storages, namespaces = [], b"", b""
        for line in self.details:
            if found := re.match(r"storage driver=(\S+) src=(\S+) fs=(\S+) mp=(\S+) "
                                 r"drvopt=\[(.*)\] opt=\[\]$", line):
                driver, source, kind, point, options = found.groups()
                storages += field(5, message((1, driver), (2, options), (3, source), (4, kind),
                                             (6, point)))
            elif found := re.match(r"mount (\S+) <- (\S+) \((\S+)\)$", line):
                target, source, kind = found.groups()
                options = [(4, "bind"), (4, "rw")] if kind == "bind" else []
                spec.append((5, message((1, target), (2, source), (3, kind), *options)))
            elif found := re.match(r'ns (\S+) path="(.*)"$', line):
                namespaces += field(6, message((1, found[1]), (2, found[2])))
        process = message((3, message((1, 0))), (4, "sleep"), (4, "1000"),
                          (5, "PATH=/usr/bin:/bin"), (6, "/"))
        spec = message((2, process), (3, message((1, root))), *spec, (8, namespaces))
        return message((1, name), (2, name)) + storages + field(6, spec)


def trace():
    """The whole summary as events, with ids for its names."""
    lines = TRACE.read_text().splitlines()
    for name, value in IDS.items():
        lines = [line.replace(name, value) for line in lines]
    events, container = [], None
    for i, line in enumerate(lines):
        match = EVENT.match(line)
        if not match:
            continue
        details = []
        for detail in lines[i + 1:]:
            if detail.startswith("["):
                break
            details.append(detail.strip())
        event = Event(match, details)
        events.append(event)
        if event.what == "call":
            found = re.search(r'(?:id=|"containerId":")([0-9a-f]{64})', event.rest)
            container = found[1] if found else container
            event.container = container
    return events


@pytest.fixture
def node_with(short_dir):
    nodes = []

    def start(*flags):
        agent = f"{(BIN / 'test-agent').absolute()} --journal {JOURNAL} --bodies {BODIES}"
        nodes.append(Node(short_dir, "-local-agent", agent, *flags))
        return nodes[-1].start()

    yield start
    for node in nodes:
        node.stop()
        print(node.log(), node.vm_log())


@pytest.fixture
def node(node_with):
    return node_with()


def agent_of(node):
    """The agent, not what it forks, nor what another test's VM leaves for a moment."""
    pids = sorted(int(p.name) for p in pathlib.Path("/proc").iterdir()
                  if p.name.isdigit() and comm(p.name) == "test-agent")
    return next(pid for pid in pids if pid > node.program.pid)


def agent_files(node):
    """The journal's lines and the kept bodies, in the VM."""
    root = pathlib.Path(f"/proc/{agent_of(node)}/root")
    journal = [json.loads(line) for line in (root / JOURNAL[1:]).read_text().splitlines()]
    return journal, [p.read_bytes() for p in sorted((root / BODIES[1:]).iterdir())]


class Shim:
    """Plays events: connections as they were opened and closed, stream ids as they were."""

    def __init__(self, node):
        self.node, self.connections = node, {}
        self.agent_path = None
        self.waiting, self.sent = [], []
        self.look = None  # called before DestroySandbox, which ends the agent

    def play(self, event):
        key = event.side + event.connection
        if event.what == "open":
            path = self.node.socket if event.side == "HV" else self.agent_path
            self.connections[key] = Client(path, timeout=30)
        elif event.what == "closed":
            self.connections.pop(key).close()
        else:
            self.call(self.connections[key], event)

    def call(self, connection, event):
        body = ttrpc.request(event.service, event.method, event.payload(), timeout_ns=event.timeout,
                             metadata=event.metadata)
        if event.method not in UNTOLD:
            assert len(body) == event.length, (event.method, len(body), event.length)
        if event.method == "DestroySandbox":
            self.look()
        connection.send(ttrpc.frame(event.stream, body))
        if event.side == "AGENT":
            self.sent.append((event.stream, event.method, body))
        if event.method in BLOCKING and event.stream < 33:
            self.waiting.append((connection, event))
            return
        answer = connection.answer(event.stream)
        if event.method in AGAIN and answer.code == ttrpc.INTERNAL:
            assert "NOT_FOUND" in answer.text  # reaped by the WaitProcess that was under way
            return
        assert answer.code == ttrpc.OK, (event.method, event.rest[:200], answer)
        if event.method == "CreateVM":
            self.agent_path = text(parse(answer.payload), 1)
        elif event.method == "WaitProcess":
            assert parse(answer.payload) == {1: [128 + signal.SIGKILL]}


def test_a_normal_pod(node):
    events = trace()
    assert [sum(e.what == "call" and e.side == s for e in events) for s in ("HV", "AGENT")] == [3, 29]
    make_netns("/run/netns/pod1")
    before = node.world()
    shim, seen = Shim(node), []
    shim.look = lambda: seen.extend(agent_files(node))
    for event in events:
        shim.play(event)
    journal, bodies = seen
    # What came to the agent, but for DestroySandbox itself: every call, in order, edits aside.
    assert [(j["sid"], j["method"]) for j in journal] == [s[:2] for s in shim.sent[:-1]]
    for line, got, (_, method, body) in zip(journal, bodies, shim.sent):
        assert (got == body) == (method not in EDITED), method
        assert line["sha256"] == hashlib.sha256(got).hexdigest()
    node.wait_gone(IDS["SBID"])
    after = node.world()
    assert (after["instances"], after["sandboxes"], after["threads"]) == ([], [], before["threads"])


def begun(node, until):
    """The trace's calls up to and with that method."""
    make_netns("/run/netns/pod1")
    shim = Shim(node)
    for event in trace():
        shim.play(event)
        if event.what == "call" and event.method == until:
            return shim
    raise AssertionError(until)


def stop(node, **more):
    begin = time.monotonic()
    answer = node.stop_vm(IDS["SBID"], **more)
    assert answer.code == ttrpc.OK, answer
    assert time.monotonic() - begin < 2, "the shim's Shutdown waits for 3 s"


def test_a_start_that_fails_is_stopped_while_its_connection_is_open(node_with):
    node = node_with("-fail-create", "before")
    make_netns("/run/netns/pod1")
    assert node.create(IDS["SBID"], netns="/run/netns/pod1").code == ttrpc.OK
    with Client(node.socket, timeout=30) as start:
        failed = start.call(HYPERVISOR, "StartVM", message((1, IDS["SBID"])),
                            timeout_ns=600 * SECOND)
        assert failed.code != ttrpc.OK and failed.text
        stop(node, metadata=SHIM)
    node.wait_gone(IDS["SBID"])


@pytest.mark.parametrize("refused", ["SetPolicy", "CreateSandbox", "CreateContainer"])
def test_the_agent_refuses_behind_a_start(node, refused):
    """Best effort to the agent, StopVM, and the connection is closed."""
    shim = begun(node, "Check" if refused != "CreateContainer" else "GetGuestDetails")
    agent = shim.connections["AGENT1"]
    garbled = agent.call(AGENT, refused, b"\x0a\xff\xff\xff\xff\x0f", stream=101, metadata=SHIM)
    assert garbled.code not in (ttrpc.OK, ttrpc.CANCELLED), garbled
    assert agent.call(AGENT, "DestroySandbox", stream=103, timeout_ns=60 * SECOND).code == ttrpc.OK
    stop(node)
    agent.close()
    node.wait_gone(IDS["SBID"])


def test_an_agent_that_hangs_is_found_by_check_and_its_pod_stopped(node):
    """The Go shim's monitor: one Check without an answer, its deadline is the shim's own."""
    shim = begun(node, "GetOOMEvent")
    os.kill(agent_of(node), signal.SIGSTOP)
    agent = shim.connections["AGENT1"]
    agent.start(HEALTH, "Check", stream=101, timeout_ns=SECOND, metadata=SHIM)
    assert agent.silent(1.5), "nobody answers in the agent's place"
    agent.close()
    stop(node)
    node.wait_gone(IDS["SBID"])


def test_an_agent_that_ends_closes_the_shims_connection(node):
    """The waiters see the end at once, none of them gets an invented answer; then StopVM comes."""
    shim = begun(node, "WaitProcess")
    os.kill(agent_of(node), signal.SIGKILL)
    agent = shim.connections["AGENT1"]
    begin = time.monotonic()
    with pytest.raises((ttrpc.Closed, ConnectionResetError)):
        agent.answer()
    assert time.monotonic() - begin < 10
    stop(node)
    agent.close()
    node.wait_gone(IDS["SBID"])


def test_runtime_rs(node):
    """One connection to us for the pod's life, 10^13 ns, a silent reader beside the first connection, no
    DestroySandbox, StopVM with a second's deadline, twice."""
    make_netns("/run/netns/pod1")
    with Client(node.socket, timeout=30) as hypervisor:
        created = hypervisor.call(HYPERVISOR, "CreateVM",
                                  create_request(IDS["SBID"], "/run/netns/pod1"))
        path = text(parse(created.payload), 1)
        started = hypervisor.call(HYPERVISOR, "StartVM", message((1, IDS["SBID"])),
                                  timeout_ns=10 ** 13)
        assert started.code == ttrpc.OK, started
        with Client(path) as agent, Client(path) as reader:
            for event in trace():
                if event.what == "call" and event.side == "AGENT" and event.stream < 16:
                    Shim(node).call(agent, event)
            assert reader.silent()
            # GetOOMEvent is never answered while the pod lives: runtime-rs would ask in a loop.
            assert agent.silent(0.3)
        for _ in range(2):
            stopped = hypervisor.call(HYPERVISOR, "StopVM", message((1, IDS["SBID"])),
                                      timeout_ns=SECOND)
            assert stopped.code == ttrpc.OK, stopped
    node.wait_gone(IDS["SBID"])


def test_a_shim_that_dials_again(node):
    """kata's pull request 12945: the connection is lost, a probe comes and goes, the next one asks again
    what was under way, and the pod goes on."""
    shim = begun(node, "GetOOMEvent")
    shim.connections.pop("AGENT1").close()
    Client(shim.agent_path).close()
    with Client(shim.agent_path, timeout=30) as agent:
        assert agent.call(HEALTH, "Check", timeout_ns=30 * SECOND).code == ttrpc.OK
        wait = agent.start(AGENT, "WaitProcess", message((1, IDS["SBID"]), (2, IDS["SBID"])))
        killed = agent.call(AGENT, "SignalProcess", message((1, IDS["SBID"]), (3, 9)))
        assert killed.code == ttrpc.OK
        assert parse(agent.answer(wait).payload) == {1: [128 + signal.SIGKILL]}
        wait_for(lambda: node.record(IDS["SBID"])["state"] == "running")
        stop(node)
    node.wait_gone(IDS["SBID"])
