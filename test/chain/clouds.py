# SPDX-License-Identifier: Apache-2.0
"""The clouds that a Node may be in: what differs between providers for the tests of the whole chain. A
cloud outlives the node's programs, as clouds do: one for each directory, until the test ends.

PEERPOD_PROVIDER chooses; the tests hold in all of them, but for those marked `local_only`. Those marked
`every_provider` are run in all of them always, the others with EVERY_TEST=1 (`make chain-aws`)."""
import pathlib
import re
import shutil
import sys
import threading
import time

TEST = pathlib.Path(__file__).resolve().parent.parent


def seconds(duration):
    """Of "300ms", "3s"."""
    return float(duration[:-2]) / 1000 if duration.endswith("ms") else float(duration[:-1])


class Local:
    """The registry of the local provider is its cloud."""

    # How the cloud's services may be out of reach, and how many looks in vain a test waits for.
    OUTAGES = {"fails": 3}

    def __init__(self, directory):
        self.registry = directory / "cloud"
        self.vm_logs = directory / "vm-logs"
        self.more_flags = directory / "more-flags"  # a test's own program reads them

    def flags(self, flags):
        return ["-local-registry-dir", self.registry, "-vm-log-dir", self.vm_logs, *flags]

    def environment(self):
        return {}

    def found(self, pattern, what):
        while True:
            try:
                return [what(p) for p in self.registry.rglob(pattern)]
            except FileNotFoundError:  # one went while it was read
                continue

    def instances(self):
        return sorted(self.found("*.json", lambda p: str(p.relative_to(self.registry))))

    def vm_pids(self):
        return self.found("init", lambda p: int(p.read_text().split()[1]))

    def connections(self):
        """To the cloud's services, as /proc/PID/fd has them: the pool of HTTP handles keeps some."""
        return set()

    def lose_instances(self):
        """Somebody deletes them at the cloud."""
        for instance in (self.registry / "instances").iterdir():
            shutil.rmtree(instance)

    def begin_outage(self, _how):
        """For the daemons that are started from now on."""
        self.more_flags.write_text("-fail-list -fail-create before -fail-deletes 1000000")

    def asked_in_vain(self, log, _sandbox):
        """How often the daemon has looked, and how often it has tried to delete."""
        return log.count("reconciling with the provider: -fail-list"), log.count("-fail-deletes: ")

    def end_outage(self):
        """False: a daemon that runs does not see it."""
        self.more_flags.unlink()
        return False

    def stop(self):
        pass


