/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting.
 *
 * Counts belong to the process: a new daemon begins at zero, as Prometheus expects of counters.
 * What is a state and not a count (sandboxes, tunnels, descriptors) is looked at when somebody asks
 * (metrics_text.c) and kept nowhere else.
 *
 * No label names a pod, an instance or a user: the number of series is fixed, whatever runs here,
 * and who may read /metrics learns nothing about whose pods they are.
 *
 * One set of bounds serves all histograms: from a local step (10 ms) to a slow cloud (5 min), with
 * the shim's patience (35 s) among them.
 *
 * A step that fails is not in the histograms, which then say how long success takes; it is in
 * peerpod_errors.
 */
#include "adaptor/metrics.h"

#include "adaptor/sandbox.h"
#include "base/clock.h"

const double histogram_bounds[HISTOGRAM_BUCKETS] = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,  2.5,
                                                    5,    10,    20,   35,  60,   120, 300};

/* The words that logs and records use; the last stands for all others. */
const char *const metrics_error_steps[ERROR_STEPS] = {"create", "delete",    "enrol",   "network",
                                                      "record", "reconcile", "recover", "start",
                                                      "tunnel", "wait",      "other"};

struct metrics *metrics_new(void)
{
    struct metrics *m = xcalloc(1, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static void observe(struct histogram *h, double seconds)
{
    size_t i = 0;
    while (i < HISTOGRAM_BUCKETS && seconds > histogram_bounds[i])
        i++;
    h->counts[i]++;
    h->sum += seconds;
}

void metrics_start_step(struct sandbox *sb, enum start_step step)
{
    struct start_clock *clock = &sb->start_clock;
    int64_t now = clock_mono_ms();
    if (clock->step == step)
        return;
    if (clock->step < START_STEPS)
        observe(&sb->adaptor->metrics->start_steps[clock->step],
                (double)(now - clock->since_ms) / 1e3);
    *clock = (struct start_clock){.step = step, .since_ms = now};
}

void metrics_start_over(struct sandbox *sb, enum start_result result)
{
    struct metrics *m = sb->adaptor->metrics;
    if (sb->start_clock.step == START_STEPS)
        return; /* counted */
    if (result == START_OK) {
        metrics_start_step(sb, START_STEPS);
        observe(&m->starts, (double)(clock_mono_ms() - sb->start_began_ms) / 1e3);
    }
    sb->start_clock.step = START_STEPS;
    m->results[result]++;
}

void metrics_error(struct metrics *m, const char *step)
{
    size_t i = 0;
    while (i < ERROR_STEPS - 1 && !str_eq(step, metrics_error_steps[i]))
        i++;
    m->errors[i]++;
}

void metrics_gap(struct metrics *m, int64_t silence_ms)
{
    observe(&m->gaps, (double)silence_ms / 1e3);
}

void metrics_keep_tunnel(struct sandbox *sb)
{
    struct metrics *m = sb->adaptor->metrics;
    struct tunnel_stats stats;
    if (!sb->tunnel)
        return;
    tunnel_get_stats(sb->tunnel, &stats);
    m->bytes_tx += stats.bytes_tx;
    m->bytes_rx += stats.bytes_rx;
    m->redials += stats.redials;
    m->resumes += stats.resumes;
}

void metrics_provider(struct metrics *m, enum provider_call call, int64_t us, bool failed)
{
    pthread_mutex_lock(&m->lock);
    observe(&m->provider[call].time, (double)us / 1e6);
    m->provider[call].errors += failed;
    pthread_mutex_unlock(&m->lock);
}
