# SPDX-License-Identifier: Apache-2.0
"""The daemon under its keeper and one pod on it, for the tests that run isolated (default paths, a
network of their own)."""
import os
import pathlib
import subprocess
import threading
import time

BIN = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin"))
SOCKET = pathlib.Path("/run/peerpod/hypervisor.sock")
PORT = 15150


def wait_for(what, seconds, saying):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s: {saying}"
        time.sleep(0.02)


def pids_of(program):
    """Process ids of a program by the name of its file, oldest first."""
    found = []
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if pathlib.Path(os.readlink(proc / "exe")).name == program:
                found.append(int(proc.name))
        except OSError:
            pass
    return sorted(found)


class Daemon:
    """peerpod-keeper with cloud-api-adaptor local in native mode."""

    def __init__(self, tmp_path, *flags):
        self.log_path = tmp_path / "daemon.log"
        SOCKET.unlink(missing_ok=True)  # a predecessor's, killed: it would look like ours
        with open(self.log_path, "ab") as log:
            self.keeper = subprocess.Popen(
                [BIN / "peerpod-keeper", "--", BIN / "cloud-api-adaptor", "local",
                 "-forwarder-compat", "native", *flags], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL)
        wait_for(self.serving, 20, f"the daemon serves; its log:\n{self.log()}")

    def serving(self):
        assert self.keeper.poll() is None, f"the keeper ended:\n{self.log()}"
        return SOCKET.is_socket()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def pid(self):
        return pids_of("cloud-api-adaptor")[0]

    def stop(self):
        self.keeper.kill()
        self.keeper.wait()
        for pid in pids_of("cloud-api-adaptor"):
            os.kill(pid, 9)


class Pod:
    """`peerpodctl run` in the background; its output's lines come with the time of their arrival."""

    def __init__(self, *command):
        self.process = subprocess.Popen([BIN / "peerpodctl", "run", "--", *command],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.errors = []
        self.threads = [threading.Thread(target=self.collect, args=pair, daemon=True) for pair in
                        ((self.process.stdout, self.lines), (self.process.stderr, self.errors))]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def collect(stream, into):
        for line in stream:
            into.append((time.monotonic(), line.rstrip("\r\n")))

    def numbers(self):
        return [int(line) for _, line in list(self.lines) if line.isdigit()]

    def text(self):
        return "\n".join(line for _, line in self.lines + self.errors)

    def finish(self, seconds):
        """The exit status, when all output has been read."""
        try:
            status = self.process.wait(seconds)
        finally:
            self.process.kill()
        for thread in self.threads:
            thread.join(5)
        return status
