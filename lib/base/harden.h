/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program gives up once it no longer needs it (SECURITY.md, "Confinement"). For the time
 * before there are threads: capabilities and filters belong to the calling thread.
 */
#pragma once

#include "base/err.h"

/* No core file, no core handler, no look into our memory for others of our user. Cannot fail. */
void harden_no_dumps(void);

/* Bits of capabilities (1ULL << CAP_...). */
#define HARDEN_CAP(n) (1ULL << (n))

/*
 * Keeps those of `keep` that we have and gives up the others. children: programs that we start as
 * root get back what we had (the bounding set stays). Nothing to give up is success. Logs nothing.
 */
int harden_capabilities(uint64_t keep, bool children, struct err *err);

/* No program that we start can have more rights than we. Also needed for a filter without
 * CAP_SYS_ADMIN. */
int harden_no_new_privs(struct err *err);

/*
 * From now on only these system calls (negative: not on this architecture), and what every program
 * needs to compute, log and end. Sockets: unix, IPv4 and IPv6. No memory becomes executable. Calls
 * of an attacker (exec, ptrace, mount, ...) end the process, others that are not allowed fail with
 * ENOSYS, as on an older kernel. -ENOTSUP: not built for this architecture, or a sanitizer is in
 * the program.
 */
int harden_syscalls(const int *allowed, size_t n, struct err *err);

/* For such lists: sockets, and files by their paths; with the older forms, where a libc still uses
 * them. Needs sys/syscall.h. */
#define HARDEN_SOCKETS                                                                             \
    SYS_ppoll, SYS_accept4, SYS_connect, SYS_shutdown, SYS_getsockopt, SYS_setsockopt,             \
        SYS_sendmsg, SYS_recvfrom, SYS_recvmsg, SYS_dup3
#define HARDEN_FILES                                                                               \
    SYS_openat, SYS_flock, SYS_newfstatat, SYS_fchmod, SYS_unlinkat, SYS_renameat, SYS_renameat2
#ifdef SYS_open
#define HARDEN_OLDER SYS_poll, SYS_open, SYS_lstat, SYS_unlink, SYS_rmdir, SYS_rename
#else
#define HARDEN_OLDER -1
#endif

/* Overwrites the value of an environment variable and removes it: /proc/PID/environ shows it as
 * long as it is there, and children inherit it. */
void harden_forget_variable(const char *name);
