/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon counts for /metrics (docs/metrics.md). Everything on the loop but what meter.c
 * adds from its jobs.
 */
#pragma once

#include <pthread.h>

#include "base/buf.h"
#include "base/err.h"

struct adaptor;
struct sandbox;

#define HISTOGRAM_BUCKETS 15

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS + 1]; /* each by itself; the last: above all bounds */
    double sum;                             /* seconds */
};

/* StartVM's steps, in their order. */
enum start_step {
    START_INSPECT,   /* the pod's network is looked at */
    START_CREATE,    /* the provider creates the instance */
    START_ADDRESS,   /* and gives it an address */
    START_NETWORK,   /* the pod's network is tied to it */
    START_FORWARDER, /* the forwarder answers */
    START_AGENT,     /* the agent does */
    START_STEPS,
};

enum start_result { START_OK, START_FAILED, START_CANCELLED, START_RESULTS };

enum provider_call {
    PROVIDER_VERIFY,
    PROVIDER_CREATE,
    PROVIDER_FIND,
    PROVIDER_LIST,
    PROVIDER_WAIT,
    PROVIDER_DELETE,
    PROVIDER_CALLS,
};

/* Where a start is, and since when. */
struct start_clock {
    enum start_step step; /* START_STEPS: none */
    int64_t since_ms;
};

#define ERROR_STEPS 11

struct metrics {
    struct histogram start_steps[START_STEPS], starts, gaps;
    uint64_t results[START_RESULTS];
    uint64_t errors[ERROR_STEPS];
    /* Of tunnels that are no more. */
    uint64_t bytes_tx, bytes_rx, redials, resumes;
    pthread_mutex_t lock;
    struct {
        struct histogram time;
        uint64_t errors;
    } provider[PROVIDER_CALLS]; /* lock */
};

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m);

/* The start of a sandbox has come to this step (START_STEPS: it is over); the time that the step
 * before has taken is counted. The same step again changes nothing. */
void metrics_start_step(struct sandbox *sb, enum start_step step);
/* A start is over; began_ms as clock_mono_ms. Once for each. */
void metrics_start_over(struct sandbox *sb, enum start_result result);
/* An error that belongs to a sandbox. step: the word in the log. */
void metrics_error(struct metrics *m, const char *step);
/* The tunnel is up again. */
void metrics_gap(struct metrics *m, int64_t silence_ms);
/* Before a sandbox's tunnel goes: its counts stay. */
void metrics_keep_tunnel(struct sandbox *sb);
/* Any thread. */
void metrics_provider(struct metrics *m, enum provider_call call, int64_t us, bool failed);

/* OpenMetrics text. */
void metrics_write(struct adaptor *a, struct buf *out);

/* For metrics_text.c: bounds of all histograms, seconds; words of labels. */
extern const double histogram_bounds[HISTOGRAM_BUCKETS];
extern const char *const metrics_error_steps[ERROR_STEPS];
