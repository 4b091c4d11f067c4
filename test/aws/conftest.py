# SPDX-License-Identifier: Apache-2.0
"""A new small AWS for each test (world.py); every request that reached it is judged (judge.py)."""
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
    import judge
    import world
    one = world.World()
    try:
        yield one
        for exchange in one.proxy.exchanges:
            if exchange.target:
                judge.round_trip_json(exchange.target, exchange.body)
                continue
            judge.round_trip(exchange.body, {"2016-11-15": "ec2", "2011-06-15": "sts"}[
                exchange.form["Version"]])
    finally:
        one.stop()
