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
    wait_for(vxlan_ids_are_free)  # a namespace ends behind its name


def vxlan_ids_are_free():
    batch = "".join(f"link add probe type vxlan id {555000 + n} dstport 4789\nlink del probe\n"
                    for n in range(12))
    return subprocess.run(["ip", "-batch", "-"], input=batch, text=True, capture_output=True).returncode == 0


@pytest.fixture
def node_with(no_netns_left, node_with):  # its cleaning comes behind the node's end
    return node_with


def ask_orphans(node, *more):
    return subprocess.run([BIN / "peerpodctl", "orphans", "-o", "json", "-control-socket",
                           node.control, *more], capture_output=True, text=True, timeout=20)


def orphans(node, *more):
    """None: the daemon has not looked yet."""
    done = ask_orphans(node, *more)
    if "not known yet" in done.stderr:
        return None
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
            record.update(id=f"another-{n}", instance_name=f"podvm-another-{n}", instance_id=f"local-{n + 1}-{n:032x}",
                          token=f"{n:032x}", key=f"{n:08x}", netns=f"/run/netns/another-{n}")
            (place / "sandbox.json").write_text(json.dumps(record))
            place.rename(node.pods / f"another-{n}")
    else:
        shutil.rmtree(node.pods)
    return len(node.instances())


@pytest.mark.parametrize("state", ["empty", "wrong"])
def test_an_empty_or_wrong_state_directory_destroys_nothing(node_with, state):
    """Ten running VMs of this boot, and a daemon that knows none of them."""
    made = lose_the_state(node_with("-cluster-uid", "c1"), 10, state == "wrong")

    def check_left_alone(turn, words, *flags):
        node = node_with(*QUICK, "-orphan-boot-grace", "1ms", *flags)
        assert len(wait_for(lambda: orphans(node))) == 10
        time.sleep(1.5)  # of looks
        found = orphans(node)
        assert len(found) == 10 and all(words in o["verdict"] for o in found), found
        assert len(node.instances()) == made
        told = node.log().count("peerpodctl orphans shows it")
        assert told == 10 * turn, "the operator is told, by each daemon once"
        return node

    node = check_left_alone(1, "no sandbox here knows it; to be deleted in 863", "-cluster-uid", "c1")
    assert state == "empty" or "10 sandboxes found" in node.log()
    check_left_alone(2, "left alone: without -cluster-uid", "-orphan-grace", "1ms")
    node = node_with(*QUICK, "-orphan-boot-grace", "1ms", "-orphan-grace", "1ms", "-cluster-uid", "c2")
    time.sleep(1.5)
    assert orphans(node) == [], "of another cluster: not even listed"
    assert len(node.instances()) == made


def test_another_nodes_state_directory_ends_none_of_its_pods(node_with):
    """Mounted here by mistake. Its records are of another boot, which is not an earlier one of ours."""
    theirs = ("-cluster-uid", "c1", "-node-name", "a")
    node = node_with(*theirs, env={"PEERPOD_BOOT_ID": OLD_BOOT})
    node.run_pod()
    record, made = (node.pods / SANDBOX / "sandbox.json").read_bytes(), len(node.instances())
    kill_both(node)
    ours = node_with(*QUICK, "-cluster-uid", "c1", "-node-name", "b", env={"PEERPOD_BOOT_ID": NEW_BOOT})
    wait_for(lambda: orphans(ours) == [])
    time.sleep(1)
    assert (ours.pods / SANDBOX / "sandbox.json").read_bytes() == record
    assert len(ours.instances()) == made
    assert "its record is of node a, this is b" in ours.log(), "the operator is told"
    node = node_with(*theirs, env={"PEERPOD_BOOT_ID": OLD_BOOT})
    assert node.record()["state"] == "running"
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


def test_a_list_that_fails_is_not_an_empty_one(node_with):
    made = lose_the_state(node_with("-cluster-uid", "c1"), 1)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-fail-list")
    wait_for(lambda: "-fail-list" in ask_orphans(node).stderr)
    asked = ask_orphans(node, "-delete")
    assert asked.returncode == 1 and "not known yet" in asked.stderr and not asked.stdout
    assert len(node.instances()) == made


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
    found = wait_for(lambda: len(orphans(node) or ()) == 3 and orphans(node))
    assert all("no sandbox here knows it" in o["verdict"] for o in found)
    assert len(node.instances()) == made
    orphans(node, "-delete", found[0]["instance_id"])
    wait_for(lambda: len(node.instances()) == made * 2 // 3)
    orphans(node, "-delete")
    wait_for(lambda: not node.instances() and orphans(node) == [])


def test_the_operators_word_is_kept(node_with):
    """The delete fails, and the next look tries again."""
    lose_the_state(node_with("-cluster-uid", "c1"), 1)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-fail-deletes", "1")
    wait_for(lambda: orphans(node))
    orphans(node, "-delete")
    verdicts = set()

    def gone():
        verdicts.update(o["verdict"] for o in orphans(node))
        return not node.instances() and not orphans(node)

    wait_for(gone)
    assert any("deleting it failed" in v and "-fail-deletes" in v for v in verdicts), verdicts
    assert "tried again at the next look" in node.log()


@pytest.mark.every_provider
def test_vms_of_an_earlier_boot_go_after_the_grace(node_with):
    made = lose_the_state(node_with("-cluster-uid", "c1", env={"PEERPOD_BOOT_ID": OLD_BOOT}), 2)
    node = node_with(*QUICK, "-cluster-uid", "c1", "-orphan-boot-grace", "3s",
                     env={"PEERPOD_BOOT_ID": NEW_BOOT})
    found = wait_for(lambda: len(orphans(node) or ()) == 2 and orphans(node))
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
