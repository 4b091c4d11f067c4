#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: agent_stub.py DIRECTORY

An agent whose answers a test can foretell, behind the real forwarder. Standard library only: it runs
in the pod VM. By method name, whatever the service:
  Echo     the request's payload back
  Hold     answered with the payload when 200 of them are there, the last first
  Never    no answer
  Last     so many bytes as the payload says (decimal), and the agent closes the connection behind them
  Deaf     answered, and nothing will be said behind it; what comes is read a second later, and its length
           goes to DIRECTORY/Deaf.<stream>
  others   the whole frame goes to DIRECTORY/<method>.<stream>, the answer is empty and OK
A body of more than 4 MiB is read, thrown away and answered InvalidArgument, as ttrpc-rust does."""
import os
import pathlib
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import ttrpc  # noqa: E402  (beside this file)

SOCKET = pathlib.Path("/run/kata-containers/agent.sock")
HOLD = 200


def respond(sock, lock, stream, payload=b"", code=0, text=""):
    status = ttrpc.field(1, ttrpc.message((1, code), (2, text)))
    with lock:
        sock.sendall(ttrpc.frame(stream, status + ttrpc.message((2, payload)), ttrpc.RESPONSE))


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def serve(sock, directory):
    lock, held = threading.Lock(), []
    try:
        while True:
            header = read_exactly(sock, 10)
            length, stream = struct.unpack(">II", header[:8])
            body = read_exactly(sock, length)
            if length > ttrpc.BODY_MAX:
                respond(sock, lock, stream, code=3, text=f"message length {length} exceeds")
                continue
            fields = ttrpc.parse(body)
            method, payload = ttrpc.text(fields, 2), fields.get(3, [b""])[-1]
            if method == "Echo":
                respond(sock, lock, stream, payload)
            elif method == "Hold":
                held.append((stream, payload))
                if len(held) == HOLD:
                    for answer in reversed(held):
                        respond(sock, lock, *answer)
                    held.clear()
            elif method == "Last":
                respond(sock, lock, stream, b"l" * int(payload))
                sock.close()
                return
            elif method == "Deaf":
                respond(sock, lock, stream)
                sock.shutdown(socket.SHUT_WR)
                time.sleep(1.3)
                size = sum(len(part) for part in iter(lambda: sock.recv(1 << 16), b""))
                part = pathlib.Path(directory, "deaf.part")
                part.write_text(str(size))
                part.rename(pathlib.Path(directory, f"Deaf.{stream}"))
            elif method != "Never":
                name = pathlib.Path(directory) / f"{method}.{stream}"
                name.with_name("part").write_bytes(header + body)
                name.with_name("part").rename(name)
                respond(sock, lock, stream)
    except (EOFError, OSError):
        sock.close()


def main():
    os.makedirs(sys.argv[1], exist_ok=True)
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(SOCKET))
    listener.listen(64)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, sys.argv[1]), daemon=True).start()


if __name__ == "__main__":
    main()
