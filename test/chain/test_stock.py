# SPDX-License-Identifier: Apache-2.0
"""Plain mode with a stand-in for the stock programs at the other end (test/go/plainpeer: Go's TLS,
Go's verifier, the ttrpc library that they use): our daemon with a stock forwarder, our forwarder with
a stock adaptor (kata-contract.md 3.4 and 7, case 25; compat.md)."""
import base64
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
import ttrpc
from conftest import BIN, Program, wait_for
from edits import edited
from node import AGENT, HEALTH, Node, agent_command, comm
from ttrpc import Client, field, message, request

PEER = BIN / "plainpeer"
SEEN = "/tmp/seen"
SUITE_128 = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
SUITE_256 = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
GUEST_PROGRAMS = ("agent-protocol-forwarder", "peerpod-keeper", "process-user-data", "test-agent",
                  "peerpod-local-vm")
VOLUMES = pathlib.Path("/run/kata-containers/shared/direct-volumes")

if not PEER.exists():
    pytest.skip("no plainpeer: the Go toolchain is missing (test plain.peer)", allow_module_level=True)


@pytest.fixture(scope="session")
def certs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    subprocess.run([PEER, "certs", directory], check=True)
    return directory


def custom(certs, name="client", ca="ca"):
    return ["-ca-cert-file", certs / f"{ca}.crt", "-cert-file", certs / f"{name}.crt",
            "-cert-key", certs / f"{name}.key"]


# -- verdicts --

CLIENTS = ["client", "self", "server-as-client", "expired-client", "other-client", "rsa-client",
           "critical-client", "no-usage", "wrong-usage", "any-usage", "both-usages", "mail-usage",
           "unknown-usage", "odd-key-usage", "chained", "gap", "client-issuer", "server-issuer", "future"]
# Not a server's: an authority, or a client's alone.
NO_SERVERS = re.compile("client$|ca$|^middle$|^permits|^excludes|^renewed-(old|new|another)$")


