# SPDX-License-Identifier: Apache-2.0
"""Programs under test: started with a death signal and a process group of their own, killed at the
end whatever happens."""
import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import clouds

BIN = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin"))
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def pytest_addoption(parser):
    parser.addoption("--socket", help="run the cases that need no test server against this socket")


def pytest_configure(config):
    config.addinivalue_line("markers", "every_provider: also run with PEERPOD_PROVIDER set")
    config.addinivalue_line("markers", "local_only: not with EVERY_TEST=1 either")


def pytest_collection_modifyitems(config, items):
    """With --socket only the cases that suit any server are left, with another provider than local those
    that are marked; with EVERY_TEST=1 all that hold with every one."""
    others = []
    if config.getoption("--socket"):
        others = [i for i in items if "any_server" not in i.fixturenames]
    elif os.environ.get("PEERPOD_PROVIDER", "local") != "local":
        whole = os.environ.get("EVERY_TEST") == "1"
        others = [i for i in items if (i.get_closest_marker("local_only") if whole else
                                       not i.get_closest_marker("every_provider"))]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [i for i in items if i not in others]


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Program:
    """A running program; its output goes to a file that is printed when a test fails."""

    def __init__(self, argv, log, **popen):
        self.log_path = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=die_with_parent, **popen)
        self.pid = self.process.pid

    def log(self):
        return pathlib.Path(self.log_path).read_text(errors="replace")

    def alive(self):
        return self.process.poll() is None

    def stop(self, seconds=10):
        """SIGTERM, then SIGKILL for the whole group; the exit status."""
        if self.alive():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.process.wait(seconds)

    def status(self, key):
        """An integer of /proc/PID/status ("VmRSS" in kB, "Threads")."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
        raise KeyError(key)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def wait_for(what, seconds=30, step=0.01):
    """Polls until what() is true; returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(step)


@pytest.fixture
def short_dir():
    """A directory whose path leaves room for socket names (107 bytes)."""
    path = tempfile.mkdtemp(prefix="pp-")
    yield pathlib.Path(path)
    clouds.stop_of(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def node_with(short_dir):
    """node_with(flags...) starts a node in the test's directory, in the place of the one before."""
    from node import Node  # which imports from here
    nodes = []

    def make(*flags, **more):
        for old in nodes:
            old.stop()
        nodes.append(Node(short_dir, *flags, **more))
        return nodes[-1].start()

    yield make
    for node in nodes:
        node.stop()
        print(node.log())


@pytest.fixture
def run(short_dir):
    """run(argv...) starts a program that ends with the test."""
    programs = []

    def start(*argv, **popen):
        programs.append(Program(argv, short_dir / f"log.{len(programs)}", **popen))
        return programs[-1]

    yield start
    for program in programs:
        program.stop()
        sys.stderr.write(program.log())