class Aws:
    """moto behind the proxy of test/aws, whose instances run (test/cloud-boot). What the local provider
    does by options of its own is done to the requests here."""

    # A look goes on for half a minute: these are tries of one.
    OUTAGES = {"refuses": 2, "is silent": 1}

    def __init__(self, directory):
        for name in ("aws", "cloud-boot"):
            sys.path.insert(0, str(TEST / name))
        import cloud_boot
        import ec2_cloud
        import world
        self.vm_logs = directory / "vm-logs"
        self.world = world.World()
        cloud_boot.make_node_network(ec2_cloud.NODE_ADDRESS)
        self.boot = cloud_boot.CloudBoot(ec2_cloud.Ec2Cloud(self.world), directory / "vms",
                                         self.vm_logs)
        self.guest_dir = self.boot.guest_dir
        self.outage, self.over, self.held = "", threading.Event(), []
        self.be_good()
        self.world.proxy.rules.append(self.rule)

    def be_good(self):
        self.fail_deletes, self.delete_delay, self.fail_create = 0, 0.0, ""
        self.fail_list = self.fail_addresses = False
        self.boot.agent, self.boot.fault, self.boot.boot_delay_ms = "", "", 0
        self.boot.guest_dir = self.guest_dir

    def rule(self, exchange):
        import world
        if self.outage:
            self.held.append(exchange)
            self.over.wait()
        if exchange.action == "TerminateInstances":
            if self.fail_deletes > 0:
                self.fail_deletes -= 1
                return world.error("UnsupportedOperation", "-fail-deletes: told to fail")
            time.sleep(self.delete_delay)
        if exchange.action == "DescribeInstances" and self.fail_list and \
                "tag:peerpod-node" in exchange.form.values():
            return world.error("InvalidParameterValue", "-fail-list: told to fail")
        if exchange.action in ("RunInstances", "DescribeInstances") and self.fail_addresses:
            status, answer = self.world.proxy.forward(exchange)
            return status, re.sub(rb"<privateIpAddress>[^<]*</privateIpAddress>", b"", answer)
        if exchange.action == "RunInstances" and self.fail_create:
            if self.fail_create == "after":
                self.world.proxy.forward(exchange)
                return 200, b"<RunInstancesResponse>"
            return world.error("InvalidParameterValue", "told to fail")
        return None

    def flags(self, flags):
        """Takes those of the local provider's that are about its cloud."""
        own = {"-boot-delay": lambda v: setattr(self.boot, "boot_delay_ms", int(seconds(v) * 1000)),
               "-delete-delay": lambda v: setattr(self, "delete_delay", seconds(v)),
               "-fail-deletes": lambda v: setattr(self, "fail_deletes", int(v)),
               "-fail-create": lambda v: setattr(self, "fail_create", v),
               "-guest-fault": lambda v: setattr(self.boot, "fault", v),
               "-local-agent": lambda v: setattr(self.boot, "agent", v),
               "-local-guest-dir": lambda v: setattr(self.boot, "guest_dir", pathlib.Path(v).resolve())}
        switches = {"-fail-list": "fail_list", "-fail-addresses": "fail_addresses"}
        left, words = [], iter(flags)
        self.be_good()
        for word in words:
            if word in own:
                own[word](next(words))
            elif word in switches:
                setattr(self, switches[word], True)
            else:
                left.append(word)
        return left

    def environment(self):
        return self.world.environment(AWS_SETTLE_TIME="3s")  # calls take long on a busy machine

    def instances(self):
        return sorted(i["InstanceId"] for i in self.world.instances())

    def vm_pids(self):
        return self.boot.pids()

    def connections(self):
        ports = {f":{p:04X}" for p in (self.world.proxy.port, self.world.imds.port)}
        lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
        inodes = [line.split()[9] for line in lines if line.split()[2][-5:] in ports]
        # Every handle of libcurl has a pair without a name as well.
        unix = [line.split() for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]]
        inodes += [words[6] for words in unix if len(words) == 7]
        return {f"socket:[{inode}]" for inode in inodes}

    def lose_instances(self):
        self.world.ec2.terminate_instances(InstanceIds=self.instances())

    def begin_outage(self, how):
        """Of EC2 alone: the metadata service is the node's own."""
        self.outage, self.held = how, []
        self.over.clear()
        if how == "refuses":
            self.world.proxy.refuse()

    def asked_in_vain(self, log, sandbox):
        if self.outage == "refuses":  # said of every try that is followed by a second or more
            asked = [line for line in log.splitlines() if "Connection refused" in line and
                     f" port {self.world.proxy.port} " in line]
            deletions = sum(f"sandbox={sandbox}" in line for line in asked)
        else:
            asked = list(self.held)
            deletions = sum(sandbox in e.form.values() for e in asked)
        return len(asked) - deletions, deletions

    def end_outage(self):
        if self.outage == "refuses":
            self.world.proxy.listen()
        self.outage = ""
        self.over.set()
        return True

    def stop(self):
        """Where no instance is left, nothing of one is: volumes, interfaces, addresses."""
        try:
            self.boot.stop()
            if not self.instances():
                self.world.nothing_left()
        finally:
            self.world.stop()


CLOUDS = {"local": Local, "aws": Aws}
running = {}


def of(provider, directory):
    key = provider, pathlib.Path(directory)
    if key not in running:
        running[key] = CLOUDS[provider](pathlib.Path(directory))
    return running[key]


def stop_of(directory):
    for key in [k for k in running if k[1] == pathlib.Path(directory)]:
        running.pop(key).stop()
