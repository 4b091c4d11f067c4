#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: traffic.py serve ADDRESS PORT BYTES | fetch ADDRESS PORT BYTES

serve sends so many bytes to whoever connects, after "ready"; fetch reads and compares them."""
import contextlib
import hashlib
import socket
import sys


def block(n):
    one = hashlib.sha256(b"pod network").digest() * 1024
    return (one * (n // len(one) + 1))[:n]


def main():
    verb, address, port, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(60)
    if verb == "serve":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        s.listen(8)
        print("ready", flush=True)
        while True:
            c, _ = s.accept()
            with c, contextlib.suppress(ConnectionError):  # who only tries whether it connects
                c.sendall(block(n))
    s.connect((address, port))
    got = bytearray()
    while part := s.recv(1 << 20):
        got += part
    assert bytes(got) == block(n), f"{len(got)} bytes of {n}, or different ones"
    print(s.getsockname()[0])


main()
