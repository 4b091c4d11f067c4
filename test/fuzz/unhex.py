#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds of a fuzz target from text: unhex.py OUTDIR FILE...

Each line of a FILE is `name: hex`, blanks in the hex are ignored, `#` begins a comment.
"""
import pathlib
import sys


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    for file in sys.argv[2:]:
        for number, line in enumerate(open(file, encoding="ascii"), 1):
            line = line.split("#", 1)[0].strip()
            if not line:
                continue
            name, colon, text = line.partition(":")
            if not colon:
                sys.exit(f"{file}:{number}: not `name: hex`")
            (out / name.strip()).write_bytes(bytes.fromhex(text))


main()
