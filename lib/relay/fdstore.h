/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client of a descriptor store that speaks systemd's protocol (sd_notify(3): FDSTORE=1, FDNAME=,
 * FDSTOREREMOVE=1, FDPOLL=0; LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID): systemd itself or
 * peerpod-keeper. Without NOTIFY_SOCKET every call succeeds and does nothing, and
 * fdstore_available() is false.
 */
#pragma once

#include "base/err.h"

#define FDSTORE_NAME_MAX 20
/* peerpod-keeper's words to its command, beyond systemd's: when it was itself started, in ns of
 * CLOCK_BOOTTIME; of two that serve the same pods the younger one goes on (adaptor/takeover.c). */
#define FDSTORE_BORN "PEERPOD_KEEPER_BORN"
/* The exit status of a command that has handed over to a successor under another keeper, its store
 * emptied: it is not to be started again. */
#define FDSTORE_EXIT_HANDED_OVER 79

/* Reads the environment once, takes the inherited descriptors (sets O_CLOEXEC), clears the
 * variables so that no child inherits them. */
int fdstore_init(struct err *err);
void fdstore_done(void); /* closes what nobody took */
bool fdstore_available(void);
/* Names that the store holds for us, as far as we know. */
size_t fdstore_count(void);
/* Since when our keeper is there, in ns of CLOCK_BOOTTIME, and *ret_shared: equal values mean the same
 * keeper. Where none says so: since when this process is. */
int64_t fdstore_born(bool *ret_shared);

/* The inherited descriptor of that name, now the caller's; -1 when there is none. */
int fdstore_take(const char *name);
/* Calls fn for each that is still there and whose name begins with prefix. */
void fdstore_each(const char *prefix, void (*fn)(const char *name, int fd, void *arg), void *arg);

/* The store duplicates fd and keeps it under name until removed. Names: [a-z0-9.-], at most
 * FDSTORE_NAME_MAX. Returns when the message is in the store's queue: it survives our death from
 * then on. Always FDPOLL=0: we say when it goes. */
int fdstore_add(const char *name, int fd, struct err *err);
int fdstore_remove(const char *name, struct err *err);
/* sd_notify(3): "READY=1", "STATUS=...", ... */
int fdstore_notify(const char *state, struct err *err);

/* -- take-over: adaptor/takeover.c -- */

struct fdstore_entry {
    char name[FDSTORE_NAME_MAX + 1];
    int fd;
};

/* What the store holds and we have, by name: taken or added, not removed. fd is its owner's; it must
 * be removed before it is closed. Without a store too. */
void fdstore_each_held(void (*fn)(const char *name, int fd, void *arg), void *arg);
/* What we inherited and nobody has taken is closed, and removed from the store, which is ours alone
 * unless same_store. */
void fdstore_disinherit(bool same_store);
/*
 * Takes the descriptors that a predecessor has given us, in place of what we inherited: they are put
 * into the store, those whose name begins with `proof` last, and can then be taken. same_store: they
 * are in it already. On failure all are closed and none is in the store. Nothing has been taken or
 * added before.
 */
int fdstore_adopt(const struct fdstore_entry *all, size_t n, const char *proof, bool same_store,
                  struct err *err);
