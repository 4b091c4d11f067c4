# SPDX-License-Identifier: Apache-2.0
"""Conformance of the ttrpc server (kata-contract.md 7, cases 1-10 and 27). Cases that take `any_server`
run against whatever serves hypervisor.Hypervisor (--socket PATH, or the test server); those that take
`server` need the test server's methods that block, fail and count."""
import contextlib
import os
import socket
import stat
import subprocess
import threading
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from ttrpc import Client, field, frame, header, message, parse, request, text

HYPERVISOR = "hypervisor.Hypervisor"
ECHO = "test.Echo"
VERSION_BODY = request(HYPERVISOR, "Version", message((1, "0.0.0")))


class Server:
    def __init__(self, path, program=None):
        self.path, self.program = path, program

    def client(self, **more):
        return Client(self.path, **more)


def can_connect(path):
    try:
        Client(path).close()
        return True
    except OSError:
        return False


def start_server(run, short_dir, *arguments):
    path = short_dir / "run" / "hypervisor.sock"
    program = run(BIN / "rpc_test_server", path, *arguments)
    wait_for(lambda: can_connect(path) or not program.alive())
    assert program.alive(), program.log()
    return Server(path, program)


@pytest.fixture
def server(run, short_dir):
    """The test server; a clean exit and no leak (asan) are part of every test."""
    server = start_server(run, short_dir)
    yield server
    assert server.program.alive(), server.program.log()
    assert server.program.stop() == 0, server.program.log()


@pytest.fixture
def any_server(request, run, short_dir):
    path = request.config.getoption("--socket")
    if path:
        return Server(path)
    return request.getfixturevalue("server")


def check_version(response, code=ttrpc.OK):
    assert response.code == code, response
    assert text(parse(response.payload), 1) != ""


def check_alive(client):
    """The connection still serves."""
    check_version(client.call(HYPERVISOR, "Version", stream=0x7FFFFFF1))


def check_fresh(server):
    with server.client() as client:
        check_alive(client)


def kv(key="", value=""):
    return message((1, key), (2, value))


def value(response):
    assert response.code == ttrpc.OK, response
    return text(parse(response.payload), 2)


# ---- framing (cases 1-5) ----


def test_one_frame_byte_by_byte(any_server):
    with any_server.client() as client:
        for byte in frame(1, VERSION_BODY):
            client.send(bytes([byte]))
            time.sleep(0.0005)
        check_version(client.answer(1))


@pytest.mark.parametrize("cut", [1, 4, 9, 10, 11, 25])
def test_frame_in_two_pieces(any_server, cut):
    data = frame(1, VERSION_BODY)
    with any_server.client() as client:
        client.send(data[:cut])
        time.sleep(0.02)
        client.send(data[cut:])
        check_version(client.answer(1))


def test_many_frames_in_one_write(any_server):
    with any_server.client() as client:
        client.send(b"".join(frame(s, VERSION_BODY) for s in range(1, 401, 2)))
        for stream in range(1, 401, 2):
            check_version(client.answer(stream))


def test_header_then_end(any_server):
    for data in (header(5, 1), header(0, 1)[:7], header(100, 1) + b"x" * 50, b"\0"):
        with any_server.client() as client:
            client.send(data)
        with any_server.client() as client:
            client.send(data)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.closed_by_peer()
    check_fresh(any_server)


def test_empty_body_is_an_error_on_its_stream(any_server):
    with any_server.client() as client:
        client.send(header(0, 7))
        assert client.answer(7).code in (ttrpc.INVALID_ARGUMENT, ttrpc.UNIMPLEMENTED)
        check_alive(client)


def version_body_of(size):
    """A Version request whose body has exactly that many bytes, padded in an unknown field."""
    pad = size - len(VERSION_BODY) - 6  # two bytes of key, four of length
    body = VERSION_BODY + field(1000, b"p" * pad)
    assert len(body) == size
    return body


