# SPDX-License-Identifier: Apache-2.0
"""Boots what a cloud's test double says is running: for every instance a local pod VM (the local provider's
VM program: namespaces, the real guest programs) that has the instance's private address and the user data
that the double gives out, and that ends with the instance.

A double only answers requests; with this its instances run. It is told nothing of the daemon, and the
daemon nothing of it: they meet in the double's state and in the network. A cloud is an object with

    running()       -> {instance id: Machine} of what is running now
    user_data(id)   -> bytes, as the double's own API tells them
    power_off(id)   the VM ended by itself
    changed         an optional threading.Event that is set when something may have changed
    kill            set here: to be called with an instance's id before its address may be another's

Instances that are no longer running are ended, in whatever order the double forgets them. Everything is
in the caller's network and pid namespace (pytest_run.py --isolated, scripts/demo): what is left when the
caller dies ends with the namespace.
"""
import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading

BIN = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin")).resolve()
HELPER = "peerpod-local-vm"
PR_SET_CHILD_SUBREAPER = 36
LINKS = ("ppl", "ppx")  # + index (providers/local/config.h)
LOOK_EVERY = 0.5


@dataclasses.dataclass
class Machine:
    name: str
    address: str  # private, IPv4
    outer: bool = False  # it has a second interface


@dataclasses.dataclass
class Vm:
    index: int
    pid: int
    directory: pathlib.Path
    killed: bool = False  # the double is about to say that it does not run


def make_node_network(address, link="vpc0"):
    """The node's own interface in the cloud's network, with the default route: what a node has and an
    empty network namespace has not. Again is fine."""
    if link in (name for _, name in socket.if_nameindex()):
        return
    for words in (["link", "add", link, "type", "veth", "peer", "name", link + "p"],
                  ["link", "set", link + "p", "up"], ["link", "set", link, "up"],
                  ["addr", "add", address, "dev", link], ["route", "add", "default", "dev", link]):
        subprocess.run(["ip", *words], check=True)


class CloudBoot:
    def __init__(self, cloud, directory, logs, guest_dir=BIN):
        self.cloud, self.logs, self.guest_dir = cloud, pathlib.Path(logs), guest_dir
        self.directory = pathlib.Path(directory)
        self.agent, self.fault, self.boot_delay_ms = "", "", 0
        self.vms = {}
        self.lock = threading.Lock()
        self.changed = getattr(cloud, "changed", None) or threading.Event()
        self.ended = False
        self.failure = None
        self.logs.mkdir(parents=True, exist_ok=True)
        # The VM's PID 1 outlives its helper: whoever starts VMs is to reap them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        cloud.kill = self.kill
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        try:
            while not self.ended:
                self.look()
                self.changed.wait(LOOK_EVERY)
                self.changed.clear()
        except Exception as failure:
            if not self.ended:
                self.failure = failure
                raise

    def look(self):
        running = self.cloud.running()
        for instance in list(self.vms):
            if instance not in running:
                self.end(instance)
            elif self.has_ended(instance) and not self.vms[instance].killed:
                self.end(instance)
                self.cloud.power_off(instance)
        for instance, machine in running.items():
            if instance not in self.vms and not self.ended:
                self.boot(instance, machine)

    def boot(self, instance, machine):
        directory = self.directory / instance
        (directory / "root").mkdir(parents=True)
        (directory / "user-data").write_bytes(self.cloud.user_data(instance))
        (directory / "lock").touch()
        index = min(set(range(1, len(self.vms) + 2)) - {vm.index for vm in self.vms.values()})
        argv = [HELPER, str(directory), str(index), hashlib.md5(instance.encode()).hexdigest(),
                machine.name or instance, str(self.guest_dir), self.agent, str(self.boot_delay_ms),
                "1" if machine.outer else "0", self.fault, machine.address]
        status, words = run_helper(argv, directory / "lock", self.logs / f"{instance}.log")
        assert status == 0, (argv, words)
        pid = int((directory / "init").read_text().split()[1])
        with self.lock:
            self.vms[instance] = Vm(index, pid, directory)

    def kill(self, instance):
        """Any thread. The watch sees the rest to its end."""
        with self.lock:
            vm = self.vms.get(instance)
            if vm:
                vm.killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(vm.pid, signal.SIGKILL)

    def has_ended(self, instance):
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.vms[instance].pid,
                             os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return True

    def end(self, instance):
        """Every process of the VM has ended when its PID 1 can be waited for."""
        with self.lock:
            vm = self.vms.pop(instance)
        with contextlib.suppress(ProcessLookupError):
            os.kill(vm.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(vm.pid, 0)
        for link in LINKS:
            subprocess.run(["ip", "link", "del", f"{link}{vm.index}"], check=False,
                           stderr=subprocess.DEVNULL)
        shutil.rmtree(vm.directory)

    def pids(self):
        """Of the VMs' PID 1."""
        with self.lock:
            return [vm.pid for vm in self.vms.values()]

    def idle(self):
        """True when what runs here is what runs there."""
        return not self.failure and self.vms.keys() == self.cloud.running().keys()

    def stop(self):
        self.ended = True
        self.changed.set()
        self.thread.join(30)
        for instance in list(self.vms):
            self.end(instance)
        if self.failure:
            raise self.failure


def run_helper(argv, lock, log):
    """With the four descriptors of providers/local/vm/proto.h; its exit status and its words."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    lock_fd = os.open(lock, os.O_RDWR)
    log_fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    own = (null, writer, log_fd, lock_fd)
    # Out of the way of the numbers that they are to have.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in own]
    try:
        pid = os.posix_spawn(BIN / HELPER, argv, {}, setsid=True, file_actions=[
            (os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(high)])
    finally:
        for fd in (*own, *high):
            os.close(fd)
    with open(reader, encoding="utf-8") as words:
        said = words.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said

