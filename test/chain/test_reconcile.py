# SPDX-License-Identifier: Apache-2.0
"""What the provider has against what the state directory knows (design.md 6): nothing of a running
node is deleted because the state is empty or wrong; what a reboot left behind goes."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from node import HEALTH, SANDBOX, annotations
from ttrpc import Client

QUICK = ("-reconcile-interval", "500ms")
OLD_BOOT = "11111111-1111-1111-1111-111111111111"
NEW_BOOT = "22222222-2222-2222-2222-222222222222"


@pytest.fixture
def no_netns_left():
    yield
    # With the state went whoever would have taken the VXLAN links down: their ids are to be free again.
    for netns in os.listdir("/run/netns"):
        subprocess.run(["ip", "netns", "del", netns], check=False)


@pytest.fixture
def node_with(no_netns_left, node_with):  # its cleaning comes behind the node's end
    return node_with


def orphans(node, *more):
    done = subprocess.run([BIN / "peerpodctl", "orphans", "-o", "json", "-control-socket",
                           node.control, *more], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kill_both(node):
    daemon = node.daemon_pid()
    os.kill(node.program.pid, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not node.serves())


def lose_the_state(node, count, wrong=False):
    """Starts pods, then takes the daemon and its state directory away; or puts another one there, with records
    of other pods."""
    for n in range(count):
        assert node.run_pod(f"sandbox-{n}", notes=annotations(pod=f"p{n}"))
    kill_both(node)
    if wrong:
        for n in range(count):
            place = node.pods / f"sandbox-{n}"
            record = json.loads((place / "sandbox.json").read_text())
            record.update(id=f"another-{n}", instance_name=f"podvm-another-{n}", instance_id=f"local-{n}-{n:032x}",
                          token=f"{n:032x}", key=f"{n:08x}", netns=f"/run/netns/another-{n}")
            (place / "sandbox.json").write_text(json.dumps(record))
            place.rename(node.pods / f"another-{n}")
    else:
        shutil.rmtree(node.pods)
    return len(node.instances())


@pytest.mark.parametrize("state", ["empty", "wrong"])
def test_an_empty_or_wrong_state_directory_destroys_nothing(node_with, state):
    """Ten running VMs of this boot, and a daemon that knows none of them."""
    first = node_with()
    made = lose_the_state(first, 10, state == "wrong")
    node = node_with(*QUICK, "-cluster-uid", "c1", "-orphan-boot-grace", "1ms")
    assert state == "empty" or "10 sandboxes found" in node.log()
    time.sleep(1.5)
    assert orphans(node) == [], "of no cluster, or of another: not even listed"
    assert len(node.instances()) == made
    node = node_with(*QUICK, "-orphan-grace", "1ms", "-orphan-boot-grace", "1ms")
    found = wait_for(lambda: orphans(node))
    assert len(found) == 10 and all("left alone" in o["verdict"] for o in found)
    time.sleep(2)
    assert len(node.instances()) == made, "without a cluster uid nothing unknown is deleted"
    assert "peerpodctl orphans" in node.log(), "the operator is told"


def test_new_pods_start_beside_those_whose_state_was_lost(node_with):
    """Their VXLAN ids are in use, and nobody knows."""
    lose_the_state(node_with(), 3)
    node = node_with()
    tries = 0
    for n in range(3):
        sandbox = f"new-{n}"
        while node.create(sandbox, notes=annotations(pod=sandbox)) and node.start_vm(sandbox).code != ttrpc.OK:
            tries += 1
            assert tries < 2, "one failed StartVM, which a kubelet repeats"
            node.stop_vm(sandbox)
            wait_for(lambda: sandbox not in node.sandboxes())
    assert len({node.record(f"new-{n}")["vxlan_id"] for n in range(3)}) == 3


@pytest.mark.every_provider
def test_the_operators_word(node_with):
    made = lose_the_state(node_with("-cluster-uid", "c1"), 3)
    node = node_with(*QUICK, "-cluster-uid", "c1")
    found = wait_for(lambda: len(orphans(node)) == 3 and orphans(node))
    assert all("no sandbox here knows it" in o["verdict"] for o in found)
    assert len(node.instances()) == made
    orphans(node, "-delete", found[0]["instance_id"])
    wait_for(lambda: len(node.instances()) == made * 2 // 3)
    orphans(node, "-delete")
    wait_for(lambda: not node.instances() and not orphans(node))


def test_the_operators_word_is_kept(node_with):
    """The delete fails, and the next look tries again."""
    lose_the_state(node_with("-cluster-uid", "c1"), 1)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-fail-deletes", "1")
    wait_for(lambda: orphans(node))
    orphans(node, "-delete")
    wait_for(lambda: not node.instances() and not orphans(node))
    assert "tried again at the next look" in node.log()


@pytest.mark.every_provider
def test_vms_of_an_earlier_boot_go_after_the_grace(node_with):
    made = lose_the_state(node_with("-cluster-uid", "c1", env={"PEERPOD_BOOT_ID": OLD_BOOT}), 2)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-orphan-boot-grace", "3s",
                     env={"PEERPOD_BOOT_ID": NEW_BOOT})
    found = wait_for(lambda: len(orphans(node)) == 2 and orphans(node))
    assert all("before the node was booted" in o["verdict"] for o in found)
    assert len(node.instances()) == made, "not before the grace is over"
    wait_for(lambda: not node.instances(), 15)


@pytest.mark.every_provider
def test_another_nodes_vms_are_not_ours(node_with):
    made = lose_the_state(node_with("-cluster-uid", "c1"), 1)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-node-name", "other", "-orphan-grace", "1ms")
    time.sleep(2)
    assert orphans(node) == [] and len(node.instances()) == made


def test_sandboxes_of_an_earlier_boot_are_deleted(node_with):
    """The records tell: they were written before the reboot."""
    node = node_with(env={"PEERPOD_BOOT_ID": OLD_BOOT})
    node.run_pod()
    kill_both(node)
    node = node_with(env={"PEERPOD_BOOT_ID": NEW_BOOT})
    node.wait_gone()


@pytest.mark.every_provider
def test_a_running_pod_whose_instance_is_gone_fails(node_with):
    node = node_with(*QUICK)
    path = node.run_pod()
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        time.sleep(1)
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK, "looks do no harm"
        assert orphans(node) == []
        node.cloud.lose_instances()  # somebody has deleted it at the cloud
        assert agent.closed_by_peer()
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
