#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: build.sh MODULE_DIR OUTPUT
# Builds one Go program of the tests. Exit status 77 where there is no Go, or its modules cannot be
# had; 1 instead with STRICT=1.
set -u

skip() {
    echo "skipped: $1"
    [ "${STRICT:-}" = 1 ] && exit 1
    exit 77
}

command -v go >/dev/null 2>&1 || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null 2>&1 || skip "no Go toolchain (go) here"
cd "$1" || exit 1
go mod download || skip "the Go modules of $1 cannot be had"
exec env CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$2" .
