# SPDX-License-Identifier: Apache-2.0
"""The pod's network between a worker and a pod VM. Ours against an iproute2 script that repeats what the Go
programs do (peer.py), on either side, and against ours."""
import concurrent.futures
import copy
import errno
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import peer
from peer import sh
from world import (METADATA, METADATA6, NODE, OUT_ROUTER, OUT_SERVER, OUT_SERVER6, OUT_VM, OUT_VM6,
                   OUTSIDE, POD, PODNS, STYLES, TOOL, VM, Calico, DualStack, Flannel, World)

VNI = 555003
WORDS = ("index=3", f"vni={VNI}")
# The script against itself shows that the test is right, once is enough; and 500 pods are too many for a
# sanitizer.
SHORT = os.environ.get("PODNET_SHORT") == "1"
SIDES = [pytest.param(worker, vm, id=f"worker-{'ours' if worker else 'script'}-"
                                     f"vm-{'ours' if vm else 'script'}")
         for worker in (True, False) for vm in (True, False) if worker or vm or not SHORT]


@pytest.fixture
def make():
    worlds = []

    def build(style, **more):
        worlds.append(World(style, **more))
        return worlds[-1]

    yield build
    for w in worlds:
        w.close()


def rules(w, ns):
    return w.run(ns, "nft", "list", "ruleset").stdout


def worker_up(w, apf, ours):
    if ours:
        w.tool(NODE, "setup", POD, w.vm_address, apf=apf)
    else:
        peer.worker_setup(NODE, POD, apf["pod-network"], w.vm_address)


def vm_up(w, apf, ours):
    if ours:
        w.tool(VM, "guest-setup", PODNS, apf=apf)
    else:
        peer.vm_setup(VM, PODNS, apf["pod-network"])


def down(w, apf, worker_ours=True, vm_ours=True):
    net = apf["pod-network"]
    if worker_ours:
        w.tool(NODE, "teardown", POD, net["interface"], net["vxlan-id"])
    else:
        peer.worker_teardown(POD, net)
    if vm_ours:
        w.tool(VM, "guest-teardown", PODNS, apf=apf)
    else:
        peer.vm_teardown(PODNS, net)


@pytest.mark.parametrize("worker_ours, vm_ours", SIDES)
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_traffic(make, style, worker_ours, vm_ours):
    w = make(style)
    before = w.look()
    apf = w.inspect(*WORDS)
    worker_up(w, apf, worker_ours)
    vm_up(w, apf, vm_ours)
    w.check_traffic()
    assert w.fragments() == 0
    down(w, apf, worker_ours, vm_ours)
    after = w.look()
    after[PODNS]["links"], before[PODNS]["links"] = [], []  # lo is up now
    assert after == before


@pytest.mark.parametrize("style", [s for s in STYLES if len(s.pod) == 1 and "." in s.pod[0]], ids=str)
def test_the_same_as_theirs(make, style):
    """Links, addresses, filters, routes and neighbours of an IPv4 pod, as iproute2 shows them."""
    w = make(style)
    apf = w.inspect(*WORDS)
    worker_up(w, apf, False)
    vm_up(w, apf, False)
    theirs = w.look()
    down(w, apf, False, False)
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    ours = w.look()
    for part in (theirs, ours):  # the kernel's choice
        for link in part[POD]["links"]:
            link["address"] = link["address"] if link["ifname"] != "vxlan1" else None
    for ns, parts in theirs.items():
        for part, value in parts.items():
            assert ours[ns][part] == value, f"{part} of {ns}"


def test_what_is_told(make):
    w = make(Calico())
    net = w.inspect(*WORDS, "v4only")["pod-network"]
    mac = sh(f"ip -n {POD} -br link show eth0").split()[2]
    assert net == {
        "podip": "10.1.7.7/32", "pod-hw-addr": mac, "interface": "eth0",
        "worker-node-ip": "192.168.122.63/24", "tunnel-type": "vxlan", "mtu": 1450, "index": 3,
        "vxlan-port": 4789, "vxlan-id": VNI, "dedicated": False, "external-net-via-pod-vm": False,
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1", "dev": "eth0", "protocol": "boot",
             "scope": "universe"},
            {"dst": "169.254.1.1/32", "dev": "eth0", "protocol": "boot", "scope": "link"}],
        "neighbors": [{"ip": "169.254.1.1", "dev": "eth0", "state": "permanent",
                       "hw-addr": net["neighbors"][0]["hw-addr"]}]}


