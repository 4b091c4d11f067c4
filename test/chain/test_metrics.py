# SPDX-License-Identifier: Apache-2.0
"""/metrics, /startup, /live and /ready of the real daemon: the Python client's strict OpenMetrics parser judges
the text, a pod's life moves the right numbers, and hostile clients cost little and keep nobody out."""
import contextlib
import http.client
import os
import pathlib
import re
import signal
import socket
import threading
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from node import HEALTH, HYPERVISOR, SANDBOX, Node
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from ttrpc import Client, message

HASTY = BIN / "cloud-api-adaptor-hasty"  # 2 s of patience with tunnels
PORT = 8000
CONNECTIONS_MAX = 32  # adaptor/probe.h
DOC = pathlib.Path(os.environ["PEERPOD_SOURCE"]) / "docs" / "metrics.md"


def get(path, method="GET", port=PORT, timeout=5):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def families():
    status, headers, text = get("/metrics")
    assert status == 200
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return list(text_string_to_metric_families(text))


def values():
    """{(sample name, value of its one label or ""): value}; buckets left out."""
    return {(s.name, "".join(s.labels.values())): s.value for f in families() for s in f.samples
            if not s.name.endswith("_bucket") and len(s.labels) <= 1}


@pytest.fixture
def node(short_dir):
    node = Node(short_dir).start()
    yield node
    node.stop()


def test_every_family_is_documented_and_well_named(node):
    found = {f.name: f for f in families()}
    described = set(re.findall(r"^\| `([a-z_]+)`", DOC.read_text(), re.M))
    assert set(found) == described
    for name, family in found.items():
        assert name.startswith(("peerpod_", "process_")), name
        assert family.documentation.endswith("."), name
        if family.type == "histogram":
            assert family.unit == "seconds" and name.endswith("_seconds")
    assert node.serves()


def test_a_pods_life_in_numbers(node):
    before = values()
    assert before["peerpod_keeper_available", ""] == 1
    assert before["peerpod_sandboxes", "running"] == 0
    agent = node.run_pod()
    with Client(agent) as client:
        assert client.call(HEALTH, "Check").code == ttrpc.OK
        wait_for(lambda: values()["peerpod_tunnel_received_bytes_total", ""] > 0)
        now = values()
    assert now["peerpod_sandboxes", "running"] == 1
    assert now["peerpod_tunnels", "up"] == 1 and now["peerpod_shim_connections", ""] == 1
    assert now["peerpod_starts_total", "ok"] == now["peerpod_start_duration_seconds_count", ""] == 1
    for step in ("inspect", "create", "address", "network", "forwarder", "agent"):
        assert now["peerpod_start_step_duration_seconds_count", step] == 1, step
    total = sum(v for (name, _), v in now.items() if name == "peerpod_start_step_duration_seconds_sum")
    assert abs(total - now["peerpod_start_duration_seconds_sum", ""]) < 0.1
    assert now["peerpod_provider_call_duration_seconds_count", "create"] == 1
    assert now["peerpod_provider_errors_total", "create"] == 0
    assert now["peerpod_tunnel_sent_bytes_total", ""] > 0
    assert now["peerpod_keeper_descriptors", ""] > before["peerpod_keeper_descriptors", ""]
    assert now["process_resident_memory_bytes", ""] == pytest.approx(
        1024 * rss_kb(node.daemon_pid()), rel=0.2)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    after = values()
    assert after["peerpod_sandboxes", "running"] == 0
    assert after["peerpod_provider_call_duration_seconds_count", "delete"] == 1
    # What a sandbox has counted outlives it; what the store held for it does not.
    assert after["peerpod_tunnel_sent_bytes_total", ""] == now["peerpod_tunnel_sent_bytes_total", ""]
    wait_for(lambda: values()["peerpod_keeper_descriptors", ""] ==
             before["peerpod_keeper_descriptors", ""])


