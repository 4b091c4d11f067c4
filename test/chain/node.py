# SPDX-License-Identifier: Apache-2.0
"""A worker node in a test's own namespaces (pytest_run.py --isolated): the real daemon under the real keeper on
the `local` provider, or another (clouds.py), spoken to as a shim does."""
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections import Counter

import clouds
import ttrpc
from conftest import BIN, Program, wait_for
from ttrpc import Client, message

HYPERVISOR, AGENT, HEALTH = "hypervisor.Hypervisor", "grpc.AgentService", "grpc.Health"
KATA = "io.katacontainers.config.hypervisor."
SANDBOX = "317c7ae225b8b5a7d6ee12d79dd3eb3e23e89b7fca54bef52b5b917a74603d4c"


def annotations(pod="web-0", namespace="ns1", **more):
    """The nine that a shim sends; more: key=value with dots as __, None leaves one out."""
    all_nine = {
        "io.kubernetes.cri.sandbox-name": pod,
        "io.kubernetes.cri.sandbox-namespace": namespace,
        KATA + "machine_type": "", KATA + "image": "", KATA + "default_vcpus": "1",
        KATA + "default_memory": "256", KATA + "default_gpus": "0",
        KATA + "default_gpu_model": "", KATA + "cc_init_data": "",
    }
    for key, value in more.items():
        all_nine[KATA + key] = value
    return {k: v for k, v in all_nine.items() if v is not None}


def pod_netns(sandbox):
    name = "pod-" + hashlib.sha256(sandbox.encode()).hexdigest()[:12]
    return make_netns(f"/run/netns/{name}")


def make_netns(path):
    """The pod's network namespace, as a CNI plugin leaves it: eth0 with an address and the default
    route. The gateway is in there too, so that no link is added to the node's namespace."""
    if os.path.exists(path):
        return path
    name = os.path.basename(path)
    lines = ("link set lo up", "link add eth0 type veth peer name gateway",
             "addr add 10.88.1.1/24 dev gateway", "link set gateway up",
             "addr add 10.88.1.7/24 dev eth0", "link set eth0 up",
             "route add default via 10.88.1.1 dev eth0")
    subprocess.run(["ip", "netns", "add", name], check=True)
    for line in lines:
        subprocess.run(["ip", "-n", name, *line.split()], check=True)
    return path


def create_request(sandbox=SANDBOX, netns=None, notes=None):
    netns = pod_netns(sandbox) if netns is None else netns
    notes = annotations() if notes is None else notes
    return message((1, sandbox)) + b"".join(
        ttrpc.field(2, ttrpc.field(1, k) + ttrpc.field(2, v)) for k, v in notes.items()
    ) + message((3, netns))


def agent_command(directory, script, *arguments, files=()):
    """Puts a Python agent where the VM can see it (beside it: ttrpc.py and files) and returns the
    value of -local-agent."""
    place = pathlib.Path(directory) / "agent"
    place.mkdir()
    here = pathlib.Path(__file__).resolve().parent
    for file in (here / script, here / "ttrpc.py", *files):
        shutil.copy(file, place)
    (place / script).chmod(0o755)
    return " ".join(str(a) for a in (place / script, *arguments))


GUEST_PROGRAMS = ("agent-protocol-forwarder", "peerpod-keeper", "process-user-data", "test-agent",
                  "peerpod-local-vm")


def wrapped_guest(directory, program, script):
    """A folder for -local-guest-dir in which a shell script stands for one program; the program
    itself is "$0.real" there."""
    guest = pathlib.Path(directory) / "guest"
    guest.mkdir()
    for name in GUEST_PROGRAMS:
        source = BIN / name
        if source.exists():
            shutil.copy(source, guest / name)
    (guest / program).rename(guest / f"{program}.real")
    (guest / program).write_text("#!/bin/sh\n" + script)
    (guest / program).chmod(0o755)
    return guest


