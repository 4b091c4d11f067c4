# SPDX-License-Identifier: Apache-2.0
"""The framing cases of test_hypervisor_socket.py against the real daemon instead of the test server."""
import inspect
import tempfile

import pytest
import test_hypervisor_socket as cases
from node import Node, check_world

for _name, _case in inspect.getmembers(cases, inspect.isfunction):
    if _name.startswith("test_") and "any_server" in inspect.signature(_case).parameters:
        globals()[_name] = _case


@pytest.fixture(scope="module")
def any_server():
    node = Node(tempfile.mkdtemp(prefix="pp-")).start()
    before = node.world()
    yield cases.Server(node.socket)
    check_world(node, before)
    node.stop()
