# SPDX-License-Identifier: Apache-2.0
"""What an eavesdropper between daemon and pod VM sees: TLS 1.3 and nothing in the clear."""
import shutil
import struct
import subprocess

import pytest

from pod import PORT, Daemon, Pod, wait_for

MARKER = "marker-in-the-clear"
SERVER_HELLO = 2
SUPPORTED_VERSIONS_TLS13 = bytes.fromhex("002b00020304")


def packets(path):
    """The bytes of each packet of a pcap file."""
    data = path.read_bytes()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(data):
        size = struct.unpack(order + "I", data[at + 8:at + 12])[0]
        yield data[at + 16:at + 16 + size]
        at += 16 + size


def payloads(path):
    """(source port, TCP payload) of each packet that tcpdump -i any (SLL2) wrote."""
    for packet in packets(path):
        ip = packet[20:]
        tcp = ip[(ip[0] & 15) * 4:struct.unpack(">H", ip[2:4])[0]]
        yield struct.unpack(">H", tcp[:2])[0], tcp[(tcp[12] >> 4) * 4:]


def streams(path):
    """The server's and the client's bytes, in order of capture (loopback does not reorder)."""
    server, client = bytearray(), bytearray()
    for source, payload in payloads(path):
        (server if source == PORT else client).extend(payload)
    return bytes(server), bytes(client)


@pytest.fixture
def capture(tmp_path):
    if not shutil.which("tcpdump"):
        pytest.skip("tcpdump is not installed")
    path = tmp_path / "capture.pcap"
    log = tmp_path / "tcpdump.log"
    with open(log, "wb") as err:
        process = subprocess.Popen(
            ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-U", "--immediate-mode", "-s", "0",
             "-Z", "root", "-w", path, "tcp", "port", str(PORT)], stderr=err)
    wait_for(lambda: b"listening on" in log.read_bytes(), 10, "tcpdump listens")

    def end():
        process.terminate()
        process.wait(10)
        return path

    yield end
    process.kill()


def test_tls13_and_no_plaintext(tmp_path, capture):
    daemon = Daemon(tmp_path)
    try:
        pod = Pod("/bin/sh", "-c", f"echo {MARKER}; cat /etc/hostname")
        assert pod.finish(40) == 0, pod.text()
        assert MARKER in pod.text(), "the container's own output is the proof that it ran"
    finally:
        daemon.stop()
        print(daemon.log())
    path = capture()
    raw = path.read_bytes()
    server, client = streams(path)
    assert len(server) > 1000 and len(client) > 1000, "the capture has not seen the tunnel"
    for word in (MARKER, "grpc.AgentService", "CreateContainer", "/run/netns"):
        assert word.encode() not in raw, f"{word} is on the wire in the clear"
    # The first record of each side is a handshake; the server's says version 1.3.
    assert client[0] == 0x16 and client[5] == 1, "the client does not begin with ClientHello"
    assert server[0] == 0x16 and server[5] == SERVER_HELLO
    hello = server[5:5 + struct.unpack(">H", server[3:5])[0]]
    assert SUPPORTED_VERSIONS_TLS13 in hello, "ServerHello does not choose TLS 1.3"
    assert b"peerpod-tunnel/1" in client, "ClientHello does not ask for the tunnel's protocol"
