# SPDX-License-Identifier: Apache-2.0
"""The test agent against what is known of the real one (kata-contract.md 1.3 and 4): its error
codes, its streams, its socket's fate, many calls at once. What other tests build on it is worth no
more than this. Run isolated: it uses the default paths in a /run of its own."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from ttrpc import field, message, parse

AGENT = "grpc.AgentService"
HEALTH = "grpc.Health"
RUN = pathlib.Path("/run/kata-containers")
SOCKET = RUN / "agent.sock"
SHARED = RUN / "shared" / "containers"
SLOW = 5 if "san" in str(BIN) else 1

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")


class Agent:
    """A test agent with one connection to it, and its journal."""

    def __init__(self, run, folder):
        subprocess.run(["umount", "-ql", RUN / "sandbox" / "shm"], check=False,
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(RUN, ignore_errors=True)
        self.journal_path = folder / "journal"
        self.program = run(BIN / "test-agent", "--journal", self.journal_path, "--bodies",
                           folder / "bodies",
                           env={**os.environ, "TSAN_OPTIONS": "atexit_sleep_ms=0"})
        self.bodies = folder / "bodies"
        wait_for(lambda: "listening" in self.program.log() or not self.program.alive())
        self.client = ttrpc.Client(SOCKET, timeout=20)

    def call(self, method, *fields, service=AGENT, **more):
        return self.client.call(service, method, message(*fields), **more)

    def ok(self, method, *fields, **more):
        answer = self.call(method, *fields, **more)
        assert answer.code == 0, answer
        return parse(answer.payload)

    def journal(self):
        return [json.loads(line) for line in self.journal_path.read_text().splitlines()]

    def sandbox(self, *fields):
        return self.ok("CreateSandbox", (1, "web-0"), (5, "s" * 64), *fields)

    def create(self, cid, *args, **spec):
        return self.call("CreateContainer", *create_fields(cid, args, **spec))

    def container(self, cid, *args, **spec):
        answer = self.create(cid, *args, **spec)
        assert answer.code == 0, answer
        self.ok("StartContainer", (1, cid))

    def output(self, cid, exec_id=None, method="ReadStdout"):
        out = b""
        while True:
            answer = self.call(method, (1, cid), (2, exec_id or cid), (3, 32768))
            if answer.code or not answer.payload:
                return out, answer
            out += parse(answer.payload)[1][0]

    def words(self, cid, count):
        """The first words of a process that goes on."""
        out = b""
        while len(out.split()) < count or not out.endswith(b"\n"):
            out += parse(self.call("ReadStdout", (1, cid), (2, cid), (3, 999)).payload)[1][0]
        return out.decode().split()

    def wait(self, cid, exec_id=None):
        return self.ok("WaitProcess", (1, cid), (2, exec_id or cid)).get(1, [0])[0]


def mount(destination, source, kind, *options):
    return message((1, destination), (2, source), (3, kind), *[(4, o) for o in options])


def process(*args, terminal=False, cwd="/", uid=0, groups=()):
    user = message((1, uid), (2, uid)) + b"".join(field(3, g) for g in groups)
    return message((1, terminal), (3, user), *[(4, a) for a in args], (5, "PATH=/usr/bin:/bin"),
                   (5, "COLOUR=blue"), (6, cwd))


def create_fields(cid, args, image="busybox", mounts=(), namespaces=(("ipc", ""), ("uts", ""),
                  ("mount", "")), annotations=(), **more):
    root = f"{RUN}/{cid}/rootfs"
    spec = [(2, process(*args, **more)), (3, message((1, root))),
            (5, mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev")),
            (5, mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=65536k"))]
    spec += [(5, m) for m in mounts] + [(7, a) for a in annotations]
    linux = b"".join(field(6, message((1, t), (2, p))) for t, p in namespaces)
    storage = message((1, "image_guest_pull"), (3, image), (4, "overlay"), (6, root))
    return (1, cid), (2, cid), (5, storage), (6, message(*spec, (8, linux)))


@pytest.fixture
def agent(run, short_dir):
    made = Agent(run, short_dir)
    yield made
    made.client.close()
    made.program.stop()
    assert "Sanitizer" not in made.program.log(), made.program.log()
    assert made.program.process.returncode in (0, -signal.SIGKILL)


def running():
    return subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True,
                          check=True).stdout


# -- frames --

def test_health(agent):
    assert agent.call("Check", service=HEALTH).payload == b"\x08\x01"
    assert parse(agent.call("Version", service=HEALTH).payload)[2]


def test_refusals_are_those_of_ttrpc_rust(agent):
    client = agent.client
    assert client.call("no.Such", "Check").code == ttrpc.INVALID_ARGUMENT
    assert client.call(AGENT, "NoSuch").code == ttrpc.UNIMPLEMENTED
    assert client.call(AGENT, "WaitProcess", b"\xff\xff").code == ttrpc.UNKNOWN
    client.send(ttrpc.frame(7, b"\xff\xff\xff"))
    assert client.answer(7).code == ttrpc.INVALID_ARGUMENT
    assert client.call(HEALTH, "Check", stream=8).code == ttrpc.INVALID_ARGUMENT
    client.send(ttrpc.frame(9, b"", kind=ttrpc.DATA))
    assert client.answer(9).code == ttrpc.INVALID_ARGUMENT
    client.send(ttrpc.frame(11, b"", kind=99))
    assert client.call(HEALTH, "Check", stream=5).code == 0, "ids need not grow"


def test_a_body_of_4_mib_passes_and_one_byte_more_does_not(agent):
    client = agent.client
    plain = ttrpc.request(HEALTH, "Check")
    room = ttrpc.BODY_MAX - len(plain)
    for body in (plain + field(15, b"x" * (room - 5)), plain + field(15, b"x" * (room - 4))):
        client.send(ttrpc.header(len(body), 21) + body)
        code = client.answer(21).code
        assert code == (0 if len(body) <= ttrpc.BODY_MAX else ttrpc.INVALID_ARGUMENT), len(body)
    assert client.call(HEALTH, "Check").code == 0


def test_end_of_input_ends_the_calls_even_if_only_half_closed(agent):
    other = ttrpc.Client(SOCKET)
    other.start(AGENT, "GetOOMEvent")
    other.sock.shutdown(socket.SHUT_WR)
    assert other.closed_by_peer()
    assert agent.call("Check", service=HEALTH).code == 0


def test_the_deadline_is_answered_by_the_server(agent):
    start = time.monotonic()
    answer = agent.call("GetOOMEvent", timeout_ns=200_000_000)
    assert answer.code == ttrpc.DEADLINE_EXCEEDED and answer.text == "timeout"
    assert 0.15 < time.monotonic() - start < 5


def test_200_calls_in_flight_are_answered_out_of_order(agent):
    agent.sandbox()
    agent.container("c", "cat")
    client = agent.client
    reads = [client.start(AGENT, "ReadStdout", message((1, "c"), (2, "c"), (3, 1)))
             for _ in range(200)]
    start = time.monotonic()
    assert agent.call("Check", service=HEALTH).code == 0
    assert time.monotonic() - start < 0.1 * SLOW
    agent.ok("WriteStdin", (1, "c"), (2, "c"), (3, b"x" * 200))
    answers = [client.answer() for _ in range(200 - len(client.early))]
    answers += list(client.early.values())
    assert sorted(a.stream for a in answers) == reads
    assert all(parse(a.payload)[1] == [b"x"] for a in answers)
    assert [a.stream for a in answers] != reads, "they came in order: nothing was concurrent"


# -- the sandbox --

def test_create_sandbox_removes_the_agents_own_socket(agent):
    (RUN / "left").mkdir()
    agent.sandbox((3, message((1, "ephemeral"), (3, "shm"), (4, "tmpfs"),
                              (6, f"{RUN}/sandbox/shm"))))
    assert not SOCKET.exists() and not (RUN / "left").exists()
    assert os.path.ismount(RUN / "sandbox" / "shm")
    with pytest.raises(FileNotFoundError):
        ttrpc.Client(SOCKET)
    assert agent.call("Check", service=HEALTH).code == 0, "the open connection lives on"
    assert agent.call("CreateSandbox", (5, "again")).code == ttrpc.INTERNAL


def test_an_o_path_descriptor_reaches_the_agent_after_that(agent):
    fd = os.open(SOCKET, os.O_PATH)
    agent.sandbox()
    with ttrpc.Client(f"/proc/self/fd/{fd}") as second:
        assert second.call(HEALTH, "Check").code == 0
    os.close(fd)


def test_destroy_sandbox_ends_the_agent_and_everything_in_it(agent):
    agent.sandbox()
    agent.container("p", "/pause", image="pause")
    agent.container("c", "sh", "-c", "sleep 987654")
    agent.ok("DestroySandbox")
    wait_for(lambda: not agent.program.alive())
    assert agent.program.process.returncode == 0
    assert "987654" not in running()


def test_a_killed_agent_takes_its_containers_along(agent):
    agent.sandbox()
    agent.container("c", "sleep", "876543")
    os.kill(agent.program.pid, signal.SIGKILL)
    wait_for(lambda: "876543" not in running())


def test_a_worker_nodes_run_directory_is_never_emptied(run, short_dir):
    volumes = short_dir / "shared" / "direct-volumes"
    volumes.mkdir(parents=True)
    program = run(BIN / "test-agent", "--run-dir", short_dir, "--socket", short_dir / "s")
    assert program.process.wait(10) == 1
    assert "worker node" in program.log()


# -- containers --

def test_a_containers_output_status_and_removal(agent):
    agent.sandbox()
    agent.container("c", "sh", "-c", "echo $COLOUR; echo err >&2; pwd; exit 3", cwd="/tmp")
    assert agent.output("c")[0] == b"blue\n/tmp\n"
    out, end = agent.output("c", method="ReadStderr")
    assert out == b"err\n" and end.code == 0 and end.payload == b"", "the end is OK and empty"
    assert agent.wait("c") == 3
    for _ in range(2):
        answer = agent.call("WaitProcess", (1, "c"), (2, "c"))
        assert answer.code == ttrpc.INTERNAL and "NOT_FOUND" in answer.text
    agent.ok("RemoveContainer", (1, "c"))
    assert not (RUN / "c").exists()
    answer = agent.call("RemoveContainer", (1, "c"))
    assert answer.code == ttrpc.INTERNAL and answer.text == "Invalid container id"


@pytest.mark.parametrize("method,code", [
    ("StartContainer", 13), ("RemoveContainer", 13), ("WaitProcess", 13), ("SignalProcess", 13),
    ("ReadStdout", 13), ("ReadStderr", 13), ("WriteStdin", 13), ("ExecProcess", 13),
    ("CloseStdin", 3), ("TtyWinResize", 3), ("StatsContainer", 3)])
def test_unknown_containers(agent, method, code):
    agent.sandbox()
    more = () if method in ("RemoveContainer", "StatsContainer") else ((2, "none"),)
    answer = agent.call(method, (1, "none"), *more)
    assert answer.code == code and "nvalid container id" in answer.text


def test_unknown_exec(agent):
    agent.sandbox()
    agent.container("c", "cat")
    for method, more in (("WaitProcess", ()), ("ReadStdout", ((3, 9),)), ("SignalProcess", ((3, 9),)),
                         ("WriteStdin", ((3, b"x"),))):
        answer = agent.call(method, (1, "c"), (2, "none"), *more)
        assert answer.code == 13 and "InvalidExecId" in answer.text, (method, answer)


def test_what_is_absent_fails_create_container(agent):
    agent.sandbox()
    gone = (("ipc", ""), ("uts", ""), ("mount", ""), ("network", "/run/netns/none"))
    answer = agent.create("n", "true", namespaces=gone)
    assert answer.code == 13 and "/run/netns/none" in answer.text
    answer = agent.create("m", "true", mounts=[mount("/x", "/run/nothing", "bind", "rbind")])
    assert answer.code == 13 and "/run/nothing" in answer.text
    answer = agent.create("p", "/no/such/program")
    assert answer.code == 13 and answer.text == "the file /no/such/program was not found"
    answer = agent.create("r", "true", image="x", namespaces=(("pid", "/run/nothing"),))
    assert answer.code == 13
    agent.container("n", "true")  # an id whose creation failed is free again
    assert agent.wait("n") == 0


def test_create_container_twice_and_start_twice(agent):
    agent.sandbox()
    agent.container("c", "cat")
    assert agent.create("c", "cat").code == 13
    assert agent.call("StartContainer", (1, "c")).code == 13
    agent.ok("WriteStdin", (1, "c"), (2, "c"), (3, b"alive"))
    assert parse(agent.call("ReadStdout", (1, "c"), (2, "c"), (3, 9)).payload)[1] == [b"alive"]


def test_namespaces_are_joined_and_made(agent):
    subprocess.run(["ip", "netns", "add", "podns"], check=True)
    try:
        agent.sandbox()
        inside = os.stat("/run/netns/podns").st_ino
        joined = (("ipc", ""), ("uts", ""), ("mount", ""), ("network", "/run/netns/podns"))
        show = ("for n in net ipc uts mnt pid; do stat -Lc %i /proc/self/ns/$n; done; "
                "uname -n; echo $$; cat")
        seen = []
        for cid in ("a", "b"):
            agent.container(cid, "sh", "-c", show, namespaces=joined)
            seen.append(agent.words(cid, 7))
        own = [os.stat(f"/proc/self/ns/{n}").st_ino for n in ("net", "ipc", "uts", "mnt", "pid")]
        (net, ipc, uts, mnt, pid, host, number), other = seen
        assert int(net) == inside and number == "1" and host == "web-0"
        assert not {int(net), int(ipc), int(uts), int(mnt), int(pid)} & set(own)
        assert other[:3] == [net, ipc, uts], "ipc and uts are the sandbox's, shared"
        assert other[3] != mnt and other[4] != pid
    finally:
        subprocess.run(["ip", "netns", "del", "podns"], check=True)


def test_mounts_of_the_spec(agent, short_dir):
    agent.sandbox()
    (short_dir / "file").write_text("from the source\n")
    (short_dir / "file").chmod(0o644)
    agent.container("c", "sh", "-c", "cat /made/here/file; echo no >/made/here/x; echo $?; "
                    "cat /etc/one; touch /tmp/y && ls /proc/1/comm",
                    mounts=[mount("/made/here", str(short_dir), "bind", "rbind", "ro"),
                            mount("/etc/one", str(short_dir / "file"), "bind", "bind"),
                            mount("/tmp", "tmpfs", "tmpfs", "size=64k")])
    out = agent.output("c")[0].decode().splitlines()
    assert out[0] == "from the source" and out[1] != "0" and out[2:] == ["from the source",
                                                                         "/proc/1/comm"]
    assert not (short_dir / "x").exists() and not os.path.exists("/made")


def test_the_root_is_not_this_machines(agent):
    agent.sandbox()
    agent.container("c", "sh", "-c", "echo x >/etc/peerpod-test; cat /etc/peerpod-test")
    agent.output("c")
    assert not os.path.exists("/etc/peerpod-test")


def test_user_and_groups(agent):
    agent.sandbox()
    agent.container("c", "id", uid=1234, groups=(5, 6))
    out = agent.output("c")[0].decode()
    assert "uid=1234" in out and "gid=1234" in out and "groups=1234,5(tty),6(disk)" in out


# -- processes --

def exec_fields(cid, exec_id, *args, **more):
    return (1, cid), (2, exec_id), (4, process(*args, **more))


def test_exec_with_stdin(agent):
    agent.sandbox()
    agent.container("p", "/pause", image="pause")
    agent.ok("ExecProcess", *exec_fields("p", "e", "sh", "-c", "cat; exit 5"))
    data = os.urandom(300_000)
    got = b""
    stream = agent.client.start(AGENT, "WriteStdin", message((1, "p"), (2, "e"), (3, data)))
    while len(got) < len(data):
        got += parse(agent.call("ReadStdout", (1, "p"), (2, "e"), (3, 32768)).payload)[1][0]
    assert agent.client.answer(stream).code == 0 and got == data
    agent.ok("CloseStdin", (1, "p"), (2, "e"))
    assert agent.call("WriteStdin", (1, "p"), (2, "e"), (3, b"x")).code == 13
    assert agent.wait("p", "e") == 5


def test_exec_of_nothing(agent):
    agent.sandbox()
    agent.container("p", "/pause", image="pause")
    answer = agent.call("ExecProcess", *exec_fields("p", "e", "/no/such"))
    assert answer.code == 13 and answer.text == "the file /no/such was not found"


def test_terminal(agent):
    agent.sandbox()
    agent.container("p", "/pause", image="pause")
    agent.ok("ExecProcess", *exec_fields("p", "t", "sh", terminal=True))
    agent.ok("TtyWinResize", (1, "p"), (2, "t"), (3, 33), (4, 101))
    agent.ok("WriteStdin", (1, "p"), (2, "t"), (3, b"stty size; exit 4\n"))
    out, end = agent.output("p", "t")
    assert b"33 101" in out
    assert end.code == 13 and "Input/output error" in end.text
    assert agent.wait("p", "t") == 4
    assert agent.call("TtyWinResize", (1, "p"), (2, "p"), (3, 1), (4, 1)).code == 14


def test_signals(agent):
    agent.sandbox()
    agent.container("k", "sleep", "1000")
    agent.ok("SignalProcess", (1, "k"), (2, "k"), (3, 9))
    agent.ok("SignalProcess", (1, "k"), (3, 9))
    assert agent.wait("k") == 128 + 9
    agent.container("t", "sleep", "1000")
    agent.ok("SignalProcess", (1, "t"), (2, "t"), (3, 15))
    assert agent.wait("t") == 128 + 9, "an unhandled SIGTERM becomes SIGKILL"
    agent.container("h", "sh", "-c",
                    "trap 'echo got; exit 6' TERM; echo ready; while :; do sleep .05; done")
    assert parse(agent.call("ReadStdout", (1, "h"), (2, "h"), (3, 99)).payload)[1] == [b"ready\n"]
    agent.ok("SignalProcess", (1, "h"), (2, "h"), (3, 15))
    assert agent.output("h")[0] == b"got\n"
    assert agent.wait("h") == 6


def test_all_waiters_get_the_status(agent):
    agent.sandbox()
    agent.container("c", "cat")
    streams = [agent.client.start(AGENT, "WaitProcess", message((1, "c"), (2, "c")))
               for _ in range(20)]
    time.sleep(0.2)
    agent.ok("CloseStdin", (1, "c"), (2, "c"))
    assert {agent.client.answer(s).code for s in streams} == {0}


def test_stats(agent):
    agent.sandbox()
    agent.container("c", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo; cat")
    agent.call("ReadStdout", (1, "c"), (2, "c"), (3, 9))
    cgroup = parse(agent.ok("StatsContainer", (1, "c"))[1][0])
    cpu = parse(parse(cgroup[1][0])[1][0])
    assert cpu[1][0] > 10_000_000, "nanoseconds of a loop"
    assert parse(parse(cgroup[2][0])[2][0])[1][0] > 100_000, "bytes of memory"


# -- files --

def copy(path, data=b"", size=None, offset=0, mode=0o100644):
    return ((1, str(path)), (2, len(data) if size is None else size), (3, mode), (4, 0o750),
            (7, offset), (8, data))


def test_copy_file_in_pieces(agent):
    agent.sandbox()
    target = SHARED / "c-1234-cfg" / "key"
    agent.ok("CopyFile", *copy(target.parent, mode=0o40755))
    agent.ok("CopyFile", *copy(target, b"hello ", size=11))
    assert not target.exists(), "half a file is no file"
    agent.ok("CopyFile", *copy(target, b"world", size=11, offset=6))
    assert target.read_bytes() == b"hello world" and target.stat().st_mode & 0o777 == 0o644
    agent.ok("CopyFile", *copy(target.parent / "..data", b"..2026", mode=0o120777))
    agent.ok("CopyFile", *copy(target.parent / "..data", b"..2027", mode=0o120777))
    assert os.readlink(target.parent / "..data") == "..2027"


@pytest.mark.parametrize("path", ["/etc/x", "/run/kata-containers/shared/containers",
                                  "/run/kata-containers/shared/containersX/x",
                                  "/run/kata-containers/shared/containers/../x",
                                  "/run/kata-containers/shared/containers/a//x",
                                  "/run/kata-containers/shared/containers/./x"])
def test_copy_file_is_confined(agent, path):
    agent.sandbox()
    assert agent.call("CopyFile", *copy(path, b"x")).code == 13


def test_copy_file_does_not_follow_links(agent, short_dir):
    agent.sandbox()
    agent.ok("CopyFile", *copy(SHARED / "out", str(short_dir).encode(), mode=0o120777))
    assert agent.call("CopyFile", *copy(SHARED / "out" / "x", b"x")).code == 13
    assert not (short_dir / "x").exists()


# -- the journal --

def test_the_journal_tells_every_request_once_with_its_digest(agent):
    bodies = [ttrpc.request(HEALTH, "Check", metadata=[("k", str(i) * i)]) for i in range(50)]
    for i, body in enumerate(bodies):
        agent.client.send(ttrpc.frame(2 * i + 1, body))
    for i in range(50):
        agent.client.answer(2 * i + 1)
    lines = agent.journal()
    assert [(j["sid"], j["method"], j["len"]) for j in lines] == \
        [(2 * i + 1, "Check", len(b)) for i, b in enumerate(bodies)]
    assert [j["sha256"] for j in lines] == [hashlib.sha256(b).hexdigest() for b in bodies]
    kept = [p.read_bytes() for p in sorted(agent.bodies.iterdir())]
    assert kept == bodies