def verdicts(program, *arguments):
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("bundle", [
    ["ca"], ["middle"], ["ca", "expired-ca", "no-ca"], ["self"], ["other-ca", "ca"],
    ["server", "expired"], ["last-ca"], ["permits-another", "excludes"], ["renewed-another", "renewed-old"],
    ["renewed-old", "renewed-new"], ["client-ca", "critical-ca", "future-ca"], ["deep-ca", "no-sign-ca"],
])
def test_the_verifier_judges_as_gos_does(certs, tmp_path, bundle):
    anchors = tmp_path / "bundle.crt"
    anchors.write_bytes(b"".join((certs / f"{name}.crt").read_bytes() for name in bundle))
    servers = sorted(p.stem for p in certs.glob("*.crt") if not NO_SERVERS.search(p.stem))
    assert len(servers) > 40
    wrong, seen = [], set()
    for names, expected in ((servers, "podvm-server"), (CLIENTS, "")):
        files = [certs / f"{name}.crt" for name in names]
        go = verdicts([PEER, "verify"], anchors, expected, *files)
        ours = verdicts([BIN / "plain_judge"], anchors, expected, *files)
        assert len(go) == len(ours) == len(names)
        for name, theirs, verdict in zip(names, go, ours):
            seen.add(theirs == "taken")
            if (theirs == "taken") != (verdict == "taken"):
                wrong.append(f"{name}: Go: {theirs}; ours: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert seen == {True, False} or "ca" not in bundle


def pem_block(kind, content, head=""):
    return f"-----BEGIN {kind}-----\n{head}{base64.b64encode(content).decode()}\n-----END {kind}-----\n"


@pytest.mark.parametrize("junk", [
    "a heading\n", "\r\n# \u00e9\n", pem_block("CERTIFICATE", b"no certificate"), pem_block("CERTIFICATE", b""),
    pem_block("PRIVATE KEY", b"x"), pem_block("X509 CRL", b"x"), pem_block("CERTIFICATE", b"x", "A: b\n\n"),
    "-----BEGIN CERTIFICATE-----\n&&&&\n-----END CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n",
], ids=range(9))
def test_a_bundle_with_other_things_in_it(certs, tmp_path, junk):
    """Both take the certificates that can be read, before and behind what cannot."""
    anchors = tmp_path / "bundle.crt"
    ca, self = ((certs / f"{name}.crt").read_text() for name in ("ca", "self"))
    files = [certs / "client.crt", certs / "self.crt"]
    for text in (junk + ca, ca + junk + self, ca + junk):
        anchors.write_text(text)
        go, ours = (verdicts(p, anchors, "", *files) for p in ([PEER, "verify"], [BIN / "plain_judge"]))
        assert [v == "taken" for v in go] == [v == "taken" for v in ours], (text, go, ours)


# -- our daemon, a stock forwarder --

class PlainNode(Node):
    compat = "upstream"


@pytest.fixture
def stock_node(short_dir):
    """stock_node(peer's flags, the daemon's flags): VMs whose forwarder is the stand-in."""
    nodes = []

    def make(peer=(), daemon=(), forwarder='"$0.peer" forwarder', cls=PlainNode):
        guest = short_dir / "guest"
        guest.mkdir()
        for name in GUEST_PROGRAMS:
            shutil.copy(BIN / name, guest / name)
        shutil.copy(PEER, guest / "agent-protocol-forwarder.peer")
        (guest / "agent-protocol-forwarder").rename(guest / "agent-protocol-forwarder.real")
        flags = []
        for flag in map(str, peer):
            if flag.endswith((".crt", ".key")):
                shutil.copy(flag, guest)
                flag = str(guest / pathlib.Path(flag).name)
            flags.append(flag)
        script = guest / "agent-protocol-forwarder"
        script.write_text(f"#!/bin/sh\nexec {forwarder} {' '.join(flags)}\n")
        script.chmod(0o755)
        nodes.append(cls(short_dir, "-local-guest-dir", guest, "-local-agent",
                         agent_command(short_dir, "agent_stub.py", SEEN), "-proxy-timeout", "15s",
                         *daemon))
        return nodes[-1].start()

    yield make
    for node in nodes:
        node.stop()
        print(node.log(), node.vm_log())


def check_calls(path):
    with Client(path, timeout=20) as agent:
        for size in (0, 100, 1 << 20):
            answer = agent.call(AGENT, "Echo", field(1, b"x" * size))
            assert answer.code == ttrpc.OK and answer.payload == field(1, b"x" * size)
        for n in range(50):
            assert agent.call(HEALTH, "Check", b"", stream=1001 + 2 * n).code == ttrpc.OK


def seen_frame(name):
    def look():
        for proc in pathlib.Path("/proc").iterdir():
            for path in (proc / "root/tmp/seen").glob(f"{name}.*") if proc.name.isdigit() else ():
                return path.read_bytes()
        return None
    return wait_for(look)


def check_pod(node):
    path = node.run_pod()
    check_calls(path)
    check_calls(path)  # a second connection
    node.stop_vm()
    node.wait_gone()


@pytest.mark.parametrize("flags", [
    (), ("-tls-min-version", "VersionTLS13"), ("-tls-min-version", "VersionTLS12"),
    ("-tls-cipher-suites", SUITE_256), ("-tls-cipher-suites", f"TLS_AES_128_GCM_SHA256,{SUITE_128}"),
])
def test_a_stock_forwarder_serves_our_daemon(stock_node, flags):
    check_pod(stock_node(daemon=flags))


def test_without_tls(stock_node):
    check_pod(stock_node(["-disable-tls"], ["-disable-tls"]))


@pytest.mark.parametrize("server, client, suites", [
    ("server", "client", ""), ("chained", "client", ""), ("rsa", "rsa-client", ""),
    ("rsa", "rsa-client", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
])
def test_custom_certificates(stock_node, certs, server, client, suites):
    node = stock_node(custom(certs, server), [*custom(certs, client), "-tls-cipher-suites", suites])
    check_pod(node)


def test_apf_json_with_and_without_our_certificates(stock_node, certs):
    node = stock_node(custom(certs, "server"), custom(certs))
    node.run_pod()
    papers = json.loads(next(node.pods.glob("*/apf.json")).read_text())
    assert not [key for key in papers if key.startswith("tls-")], papers
    node.stop_vm()
    node.wait_gone()


@pytest.mark.parametrize("client", ["self", "rsa-client"])
def test_a_client_certificate_without_an_authority(stock_node, certs, client):
    """The forwarder is told to believe that very certificate."""
    check_pod(stock_node(daemon=["-cert-file", certs / f"{client}.crt", "-cert-key", certs / f"{client}.key"]))


def test_skip_verify_takes_any_server(stock_node, certs):
    check_pod(stock_node(custom(certs, "expired", "self"), [
        "-tls-skip-verify", "-cert-file", certs / "self.crt", "-cert-key", certs / "self.key"]))


@pytest.mark.parametrize("server, words", [
    ("other", "certificate"), ("wrong-name", "podvm-server"), ("common-name", "podvm-server"),
    ("expired", "expired"), ("wrong-usage", "purpose"),
])
def test_a_wrong_server_is_refused_in_words(stock_node, certs, server, words):
    node = stock_node(custom(certs, server), custom(certs))
    node.create()
    answer = node.start_vm(timeout=30)
    assert answer.code != ttrpc.OK and words in answer.text, answer
    node.wait_gone()


@pytest.mark.parametrize("client", ["other-client", "expired-client", "server-as-client"])
def test_a_client_that_the_forwarder_refuses_is_told(stock_node, certs, client):
    node = stock_node(custom(certs, "server"), custom(certs, client))
    node.create()
    answer = node.start_vm(timeout=30)
    assert answer.code != ttrpc.OK and "certificate" in answer.text, answer
    node.wait_gone()


@pytest.mark.parametrize("peer, daemon", [
    (["-tls-cipher-suites", SUITE_128], ["-tls-cipher-suites", SUITE_256]),
    (["-tls-cipher-suites", SUITE_128], ["-tls-min-version", "VersionTLS13"]),
])
def test_nothing_in_common(stock_node, peer, daemon):
    node = stock_node(peer, daemon)
    node.create()
    answer = node.start_vm(timeout=30)
    assert answer.code != ttrpc.OK and "TLS handshake" in answer.text, answer
    node.wait_gone()


def test_a_slow_handshake_and_a_late_listener(stock_node):
    node = stock_node(["-late", "2s", "-slow", "2s"])
    began = time.monotonic()
    path = node.run_pod()
    took = time.monotonic() - began
    assert 3.9 < took < 9, took
    check_calls(path)
    node.stop_vm()
    node.wait_gone()


def test_a_late_listener_is_noticed_at_once(stock_node):
    node = stock_node(["-late", "3s"])
    node.create()
    answer = node.start_vm()
    assert answer.code == ttrpc.OK, answer
    said = [line for line in node.vm_log().splitlines() if "listening as a stock" in line]
    assert said
    up = [line for line in node.log().splitlines() if "tunnel is up" in line]
    # both logs have the time of day: Go's to the second, ours to the millisecond
    listened = time.strptime(said[0].split()[1], "%H:%M:%S")
    noticed = up[0].split("T")[1][:12]
    seconds = int(noticed[:2]) * 3600 + int(noticed[3:5]) * 60 + float(noticed[6:])
    late = seconds - (listened.tm_hour * 3600 + listened.tm_min * 60 + listened.tm_sec)
    assert 0 <= late < 2.5, (said, up)
    node.stop_vm()
    node.wait_gone()


def test_the_end_of_the_forwarder_closes_the_shims_connection(stock_node):
    node = stock_node()
    with Client(node.run_pod(), timeout=5) as shim:
        assert shim.call(HEALTH, "Check", b"").code == ttrpc.OK
        shim.start(AGENT, "Echo", b"", stream=11)
        shim.answer(11)
        peer = [p for p in pathlib.Path("/proc").glob("[0-9]*") if "forwarder.peer" in
                (p / "cmdline").read_bytes().decode(errors="replace")]
        began = time.monotonic()
        for p in peer:
            os.kill(int(p.name), 9)
        assert shim.closed_by_peer()
        assert time.monotonic() - began < 3
    check_calls(wait_for(lambda: next(node.pods.glob("*/agent.ttrpc"), None)))  # started again
    node.stop_vm()
    node.wait_gone()


def test_a_restart_of_the_daemon_closes_and_serves_again(stock_node):
    node = stock_node()
    path = node.run_pod()
    with Client(path, timeout=5) as shim:
        assert shim.call(HEALTH, "Check", b"").code == ttrpc.OK
        shim.start("s", "Never", stream=21)
        os.kill(node.daemon_pid(), 9)
        with pytest.raises((ttrpc.Closed, ConnectionResetError)):
            while True:
                shim.read(1)  # the answer (there is no such method) may have been quicker
    wait_for(node.serves)
    check_calls(path)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


class Torrent:
    """Echoes of random bytes, as many at once as go; then what has arrived is judged to the byte."""

    def __init__(self, path):
        self.client, self.answers, self.got = Client(path, timeout=20), {}, bytearray()
        assert self.client.silent(0.05), "something of another connection's"
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self.send, self.receive)]
        for thread in self.threads:
            thread.start()

    def send(self):
        stream = 1
        with contextlib.suppress(OSError):
            while True:
                payload = field(1, os.urandom(random.choice((10, 3000, 200000))))
                # the Go library leaves a status of OK out
                self.answers[stream] = [ttrpc.frame(stream, status + field(2, payload), ttrpc.RESPONSE)
                                        for status in (b"", field(1, b""))]
                self.client.send(ttrpc.frame(stream, request(AGENT, "Echo", payload)))
                stream += 2

    def receive(self):
        with contextlib.suppress(ConnectionResetError):  # what we sent last was not read
            while part := self.client.sock.recv(1 << 20):
                self.got += part
        self.client.sock.shutdown(socket.SHUT_RDWR)

    def wait_end(self):
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        self.client.close()

    def judge(self):
        """Whole answers, each once, each right; the last one may be cut."""
        at = whole = 0
        while len(self.got) - at >= 10:
            length, stream = struct.unpack(">II", self.got[at:at + 8])
            answers = [a for a in self.answers.pop(stream, []) if len(a) == 10 + length]
            assert answers, f"answer {whole} at {at}, of stream {stream}: {bytes(self.got[at:at + 200])}"
            answer = answers[0]
            assert self.got[at:at + len(answer)] == answer[:len(self.got) - at], f"stream {stream}"
            at += len(answer)
            whole += at <= len(self.got)
        return whole


