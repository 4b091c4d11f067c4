/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the forwarder keeps over its own restarts: a private directory that is good for one boot and
 * one process at a time. See state.c for what lies in it.
 */
#pragma once

#include "wire/tls.h"

struct state;

/* Makes or opens it, takes its lock (kept for the process's life), empties it when it is of another
 * boot. -EBUSY: another process has it. */
int state_open(const char *path, struct state **ret, struct err *err);
void state_close(struct state *s);
DEFINE_CLEANUP(struct state, state_close)
int state_dirfd(const struct state *s); /* borrowed; for the channels' files */

/* Our key and certificate: the ones of before, or new ones. */
int state_identity(struct state *s, const char *common_name, struct tls_identity **ret,
                   struct err *err);
/* Whether this enrolment secret was retired; retiring is durable when it returns. */
int state_retired(struct state *s, const void *secret, size_t len, bool *ret, struct err *err);
int state_retire(struct state *s, const void *secret, size_t len, struct err *err);
/* The highest generation that was stored; 0 at first. */
int state_generation(struct state *s, uint64_t *ret, struct err *err);
int state_store_generation(struct state *s, uint64_t generation, struct err *err);
