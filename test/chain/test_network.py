# SPDX-License-Identifier: Apache-2.0
"""The pod's network through the whole chain: daemon, VM, forwarder. The node is the pod's neighbour; a server
in the VM's podns answers on the pod's IP."""
import errno
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, HYPERVISOR, SANDBOX, Node, comm, make_netns
from ttrpc import Client, message

TRAFFIC = pathlib.Path(__file__).resolve().parent.parent / "podnet" / "traffic.py"
OTHER = "4" * 64
BYTES = "3000000"


def ip(line):
    return subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True).stdout


def attached_netns(number):
    """A pod's namespace whose eth0 ends in the node's namespace; its path and the pod's address."""
    name, outer = f"cni-{number}", f"cni{number}"
    pod, node = f"10.99.{number}.7", f"10.99.{number}.1"
    # What a test before us left goes with its namespace, but not at once.
    subprocess.run(["ip", "link", "del", outer], stderr=subprocess.DEVNULL, check=False)
    ip(f"netns add {name}")
    ip(f"link add {outer} type veth peer name eth0 netns {name}")
    ip(f"addr add {node}/24 dev {outer}")
    ip(f"addr add fd99:{number}::1/64 dev {outer} nodad")
    ip(f"link set {outer} up")
    ip(f"-n {name} addr add {pod}/24 dev eth0")
    ip(f"-n {name} addr add fd99:{number}::7/64 dev eth0 nodad")
    ip(f"-n {name} link set eth0 up")
    ip(f"-n {name} route add default via {node}")
    ip(f"-n {name} route add default via fd99:{number}::1")
    return f"/run/netns/{name}", pod


@pytest.fixture
def node(short_dir):
    n = Node(short_dir)
    yield n.start()
    n.stop()
    print(n.log(), n.vm_log())
    for name in ip("netns list").split("\n"):
        if name:
            ip(f"netns del {name.split()[0]}")


def podns_of(address):
    """The podns in which the address is, seen through its VM's root."""
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        path = proc / "root/run/netns/podns"
        if path.exists() and not pathlib.Path("/run/netns/podns").exists():
            done = subprocess.run(["nsenter", f"--net={path}", "ip", "-o", "addr"], text=True,
                                  capture_output=True, check=False)
            if f" {address}/" in done.stdout:
                return path
    return None


def serve(run, podns, address):
    log = run("nsenter", f"--net={podns}", sys.executable, TRAFFIC, "serve", address, "80", BYTES)
    wait_for(lambda: "ready" in log.log())


def fetch(address):
    subprocess.run([sys.executable, str(TRAFFIC), "fetch", address, "80", BYTES], check=True,
                   timeout=30)


def test_pods_are_reached_by_their_addresses(node, run):
    pods = [(sandbox, *attached_netns(number))
            for number, sandbox in ((1, SANDBOX), (2, OTHER))]
    for sandbox, netns, address in pods:
        node.run_pod(sandbox, netns=netns)
        serve(run, podns_of(address), address)
        fetch(address)
    serve(run, podns_of("fd99:1::7"), "fd99:1::7")
    fetch("fd99:1::7")
    ids = {node.record(sandbox)["vxlan_id"] for sandbox, _, _ in pods}
    assert len(ids) == 2 and min(ids) == 555000
    # The daemon and the forwarders die; the wire is the kernel's.
    os.kill(node.daemon_pid(), signal.SIGKILL)
    for _, _, address in pods:
        fetch(address)
    wait_for(node.serves)
    for sandbox, netns, _ in pods:
        assert node.stop_vm(sandbox).code == ttrpc.OK
        wait_for(lambda: not (node.pods / sandbox).exists())
        name = pathlib.Path(netns).name
        links = json.loads(ip(f"-n {name} -j link"))
        assert sorted(x["ifname"] for x in links) == ["eth0", "lo"], "the tunnel's link is left"
        shown = subprocess.check_output(["tc", "-n", name, "qdisc", "show", "dev", "eth0"], text=True)
        assert "ingress" not in shown


def test_the_forwarder_starts_again_in_a_running_network(node, run):
    netns, address = attached_netns(1)
    path = node.run_pod(netns=netns)
    podns = podns_of(address)
    before = run_in(podns, "ip", "-o", "link", "show", "eth0").split(":")[0]
    serve(run, podns, address)
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            if (proc / "comm").read_text().startswith("agent-protocol"):
                os.kill(int(proc.name), signal.SIGKILL)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    fetch(address)
    assert run_in(podns, "ip", "-o", "link", "show", "eth0").split(":")[0] == before
    assert node.vm_log().count("pod network: eth0 has 10.99.1.7/24, MTU 1450") == 2


