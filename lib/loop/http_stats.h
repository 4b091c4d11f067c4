/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What calls over HTTP cost, by operation, since the process began: for /metrics. Any thread.
 */
#pragma once

#include "base/macros.h"

#define HTTP_STATS_NAME_MAX 64
#define HTTP_STATS_BOUNDS 9

/* Upper bounds of the latency classes in ms; the last class has none. */
extern const int64_t http_stats_bounds_ms[HTTP_STATS_BOUNDS];

struct http_stats {
    char operation[HTTP_STATS_NAME_MAX];     /* "ec2.RunInstances", "imds.GET" */
    uint64_t calls;                          /* exchanges that have ended, each try for itself */
    uint64_t by_status[6];                   /* [1]..[5]: 1xx..5xx; [0]: no complete answer */
    uint64_t retries;                        /* tries beyond the first */
    uint64_t throttled;                      /* refusals for too many calls */
    int64_t latency_us;                      /* sum over calls */
    uint64_t latency[HTTP_STATS_BOUNDS + 1]; /* calls in each class, not cumulative */
};

/* status 0: no complete answer. What exceeds HTTP_STATS_MAX operations is counted as "other". */
#define HTTP_STATS_MAX 128
void http_stats_call(const char *operation, long status, int64_t latency_us);
void http_stats_retry(const char *operation);
void http_stats_throttled(const char *operation);

/* Each operation with a copy of its numbers, in order of first use. fn may block. */
typedef void http_stats_fn(const struct http_stats *stats, void *arg);
void http_stats_each(http_stats_fn *fn, void *arg);
