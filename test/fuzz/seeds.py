#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds of a fuzz target: seeds.py OUTDIR FILE...

A FILE that ends in .hex has one seed in each line, `name: hex`; blanks in the hex are ignored, `#` begins a comment.
Every other FILE is one seed.
"""
import pathlib
import sys


def from_lines(file):
    for number, line in enumerate(file.read_text(encoding="ascii").splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if line:
            name, colon, text = line.partition(":")
            if not colon:
                sys.exit(f"{file}:{number}: not `name: hex`")
            yield name.strip(), bytes.fromhex(text)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    for file in map(pathlib.Path, sys.argv[2:]):
        for name, seed in from_lines(file) if file.suffix == ".hex" else [(file.name, file.read_bytes())]:
            (out / name).write_bytes(seed)


main()
