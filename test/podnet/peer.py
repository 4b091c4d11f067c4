# SPDX-License-Identifier: Apache-2.0
"""The other side of the pod's network, by iproute2: compat.md "The pod network, as the Go programs make it" said
again in `ip` and `tc`. Shares nothing with lib/net, adaptor/podnet.c and forwarder/podnet.c."""
import subprocess


def sh(line, check=True):
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def redirect(ns, a, b):
    sh(f"tc -n {ns} qdisc add dev {a} ingress")
    sh(f"tc -n {ns} filter add dev {a} parent ffff: protocol all u32 match u32 0 0 "
       f"action mirred egress redirect dev {b}")


def worker_setup(node, pod, net, vm_address):
    """node, pod: names of network namespaces."""
    link = f"ppvxlan{net['index']}"
    sh(f"ip -n {node} link add {link} type vxlan id {net['vxlan-id']} remote {vm_address} "
       f"dstport {net['vxlan-port']} nolearning noudpcsum")
    sh(f"ip -n {node} link set {link} netns {pod} name vxlan1")
    sh(f"ip -n {pod} link set vxlan1 up")
    redirect(pod, net["interface"], "vxlan1")
    redirect(pod, "vxlan1", net["interface"])


def worker_teardown(pod, net):
    for dev in (net["interface"], "vxlan1"):
        sh(f"tc -n {pod} qdisc del dev {dev} ingress")
    sh(f"ip -n {pod} link del vxlan1")


def words(route):
    """In the order of `ip route`; the family is told by the destination."""
    dst, gw = route.get("dst") or "default", route.get("gw")
    text = f"{dst} dev {route['dev']}"
    text += f" via {gw}" if gw else ""
    text += f" proto {route['protocol']}" if route.get("protocol") else ""
    if route.get("scope") and not gw and ":" not in dst:
        text += " scope " + {"universe": "global"}.get(route["scope"], route["scope"])
    return text


def vm_setup(vm, podns, net):
    """As the Go forwarder: MTU at most 1450; the automatic subnet route goes; routes without a
    gateway first."""
    dev, worker = net["interface"], net["worker-node-ip"].split("/")[0]
    sh(f"ip -n {vm} link add vxlan0 type vxlan id {net['vxlan-id']} remote {worker} "
       f"dstport {net['vxlan-port']} nolearning noudpcsum")
    sh(f"ip -n {vm} link set vxlan0 netns {podns}")
    sh(f"ip -n {podns} link set vxlan0 name {dev}")
    sh(f"ip -n {podns} link set {dev} address {net['pod-hw-addr']} mtu {min(net['mtu'], 1450)}")
    for address in [net["podip"], *net.get("podips", [])]:
        sh(f"ip -n {podns} addr add {address} dev {dev} nodad")
    sh(f"ip -n {podns} link set lo up")
    sh(f"ip -n {podns} link set {dev} up")
    sh(f"ip -n {podns} route flush dev {dev} proto kernel scope link")
    for with_gateway in (False, True):
        for route in net.get("routes", []):
            if bool(route.get("gw")) == with_gateway:
                family = "-6" if ":" in route.get("dst", "") + route.get("gw", "") else "-4"
                sh(f"ip {family} -n {podns} route replace {words(route)}")
    for n in net.get("neighbors", []):
        sh(f"ip -n {podns} neigh replace {n['ip']} lladdr {n['hw-addr']} dev {n['dev']} "
           "nud permanent")


def vm_external(vm, podns, dev, address, gateway):
    """-ext-network-via-podvm: the VM's second interface goes into podns, and the default routes to it."""
    sh(f"ip -n {vm} link set {dev} netns {podns}")
    sh(f"ip -n {podns} addr add {address} dev {dev}")
    sh(f"ip -n {podns} link set {dev} up")
    sh(f"ip -n {podns} route del default")
    sh(f"ip -n {podns} route add default via {gateway} dev {dev}")


def vm_teardown(podns, net):
    sh(f"ip -n {podns} link del {net['interface']}")