def test_dual_stack_is_told(make):
    w = make(DualStack())
    net = w.inspect(*WORDS)["pod-network"]
    assert net["podip"] == "10.244.1.7/24" and net["podips"] == ["fd00:244:1::7/64"]
    assert {"::/0", "fd00:244:1::/64", "0.0.0.0/0", "10.244.1.0/24"} == \
        {r["dst"] for r in net["routes"]}
    old = w.inspect(*WORDS, "v4only")["pod-network"]
    assert "podips" not in old and not [r for r in old["routes"] if ":" in r["dst"]]


@pytest.mark.parametrize("underlay", (4, 6))
@pytest.mark.parametrize("mtu,pod_mtu", ((1500, 1500), (9000, 9000), (9000, 1500), (9000, 8000)))
def test_mtu(make, underlay, mtu, pod_mtu):
    """From the path, never larger than the pod's own; a packet of this size fits, with DF, and the
    outer one is not fragmented."""
    style = DualStack()
    style.mtu = pod_mtu
    w = make(style, underlay=underlay, mtu=mtu)
    apf = w.inspect(*WORDS)
    expected = min(pod_mtu, mtu - (50 if underlay == 4 else 70))
    assert apf["pod-network"]["mtu"] == expected
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    shown = sh(f"ip -n {PODNS} link show eth0")
    assert f"mtu {expected} " in shown
    w.check_traffic(8_000_000)
    ping(w, PODNS, "10.244.1.9", expected - 28)
    assert w.fragments() == 0


def ping(w, ns, address, size):
    """One UDP datagram with DF of so many bytes of payload, there and back."""
    code = ("import socket,sys;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
            "s.setsockopt(0,10,2);s.settimeout(20);s.bind(('',7));print('ready',flush=True);"
            "d,a=s.recvfrom(65536);s.sendto(d,a)")
    server = subprocess.Popen(["nsenter", "--net=/run/netns/neighbour", sys.executable, "-c", code],
                              stdout=subprocess.PIPE, text=True)
    w.processes.append(server)
    assert server.stdout.readline() == "ready\n"
    w.run(ns, sys.executable, "-c",
          "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.setsockopt(0,10,2);"
          f"s.settimeout(20);s.sendto(b'x'*{size},('{address}',7));"
          f"assert len(s.recv(65536))=={size}")


def test_path_of_the_vm_is_narrower(make):
    w = make(Flannel(), mtu=9000)
    apf = w.inspect(*WORDS)
    sh(f"ip -n {VM} route add {w.node_address}/32 dev eth0 mtu 1400")
    vm_up(w, apf, True)
    assert "mtu 1350 " in sh(f"ip -n {PODNS} link show eth0")


def test_again_and_over_leftovers(make):
    w = make(Flannel())
    before = w.look()
    apf = w.inspect(*WORDS)
    for _ in range(2):
        worker_up(w, apf, True)
        vm_up(w, apf, True)
    w.check_traffic()
    first = sh(f"ip -n {PODNS} -o link show eth0").split(":")[0]
    vm_up(w, apf, True)
    assert sh(f"ip -n {PODNS} -o link show eth0").split(":")[0] == first, "the link was made anew"
    # Other leftovers: half a set-up, by hand.
    for _ in range(2):
        down(w, apf)
    net = apf["pod-network"]
    sh(f"ip -n {NODE} link add ppvxlan3 netns {POD} type vxlan id {VNI} remote 192.0.2.1 dstport 4789")
    sh(f"ip -n {VM} link add vxlan0 netns {PODNS} type vxlan id {VNI} remote 192.0.2.1 dstport 4789")
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    w.check_traffic()
    sh(f"ip -n {POD} link set vxlan1 down")
    sh(f"tc -n {POD} qdisc del dev eth0 ingress")
    down(w, apf)
    after = w.look()
    after[PODNS]["links"], before[PODNS]["links"] = [], []
    assert after == before and net["index"] == 3


def test_teardown_leaves_others_alone(make):
    """Another sandbox's link in the same namespace (a late deletion of the one before) stays."""
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    worker_up(w, apf, True)
    there = w.look()
    w.tool(NODE, "teardown", POD, "eth0", VNI + 1)
    assert w.look() == there


