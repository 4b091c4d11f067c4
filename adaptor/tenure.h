/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The right to serve the pods of one state directory: the lock, the token and the generation. See
 * tenure.c.
 */
#pragma once

#include "base/err.h"
#include "relay/fdstore.h"

#define TENURE_TOKEN "token." /* prefix of the token's name in the descriptor store */

struct tenure {
    int dir;          /* the state directory, borrowed */
    const char *path; /* its path, borrowed, for messages */
    int lock_fd, token_fd;
    char token[FDSTORE_NAME_MAX + 1];
    uint64_t generation; /* after tenure_raise */
};

void tenure_init(struct tenure *t, int dir, const char *path);
void tenure_done(struct tenure *t);

/* Lock and token. -EBUSY: somebody serves these pods, or another keeper holds their descriptors. */
int tenure_begin(struct tenure *t, struct err *err);
/* Raises the number in the file, under the lock. */
int tenure_raise(struct tenure *t, struct err *err);

/* -- take-over -- */

/* The lock is free for the successor, the token not yet. */
void tenure_pause(struct tenure *t);
/* The successor has failed: the lock again. -EAGAIN: not to be had within ms. -EALREADY: he has
 * raised the generation, so the state is not what we know. */
int tenure_resume(struct tenure *t, int64_t ms, struct err *err);
/* A new token: those that others were given prove nothing any more. */
int tenure_renew(struct tenure *t, struct err *err);
