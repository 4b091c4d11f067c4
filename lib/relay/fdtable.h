/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of fdstore.h: a table of named descriptors that sd_notify(3)'s messages change, and
 * its hand-over to another process. It takes no memory after fdtable_init.
 */
#pragma once

#include <signal.h>

#include "relay/fdpass.h"

#define FDTABLE_NAME_MAX 20
#define FDTABLE_NAME_DEFAULT "stored"  /* systemd's word for a message without FDNAME */
#define FDTABLE_NAMES_MAX (120U << 10) /* the kernel limits one environment string to 128 KiB */
#define FDTABLE_MAX 16384

struct fdtable {
    char (*names)[FDTABLE_NAME_MAX + 1];
    int first; /* entry i is descriptor first + i */
    size_t n, max;
};

/* Raises the limit of open files as far as may be, for children too: they must hold what we hold,
 * and some more. What a table can then have at most. */
size_t fdtable_room(void);
void fdtable_init(struct fdtable *t, int first, size_t max);
void fdtable_done(struct fdtable *t);
/* Applies a message of sd_notify(3) and takes its descriptors: each is stored or closed. Beyond
 * systemd's, FDNAME may hold a name for each of several descriptors, "a:b:c".
 * -EINVAL: a bad message. -ENOSPC: a limit; err says which. */
int fdtable_apply(struct fdtable *t, struct fdpass *m, struct err *err);
/* "name:name:..." of n entries from i on; out needs their bytes and a separator each. */
void fdtable_names(const struct fdtable *t, size_t i, size_t n, char *out);

/* Copies of all to who calls fdtable_take at the other end of a seqpacket connection, in batches
 * that are acknowledged (docs/keeper.md). 0: the other side has them all. */
int fdtable_give(const struct fdtable *t, int fd, int64_t timeout_ms, struct err *err);
/* What comes is added to what is there; 0: it has come whole. */
int fdtable_take(struct fdtable *t, int fd, struct err *err);

/* What a shell says for a command that cannot be run, and cannot be found. */
#define FDTABLE_NOT_EXECUTABLE 126
#define FDTABLE_NOT_FOUND 127

/* Lays out the environment of commands; notify_path is their NOTIFY_SOCKET. */
void fdtable_exec_init(const char *notify_path);
/* Runs argv with the descriptors (sd_listen_fds(3)); first is 3. A process or a negative errno. */
pid_t fdtable_exec(const struct fdtable *t, char *const *argv, const sigset_t *mask);
