# SPDX-License-Identifier: Apache-2.0
"""The pod's network through the whole chain: daemon, VM, forwarder. The node is the pod's neighbour; a server
in the VM's podns answers on the pod's IP."""
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import ttrpc
from conftest import wait_for
from node import HEALTH, SANDBOX, Node, comm, make_netns
from ttrpc import Client

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
    before = ip_in(podns, "-o", "link", "show", "eth0").split(":")[0]
    serve(run, podns, address)
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            if (proc / "comm").read_text().startswith("agent-protocol"):
                os.kill(int(proc.name), signal.SIGKILL)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    fetch(address)
    assert ip_in(podns, "-o", "link", "show", "eth0").split(":")[0] == before
    assert node.vm_log().count("pod network: eth0 has 10.99.1.7/24, MTU 1450") == 2


def ip_in(netns, *argv):
    return subprocess.check_output(["nsenter", f"--net={netns}", "ip", *argv], text=True)


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
    n.stop()


def vm_netns():
    """The VM's own namespace, as its forwarder has it; the newest VM's."""
    pids = [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")
            if comm(p.name).startswith("agent-protocol")]
    return pathlib.Path(f"/proc/{max(pids)}/ns/net")


def metadata_service(run):
    """A service in the VM's namespace at the clouds' address: tells whoever asks what was asked."""
    netns = vm_netns()
    ip_in(netns, "addr", "add", "169.254.169.254/32", "dev", "eth0")
    code = ("import socket\n"
            "s = socket.create_server(('169.254.169.254', 80)); print('ready', flush=True)\n"
            "while True:\n"
            "  c, _ = s.accept(); q = c.recv(4096).split()[1]\n"
            "  c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nrole ' + q); c.close()")
    log = run("nsenter", f"--net={netns}", sys.executable, "-c", code)
    wait_for(lambda: "ready" in log.log())


def ask_metadata(podns):
    code = ("import urllib.request as u\n"
            "o = u.build_opener(u.ProxyHandler({}))\n"
            "print(o.open('http://169.254.169.254/x', timeout=3).read().decode())")
    return subprocess.run(["nsenter", f"--net={podns}", sys.executable, "-c", code], text=True,
                          capture_output=True, check=False).stdout.strip()


def test_the_metadata_service_is_closed_to_containers(node, run):
    netns, address = attached_netns(1)
    node.run_pod(netns=netns)
    metadata_service(run)
    assert ask_metadata(podns_of(address)) == ""


def test_the_metadata_service_is_opened_by_an_option(short_dir, run):
    n = Node(short_dir, "-pod-metadata-address", "169.254.169.254")
    netns, address = attached_netns(3)  # of no VM of the tests before
    try:
        path = n.start().run_pod(netns=netns)
        metadata_service(run)
        podns = podns_of(address)
        assert ask_metadata(podns) == "role /x"
        with Client(path) as agent:  # and again behind a restart of the forwarder
            os.kill(int(vm_netns().parent.parent.name), signal.SIGKILL)
            assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        wait_for(lambda: ask_metadata(podns) == "role /x")
    finally:
        n.stop()
        ip("netns del cni-3")


@pytest.mark.parametrize("flags, says", [
    (("-pod-metadata-address", "metadata.google.internal"), "is not a numeric address"),
    (("-pod-subnet-cidrs", "10.0.0.0/8,ten"), "'ten' is not a subnet"),
])
def test_bad_options_of_the_network_end_the_daemon(short_dir, flags, says):
    n = Node(short_dir, *flags, keeper=False)
    n.start(wait=False)
    assert n.program.process.wait(10) != 0
    assert says in n.log(), n.log()


def test_the_external_network_needs_a_second_interface(short_dir):
    n = Node(short_dir, "-ext-network-via-podvm")
    n.start()
    n.create()
    answer = n.start_vm()
    assert answer.code != ttrpc.OK and "local provider have one interface" in answer.text, answer
    n.wait_gone()
    n.stop()