def test_body_of_exactly_the_limit(any_server):
    with any_server.client() as client:
        client.send(frame(1, version_body_of(ttrpc.BODY_MAX)))
        check_version(client.answer(1))
        check_alive(client)


def test_payload_of_nearly_the_limit_comes_back(server):
    size = ttrpc.BODY_MAX - 100
    with server.client() as client:
        got = client.call(ECHO, "Echo", kv("k", "v" * size))
        assert value(got) == "v" * size


@pytest.mark.parametrize("size", [ttrpc.BODY_MAX + 1, 16 << 20])
def test_oversize_body_is_refused_on_its_stream(any_server, size):
    with any_server.client() as client:
        client.send(header(size, 5))
        block = b"z" * (1 << 20)
        for at in range(0, size, len(block)):
            client.send(block[:size - at])
        client.send(frame(7, VERSION_BODY))
        response = client.answer()
        assert (response.stream, response.code) == (5, ttrpc.RESOURCE_EXHAUSTED)
        assert str(size) in response.text and str(ttrpc.BODY_MAX) in response.text
        check_version(client.answer(7))


def test_oversize_body_is_not_allocated(server):
    with server.client() as client:
        client.call(HYPERVISOR, "Version")
        before = server.program.status("VmRSS")
        clients = [server.client() for _ in range(50)]
        for c in clients:
            c.send(header(0xFFFFFFFF, 1) + b"y" * 100000)
        check_alive(client)
        assert server.program.status("VmRSS") - before < 30000  # kB; 50 * 4 MiB would be 200000
        for c in clients:
            c.close()
    check_fresh(server)


def test_dribbled_oversize_body_delays_nobody(any_server):
    with any_server.client() as slow, any_server.client() as other:
        slow.send(header(ttrpc.BODY_MAX + 200, 1))
        for _ in range(20):
            slow.send(b"d")
            began = time.monotonic()
            check_version(other.call(HYPERVISOR, "Version"))
            assert time.monotonic() - began < 1
        slow.send(b"d" * (ttrpc.BODY_MAX + 180))
        assert slow.answer(1).code == ttrpc.RESOURCE_EXHAUSTED
        check_alive(slow)


@pytest.mark.parametrize("kind", [0, 2, 4, 128, 255])
def test_unknown_types_are_skipped(any_server, kind):
    with any_server.client() as client:
        client.send(frame(1, VERSION_BODY, kind))
        client.send(frame(3, b"", kind, 0xFF))
        client.send(header(ttrpc.BODY_MAX + 1, 5, kind) + b"x" * (ttrpc.BODY_MAX + 1))
        check_version(client.call(HYPERVISOR, "Version", stream=9))
        assert client.silent()


@pytest.mark.parametrize("flag", [1 << n for n in range(8)] + [3, 5, 255])
def test_request_flags(any_server, flag):
    with any_server.client() as client:
        client.send(frame(1, VERSION_BODY, ttrpc.REQUEST, flag))
        assert client.answer(1).code in (ttrpc.OK, ttrpc.INVALID_ARGUMENT, ttrpc.UNIMPLEMENTED)
        check_alive(client)


@pytest.mark.parametrize("stream", [0, 2, 4, 0xFFFFFFFE])
def test_even_stream_is_refused(any_server, stream):
    with any_server.client() as client:
        client.send(frame(stream, VERSION_BODY))
        response = client.answer()
        assert (response.stream, response.code) == (stream, ttrpc.INVALID_ARGUMENT)
        check_alive(client)


def test_streams_reused_and_decreasing(any_server):
    with any_server.client() as client:
        for stream in (9, 7, 7, 7, 0xFFFFFFFF, 1, 0xFFFFFFFF, 5, 3):
            client.send(frame(stream, VERSION_BODY))
            check_version(client.answer(stream))
        client.send(b"".join(frame(s, VERSION_BODY) for s in (31, 29, 27, 25)))
        for stream in (25, 27, 29, 31):
            check_version(client.answer(stream))


