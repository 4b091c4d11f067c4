# SPDX-License-Identifier: Apache-2.0
"""Calls that go on while something is killed, to the agent of agent_stub.py."""
import os
import threading
import time

import ttrpc
from conftest import wait_for
from ttrpc import Client


class Caller(threading.Thread):
    """Calls without pause; each must be answered with what it sent."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.calls, self.longest, self.over, self.error = path, 0, 0, False, None
        self.start()

    def run(self):
        try:
            with Client(self.path, timeout=30) as agent:
                while not self.over:
                    began = time.monotonic()
                    payload = os.urandom(20000)
                    answer = agent.call("any", "Echo", payload)
                    assert answer.code == ttrpc.OK and answer.payload == payload
                    self.calls += 1
                    self.longest = max(self.longest, time.monotonic() - began)
        except Exception as e:  # the test's thread reports it
            self.error = f"after {self.calls} calls: {type(e).__name__}: {e}"

    def goes_on(self):
        """A call that begins now is answered."""
        before = self.calls
        wait_for(lambda: self.error or self.calls > before + 1, 30)
        assert not self.error, self.error

    def stop(self):
        self.over = True
        self.join(40)
        assert not self.error and not self.is_alive(), self.error
