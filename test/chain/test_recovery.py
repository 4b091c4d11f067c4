# SPDX-License-Identifier: Apache-2.0
"""What a daemon finds when it starts: the states that its predecessor, an earlier boot or somebody else
left, and a node that is short of something (design.md 5, 6)."""
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import clouds
import pytest
import ttrpc
from conftest import BIN, wait_for
from node import AGENT, HEALTH, HYPERVISOR, SANDBOX, Node, agent_command, annotations, check_world, comm, \
    create_request, wrapped_guest
from ttrpc import Client, message

SECOND = 10**9


@pytest.fixture
def node(node_with):
    return node_with()


def kill(node, signum=signal.SIGKILL, seconds=10):
    """The daemon alone; its keeper starts the next one."""
    old = node.daemon_pid()
    os.kill(old, signum)
    wait_for(lambda: node.daemon_pid() not in (0, old) and node.serves(), seconds)


def check(agent):
    assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK


# -- what is found in the state directory --

@pytest.mark.every_provider
def test_a_deletion_goes_on_after_a_reboot(node_with):
    node = node_with("-fail-deletes", "1000000")
    node.run_pod()
    assert node.stop_vm().code == ttrpc.OK
    wait_for(lambda: node.record()["state"] == "deleting")
    node.stop()
    later = node_with(env={"PEERPOD_BOOT_ID": "11111111-2222-3333-4444-555555555555"})
    later.wait_gone()


@pytest.mark.every_provider
def test_a_sandbox_of_an_earlier_boot_is_deleted(node_with):
    node = node_with()
    node.run_pod()
    node.stop()
    later = node_with(env={"PEERPOD_BOOT_ID": "11111111-2222-3333-4444-555555555555"})
    later.wait_gone()


def test_what_is_not_ours_is_left_alone(node):
    (node.pods / "holiday").mkdir()
    (node.pods / "holiday" / "photo.jpg").write_text("irreplaceable")
    (node.pods / "notes").write_text("a file")
    (node.pods / "empty").mkdir()
    (node.pods / "half").mkdir()
    for name in ("client.key", "client.crt.new", "secret", "initdata", "agent.ttrpc", "sandbox.json.new",
                 "apf.json", "c17.relay", "server.crt"):
        (node.pods / "half" / name).write_text("")
    kill(node)
    assert (node.pods / "holiday" / "photo.jpg").read_text() == "irreplaceable"
    assert (node.pods / "notes").exists()
    assert not (node.pods / "half").exists(), "what a CreateVM or a removal that did not end leaves"
    assert not (node.pods / "empty").exists()


# -- what a kill leaves behind --

def test_the_last_words_of_an_agent_outlive_the_daemon(node_with, short_dir):
    """The agent's connection has ended, and its shim does not read yet; neither death nor more from the
    shim takes anything away. A shim that goes without having read leaves nothing behind."""
    node = node_with("-local-agent", agent_command(short_dir, "agent_stub.py", "/tmp/seen"))
    path = node.run_pod()
    for n, reads in enumerate((True, False)):
        with Client(path, timeout=20) as shim:
            shim.start("s", "Last", b"400000", stream=1)
            wait_for(lambda: node.log().count("the agent has closed") > n, step=0.05)
            kill(node)
            shim.send(b"x" * (1 << 20))
            if reads:
                assert shim.answer(1).payload == b"l" * 400000
                assert shim.closed_by_peer()
        wait_for(lambda: not list((node.pods / SANDBOX).glob("c*.relay")), 5)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


@pytest.mark.every_provider
def test_a_start_that_was_cut_short_leaves_nothing(node_with):
    node = node_with("-boot-delay", "30s")
    kill(node)
    before = node.world()
    del before["processes"]  # the daemon's own number
    node.create()
    with Client(node.socket) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(node.instances)
        kill(node)
    node.wait_gone()
    check_world(node, before)


def test_a_connection_made_before_the_start_lives_on(node):
    path = ttrpc.text(ttrpc.parse(node.create().payload), 1)
    with Client(path, timeout=30) as agent:
        agent.start(HEALTH, "Check", b"")
        wait_for(lambda: (node.pods / SANDBOX / "c1.relay").exists())
        kill(node)
        assert node.start_vm().code == ttrpc.OK
        assert agent.answer().code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


def test_a_connection_lives_on_from_the_moment_it_is_stored(node):
    """The daemon dies before it has made the connection's file: nothing was read from it yet."""
    path = node.run_pod()
    with Client(path, timeout=30) as agent:
        file = wait_for(lambda: next((node.pods / SANDBOX).glob("c*.relay"), None))
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: it restarts nothing now
        os.kill(node.daemon_pid(), signal.SIGKILL)
        file.unlink()
        os.kill(node.program.pid, signal.SIGCONT)
        check(agent)
        kill(node)
        check(agent)


