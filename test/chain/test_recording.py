# SPDX-License-Identifier: Apache-2.0
"""A real node's traffic through the chain: the shim's recorded frames go into our sockets, the
recorded agent answers behind the forwarder. What arrives on either side differs from the recording
in the two edits alone, byte for byte (kata-contract.md 3.4 and 7, cases 9, 17, 18)."""
import json
import os
import pathlib
import socket
import threading

import pytest
import ttrpc
from agent_player import load, play, read_frame
from conftest import wait_for
from edits import method, same_but_for_the_edit
from node import Node, agent_command, make_netns

CORPUS = pathlib.Path(os.environ.get("PEERPOD_CORPUS") or
                      pathlib.Path(os.environ["PEERPOD_SOURCE"]) / "../shared/corpus").resolve()
AGENT = CORPUS / "recordings" / "kata-agent-socket.jsonl"
HYPERVISOR = CORPUS / "recordings" / "kata-hypervisor-socket.jsonl"
JOURNAL = "/tmp/player"

pytestmark = pytest.mark.skipif(not AGENT.exists(), reason=f"no recordings in {CORPUS}")


# -- the nodes' two sides --

@pytest.fixture
def node(short_dir):
    player = agent_command(short_dir, "agent_player.py", short_dir / "agent" / AGENT.name, JOURNAL,
                           files=[AGENT])
    node = Node(short_dir, "-local-agent", player)
    yield node.start()
    node.stop()
    print(node.log())


def hypervisor_calls():
    """[(connection, request frame, recorded answer)]"""
    calls = {}
    for line in HYPERVISOR.read_text().splitlines():
        entry = json.loads(line)
        if entry["frame"]:
            calls.setdefault(entry["conn"], {})[entry["from"]] = bytes.fromhex(entry["frame"])
    return [(c, f["shim"], f["daemon"]) for c, f in sorted(calls.items())]


def send(node, frame):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(node.socket))
        sock.sendall(frame)
        return read_frame(sock)


def journal(number):
    """The journal of a recorded connection, in whichever VM its player runs."""
    for proc in pathlib.Path("/proc").iterdir():
        path = proc / "root" / f"{JOURNAL[1:]}.{number}"
        if proc.name.isdigit() and path.exists():
            lines = path.read_text().split("\n")
            return lines[:-2] if lines[-2:] == ["end", ""] else None
    return None


def replay(path, frames, problems):
    answers = [f for who, f in frames if who == "agent"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))

        def received(frame):
            if frame != answers.pop(0):
                problems.append(f"to the shim: {frame[:80]!r}")
        try:
            play(sock, "shim", frames, received)
        except OSError as error:
            problems.append(f"the shim's side: {error}")
    if answers:
        problems.append(f"{len(answers)} answers have not come")


def test_the_recorded_pods(node):
    paths = []
    for _, frame, recorded in hypervisor_calls():
        if method(frame) == "StopVM":
            continue
        if method(frame) == "CreateVM":
            make_netns(ttrpc.text(ttrpc.parse(ttrpc.parse(frame[10:])[3][0]), 3))
        got = send(node, frame)
        if method(frame) == "CreateVM":
            response = ttrpc.Response(1, 0, got[10:])
            paths.append(ttrpc.text(ttrpc.parse(response.payload), 1))
        else:
            mine, theirs = ttrpc.Response(1, 0, got[10:]), ttrpc.Response(1, 0, recorded[10:])
            assert (mine.code, mine.payload) == (theirs.code, theirs.payload), mine

    recording, problems = load(AGENT), []
    threads = [threading.Thread(target=replay, args=(path, frames, problems))
               for path, frames in zip(paths, recording.values())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems, problems

    edits = 0
    for number, frames in recording.items():
        sent = [f for who, f in frames if who == "shim"]
        got = [bytes.fromhex(line) for line in wait_for(lambda: journal(number))]
        assert len(got) == len(sent)
        for ours, theirs in zip(got, sent):
            assert same_but_for_the_edit(ours, theirs), (ours[:200], theirs[:200])
            edits += ours != theirs
    assert edits == sum(1 for frames in recording.values() for who, f in frames
                        if who == "shim" and f and method(f) in ("CreateContainer", "CreateSandbox"))

    for _, frame, recorded in hypervisor_calls():
        if method(frame) == "StopVM":
            assert ttrpc.Response(1, 0, send(node, frame)[10:]).code == ttrpc.OK
    wait_for(lambda: not node.sandboxes() and not node.instances(), 15)
