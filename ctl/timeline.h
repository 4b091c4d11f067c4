/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of a run with their times: announced as they begin, listed at the end. */
#pragma once

#include <pthread.h>

#include "base/macros.h"

#define TIMELINE_STEPS_MAX 64

struct timeline_step {
    const char *name; /* static storage */
    int64_t start_us, took_us;
    bool ended, failed;
};

struct timeline {
    pthread_mutex_t lock;
    int64_t start_us;
    size_t n;
    struct timeline_step steps[TIMELINE_STEPS_MAX]; /* lock */
    bool quiet;                                     /* no progress lines */
    int64_t told_us;                                /* lock: when the wait was last mentioned */
};

void timeline_init(struct timeline *t, bool quiet);
void timeline_done(struct timeline *t);
/* Only one step is under way at a time. */
void timeline_begin(struct timeline *t, const char *name);
/* Returns r. */
int timeline_end(struct timeline *t, int r);
/* Called now and then by another thread: says what is being waited for. */
void timeline_tick(struct timeline *t);
/* On stderr: a table, or with json one line of JSON. exit_status: of the whole run. */
void timeline_show(struct timeline *t, bool json, int exit_status);
