/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When calls are repeated and how a node is slowed down: the bucket against simulated providers in
 * simulated time, the throttle's queue with real jobs, and dates, pauses and verdicts of rest_call
 * against a server in this process. What AWS's errors mean is in aws.client.
 */
#include "unit/http_server.h"

#include <errno.h>
#include <math.h>

#include "base/clock.h"
#include "loop/http_stats.h"
#include "loop/rest.h"

/* ---- the bucket in simulated time ---- */

/* A provider's own bucket. */
struct provider {
    double rate, burst, tokens;
    int64_t at_ms;
};

static bool accepts(struct provider *p, int64_t now)
{
    p->tokens = fmin(p->tokens + p->rate * (double)(now - p->at_ms) / 1000, p->burst);
    p->at_ms = now;
    if (p->tokens < 1)
        return false;
    p->tokens -= 1;
    return true;
}

struct result {
    unsigned refused;
    int64_t end_ms;
};

/* `calls` callers come at once, each needs one accepted call; answers take 50 ms. */
static struct result simulate(struct bucket *b, struct provider *p, unsigned calls, int64_t *now)
{
    struct result result = {0};
    struct {
        int64_t sent, answer;
        bool ok;
    } flying[256];
    unsigned waiting = calls, n_flying = 0;
    int64_t limit = *now + 3600000;
    assert_true(calls < ARRAY_SIZE(flying));
    while (waiting + n_flying > 0 && *now < limit) {
        while (waiting > 0 && bucket_wait_ms(b, *now, 0, true) == 0) {
            flying[n_flying].sent = *now;
            flying[n_flying].answer = *now + 50;
            flying[n_flying++].ok = accepts(p, *now);
            waiting--;
        }
        for (unsigned i = 0; i < n_flying;) {
            if (flying[i].answer > *now) {
                i++;
                continue;
            }
            if (flying[i].ok) {
                bucket_accepted(b, *now);
            } else {
                bucket_refused(b, *now, flying[i].sent, 0);
                result.refused++;
                waiting++;
            }
            flying[i] = flying[--n_flying];
        }
        ++*now;
    }
    assert_true(*now < limit);
    result.end_ms = *now;
    return result;
}

static void fifty_calls_at_one_per_second(void **state)
{
    struct provider p = {.rate = 1, .burst = 5, .tokens = 5};
    struct bucket b = {0};
    int64_t now = 1000000, begun = now;
    struct result r;
    p.at_ms = now;
    r = simulate(&b, &p, 50, &now);
    /* 45 s would be perfect: the first burst, then one a second. */
    print_message("50 calls at 1/s: %.0f s, %u refused of which 45 at first\n",
                  (double)(r.end_ms - begun) / 1000, r.refused);
    assert_true(r.end_ms - begun < 75000);
    assert_true(r.refused >= 45 && r.refused < 45 + 20);
}

static void the_rate_follows_the_provider(void **state)
{
    static const double rates[] = {0.5, 2, 5, 20};
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        struct provider p = {.rate = rates[i], .burst = fmax(rates[i], 1)};
        struct bucket b = {0};
        int64_t now = 1000000, begun;
        struct result r;
        p.at_ms = now;
        (void)simulate(&b, &p, 100, &now); /* learns */
        begun = now;
        r = simulate(&b, &p, 200, &now);
        print_message("%.1f/s: 200 calls at %.2f/s, %u refused\n", rates[i],
                      200000.0 / (double)(r.end_ms - begun), r.refused);
        assert_true(200000.0 / (double)(r.end_ms - begun) > 0.7 * rates[i]);
        assert_true(r.refused < 40);
    }
}

