/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters of HTTP calls: a table of fixed size under one lock.
 *
 * An exchange takes milliseconds, the lock is held for a linear search over some dozens of names:
 * nothing cleverer is needed. Names come from the program's own tables; the bound holds even if a
 * name should ever come from outside. Entries are never removed, so a reader may walk by index and
 * hold the lock only for each copy.
 */
#include "loop/http_stats.h"

#include <pthread.h>

#include "base/str.h"

const int64_t http_stats_bounds_ms[HTTP_STATS_BOUNDS] = {10,   25,   50,   100,  250,
                                                         1000, 2500, 5000, 15000};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct http_stats table[HTTP_STATS_MAX]; /* lock */
static size_t used;                             /* lock */

/* lock */
static struct http_stats *entry(const char *operation)
{
    for (size_t i = 0; i < used; i++)
        if (strncmp(table[i].operation, operation, HTTP_STATS_NAME_MAX - 1) == 0)
            return &table[i];
    if (used == HTTP_STATS_MAX)
        return &table[HTTP_STATS_MAX - 1];
    snprintf(table[used].operation, HTTP_STATS_NAME_MAX, "%s",
             used == HTTP_STATS_MAX - 1 ? "other" : operation);
    return &table[used++];
}

void http_stats_call(const char *operation, long status, int64_t latency_us)
{
    struct http_stats *s;
    size_t class = 0;

    while (class < HTTP_STATS_BOUNDS && latency_us > http_stats_bounds_ms[class] * 1000)
        class ++;
    pthread_mutex_lock(&lock);
    s = entry(operation);
    s->calls++;
    s->by_status[status >= 100 && status < 600 ? status / 100 : 0]++;
    s->latency_us += latency_us;
    s->latency[class]++;
    pthread_mutex_unlock(&lock);
}

void http_stats_retry(const char *operation)
{
    pthread_mutex_lock(&lock);
    entry(operation)->retries++;
    pthread_mutex_unlock(&lock);
}

void http_stats_throttled(const char *operation)
{
    pthread_mutex_lock(&lock);
    entry(operation)->throttled++;
    pthread_mutex_unlock(&lock);
}

void http_stats_each(http_stats_fn *fn, void *arg)
{
    for (size_t i = 0;; i++) {
        struct http_stats copy = {0};
        bool more;

        pthread_mutex_lock(&lock);
        more = i < used;
        if (more)
            copy = table[i];
        pthread_mutex_unlock(&lock);
        if (!more)
            return;
        fn(&copy, arg);
    }
}
