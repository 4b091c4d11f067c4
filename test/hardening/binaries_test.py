# SPDX-License-Identifier: Apache-2.0
"""The programs as they were built, seen by readelf and objdump: position independent, relocations read-only, no
executable stack, no segment both writable and executable, checked copies, stack protectors and probes, landing pads."""
import os
import pathlib
import platform
import re
import subprocess

import pytest

BIN = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin"))
PROGRAMS = ["cloud-api-adaptor", "agent-protocol-forwarder", "process-user-data", "peerpod-keeper",
            "peerpodctl"]


def out(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=PROGRAMS)
def program(request):
    return BIN / request.param


def test_layout(program):
    assert "Type:                              DYN (Position-Independent Executable file)" in \
        out("readelf", "-hW", program)
    dynamic = out("readelf", "-dW", program)
    assert re.search(r"FLAGS_1.*\bNOW\b.*\bPIE\b", dynamic) and "BIND_NOW" in dynamic
    for word in ("TEXTREL", "RPATH", "RUNPATH"):
        assert word not in dynamic, word
    segments = out("readelf", "-lW", program)
    assert "GNU_RELRO" in segments
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack and "RWE" not in stack
    assert not re.search(r"LOAD .* RWE ", segments)


def test_checked_calls(program):
    symbols = out("readelf", "-W", "--dyn-syms", program)
    assert "__stack_chk_fail" in symbols
    assert re.search(r"__(snprintf|memcpy|vsnprintf|fprintf|vfprintf)_chk", symbols)


def test_code(program):
    """Landing pads at functions' beginnings, and stack frames larger than a page touched page by page."""
    main = out("objdump", "-d", "--no-show-raw-insn", "--disassemble=main", program)
    first = re.search(r"<main>:\n\s+\w+:\s+(\w+)", main).group(1)
    if platform.machine() == "x86_64":
        assert first == "endbr64", main[:500]
        code = out("objdump", "-d", "--no-show-raw-insn", program)
        steps = [int(n, 16) for n in re.findall(r"sub +\$0x([0-9a-f]{1,8}),%rsp", code)]
        assert steps and max(steps) <= 0x1000
    elif platform.machine() == "aarch64":
        assert first in ("bti", "paciasp", "hint"), main[:500]
