#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: agent_player.py RECORDING JOURNAL

Stands in for the kata-agent behind the forwarder: answers with the recorded agent's own frames, each
when all that the shim had sent before it has arrived. What arrives is written to JOURNAL.N, N the
number of the recorded connection, told by the bytes of its first frame. Standard library only: it
runs in the pod VM."""
import json
import os
import pathlib
import socket
import struct
import sys
import threading

SOCKET = pathlib.Path("/run/kata-containers/agent.sock")


def load(path):
    """{connection: [(from, frame)]} in recorded order."""
    connections = {}
    for line in pathlib.Path(path).read_text().splitlines():
        entry = json.loads(line)
        connections.setdefault(entry["conn"], []).append(
            (entry["from"], bytes.fromhex(entry["frame"])))
    return connections


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            return None
        data += part
    return data


def read_frame(sock):
    """A whole frame, or b"" at the end of the stream."""
    header = read_exactly(sock, 10)
    if header is None:
        return b""
    body = read_exactly(sock, struct.unpack(">I", header[:4])[0])
    return b"" if body is None else header + body


def play(sock, me, frames, received, peer_frame=None):
    """Plays the side `me` of one recorded connection; received(frame) for each of the other's.
    peer_frame: the first one, when it has been read already."""
    for who, frame in frames:
        if who != me:
            got = peer_frame if peer_frame is not None else read_frame(sock)
            peer_frame = None
            received(got)
        elif frame:
            sock.sendall(frame)
        else:
            sock.shutdown(socket.SHUT_WR)


def serve(sock, recording, journal):
    first = read_frame(sock)
    for number, frames in recording.items():
        # The stream's first request, Check, is never edited; its deadline tells them apart.
        if next(f for who, f in frames if who == "shim") == first:
            with open(f"{journal}.{number}", "w", encoding="ascii", buffering=1) as out:
                play(sock, "agent", frames, lambda f: out.write(f.hex() + "\n"), first)
                out.write("end\n")
            return
    sock.close()


def main():
    recording, journal = load(sys.argv[1]), sys.argv[2]
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(SOCKET))
    listener.listen(16)
    os.chmod(SOCKET, 0o600)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, recording, journal), daemon=True).start()


if __name__ == "__main__":
    main()
