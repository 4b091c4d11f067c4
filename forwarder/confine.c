/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forwarder reads what the network sends before it knows who sends it, so it serves with few
 * rights. It needs its capabilities only to begin: the pod's interface, the namespaces, the port.
 * A restart is a new process that has them again.
 *
 * What it keeps: CAP_DAC_OVERRIDE, for missing sources of bind mounts below directories of other
 * owners (mounts.c). Which system calls: sockets, the rings' files, the loop, directories. No
 * program, no namespace, no netlink.
 */
#include "forwarder/confine.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/syscall.h>

#include "base/harden.h"
#include "base/log.h"

static const int calls[] = {
    HARDEN_SOCKETS,
    HARDEN_FILES,
    HARDEN_OLDER,
    /* the loop */
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_ioctl,
    /* more of sockets (socket itself: harden.c) */
    SYS_accept,
    SYS_getsockname,
    SYS_getpeername,
    SYS_sendto,
    SYS_sendmmsg,
    SYS_pipe2,
    SYS_readv,
    SYS_dup,
    /* more of files: rings and state, sources of mounts */
    SYS_fallocate,
    SYS_ftruncate,
    SYS_pread64,
    SYS_pwrite64,
    SYS_fsync,
    SYS_fdatasync,
    SYS_statx,
    SYS_faccessat,
    SYS_readlinkat,
    SYS_mkdirat,
    SYS_getdents64,
    SYS_umask,
    SYS_statfs,
    SYS_fstatfs,
#ifdef SYS_faccessat2
    SYS_faccessat2,
#endif
#ifdef SYS_open /* the older forms, where a libc still uses them */
    SYS_stat,
    SYS_access,
    SYS_readlink,
    SYS_mkdir,
    SYS_epoll_wait,
    SYS_pipe,
    SYS_dup2,
#endif
};

static void warn(const char *what, int r, const struct err *err)
{
    if (r == -ENOTSUP)
        log_info("%s: %s", what, err_text(err));
    else if (r < 0)
        log_warn("%s: going on without: %s", what, err_text(err));
}

void confine(void)
{
    struct err privs = ERR_INIT, caps = ERR_INIT, filter = ERR_INIT;
    warn("no_new_privs", harden_no_new_privs(&privs), &privs);
    warn("capabilities", harden_capabilities(HARDEN_CAP(CAP_DAC_OVERRIDE), false, &caps), &caps);
    warn("filter of system calls", harden_syscalls(calls, ARRAY_SIZE(calls), &filter), &filter);
}