def test_a_namespace_that_has_gone(make):
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    worker_up(w, apf, True)
    sh("ip netns del pod")
    w.tool(NODE, "teardown", POD, "eth0", VNI)
    failed = w.tool(NODE, "inspect", POD, check=False)
    assert failed.returncode == 1
    assert "inspecting the pod's network: opening network namespace /run/netns/pod" in failed.stderr
    # Its VNI is free again.
    sh("ip netns add pod")
    w.style.make = lambda: None
    end = time.monotonic() + 10  # the kernel ends a namespace in its own time
    while " x: " not in sh(f"ip -n {NODE} -o link") and time.monotonic() < end:
        sh(f"ip -n {NODE} link add x type vxlan id {VNI} remote 192.0.2.1 dstport 4789", check=False)
        time.sleep(0.05)
    assert " x: " in sh(f"ip -n {NODE} -o link")


def test_no_default_route(make):
    w = make(Flannel())
    sh(f"ip -n {POD} route del default")
    failed = w.tool(NODE, "inspect", POD, check=False)
    assert "no default route in /run/netns/pod: the CNI plugin" in failed.stderr


def test_the_node_has_no_default_route(make):
    w = make(Flannel())
    sh(f"ip -n {NODE} route del default")
    failed = w.tool(NODE, "inspect", POD, check=False)
    assert "-host-interface" in failed.stderr
    assert w.inspect("host=ens3")["pod-network"]["worker-node-ip"] == "192.168.122.63/24"
    assert not w.inspect("host=ens3")["pod-network"]["dedicated"]
    failed = w.tool(NODE, "inspect", POD, "host=ens9", check=False)
    assert "no interface ens9 (-host-interface)" in failed.stderr


@pytest.mark.parametrize("vm_ours", (True, False), ids=("vm-ours", "vm-script"))
def test_dedicated_network(make, vm_ours):
    """-host-interface names one that is not the default route's: the VM's second address carries the tunnel."""
    w = make(Flannel())
    sh(f"ip -n {NODE} link add ens4 type veth peer name eth1 netns {VM}")
    for ns, link, a in ((NODE, "ens4", "10.77.0.63"), (VM, "eth1", "10.77.0.64")):
        sh(f"ip -n {ns} addr add {a}/24 dev {link}")
        sh(f"ip -n {ns} link set {link} up")
    before = w.look()
    apf = w.inspect(*WORDS, "host=ens4")
    net = apf["pod-network"]
    assert net["dedicated"] and net["worker-node-ip"] == "10.77.0.63/24"
    failed = w.tool(NODE, "setup", POD, w.vm_address, apf=apf, check=False)
    assert "the VM has no second address there" in failed.stderr
    assert w.look() == before
    w.tool(NODE, "setup", POD, w.vm_address, "10.77.0.64", apf=apf)
    vm_up(w, apf, vm_ours)
    sh(f"ip -n {NODE} link set ens3 down")  # the primary network has no part in it
    w.check_traffic()


def test_point_to_point(make):
    """Without an address of the worker the VM takes its gateway."""
    w = make(Flannel())
    sh(f"ip -n {NODE} route del default")
    apf = w.inspect(*WORDS, "p2p")
    assert "worker-node-ip" not in apf["pod-network"] or not apf["pod-network"]["worker-node-ip"]
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    assert "mtu 1450 " in sh(f"ip -n {PODNS} link show eth0")
    w.check_traffic()


def test_vni_taken(make):
    w = make(Flannel())
    before = w.look()
    apf = w.inspect(*WORDS)
    sh(f"ip -n {NODE} link add x type vxlan id {VNI} remote 192.0.2.1 dstport 4789")
    failed = w.tool(NODE, "setup", POD, w.vm_address, apf=apf, check=False)
    assert f"VXLAN link (id {VNI}" in failed.stderr and "already exists" in failed.stderr
    sh(f"ip -n {NODE} link del x")
    assert w.look() == before