def test_the_store_is_counted_as_it_is(node):
    """Our count against the keeper's descriptors, over a kill."""
    def keepers_own():
        return len(os.listdir(f"/proc/{node.program.pid}/fd")) - values()["peerpod_keeper_descriptors", ""]

    wait_for(lambda: keepers_own() == keepers_own())
    own = keepers_own()
    node.run_pod()
    wait_for(lambda: keepers_own() == own)
    os.kill(node.daemon_pid(), signal.SIGKILL)
    wait_for(node.serves)
    wait_for(lambda: keepers_own() == own)


def test_failures_are_counted(short_dir):
    node = Node(short_dir, "-fail-create", "before").start()
    try:
        assert node.create().code == ttrpc.OK
        assert node.start_vm().code != ttrpc.OK
        now = values()
        assert now["peerpod_starts_total", "failed"] == 1 and now["peerpod_starts_total", "ok"] == 0
        assert now["peerpod_errors_total", "create"] == 1
        assert now["peerpod_provider_errors_total", "create"] == 1
        assert now["peerpod_start_duration_seconds_count", ""] == 0
    finally:
        node.stop()


def forwarder_pids():
    return [p.name for p in pathlib.Path("/proc").glob("[0-9]*")
            if (p / "comm").exists() and (p / "comm").read_text().startswith("agent-protocol-")]


def test_a_resume_is_measured(node):
    node.run_pod()
    for pid in forwarder_pids():
        os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: values()["peerpod_tunnel_resumes_total", ""] == 1, 15)
    now = values()
    assert now["peerpod_resume_gap_seconds_count", ""] == 1
    assert 0 < now["peerpod_resume_gap_seconds_sum", ""] < 15
    assert now["peerpod_tunnel_redials_total", ""] >= 1


def test_startup_waits_for_the_tunnels(node):
    """Killed and started again while its VM does not answer: live at once, started only when the tunnel is up."""
    assert [get(p)[0] for p in ("/startup", "/live", "/ready", "/", "/metrics/x")] == [200] * 3 + [404] * 2
    assert get("/metrics", "POST")[0] == 405
    assert get("/startup", "HEAD")[2] == ""
    node.run_pod()
    forwarders = forwarder_pids()
    for pid in forwarders:
        os.kill(int(pid), signal.SIGSTOP)
    os.kill(node.daemon_pid(), signal.SIGKILL)
    wait_for(node.serves)
    status, _, text = get("/startup")
    assert status == 503 and "1 tunnels" in text, text
    assert get("/ready")[0] == 503 and get("/live")[0] == 200
    for pid in forwarders:
        os.kill(int(pid), signal.SIGCONT)
    wait_for(lambda: get("/startup")[0] == 200, 20)
    assert get("/ready")[0] == 200


def test_startup_does_not_wait_for_ever(short_dir):
    node = Node(short_dir, adaptor=HASTY).start()
    try:
        node.run_pod()
        for pid in forwarder_pids():
            os.kill(int(pid), signal.SIGSTOP)
        os.kill(node.daemon_pid(), signal.SIGKILL)
        wait_for(node.serves)
        wait_for(lambda: get("/startup")[0] == get("/ready")[0] == 200)
        assert values()["peerpod_tunnels", "up"] == 0
    finally:
        node.stop()


class Prober(threading.Thread):
    """Asks for /ready without a pause: (when it was asked, status or None)."""

    def __init__(self):
        super().__init__(daemon=True)
        self.answers, self.enough = [], False
        self.start()

    def run(self):
        while not self.enough:
            asked, status = time.monotonic(), None
            with contextlib.suppress(OSError, http.client.HTTPException):
                status = get("/ready", timeout=1)[0]
            self.answers.append((asked, status))
            time.sleep(0.001)

    def ready(self, since):
        return [a for a in list(self.answers) if a[0] > since and a[1] == 200]


