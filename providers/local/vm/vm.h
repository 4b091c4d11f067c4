/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the helper: what the VM is made of, in the order in which it is made. */
#pragma once

#include <limits.h>
#include <sys/types.h>

#include "base/err.h"
#include "net/rtnl.h"

struct guest {
    const char *dir, *token, *name, *guest_dir, *agent, *fault, *address;
    uint32_t index;
    bool outer; /* with a second interface */
    int64_t boot_delay_ms;
};

/* link.c, in the helper: both ends of the link, or of both links. host: a socket of the worker's namespace. */
int guest_link_make(const struct guest *g, struct rtnl *host, int vm_netns, struct err *err);

/* root.c, in the VM's PID 1 with namespaces of its own: the file system, /proc, podns. */
int guest_root_make(const struct guest *g, struct err *err);

/* log.c: forks the process that copies what the VM writes to log_fd, bounded; returns in
 * *ret the end to write to. */
int guest_log_start(int log_fd, int *ret, struct err *err);

/* boot.c: runs the VM; never returns. */
_noreturn_ void guest_boot(const struct guest *g);
