#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# usage: older.sh DIRECTORY
#
# Builds the daemon, its keeper and the helper of `local` as they were at an older commit of this
# repository into DIRECTORY/bin. Exit status 77 where that commit is not there (a shallow clone, a
# source archive); 1 instead with STRICT=1.
set -eu

# The first with format 3 of the relay's files. Raised only when it cannot take over, or does not
# build any more.
commit=712a025fcdc1ac82c432b4c39c73b608e1f6561b
dir=$1
cd "$(dirname "$0")/../.."

skip()
{
    echo "skipped: $1"
    [ "${STRICT:-}" = 1 ] && exit 1
    exit 77
}

git=(git -c "safe.directory=$PWD")
command -v git >/dev/null || skip "no git here"
"${git[@]}" cat-file -e "$commit^{tree}" 2>/dev/null || skip "commit $commit is not in this clone"
if [ "$(cat "$dir/commit" 2>/dev/null)" != "$commit" ]; then
    rm -rf "$dir"
    mkdir -p "$dir/src"
    "${git[@]}" archive "$commit" | tar -x -C "$dir/src"
fi
if command -v ccache >/dev/null; then
    export CMAKE_C_COMPILER_LAUNCHER=ccache
fi
[ -f "$dir/build.ninja" ] || cmake -S "$dir/src" -B "$dir" -G Ninja --log-level=WARNING \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DBUILD_TESTING=OFF >/dev/null
cmake --build "$dir" -j "${JOBS:-2}" --target cloud-api-adaptor peerpod-keeper peerpod-local-vm \
    -- --quiet
echo "$commit" >"$dir/commit"
