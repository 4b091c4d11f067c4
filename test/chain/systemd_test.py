# SPDX-License-Identifier: Apache-2.0
"""systemd in the keeper's place, with a descriptor store of its own: as PID 1 of a container with the daemon
as its service (deploy/systemd), and as PID 1 of the pod VM with the forwarder (podvm). Either is killed again
and again, and a pod's calls go on.

The container has its own mount, pid and cgroup namespaces, a /tmp of its own, and this test's /run. The units
are the repository's; a drop-in says where this build's programs are and leaves out what a whole system would
start besides."""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
import ttrpc
from callers import Caller
from conftest import BIN, Program, wait_for
from node import SANDBOX, Node, agent_command, comm, pod_netns, wrapped_guest
from ttrpc import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEMD = pathlib.Path("/lib/systemd/systemd")
UNITS = pathlib.Path("/run/systemd/system")
SERVICE, FORWARDER = "cloud-api-adaptor.service", "agent-protocol-forwarder.service"
KILLS = 8

# A cgroup of its own first: it is the root of the new namespace, and systemd stays below it.
CONTAINER = """
mkdir "$1"
echo 0 > "$1/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child --mount-proc sh -ec '
    mount -t tmpfs tmpfs /tmp
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec "$@"' sh "$2" --system --unit="$3" --log-target=console --show-status=false
"""

# In the VM, in the place of peerpod-keeper, as its PID 1.
VM = """
set -e
here=$(dirname "$0")
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/vm
echo 0 > /sys/fs/cgroup/vm/cgroup.procs
umount /sys/fs/cgroup
mkdir -p /run/systemd
cp -r "$here/units" /run/systemd/system
exec unshare --cgroup sh -ec '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec "$@"' sh """ + f"{SYSTEMD} --system --unit={FORWARDER} --log-target=console --show-status=false\n"


def cgroup2():
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return pathlib.Path(line.split()[4])
    return None


def why_not():
    if not SYSTEMD.exists():
        return "no systemd (apt: systemd)"
    return None if cgroup2() else "no cgroup2 is mounted"


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def remove_cgroup(path):
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):  # not empty: another run's
            os.rmdir(folder)


