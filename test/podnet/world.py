# SPDX-License-Identifier: Apache-2.0
"""A worker, a pod's namespace as a CNI plugin leaves it, a neighbour pod and a pod VM, each a network
namespace of this test's own (pytest_run.py --isolated)."""
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

from peer import sh

HERE = pathlib.Path(__file__).resolve().parent
TOOL = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin")) / "podnet_tool"
NODE, POD, NEIGHBOUR, VM, PODNS = "node", "pod", "neighbour", "vm", "podns"
ALL = (NODE, POD, NEIGHBOUR, VM, PODNS)
# What the VM's second interface leads to: addresses of the VM, of the router, of a server behind it.
OUTSIDE = "outside"
OUT_VM, OUT_ROUTER, OUT_SERVER = "203.0.113.7", "203.0.113.1", "198.51.100.9"
OUT_VM6, OUT_ROUTER6, OUT_SERVER6 = "2001:db8:113::7", "2001:db8:113::1", "2001:db8:51::9"
METADATA, METADATA6 = "169.254.169.254", "fd00:ec2::254"


def path(ns):
    return f"/run/netns/{ns}"


class Style:
    """What the pod gets; addresses of pod and neighbour for each family."""
    name, pod, neighbour, mtu = "", (), (), 1500

    def make(self):
        """The pod's eth0, and the way to it from the neighbour."""

    def __str__(self):
        return self.name


def bridge(mtu, *addresses):
    """flannel: a bridge on the node with the gateway's addresses; eth0 and default routes."""
    sh(f"ip -n {NODE} link add cni0 mtu {mtu} type bridge")
    for ns, outer in ((POD, "veth1"), (NEIGHBOUR, "veth2")):
        sh(f"ip -n {NODE} link add {outer} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {ns}")
        sh(f"ip -n {NODE} link set {outer} master cni0 up")
        sh(f"ip -n {ns} link set eth0 up")
    sh(f"ip -n {NODE} link set cni0 up")
    for pod, neighbour, gateway, bits in addresses:
        sh(f"ip -n {NODE} addr add {gateway}/{bits} dev cni0 nodad")
        for ns, a in ((POD, pod), (NEIGHBOUR, neighbour)):
            sh(f"ip -n {ns} addr add {a}/{bits} dev eth0 nodad")
            sh(f"ip -n {ns} route add default via {gateway} dev eth0")


class Flannel(Style):
    name, pod, neighbour = "flannel", ("10.244.1.7",), ("10.244.1.9",)

    def make(self):
        bridge(self.mtu, ("10.244.1.7", "10.244.1.9", "10.244.1.1", 24))
        sh(f"ip -n {POD} route add 10.244.0.0/16 via 10.244.1.1 dev eth0")


class DualStack(Style):
    name = "dual"
    pod, neighbour = ("10.244.1.7", "fd00:244:1::7"), ("10.244.1.9", "fd00:244:1::9")

    def make(self):
        bridge(self.mtu, ("10.244.1.7", "10.244.1.9", "10.244.1.1", 24),
               ("fd00:244:1::7", "fd00:244:1::9", "fd00:244:1::1", 64))


class Six(Style):
    name, pod, neighbour = "ipv6", ("fd00:244:1::7",), ("fd00:244:1::9",)

    def make(self):
        bridge(self.mtu, ("fd00:244:1::7", "fd00:244:1::9", "fd00:244:1::1", 64))


def host_mac(link):
    return json.loads(sh(f"ip -n {NODE} -j link show {link}"))[0]["address"]


class Calico(Style):
    """/32, a link-local gateway that the node answers for, as a permanent neighbour here."""
    name, pod, neighbour = "calico", ("10.1.7.7",), ("10.1.7.9",)

    def make(self):
        for ns, outer, a in ((POD, "cali1", self.pod[0]), (NEIGHBOUR, "cali2", self.neighbour[0])):
            sh(f"ip -n {NODE} link add {outer} type veth peer name eth0 netns {ns}")
            sh(f"ip -n {NODE} link set {outer} up")
            sh(f"ip -n {ns} link set eth0 up")
            sh(f"ip -n {ns} addr add {a}/32 dev eth0")
            sh(f"ip -n {ns} route add 169.254.1.1 dev eth0 scope link")
            sh(f"ip -n {ns} route add default via 169.254.1.1 dev eth0")
            sh(f"ip -n {ns} neigh add 169.254.1.1 lladdr {host_mac(outer)} dev eth0 nud permanent")
            sh(f"ip -n {NODE} route add {a} dev {outer}")


