# SPDX-License-Identifier: Apache-2.0
"""A process's memory, as root sees it in /proc: what is writable, and so may hold a secret."""
import base64
import pathlib

CHUNK = 1 << 20


def regions(pid):
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, *rest = line.split(None, 5)
        name = rest[3] if len(rest) == 4 else ""
        if "rw" in rights and name not in ("[vvar]", "[vsyscall]"):
            low, high = (int(x, 16) for x in span.split("-"))
            yield low, high, name or "anonymous"


def dump(pid):
    """(name, address, bytes) of each writable region."""
    with open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for low, high, name in regions(pid):
            mem.seek(low)
            try:
                data = mem.read(high - low)
            except OSError:
                continue  # reserved, never used
            yield name, low, data


def forms(secret):
    """How a binary secret may lie about."""
    return {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode(),
            "base64": base64.b64encode(secret).rstrip(b"=")[:-1],
            # user data goes out as base64 of the text: the three ways in which the hex may be cut
            **{f"base64 of hex, {i}": base64.b64encode(secret.hex().encode()[i:])[:-4] for i in range(3)}}


def find(pid, needles):
    """[(form, region, address, what is around)] of every place where one of {form: bytes} is."""
    found = []
    for name, low, data in dump(pid):
        for form, needle in needles.items():
            at = data.find(needle)
            while at >= 0:
                found.append((form, name, hex(low + at), data[max(0, at - 48):at + len(needle) + 16]))
                at = data.find(needle, at + 1)
    return found