static void refusals_of_one_moment_cut_once(void **state)
{
    struct bucket b = {0};
    double rate;
    for (int i = 0; i < 50; i++)
        assert_int_equal(bucket_wait_ms(&b, 1000, 0, true), 0);
    bucket_refused(&b, 1100, 1000, 0);
    rate = b.rate;
    assert_true(rate > 0);
    for (int i = 0; i < 49; i++)
        bucket_refused(&b, 1101, 1000, 0);
    assert_true(b.rate == rate);
    bucket_refused(&b, 1500, 1200, 0);
    assert_true(b.rate < rate);
    for (int i = 0; i < 100; i++)
        bucket_refused(&b, 2000 + i, 2000 + i - 1 + 1, 0);
    assert_true(b.rate > 0.1); /* nobody starves */
}

static void limits_end(void **state)
{
    struct bucket b = {0};
    bucket_refused(&b, 1000, 900, 5000);
    assert_true(bucket_wait_ms(&b, 1000, 0, true) >= 5000); /* what the provider asked for */
    assert_int_equal(bucket_wait_ms(&b, 1000 + 3600000, 0, true), 0);
    assert_true(b.rate == 0);
    bucket_refused(&b, 10000000, 9999999, 0);
    for (int i = 0; i < 1000 && b.rate > 0; i++)
        bucket_accepted(&b, 10000000 + i * 10);
    assert_true(b.rate == 0);
}

/* ---- the throttle with jobs ---- */

#define QUEUED 12

struct queued {
    struct throttle *throttle;
    pthread_mutex_t *lock;
    unsigned *turn;
    unsigned mine;
    struct job *job;
    pthread_t thread;
    int r;
    struct err err;
};

static void *queued_main(void *arg)
{
    struct queued *q = arg;
    q->r = throttle_wait(q->throttle, "Act", q->job, &q->err);
    pthread_mutex_lock(q->lock);
    q->mine = ++*q->turn;
    pthread_mutex_unlock(q->lock);
    return NULL;
}

static void find_throttle(const struct throttle_state *s, void *arg)
{
    struct throttle_state *ret = arg;
    if (str_eq(s->provider, "Test"))
        *ret = *s;
}