class Node:
    # PEERPOD_COMPAT: the tests that hold in both modes are run in both.
    compat = os.environ.get("PEERPOD_COMPAT", "native")
    provider = os.environ.get("PEERPOD_PROVIDER", "local")

    keeper_flags = ()

    def __init__(self, directory, *flags, keeper=True, env=None, adaptor=None):
        self.dir = pathlib.Path(directory)
        self.adaptor = pathlib.Path(adaptor or BIN / "cloud-api-adaptor").absolute()
        self.flags, self.keeper, self.env = flags, keeper, env or {}
        self.socket = self.dir / "hypervisor.sock"
        self.control = self.dir / "control.sock"
        self.pods = self.dir / "pods"
        self.cloud = clouds.of(self.provider, self.dir)
        self.own_flags = self.cloud.flags(flags)
        self.vm_logs = self.cloud.vm_logs
        self.starts = 0
        self.program = None

    def argv(self):
        daemon = [self.adaptor, self.provider, "-socket", self.socket, "-pods-dir", self.pods,
                  "-control-socket", self.control,
                  "-forwarder-compat", self.compat, "-node-name", "worker", "-log-level", "debug",
                  *self.own_flags]
        keeper = self.adaptor.resolve().with_name("peerpod-keeper")
        return ([keeper, *self.keeper_flags, "--"] if self.keeper else []) + daemon

    def start(self, wait=True):
        self.starts += 1
        env = {**os.environ, "PEERPOD_CONFIG_DIR": str(self.dir / "etc"),
               **self.cloud.environment(), **self.env}
        self.program = Program(self.argv(), self.dir / f"node.log.{self.starts}", env=env)
        if wait:
            wait_for(lambda: self.serves() or not self.program.alive())
            assert self.program.alive(), self.log()
        return self

    def serves(self):
        with contextlib.suppress(OSError, ttrpc.Closed), Client(self.socket, timeout=5) as c:
            return c.call(HYPERVISOR, "Version").code == ttrpc.OK

    def stop(self):
        if self.program:
            self.program.stop()
        for log in [*self.dir.glob("node.log.*"), *self.vm_logs.glob("**/*")]:
            if log.is_file():
                check_sanitizers(log)

    def log(self):
        return self.program.log()

    def vm_log(self):
        return "".join(p.read_text(errors="replace") for p in self.vm_logs.glob("**/*")
                       if p.is_file())

    def daemon_pid(self):
        """The daemon behind the keeper, which also adopts what the daemon leaves behind."""
        if not self.keeper:
            return self.program.pid
        children = pathlib.Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children")
        return next((int(pid) for pid in children.read_text().split() if comm(pid) == "cloud-api-adapt"),
                    0)

    # -- the hypervisor service: a connection for each call, as the Go shim does it --

    def call(self, method, payload, timeout=30, **more):
        with Client(self.socket, timeout=timeout) as client:
            return client.call(HYPERVISOR, method, payload, **more)

    def create(self, sandbox=SANDBOX, **more):
        return self.call("CreateVM", create_request(sandbox, **more))

    def start_vm(self, sandbox=SANDBOX, **more):
        return self.call("StartVM", message((1, sandbox)), **more)

    def stop_vm(self, sandbox=SANDBOX, **more):
        return self.call("StopVM", message((1, sandbox)), **more)

    def run_pod(self, sandbox=SANDBOX, **more):
        """CreateVM and StartVM; the path of the agent's socket."""
        created = self.create(sandbox, **more)
        assert created.code == ttrpc.OK, created
        started = self.start_vm(sandbox)
        assert started.code == ttrpc.OK, started
        return ttrpc.text(ttrpc.parse(created.payload), 1)

    # -- the world --

    def instances(self):
        """What the cloud has."""
        return self.cloud.instances()

    def sandboxes(self):
        return sorted(p.name for p in self.pods.iterdir() if not p.name.startswith("."))

    def record(self, sandbox=SANDBOX):
        return json.loads((self.pods / sandbox / "sandbox.json").read_text())

    def record_socket(self, sandbox=SANDBOX):
        return self.pods / sandbox / "agent.ttrpc"

    def gone(self, sandbox=SANDBOX):
        return not (self.pods / sandbox).exists() and not self.instances()

    def wait_gone(self, sandbox=SANDBOX, seconds=15):
        wait_for(lambda: self.gone(sandbox), seconds)

    def world(self):
        """What must be the same after an operation has been undone, when nothing moves."""
        last, now = None, self.look()
        while last != now:
            time.sleep(0.03)
            last, now = now, self.look()
        return now

    def look(self):
        pid = self.daemon_pid()
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
        # Names only: an interface's number grows for ever.
        names = sorted(line.split(": ")[1] for line in links.stdout.splitlines())
        ours = self.cloud.connections()
        targets = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")
                    if os.path.lexists(f"/proc/{pid}/fd/{n}")]
        fds = sorted(link.split(":")[0] for link in targets if link not in ours)
        processes = sorted(p.name for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()
                           and not is_own(p))
        return {"links": names, "fds": fds, "processes": processes,
                "threads": len(os.listdir(f"/proc/{pid}/task")),
                "sandboxes": self.sandboxes(), "instances": self.instances()}


def check_sanitizers(log):
    """A sanitizer's report is a failure, whatever the test saw."""
    text = log.read_text(errors="replace")
    for word in ("Sanitizer", "runtime error:"):
        assert word not in text, text[max(0, text.index(word) - 200):][:4000]


def comm(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_own(proc):
    """The test's own processes come and go."""
    return comm(proc.name) in ("", "ip", "python3", "python", "pytest")


def left_over(before, after):
    """What is there now and was not there before."""
    # Thread sanitizer has a thread of its own from the first other one on.
    own = 1 if "tsan" in str(BIN) else 0
    counts = {"threads": max(0, after["threads"] - before["threads"] - own)}
    for key in before.keys() - counts.keys():
        counts[key] = sorted((Counter(after[key]) - Counter(before[key])).elements())
    return {key: value for key, value in counts.items() if value}


def check_world(node, before, seconds=10):
    """The world becomes what it was. Less than before is right too: `before` may have seen the end of
    a connection or a thread."""
    end = time.monotonic() + seconds
    while left_over(before, node.world()) and time.monotonic() < end:
        time.sleep(0.05)
    left = left_over(before, node.world())
    assert not left, left
