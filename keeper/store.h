/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptor store: what it keeps, and the messages that change it (sd_notify(3)).
 */
#pragma once

#include "base/err.h"

#define STORE_NAME_MAX 20
#define STORE_NAME_DEFAULT "stored" /* systemd's word for a message without FDNAME */
/* The names must fit one environment string, which the kernel limits to 128 KiB. */
#define STORE_NAMES_MAX (120U << 10)
#define STORE_MESSAGE_MAX 4096

struct store_entry {
    char name[STORE_NAME_MAX + 1];
    int fd;
};

struct store {
    struct store_entry *entries; /* in order of arrival */
    size_t n, cap, max;
    size_t names_len; /* with a separator each */
};

/* max: of descriptors. */
void store_init(struct store *s, size_t max);
void store_done(struct store *s);

/*
 * Applies one message. Takes all fds: each is stored or closed, whatever the message says.
 * FDSTORE=1 stores them under FDNAME, beside others of the same name as systemd does;
 * FDSTOREREMOVE=1 closes all of that name; READY, STATUS and what else there is are no errors.
 * -EINVAL: a bad message. -ENOSPC: a limit; err says which.
 */
int store_apply(struct store *s, const char *text, size_t len, const int *fds, size_t n_fds,
                struct err *err);

/* "name:name:...", owned by the caller, never NULL. */
char *store_names(const struct store *s);
