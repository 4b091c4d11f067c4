# SPDX-License-Identifier: Apache-2.0
"""Calls on hypervisor.sock outlive the server's death (design.md 5): the test server under the real
keeper, killed while calls are under way."""
import contextlib
import os
import pathlib
import random
import signal
import socket
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from ttrpc import Client, frame, message, parse, request, text

ECHO = "test.Echo"


class Server:
    def __init__(self, run, directory):
        self.path = directory / "run" / "t.sock"
        self.keeper = run(BIN / "peerpod-keeper", "-restart-max", "20ms", "--",
                          BIN / "rpc_test_server", self.path)
        wait_for(self.serves)

    def serves(self):
        try:
            with Client(self.path) as client:
                return echo(client, "ping") == "ping"
        except (OSError, ttrpc.Closed):
            return False

    def pid(self):
        children = pathlib.Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children")
        pids = children.read_text().split()
        return int(pids[0]) if pids else 0

    def kill(self):
        old = wait_for(self.pid)
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: self.pid() not in (0, old))


@pytest.fixture
def server(run, short_dir):
    return Server(run, short_dir)


def echo_body(value):
    return request(ECHO, "Echo", message((2, value)))


def value_of(response):
    assert response.code == ttrpc.OK, response
    return text(parse(response.payload), 2)


def echo(client, value, stream=None):
    return value_of(client.call(ECHO, "Echo", message((2, value)), stream=stream))


def test_a_call_that_waits_is_answered_by_the_successor(server):
    with Client(server.path) as waiting, Client(server.path) as other:
        waiting.start(ECHO, "Block", message((1, "held")), stream=1)
        assert echo(waiting, "behind it", stream=3) == "behind it"
        for _ in range(3):
            server.kill()
        # The successor has looked at both connections, in whatever order.
        held = message((1, "held"))
        wait_for(lambda: value_of(other.call(ECHO, "Parked", held)) == "1")
        release = other.call(ECHO, "Release", message((1, "held")))
        assert release.code == ttrpc.OK, release
        while (answer := waiting.answer()).stream != 1:
            # behind a call that waits: given again by each successor, and harmless
            assert answer.stream == 3 and value_of(answer) == "behind it"
        assert value_of(answer) == "held"
        assert echo(waiting, "and it goes on", stream=5) == "and it goes on"


def test_a_client_that_sends_an_out_of_band_byte_is_cut_off(server):
    """No peek reads it: the server's loop would run for as long as it lies there."""
    with Client(server.path) as client, Client(server.path) as other:
        assert echo(client, "before") == "before"
        try:
            client.sock.send(b"!", socket.MSG_OOB)
        except OSError:
            return  # since Linux 5.15
        assert client.closed_by_peer()
        assert echo(other, "still served") == "still served"


@pytest.mark.parametrize("cut", [1, 9, 10, 11, 30])
def test_half_a_frame_before_the_death_and_half_behind_it(server, cut):
    data = frame(1, echo_body("x" * 5000))
    with Client(server.path) as client:
        assert echo(client, "first", stream=3) == "first"
        client.send(data[:cut])
        time.sleep(0.05)
        server.kill()
        client.send(data[cut:])
        assert value_of(client.answer(1)) == "x" * 5000


def test_an_idle_connection(server):
    with Client(server.path) as client:
        assert echo(client, "before") == "before"
        server.kill()
        assert echo(client, "after") == "after"


def test_a_client_that_went_away_meanwhile(server):
    client = Client(server.path)
    client.start(ECHO, "Block", message((1, "gone")), stream=1)
    time.sleep(0.05)
    os.kill(server.keeper.pid, signal.SIGSTOP)  # no restart yet
    os.kill(server.pid(), signal.SIGKILL)
    client.close()
    os.kill(server.keeper.pid, signal.SIGCONT)
    with Client(server.path) as other:
        cancelled = wait_for(lambda: value_of(other.call(ECHO, "Cancelled", b"")) != "0")
        assert cancelled


def test_more_than_a_shim_sends_ends_with_the_process(server):
    with Client(server.path) as client:
        client.start(ECHO, "Block", message((1, "large")), stream=1)
        client.start(ECHO, "Echo", message((2, "y" * 300000)), stream=3)
        assert value_of(client.answer(3)) == "y" * 300000
        server.kill()
        assert client.closed_by_peer()
    with Client(server.path) as client:
        assert echo(client, "alive") == "alive"


def test_random_deaths(server):
    """Every call gets its own right answer; some get it twice."""
    dice = random.Random(7)
    with Client(server.path, timeout=20) as client:
        stream = 1
        for _ in range(40):
            streams = {}
            for _ in range(dice.randrange(1, 12)):
                streams[stream] = f"call {stream} " + "z" * dice.randrange(2000)
                stream += 2
            for number, value in streams.items():
                client.send(frame(number, echo_body(value)))
                if dice.random() < 0.15:
                    with contextlib.suppress(ProcessLookupError):  # dead of the last one
                        os.kill(wait_for(server.pid), signal.SIGKILL)
            waiting = dict(streams)
            while waiting:
                number, kind, flags, body = client.read_frame()
                response = ttrpc.Response(number, flags, body)
                assert kind == ttrpc.RESPONSE
                if number in waiting:
                    assert value_of(response) == waiting.pop(number)