def forwarder_pids():
    return [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")
            if comm(p.name).startswith("agent-protocol-")]


@pytest.mark.parametrize("forwarder", ["stock", "ours"])
def test_a_death_cuts_and_never_corrupts(stock_node, forwarder):
    """Of the daemon, by both signals, and of the forwarder: the shim gets what is right, then the end."""
    node = stock_node(forwarder='"$0.peer" forwarder' if forwarder == "stock" else '"$0.real"')
    path, chance, whole = node.run_pod(), random.Random(), 0

    def daemon_pids():
        return [pid for pid in [node.daemon_pid()] if pid]

    for victims, signum in [(daemon_pids, signal.SIGKILL), (daemon_pids, signal.SIGTERM),
                            (forwarder_pids, signal.SIGKILL)] * 2:
        with Client(path, timeout=20) as first:  # a stock forwarder dials its agent once, within the first call
            assert first.call(HEALTH, "Check", b"").code == ttrpc.OK
        torrents = [Torrent(path) for _ in range(2)]
        time.sleep(10 ** chance.uniform(-2.5, -0.3))
        before = wait_for(victims)
        for pid in before:
            os.kill(pid, signum)
        for torrent in torrents:
            torrent.wait_end()
            whole += torrent.judge()
        wait_for(lambda old=before, now=victims: now() and not set(now()) & set(old))
        wait_for(node.serves)
    print(f"{whole} whole answers")
    assert whole > 30
    check_calls(path)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


