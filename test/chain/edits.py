# SPDX-License-Identifier: Apache-2.0
"""The forwarder's two edits (kata-contract.md 3.4) on raw fields, from the specification: nothing of
the programs' own code."""
import struct

import ttrpc

NETNS = ttrpc.message((1, "network"), (2, "/run/netns/podns"))


def raw_fields(data):
    """[(number, raw bytes, value bytes)] in order."""
    out, at = [], 0
    while at < len(data):
        begin = at
        key, at = ttrpc.read_varint(data, at)
        if key & 7 == 2:
            size, at = ttrpc.read_varint(data, at)
            value = data[at:at + size]
            at += size
        elif key & 7 == 0:
            _, at = ttrpc.read_varint(data, at)
            value = b""
        else:
            size = 8 if key & 7 == 1 else 4
            value = data[at:at + size]
            at += size
        out.append((key >> 3, data[begin:at], value))
    return out


def replace_last(data, number, edit):
    """The last field of that number gets edit(value), as a receiver that replaces would see it; all
    else is copied."""
    fields = raw_fields(data)
    last = max(i for i, f in enumerate(fields) if f[0] == number)
    return b"".join(ttrpc.field(number, edit(f[2])) if i == last else f[1]
                    for i, f in enumerate(fields))


def method(frame):
    return ttrpc.text(ttrpc.parse(frame[10:]), 2)


def edited(frame):
    """What must arrive at the agent for this frame of the shim's (the namespace as the last field
    of Linux)."""
    if not frame:
        return frame
    body = frame[10:]
    if method(frame) == "CreateContainer":
        body = replace_last(body, 3, lambda payload: replace_last(
            payload, 6, lambda oci: replace_last(
                oci, 8, lambda linux: linux + ttrpc.field(6, NETNS))))
    elif method(frame) == "CreateSandbox":
        body = replace_last(body, 3, lambda payload: b"".join(
            f[1] for f in raw_fields(payload) if f[0] != 2))
    return struct.pack(">I", len(body)) + frame[4:10] + body


def linux(frame):
    """OCI.Linux of a CreateContainer frame, as raw fields in no order."""
    oci = ttrpc.parse(ttrpc.parse(ttrpc.parse(frame[10:])[3][-1])[6][-1])
    return sorted(f[1] for f in raw_fields(oci[8][-1]))


def same_but_for_the_edit(got, sent):
    """The namespace may stand anywhere in Linux: a parser does not see the order of fields."""
    want = edited(sent)
    return got == want or (method(sent) == "CreateContainer" and len(got) == len(want)
                           and linux(got) == linux(want))