def test_the_shim_sees_its_end_when_the_daemon_dies_in_stopvm(node_with):
    """The record says deleting, the connections are still in the store."""
    node = node_with("-fail-deletes", "1000000")
    path = node.run_pod()
    with Client(path, timeout=10) as agent:
        check(agent)
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: it restarts nothing now
        pid = node.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        record = node.pods / SANDBOX / "sandbox.json"
        record.write_text(record.read_text().replace('"running"', '"deleting"'))
        os.kill(node.program.pid, signal.SIGCONT)
        assert agent.closed_by_peer()


def test_a_full_disk_does_not_end_the_pods(node_with, short_dir):
    pods = short_dir / "pods"
    pods.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "full", pods], check=True)
    node = node_with()
    path = node.run_pod()
    with Client(path) as agent:
        check(agent)
        with open(pods / ".filler", "wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * 4096)
        kill(node)
        kill(node)
        (pods / ".filler").unlink()
        check(agent)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()


@pytest.mark.every_provider
@pytest.mark.parametrize("how", clouds.CLOUDS[Node.provider].OUTAGES)
def test_the_provider_cannot_be_reached_at_start(node_with, short_dir, how):
    """Pods run on, StopVM is answered, and what it asks for is done when the provider is back."""
    place = short_dir / "bin"
    place.mkdir()
    shutil.copy(BIN / "peerpod-keeper", place)
    script = place / "cloud-api-adaptor"
    script.write_text(f'#!/bin/sh\nexec {BIN.resolve()}/cloud-api-adaptor "$@" '
                      f'$(cat {short_dir}/more-flags 2>/dev/null)\n')
    script.chmod(0o755)
    node = node_with("-reconcile-interval", "300ms", adaptor=script)
    cloud = node.cloud

    def in_vain():
        return cloud.asked_in_vain(node.log(), SANDBOX)

    with Client(node.run_pod(), timeout=10) as agent:
        check(agent)
        os.kill(node.program.pid, signal.SIGSTOP)  # the keeper: the next one starts in the outage
        os.kill(node.daemon_pid(), signal.SIGKILL)
        cloud.begin_outage(how)
        os.kill(node.program.pid, signal.SIGCONT)
        wait_for(lambda: in_vain()[0] >= cloud.OUTAGES[how])
        check(agent)
        assert node.stop_vm().code == ttrpc.OK
        assert agent.closed_by_peer()
    wait_for(lambda: in_vain()[1])
    assert node.record()["state"] == "deleting" and node.instances()
    if not cloud.end_outage():
        kill(node)
    node.wait_gone(seconds=30)


# -- the end that is asked for --

@pytest.fixture
def slow(node_with, short_dir):
    """A node on which the program that makes a VM stops at once where the file `stop` is: a provider's call
    that takes its time. And who that is."""
    stop = short_dir / "stop"
    guest = wrapped_guest(short_dir, "peerpod-local-vm",
                          f'[ ! -e {stop} ] || kill -STOP $$\nexec "$0.real" "$@"\n')
    shutil.copy(BIN / "cloud-api-adaptor", guest)  # it looks for the helper beside itself
    node = node_with(adaptor=guest / "cloud-api-adaptor")

    def stopped():
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent = (proc / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if comm(proc.name).startswith("peerpod-local-v") and (state, int(parent)) == ("T", node.daemon_pid()):
                    return int(proc.name)
        return 0

    return node, stop, stopped


@pytest.mark.local_only
def test_a_slow_provider_does_not_delay_the_restart(slow):
    """A daemon that ends serves no tunnel; a shim waits for 30 s at most."""
    node, stop, stopped = slow
    path = node.run_pod()
    other = "f" * 64
    node.create(other, notes=annotations(pod="slow"))
    with Client(path) as agent, Client(node.socket) as client:
        check(agent)
        pid = node.daemon_pid()
        stop.touch()
        client.start(HYPERVISOR, "StartVM", message((1, other)))
        helper = wait_for(stopped)
        stop.unlink()
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        check(agent)
        took = time.monotonic() - began
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGCONT)
        assert took < 5
    assert node.stop_vm().code == ttrpc.OK
    wait_for(lambda: not node.sandboxes() and not node.instances(), 30)


@pytest.mark.local_only
@pytest.mark.parametrize("made_for", [0, 0.003, 0.03])
def test_a_vm_that_was_half_made_is_made(slow, made_for):
    """The daemon and its helper die in the middle; StartVM is answered all the same."""
    node, stop, stopped = slow
    node.create()
    stop.touch()
    with Client(node.socket, timeout=30) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        helper = wait_for(stopped)
        stop.unlink()
        os.kill(node.program.pid, signal.SIGSTOP)
        os.kill(helper, signal.SIGCONT)
        time.sleep(made_for)
        os.kill(node.daemon_pid(), signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)
        os.kill(node.program.pid, signal.SIGCONT)
        answer = client.answer()
        assert answer.code == ttrpc.OK, answer
    assert len(node.instances()) == 1
    node.stop_vm()
    node.wait_gone()


def test_whoever_waits_is_let_go_at_the_end(node_with):
    node = node_with("-boot-delay", "30s", "-fail-deletes", "1000000")
    node.create()
    with Client(node.socket) as client, Client(node.socket) as info:
        info.start("podvminfo.PodVMInfo", "GetInfo", message((1, "no"), (2, "no"), (3, True)),
                   timeout_ns=SECOND // 2)
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(node.instances)
        node.stop_vm()
        info.start(HYPERVISOR, "CreateVM", create_request())
        time.sleep(0.1)
        kill(node, signal.SIGTERM)
    assert node.record()["state"] == "deleting"


# -- calls that meet each other --

def test_all_who_wait_for_a_deletion_get_the_same_sandbox(node_with):
    node = node_with("-delete-delay", "1s")
    node.run_pod()
    node.stop_vm()
    clients = [Client(node.socket, timeout=30) for _ in range(4)]
    for client in clients:
        client.start(HYPERVISOR, "CreateVM", create_request())
    answers = [c.answer() for c in clients]
    assert {a.code for a in answers} == {ttrpc.OK}, answers
    assert len({a.payload for a in answers}) == 1
    node.stop_vm()
    node.wait_gone()


def test_a_directory_that_cannot_be_removed_is_tried_again(node):
    node.create()
    obstacle = node.pods / SANDBOX / "obstacle"
    obstacle.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "obstacle", obstacle], check=True)
    assert node.stop_vm().code == ttrpc.OK
    wait_for(lambda: "obstacle" in node.log() or "removing" in node.log())
    subprocess.run(["umount", obstacle], check=True)
    node.wait_gone()
    assert node.create().code == ttrpc.OK
    node.stop_vm()