# -- the Go adaptor's own edits --

POD = "0f7a9c66-2e3d-4a6b-9a63-6f0c7f6f1d11"


def volume(path, **info):
    directory = VOLUMES / base64.urlsafe_b64encode(path.encode()).decode()
    directory.mkdir(parents=True)
    (directory / "mountInfo.json").write_text(json.dumps(info))
    return path


def csi_path(name, pod=POD):
    return f"/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~csi/{name}/mount"


def mount(source, destination):
    return field(5, message((1, destination), (2, source), (3, "bind")))


def annotation(key, value):
    return field(7, message((1, key), (2, value)))


def test_volumes_and_gpus_are_annotated(stock_node):
    a = volume(csi_path("a"), device="disk-a", fstype="xfs")
    volume(csi_path("b"), device="disk-b")
    c = volume(csi_path("c"), device="/dev/c", metadata={
        "cloud-volume-path": "cloud-c", "fsGroup": "1000", "encrypt-type": "LUKS",
        "kbs-key-id": "default/key/c"})
    volume(csi_path("x", pod="another"), device="not-ours")
    (VOLUMES / "not base64").mkdir()
    oci = (annotation("io.kubernetes.cri.sandbox-uid", POD) + mount("/etc/hosts", "/etc/hosts")
           + mount(a, "/data/a") + mount(c, "/data/c")
           + annotation("io.katacontainers.config.hypervisor.default_gpus", "1")
           + field(8, field(50, b"linux")))
    payload = message((1, "c1")) + field(6, oci) + field(60, b"unknown")
    node = stock_node()
    with Client(node.run_pod(), timeout=20) as shim:
        shim.send(ttrpc.frame(1, request(AGENT, "CreateContainer", payload)))
        assert shim.answer(1).code == ttrpc.OK
    got = ttrpc.parse(ttrpc.parse(seen_frame("CreateContainer")[10:])[3][-1])
    assert ttrpc.text(got, 1) == "c1" and got[60] == [b"unknown"]
    spec = got[6][-1]
    assert spec.startswith(oci), "only ever added to"
    notes = {ttrpc.text(e, 1): ttrpc.text(e, 2) for e in map(ttrpc.parse, ttrpc.parse(spec)[7])}
    prefix = "io.confidentialcontainers.org."
    assert notes[prefix + "peerpodvolumes.target_path"] == f"{a},{c}"
    assert notes["cdi.k8s.io/peer-pods"] == "nvidia.com/gpu=all"
    order = sorted([a, csi_path("b"), c],
                   key=lambda p: base64.urlsafe_b64encode(p.encode()).decode())
    lun_a, lun_c = str(order.index(a)), str(order.index(c))
    assert json.loads(notes[prefix + "cloud_volumes"]) == {
        f"vol-{lun_a}": {"mount_point": "/data/a", "fs_type": "xfs", "lun": lun_a,
                         "disk_id": "disk-a"},
        f"vol-{lun_c}": {"mount_point": "/data/c", "fs_type": "ext4", "lun": lun_c,
                         "disk_id": "cloud-c", "fs_group": "1000", "encrypt_type": "LUKS",
                         "key_id": "default/key/c"}}
    node.stop_vm()
    node.wait_gone()