def test_stream_in_flight_is_not_run_twice(server):
    with server.client() as client, server.client() as other:
        client.start(ECHO, "Block", kv("twice"), stream=3)
        client.start(ECHO, "Echo", kv("x", "y"), stream=3)
        assert client.answer(3).code == ttrpc.INVALID_ARGUMENT
        assert value(other.call(ECHO, "Release", kv("twice"))) == "1"
        assert value(client.answer(3)) == "twice"


@pytest.mark.parametrize("flags", [0, 1, 4, 5, 255])
def test_data_on_a_call_in_flight(server, flags):
    with server.client() as client, server.client() as other:
        client.start(ECHO, "Block", kv("data"), stream=3)
        client.send(frame(3, b"" if flags & 4 else b"body", ttrpc.DATA, flags))
        check_alive(client)
        assert value(other.call(ECHO, "Release", kv("data"))) == "1"
        assert value(client.answer(3)) == "data"


@pytest.mark.parametrize("stream", [0, 1, 2, 77, 0xFFFFFFFF])
def test_data_on_an_unknown_stream(any_server, stream):
    with any_server.client() as client:
        client.send(frame(stream, b"body", ttrpc.DATA, 0))
        response = client.answer()
        assert (response.stream, response.code) == (stream, ttrpc.INVALID_ARGUMENT)
        client.send(header(ttrpc.BODY_MAX + 1, stream, ttrpc.DATA) + b"x" * (ttrpc.BODY_MAX + 1))
        assert client.answer(stream).code != ttrpc.OK
        check_alive(client)


# ---- requests (case 6) ----


@pytest.mark.parametrize("service, method", [
    ("no.Service", "Version"), (HYPERVISOR, "NoMethod"), (HYPERVISOR, ""), ("", ""),
    ("", "Version"), ("hypervisor.hypervisor", "Version"), (HYPERVISOR, "version"),
    pytest.param("s" * 100000, "m" * 100000, id="long"), (HYPERVISOR + "/Version", "")])
def test_unknown_service_or_method(any_server, service, method):
    with any_server.client() as client:
        response = client.call(service, method)
        assert response.code == ttrpc.UNIMPLEMENTED
        assert service[:50] in response.text
        assert len(response.text) < 2000
        check_alive(client)


@pytest.mark.parametrize("body", [
    b"\xff", b"\x0a", b"\x0a\x05ab", b"\x0f", b"\x07\x07\x07", b"\xff" * 1000,
    b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\xff\xff\xff\xff\x0f" + b"a" * 50,
    VERSION_BODY[:-1], VERSION_BODY + b"\x0a", b"\x2a\x02\xff\xff",
    bytes(range(256))])
def test_garbage_request(any_server, body):
    with any_server.client() as client:
        client.send(frame(3, body))
        assert client.answer(3).code in (ttrpc.INVALID_ARGUMENT, ttrpc.UNIMPLEMENTED)
        check_alive(client)


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\x09abc", b"\x0a", b"\x0f" * 3])
def test_garbage_payload(any_server, payload):
    with any_server.client() as client:
        response = client.call(HYPERVISOR, "Version", payload)
        assert response.code in (ttrpc.INVALID_ARGUMENT, ttrpc.INTERNAL)
        assert response.text
        check_alive(client)


def test_unknown_and_duplicate_fields(any_server):
    with any_server.client() as client:
        body = field(99, b"new") + request("x", "y") + VERSION_BODY + field(98, 5)
        client.send(frame(1, body))  # the last of a repeated singular field counts
        check_version(client.answer(1))
        check_version(client.call(HYPERVISOR, "Version", message((1, "a"), (77, b"?"), (1, "b"))))


def test_not_utf8_in_names(any_server):
    with any_server.client() as client:
        client.send(frame(1, message((1, b"\xc3\x28\xff\xed\xa0\x80"), (2, b"\xf0\x28"))))
        assert client.answer(1).code in (ttrpc.UNIMPLEMENTED, ttrpc.INVALID_ARGUMENT)
        check_alive(client)


