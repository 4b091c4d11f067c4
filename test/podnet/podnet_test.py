# SPDX-License-Identifier: Apache-2.0
"""The pod's network between a worker and a pod VM. Ours against an iproute2 script that repeats what the Go
programs do (peer.py), on either side, and against ours."""
import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import peer
from peer import sh
from world import NODE, POD, PODNS, STYLES, VM, Calico, DualStack, Flannel, World

VNI = 555003
WORDS = ("index=3", f"vni={VNI}")


@pytest.fixture
def make():
    worlds = []

    def build(style, **more):
        worlds.append(World(style, **more))
        return worlds[-1]

    yield build
    for w in worlds:
        w.close()


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


@pytest.mark.parametrize("vm_ours", (True, False), ids=("vm-ours", "vm-script"))
@pytest.mark.parametrize("worker_ours", (True, False), ids=("worker-ours", "worker-script"))
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
            "s.setsockopt(0,10,2);s.settimeout(5);s.bind(('',7));print('ready',flush=True);"
            "d,a=s.recvfrom(65536);s.sendto(d,a)")
    import subprocess
    server = subprocess.Popen(["nsenter", "--net=/run/netns/neighbour", sys.executable, "-c", code],
                              stdout=subprocess.PIPE, text=True)
    w.processes.append(server)
    assert server.stdout.readline() == "ready\n"
    w.run(ns, sys.executable, "-c",
          "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.setsockopt(0,10,2);"
          f"s.settimeout(5);s.sendto(b'x'*{size},('{address}',7));"
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
    import subprocess
    import time
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

    p = subprocess.Popen(["nsenter", "--net=/run/netns/vm", str(w_tool()), "guest-setup",
                          "/run/netns/podns", "wait=10000"], stdin=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    import json
    p.stdin.write(json.dumps(apf))
    p.stdin.close()
    time.sleep(0.3)
    assert p.poll() is None
    sh(f"ip -n {VM} addr add {w.vm_address}/24 dev eth0")
    start = time.monotonic()
    assert p.wait(5) == 0, p.stderr.read()
    assert time.monotonic() - start < 1


def w_tool():
    from world import TOOL
    return TOOL


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


def many(w, n):
    """Sets up and takes down n pods of one node, eight at a time; seconds of both."""
    import concurrent.futures
    import copy
    import time
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
        w.tool(NODE, "setup", names[i], w.vm_address, apf=mine)

    def gone(i):
        w.tool(NODE, "teardown", names[i], "eth0", 556000 + i)

    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            start = time.monotonic()
            list(pool.map(up, range(n)))
            middle = time.monotonic()
            links = w.run(NODE, "sh", "-c", "ip -o link | grep -c vxlan", check=False).stdout
            assert links.strip() == "0", "the node's own namespace holds a tunnel"
            list(pool.map(gone, range(n)))
            end = time.monotonic()
        for name in names:
            assert "vxlan" not in sh(f"ip -n {name} -o link")
            assert "ingress" not in sh(f"tc -n {name} qdisc")
    finally:
        w.run(NODE, "ip", "-batch", "-",
              stdin="\n".join(f"netns del {name}" for name in names), check=False)
    return middle - start, end - middle


def test_500_pods(make):
    """In parallel; nothing is left, and the time grows no more than linearly."""
    w = make(Flannel())
    few, most = many(w, 100), many(w, 500)
    print(f"100 pods: up {few[0]:.2f} s, down {few[1]:.2f} s; "
          f"500 pods: up {most[0]:.2f} s, down {most[1]:.2f} s")
    assert sum(most) < 5 * sum(few) * 2, (few, most)