def vxlan_links(name):
    links = json.loads(ip(f"-n {name} -j link show type vxlan") or "[]")
    return [(link["ifindex"], link["ifname"]) for link in links if link]


def filters(name):
    """How many lines tc has of eth0 and of the tunnel."""
    return [len(subprocess.check_output(["tc", "-n", name, "filter", "show", "dev", dev, "ingress"],
                                        text=True).splitlines())
            for dev in ("eth0", *(n for _, n in vxlan_links(name)))]


def test_the_network_is_found_again(node_with):
    """Of a pod whose daemon dies while it starts: links and filters as of one that was left in peace, once; they
    may be made anew. When it runs they stay what they are."""
    node = node_with("-boot-delay", "1s")
    shown = []
    for number, sandbox, deaths in ((1, SANDBOX, 0), (2, OTHER, 3)):
        name = f"cni-{number}"
        assert node.create(sandbox, netns=attached_netns(number)[0]).code == ttrpc.OK
        links = []
        with Client(node.socket, timeout=30) as shim:
            shim.start(HYPERVISOR, "StartVM", message((1, sandbox)))
            for n in range(deaths + 1):
                if n == deaths:
                    assert shim.answer().code == ttrpc.OK
                links.append(wait_for(lambda: vxlan_links(name) and filters(name)[0] and vxlan_links(name)))
                old = node.daemon_pid()
                os.kill(old, signal.SIGKILL)
                wait_for(lambda last=old: node.serves() and node.daemon_pid() not in (0, last))
        assert all(len(there) == 1 for there in links) and vxlan_links(name) == links[-1], links
        shown.append(filters(name))
    assert shown[0] == shown[1] and min(shown[0]) > 0, shown
    for sandbox in (SANDBOX, OTHER):
        assert node.stop_vm(sandbox).code == ttrpc.OK
        wait_for(lambda s=sandbox: s not in node.sandboxes())
    for number in (1, 2):
        ip(f"netns del cni-{number}")


def run_in(netns, *argv):
    return subprocess.check_output(["nsenter", f"--net={netns}", *map(str, argv)], text=True,
                                   timeout=30)


def test_a_netns_that_is_not_there(node):
    node.create(netns="/run/netns/nowhere")
    answer = node.start_vm()
    assert answer.code != ttrpc.OK
    assert "inspecting the pod's network: opening network namespace /run/netns/nowhere" in answer.text
    node.wait_gone()
    assert not node.instances(), "no VM is made for it"


def test_a_netns_without_a_default_route(node):
    netns = make_netns("/run/netns/bare")
    ip("-n bare route del default")
    node.create(netns=netns)
    answer = node.start_vm()
    assert answer.code != ttrpc.OK and "no default route in /run/netns/bare" in answer.text, answer
    node.wait_gone()


def test_the_netns_goes_before_the_pod(node):
    """As a kubelet in a hurry does it."""
    netns, _ = attached_netns(1)
    node.run_pod(netns=netns)
    ip("netns del cni-1")
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    assert "cni1" not in ip("-o link") or "vxlan" not in ip("-o link")
    # Its VXLAN id goes round: the next pod's is another, and works.
    netns, _ = attached_netns(2)
    node.run_pod(netns=netns)
    assert node.record()["vxlan_id"] == 555001


def test_ids_start_where_the_operator_says(short_dir):
    n = Node(short_dir, "-vxlan-min-id", "16777214", "-vxlan-port", "8472")
    n.start()
    for i, sandbox in enumerate((SANDBOX, OTHER)):
        n.run_pod(sandbox)
        assert n.record(sandbox)["vxlan_id"] == 16777214 + i
    n.create("5" * 64)
    answer = n.start_vm("5" * 64)
    assert answer.code != ttrpc.OK and "all VXLAN ids from 16777214" in answer.text, answer
    apf = json.loads((n.pods / SANDBOX / "apf.json").read_text())
    assert apf["pod-network"]["vxlan-port"] == 8472
    # Also for the next daemon they are in use; the first one is free when its pod has gone.
    os.kill(n.daemon_pid(), signal.SIGKILL)
    wait_for(n.serves)
    n.create("6" * 64)
    answer = n.start_vm("6" * 64)
    assert answer.code != ttrpc.OK and "all VXLAN ids from 16777214" in answer.text, answer
    assert n.stop_vm(SANDBOX).code == ttrpc.OK
    wait_for(lambda: not (n.pods / SANDBOX).exists(), 20)
    n.run_pod("7" * 64)
    assert n.record("7" * 64)["vxlan_id"] == 16777214
    n.stop()


