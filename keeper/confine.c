/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store alone starts no program and needs no right: all it does is take descriptors, keep them and
 * give them. So it serves without capabilities, with no_new_privs, and with a list of system calls:
 * messages between keepers, the socket where they meet, its lock. Not a keeper with a command, whose
 * command would inherit all of it.
 */
#include <errno.h>
#include <sys/syscall.h>

#include "base/harden.h"
#include "base/log.h"
#include "keeper/keeper.h"

static const int calls[] = {
    SYS_ppoll,
    SYS_wait4, /* as the first process of a container */
    /* messages, and what comes with them */
    SYS_accept4,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_recvfrom,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_dup3,
    SYS_kcmp,
    /* where keepers meet */
    SYS_bind,
    SYS_listen,
    SYS_connect,
    SYS_openat,
    SYS_flock,
    SYS_newfstatat,
    SYS_fchmod,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
#ifdef SYS_open /* the older forms, where a libc still uses them */
    SYS_open,
    SYS_lstat,
    SYS_unlink,
    SYS_rmdir,
    SYS_rename,
    SYS_poll,
#endif
};

void keeper_confine(void)
{
    struct err err = ERR_INIT;
    int r = harden_no_new_privs(&err);
    if (r == 0)
        r = harden_syscalls(calls, ARRAY_SIZE(calls), &err);
    if (r == -ENOTSUP)
        log_info("%s", err_text(&err));
    else if (r < 0)
        log_warn("going on with more rights than are needed: %s", err_text(&err));
}