def put_unit(directory, unit, dropin):
    """The repository's unit, and below it what is different here."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(unit, directory)
    more = directory / f"{unit.name}.d"
    more.mkdir()
    more.joinpath("here.conf").write_text("[Unit]\nDefaultDependencies=no\n[Service]\n" + dropin)


def properties(systemd, service, *names):
    shown = subprocess.run(["nsenter", "-t", str(systemd), "-m", "-p", "systemctl", "show", service,
                            *(f"-p{n}" for n in names)], check=True, stdout=subprocess.PIPE,
                           text=True).stdout
    return [dict(line.split("=", 1) for line in shown.splitlines())[n] for n in names]


class SystemdNode(Node):
    """The daemon is a service of systemd, which is PID 1 of a container."""

    def __init__(self, directory, *flags):
        super().__init__(directory, *flags, keeper=False)
        self.cgroup = cgroup2() / f"peerpod-systemd-test-{os.getpid()}-{time.time_ns()}"

    def start(self, wait=True):
        for stale in self.cgroup.parent.glob("peerpod-systemd-test-*"):
            remove_cgroup(stale)
        log = self.dir / "daemon.log"
        words = " ".join(f'"{w}"' for w in self.argv()[2:])
        put_unit(UNITS, ROOT / "deploy/systemd" / SERVICE,
                 "EnvironmentFile=\n"
                 f"Environment=PATH={BIN.resolve()}:{os.environ['PATH']}\n"
                 f"ExecStart=\nExecStart={ROOT}/deploy/entrypoint.sh {self.provider} {words}\n"
                 f"StandardOutput=append:{log}\nStandardError=append:{log}\n")
        # It would bring up a network that is there.
        UNITS.joinpath("network-online.target").write_text("[Unit]\nDefaultDependencies=no\n")
        self.program = Program(["sh", "-ec", CONTAINER, "sh", self.cgroup, SYSTEMD, SERVICE],
                               self.dir / "node.log.1", env={**os.environ, "container": "peerpod"})
        if wait:
            wait_for(self.serves, 30)
        return self

    def stop(self):
        if self.program:
            self.program.process.kill()  # systemd does not end when asked to
        super().stop()
        wait_for(lambda: not self.left(), 10)

    def left(self):
        remove_cgroup(self.cgroup)
        return self.cgroup.exists()

    def log(self):
        log = self.dir / "daemon.log"
        return self.program.log() + (log.read_text(errors="replace") if log.exists() else "")

    def daemon_pid(self):
        return next(iter(pids_of("cloud-api-adapt")), 0)


def pids_of(name):
    return sorted(int(p.name) for p in pathlib.Path("/proc").iterdir()
                  if p.name.isdigit() and comm(p.name) == name)


def parent_of(pid):
    return int(re.search(r"PPid:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1))


@pytest.fixture
def node():
    directory = pathlib.Path("/run/node")  # not in /tmp: the container has its own
    directory.mkdir()
    guest = wrapped_guest(directory, "peerpod-keeper", VM)
    put_unit(guest / "units", ROOT / "podvm" / FORWARDER,
             f"ExecStart=\nExecStart={guest}/agent-protocol-forwarder\n"
             "StandardError=file:/run/forwarder.log\n")
    node = SystemdNode(directory, "-local-guest-dir", guest, "-local-agent",
                       agent_command(directory, "agent_stub.py", directory / "agent-says"))
    yield node
    node.stop()
    print(node.log(), node.vm_log())
    shutil.rmtree(directory, ignore_errors=True)


def kill_again_and_again(find, name, callers):
    for _ in range(KILLS):
        old = find()
        assert old, f"no {name}"
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: find() not in (0, old), 20)
        for caller in callers:
            caller.goes_on()


def test_killed_again_and_again(node):
    pod_netns(SANDBOX)  # a mount, which the container has only when it was there before
    node.start()
    systemd = parent_of(node.daemon_pid())
    assert comm(systemd) == "systemd" and not pids_of("peerpod-keeper")
    path = node.run_pod()
    vm_pid_one = parent_of(pids_of("agent-protocol-")[0])
    assert comm(vm_pid_one) == "systemd" and vm_pid_one != systemd
    callers = [Caller(path) for _ in range(3)]
    with Client(path, timeout=60) as agent:
        held = [agent.start("any", "Hold", b"%d" % i) for i in range(199)]
        for caller in callers:
            caller.goes_on()
        kill_again_and_again(node.daemon_pid, "daemon", callers)
        restarts, stored = map(int, properties(systemd, SERVICE, "NRestarts", "NFileDescriptorStore"))
        assert restarts == KILLS and stored >= 5
        kill_again_and_again(lambda: next(iter(pids_of("agent-protocol-")), 0), "forwarder", callers)
        # The agent's socket, the listener, and a socket for each of the four connections, to no limit.
        assert properties(vm_pid_one, FORWARDER, "NRestarts", "NFileDescriptorStore", "RestartUSec",
                          "StartLimitIntervalUSec", "Restart") == [str(KILLS), "6", "100ms", "0", "always"]
        # A restart that is asked for, as an upgrade does, and a SIGTERM of somebody's.
        for words in (["systemctl", "restart", SERVICE], ["systemctl", "kill", "--kill-who=main", SERVICE]):
            old = node.daemon_pid()
            subprocess.run(["nsenter", "-t", str(systemd), "-m", "-p", *words], check=True)
            wait_for(lambda last=old: node.daemon_pid() not in (0, last), 20)
            for caller in callers:
                caller.goes_on()
        # Both at once.
        for name in ("cloud-api-adapt", "agent-protocol-"):
            os.kill(pids_of(name)[0], signal.SIGKILL)
        for caller in callers:
            caller.goes_on()
        held.append(agent.start("any", "Hold", b"199"))
        for i, stream in enumerate(held):
            answer = agent.answer(stream)
            assert answer.code == ttrpc.OK and answer.payload == b"%d" % i
    for caller in callers:
        caller.stop()
    print(f"{2 * KILLS + 2} kills, {sum(c.calls for c in callers)} calls, longest "
          f"{max(c.longest for c in callers):.2f} s")
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    # The VM's descriptors are gone from the store with it.
    wait_for(lambda: int(properties(systemd, SERVICE, "NFileDescriptorStore")[0]) < stored, 10)
