# SPDX-License-Identifier: Apache-2.0
"""The guest readers against other implementations, on generated documents: TOML against Python's
tomllib, cloud-config against PyYAML (both ways), initdata against Python's gzip and hashlib.

The random numbers are seeded: a failure comes back, and its document is in the message.
"""
import base64
import datetime
import gzip
import hashlib
import json
import os
import pathlib
import random
import subprocess
import tomllib

import pytest
import yaml

JUDGE = pathlib.Path(os.environ["PEERPOD_BIN"]) / "guest_judge"
ROUNDS = int(os.environ.get("JUDGE_ROUNDS", "1500"))


class Judge:
    def __init__(self):
        self.process = subprocess.Popen([JUDGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, word, data):
        data = data if isinstance(data, bytes) else data.encode()
        self.process.stdin.write(f"{word} {len(data)}\n".encode() + data)
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.fixture(name="judge")
def judge_fixture():
    judge = Judge()
    yield judge
    judge.close()


# ---- TOML ----

PIECES = ["a", "Z", "0", "_", " ", "\t", "#", "=", "[", "]", ".", "\n", "\r\n", "é", "😀", "\u2028",
          "'", '"', "\\"]
ESCAPES = ['\\b', '\\t', '\\n', '\\f', '\\r', '\\"', '\\\\', '\\u00e9', '\\U0001F600', "\\u0000"]


def some(rng, pieces, most):
    return "".join(rng.choice(pieces) for _ in range(rng.randint(0, most)))


def toml_string(rng):
    kind = rng.randrange(4)
    line = [p for p in PIECES if "\n" not in p]
    if kind == 0:
        return '"' + some(rng, [p for p in line if p not in '"\\'] + ESCAPES, 8) + '"'
    if kind == 1:
        return "'" + some(rng, [p for p in line if p != "'"], 8) + "'"
    if kind == 2:
        body = some(rng, [p for p in PIECES if p not in '"\\'] + ESCAPES +
                    ['" ', '"" ', "\\\n  ", "\\ \r\n\n\t"], 8)
        return '"""' + body + '"""' + rng.choice(["", '"', '""'])
    body = some(rng, [p for p in PIECES if p != "'"] + ["' ", "'' "], 8)
    return "'''" + body + "'''" + rng.choice(["", "'", "''"])


def toml_value(rng):
    kind = rng.randrange(8)
    if kind < 5:
        return toml_string(rng)
    if kind == 5:
        return rng.choice(["true", "false"])
    n = rng.choice([rng.randint(-10, 10), rng.randint(-2**63, 2**63 - 1)])
    if kind == 6 or n < 0:
        return f"{n:+d}" if rng.random() < 0.5 else f"{n:_d}"
    return rng.choice([f"0x{n:x}", f"0x{n:X}", f"0o{n:o}", f"0b{n:b}"])


def toml_key(rng, used):
    while True:
        key = rng.choice(["k", "a-b_c", "9", "X", "true"]) + str(rng.randint(0, 99))
        if rng.random() < 0.4:
            key += rng.choice([".toml", " ", "é"])
        if key not in used:
            used.add(key)
            break
    bare = all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare and rng.random() < 0.6 else rng.choice(['"%s"', "'%s'"]) % key


def toml_document(rng):
    """Of nothing but what our reader takes."""
    end = rng.choice(["\n", "\r\n"])
    lines, top, used = [], set(), None
    for _ in range(rng.randint(0, 8)):
        kind = rng.randrange(6)
        if kind == 0:
            lines.append(rng.choice(["", "  ", "# comment é", "\t# [x"]))
        elif kind == 1:
            lines.append(rng.choice(["[%s]", " [ %s ] ", "[\t%s]# c"]) % toml_key(rng, top))
            used = set()
        else:
            keys = top if used is None else used
            form = rng.choice(["%s=%s", "%s = %s", "\t%s\t=\t%s  # c"])
            lines.append(form % (toml_key(rng, keys), toml_value(rng)))
    return end.join(lines) + rng.choice(["", end])


MUTATIONS = PIECES + ["{", "}", ",", "-", "+", "1.5", "1979-05-27", "07:32:00", "inf", "0x", "1_", "[[",
                      "\r", "\x00", "\x01", "\x7f", "true", '"""', "'''", "a.b = 1\n", "[1]", "{a=1}"]


def mutate(rng, text, pieces):
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        cut = at + rng.choice([0, 0, 1, 2])
        text = text[:at] + rng.choice(pieces) + text[cut:]
    return text


def plain(value):
    """As our judge prints it; TypeError for what our reader does not know."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -2**63 <= value < 2**63:
            raise TypeError("beyond 64 bits")
        return value
    if isinstance(value, str):
        return value.encode().hex()
    raise TypeError(type(value))


def expected_toml(text):
    """(value, None), or (None, why not)."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as e:
        return None, f"tomllib: {e}"
    try:
        for key, value in tree.items():
            tree[key] = {k: plain(v) for k, v in value.items()} if isinstance(value, dict) \
                else plain(value)
    except TypeError as e:
        return None, f"not ours: {e}"
    return tree, None


def test_toml_valid(judge):
    rng = random.Random(1)
    for _ in range(ROUNDS):
        text = toml_document(rng)
        want, why = expected_toml(text)
        assert why is None, f"the generator is wrong: {why} in {text!r}"
        assert judge("toml", text) == want, repr(text)


def test_toml_mutated(judge):
    """We take nothing that tomllib does not, and understand it the same; what tomllib takes and is
    made of our types only, we refuse for dotted keys and the like alone."""
    rng = random.Random(2)
    taken = refused = stricter = 0
    for _ in range(ROUNDS * 3):
        text = mutate(rng, toml_document(rng), MUTATIONS)
        want, why = expected_toml(text)
        got = judge("toml", text)
        if "error" in got and isinstance(got["error"], str) and got["error"].startswith("TOML"):
            refused += 1
            if want is not None:
                stricter += 1
                assert any(w in got["error"] for w in (
                    "dotted keys", "inline tables", "NUL")), (text, got)
        else:
            taken += 1
            assert want is not None, (text, got, why)
            assert got == want, repr(text)
    assert taken > ROUNDS / 10 and refused > ROUNDS / 10 and stricter < refused / 2


def test_toml_types_that_are_not_ours(judge):
    for value in ("1.0", "1e1", "nan", "+inf", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00",
                  "[]", "[1]", "{}", "{a=1}"):
        assert isinstance(tomllib.loads(f"k = {value}")["k"],
                          (float, list, dict, datetime.date, datetime.time))
        assert "error" in judge("toml", f"k = {value}\n")


# ---- cloud-config ----

YAML_PIECES = ["a", "key: ", "- ", "# ", " ", "  ", "\t", "\n", "\n\n", "\r", "\r\n", "\x85", "\u2028",
               "\ufeff", "é", "😀", "\x00", "\x01", "\x7f", "\uffff", "\u00a0", "'", '"', "\\", "---",
               "...", "|", ">", "&a", "*a", "!t", "%", "@", "{", "]", "? ", "~", "null", "true", "1"]


def yaml_ok(text):
    return "\0" not in text


def test_builder_is_read_by_pyyaml(judge):
    rng = random.Random(3)
    built = 0
    for _ in range(ROUNDS):
        content = some(rng, YAML_PIECES, 10)
        got = judge("build", content)
        if not yaml_ok(content):
            assert "NUL" in got["error"]
            continue
        built += 1
        document = bytes.fromhex(got["document"]).decode()
        tree = yaml.safe_load(document)
        assert tree == {"write_files": [{"path": "/a", "content": content}, {"path": "/b"},
                                        {"path": "/c", "content": content}]}, document
        assert document.startswith("#cloud-config\n\nwrite_files:\n  - path: /a\n    content:")
    assert built > ROUNDS / 2


def test_reader_reads_pyyaml(judge):
    """Whatever style and width another writer chooses."""
    rng = random.Random(4)
    for _ in range(ROUNDS):
        content = some(rng, [p for p in YAML_PIECES if p != "\0"], 10)
        document = "#cloud-config\n" + yaml.safe_dump(
            {"write_files": [{"path": "/a", "content": content}, {"content": "x", "path": "/b"}]},
            default_style=rng.choice([None, "'", '"', "|", ">"]),
            default_flow_style=rng.choice([True, False, None]), width=rng.choice([4, 20, 80, 9999]),
            indent=rng.choice([2, 4, 9]), allow_unicode=rng.choice([True, False]))
        if yaml.safe_load(document)["write_files"][0]["content"] != content:
            continue  # PyYAML's own writer and reader disagree
        got = judge("cloudconfig", document)
        assert got == {"/a": content.encode().hex(), "/b": b"x".hex()}, document


def test_reader_and_pyyaml_see_the_same(judge):
    """In damaged documents that both take. libyaml takes a little more (tabs between tokens, "|#",
    byte order marks before a line)."""
    rng = random.Random(5)
    taken = alone = 0
    pieces = [p for p in YAML_PIECES if p not in "\0\ufeff"]
    for _ in range(ROUNDS):
        built = judge("build", "text\n" + some(rng, pieces, 4))
        document = mutate(rng, bytes.fromhex(built["document"]).decode(), pieces)
        got = judge("cloudconfig", document)
        if "error" in got:
            continue
        try:
            tree = yaml.load(document, yaml.BaseLoader)
        except yaml.YAMLError:
            alone += 1
            continue
        taken += 1
        assert set(tree) == {"write_files"}
        for entry in tree["write_files"]:
            assert set(entry) <= {"path", "content"}
            want = entry.get("content")
            have = got[entry["path"]]
            # Our null is BaseLoader's "", "~", "null".
            assert have is None and want in (None, "", "~", "null") or \
                bytes.fromhex(have).decode() == want, document
    assert taken > ROUNDS / 20 and alone < taken / 5, (taken, alone)


# ---- initdata ----

@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_initdata(judge, algorithm):
    rng = random.Random(6)
    for _ in range(ROUNDS // 10):
        value = some(rng, [p for p in PIECES if p not in ("'", "\r\n")], 200)
        toml = f'version = "0.1.0"\nalgorithm = "{algorithm}"\n[data]\n"aa.toml" = \'\'\'{value}\'\'\'\n'
        want = hashlib.new(algorithm, toml.encode()).hexdigest()
        content = tomllib.loads(toml)["data"]["aa.toml"].encode().hex()
        packed = gzip.compress(toml.encode(), rng.randint(0, 9))
        lines = base64.encodebytes(packed) if rng.random() < 0.5 else base64.b64encode(packed)
        for text in (toml.encode(), lines):
            got = judge("initdata", text)
            assert got["digest"] == want and got["aa.toml"] == content
            assert gzip.decompress(base64.b64decode(got["packed"])) == toml.encode()