class PointToPoint(Style):
    """The ptp plugin: the subnet is behind the gateway, which is on the link."""
    name, pod, neighbour = "ptp", ("10.22.0.7",), ("10.22.0.9",)

    def make(self):
        for ns, outer, a in ((POD, "ptp1", self.pod[0]), (NEIGHBOUR, "ptp2", self.neighbour[0])):
            sh(f"ip -n {NODE} link add {outer} type veth peer name eth0 netns {ns}")
            sh(f"ip -n {NODE} addr add 10.22.0.1/32 dev {outer}")
            sh(f"ip -n {NODE} link set {outer} up")
            sh(f"ip -n {ns} link set eth0 up")
            sh(f"ip -n {ns} addr add {a}/24 dev eth0")
            sh(f"ip -n {ns} route del 10.22.0.0/24 dev eth0")
            sh(f"ip -n {ns} route add 10.22.0.1 dev eth0 src {a}")
            sh(f"ip -n {ns} route add 10.22.0.0/24 via 10.22.0.1 dev eth0 src {a}")
            sh(f"ip -n {ns} route add default via 10.22.0.1 dev eth0")
            sh(f"ip -n {NODE} route add {a} dev {outer}")


STYLES = (Flannel(), Calico(), PointToPoint(), DualStack(), Six())


