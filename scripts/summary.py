#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: summary.py RESULTS     the end of `make test`

Reads ctest's JUnit files and says what ran, what was skipped and which oracles were there. Exit
status 1: something failed, or STRICT=1 and something was skipped.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def reason(case):
    """The first line of a skipped test's output that says why."""
    text = (case.findtext("system-out") or "").strip().splitlines()
    said = [line for line in text if "skip" in line.lower()]
    return (said or text or ["no reason given"])[0][:100]


def parts(case):
    """What a passed test says it left out: its lines with "skip", without the frameworks' own."""
    text = (case.findtext("system-out") or "").splitlines()
    if not any(line.startswith(("[  SKIPPED ]", "SKIPPED [")) for line in text):
        return []
    return [line.strip()[:160] for line in text if "skip" in line.lower() and not re.match(
        r"\[ *SKIPPED *\]|\s*\d+ SKIPPED TEST|[.\d].* in [\d.]+s", line)]


def read(path):
    """(passed, failed names, [(skipped name, reason)], left out parts, seconds) of one JUnit file."""
    passed, failed, skipped, left, seconds = 0, [], [], [], 0.0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        seconds += float(case.get("time") or 0)
        status = case.get("status")
        if status == "run":
            passed += 1
            left += [(case.get("name"), line) for line in parts(case)]
        elif status in ("notrun", "disabled") or case.find("skipped") is not None:
            skipped.append((case.get("name"), reason(case)))
        else:
            failed.append(case.get("name"))
    return passed, failed, skipped, left, seconds


def can(*command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def oracles():
    corpus = pathlib.Path(os.environ.get("PEERPOD_CORPUS", ROOT / ".." / "shared" / "corpus"))
    venv = ROOT / "build" / "venv" / "bin" / "python"
    return {
        "corpus": corpus.is_dir(),
        "python venv": venv.exists(),
        "root": os.geteuid() == 0,
        "network namespaces": can("unshare", "-n", "true"),
        "user namespaces": can("unshare", "-Ur", "true"),
        "nft": shutil.which("nft") is not None,
        "tcpdump": shutil.which("tcpdump") is not None,
        "clang": shutil.which("clang") is not None,
        "shellcheck": shutil.which("shellcheck") is not None,
    }


def main():
    results = pathlib.Path(sys.argv[1])
    strict = os.environ.get("STRICT") == "1"
    failures = lines(results / "failed")
    skips, partly = lines(results / "skipped"), []
    print("== summary")
    for path in sorted(results.glob("*.xml")):
        passed, failed, skipped, left, seconds = read(path)
        again = path.with_suffix(".again")
        still = read(again)[1] if again.exists() else failed
        for name in sorted(set(failed) - set(still)):
            print(f"UNSTEADY: {path.stem}: {name} failed beside others and passed alone")
        failed = [name for name in failed if name in still]
        print(f"{path.stem}: {passed} passed, {len(failed)} failed, {len(skipped)} skipped, "
              f"{seconds:.0f} s of tests")
        failures += [f"{path.stem}: {name}" for name in failed]
        skips += [f"{path.stem}: {name}: {why}" for name, why in skipped]
        partly += [f"{path.stem}: part of {name}: {why}" for name, why in left]
    have = oracles()
    print("oracles here: " + (", ".join(k for k, v in have.items() if v) or "none"))
    print("not here: " + (", ".join(k for k, v in have.items() if not v) or "nothing"))
    for line in skips + partly:
        print(f"skipped: {line}")
    for line in failures:
        print(f"FAILED: {line}")
    if strict and skips:
        print("FAILED: STRICT=1 and something was skipped")
        return 1
    if not failures:
        print("all passed" + (f"; {len(skips)} skipped" if skips else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
