# SPDX-License-Identifier: Apache-2.0
"""ttrpc and protobuf bytes from the specifications alone: no code is shared with the programs that
are tested. Messages are dicts of field number to list of values (int for varints, bytes for
length-delimited fields), so that tests can build what no encoder would."""
import socket
import struct

REQUEST, RESPONSE, DATA = 1, 2, 3
BODY_MAX = 4 << 20

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = range(6)
ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED = range(6, 11)
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14


class Closed(Exception):
    """The other side closed the connection."""


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """One field; str and bytes are length-delimited, bool and int are varints."""
    if isinstance(value, (bool, int)):
        return varint(number << 3) + varint(int(value))
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    """message((1, "a"), (2, 5)): default values are left out, as proto3 encoders do."""
    return b"".join(field(n, v) for n, v in fields if v not in ("", b"", 0, None))


def read_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("varint")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def parse(data):
    """Fields in order of number: {number: [values]}. Raises ValueError on anything malformed."""
    fields, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 2:
            size, at = read_varint(data, at)
            value, at = data[at:at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("truncated")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def text(fields, number):
    """The last value of a string field, decoded strictly; "" when absent."""
    return fields[number][-1].decode("utf-8") if number in fields else ""


def header(length, stream, kind=REQUEST, flags=0):
    return struct.pack(">IIBB", length, stream, kind, flags)


def frame(stream, body, kind=REQUEST, flags=0):
    return header(len(body), stream, kind, flags) + body


def request(service, method, payload=b"", timeout_ns=0, metadata=()):
    """A Request body. timeout_ns may be negative; metadata is a list of pairs."""
    return message((1, service), (2, method), (3, payload), (4, timeout_ns)) + b"".join(
        field(5, message((1, k), (2, v))) for k, v in metadata)


class Response:
    """A decoded Response body: code, text, payload, and whether a status was there at all."""

    def __init__(self, stream, flags, body):
        self.stream, self.flags, self.body = stream, flags, body
        fields = parse(body)
        assert set(fields) <= {1, 2}, f"unknown fields in {body[:64].hex()}"
        self.has_status = 1 in fields
        status = parse(fields[1][-1]) if self.has_status else {}
        self.code = status.get(1, [0])[-1]
        self.text = text(status, 2)
        self.payload = fields.get(2, [b""])[-1]
        if self.code != OK:
            assert not self.payload, "an error answer carries a payload"

    def __repr__(self):
        return f"<{self.stream}: code {self.code} {self.text!r} {len(self.payload)} bytes>"


class Client:
    """One raw connection. Every read is bounded by `timeout` seconds."""

    def __init__(self, path, timeout=10.0):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(str(path))
        self.next_stream = 1
        self.early = {}  # answers read while another one was waited for

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def read(self, size):
        out = bytearray()
        while len(out) < size:
            part = self.sock.recv(min(size - len(out), 1 << 20))
            if not part:
                raise Closed
            out += part
        return bytes(out)

    def read_frame(self):
        """(stream, type, flags, body) of the next frame."""
        length, stream, kind, flags = struct.unpack(">IIBB", self.read(10))
        assert length <= BODY_MAX, f"a frame of {length} bytes"
        return stream, kind, flags, self.read(length)

    def answer(self, stream=None):
        """The next Response, or the one of that stream."""
        if stream is not None and stream in self.early:
            return self.early.pop(stream)
        while True:
            got, kind, flags, body = self.read_frame()
            assert kind == RESPONSE, f"type {kind}"
            response = Response(got, flags, body)
            if stream is None or got == stream:
                return response
            assert got not in self.early, f"two answers on stream {got}"
            self.early[got] = response

    def start(self, service, method, payload=b"", stream=None, **more):
        """Sends a request and returns its stream id."""
        if stream is None:
            stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.send(frame(stream, request(service, method, payload, **more)))
        return stream

    def call(self, service, method, payload=b"", stream=None, **more):
        return self.answer(self.start(service, method, payload, stream, **more))

    def silent(self, seconds=0.1):
        """True when nothing arrives within that time."""
        old = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) is None
        except (TimeoutError, BlockingIOError):
            return True
        finally:
            self.sock.settimeout(old)

    def closed_by_peer(self):
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
