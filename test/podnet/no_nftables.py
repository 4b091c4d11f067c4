# SPDX-License-Identifier: Apache-2.0
"""usage: no_nftables.py PROGRAM [ARGUMENT...]

Runs a program for which socket(AF_NETLINK, ..., NETLINK_NETFILTER) fails with EPROTONOSUPPORT, as in a
kernel without nftables."""
import ctypes
import errno
import os
import struct
import sys

NETLINK_NETFILTER = 12
SYS_SOCKET = {"x86_64": 41, "aarch64": 198, "s390x": 359}[os.uname().machine]
THIRD_ARGUMENT = 16 + 2 * 8 + (4 if sys.byteorder == "big" else 0)  # of struct seccomp_data, low half
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7fff0000, 0x00050000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2


def main():
    program = [(LOAD, 0, 0, 0), (EQUAL, 0, 3, SYS_SOCKET),
               (LOAD, 0, 0, THIRD_ARGUMENT), (EQUAL, 0, 1, NETLINK_NETFILTER),
               (RETURN, 0, 0, ERRNO | errno.EPROTONOSUPPORT), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in program))
    filter_ = struct.pack("HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or \
            libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.create_string_buffer(filter_), 0, 0):
        sys.exit(f"no_nftables: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[1], sys.argv[1:])


main()
