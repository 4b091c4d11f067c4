/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of /metrics about requests to the cloud, from the HTTP client's own counters.
 *
 * One copy of all counters is taken, for a family is written at a time and each needs them. There are
 * at most HTTP_STATS_MAX operations. Their names are our own, yet they are escaped like any text: the
 * clients that choose them stand far away.
 */
#include "adaptor/metrics_int.h"
#include "loop/http_stats.h"
#include "loop/throttle.h"

#define THROTTLES_MAX 64

struct requests {
    struct http_stats *stats;
    size_t n_stats;
    struct throttle_state throttles[THROTTLES_MAX];
    size_t n_throttles;
};

static void take_stats(const struct http_stats *stats, void *arg)
{
    struct requests *q = arg;
    if (q->n_stats < HTTP_STATS_MAX)
        q->stats[q->n_stats++] = *stats;
}

static void take_throttle(const struct throttle_state *state, void *arg)
{
    struct requests *q = arg;
    if (q->n_throttles < THROTTLES_MAX)
        q->throttles[q->n_throttles++] = *state;
}

static void write_codes(const struct requests *q, struct buf *out)
{
    static const char *const codes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
    metrics_head(out, "peerpod_provider_requests", "counter", "",
                 "HTTP requests to the cloud, each try for itself, by class of the answer.");
    for (size_t i = 0; i < q->n_stats; i++)
        for (size_t c = 0; c < ARRAY_SIZE(codes); c++) {
            if (q->stats[i].by_status[c] == 0 && c != 2)
                continue;
            buf_adds(out, "peerpod_provider_requests_total{operation=");
            metrics_quote(out, q->stats[i].operation);
            buf_addf(out, ",code=\"%s\"} %llu\n", codes[c],
                     (unsigned long long)q->stats[i].by_status[c]);
        }
}

static void write_times(const struct requests *q, struct buf *out)
{
    static const char name[] = "peerpod_provider_request_duration_seconds";
    metrics_head(out, name, "histogram", "seconds", "Time from an HTTP request to its answer.");
    for (size_t i = 0; i < q->n_stats; i++) {
        const struct http_stats *s = &q->stats[i];
        _cleanup_(buf_done) struct buf label = BUF_INIT(1024);
        uint64_t n = 0;
        buf_adds(&label, "operation=");
        metrics_quote(&label, s->operation);
        for (size_t b = 0; b < HTTP_STATS_BOUNDS; b++) {
            n += s->latency[b];
            buf_addf(out, "%s_bucket{%s,le=\"", name, label.data);
            metrics_bound(out, (double)http_stats_bounds_ms[b] / 1e3);
            buf_addf(out, "\"} %llu\n", (unsigned long long)n);
        }
        n += s->latency[HTTP_STATS_BOUNDS];
        buf_addf(out, "%s_bucket{%s,le=\"+Inf\"} %llu\n", name, label.data, (unsigned long long)n);
        buf_addf(out, "%s_count{%s} %llu\n", name, label.data, (unsigned long long)n);
        buf_addf(out, "%s_sum{%s} %.6f\n", name, label.data, (double)s->latency_us / 1e6);
    }
}

static void write_repeats(const struct requests *q, struct buf *out)
{
    metrics_head(out, "peerpod_provider_retries", "counter", "",
                 "HTTP requests to the cloud that were tries beyond the first.");
    for (size_t i = 0; i < q->n_stats; i++) {
        buf_adds(out, "peerpod_provider_retries_total{operation=");
        metrics_quote(out, q->stats[i].operation);
        buf_addf(out, "} %llu\n", (unsigned long long)q->stats[i].retries);
    }
    metrics_head(out, "peerpod_provider_throttled", "counter", "",
                 "HTTP requests that the cloud refused because there were too many.");
    for (size_t i = 0; i < q->n_stats; i++) {
        buf_adds(out, "peerpod_provider_throttled_total{operation=");
        metrics_quote(out, q->stats[i].operation);
        buf_addf(out, "} %llu\n", (unsigned long long)q->stats[i].throttled);
    }
}

static void write_throttle(const struct throttle_state *t, const char *name, double value,
                           struct buf *out)
{
    buf_addf(out, "%s{provider=", name);
    metrics_quote(out, t->provider);
    buf_adds(out, ",bucket=");
    metrics_quote(out, t->bucket);
    buf_addf(out, "} %g\n", value);
}

static void write_throttles(const struct requests *q, struct buf *out)
{
    metrics_head(out, "peerpod_provider_rate_limit", "gauge", "",
                 "Requests per second that this node allows itself since the cloud refused some; "
                 "0 is no limit any more.");
    for (size_t i = 0; i < q->n_throttles; i++)
        write_throttle(&q->throttles[i], "peerpod_provider_rate_limit", q->throttles[i].rate, out);
    metrics_head(out, "peerpod_provider_waiting", "gauge", "",
                 "Requests that wait for their turn under that limit.");
    for (size_t i = 0; i < q->n_throttles; i++)
        write_throttle(&q->throttles[i], "peerpod_provider_waiting", q->throttles[i].waiting, out);
}

void metrics_write_requests(struct buf *out)
{
    struct requests *q = xcalloc(1, sizeof(*q));
    q->stats = xcalloc(HTTP_STATS_MAX, sizeof(*q->stats));
    http_stats_each(take_stats, q);
    throttle_each(take_throttle, q);
    write_codes(q, out);
    write_times(q, out);
    write_repeats(q, out);
    write_throttles(q, out);
    free(q->stats);
    free(q);
}
