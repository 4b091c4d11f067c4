/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Throttling: learning a provider's rate from its refusals, and keeping it with the whole node.
 *
 * Model: providers give an account so many calls per second for each group of operations, refuse
 * what is beyond, and do not say how many. While nothing is refused a bucket has no limit. The
 * first refusal sets a rate: a bit less than what was sent lately. Each accepted call then raises it
 * by a small share, each refusal cuts it; so the rate swings closely below what is allowed, and
 * about one call in ten is refused instead of most. A rate far above what is being sent, for long
 * enough, is no limit again.
 *
 * Invariants: callers of one bucket get their turn in the order in which they came; a caller takes
 * one token for one try. Calls that were under way when the rate was cut say nothing new: their
 * refusals do not cut again (fifty calls refused at once cut once). The rate stays above RATE_MIN,
 * so that nobody starves.
 *
 * A waiting job sleeps for its estimated time, at most POLL_MAX_MS, and looks again: the rate may
 * have changed, those before it may have given up. No wake-up is needed: who is first in the queue
 * knows exactly when the next token comes.
 *
 * It tells the job why (job_say: `peerpodctl status` shows it) and logs one line for each wait that
 * will be long. That a library logs is deliberate: a wait is no failure, so nobody else would.
 */
#include "loop/throttle.h"

#include <errno.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"

#define RATE_MIN 0.2
#define RATE_CUT 0.7       /* of the rate, at a refusal */
#define RATE_RISE 0.05     /* of the rate, for each accepted call */
#define RATE_FIRST_MIN 2.0 /* before the first cut */
#define RATE_FIRST_MAX 20.0
#define RATE_FREE 100.0      /* calls per second: no limit any more */
#define FREE_AFTER_MS 600000 /* without a refusal: no limit any more */
#define BURST 1.0            /* tokens that gather while nobody calls */
#define SENT_WINDOW_S 5.0    /* over which sent_rate is measured */
#define POLL_MAX_MS 1000
#define LOG_WAIT_MS 1000

struct waiter {
    struct waiter *next;
};

struct named_bucket {
    struct named_bucket *next;
    struct bucket bucket;
    char name[THROTTLE_NAME_MAX], reason[THROTTLE_REASON_MAX];
    struct waiter *first, **last;
    unsigned waiting;
    uint64_t refused;
};

struct throttle {
    const char *provider;
    struct throttle *next, **prev; /* all_lock */
    pthread_mutex_t lock;
    struct named_bucket *buckets; /* lock; they are never removed */
};

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct throttle *all; /* all_lock */

/* ---- one bucket ---- */

static void bucket_fill(struct bucket *b, int64_t now)
{
    if (now > b->filled_ms)
        b->tokens = MIN(b->tokens + b->rate * (double)(now - b->filled_ms) / 1000, BURST);
    b->filled_ms = MAX(b->filled_ms, now);
}

/* A decaying mean: each call is worth 1/window now and less later. */
static void bucket_count(struct bucket *b, int64_t now)
{
    double passed = (double)(now - b->sent_ms) / 1000;

    b->sent_rate = b->sent_rate * MAX(0, 1 - passed / SENT_WINDOW_S) + 1 / SENT_WINDOW_S;
    b->sent_ms = now;
}

int64_t bucket_wait_ms(struct bucket *b, int64_t now, unsigned ahead, bool take)
{
    double lack;
    int64_t pause = MAX(b->until_ms - now, 0);

    if (b->rate > 0 && now - b->cut_ms > FREE_AFTER_MS)
        b->rate = 0;
    if (b->rate > 0) {
        bucket_fill(b, now);
        lack = (double)ahead + 1 - b->tokens;
        if (lack > 1e-6)
            return MAX(pause, (int64_t)(lack * 1000 / b->rate) + 1);
    }
    if (pause > 0 || ahead > 0)
        return MAX(pause, 1);
    if (take) {
        b->tokens -= b->rate > 0 ? 1 : 0;
        bucket_count(b, now);
    }
    return 0;
}

void bucket_refused(struct bucket *b, int64_t now, int64_t sent_ms, int64_t pause_ms)
{
    b->until_ms = MAX(b->until_ms, now + pause_ms);
    if (b->cut_ms && sent_ms <= b->cut_ms)
        return;
    b->rate = b->rate > 0 ? b->rate : MIN(MAX(b->sent_rate, RATE_FIRST_MIN), RATE_FIRST_MAX);
    b->rate = MAX(b->rate * RATE_CUT, RATE_MIN);
    b->cut_ms = now;
    b->tokens = 0;
    b->filled_ms = now;
}

void bucket_accepted(struct bucket *b, int64_t now)
{
    if (b->rate <= 0)
        return;
    bucket_fill(b, now);
    b->rate += b->rate * RATE_RISE;
    if (b->rate > RATE_FREE)
        b->rate = 0;
}

/* ---- all of them ---- */

struct throttle *throttle_new(const char *provider)
{
    struct throttle *t = xcalloc(1, sizeof(*t));

    t->provider = provider;
    pthread_mutex_init(&t->lock, NULL);
    pthread_mutex_lock(&all_lock);
    t->next = all;
    t->prev = &all;
    if (all)
        all->prev = &t->next;
    all = t;
    pthread_mutex_unlock(&all_lock);
    return t;
}