static void short_pause(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* Until n of them stand in the queue. */
static void wait_waiting(unsigned n)
{
    struct throttle_state s = {0};
    for (int i = 0; i < 2000 && s.waiting != n; i++) {
        short_pause();
        throttle_each(find_throttle, &s);
    }
    assert_int_equal(s.waiting, n);
}

static void jobs_wait_in_order_and_say_why(void **state)
{
    struct throttle *t = throttle_new("Test");
    struct queued all[QUEUED];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct throttle_state s = {0};
    unsigned turn = 0;
    char words[JOB_WORDS_MAX];
    struct job *first = job_new_inline(0);
    for (int i = 0; i < 60; i++) /* so that the rate will be some 14 calls per second */
        assert_int_equal(throttle_wait(t, "Act", first, NULL), 0);
    throttle_refused(t, "Act", "SlowDown", clock_mono_ms(), 300);
    for (unsigned i = 0; i < QUEUED; i++) {
        all[i] =
            (struct queued){.throttle = t, .lock = &lock, .turn = &turn, .job = job_new_inline(0)};
        assert_int_equal(pthread_create(&all[i].thread, NULL, queued_main, &all[i]), 0);
        wait_waiting(i + 1);
    }
    job_words(all[QUEUED - 1].job, words);
    assert_text_has(words, "Test throttles this node's Act calls (SlowDown): 11 before this one");
    throttle_each(find_throttle, &s);
    assert_string_equal(s.bucket, "Act");
    assert_string_equal(s.reason, "SlowDown");
    assert_int_equal(s.refused, 1);
    job_cancel(all[5].job); /* gives up: those behind it move up */
    for (unsigned i = 0; i < QUEUED; i++)
        pthread_join(all[i].thread, NULL);
    assert_int_equal(all[5].r, -ECANCELED);
    assert_text_has(err_text(&all[5].err), "Test throttles");
    for (unsigned i = 1; i < QUEUED; i++)
        if (i != 5 && i != 6)
            assert_true(all[i].r == 0 && all[i].mine > all[i - 1].mine);
    for (unsigned i = 0; i < QUEUED; i++) {
        job_words(all[i].job, words);
        assert_string_equal(words, "");
        job_free_inline(all[i].job);
    }
    job_free_inline(first);
    throttle_free(t);
}

static void a_deadline_ends_the_wait(void **state)
{
    _cleanup_(throttle_freep) struct throttle *t = throttle_new("Test");
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(100);
    struct err err = ERR_INIT;
    int64_t begun = clock_mono_ms();
    throttle_refused(t, "Act", "SlowDown", clock_mono_ms(), 60000);
    assert_int_equal(throttle_wait(t, "Act", job, &err), -ETIMEDOUT);
    assert_text_has(err_text(&err), "no time left while Test throttles this node's Act calls");
    assert_true(clock_mono_ms() - begun < 5000);
    err_clear(&err);
    job_free_inline(job);
    job = job_new_inline(100); /* another group is not slowed */
    assert_int_equal(throttle_wait(t, "Look", job, &err), 0);
}

/* ---- dates and pauses ---- */

static int64_t retry_after(const char *line)
{
    char *headers[] = {(char *)line, NULL};
    struct http_response r = {.headers = headers};
    return rest_retry_after_ms(&r, 784111777000); /* Sun, 06 Nov 1994 08:49:37 GMT */
}

static void retry_after_is_understood(void **state)
{
    assert_int_equal(retry_after("retry-after: 7"), 7000);
    assert_int_equal(retry_after("retry-after: 0"), 0);
    assert_int_equal(retry_after("retry-after: Sun, 06 Nov 1994 08:50:07 GMT"), 30000);
    assert_int_equal(retry_after("retry-after: Sun, 06 Nov 1994 08:00:00 GMT"), 0);
    assert_int_equal(retry_after("retry-after: -5"), 0);
    assert_int_equal(retry_after("retry-after: soon"), 0);
    assert_int_equal(retry_after("retry-after: 4000000000"), REST_RETRY_AFTER_MAX_MS);
    assert_int_equal(retry_after("retry-after: 99999999999999999999"), 0);
    assert_int_equal(retry_after("x-ms-retry-after-ms: 250"), 250);
    assert_int_equal(retry_after("retry-after-ms: 12"), 12);
    assert_int_equal(retry_after("date: x"), 0);
    assert_int_equal(rest_parse_date_ms("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777000);
    assert_int_equal(rest_parse_date_ms("Sunday, 06-Nov-94 08:49:37 GMT"), 784111777000);
    assert_int_equal(rest_parse_date_ms("Sun Nov  6 08:49:37 1994"), 784111777000);
    assert_int_equal(rest_parse_date_ms("yesterday"), -1);
}

static void pauses_have_full_jitter(void **state)
{
    for (unsigned n = 0; n < 40; n++) {
        int64_t bound = n < 6 ? (int64_t)REST_BACKOFF_MS << n : REST_BACKOFF_MAX_MS;
        int64_t low = INT64_MAX, high = 0;
        for (int i = 0; i < 300; i++) {
            int64_t ms = rest_backoff_ms(n);
            low = MIN(low, ms);
            high = MAX(high, ms);
            assert_true(ms >= 0 && ms <= bound);
        }
        assert_true(low < bound / 5 && high > bound - bound / 5);
    }
}

/* ---- calls ---- */

static struct server server;
static atomic_int refusals_left;

static bool serve(struct client *c, const char *path, const struct buf *request)
{
    if (str_eq(path, "/dead"))
        return false;
    if (str_starts(path, "/after/") && refusals_left-- > 0) {
        _cleanup_free_ char *status = str_asprintf("%s Word", path + 7);
        return reply(c, status, "", "no", 2);
    }
    return reply(c, "200 OK", "", request->data, request->len);
}

struct op {
    char url[64];
    unsigned prepared, renewed;
};

static int prepare(void *arg, struct job *job, const struct rest_try *try, struct http_request *ret,
                   struct err *err)
{
    struct op *op = arg;
    assert_int_equal(try->number, ++op->prepared);
    op->renewed += try->renew;
    *ret = (struct http_request){.method = "POST", .url = op->url, .body = "b", .body_len = 1};
    return 0;
}

static enum rest_verdict judge(void *arg, const struct http_response *r,
                               char reason[THROTTLE_REASON_MAX], struct err *err)
{
    if (r->status == 200)
        return REST_DONE;
    err_set(err, -EREMOTEIO, "HTTP %ld", r->status);
    return r->status == 429   ? REST_THROTTLED
           : r->status == 401 ? REST_DENIED
           : r->status >= 500 ? REST_BROKEN
                              : REST_FAILED;
}

static void each_verdict_has_its_tries(void **state)
{
    static const struct {
        const char *path;
        int refusals;
        bool repeatable;
        int r;
        unsigned tries;
    } cases[] = {
        {"/ok", 0, false, 0, 1},
        {"/after/503", 2, true, 0, 3},
        {"/after/503", 1, false, -EREMOTEIO, 1},
        {"/after/429", 1, false, 0, 2},
        {"/after/401", 1, false, 0, 2},
        {"/after/401", 9, true, -EREMOTEIO, 2},
        {"/after/400", 1, true, -EREMOTEIO, 1},
        {"/dead", 0, false, -ECONNRESET, 1},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_(rest_freep) struct rest *rest = rest_new("Test", "svc");
        _cleanup_(job_free_inlinep) struct job *job = job_new_inline(20000);
        struct op op = {0};
        struct rest_op q = {.name = "Act",
                            .repeatable = cases[i].repeatable,
                            .prepare = prepare,
                            .judge = judge,
                            .arg = &op};
        struct http_response r;
        struct err err = ERR_INIT;
        snprintf(op.url, sizeof(op.url), "http://127.0.0.1:%d%s", server.port, cases[i].path);
        refusals_left = cases[i].refusals;
        print_message("%s\n", cases[i].path);
        assert_int_equal(rest_call(rest, job, &q, &r, &err), cases[i].r);
        assert_int_equal(op.prepared, cases[i].tries);
        assert_int_equal(op.renewed, strstr(cases[i].path, "401") != NULL);
        assert_int_equal(err.code, cases[i].r);
        http_response_done(&r);
    }
}

static void the_budget_bounds_all_tries(void **state)
{
    _cleanup_(rest_freep) struct rest *rest = rest_new("Test", "svc");
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(0);
    struct op op = {.url = "http://127.0.0.1:1/"}; /* nobody listens: never sent, so repeatable */
    struct rest_op q = {
        .name = "Act", .budget_ms = 400, .prepare = prepare, .judge = judge, .arg = &op};
    struct http_response r;
    struct err err = ERR_INIT;
    int64_t begun = clock_mono_ms();
    assert_int_equal(rest_call(rest, job, &q, &r, &err), -ECONNREFUSED);
    assert_true(clock_mono_ms() - begun < 5000);
    assert_false(r.sent);
    assert_text_has(err_text(&err), "Act: POST http://127.0.0.1:1/: ");
}

static int set_up(void **state)
{
    server_start(&server, NULL, serve);
    return 0;
}

static int tear_down(void **state)
{
    http_close_idle();
    server_stop(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fifty_calls_at_one_per_second),
        cmocka_unit_test(the_rate_follows_the_provider),
        cmocka_unit_test(refusals_of_one_moment_cut_once),
        cmocka_unit_test(limits_end),
        cmocka_unit_test(jobs_wait_in_order_and_say_why),
        cmocka_unit_test(a_deadline_ends_the_wait),
        cmocka_unit_test(retry_after_is_understood),
        cmocka_unit_test(pauses_have_full_jitter),
        cmocka_unit_test(each_verdict_has_its_tries),
        cmocka_unit_test(the_budget_bounds_all_tries),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
