# SPDX-License-Identifier: Apache-2.0
"""The set-ups of docs/restart.md are what they say: the units are systemd's, the manifests are YAML and their
commands run, every option named exists, the graces are the defaults; and each row of its table names a test
that shows it, here."""
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import time

import pytest
import yaml

ROOT = pathlib.Path(os.environ["PEERPOD_SOURCE"])
BIN = pathlib.Path(os.environ["PEERPOD_BIN"])
PAGE = (ROOT / "docs" / "restart.md").read_text()
KEEPER_SOCKET = "/run/peerpod/keeper.sock"
UNITS = sorted([*(ROOT / "deploy" / "systemd").glob("*.service"), *(ROOT / "podvm").glob("*.service")])

# Row of the table: where it is shown; or why it is not.
CHAIN = "test/chain/"
SHOWN = {
    "the daemon is sent SIGTERM": [
        CHAIN + "test_lifecycle.py::test_a_daemon_that_is_asked_to_end_comes_back_too",
        CHAIN + "systemd_test.py::test_killed_again_and_again"],
    "the daemon is killed (SIGKILL, a crash, the OOM killer)": [
        CHAIN + "test_lifecycle.py::test_the_daemon_dies_and_the_pod_does_not",
        CHAIN + "systemd_test.py::test_killed_again_and_again", "test/storm/storm.c::phase_storm"],
    "crash loop of the daemon": ["test/storm/storm.c::kills"],
    "the daemon is upgraded or rolled back in place": [
        CHAIN + "versions_test.py::test_restart_up_down_up",
        CHAIN + "systemd_test.py::test_killed_again_and_again"],
    "the container is replaced, the new one first (surge)": [
        CHAIN + "keeper_test.py::test_replaced_with_surge"],
    "the container is replaced, the old one first": [
        CHAIN + "keeper_test.py::test_replaced_without_surge_beside_a_store"],
    "the container is stopped or killed whole (OOM of the cgroup)": [
        CHAIN + "keeper_test.py::test_both_killed_beside_a_store",
        CHAIN + "keeper_test.py::test_all_that_holds_is_killed"],
    "the keeper is killed": [CHAIN + "keeper_test.py::test_keeper_killed_beside_a_store"],
    "keeper and daemon are killed together": [CHAIN + "keeper_test.py::test_both_killed_beside_a_store"],
    "the store is killed, or updated": [CHAIN + "keeper_test.py::test_store_killed_and_then_both"],
    "the store and the keeper die, one before the other is back": [
        CHAIN + "keeper_test.py::test_all_that_holds_is_killed"],
    "`systemctl stop`, then `start`": "CI's systemd is older than 254",
    "the provider cannot be reached at start": [
        CHAIN + "test_recovery.py::test_the_provider_cannot_be_reached_at_start"],
    "the forwarder in the VM is killed": [CHAIN + "test_lifecycle.py::test_a_dead_forwarder_comes_back"],
    "the network between node and VM is away": [
        CHAIN + "test_lifecycle.py::test_a_vm_that_cannot_be_reached_is_given_up",
        "test/blackout/blackout.c::main"],
    "the VM ends": [CHAIN + "test_lifecycle.py::test_a_vm_that_ends_fails_its_pod_fast"],
    "the node is booted": [
        CHAIN + "test_recovery.py::test_a_sandbox_of_an_earlier_boot_is_deleted",
        CHAIN + "test_reconcile.py::test_vms_of_an_earlier_boot_go_after_the_grace"],
    "the state directory is lost or wrong": [
        CHAIN + "test_reconcile.py::test_an_empty_or_wrong_state_directory_destroys_nothing",
        CHAIN + "test_reconcile.py::test_another_nodes_state_directory_ends_none_of_its_pods"],
}


def rows():
    table = PAGE.split("## The table")[1].split("\n\n\"no\" means")[0]
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]


def test_each_row_of_the_table_is_shown_by_a_test():
    assert rows() == list(SHOWN)
    for row, tests in SHOWN.items():
        for test in tests if isinstance(tests, list) else ():
            file, name = test.split("::")
            text = (ROOT / file).read_text()
            assert re.search(rf"\b{name}\(", text), f"{row}: no {test}"


def test_each_note_of_the_table_is_there_and_used():
    table, rest = PAGE.split("## The table")[1].split("\n\n\"no\" means")
    used = set(re.findall(r"\((\d)\)", table))
    assert used == set(re.findall(r"^(\d)\. ", rest, re.MULTILINE))


def help_of(*words):
    done = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


