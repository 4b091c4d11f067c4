# SPDX-License-Identifier: Apache-2.0
"""A new small AWS for each test (world.py)."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

try:
    import moto  # noqa: F401
    LACKS = None
except ImportError as missing:
    LACKS = f"no moto (scripts/setup makes build/venv): {missing}"


@pytest.fixture
def aws():
    if LACKS:
        pytest.skip(LACKS)
    import world
    one = world.World()
    yield one
    one.stop()
