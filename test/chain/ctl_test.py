# SPDX-License-Identifier: Apache-2.0
"""peerpodctl against a stub of the daemon (hypervisor and control service, built from the protocol
alone) and the test agent: what it sends, in which order, and what it leaves behind however it ends.
Run isolated: it uses the default paths."""
import fcntl
import json
import os
import pathlib
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from ttrpc import field, message, parse

PEERPOD = pathlib.Path("/run/peerpod")
NETNS = pathlib.Path("/run/netns")
CTL = str(BIN / "peerpodctl")
HYPERVISOR = "io.katacontainers.config.hypervisor."

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")


class Failure(Exception):
    """An answer with a code instead of a payload."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code, self.text = code, text


class Stub:
    """A ttrpc server on a thread for each call; `answer(service, method, fields)` does the work."""

    def __init__(self, path, answer):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.answer, self.calls, self.connections = answer, [], 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.acceptor = threading.Thread(target=self.accept, daemon=True)
        self.acceptor.start()

    def close(self):
        """Ends the thread first: about to accept on a closed descriptor's number, it would take the
        next stub's connections."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.acceptor.join()
        self.listener.close()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(sock, self.connections), daemon=True).start()

    @staticmethod
    def read(sock, size):
        data = b""
        while len(data) < size:
            part = sock.recv(size - len(data))
            if not part:
                raise ttrpc.Closed
            data += part
        return data

    def serve(self, sock, connection):
        try:
            while True:
                length, stream, kind, _ = struct.unpack(">IIBB", self.read(sock, 10))
                fields = parse(self.read(sock, length))
                assert kind == ttrpc.REQUEST
                method = ttrpc.text(fields, 2)
                request = parse(fields.get(3, [b""])[0])
                self.calls.append((method, request, connection))
                try:
                    body = message((2, self.answer(method, request)))
                except Failure as failure:
                    body = field(1, message((1, failure.code), (2, failure.text)))
                sock.sendall(ttrpc.frame(stream, body, kind=ttrpc.RESPONSE))
        except (ttrpc.Closed, OSError):
            sock.close()

    def methods(self):
        return [method for method, _, _ in self.calls]


class Node:
    """The stub daemon: StartVM starts a test agent on the pod's socket."""

    def __init__(self, folder):
        self.journal_path, self.log_path = folder / "journal", folder / "log"
        self.agent, self.gate, self.fail = None, None, {}
        self.hypervisor = Stub(PEERPOD / "hypervisor.sock", self.answer)

    @staticmethod
    def socket(sandbox):
        return PEERPOD / "pods" / sandbox / "agent.ttrpc"

    def answer(self, method, request):
        sandbox = ttrpc.text(request, 1)
        if method in self.fail:
            raise self.fail[method]
        if method == "CreateVM":
            self.socket(sandbox).parent.mkdir(parents=True, exist_ok=True)
            return field(1, str(self.socket(sandbox)))
        if method == "StartVM":
            if self.gate:
                self.gate.wait(30)
                raise Failure(ttrpc.ABORTED, "stopped meanwhile")
            # Not the fixture's `run`: its death signal comes when this thread ends.
            with open(self.log_path, "ab") as log:
                self.agent = subprocess.Popen(
                    [BIN / "test-agent", "--socket", self.socket(sandbox), "--journal",
                     self.journal_path], stderr=log)
            wait_for(lambda: "listening" in self.log_path.read_text())
        if method == "StopVM" and self.gate:
            self.gate.set()
        return b""

    def journal(self):
        return [json.loads(line)["method"] for line in self.journal_path.read_text().splitlines()]


@pytest.fixture
def node(short_dir):
    made = Node(short_dir)
    yield made
    made.hypervisor.close()
    if made.agent:
        made.agent.kill()
        made.agent.wait()
        assert "Sanitizer" not in made.log_path.read_text()
    assert no_netns(), "a network namespace is left"


def ctl(*words, **more):
    return subprocess.run([CTL, *map(str, words)], capture_output=True, text=True, timeout=60,
                          check=False, **more)


def no_netns():
    return not NETNS.exists() or not [n for n in os.listdir(NETNS) if n.startswith("peerpod-run")]


# -- run --