def test_an_ending_daemon_is_not_ready(short_dir):
    """Neither while a VM is being made, which it does not wait for."""
    node = Node(short_dir, "-boot-delay", "60s").start()
    try:
        prober = Prober()
        assert node.create().code == ttrpc.OK
        with Client(node.socket, timeout=30) as shim:
            shim.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
            wait_for(node.instances)
            wait_for(lambda: prober.ready(0))
            node.program.process.terminate()
            wait_for(lambda: "ending; pods" in node.log(), step=0.001)
            ending = time.monotonic()
            wait_for(lambda: not node.program.alive())
        time.sleep(0.2)
        prober.enough = True
        prober.join(5)
        assert not prober.ready(ending)
        assert prober.answers[-1][1] is None
    finally:
        node.stop()


def test_a_port_in_use_is_a_warning(short_dir):
    with socket.create_server(("127.0.0.1", PORT)):
        node = Node(short_dir).start()
        try:
            assert f"port {PORT} (-probe-address, -probe-port): listening: Address already in use" in node.log()
            assert node.serves()
        finally:
            node.stop()


def test_two_daemons_share_the_port_and_none_may(short_dir):
    (short_dir / "a").mkdir(), (short_dir / "b").mkdir(), (short_dir / "c").mkdir()
    nodes = [Node(short_dir / name, env={"PROBE_PORT": port}).start()
             for name, port in (("a", "8001"), ("b", "8001"), ("c", "0"))]
    try:
        assert all("probes and metrics on 127.0.0.1 port 8001" in n.log() for n in nodes[:2])
        assert "probes" not in nodes[2].log()
        assert get("/live", port=8001)[0] == 200
        with pytest.raises(ConnectionRefusedError):
            get("/live")
    finally:
        for node in nodes:
            node.stop()


# -- hostile clients --

def rss_kb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise KeyError


def connect():
    s = socket.create_connection(("127.0.0.1", PORT), timeout=5)
    s.setblocking(False)
    return s


def ended(s):
    try:
        return s.recv(65536) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def probe_time():
    began = time.monotonic()
    assert get("/startup")[0] == 200
    return time.monotonic() - began


def test_idle_connections_keep_nobody_out(node):
    pid = node.daemon_pid()
    before = rss_kb(pid)
    crowd, slowest = [], 0
    with contextlib.ExitStack() as stack:
        for i in range(1000):
            crowd.append(stack.enter_context(connect()))
            if i % 3 == 0:
                with contextlib.suppress(OSError):
                    crowd[-1].send(b"GET /metrics HTTP/1.1\r\nHost: ")
            if i % 50 == 0:
                slowest = max(slowest, probe_time())
        slowest = max(slowest, probe_time())
        wait_for(lambda: sum(not ended(s) for s in crowd) <= CONNECTIONS_MAX)
    assert slowest < 2
    # The address sanitizer keeps for a while what was freed: some 10 KiB for a connection.
    assert rss_kb(pid) - before < (16384 if "asan" in str(BIN) else 4096)


def test_slow_and_endless_requests_end(node):
    with contextlib.ExitStack() as stack:
        slow, endless = stack.enter_context(connect()), stack.enter_context(connect())
        slow.send(b"GET /metrics HTTP/1.1\r\nA: ")
        with contextlib.suppress(OSError):
            for _ in range(64):
                endless.send(b"X" * 1024)
        wait_for(lambda: ended(endless), 5)
        began = time.monotonic()
        while not ended(slow):  # a byte now and then does not keep it alive
            assert time.monotonic() - began < 10
            with contextlib.suppress(OSError):
                slow.send(b"a")
            time.sleep(0.5)
        assert time.monotonic() - began > 2
        assert probe_time() < 2


def test_garbage_is_answered_or_cut(node):
    for text in (b"\x00" * 100, b"GET\r\n\r\n", b"GET /%zz HTTP/9.9\r\n\r\n", b"\r\n" * 5000,
                 b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 4294967296\r\n\r\n",
                 b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
                 b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n"):
        with connect() as s, contextlib.suppress(OSError):
            s.send(text)
    assert probe_time() < 2
    assert SANDBOX not in get("/metrics")[2]
