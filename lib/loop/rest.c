/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One policy of repeating, for all clouds.
 *
 * Model: a call is a series of tries. Before each the throttle is asked for a turn, the provider
 * makes the request (signed for this try), and its reply, or the lack of one, becomes a verdict.
 * What happens then:
 *
 *   done, failed    the end
 *   throttled       again, when the throttle says so, for as long as the job may live: the provider
 *                   has not acted, and a queue is no failure
 *   denied          again at once, once for the clock (when the reply's Date differs from ours: that
 *                   difference is kept, and all later requests are dated with it) and once with
 *                   fresh credentials; the provider has not acted
 *   broken (5xx)    again after a pause, if the operation is repeatable
 *   no answer       as broken; also when it is not repeatable, if no byte of it was sent
 *
 * Pauses grow exponentially with full jitter (any value from zero to the bound, so that those who
 * failed together do not come back together), are not shorter than what Retry-After asks, and end
 * with the budget, the number of tries or the job's deadline. A pause that would outlast these is
 * not begun: the failure is reported at once, with the number of tries.
 *
 * Certificates that do not verify, names that are no URL, replies over the limit are final: they
 * would be the same next time.
 *
 * A waiting job says why (job_say), and logs it when it takes more than a second.
 */
#include "loop/rest.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "loop/http_stats.h"

#define LOG_WAIT_MS 1000

struct rest {
    const char *provider, *service;
    struct throttle *throttle;
    _Atomic int64_t clock_off_ms; /* the provider's clock minus ours */
};

/* One rest_call. */
struct call {
    struct rest *rest;
    struct job *job;
    const struct rest_op *op;
    const char *bucket;
    char operation[HTTP_STATS_NAME_MAX];
    unsigned number;  /* of tries begun */
    unsigned counted; /* of those that the budget counts */
    int64_t begun_ms;
    bool renewed, renew, clock_set;
    int interrupted; /* the job ended during a pause: its errno */
    char reason[THROTTLE_REASON_MAX];
};

/* What comes after a try. */
enum next { NEXT_STOP, NEXT_AGAIN };

struct rest *rest_new(const char *provider, const char *service)
{
    struct rest *rest = xcalloc(1, sizeof(*rest));

    rest->provider = provider;
    rest->service = service;
    rest->throttle = throttle_new(provider);
    return rest;
}

void rest_free(struct rest *rest)
{
    if (!rest)
        return;
    throttle_free(rest->throttle);
    free(rest);
}

int64_t rest_now_ms(const struct rest *rest)
{
    return clock_real_ms() + atomic_load(&rest->clock_off_ms);
}

int64_t rest_backoff_ms(unsigned n)
{
    int64_t bound =
        n < 16 ? MIN((int64_t)REST_BACKOFF_MS << n, REST_BACKOFF_MAX_MS) : REST_BACKOFF_MAX_MS;
    uint32_t random = 0;

    /* Fails only before the kernel's pool is ready; then the shortest pause is fine. */
    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return 0;
    return (int64_t)(random % (uint64_t)(bound + 1));
}

int64_t rest_parse_date_ms(const char *text)
{
    time_t t = curl_getdate(text, NULL);

    return t == (time_t)-1 ? -1 : (int64_t)t * 1000;
}

int64_t rest_retry_after_ms(const struct http_response *reply, int64_t now_ms)
{
    static const char *const in_ms[] = {"retry-after-ms", "x-ms-retry-after-ms"};
    const char *text;
    uint64_t n;
    int64_t ms = 0;

    for (size_t i = 0; i < ARRAY_SIZE(in_ms); i++)
        if ((text = http_response_header(reply, in_ms[i])) &&
            str_to_u64(text, REST_RETRY_AFTER_MAX_MS, &n) == 0)
            return (int64_t)n;
    text = http_response_header(reply, "retry-after");
    if (!text)
        return 0;
    if (str_to_u64(text, UINT32_MAX, &n) == 0)
        ms = (int64_t)n * 1000;
    else if (rest_parse_date_ms(text) > 0)
        ms = rest_parse_date_ms(text) - now_ms;
    return MIN(MAX(ms, 0), REST_RETRY_AFTER_MAX_MS);
}

