#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: tidy.py BUILD_DIR < FILES

clang-tidy over the C files named on stdin that BUILD_DIR's compile_commands.json knows, two at a
time. A file that was clean is not looked at again until it, a header of ours or the rules change:
the digests are kept in BUILD_DIR/tidy. Exit status 1: something was found.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def digest_of(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    known = {entry["file"] for entry in json.loads((build / "compile_commands.json").read_text())}
    files = [ROOT / name for name in sys.stdin.read().split() if str(ROOT / name) in known]
    headers = sorted(p for folder in ("lib", "providers", "adaptor", "keeper", "forwarder", "ctl",
                                      "test") for p in (ROOT / folder).rglob("*.h"))
    common = digest_of([ROOT / ".clang-tidy", *headers])
    cache = build / "tidy"
    cache.mkdir(exist_ok=True)

    def one(path):
        stamp = cache / (common[:16] + digest_of([path]))
        if stamp.exists():
            return ""
        done = subprocess.run(["clang-tidy", "--quiet", "-p", str(build), str(path)],
                              capture_output=True, text=True)
        if done.returncode == 0:
            stamp.touch()
            return ""
        return (done.stdout or done.stderr).replace(str(ROOT) + "/", "")

    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        found = [text for text in pool.map(one, files) if text]
    print("".join(found), end="")
    print(f"lint.tidy: {len(files)} files, {len(found)} with findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