def test_waiting_for_the_vms_network(make):
    """Each thing that is missing is named; what comes later is noticed."""
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    sh(f"ip -n {VM} link set eth0 down")
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", apf=apf, check=False)
    assert "0 s went by without an interface of the VM that is up" in failed.stderr
    sh(f"ip -n {VM} link set eth0 up")
    sh(f"ip -n {VM} addr flush dev eth0 scope global")
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", apf=apf, check=False)
    assert "without an IPv4 address of the VM" in failed.stderr
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", "host=eth0", apf=apf, check=False)
    assert "without an address on interface eth0" in failed.stderr
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", "host=eth1", apf=apf, check=False)
    assert "without interface eth1 (-host-interface)" in failed.stderr
    sh(f"ip -n {VM} addr add 10.9.9.9/24 dev eth0")
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", apf=apf, check=False)
    assert "without a route to the worker 192.168.122.63" in failed.stderr
    sh(f"ip -n {VM} addr flush dev eth0 scope global")

    p = subprocess.Popen(["nsenter", "--net=/run/netns/vm", str(TOOL), "guest-setup",
                          "/run/netns/podns", "wait=60000"], stdin=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    p.stdin.write(json.dumps(apf))
    p.stdin.close()
    time.sleep(0.3)
    assert p.poll() is None
    sh(f"ip -n {VM} addr add {w.vm_address}/24 dev eth0")
    assert p.wait(20) == 0, p.stderr.read()


def test_podns_missing(make):
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    sh("ip netns del podns")
    failed = w.tool(VM, "guest-setup", PODNS, apf=apf, check=False)
    assert "/run/netns/podns" in failed.stderr and "-pod-namespace" in failed.stderr


def test_metadata_address_is_not_reached_through_the_vm(make):
    """It is served in the VM, where the VM's own programs reach it; from podns nothing gets there."""
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    sh(f"ip -n {VM} addr add 169.254.169.254/32 dev lo")
    sh(f"ip -n {NODE} route add unreachable 169.254.169.254/32")  # the node's has its own
    w.serve(VM, "169.254.169.254", 80, 10)
    w.fetch(VM, "169.254.169.254", 80, 10)
    code = ("import socket;s=socket.socket();s.settimeout(1);"
            "r=s.connect_ex(('169.254.169.254',80));assert r!=0,r")
    w.run(PODNS, sys.executable, "-c", code)


# -- outside by the VM's second interface --

SUBNETS = "cidr=192.168.122.0/24,10.244.1.0/24,fd00:244::/48"


def connects(w, ns, address, port=80):
    """The error of a connection from there, 0 when it comes about."""
    code = (f"import socket;s=socket.socket(socket.{'AF_INET6' if ':' in address else 'AF_INET'});"
            f"s.settimeout(10);print(s.connect_ex(('{address}',{port})))")
    return int(w.run(ns, sys.executable, "-c", code).stdout)


def check_outside(w, six):
    """What is in the cluster goes through the tunnel under the pod's address, the rest leaves by
    eth1 under eth1's."""
    w.check_traffic()
    w.serve(NODE, w.node_address, 7000, 1000)
    assert w.fetch(PODNS, w.node_address, 7000, 1000).strip() == w.style.pod[0]
    w.serve(OUTSIDE, OUT_SERVER, 7000, 1000)
    assert w.fetch(PODNS, OUT_SERVER, 7000, 1000).strip() == OUT_VM
    if six:
        w.serve(OUTSIDE, OUT_SERVER6, 7000, 1000)
        assert w.fetch(PODNS, OUT_SERVER6, 7000, 1000).strip() == OUT_VM6
    w.end_processes()


def test_outside_by_the_second_interface(make):
    w = make(DualStack())
    w.add_outside()
    before = w.look()
    apf = w.inspect(*WORDS, "external", SUBNETS)
    told = [r["dst"] for r in apf["pod-network"]["routes"]]
    assert sorted(told) == sorted({"0.0.0.0/0", "10.244.1.0/24", "192.168.122.0/24", "::/0",
                                   "fd00:244:1::/64", "fd00:244::/48"})
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    check_outside(w, six=True)
    vm_up(w, apf, True)  # the forwarder starts again
    check_outside(w, six=True)
    assert w.fragments() == 0
    down(w, apf)
    after = w.look()
    after[PODNS]["links"], before[PODNS]["links"] = [], []
    for ns in before:
        for part in before[ns]:
            assert after[ns][part] == before[ns][part], (ns, part)


def test_outside_is_the_same_as_theirs(make):
    """Both ways round: our daemon's words with a script for a forwarder, and the same picture."""
    w = make(Flannel())
    w.add_outside()
    sh(f"ip -n {VM} -6 addr flush dev eth1 scope global")
    apf = w.inspect(*WORDS, "external", SUBNETS)
    worker_up(w, apf, True)
    vm_up(w, apf, False)
    peer.vm_external(VM, PODNS, "eth1", f"{OUT_VM}/24", OUT_ROUTER)
    check_outside(w, six=False)
    theirs = w.look()
    peer.vm_teardown(PODNS, apf["pod-network"])
    sh(f"ip -n {PODNS} link set eth1 netns {VM}")
    sh(f"ip -n {VM} addr add {OUT_VM}/24 dev eth1")
    sh(f"ip -n {VM} link set eth1 up")
    vm_up(w, apf, True)
    check_outside(w, six=False)
    ours = w.look()
    ours[PODNS]["routes"] = [r for r in ours[PODNS]["routes"] if "unreachable" not in r]
    for part in theirs[PODNS]:
        assert ours[PODNS][part] == theirs[PODNS][part], part
    assert ours[VM] == theirs[VM]


def test_outside_does_not_lead_to_the_metadata_address(make):
    w = make(DualStack())
    w.add_outside()
    apf = w.inspect(*WORDS, "external", SUBNETS)
    worker_up(w, apf, True)
    w.serve(OUTSIDE, METADATA, 80, 10)
    w.serve(OUTSIDE, METADATA6, 80, 10)
    sh(f"ip -n {VM} route add {METADATA} via {OUT_ROUTER}")
    assert connects(w, VM, METADATA) == 0, "the VM itself reaches it"
    vm_up(w, apf, True)
    for address in (METADATA, METADATA6, "100.100.100.200", "168.63.129.16"):
        assert connects(w, PODNS, address) == errno.EHOSTUNREACH, address
    # That it is this rule and nothing else:
    for address in (METADATA, METADATA6):
        sh(f"ip -n {PODNS} route del unreachable {address}")
        assert connects(w, PODNS, address) == 0
        vm_up(w, apf, True)
        assert connects(w, PODNS, address) == errno.EHOSTUNREACH


def test_outside_with_a_gateway_that_nobody_named(make):
    """As on Azure: the second interface has an address and no default route."""
    w = make(Flannel())
    w.add_outside(routes=False)
    apf = w.inspect(*WORDS, "external", SUBNETS)
    worker_up(w, apf, True)
    vm_up(w, apf, True)
    check_outside(w, six=False)
    assert f"default via {OUT_ROUTER} dev eth1" in sh(f"ip -n {PODNS} route")
    w.tool(VM, "guest-teardown", PODNS, apf=apf)
    assert f"{OUT_VM}/24" in sh(f"ip -n {VM} addr show eth1")
    assert "eth1" not in sh(f"ip -n {VM} route show default")


def test_outside_waits_for_its_interface(make):
    w = make(Flannel())
    w.add_outside(addresses=False, routes=False)
    apf = w.inspect(*WORDS, "external")
    before = w.look()
    failed = w.tool(VM, "guest-setup", PODNS, "wait=100", apf=apf, check=False)
    assert "without a second interface of the VM that has an address (-ext-network-via-podvm)" in \
        failed.stderr
    assert w.look() == before


# -- connection tracking --

TRACKER = """table inet judge {
 counter untracked { }
 counter tracked { }
 chain out {
  type filter hook output priority 0
  udp dport 4789 ct state untracked counter name untracked
  udp dport 4789 ct state new,established counter name tracked
 }
 chain in {
  type filter hook input priority 0
  udp dport 4789 ct state untracked counter name untracked
  udp dport 4789 ct state new,established counter name tracked
 }
}
"""


def packets(w, ns, name):
    listed = json.loads(w.run(ns, "nft", "-j", "list", "counter", "inet", "judge", name).stdout)
    return [x["counter"]["packets"] for x in listed["nftables"] if "counter" in x][0]


@pytest.mark.parametrize("underlay", (4, 6))
def test_tunnels_are_not_tracked(make, underlay):
    w = make(Flannel(), underlay=underlay)
    for ns in (NODE, VM):
        w.run(ns, "nft", "-f", "-", stdin=TRACKER)
    bare = {ns: rules(w, ns) for ns in (NODE, VM)}
    apf = w.inspect(*WORDS)
    worker_up(w, apf, False)
    vm_up(w, apf, False)
    w.check_traffic(1000)
    for ns in (NODE, VM):
        assert packets(w, ns, "tracked") > 0, "the counters see nothing"
    down(w, apf, False, False)
    for ns in (NODE, VM):
        w.run(ns, "nft", "reset", "counters")
        assert "peerpod" not in rules(w, ns)
    for _ in range(2):
        worker_up(w, apf, True)
        vm_up(w, apf, True)
    for ns in (NODE, VM):  # what came before the other end was there does not count
        w.run(ns, "nft", "reset", "counters")
    w.check_traffic(1000)
    for ns in (NODE, VM):
        assert packets(w, ns, "tracked") == 0
        assert packets(w, ns, "untracked") > 0
        assert rules(w, ns).count("notrack") == 4 and rules(w, ns).count("comment") == 1
    down(w, apf)
    for ns in (NODE, VM):
        w.run(ns, "nft", "reset", "counters")
        assert rules(w, ns) == bare[ns]


def test_without_nftables(make):
    """One line says so, and everything else works; a seccomp filter plays the kernel that lacks it."""
    w = make(Flannel())
    apf = w.inspect(*WORDS)
    without = [sys.executable, str(pathlib.Path(__file__).parent / "no_nftables.py"), str(TOOL)]
    up = w.run(NODE, *without, "setup", "/run/netns/pod", w.vm_address, stdin=json.dumps(apf))
    assert up.stderr.count("NOTRACK is left out") == 1, up.stderr
    up = w.run(VM, *without, "guest-setup", "/run/netns/podns", stdin=json.dumps(apf))
    assert up.stderr.count("NOTRACK is left out") == 1, up.stderr
    assert not rules(w, NODE) and not rules(w, VM)
    w.check_traffic(1000)
    w.run(NODE, *without, "teardown", "/run/netns/pod", "eth0", str(VNI))
    w.run(VM, *without, "guest-teardown", "/run/netns/podns", stdin=json.dumps(apf))


def cpu():
    """Of the programs that have ended: what a busy machine does not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def many(w, n):
    """Sets up and takes down n pods of one node, eight at a time; the CPU seconds of both."""
    apf = w.inspect(*WORDS)
    names = [f"many{i}" for i in range(n)]
    lines = "\n".join(f"netns add {name}" for name in names)
    assert w.run(NODE, "ip", "-batch", "-", stdin=lines).returncode == 0
    body = ("link set lo up\nlink add eth0 type veth peer name gw\nlink set gw up\n"
            "addr add 10.244.1.7/24 dev eth0\nlink set eth0 up\nroute add default via 10.244.1.1\n")
    for name in names:
        w.run(name, "ip", "-batch", "-", stdin=body)

    def up(i):
        mine = copy.deepcopy(apf)
        mine["pod-network"].update({"index": 1000 + i, "vxlan-id": 556000 + i})
        w.tool(NODE, "setup", names[i], f"192.168.{i // 250}.{i % 250}", apf=mine)

    def gone(i):
        w.tool(NODE, "teardown", names[i], "eth0", 556000 + i)

    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            start = cpu()
            list(pool.map(up, range(n)))
            middle = cpu()
            links = w.run(NODE, "sh", "-c", "ip -o link | grep -c vxlan", check=False).stdout
            assert links.strip() == "0", "the node's own namespace holds a tunnel"
            assert rules(w, NODE).count("comment") == n
            again = cpu()
            list(pool.map(gone, range(n)))
            end = cpu()
        for name in names:
            assert "vxlan" not in sh(f"ip -n {name} -o link")
            assert "ingress" not in sh(f"tc -n {name} qdisc")
        assert not rules(w, NODE)
    finally:
        w.run(NODE, "ip", "-batch", "-",
              stdin="\n".join(f"netns del {name}" for name in names), check=False)
    return middle - start, end - again


def test_500_pods(make):
    """In parallel; nothing is left, and the work grows no more than linearly."""
    w = make(Flannel())
    size = 100 if SHORT else 500
    few, most = many(w, size // 5), many(w, size)
    print(f"{size // 5} pods: up {few[0]:.2f} s, down {few[1]:.2f} s; "
          f"{size} pods: up {most[0]:.2f} s, down {most[1]:.2f} s")
    assert sum(most) < 5 * sum(few) * 2, (few, most)