/* Learns the provider's clock from a refusal; false when it agrees with what we took it for. */
static bool clock_learn(struct call *c, const struct http_response *reply)
{
    const char *text = http_response_header(reply, "date");
    int64_t date = text ? rest_parse_date_ms(text) : -1, off;

    if (date < 0 || c->clock_set)
        return false;
    off = date - clock_real_ms();
    if (llabs(off - atomic_load(&c->rest->clock_off_ms)) < REST_CLOCK_OFF_MIN_MS)
        return false;
    atomic_store(&c->rest->clock_off_ms, off);
    c->clock_set = true;
    log_warn("this node's clock differs by %lld s from %s's; requests are dated with theirs",
             (long long)off / 1000, c->rest->provider);
    return true;
}

/* Sleeps before the next try, unless that makes no sense. err: the last failure, kept. */
static enum next pause_for(struct call *c, int64_t ms, const struct err *err)
{
    int64_t left = job_remaining_ms(c->job);
    int64_t budget = c->op->budget_ms ? c->op->budget_ms : REST_BUDGET_MS;

    if (c->counted >= REST_TRIES_MAX || (left >= 0 && ms >= left) ||
        clock_mono_ms() - c->begun_ms + ms > budget)
        return NEXT_STOP;
    job_say(c->job, "%s %s failed (%.160s); again in %lld s, try %u", c->rest->provider,
            c->op->name, err_text(err), (long long)(ms + 999) / 1000, c->number + 1);
    if (ms >= LOG_WAIT_MS)
        log_entry(LOG_LEVEL_INFO, job_sandbox(c->job), NULL, "%s; again in %lld s, try %u",
                  err_text(err), (long long)(ms + 999) / 1000, c->number + 1);
    c->interrupted = job_sleep(c->job, ms);
    job_say(c->job, NULL);
    return c->interrupted < 0 ? NEXT_STOP : NEXT_AGAIN;
}

static enum next after_broken(struct call *c, const struct http_response *reply,
                              const struct err *err)
{
    int64_t asked = rest_retry_after_ms(reply, rest_now_ms(c->rest));

    return pause_for(c, MAX(asked, rest_backoff_ms(c->counted - 1)), err);
}

static enum next after_throttled(struct call *c, const struct http_response *reply, int64_t sent_ms)
{
    int64_t asked = rest_retry_after_ms(reply, rest_now_ms(c->rest));
    int64_t left = job_remaining_ms(c->job);

    c->counted--;
    http_stats_throttled(c->operation);
    throttle_refused(c->rest->throttle, c->bucket, c->reason[0] ? c->reason : "too many calls",
                     sent_ms, asked);
    return left >= 0 && asked >= left ? NEXT_STOP : NEXT_AGAIN;
}

static enum next after_denied(struct call *c, const struct http_response *reply)
{
    if (clock_learn(c, reply))
        return NEXT_AGAIN;
    if (c->renewed)
        return NEXT_STOP;
    c->renewed = c->renew = true;
    return NEXT_AGAIN;
}

static enum next after_silence(struct call *c, int r, const struct http_response *reply,
                               const struct err *err)
{
    switch (r) {
    case -ECANCELED:
    case -EINVAL:
    case -EFBIG:
    case -ENOENT:
    case -ENOMEM:
    case -EKEYREJECTED:
        return NEXT_STOP;
    default:
        if (job_check(c->job) < 0 || (reply->sent && !c->op->repeatable))
            return NEXT_STOP;
        return after_broken(c, reply, err);
    }
}

static enum next after_reply(struct call *c, const struct http_response *reply, int64_t sent_ms,
                             struct err *err)
{
    enum rest_verdict verdict = c->op->judge(c->op->arg, reply, c->reason, err);

