/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One DescribeInstances for many pods.
 *
 * A node that starts or deletes 50 pods asks EC2 about each of them again and again, and AWS counts
 * calls for the whole account. So questions queue: whoever finds nobody asking becomes the leader,
 * takes up to LOOK_BATCH questions off the queue (its own among them, or it leads once more), and asks
 * about all of them with one filter over the sandbox tag. Whoever comes meanwhile waits for the next
 * round. Without a rush every question is a call of its own, at once; the slower AWS answers, or the
 * more it throttles, the more share one. Nothing is kept after it is told.
 *
 * The answer of a call began after the question was asked, so nobody gets an older state than a call
 * of its own would have told.
 *
 * A leader whose own job ends (cancel, deadline) has failed alone: the questions that it took go back
 * to the front of the queue. Any other failure is everybody's. Whoever's own job ends leaves at once,
 * wherever its question is: the leader works on copies of the names, and its answers go to those
 * questions of the batch that are still there.
 *
 * Who waits says what the leader waits for (its turn, when AWS throttles), so that every pod is told.
 */
#include "providers/aws/look.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/str.h"
#include "loop/throttle.h"

#define WAIT_MS 50 /* how often a waiting job looks whether it may go on */
#define SANDBOX_SIZE sizeof(((struct ec2_instance *)0)->sandbox)

struct question {
    const char *sandbox;
    struct question *next; /* in the queue, or in the batch */
    struct ec2_instance *found;
    size_t n;
    int r;
    struct err err;
    bool answered;
};

struct look {
    struct aws_client *client;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct question *first, **last; /* lock */
    struct question *batch;         /* lock: what the leader asks about */
    struct job *leader;             /* lock; NULL: nobody asks */
};

/* One call: its questions' sandboxes, and what AWS says. */
struct call {
    char names[LOOK_BATCH][SANDBOX_SIZE];
    const char *values[LOOK_BATCH];
    size_t n;
    struct ec2_instance *found;
    size_t n_found;
};

struct look *look_new(struct aws_client *client)
{
    struct look *look = xcalloc(1, sizeof(*look));

    look->client = client;
    look->last = &look->first;
    pthread_mutex_init(&look->lock, NULL);
    pthread_cond_init(&look->changed, NULL);
    return look;
}

void look_free(struct look *look)
{
    if (!look)
        return;
    pthread_cond_destroy(&look->changed);
    pthread_mutex_destroy(&look->lock);
    free(look);
}

/* ---- the leader ---- */

static void add_name(struct call *call, const char *sandbox)
{
    for (size_t i = 0; i < call->n; i++)
        if (str_eq(call->names[i], sandbox))
            return;
    memcpy(call->names[call->n], sandbox, strlen(sandbox) + 1);
    call->values[call->n] = call->names[call->n];
    call->n++;
}

/* lock. Cuts the batch off the queue. */
static void take_batch(struct look *look, struct call *call)
{
    struct question **end = &look->first;

    look->batch = look->first;
    for (unsigned n = 0; *end && n < LOOK_BATCH; n++) {
        add_name(call, (*end)->sandbox);
        end = &(*end)->next;
    }
    look->first = *end;
    if (!look->first)
        look->last = &look->first;
    *end = NULL;
}

static int take_reservation(const struct xml_node *item, void *arg, struct err *err)
{
    const struct xml_node *n = xml_first(xml_find(item, "instancesSet"));
    struct call *call = arg;
    int r = 0;

    for (; n && r == 0; n = xml_next(n)) {
        call->found = xrealloc(call->found, (call->n_found + 1) * sizeof(*call->found));
        r = ec2_parse_instance(n, &call->found[call->n_found], err);
        call->n_found += r == 0;
    }
    return r;
}

static int ask(struct look *look, struct job *job, struct call *call, struct err *err)
{
    const struct ec2_filter filter = {"tag:" TAG_SANDBOX, call->values, call->n};
    const struct ec2_describe what = {.action = "DescribeInstances",
                                      .set = "reservationSet",
                                      .filters = &filter,
                                      .n_filters = 1,
                                      .page = EC2_PAGE};

    return ec2_describe(look->client, job, &what, take_reservation, call, NULL, err);
}

/* lock. A question may be freed by its owner as soon as it is answered. */
static void answer(struct look *look, const struct call *call, int r, const struct err *err)
{
    for (struct question *q = look->batch, *next; q; q = next) {
        next = q->next;
        for (size_t i = 0; r == 0 && i < call->n_found; i++) {
            if (!str_eq(q->sandbox, call->found[i].sandbox))
                continue;
            q->found = xrealloc(q->found, (q->n + 1) * sizeof(*q->found));
            q->found[q->n++] = call->found[i];
        }
        q->r = r;
        q->err = *err;
        q->answered = true;
    }
    look->batch = NULL;
}

/* lock */
static void give_back(struct look *look)
{
    struct question **end = &look->batch;

    while (*end)
        end = &(*end)->next;
    *end = look->first;
    if (!look->first)
        look->last = end == &look->batch ? &look->first : end;
    look->first = look->batch;
    look->batch = NULL;
}

/* lock, which is let go meanwhile. */
static void lead(struct look *look, struct job *job)
{
    _cleanup_free_ struct call *call = xcalloc(1, sizeof(*call));
    struct err err = ERR_INIT;

    take_batch(look, call);
    look->leader = job;
    pthread_mutex_unlock(&look->lock);
    int r = ask(look, job, call, &err);
    pthread_mutex_lock(&look->lock);
    look->leader = NULL;
    if (r < 0 && job_check(job) < 0)
        give_back(look); /* its own question with them */
    else
        answer(look, call, r, &err);
    free(call->found);
    pthread_cond_broadcast(&look->changed);
}

/* ---- everybody ---- */

static void wait_a_little(struct look *look)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    (void)pthread_cond_timedwait(&look->changed, &look->lock, &until);
}

/* lock */
static void leave(struct look *look, const struct question *own)
{
    struct question **q = &look->batch;

    while (*q && *q != own)
        q = &(*q)->next;
    if (*q) {
        *q = own->next;
        return;
    }
    for (q = &look->first; *q != own; q = &(*q)->next)
        ;
    *q = own->next;
    if (!*q)
        look->last = q;
}

/* lock. Returns once the question is answered, or its job has ended and nobody holds it. */
static int until_answered(struct look *look, struct job *job, const struct question *own)
{
    int64_t since_ms = 0;
    int r = 0;

    while (!own->answered && (r = job_check(job)) == 0) {
        if (!look->leader) {
            lead(look, job);
            continue;
        }
        throttle_follow(job, look->leader, &since_ms);
        wait_a_little(look);
    }
    job_say(job, NULL);
    if (own->answered)
        return 0;
    leave(look, own);
    return r;
}

int look_sandbox(struct look *look, struct job *job, const char *sandbox, struct ec2_instance **ret,
                 size_t *ret_n, struct err *err)
{
    struct question own = {.sandbox = sandbox};

    if (strlen(sandbox) >= SANDBOX_SIZE)
        return err_set(err, -EINVAL, "a sandbox id has less than %zu characters", SANDBOX_SIZE);
    pthread_mutex_lock(&look->lock);
    *look->last = &own;
    look->last = &own.next;
    int r = until_answered(look, job, &own);
    pthread_mutex_unlock(&look->lock);
    if (r < 0)
        return err_errno(err, r, "waiting for what AWS knows of sandbox %s", sandbox);
    if (own.r < 0)
        return err_set(err, own.r, "%s", err_text(&own.err));
    *ret = own.found;
    *ret_n = own.n;
    return 0;
}
