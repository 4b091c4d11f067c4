# SPDX-License-Identifier: Apache-2.0
"""Agent traffic through shim socket, daemon, TLS, forwarder and back: what passes untouched, what is
edited, sizes, many calls at once (kata-contract.md 3.5 and 7, cases 1-8 and 17-21)."""
import pathlib
import random
import socket
import struct
import tempfile
import time

import pytest
import ttrpc
from conftest import wait_for
from edits import edited
from node import Node, agent_command
from ttrpc import BODY_MAX, Client, field, frame, message, request

SEEN = "/tmp/seen"


@pytest.fixture(scope="module")
def shim_socket(tmp_path_factory):
    """The agent socket of one pod whose agent is the stub; shared: every test has its connections."""
    directory = tempfile.mkdtemp(prefix="pp-")
    node = Node(directory, "-local-agent", agent_command(directory, "agent_stub.py", SEEN),
                "-grace-shim-gone", "10m")
    try:
        yield node.start().run_pod()
        assert node.stop_vm().code == ttrpc.OK
        node.wait_gone()
    finally:
        node.stop()
        print(node.log())


@pytest.fixture
def shim(shim_socket):
    with Client(shim_socket, timeout=20) as client:
        yield client


def seen(name, stream):
    """The frame that the agent has got, in its VM."""
    def look():
        for proc in pathlib.Path("/proc").iterdir():
            path = proc / "root" / f"{SEEN[1:]}/{name}.{stream}"
            if proc.name.isdigit() and path.exists():
                return path.read_bytes()
        return None
    return wait_for(look)


def echo(client, payload, stream=None):
    answer = client.call("grpc.AgentService", "Echo", payload, stream=stream)
    assert answer.code == ttrpc.OK and answer.payload == payload


def test_any_service_and_method(shim):
    sent = frame(7, request("future.Service", "NotYetInvented", b"\xff\x00anything",
                            timeout_ns=5, metadata=[("k", "v1"), ("k", "v2")])
                 + field(99, b"unknown") + field(98, 7))
    shim.send(sent)
    assert shim.answer(7).code == ttrpc.OK
    assert seen("NotYetInvented", 7) == sent


@pytest.mark.parametrize("size", [0, 1, 16 << 10, 256 << 10, (256 << 10) + 1, 1 << 20])
def test_sizes(shim, size):
    echo(shim, random.Random(size).randbytes(size))


def test_a_body_of_exactly_4_mib_passes_and_one_byte_more_is_refused_on_its_stream(shim):
    for method_name in ("Big", "CreateContainer"):
        base = request("grpc.AgentService", method_name, b"")
        for extra, code in ((0, ttrpc.OK), (1, ttrpc.INVALID_ARGUMENT)):
            if method_name == "CreateContainer" and extra == 0:
                continue  # it would grow: the next test
            size = BODY_MAX + extra - len(base)
            body = base + field(77, b"x" * (size - len(field(77, b"x" * size)) + size))
            assert len(body) == BODY_MAX + extra
            stream = shim.next_stream
            shim.next_stream += 2
            shim.send(frame(stream, body))
            answer = shim.answer(stream)
            assert answer.code == code, answer
            echo(shim, b"alive")


def container(spec_size, tail=b""):
    """A CreateContainer whose frame is about spec_size; unknown fields at each level."""
    mount = message((1, "/x"), (2, "/etc/hostname"), (3, "bind"))
    filler = message((1, "ENV"), (2, "e" * max(0, spec_size)))
    linux = field(50, b"unknown in linux") + field(6, message((1, "mount"))) + field(6, message(
        (1, "ipc")))
    oci = (field(90, b"unknown before") + field(2, filler) + field(5, mount) + field(8, linux)
           + field(91, b"unknown behind"))
    return request("grpc.AgentService", "CreateContainer",
                   message((1, "c1")) + field(6, oci) + field(60, b"unknown")) + tail


@pytest.mark.parametrize("size", [100, 100 << 10, 3900 << 10])
def test_create_container_gets_the_namespace_and_keeps_every_other_byte(shim, size):
    stream = 1001 + size * 2
    sent = frame(stream, container(size, tail=field(70, b"t")))
    for piece in (sent[:5], sent[5:11], sent[11:40], sent[40:]):
        shim.send(piece)
        time.sleep(0.01)
    assert shim.answer(stream).code == ttrpc.OK
    assert seen("CreateContainer", stream) == edited(sent)


def test_create_sandbox_loses_its_dns(shim):
    sent = frame(9, request("grpc.AgentService", "CreateSandbox", message(
        (1, "host"), (2, "nameserver 10.0.0.10"), (2, "search x"), (5, "sandbox"), (40, b"u"))))
    shim.send(sent)
    assert shim.answer(9).code == ttrpc.OK
    assert seen("CreateSandbox", 9) == edited(sent)
    assert b"nameserver" not in seen("CreateSandbox", 9)