@pytest.mark.every_provider
def test_a_vm_that_ends_during_startvm(node_with):
    """The provider knows; nobody has to wait for -proxy-timeout."""
    node = node_with("-guest-fault", "no-forwarder")
    node.create()
    with Client(node.socket, timeout=60) as client:
        client.start(HYPERVISOR, "StartVM", message((1, SANDBOX)))
        wait_for(lambda: "addresses" in node.record() and node.record()["addresses"])
        pid, = wait_for(node.cloud.vm_pids)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        answer = client.answer()
        assert answer.code == ttrpc.UNAVAILABLE and "has ended" in answer.text, answer
        assert time.monotonic() - began < 20
    node.wait_gone()


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_too_many_connections_of_one_shim_wait(node):
    path = node.run_pod()
    agents = [Client(path) for _ in range(18)]
    for agent in agents[:16]:
        check(agent)
    used = cpu_seconds(node.daemon_pid())
    time.sleep(1)
    assert cpu_seconds(node.daemon_pid()) - used < 0.5, "the loop spins"
    agents[17].start(HEALTH, "Check", b"")
    assert agents[17].silent()
    agents[0].close()
    agents[1].close()
    assert agents[17].answer().code == ttrpc.OK
    node.stop_vm()
    node.wait_gone()


def test_a_daemon_without_descriptors_does_not_spin(node_with):
    node = node_with(keeper=False)
    path = node.run_pod()
    pid = node.daemon_pid()
    with Client(path) as first:
        check(first)
        used = {int(n) for n in os.listdir(f"/proc/{pid}/fd")}
        n = min(set(range(len(used) + 1)) - used)  # not one more number is free
        subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={n}:4096"], check=True)
        second = Client(path)
        time.sleep(0.2)
        used = cpu_seconds(pid)
        time.sleep(1)
        assert cpu_seconds(pid) - used < 0.5, "the loop spins"
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=1024:4096"], check=True)
        check(first)
        check(second)
        second.close()
    node.stop_vm()
    node.wait_gone()


def test_a_newer_format_stops_the_older_daemon_and_nothing_is_touched(node):
    """The keeper holds on; the newer daemon finds everything as it was."""
    path = node.run_pod()
    record = node.pods / SANDBOX / "sandbox.json"
    with Client(path) as agent:
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK
        ours = record.read_text()
        assert '"version_major":1' in ours
        newer = ours.replace('"version_major":1', '"version_major":2', 1)
        record.write_text(newer)
        os.kill(node.daemon_pid(), signal.SIGKILL)
        wait_for(lambda: "use the newer version" in node.log())
        time.sleep(0.5)
        assert record.read_text() == newer, "left whole"
        record.write_text(ours)  # "the newer daemon"
        assert agent.call(HEALTH, "Check", b"").code == ttrpc.OK, "on the connection of before"
        wait_for(node.serves)
    assert node.stop_vm().code == ttrpc.OK
    node.wait_gone()