# -- outside by the VM --

NUMBERS = itertools.count(100)  # no test meets the VM of another one
CLOUD, WORLD = "169.254.169.254", "203.0.113.9"
EXTERNAL = ("-ext-network-via-podvm", "-pod-subnet-cidrs", "10.99.0.0/16")


@pytest.fixture
def node_factory(short_dir):
    nodes = []

    def make(*flags, **more):
        nodes.append(Node(short_dir, *flags, **more))
        return nodes[-1]

    yield make
    for n in nodes:
        n.stop()
        print(n.log(), n.vm_log())
    for name in ip("netns list").split("\n"):
        if name:
            ip(f"netns del {name.split()[0]}")


@pytest.fixture
def world(run):
    """The node is the world, and the metadata service of the VMs' cloud too."""
    for address in (CLOUD, WORLD):
        ip(f"addr add {address}/32 dev lo")
        log = run(sys.executable, TRAFFIC, "serve", address, "80", BYTES)
        wait_for(lambda log=log: "ready" in log.log())
    yield
    for address in (CLOUD, WORLD):
        ip(f"addr del {address}/32 dev lo")


def begin(node):
    """Starts a pod; its address and podns."""
    netns, address = attached_netns(next(NUMBERS))
    node.start().run_pod(netns=netns)
    return address, podns_of(address)


def fetch_in(netns, address):
    """The client's own address."""
    return run_in(netns, sys.executable, TRAFFIC, "fetch", address, "80", BYTES).strip()


def connects(netns, address):
    """Zero, or the number of the error."""
    code = f"import socket;s=socket.socket();s.settimeout(5);print(s.connect_ex(('{address}',80)))"
    return int(run_in(netns, sys.executable, "-c", code))


def forwarder():
    """The newest VM's."""
    return max(int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")
               if comm(p.name).startswith("agent-protocol"))


def kill_forwarder(node, said):
    """Until the next one has said so, as this one did."""
    before = node.vm_log().count(said)
    os.kill(forwarder(), signal.SIGKILL)
    wait_for(lambda: node.vm_log().count(said) > before)


@pytest.mark.every_provider
def test_outside_by_the_vms_second_interface(node_factory, world, run):
    node = node_factory(*EXTERNAL)
    address, podns = begin(node)
    serve(run, podns, address)
    for _ in range(2):
        fetch(address)
        assert fetch_in(podns, WORLD).startswith(("100.126.", "100.127.")), "the VM's second one"
        assert connects(podns, CLOUD) == errno.EHOSTUNREACH
        assert connects(f"/proc/{forwarder()}/ns/net", CLOUD) == 0, "the VM itself reaches it"
        kill_forwarder(node, "outside by eth1")
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
    assert "ppx" not in ip("-o link")


def test_the_metadata_service_is_closed_to_containers(node_factory, run):
    address, podns = begin(node_factory())
    vm = f"/proc/{forwarder()}/ns/net"
    run_in(vm, "ip", "addr", "add", f"{CLOUD}/32", "dev", "eth0")
    log = run("nsenter", f"--net={vm}", sys.executable, TRAFFIC, "serve", CLOUD, "80", BYTES)
    wait_for(lambda: "ready" in log.log())
    assert connects(vm, CLOUD) == 0
    assert connects(podns, CLOUD) != 0


@pytest.mark.parametrize("more", ((), EXTERNAL), ids=("tunnel", "external"))
def test_the_metadata_service_is_opened(node_factory, world, more):
    """The address is one of podns' own then; the forwarder, that listens there, asks the cloud."""
    node = node_factory("-pod-metadata-address", CLOUD, *more)
    _, podns = begin(node)
    assert fetch_in(podns, CLOUD) == CLOUD
    kill_forwarder(node, "containers reach the metadata service of this VM")
    assert fetch_in(podns, CLOUD) == CLOUD


@pytest.mark.parametrize("flags, says", [
    (("-pod-metadata-address", "metadata.google.internal"), "is not a numeric address"),
    (("-pod-subnet-cidrs", "10.0.0.0/8,ten"), "'ten' is not a subnet"),
    (("-pod-subnet-cidrs", "10.0.0.0/33"), "'10.0.0.0/33' is not a subnet"),
])
def test_bad_options_of_the_network_end_the_daemon(node_factory, flags, says):
    n = node_factory(*flags, keeper=False).start(wait=False)
    assert n.program.process.wait(10) != 0
    assert says in n.log(), n.log()