def test_run_is_what_a_shim_does(node):
    done = ctl("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stdout == "out\n" and "\nerr\n" in "\n" + done.stderr
    assert node.hypervisor.methods() == ["CreateVM", "StartVM", "StopVM"]
    assert [c for _, _, c in node.hypervisor.calls] == [1, 2, 3], "a connection for each call"
    seen = node.journal()
    assert seen[0] == "Check" and seen.count("GetOOMEvent") == 1
    assert seen.count("WaitProcess") == 4, "pause at once, then each at its end"
    beside = ("Check", "GetOOMEvent", "WaitProcess", "ReadStdout", "ReadStderr")
    down = ["SignalProcess", "RemoveContainer", "RemoveStaleVirtiofsShareMounts"]
    assert [m for m in seen if m not in beside] == [
        "CreateSandbox", "GetGuestDetails", "CopyFile", "CreateContainer", "StartContainer",
        "CopyFile", "CreateContainer", "StartContainer", "CloseStdin", *down, *down,
        "DestroySandbox"]


def test_the_nine_annotations(node, tmp_path):
    (tmp_path / "initdata").write_text('version = "0.1.0"\n')
    done = ctl("run", "-name", "web-0", "-namespace", "prod", "-initdata", tmp_path / "initdata",
               "-annotation", f"{HYPERVISOR}default_vcpus=2,other=x", "--", "true")
    assert done.returncode == 0, done.stderr
    _, request, _ = node.hypervisor.calls[0]
    entries = [parse(entry) for entry in request[2]]
    found = {ttrpc.text(e, 1): ttrpc.text(e, 2) for e in entries}
    assert found == {
        "io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.sandbox-namespace": "prod",
        HYPERVISOR + "machine_type": "", HYPERVISOR + "image": "",
        HYPERVISOR + "default_vcpus": "2", HYPERVISOR + "default_memory": "0",
        HYPERVISOR + "default_gpus": "0", HYPERVISOR + "default_gpu_model": "",
        HYPERVISOR + "cc_init_data": 'version = "0.1.0"\n', "other": "x"}
    assert ttrpc.text(request, 3).startswith("/run/netns/peerpod-run-")
    assert len(ttrpc.text(request, 1)) == 64


def test_the_pod_network_is_there_for_the_daemon(node):
    seen = []

    def look(method, request, old=node.answer):
        if method == "CreateVM":
            name = pathlib.Path(ttrpc.text(request, 3)).name
            seen.append(subprocess.run(["ip", "-n", name, "route"], capture_output=True, text=True,
                                       check=True).stdout)
        return old(method, request)

    node.hypervisor.answer = look
    assert ctl("run", "--", "true").returncode == 0
    assert "default via" in seen[0] and "dev eth0" in seen[0]


def test_stdin(node):
    data = os.urandom(500_000)
    done = subprocess.run([CTL, "run", "-quiet", "-i", "--", "sh", "-c", "cat; exit 3"], input=data,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 3 and done.stdout == data


def test_no_stdin_is_an_empty_one(node):
    done = ctl("run", "--", "cat")
    assert done.returncode == 0 and done.stdout == ""


def test_timeline_as_json(node):
    done = ctl("run", "-o", "json", "--", "false")
    last = json.loads(done.stderr.splitlines()[-1])
    names = [s["step"] for s in last["steps"]]
    assert done.returncode == 1 and last["exit_status"] == 1
    assert names.index("CreateVM") < names.index("StartVM") < names.index("command") < \
        names.index("StopVM")
    assert all(s["ok"] and s["took_us"] >= 0 for s in last["steps"])


class Terminal:
    """peerpodctl on a pseudo-terminal of its own."""

    def __init__(self, *words):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(CTL, [CTL, *words])
        self.seen = b""

    def expect(self, what, seconds=20):
        end = time.monotonic() + seconds
        while what not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    assert what in self.seen, self.seen
        self.seen = self.seen[self.seen.index(what) + len(what):]

    def raw(self):
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON

    def size(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self):
        status = None
        deadline = time.monotonic() + 30
        while status is None:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, state = os.waitpid(self.pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(state) if pid else None
            assert time.monotonic() < deadline, self.seen
        return status


def test_a_terminal(node):
    terminal = Terminal("run", "-it", "--", "sh", "-c", "PS1='# '; export PS1; echo READY; exec sh")
    terminal.expect(b"READY\r\n")
    assert terminal.raw()
    terminal.size(41, 97)
    wait_for(lambda: node.journal().count("TtyWinResize") >= 1)
    time.sleep(0.2)
    os.write(terminal.fd, b"stty size\r")
    terminal.expect(b"41 97")
    os.write(terminal.fd, b"\x03")  # the shell's, not ours
    terminal.expect(b"^C")
    terminal.expect(b"# ")
    os.write(terminal.fd, b"exit 5\r")
    assert terminal.end() == 5
    assert not terminal.raw(), "the terminal's settings are back"


def test_a_terminal_is_restored_when_the_daemon_goes(node):
    terminal = Terminal("run", "-it", "--", "sh", "-c", "echo READY; exec cat")
    terminal.expect(b"READY\r\n")
    wait_for(terminal.raw)
    os.kill(node.agent.pid, signal.SIGKILL)
    assert terminal.end() == 125
    assert not terminal.raw() and node.hypervisor.methods()[-1] == "StopVM"


# -- run, interrupted --

def start(*words, **more):
    return subprocess.Popen([CTL, "run", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, text=True, **more)


def test_interrupt_while_the_vm_starts(node):
    node.gate = threading.Event()
    process = start("--", "true")
    wait_for(lambda: "StartVM" in node.hypervisor.methods())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert node.hypervisor.methods() == ["CreateVM", "StartVM", "StopVM", "StopVM"]
    connections = [c for _, _, c in node.hypervisor.calls]
    assert len(set(connections)) == 4, "StopVM comes on a connection of its own"


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_while_the_command_runs(node, signo):
    process = start("--", "sh", "-c", "echo READY; sleep 1000")
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signo)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + 9, errors
    assert node.hypervisor.methods()[-1] == "StopVM" and "DestroySandbox" in node.journal()


def test_a_reader_that_goes_away(node):
    process = start("--", "sh", "-c", "while :; do echo yes; done")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(30) == 125 and "Broken pipe" in errors
    assert node.hypervisor.methods()[-1] == "StopVM"


# -- run, failing --

def test_the_daemons_words_reach_the_person(node):
    node.fail["StartVM"] = Failure(ttrpc.RESOURCE_EXHAUSTED, "creating instance x: no quota left")
    done = ctl("run", "--", "true")
    assert done.returncode == 125 and "creating instance x: no quota left" in done.stderr
    assert "ResourceExhausted" in done.stderr
    assert node.hypervisor.methods() == ["CreateVM", "StartVM", "StopVM"]


def test_a_failed_create_vm(node):
    node.fail["CreateVM"] = Failure(ttrpc.INVALID_ARGUMENT, "no")
    assert ctl("run", "--", "true").returncode == 125


def test_a_command_that_does_not_exist(node):
    done = ctl("run", "--", "/no/such")
    assert done.returncode == 125 and "/no/such was not found" in done.stderr
    assert "DestroySandbox" in node.journal() and node.hypervisor.methods()[-1] == "StopVM"


def test_an_agent_that_dies(node):
    process = start("--", "sh", "-c", "echo READY; sleep 1000")
    process.stdout.readline()
    os.kill(node.agent.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 125 and "ended" in errors
    assert node.hypervisor.methods()[-1] == "StopVM"


def test_no_daemon():
    (PEERPOD / "hypervisor.sock").unlink(missing_ok=True)
    done = ctl("run", "--", "true")
    assert done.returncode == 125 and "is the daemon running" in done.stderr and no_netns()


def test_keep(node):
    process = start("--keep", "--", "sh", "-c", "echo out; exit 4")
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 4 and out == "out\n", errors
    assert node.hypervisor.methods() == ["CreateVM", "StartVM"], "the pod runs"
    keeper = int(errors.split("kill ")[1].split()[0])
    assert not no_netns() and os.path.exists(f"/proc/{keeper}")
    os.kill(keeper, signal.SIGTERM)
    wait_for(lambda: node.hypervisor.methods()[-1] == "StopVM" and no_netns(), 20)


def test_keep_of_a_pod_that_fails(node):
    node.fail["StartVM"] = Failure(ttrpc.INTERNAL, "no")
    done = ctl("run", "--keep", "--", "true")
    assert done.returncode == 125 and node.hypervisor.methods()[-1] == "StopVM"


# -- status, inspect --

def record(pods, sandbox, **keys):
    (pods / sandbox).mkdir(parents=True)
    keys = {"id": sandbox, "pod": "web", "namespace": "prod", "state": "running",
            "instance_name": f"podvm-web-{sandbox[:8]}", "addresses": ["198.18.0.7"],
            "created_unix_ms": int(time.time() * 1000) - 90_000, **keys}
    (pods / sandbox / "sandbox.json").write_text(json.dumps(keys))


def test_status_without_a_daemon(tmp_path):
    record(tmp_path, "a" * 64)
    record(tmp_path, "ab" * 32, state="deleting", last_error="quota\x1b[31m")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sandbox.json").write_text("{")
    done = ctl("status", "-pods-dir", tmp_path)
    assert done.returncode == 1 and "does not answer" in done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["a" * 12][1:5] == ["prod/web", "running", "podvm-web-aaaaaaaa", "198.18.0.7"]
    assert rows["a" * 12][8] == "90s" and rows["bad"][2] == "unreadable"
    assert "\x1b" not in done.stdout, "no escapes of others on our terminal"
    listed = json.loads(ctl("status", "-o", "json", "-pods-dir", tmp_path).stdout)
    assert listed["daemon_answers"] is False
    assert {s["id"] for s in listed["sandboxes"]} == {"a" * 64, "ab" * 32, "bad"}


def test_inspect_without_a_daemon(tmp_path):
    record(tmp_path, "a" * 64)
    record(tmp_path, "ab" * 32)
    found = ctl("inspect", "-pods-dir", tmp_path, "aba")
    assert json.loads(found.stdout)["id"] == "ab" * 32
    assert "more than one" in ctl("inspect", "-pods-dir", tmp_path, "a").stderr
    assert "no sandbox" in ctl("inspect", "-pods-dir", tmp_path, "zz").stderr
    assert "no sandbox" in ctl("inspect", "-pods-dir", tmp_path, "../" + "a" * 64).stderr


@pytest.fixture
def control():
    sandbox = message((1, "c" * 64), (2, "web"), (3, "prod"), (4, "running"), (5, "i-1"),
                      (6, "podvm-web"), (7, "10.0.0.1"), (8, "up"), (9, 5_000_000), (10, 2048),
                      (11, int(time.time() * 1000) - 3 * 3600_000), (13, 4), (17, 2))
    daemon = message((1, "1.2.3"), (2, "local"), (3, 4), (4, 77), (6, True))

    def answer(method, request):
        if method == "Status":
            return field(1, daemon) + field(2, sandbox)
        if ttrpc.text(request, 1) != "ccc":
            raise Failure(ttrpc.NOT_FOUND, "no sandbox begins with that")
        return field(1, sandbox) + field(2, '{"token": "t"}')

    stub = Stub(PEERPOD / "control.sock", answer)
    yield stub
    stub.close()
    (PEERPOD / "control.sock").unlink()


def test_status_of_a_daemon(control):
    done = ctl("status")
    assert done.returncode == 0 and done.stderr == ""
    assert "1.2.3" in done.stdout and "local" in done.stdout
    assert done.stdout.splitlines()[-1].split() == [
        "c" * 12, "prod/web", "running", "podvm-web", "10.0.0.1", "up", "4.8M", "2.0K", "3h", "-"]
    listed = json.loads(ctl("status", "-o", "json").stdout)
    assert listed["daemon"]["pid"] == 77 and listed["daemon"]["keeper"] is True
    assert listed["sandboxes"][0]["bytes_in"] == 5_000_000
    assert listed["sandboxes"][0]["shim_connections"] == 2


def test_inspect_of_a_daemon(control):
    found = json.loads(ctl("inspect", "ccc").stdout)
    assert found["id"] == "c" * 64 and found["record"] == {"token": "t"}
    done = ctl("inspect", "nope")
    assert done.returncode == 1 and "NotFound" in done.stderr and done.stdout == ""


# -- words --

@pytest.mark.parametrize("words", [["status"], ["inspect"], ["run"], ["logs"]])
def test_help_of_each_command(words):
    done = ctl(*words, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: peerpodctl {words[0]}")


def test_help_and_version():
    assert ctl("help").returncode == 0 and "status" in ctl("help").stdout
    assert ctl("version").stdout.startswith("peerpodctl ")


@pytest.mark.parametrize("words,says", [
    ([], "usage"), (["nonsense"], "unknown command"), (["run", "-bad"], "unknown flag"),
    (["run", "-timeout", "0"], "duration"), (["run", "-annotation", "x"], "key=value"),
    (["status", "-o", "xml"], "table, json"), (["status", "extra"], "unexpected"),
    (["inspect"], "needs one ID"), (["inspect", "a", "b"], "needs one ID")])
def test_bad_words(words, says):
    done = ctl(*words)
    assert done.returncode == 2 and says in done.stderr and done.stdout == ""


def test_logs_is_reserved():
    done = ctl("logs", "x")
    assert done.returncode == 1 and "reserved" in done.stderr
