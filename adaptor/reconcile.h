/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the provider has against what the state directory knows (design.md 6). See reconcile.c.
 * Everything on the loop.
 */
#pragma once

#include "adaptor/adaptor.h"

#define ORPHANS_MAX 4096

/* An instance that carries our tags and belongs to no sandbox here. */
struct orphan {
    struct orphan *next;
    struct instance instance;
    int64_t first_seen_ms; /* real time */
    int64_t since_ms;      /* the same, monotonic: for the grace */
    bool earlier_boot;
    bool condemned;    /* by the operator */
    bool deleting;     /* a job is at it */
    bool seen;         /* by the last list */
    char verdict[512]; /* what is done about it and why, for people */
};

struct reconcile;

/* Looks at once, then every -reconcile-interval. */
struct reconcile *reconcile_begin(struct adaptor *a);
void reconcile_free(struct reconcile *r);
const struct orphan *reconcile_orphans(const struct reconcile *r);
/* When the provider's list was last read (real time, ms; 0: not yet), and why a later try has failed
 * ("": it has not). */
int64_t reconcile_looked(const struct reconcile *r, const char **ret_trouble);
/* The operator's word: delete all orphans, or the one of that instance id. Returns how many
 * deletions have begun. */
unsigned reconcile_delete(struct reconcile *r, const char *id);
