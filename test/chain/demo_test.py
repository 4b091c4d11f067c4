# SPDX-License-Identifier: Apache-2.0
"""`make demo` behind its build: output, timeline, time, exit status, and that nothing is left."""
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(os.environ["PEERPOD_SOURCE"])
DEMO = ROOT / "scripts" / "demo"
SECONDS_MAX = 10


def run(tmp_path, *command, **environment):
    env = {**os.environ, "DEMO_LOG": str(tmp_path / "demo.log"), **environment}
    return subprocess.run([str(DEMO), *command], env=env, capture_output=True, text=True,
                          timeout=60, check=False)


def links():
    return sorted(os.listdir("/sys/class/net"))


def test_demo(tmp_path):
    before, start = links(), time.monotonic()
    done = run(tmp_path)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hello from a container in a pod VM" in done.stdout
    if shutil.which("perl"):
        assert re.search(r"GET http://10\.88\.\d+\.\d+:8080/ on the worker: "
                         r"Hello over the pod network from [a-z]", done.stdout), done.stdout
    for step in ("CreateVM", "StartVM", "StopVM"):
        assert step in done.stdout + done.stderr, "the timeline names the steps"
    if "asan" not in os.environ["PEERPOD_BIN"] and "tsan" not in os.environ["PEERPOD_BIN"]:
        assert seconds < SECONDS_MAX
    assert links() == before, "the demo has left network links behind"


def test_demo_in_a_user_namespace(tmp_path):
    if subprocess.run(["unshare", "-Urnm", "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    done = run(tmp_path, DEMO_USERNS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hello from a container in a pod VM" in done.stdout


def test_a_command_of_ones_own_and_its_status(tmp_path):
    done = run(tmp_path, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.returncode != 0
    assert "out" in done.stdout


if not any(s in os.environ["PEERPOD_BIN"] for s in ("asan", "tsan", "clang")):
    def test_demo_on_aws(tmp_path):
        """On the double of AWS, whose instance is booted as a pod VM."""
        pytest.importorskip("moto")
        done = run(tmp_path, "/bin/sh", "-c", "echo hello from aws", PROVIDER="aws")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hello from aws" in done.stdout
        log = (tmp_path / "demo.log").read_text()
        assert "with provider aws" in log and "at 172.31." in log, log


def test_programs_that_are_not_built(tmp_path):
    done = run(tmp_path, PEERPOD_BIN=str(tmp_path))
    assert done.returncode == 1 and "make build" in done.stderr
