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


def judge_all(one):
    import judge
    for exchange in one.proxy.exchanges:
        if exchange.target:
            judge.round_trip_json(exchange.target, exchange.body)
            continue
        judge.round_trip(exchange.body, {"2016-11-15": "ec2", "2011-06-15": "sts"}[
            exchange.form["Version"]])


@pytest.fixture
def world_with():
    """world_with(policy=..., quotas=...): one that is not as usual."""
    if LACKS:
        pytest.skip(LACKS)
    import world
    made = []

    def make(**more):
        made.append(world.World(**more))
        return made[-1]

    try:
        yield make
        for one in made:
            judge_all(one)
    finally:
        for one in made:
            one.stop()


@pytest.fixture
def aws(world_with):
    return world_with()