void throttle_free(struct throttle *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&all_lock);
    *t->prev = t->next;
    if (t->next)
        t->next->prev = t->prev;
    pthread_mutex_unlock(&all_lock);
    for (struct named_bucket *b = t->buckets, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* lock. Names are the program's own: there are few. */
static struct named_bucket *bucket_get(struct throttle *t, const char *name)
{
    struct named_bucket *b;

    for (b = t->buckets; b; b = b->next)
        if (strncmp(b->name, name, sizeof(b->name) - 1) == 0)
            return b;
    b = xcalloc(1, sizeof(*b));
    snprintf(b->name, sizeof(b->name), "%s", name);
    b->last = &b->first;
    b->next = t->buckets;
    t->buckets = b;
    return b;
}

static void queue_enter(struct named_bucket *b, struct waiter *w)
{
    w->next = NULL;
    *b->last = w;
    b->last = &w->next;
    b->waiting++;
}

static void queue_leave(struct named_bucket *b, struct waiter *w)
{
    struct waiter **at = &b->first;

    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    if (!*at)
        b->last = at;
    b->waiting--;
}

static unsigned queue_ahead(const struct named_bucket *b, const struct waiter *w)
{
    unsigned n = 0;

    for (const struct waiter *i = b->first; i != w; i = i->next)
        n++;
    return n;
}

/* lock */
static void tell(struct throttle *t, const struct named_bucket *b, struct job *job, unsigned ahead,
                 int64_t wait_ms, bool *logged)
{
    job_say(job, "%s throttles this node's %s calls (%s): %u before this one, about %lld s",
            t->provider, b->name, b->reason, ahead, (long long)(wait_ms + 999) / 1000);
    if (*logged || wait_ms < LOG_WAIT_MS)
        return;
    *logged = true;
    log_entry(LOG_LEVEL_INFO, job_sandbox(job), NULL,
              "waits about %lld s: %s throttles this node's %s calls (%s), %u before this one",
              (long long)(wait_ms + 999) / 1000, t->provider, b->name, b->reason, ahead);
}

/* One look at the bucket. Returns how long to sleep, 0: it is the caller's turn. */
static int64_t look(struct throttle *t, struct named_bucket *b, struct waiter *w, struct job *job,
                    bool *logged)
{
    unsigned ahead = queue_ahead(b, w);
    int64_t wait = bucket_wait_ms(&b->bucket, clock_mono_ms(), ahead, ahead == 0);

    if (wait > 0 && b->bucket.rate > 0)
        tell(t, b, job, ahead, wait, logged);
    return MIN(wait, POLL_MAX_MS);
}

int throttle_wait(struct throttle *t, const char *name, struct job *job, struct err *err)
{
    struct named_bucket *b;
    struct waiter w;
    char why[JOB_WORDS_MAX];
    bool logged = false;
    int64_t wait;
    int r = 0;

    pthread_mutex_lock(&t->lock);
    b = bucket_get(t, name);
    queue_enter(b, &w);
    while (r == 0 && (wait = look(t, b, &w, job, &logged)) > 0) {
        pthread_mutex_unlock(&t->lock);
        r = job_sleep(job, wait);
        pthread_mutex_lock(&t->lock);
    }
    queue_leave(b, &w);
    pthread_mutex_unlock(&t->lock);
    job_words(job, why);
    job_say(job, NULL);
    if (r < 0)
        return err_set(err, r, "%s%s%s", r == -ECANCELED ? "cancelled" : "no time left",
                       why[0] ? " while " : "", why);
    return 0;
}

void throttle_follow(struct job *job, struct job *other, int64_t *since_ms)
{
    char words[JOB_WORDS_MAX];
    int64_t now = clock_mono_ms();

    job_words(other, words);
    job_say(job, "%s", words);
    if (!words[0] || *since_ms < 0)
        return;
    *since_ms = *since_ms ? *since_ms : now;
    if (now - *since_ms < LOG_WAIT_MS)
        return;
    *since_ms = -1;
    log_entry(LOG_LEVEL_INFO, job_sandbox(job), NULL,
              "waits for an answer that others wait for too: %s", words);
}

void throttle_refused(struct throttle *t, const char *name, const char *reason, int64_t sent_ms,
                      int64_t pause_ms)
{
    struct named_bucket *b;
    double before;

    pthread_mutex_lock(&t->lock);
    b = bucket_get(t, name);
    before = b->bucket.rate;
    snprintf(b->reason, sizeof(b->reason), "%s", reason);
    b->refused++;
    bucket_refused(&b->bucket, clock_mono_ms(), sent_ms, pause_ms);
    if (before <= 0)
        log_warn("%s throttles %s (%s): this node now makes %.1f calls per second", t->provider,
                 b->name, b->reason, b->bucket.rate);
    pthread_mutex_unlock(&t->lock);
}

void throttle_accepted(struct throttle *t, const char *name)
{
    pthread_mutex_lock(&t->lock);
    bucket_accepted(&bucket_get(t, name)->bucket, clock_mono_ms());
    pthread_mutex_unlock(&t->lock);
}

static void each_of(struct throttle *t, throttle_each_fn *fn, void *arg)
{
    pthread_mutex_lock(&t->lock);
    for (struct named_bucket *b = t->buckets; b; b = b->next) {
        struct throttle_state s = {
            .rate = b->bucket.rate, .waiting = b->waiting, .refused = b->refused};

        if (!b->refused)
            continue;
        snprintf(s.provider, sizeof(s.provider), "%s", t->provider);
        memcpy(s.bucket, b->name, sizeof(s.bucket));
        memcpy(s.reason, b->reason, sizeof(s.reason));
        fn(&s, arg);
    }
    pthread_mutex_unlock(&t->lock);
}

void throttle_each(throttle_each_fn *fn, void *arg)
{
    pthread_mutex_lock(&all_lock);
    for (struct throttle *t = all; t; t = t->next)
        each_of(t, fn, arg);
    pthread_mutex_unlock(&all_lock);
}