class World:
    def __init__(self, style, underlay=4, mtu=1500):
        self.style, self.mtu = style, mtu
        self.node_address, self.vm_address, bits = \
            ("192.168.122.63", "192.168.122.64", 24) if underlay == 4 \
            else ("2001:db8:122::63", "2001:db8:122::64", 64)
        for ns in ALL:
            sh(f"ip netns add {ns}")
            sh(f"ip -n {ns} link set lo up")
        sh(f"ip -n {NODE} link add ens3 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {VM}")
        for ns, link, a in ((NODE, "ens3", self.node_address), (VM, "eth0", self.vm_address)):
            sh(f"ip -n {ns} addr add {a}/{bits} dev {link} nodad")
            sh(f"ip -n {ns} link set {link} up")
        sh(f"ip -n {NODE} route add default via {self.vm_address} dev ens3")
        sh(f"ip -n {VM} route add default via {self.node_address} dev eth0")
        for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.run(NODE, "sysctl", "-qw", f"net.{key}=1")
        style.make()
        self.namespaces = ALL
        self.processes = []

    def add_outside(self, addresses=True, routes=True):
        """The VM's second interface eth1, and who is behind it: a server, the metadata service."""
        self.namespaces = (*ALL, OUTSIDE)
        sh(f"ip netns add {OUTSIDE}")
        sh(f"ip -n {OUTSIDE} link set lo up")
        sh(f"ip -n {VM} link add eth1 type veth peer name r1 netns {OUTSIDE}")
        for a in (f"{OUT_SERVER}/32", f"{METADATA}/32", f"{OUT_SERVER6}/128", f"{METADATA6}/128"):
            sh(f"ip -n {OUTSIDE} addr add {a} dev lo")
        for a in (f"{OUT_ROUTER}/24", f"{OUT_ROUTER6}/64"):
            sh(f"ip -n {OUTSIDE} addr add {a} dev r1 nodad")
        sh(f"ip -n {OUTSIDE} link set r1 up")
        sh(f"ip -n {VM} link set eth1 up")
        for a in (f"{OUT_VM}/24", f"{OUT_VM6}/64") if addresses else ():
            sh(f"ip -n {VM} addr add {a} dev eth1 nodad")
        for router in (OUT_ROUTER, OUT_ROUTER6) if routes else ():
            sh(f"ip -n {VM} route add default via {router} dev eth1 metric 200 proto dhcp")

    def close(self):
        self.end_processes()
        for ns in self.namespaces:
            sh(f"ip netns del {ns}", check=False)

    # -- programs --

    def run(self, ns, *argv, stdin=None, check=True):
        done = subprocess.run(["nsenter", "--net=" + path(ns), *map(str, argv)], input=stdin,
                              capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def tool(self, ns, verb, netns, *more, apf=None, check=True):
        return self.run(ns, TOOL, verb, path(netns), *more, check=check,
                        stdin=json.dumps(apf) if apf is not None else None)

    def inspect(self, *more):
        return json.loads(self.tool(NODE, "inspect", POD, *more).stdout)

    # -- traffic --

    def serve(self, ns, address, port, n):
        p = subprocess.Popen(["nsenter", "--net=" + path(ns), sys.executable, HERE / "traffic.py",
                              "serve", address, str(port), str(n)], stdout=subprocess.PIPE,
                             text=True)
        self.processes.append(p)
        assert p.stdout.readline() == "ready\n"

    def fetch(self, ns, address, port, n):
        return self.run(ns, sys.executable, HERE / "traffic.py", "fetch", address, port, n).stdout

    def check_traffic(self, n=200000):
        """Both directions, each family: the VM's podns is the pod to its neighbour, and reaches
        it under the pod's address."""
        for i, (pod, other) in enumerate(zip(self.style.pod, self.style.neighbour)):
            self.serve(PODNS, pod, 8000 + i, n)
            self.serve(NEIGHBOUR, other, 9000 + i, n)
            self.fetch(NEIGHBOUR, pod, 8000 + i, n)
            assert self.fetch(PODNS, other, 9000 + i, n).strip() == pod
        self.end_processes()

    def end_processes(self):
        for p in self.processes:
            p.kill()
            p.wait()
        self.processes.clear()

    def fragments(self):
        return sum(counters(self.run(ns, "cat", "/proc/net/snmp").stdout,
                            self.run(ns, "cat", "/proc/net/snmp6").stdout) for ns in (NODE, VM))

    # -- what is there --

    def look(self):
        return {ns: picture(ns) for ns in self.namespaces}


def counters(snmp, snmp6):
    heads, values = [line.split() for line in snmp.splitlines() if line.startswith("Ip:")]
    four = dict(zip(heads[1:], values[1:]))
    six = dict(line.split() for line in snmp6.splitlines())
    return int(four["FragCreates"]) + int(six["Ip6FragCreates"])


LINK_KEYS = ("ifname", "mtu", "operstate", "address", "link_type")
VXLAN_KEYS = ("id", "remote", "remote6", "port", "learning", "udp_csum")


def link_picture(link):
    info = link.get("linkinfo", {})
    picked = {k: link.get(k) for k in LINK_KEYS}
    picked["up"] = "UP" in link["flags"]
    picked["kind"] = info.get("info_kind")
    if picked["kind"] == "vxlan":
        picked.update({k: info["info_data"].get(k) for k in VXLAN_KEYS})
    return picked


def without(entry, *keys):
    """Ages, flags of our own making, and what the kernel numbers anew each time."""
    return {k: v for k, v in entry.items() if k not in keys}


def js(line):
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(sh(line) or "[]")
    return []


def picture(ns):
    links = js(f"ip -n {ns} -d -j link")
    result = {"links": sorted((link_picture(x) for x in links), key=lambda x: x["ifname"])}
    result["addresses"] = sorted(
        f"{x['ifname']} {a['local']}/{a['prefixlen']} {a['scope']}"
        for x in js(f"ip -n {ns} -j addr") for a in x["addr_info"] if a["scope"] == "global")
    result["routes"] = sorted(
        json.dumps(without(r, "flags", "metric", "pref"), sort_keys=True)
        for family in (4, 6) for r in js(f"ip -{family} -n {ns} -j route")
        if not r["dst"].startswith("fe80"))
    result["neighbours"] = sorted(f"{n['dst']} {n['lladdr']} {n['dev']}"
                                  for n in js(f"ip -n {ns} -j neigh show nud permanent"))
    result["filters"] = sorted(
        line for x in links for line in filters(ns, x["ifname"]))
    return result


def filters(ns, dev):
    """Their lines less the counters; empty without an ingress qdisc."""
    text = sh(f"tc -n {ns} filter show dev {dev} parent ffff:", check=False)
    keep = ("match", "action", "filter")
    # The priority is the kernel's choice where nobody names one.
    text = re.sub(r"pref \d+", "", text)
    return [f"{dev}: {' '.join(line.split())}" for line in text.splitlines()
            if any(word in line for word in keep) and "index" not in line]
