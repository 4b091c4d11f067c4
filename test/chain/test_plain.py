# SPDX-License-Identifier: Apache-2.0
"""Plain mode, both ends ours: the options of docs/plain-mode.md, one by one. What holds in both modes
is in test_traffic.py, which runs in both."""
import pytest
import ttrpc
from node import HEALTH, Node
from ttrpc import Client


class PlainNode(Node):
    compat = "upstream"


@pytest.fixture
def make_node(short_dir):
    nodes = []

    def make(*flags, **more):
        nodes.append(PlainNode(short_dir, *flags, **more))
        return nodes[-1].start()

    yield make
    for node in nodes:
        node.stop()
        print(node.log(), node.vm_log())


def check_pod(node):
    with Client(node.run_pod()) as agent:
        for _ in range(20):
            assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


@pytest.mark.parametrize("flags", [
    (), ("-tls-min-version", "VersionTLS13"), ("-tls-skip-verify",),
    ("-tls-cipher-suites", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
])
def test_a_pod_runs(make_node, flags):
    check_pod(make_node(*flags))