# -- our forwarder, a stock adaptor --

class Guest:
    """Our forwarder as a program of its own, beside a stub agent; a stock adaptor before it."""

    def __init__(self, run, directory):
        self.run, self.dir = run, directory
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]

    def agent(self):
        here = pathlib.Path(__file__).resolve().parent
        pathlib.Path("/run/kata-containers/agent.sock").unlink(missing_ok=True)  # a predecessor's
        pathlib.Path(SEEN).mkdir(exist_ok=True)
        for old in pathlib.Path(SEEN).iterdir():
            old.unlink()
        return self.run(sys.executable, here / "agent_stub.py", SEEN)

    def forwarder(self, *flags, **apf):
        config = self.dir / "apf.json"
        config.write_text(json.dumps({"pod-name": "p", **{k.replace("_", "-"): v
                                                         for k, v in apf.items()}}))
        self.program = self.run(BIN / "agent-protocol-forwarder", "-config", config, "-listen",
                                f"127.0.0.1:{self.port}", "-state-dir", self.dir / "state", *flags)
        return self.program

    def serving(self):
        wait_for(lambda: "listening on" in self.program.log() or not self.program.alive())
        assert self.program.alive(), self.program.log()

    def adaptor(self, *flags):
        path = self.dir / "shim.sock"
        program = self.run(PEER, "adaptor", "-socket", path, "-address", f"127.0.0.1:{self.port}",
                           *flags)
        return path, program

    def joined(self, *flags):
        path, program = self.adaptor(*flags)
        wait_connected(program)
        return path


@pytest.fixture
def guest(run, short_dir):
    return Guest(run, short_dir)


def wait_connected(program):
    wait_for(lambda: "connected as a stock adaptor" in program.log() or not program.alive())
    assert program.alive(), program.log()


def papers(certs, server="server", ca="self", **more):
    return {"tls_server_cert": (certs / f"{server}.crt").read_text(),
            "tls_server_key": (certs / f"{server}.key").read_text(),
            "tls_client_ca": (certs / f"{ca}.crt").read_text(), **more}