def test_metadata(server):
    pairs = [("a", "1"), ("b", "x"), ("a", "2"), ("a", ""), ("", "empty"), ("a", "2")]
    with server.client() as client:
        for key, index, want in (("a", 0, "1"), ("a", 1, "2"), ("a", 2, ""), ("a", 3, "2"),
                                 ("b", 0, "x"), ("", 0, "empty")):
            got = client.call(ECHO, "Meta", kv(key, str(index)), metadata=pairs)
            assert value(got) == want
        assert client.call(ECHO, "Meta", kv("a", "4"), metadata=pairs).code == ttrpc.NOT_FOUND


def test_many_metadata_entries_do_not_eat_the_memory(server):
    with server.client() as client:
        client.call(HYPERVISOR, "Version")
        client.send(frame(1, VERSION_BODY + b"\x2a\x00" * ((4 << 20) // 2 - 50)))
        assert client.answer(1).code in (ttrpc.INVALID_ARGUMENT, ttrpc.RESOURCE_EXHAUSTED)
        check_alive(client)
    assert server.program.status("VmHWM") < 400000  # kB, sanitizers included


@pytest.mark.parametrize("sent, seen", [
    (0, 0), (-1, 0), (-(1 << 63), 0), (1, 1), (10 ** 13, 10 ** 13), ((1 << 63) - 1, (1 << 63) - 1)])
def test_timeout_reaches_the_handler(server, sent, seen):
    with server.client() as client:
        assert value(client.call(ECHO, "Timeout", timeout_ns=sent)) == str(seen)


@pytest.mark.parametrize("timeout", [-1, 0, -(1 << 63)])
def test_odd_timeouts_do_not_fail_the_call(any_server, timeout):
    with any_server.client() as client:
        check_version(client.call(HYPERVISOR, "Version", timeout_ns=timeout))


# ---- answers (case 7) ----


def test_empty_answer(server):
    with server.client() as client:
        response = client.call(ECHO, "Echo")
        assert response.code == ttrpc.OK and response.payload == b""


@pytest.mark.parametrize("message_text", [
    "creating instance podvm-x: HTTP 403", "Gr\u00fc\u00dfe \u4e16\u754c \U0001f600", "", "a\nb\tc"])
def test_error_text_is_verbatim(server, message_text):
    with server.client() as client:
        response = client.call(ECHO, "Error", kv("9", message_text))
        assert (response.code, response.text) == (9, message_text)


@pytest.mark.parametrize("raw", [
    b"bad \xff byte", b"\xc3", b"cut \xe4\xb8", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
def test_error_text_is_always_utf8(server, raw):
    with server.client() as client:
        response = client.call(ECHO, "Error", message((1, "13"), (2, raw)))  # decoded strictly
        assert response.code == 13 and response.text


def test_long_error_text_is_cut_between_characters(server):
    with server.client() as client:
        response = client.call(ECHO, "Error", kv("13", "\u4e16" * 100000))
        assert 1000 < len(response.text.encode()) <= 16384
        assert set(response.text) == {"\u4e16"}


def test_an_error_is_never_code_0(server):
    with server.client() as client:
        assert client.call(ECHO, "Error", kv("0", "no")).code == ttrpc.INTERNAL


def test_answer_over_the_limit_is_an_error(server):
    with server.client() as client:
        response = client.call(ECHO, "Large", kv("", str(ttrpc.BODY_MAX)))
        assert response.code == ttrpc.RESOURCE_EXHAUSTED
        size = ttrpc.BODY_MAX - 12
        got = client.call(ECHO, "Large", kv("", str(size - 12)))
        assert len(value(got)) == size - 12


# ---- connections (cases 8-10) ----


def test_200_calls_answered_out_of_order(server):
    with server.client() as client, server.client() as other:
        streams = [client.start(ECHO, "Block", kv(f"n{i % 10}")) for i in range(200)]
        check_alive(client)
        for group in (3, 9, 0, 1, 8, 2, 7, 4, 6, 5):
            assert value(other.call(ECHO, "Release", kv(f"n{group}"))) == "20"
            for index in range(190 + group, -1, -10):  # newest first
                response = client.answer()
                assert response.stream == streams[index]
                assert value(response) == f"n{group}"
        assert client.silent(0.1)


def test_calls_in_flight_are_bounded(server):
    with server.client() as client, server.client() as other:
        for _ in range(512):
            client.start(ECHO, "Block", kv("full"))
        refused = client.call(ECHO, "Block", kv("full"))
        assert refused.code == ttrpc.RESOURCE_EXHAUSTED
        check_version(other.call(HYPERVISOR, "Version"))
        assert value(other.call(ECHO, "Release", kv("full"))) == "512"
        for _ in range(512):
            assert value(client.answer()) == "full"
        check_alive(client)


def test_500_connections_open_and_close(any_server):
    for i in range(500):
        with any_server.client() as client:
            if i % 3 == 1:
                client.send(frame(1, VERSION_BODY))
            if i % 3 == 2:
                check_version(client.call(HYPERVISOR, "Version"))
    check_fresh(any_server)


def test_500_connections_at_once(any_server):
    clients = [any_server.client() for _ in range(500)]
    for client in clients:
        client.send(frame(1, VERSION_BODY))
    for client in clients:
        check_version(client.answer(1))
        client.close()
    check_fresh(any_server)


def test_nothing_is_kept_of_closed_connections(server):
    check_fresh(server)
    fds = server.program.descriptors()
    for _ in range(3):
        for i in range(300):
            client = server.client()
            client.start(ECHO, "Block" if i % 2 else "Echo", kv("gone"))
            client.close()
    wait_for(lambda: server.program.descriptors() <= fds)
    with server.client() as client:
        assert value(client.call(ECHO, "Cancelled")) == "450"


def test_half_close_still_gets_the_answer(any_server):
    with any_server.client() as client:
        client.send(frame(1, VERSION_BODY))
        client.sock.shutdown(socket.SHUT_WR)
        check_version(client.answer(1))


def test_half_close_of_a_blocked_call(server):
    with server.client() as client, server.client() as other:
        client.start(ECHO, "Block", kv("half"))
        client.sock.shutdown(socket.SHUT_WR)
        assert client.silent(0.5)
        cpu = cpu_seconds(server.program.pid)
        time.sleep(0.3)
        assert cpu_seconds(server.program.pid) - cpu < 0.1, "the server spins on a half-closed socket"
        assert value(other.call(ECHO, "Cancelled")) == "0"
        assert value(other.call(ECHO, "Release", kv("half"))) == "1"
        assert value(client.answer(1)) == "half"


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("how", ["close", "half close, then close", "unread answers"])
def test_end_of_file_cancels(server, how):
    with server.client() as other:
        client = server.client()
        client.start(ECHO, "Block", kv("c"))
        client.start(ECHO, "Block", kv("c"))
        check_alive(client)
        if how.startswith("half"):
            client.sock.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
            assert value(other.call(ECHO, "Cancelled")) == "0"
        if how.startswith("unread"):
            client.start(HYPERVISOR, "Version")
            wait_for(lambda: not client.silent(0))
        client.close()
        wait_for(lambda: value(other.call(ECHO, "Cancelled")) == "2")
        assert value(other.call(ECHO, "Release", kv("c"))) == "0"


def test_a_request_counts_though_its_client_did_not_wait(server):
    with server.client() as client, server.client() as other:
        client.start(ECHO, "Block", kv("later"))
        check_alive(client)
        hasty = server.client()
        hasty.start(ECHO, "Release", kv("later"))
        hasty.close()
        assert value(client.answer(1)) == "later"
        check_alive(other)


def test_a_client_that_does_not_read(server):
    with server.client() as greedy, server.client() as other:
        greedy.sock.settimeout(2)
        size = 1 << 20
        sent = 0
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):
            for _ in range(200):  # the server stops reading when its answers are not read
                greedy.start(ECHO, "Echo", kv("k", "v" * size))
                sent += 1
        check_version(other.call(HYPERVISOR, "Version"))
        assert server.program.status("VmRSS") < 200000
        greedy.sock.settimeout(10)
    check_fresh(server)
    assert sent < 50


def test_unread_answers_are_bounded(server):
    """Answers that are given whether or not the client reads end its connection, nobody else's."""
    client = server.client()
    with server.client() as other:
        for _ in range(100):
            client.start(ECHO, "Block", kv("n" * 300000))
        check_alive(client)
        assert value(other.call(ECHO, "Release", kv("n" * 300000))) == "100"
        with pytest.raises((ttrpc.Closed, ConnectionResetError)):
            for _ in range(100):
                client.answer()
        check_alive(other)
    client.close()
    check_fresh(server)


def test_incomplete_bodies_are_bounded(server):
    """More unfinished large requests than the daemon holds: refused by 8, small ones still served."""
    clients = [server.client() for _ in range(40)]
    for client in clients:
        client.send(header(ttrpc.BODY_MAX, 1) + b"b" * (3 << 20))
    check_fresh(server)
    assert server.program.status("VmRSS") < 250000
    refused = 0
    for client in clients:
        client.send(b"b" * (1 << 20))
        response = client.answer(1)
        assert response.code in (ttrpc.INVALID_ARGUMENT, ttrpc.RESOURCE_EXHAUSTED)
        refused += response.code == ttrpc.RESOURCE_EXHAUSTED
        check_alive(client)
        client.close()
    assert 10 < refused < 35


def test_connections_are_bounded(run, short_dir):
    server = start_server(run, short_dir, "20")
    clients = [server.client() for _ in range(20)]
    for client in clients:
        check_alive(client)
    extra = server.client()
    extra.send(frame(1, VERSION_BODY))
    assert extra.silent(0.3)
    check_alive(clients[7])
    clients[3].close()
    check_version(extra.answer(1))
    for client in clients + [extra]:
        client.close()
    assert server.program.stop() == 0
    assert "which is the limit" in server.program.log()


def ended(client):
    try:
        return not client.silent(0)
    except ConnectionResetError:
        return True


def test_the_silent_make_room(run, short_dir):
    """Full of connections that have said nothing, or half of something: who speaks is served, who has spoken stays."""
    server = start_server(run, short_dir, "20")
    spoken = [server.client() for _ in range(3)]
    for client in spoken:
        check_alive(client)
    silent = [server.client() for _ in range(200)]
    for client in silent[::2]:
        with contextlib.suppress(OSError):
            client.send(frame(1, VERSION_BODY)[:7])
    check_fresh(server)
    for client in spoken:
        check_alive(client)
    assert sum(not ended(client) for client in silent) <= 17
    for client in spoken + silent:
        client.close()
    assert server.program.stop() == 0


def test_out_of_descriptors(run, short_dir):
    """New connections wait, old ones live on, and the waiting one is served when there is room."""
    server = start_server(run, short_dir)
    limit = server.program.descriptors() + 10
    subprocess.run(["prlimit", "--pid", str(server.program.pid), f"--nofile={limit}:1000"], check=True)
    clients = [server.client() for _ in range(30)]
    for client in clients:
        client.send(frame(1, VERSION_BODY))
    check_version(clients[0].answer(1))
    assert clients[29].silent(0.3)
    cpu = cpu_seconds(server.program.pid)
    time.sleep(0.3)
    assert cpu_seconds(server.program.pid) - cpu < 0.1, "the server spins on accept"
    for client in clients[:5]:
        client.close()
    check_version(clients[12].answer(1))
    assert clients[29].silent(0.3)
    begin = time.monotonic()
    subprocess.run(["prlimit", "--pid", str(server.program.pid), "--nofile=1000:1000"], check=True)
    check_version(clients[29].answer(1))
    assert time.monotonic() - begin < 2
    for client in clients:
        client.close()
    assert server.program.stop() == 0
    assert 0 < server.program.log().count("Too many open files") < 5


def test_go_pattern(any_server):
    """One connection per call, sid 1, the namespace as metadata."""
    for _ in range(20):
        with any_server.client() as client:
            check_version(client.call(HYPERVISOR, "Version", metadata=[
                ("containerd-namespace-ttrpc", "k8s.io")]))


def test_rust_pattern(any_server):
    """One connection for all calls, ids 1, 3, 5, idle in between, without spinning."""
    with any_server.client() as client:
        for stream in (1, 3, 5):
            check_version(client.call(HYPERVISOR, "Version", stream=stream))
            time.sleep(0.3)


def test_idle_connections_cost_nothing(server):
    clients = [server.client() for _ in range(200)]
    for client in clients:
        client.call(HYPERVISOR, "Version")
    cpu = cpu_seconds(server.program.pid)
    time.sleep(1)
    assert cpu_seconds(server.program.pid) - cpu <= 0.02
    for client in clients:
        client.close()


def test_parallel_clients(any_server):
    failures = []

    def work():
        try:
            with any_server.client() as client:
                for _ in range(100):
                    check_version(client.call(HYPERVISOR, "Version"))
        except Exception as e:  # pylint: disable=broad-except
            failures.append(repr(e))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- the socket itself (case 27) ----


def test_modes(server):
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(server.path.parent).st_mode) == 0o700


@pytest.mark.parametrize("umask", [0, 0o277, 0o777])
def test_modes_whatever_the_umask(run, short_dir, umask):
    path = short_dir / "hypervisor.sock"
    program = run("sh", "-c", f"umask {umask:o}; exec {BIN / 'rpc_test_server'} {path}")
    wait_for(lambda: can_connect(path) or not program.alive())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    check_fresh(Server(path))
    assert program.stop() == 0


def test_socket_in_use(server, run):
    second = run(BIN / "rpc_test_server", server.path)
    assert second.process.wait(10) == 1
    assert "is served by another process" in second.log()
    check_fresh(server)


def test_stale_socket_is_replaced(run, short_dir):
    first = start_server(run, short_dir)
    first.program.process.kill()
    first.program.process.wait()
    assert first.path.exists()
    program = run(BIN / "rpc_test_server", first.path)
    wait_for(lambda: can_connect(first.path) or not program.alive())
    check_fresh(first)
    assert program.stop() == 0


def test_what_is_no_socket_is_left_alone(run, short_dir):
    path = short_dir / "file"
    path.write_text("precious")
    program = run(BIN / "rpc_test_server", path)
    assert program.process.wait(10) == 1
    assert path.read_text() == "precious"
    assert "is not a socket" in program.log()


def test_path_too_long(run, short_dir):
    program = run(BIN / "rpc_test_server", short_dir / ("x" * 108))
    assert program.process.wait(10) == 1
    assert "1 to 107 bytes" in program.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
def test_other_users_are_refused(server):
    os.chmod(server.path, 0o666)  # past the modes, so that the server's own check is what refuses
    os.chmod(server.path.parent, 0o755)
    os.chmod(server.path.parent.parent, 0o755)
    code = ("import socket,sys; s=socket.socket(socket.AF_UNIX); s.settimeout(5); "
            "s.connect(sys.argv[1]); sys.exit(0 if s.recv(1)==b'' else 1)")
    got = subprocess.run(["python3", "-c", code, str(server.path)], user=65534, group=65534,
                         extra_groups=[], check=False, capture_output=True)
    assert got.returncode == 0, got.stderr
    assert "uid 65534" in server.program.log()
    check_fresh(server)
