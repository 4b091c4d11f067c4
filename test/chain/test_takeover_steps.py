# SPDX-License-Identifier: Apache-2.0
"""Death at each step of a take-over, on either side: a go-between passes the words of two real daemons on, and
kills one of them, or both, at the word that it was told. Whoever it is, in the end the younger one serves
and has everything."""
import contextlib
import os
import signal
import socket
import threading
import time

import pytest
from conftest import wait_for
from daemons import (ALL, ASK, DESCRIPTORS, HELD, MESSAGE, SERVING, STORED, UNLOCKED, echo, fleet, fleet_with,
                     kill_daemon)
from ttrpc import Client

__all__ = ["fleet", "fleet_with"]
STEPS = {"ask": ASK, "descriptors": DESCRIPTORS, "held": HELD, "all": ALL, "stored": STORED,
         "unlocked": UNLOCKED, "serving": SERVING}
OLD, NEW = 0, 1  # in order of birth
MESSAGE_MAX, FDS_MAX = 16384, 253


class GoBetween:
    """Stands in the place of the old daemon's socket, for one take-over. kill is called before the word
    is passed on, or so many seconds after."""

    def __init__(self, old, step, kill, after=None):
        self.step, self.kill, self.after, self.said = step, kill, after, []
        self.socket, self.aside = old.pods / ".takeover", old.pods / ".takeover.aside"
        self.socket.rename(self.aside)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.socket))
        self.listener.listen(1)
        self.listener.settimeout(20)
        self.killed = threading.Event()
        self.main = threading.Thread(target=self.run)
        self.main.start()

    def run(self):
        new, _ = self.listener.accept()
        self.listener.close()
        old = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        old.connect(str(self.aside))
        self.aside.rename(self.socket)  # for who asks again
        back = threading.Thread(target=self.carry, args=(old, new))
        back.start()
        self.carry(new, old)
        back.join()
        new.close()
        old.close()

    def carry(self, source, target):
        """Until one of them is gone; then the other learns of it."""
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(source, MESSAGE_MAX, FDS_MAX)
                if not data:
                    break
                self.pass_on(data, fds, target)
        target.shutdown(socket.SHUT_WR)

    def pass_on(self, data, fds, target):
        self.said.append(MESSAGE.unpack_from(data)[1])
        now = self.said[-1] == self.step
        if now and self.after is None:
            self.end()
        try:
            socket.send_fds(target, [data], fds)
        finally:
            for fd in fds:
                os.close(fd)
        if now and self.after is not None:
            time.sleep(self.after)
            self.end()

    def end(self):
        self.kill()
        self.killed.set()


def check(fleet, step, victims, **when):
    """The pod's calls are answered, once, whoever serves."""
    def kill():
        for i in victims:
            daemon = fleet.daemons[i]
            os.kill(wait_for(lambda d=daemon: d.program and d.daemon_pid()), signal.SIGKILL)

    old = fleet.add(wait=True)
    with Client(old.run_pod(), timeout=30) as agent:
        held = [agent.start("any", "Hold", b"%d" % i) for i in range(199)]
        echo(agent, b"they have arrived")
        between = GoBetween(old, step, kill, **when)
        new = fleet.add()
        assert between.killed.wait(20), between.said
        held.append(agent.start("any", "Hold", b"199"))
        answers = [agent.answer().stream for _ in held]
        assert sorted(answers) == held
        wait_for(old.handed_over)
        wait_for(new.serves)
        between.main.join()
        kill_daemon(new)
        echo(agent, b"its keeper has everything")
        with Client(new.record_socket(), timeout=30) as another:
            echo(another, b"a new connection")


@pytest.mark.parametrize("victims", [[OLD], [NEW], [OLD, NEW]], ids=["old", "new", "both"])
@pytest.mark.parametrize("step", STEPS)
def test_death_at_each_word(fleet, step, victims):
    check(fleet, STEPS[step], victims)


@pytest.mark.parametrize("ms", [0.5, 1, 2, 4, 8])
def test_the_new_one_dies_behind_the_last_word_of_the_old_one(fleet, ms):
    """It locks, raises the generation, recovers, serves."""
    check(fleet, UNLOCKED, [NEW], after=ms / 1000)