@pytest.mark.parametrize("more, client", [
    ({}, []), ({"tls_min_version": "VersionTLS13"}, []),
    ({"tls_cipher_suites": [SUITE_256]}, ["-tls-cipher-suites", SUITE_256]),
    ({"server": "rsa"}, ["-tls-cipher-suites", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]),
])
def test_a_stock_adaptor_is_served_by_apf_json(guest, certs, more, client):
    guest.agent()
    guest.forwarder(**papers(certs, **more))
    check_calls(guest.joined(*custom(certs, "self"), *client))


@pytest.mark.parametrize("more, client, ours, theirs", [
    ({"tls_min_version": "VersionTLS13"}, ["-tls-cipher-suites", SUITE_128], "protocol", "protocol version"),
    ({"tls_cipher_suites": [SUITE_256]}, ["-tls-cipher-suites", SUITE_128], "cipher", "handshake failure"),
    ({"server": "wrong-name"}, [], "refuses our certificate", "podvm-server"),
    ({"server": "expired"}, [], "refuses our certificate", "expired"),
    ({"server": "other"}, [], "refuses our certificate", "unknown authority"),
])
def test_a_stock_adaptor_and_we_do_not_agree(guest, certs, more, client, ours, theirs):
    """Both say why, and the agent hears nothing."""
    guest.agent()
    guest.forwarder(**papers(certs, **more))
    guest.serving()
    _, program = guest.adaptor(*custom(certs, "self"), *client)
    wait_for(lambda: ours in guest.program.log() and theirs in program.log())
    assert "connected as" not in program.log()
    assert not list(pathlib.Path(SEEN).iterdir())


def test_a_stock_adaptor_is_served_by_flags_and_its_request_is_edited(guest, certs):
    guest.agent()
    guest.forwarder(*custom(certs, "server"))
    path = guest.joined(*custom(certs))
    check_calls(path)
    payload = message((1, "c")) + field(6, field(8, field(50, b"x")) + field(91, b"y"))
    with Client(path) as shim:
        assert shim.call(AGENT, "CreateContainer", payload).code == ttrpc.OK
    got = next(pathlib.Path(SEEN).glob("CreateContainer.*")).read_bytes()
    expected = edited(ttrpc.frame(1, request(AGENT, "CreateContainer", payload)))
    assert ttrpc.parse(got[10:])[3] == ttrpc.parse(expected[10:])[3]


def test_without_tls_too(guest):
    guest.agent()
    guest.forwarder("-disable-tls")
    guest.serving()
    check_calls(guest.joined("-disable-tls"))


def test_any_client_only_when_asked_for(guest, certs):
    guest.agent()
    without_ca = papers(certs)
    del without_ca["tls_client_ca"]
    program = guest.forwarder(**without_ca)
    wait_for(lambda: not program.alive())
    assert "-tls-skip-verify" in program.log()
    guest.forwarder("-tls-skip-verify", **without_ca)
    check_calls(guest.joined("-ca-cert-file", certs / "ca.crt"))


@pytest.mark.parametrize("client", ["client", "other-client", "expired-client"])
def test_a_wrong_adaptor_is_refused(guest, certs, client):
    guest.agent()
    guest.forwarder(**papers(certs))
    guest.serving()
    path, program = guest.adaptor(*custom(certs, client))
    wait_for(lambda: "certificate" in guest.program.log())
    if "connected as" in program.log():
        with Client(path) as shim:
            assert shim.call(HEALTH, "Check", b"").code != ttrpc.OK
    assert not list(pathlib.Path(SEEN).iterdir())


def test_an_agent_that_comes_late_is_waited_for(guest, certs):
    """Also when others connect meanwhile, more than are let wait."""
    guest.forwarder(**papers(certs))
    path = guest.joined(*custom(certs, "self"))
    with Client(path, timeout=15) as shim, contextlib.ExitStack() as crowd:
        shim.start(HEALTH, "Check", b"", stream=1)
        for _ in range(100):
            crowd.enter_context(socket.create_connection(("127.0.0.1", guest.port)))
        wait_for(lambda: guest.program.log().count("too many at once") > 30)
        guest.agent()
        assert shim.answer(1).code == ttrpc.OK


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_forwarder_without_descriptors_waits_for_some(guest, certs):
    """More connections than it may have: it does not spin over the next one, and serves when they go."""
    guest.agent()
    program = guest.forwarder(**papers(certs))
    guest.serving()
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (40, 40))
    with contextlib.ExitStack() as crowd:
        for _ in range(60):
            crowd.enter_context(socket.create_connection(("127.0.0.1", guest.port)))
        wait_for(lambda: program.descriptors() == 40)
        before = cpu_seconds(program.pid)
        time.sleep(1)
        assert cpu_seconds(program.pid) - before < 0.1
    check_calls(guest.joined(*custom(certs, "self")))
    assert program.log().count("connections have to wait: Too many open files") in range(1, 4)