def test_every_option_named_exists():
    known = "".join(help_of(*words, "--help") for words in (
        ("cloud-api-adaptor", "local"), ("cloud-api-adaptor", "aws"), ("peerpod-keeper",),
        ("peerpodctl", "orphans")))
    named = set(re.findall(r"`(?:peerpodctl orphans )?(-[a-z]+(?:-[a-z]+)*)", PAGE))
    assert {"-grace-shim-gone", "-orphan-grace", "-cluster-uid", "-delete"} <= named
    missing = {flag for flag in named if not re.search(rf"(?<![a-z-]){flag}\b", known)}
    assert not missing


def test_the_graces_named_are_the_defaults():
    printed = help_of("cloud-api-adaptor", "local", "-print-config")
    units = {"min": "m", "h": "h"}
    named = re.findall(r"`(-[a-z-]+)`\s+\((\d+) (min|h)\)", PAGE)
    assert len(named) >= 2
    for flag, number, unit in named:
        variable = flag[1:].upper().replace("-", "_")
        value = re.search(rf"{variable}\W+([0-9hms]+)", printed) or re.search(rf"{flag[1:]}\W+([0-9hms]+)", printed)
        assert value and value[1].startswith(number + units[unit]), (flag, value)


def test_the_update_strategy_is_yaml():
    text = re.search(r"```\n(updateStrategy:.*?)```", PAGE, re.DOTALL)[1]
    strategy = yaml.safe_load(text)["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


# -- the store --

def wait_for(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def pod_of_the_store():
    daemon_set = yaml.safe_load((ROOT / "deploy/examples/keeper-store.yaml").read_text())
    assert (daemon_set["apiVersion"], daemon_set["kind"]) == ("apps/v1", "DaemonSet")
    spec = daemon_set["spec"]
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    return spec["template"]["spec"]


def test_the_store_is_where_the_adaptor_looks_for_it():
    pod = pod_of_the_store()
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"] and volume["hostPath"]["path"] == mount["mountPath"] == "/run/peerpod"
    assert container["command"][-1] == KEEPER_SOCKET
    assert f"KEEPER_SOCKET={KEEPER_SOCKET}" in PAGE
    assert f" -socket {KEEPER_SOCKET}\n" in (ROOT / "deploy/systemd/peerpod-keeper.service").read_text()
    for line in (ROOT / "deploy/examples/keeper-store.yaml").read_text().splitlines():
        assert "KEEPER_SOCKET=" not in line or f"KEEPER_SOCKET={KEEPER_SOCKET}" in line


def test_the_store_runs_within_its_limit(tmp_path):
    """Its command, with as much memory as the manifest allows, and as its root without capabilities."""
    (container,) = pod_of_the_store()["containers"]
    limit = container["resources"]["limits"]["memory"]
    assert limit == container["resources"]["requests"]["memory"] and limit.endswith("Mi")
    path = tmp_path / "keeper.sock"
    command = [str(BIN / container["command"][0]), *container["command"][1:-1], str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as keeper:
        try:
            wait_for(path.exists)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
                s.connect(str(path))
            status = pathlib.Path(f"/proc/{keeper.pid}/status").read_text()
            assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < int(limit[:-2]) * 1024
        finally:
            keeper.kill()


# -- systemd --

@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_units_are_systemds(unit, tmp_path):
    """With this build's programs in the place of the installed ones."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    (tmp_path / "network-online.target").write_text("[Unit]\n")
    text = unit.read_text()
    for word in re.findall(r"^Exec\w+=[-@:+!]*(\S+)", text, re.MULTILINE):
        name = pathlib.Path(word).name
        real = ROOT / "deploy" / name if (ROOT / "deploy" / name).exists() else BIN.resolve() / name
        assert os.access(real, os.X_OK), f"{unit.name} runs {word}"
        text = text.replace(f"={word}", f"={real}")
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", tmp_path / unit.name],
                          capture_output=True, text=True, timeout=60,
                          env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    # of systemd 254; docs/restart.md says what is lost without it
    ours = [line for line in done.stderr.splitlines() if unit.name in line and
            "Unknown key 'FileDescriptorStorePreserve'" not in line]
    assert done.returncode == 0 and not ours, done.stderr


def test_a_keepers_unit_restarts_at_once_and_for_ever():
    for unit in UNITS:
        lines = unit.read_text().splitlines()
        assert {"Restart=always", "RestartSec=100ms", "StartLimitIntervalSec=0"} <= set(lines), unit.name
    for name, store in (("cloud-api-adaptor", True), ("agent-protocol-forwarder", True), ("peerpod-keeper", False)):
        (unit,) = [u for u in UNITS if u.name == f"{name}.service"]
        assert ("FileDescriptorStoreMax=" in unit.read_text()) == store, name
    adaptor = (ROOT / "deploy/systemd/cloud-api-adaptor.service").read_text()
    assert "KillMode=process\n" in adaptor and "FileDescriptorStorePreserve=yes\n" in adaptor
    assert shlex.split(re.search(r"^Environment=(.*)$", adaptor, re.MULTILINE)[1]) == ["NO_KEEPER=1"]
