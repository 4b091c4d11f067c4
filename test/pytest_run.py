#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: pytest_run.py [--isolated] FILE [PYTEST ARGUMENTS]

Runs one pytest file with the Python of build/venv (made by scripts/setup), or with this one where
it has pytest. Exit status for ctest: 0 passed, 77 every test skipped (or no pytest here), else
failed. With STRICT=1 any skipped test is a failure.

--isolated: in network, mount, pid and uts namespaces of its own with an empty /run, so that a test
may use the default paths, change the network, and leave processes behind: the kernel ends them all.
"""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIP = 77


def reexec_in_venv():
    venv = ROOT / "build" / "venv" / "bin" / "python"
    if os.access(venv, os.X_OK) and pathlib.Path(sys.prefix) != ROOT / "build" / "venv":
        os.execv(venv, [str(venv), *sys.argv])


def skip(why):
    print(f"skipped: {why}")
    return 1 if os.environ.get("STRICT") == "1" else SKIP


def isolate():
    """Runs this again inside namespaces, or says why not."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child",
               "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False,
                                                     stderr=subprocess.DEVNULL).returncode != 0:
        return skip("needs root, to make namespaces")
    arguments = [a for a in sys.argv[1:] if a != "--isolated"]
    script = "mount -t tmpfs -o mode=0755 test /run && ip link set lo up && exec \"$@\""
    os.execvp("unshare", [*unshare, "sh", "-ec", script, "sh", sys.executable,
                          str(pathlib.Path(__file__).resolve()), *arguments])


class Outcomes:
    """Counts what pytest itself only prints."""

    def __init__(self):
        self.ran = 0
        self.skipped = []

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr[2]}"
                                if isinstance(report.longrepr, tuple) else report.nodeid)
        elif report.when == "call":
            self.ran += 1

    def pytest_collectreport(self, report):
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr[2]}")


def main():
    reexec_in_venv()
    if "--isolated" in sys.argv:
        return isolate()
    try:
        import pytest
    except ImportError:
        return skip("no pytest (scripts/setup makes build/venv)")
    outcomes = Outcomes()
    status = pytest.main(["-p", "no:cacheprovider", "-q", "-rs", *sys.argv[1:]],
                         plugins=[outcomes])
    if outcomes.skipped and os.environ.get("STRICT") == "1":
        print("STRICT=1: skipped tests are failures: " + "; ".join(outcomes.skipped))
        return 1
    # 5: nothing was collected, which is right only when a whole file skipped itself.
    if status in (0, 5) and outcomes.skipped and outcomes.ran == 0:
        return SKIP
    return int(status)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