def test_no_papers_no_service(guest):
    program = guest.forwarder()
    wait_for(lambda: not program.alive())
    assert "tls-server-cert" in program.log() and "enrolment-secret" in program.log()


class NativeNode(Node):
    compat = "native"


def test_both_modes_on_one_port(stock_node, certs, run, short_dir):
    node = stock_node(custom(certs, "server"), forwarder='"$0.real"', cls=NativeNode)
    path = node.run_pod()
    check_calls(path)
    beside = short_dir / "beside.sock"
    address = node.record()["addresses"][0]
    program = run(PEER, "adaptor", "-socket", beside, "-address", f"{address}:15150", *custom(certs))
    wait_connected(program)
    check_calls(beside)
    check_calls(path)
    node.stop_vm()
    node.wait_gone()


def test_a_native_daemon_refuses_a_stock_forwarder(stock_node, certs):
    """No ALPN, no tunnel; the pod's events say which option is for such images."""
    node = stock_node(custom(certs, "server"), cls=NativeNode)
    node.create()
    answer = node.start_vm(timeout=30)
    assert answer.code != ttrpc.OK and "-forwarder-compat upstream" in answer.text, answer
    assert "did not agree on peerpod-tunnel/1" in node.log()
    assert "tls: " in node.vm_log(), "the other end says that it was left"
    node.wait_gone()


def test_a_native_forwarder_refuses_a_stock_adaptor(stock_node, certs, run, short_dir):
    node = stock_node(forwarder='"$0.real"', cls=NativeNode)
    path = node.run_pod()
    beside = short_dir / "beside.sock"
    address = node.record()["addresses"][0]
    program = run(PEER, "adaptor", "-socket", beside, "-address", f"{address}:15150", "-tls-skip-verify",
                  "-cert-file", certs / "client.crt", "-cert-key", certs / "client.key")
    wait_for(lambda: "did not agree on peerpod-tunnel/1: a stock adaptor calls" in node.vm_log())
    if "connected as" in wait_for(program.log):  # TLS 1.3 lets a client believe so
        with Client(beside) as shim:
            assert shim.call(HEALTH, "Check", b"").code != ttrpc.OK
    check_calls(path)
    node.stop_vm()
    node.wait_gone()


# -- the command line --

@pytest.mark.parametrize("flags, words", [
    (["-tls-min-version", "VersionTLS13", "-tls-cipher-suites", SUITE_128], "TLS 1.3"),
    (["-tls-cipher-suites", "TLS_NONSENSE"], "TLS_NONSENSE"),
    (["-cert-file", "/nowhere/a.crt"], "both or none"),
    (["-cert-file", "/nowhere/a.crt", "-cert-key", "/nowhere/a.key"], "/nowhere/a.crt"),
    (["-ca-cert-file", "/nowhere/ca.crt", "-tls-skip-verify"], "contradict"),
])
def test_options_that_make_no_sense_end_the_daemon(short_dir, flags, words):
    node = PlainNode(short_dir, *flags, keeper=False)
    program = Program(node.argv(), short_dir / "log")
    wait_for(lambda: not program.alive())
    assert program.stop() == 2 and words in program.log(), program.log()


def test_native_mode_says_which_options_it_has_no_use_for(short_dir):
    """Nobody is to believe that -disable-tls or an authority of theirs had an effect."""
    flags = [["-ca-cert-file", "/nowhere/ca.crt"], ["-cert-file", "/nowhere/a.crt"], ["-cert-key", "/nowhere/a.key"],
             ["-tls-min-version", "VersionTLS13"], ["-tls-cipher-suites", SUITE_128], ["-tls-skip-verify"],
             ["-disable-tls"]]
    node = PlainNode(short_dir, "-forwarder-compat", "native", *sum(flags, []), keeper=False)
    program = Program(node.argv(), short_dir / "log")
    wait_for(node.serves)
    program.stop()
    for flag, *_ in flags:
        assert program.log().count(f": {flag} has no effect with -forwarder-compat native") == 1, program.log()