def test_create_container_that_grows_over_4_mib_is_a_clean_error(shim):
    head = container(0)
    body = container(BODY_MAX - len(head) - 40)
    assert BODY_MAX - 60 < len(body) <= BODY_MAX
    shim.start("grpc.AgentService", "Echo", b"before", stream=3)
    shim.send(frame(5, body))
    shim.start("grpc.AgentService", "Echo", b"behind", stream=7)
    answer = shim.answer(5)
    assert answer.code != ttrpc.OK and "CreateContainer" in answer.text, answer
    assert str(BODY_MAX) in answer.text, answer.text
    assert shim.answer(3).payload == b"before" and shim.answer(7).payload == b"behind"


def test_a_create_container_that_is_no_protobuf_is_a_clean_error(shim):
    shim.send(frame(5, request("grpc.AgentService", "CreateContainer", field(6, b"\xff\xff\xff"))))
    answer = shim.answer(5)
    assert answer.code == ttrpc.INVALID_ARGUMENT, answer
    echo(shim, b"alive", stream=9)


def test_64_calls_block_while_others_are_answered(shim):
    for stream in range(1, 129, 2):
        shim.start("grpc.AgentService", "Never", stream=stream)
    times = []
    for n in range(50):
        began = time.monotonic()
        echo(shim, b"check", stream=1001 + 2 * n)
        times.append(time.monotonic() - began)
    assert sorted(times)[-2] < 0.1, f"{sorted(times)[-3:]}"


def test_200_calls_are_answered_out_of_order(shim):
    streams = list(range(1, 401, 2))
    random.Random(1).shuffle(streams)  # the Rust client's ids leave in any order
    for stream in streams:
        shim.start("grpc.AgentService", "Hold", struct.pack(">I", stream), stream=stream)
    arrived = []
    for _ in streams:
        answer = shim.answer()
        assert answer.payload == struct.pack(">I", answer.stream)
        arrived.append(answer.stream)
    assert arrived == streams[::-1]


def test_ids_of_two_connections_do_not_meet(shim_socket):
    with Client(shim_socket, timeout=20) as one, Client(shim_socket, timeout=20) as two:
        for n in range(20):
            one.start("s", "Echo", b"one%d" % n, stream=1)
            two.start("s", "Echo", b"two%d" % n, stream=1)
            assert two.answer(1).payload == b"two%d" % n
            assert one.answer(1).payload == b"one%d" % n


def test_a_reader_that_has_stopped_delays_nobody(shim_socket):
    with Client(shim_socket, timeout=20) as slow, Client(shim_socket, timeout=20) as quick:
        for n in range(40):  # answers of 1 MiB that nobody reads; plain mode's TCP holds many
            slow.sock.setblocking(False)
            data = memoryview(frame(2 * n + 1, request("s", "Echo", b"z" * (1 << 20))))
            end = time.monotonic() + 0.5
            while data and time.monotonic() < end:
                try:
                    data = data[slow.sock.send(data):]
                except BlockingIOError:
                    time.sleep(0.005)
            if data:
                break  # pushed back, as it should be
        else:
            pytest.fail("nothing pushed back after 40 MiB")
        for n in range(20):
            began = time.monotonic()
            echo(quick, b"still here")
            assert time.monotonic() - began < 1


def test_connections_that_say_nothing(shim_socket):
    for _ in range(50):
        Client(shim_socket).close()
    with Client(shim_socket) as shim:
        echo(shim, b"alive")


def test_half_close_still_gets_the_answer(shim_socket):
    with Client(shim_socket) as shim:
        shim.start("s", "Echo", b"last words", stream=1)
        shim.sock.shutdown(1)
        assert shim.answer(1).payload == b"last words"
        assert shim.closed_by_peer()


@pytest.mark.parametrize("half_closed", [False, True])
def test_what_the_agent_said_last_reaches_a_slow_reader(shim_socket, half_closed):
    """The agent's connection is gone, and both rings and sockets still hold its last answer."""
    size = 400 << 10
    with Client(shim_socket) as shim:
        shim.start("s", "Last", b"%d" % size, stream=1)
        if half_closed:
            shim.sock.shutdown(socket.SHUT_WR)
        time.sleep(1.3)
        assert shim.answer(1).payload == b"l" * size
        assert shim.closed_by_peer()


def test_what_the_shim_said_last_reaches_a_slow_agent(shim_socket):
    """Both have said that they say no more, the shim is gone, and the forwarder still holds bytes of its."""
    with Client(shim_socket) as shim:
        shim.start("s", "Deaf", stream=5)
        assert shim.answer(5).code == ttrpc.OK
        data = frame(7, request("s", "Big", b"d" * (400 << 10)))
        shim.send(data)
        shim.sock.shutdown(socket.SHUT_WR)
        assert shim.closed_by_peer()
        time.sleep(0.3)
    assert seen("Deaf", 5) == b"%d" % len(data)
