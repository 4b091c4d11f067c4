#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: build_rust.sh CRATE_DIR WORK_DIR OUTPUT
# Builds one Rust program of the tests in WORK_DIR, which keeps what was built for the next time. Exit
# status 77 where there is no Rust, or its crates cannot be had; 1 instead with STRICT=1.
#
# Cargo.lock is committed without the lines that say where crates come from, which is a matter of the
# machine: they are taken from a lock that cargo makes here. Versions and checksums are the committed ones.
set -u

skip() {
    echo "skipped: $1"
    [ "${STRICT:-}" = 1 ] && exit 1
    exit 77
}

command -v cargo >/dev/null 2>&1 || PATH=$PATH:$HOME/.cargo/bin
command -v cargo >/dev/null 2>&1 || skip "no Rust toolchain (cargo) here"
mkdir -p "$2" && cp -r "$1/Cargo.toml" "$1/src" "$2" && cd "$2" || exit 1
if ! cmp -s "$1/Cargo.lock" committed.lock; then
    rm -f Cargo.lock
    cargo generate-lockfile --quiet || skip "the crates of $1 cannot be had"
    source=$(sed -n '/^source = /{p;q}' Cargo.lock)
    awk -v source="$source" '/^checksum = / { print source } { print }' "$1/Cargo.lock" >whole.lock
    mv whole.lock Cargo.lock
    cp "$1/Cargo.lock" committed.lock
fi
cargo fetch --locked --quiet || skip "the crates of $1 cannot be had"
cargo build --locked --offline --quiet --jobs 2 || exit 1
install -m 755 "target/debug/$(basename "$3")" "$3"