    if (verdict != REST_DONE && err->code == 0)
        err_set(err, -EREMOTEIO, "HTTP %ld", reply->status);
    if (verdict != REST_THROTTLED)
        throttle_accepted(c->rest->throttle, c->bucket);
    switch (verdict) {
    case REST_THROTTLED:
        return after_throttled(c, reply, sent_ms);
    case REST_DENIED:
        return after_denied(c, reply);
    case REST_BROKEN:
        return c->op->repeatable ? after_broken(c, reply, err) : NEXT_STOP;
    case REST_DONE:
    case REST_FAILED:
        break;
    }
    return NEXT_STOP;
}

/* One try. err is set when it failed, whatever is next. */
static enum next call_try(struct call *c, struct http_response *ret, struct err *err)
{
    struct http_request request = {0};
    struct rest_try try = {.renew = c->renew};
    int64_t sent_ms;
    int r = throttle_wait(c->rest->throttle, c->bucket, c->job, err);

    if (r < 0)
        return NEXT_STOP;
    try.number = ++c->number;
    c->counted++;
    try.now_ms = rest_now_ms(c->rest);
    c->renew = false;
    c->reason[0] = '\0';
    if (c->op->prepare(c->op->arg, c->job, &try, &request, err) < 0)
        return NEXT_STOP;
    request.operation = c->operation;
    request.repeatable = c->op->repeatable && !c->op->seen;
    if (c->number > 1)
        http_stats_retry(c->operation);
    sent_ms = clock_mono_ms();
    r = job_http(c->job, &request, ret, err);
    return r < 0 ? after_silence(c, r, ret, err) : after_reply(c, ret, sent_ms, err);
}

static int call_failed(const struct call *c, const struct http_response *reply,
                       const struct err *last, struct err *err)
{
    bool unsure = reply->sent && reply->status == 0 && !c->op->repeatable;
    int code = c->interrupted < 0 ? c->interrupted : last->code;

    if (c->number <= 1)
        return err_set(err, code, "%s: %s%s", c->op->name, err_text(last),
                       unsure ? " (it may have been done all the same)" : "");
    return err_set(err, code, "%s: %s (%u tries in %lld s)", c->op->name, err_text(last), c->number,
                   (long long)(clock_mono_ms() - c->begun_ms) / 1000);
}

/* A wait for the throttle that ends with the job keeps the refusal before it in sight. */
static void keep_cause(struct err *now, const struct err *before)
{
    char words[ERR_TEXT_MAX];
    int code = now->code;

    if (before->code == 0 || now->code == 0 || (code != -ECANCELED && code != -ETIMEDOUT))
        return;
    snprintf(words, sizeof(words), "%s", err_text(now));
    err_clear(now);
    err_set(now, code, "%.400s; before that: %.500s", words, err_text(before));
}

int rest_call(struct rest *rest, struct job *job, const struct rest_op *op,
              struct http_response *ret, struct err *err)
{
    struct call c = {.rest = rest,
                     .job = job,
                     .op = op,
                     .bucket = op->bucket ? op->bucket : op->name,
                     .begun_ms = clock_mono_ms()};
    struct err now = ERR_INIT, before;

    *ret = (struct http_response){0};
    snprintf(c.operation, sizeof(c.operation), "%s.%s", rest->service, op->name);
    do {
        before = now;
        err_clear(&now);
        http_response_done(ret);
    } while (call_try(&c, ret, &now) == NEXT_AGAIN);
    job_say(job, NULL);
    if (now.code == 0)
        return 0;
    keep_cause(&now, &before);
    return call_failed(&c, ret, &now, err);
}

int rest_fetch(struct job *job, const struct http_request *request, struct http_response *ret,
               struct err *err)
{
    for (unsigned n = 1;; n++) {
        struct err now = ERR_INIT;
        int r = job_http(job, request, ret, &now);

        if (r == 0 && ret->status != 429 && ret->status < 500)
            return 0;
        if (r == 0)
            r = err_set(&now, -EREMOTEIO, "%s %s: HTTP %ld", request->method, request->url,
                        ret->status);
        http_response_done(ret);
        if (n == REST_FETCH_TRIES || r == -EFBIG || job_check(job) < 0 ||
            job_sleep(job, rest_backoff_ms(n - 1)) < 0)
            return err_set(err, r, "%s", err_text(&now));
    }
}
