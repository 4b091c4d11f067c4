/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of fdstore.h: a table of named descriptors that sd_notify(3)'s messages change, that
 * commands inherit, and that two processes exchange. It takes no memory.
 */
#pragma once

#include <signal.h>

#include "relay/fdpass.h"
#include "relay/fdstore.h"

#define FDTABLE_NAMES_MAX (120U << 10) /* the kernel limits one environment string to 128 KiB */
#define FDTABLE_MAX 16384
#define FDTABLE_FIRST 3 /* where a command finds them: SD_LISTEN_FDS_START */

struct fdtable_entry {
    int fd;
    char name[FDSTORE_NAME_MAX + 1];
};

struct fdtable {
    size_t n, max;
    struct fdtable_entry entries[FDTABLE_MAX];
};

/* Raises the limit of open files as far as may be, for children too: they must hold what we hold,
 * and some more. */
void fdtable_init(struct fdtable *t);
void fdtable_done(struct fdtable *t);
/* Applies a message of sd_notify(3) and takes its descriptors: each is stored or closed.
 * -EINVAL: a bad message. -ENOSPC: a limit; err says which. */
int fdtable_apply(struct fdtable *t, struct fdpass *m, struct err *err);

/* With who does the same at the other end of a seqpacket connection, where one of the two begins: both
 * then have what either had. Each may give one descriptor more, -1: none; *ret_extra is the caller's
 * in any case. 0: all has come; who began knows that the other one says 0 too. */
int fdtable_exchange(struct fdtable *t, int fd, bool begins, int extra, int *ret_extra,
                     struct err *err);

/* Lays out the environment of commands; notify_path is their NOTIFY_SOCKET. */
void fdtable_exec_init(const char *notify_path);
/* In a child: becomes the command, which finds the descriptors as sd_listen_fds(3) says. */
_noreturn_ void fdtable_exec(struct fdtable *t, char *const *argv, const sigset_t *mask);
