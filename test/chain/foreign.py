# SPDX-License-Identifier: Apache-2.0
"""Other people's ttrpc libraries, driven from here: `foreign-go` (containerd/ttrpc) and `foreign-rust` (the
ttrpc crate) take the same words on standard input, a line each, fields separated by tabs, bytes as hex:

  dial C PATH                                        -> dialled C | failed C TEXT
  call ID C SERVICE METHOD TIMEOUT_NS PAYLOAD K=V&K=V  -> done ID CODE TEXT PAYLOAD DETAILS
  stream ID C SERVICE METHOD COUNT PAYLOAD           -> done ID CODE TEXT COUNT_BACK DETAILS
  cancel ID | half C (shuts down writing) | close C

Code -1: no status came, the connection has failed. `foreign-X serve SOCKET` is the agent: Echo, Meta
(metadata and timeout), Parse (refuses what is no StringValue), Fail (code and text as told), Hold (200 of
them, the last first), Never, Cancelled (how many of Never's have ended by their client's end), Check,
EchoStream (streaming, which the agent's service has not)."""
import itertools
import queue
import subprocess
import threading

from conftest import BIN, die_with_parent

LIBRARIES = ("go", "rust")
NO_CODE = -1


class Answer:
    def __init__(self, words):
        self.code = int(words[0])
        self.text = bytes.fromhex(words[1]).decode("utf-8")
        self.payload, self.details = bytes.fromhex(words[2]), bytes.fromhex(words[3])

    def __repr__(self):
        return f"<code {self.code} {self.text!r} {len(self.payload)} bytes>"


class Foreign:
    """A running client. Connections and calls are numbered; answers come in any order."""

    def __init__(self, library):
        self.process = subprocess.Popen([BIN / f"foreign-{library}", "call"], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        preexec_fn=die_with_parent)
        self.library = library
        self.numbers = itertools.count(1)
        self.lines, self.answers = queue.Queue(), {}
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n").split("\t"))
        self.lines.put(None)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def say(self, *words):
        self.process.stdin.write("\t".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def heard(self, seconds):
        words = self.lines.get(timeout=seconds)
        assert words, f"foreign-{self.library} has ended: {self.process.wait(10)}"
        return words

    def dial(self, path):
        name = next(self.numbers)
        self.say("dial", name, path)
        while True:
            words = self.heard(10)
            if words[0] == "done":
                self.answers[int(words[1])] = Answer(words[2:])
                continue
            assert words[0] == "dialled", bytes.fromhex(words[2]).decode()
            return name

    def begin(self, connection, service, method, payload=b"", timeout_ns=0, metadata=()):
        number = next(self.numbers)
        pairs = "&".join(f"{k}={v}" for k, v in metadata)
        self.say("call", number, connection, service, method, timeout_ns, payload.hex(), pairs)
        return number

    def stream(self, connection, service, method, count, payload):
        number = next(self.numbers)
        self.say("stream", number, connection, service, method, count, payload.hex())
        return self.wait(number)

    def wait(self, number, seconds=30):
        while number not in self.answers:
            words = self.heard(seconds)
            assert words[0] == "done", words
            self.answers[int(words[1])] = Answer(words[2:])
        return self.answers.pop(number)

    def call(self, connection, service, method, payload=b"", **more):
        return self.wait(self.begin(connection, service, method, payload, **more))

    def answered(self, number):
        """Whether it is there already, without waiting."""
        while True:
            try:
                words = self.lines.get_nowait()
            except queue.Empty:
                return number in self.answers
            assert words and words[0] == "done", words
            self.answers[int(words[1])] = Answer(words[2:])

    def half_close(self, connection):
        self.say("half", connection)

    def cancel(self, number):
        self.say("cancel", number)
        return self.wait(number)

    def close(self, connection):
        self.say("close", connection)
