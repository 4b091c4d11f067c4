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
 * to the front of the queue. Any other failure is everybody's.
 */
#include "providers/aws/look.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/str.h"

#define WAIT_MS 50 /* how often a waiting job looks whether it may go on */

struct question {
    const char *sandbox;
    struct question *next; /* in the queue, then in the leader's batch */
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
    bool asking;                    /* lock */
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

/* Cuts the batch off the queue. */
static struct question *take_batch(struct look *look)
{
    struct question *batch = look->first, **end = &look->first;

    for (unsigned n = 0; *end && n < LOOK_BATCH; n++)
        end = &(*end)->next;
    look->first = *end;
    if (!look->first)
        look->last = &look->first;
    *end = NULL;
    return batch;
}

static int take_instance(const struct xml_node *item, void *arg, struct err *err)
{
    const struct xml_node *n = xml_first(xml_find(item, "instancesSet"));

    for (; n; n = xml_next(n)) {
        struct ec2_instance found;
        int r = ec2_parse_instance(n, &found, err);
        if (r < 0)
            return r;
        for (struct question *q = arg; q; q = q->next) {
            if (!str_eq(q->sandbox, found.sandbox))
                continue;
            q->found = xrealloc(q->found, (q->n + 1) * sizeof(*q->found));
            q->found[q->n++] = found;
        }
    }
    return 0;
}

static int ask(struct look *look, struct job *job, struct question *batch, struct err *err)
{
    const char *names[LOOK_BATCH];
    struct ec2_filter filter = {"tag:" TAG_SANDBOX, names, 0};
    const struct ec2_describe what = {.action = "DescribeInstances",
                                      .set = "reservationSet",
                                      .filters = &filter,
                                      .n_filters = 1,
                                      .page = EC2_PAGE};

    for (const struct question *q = batch; q; q = q->next) {
        size_t i = 0;
        while (i < filter.n && !str_eq(names[i], q->sandbox))
            i++;
        if (i == filter.n)
            names[filter.n++] = q->sandbox;
    }
    return ec2_describe(look->client, job, &what, take_instance, batch, NULL, err);
}

static void drop_found(struct question *q)
{
    free(TAKE_PTR(q->found));
    q->n = 0;
}

/* lock. A question may be freed by its owner as soon as it is answered. */
static void answer(struct look *look, struct question *batch, const struct question *own,
                   bool own_end, int r, const struct err *err)
{
    struct question *next;

    for (struct question *q = batch; q; q = next) {
        next = q->next;
        if (r < 0)
            drop_found(q);
        if (own_end && q != own) {
            q->next = look->first;
            look->first = q;
            if (!q->next)
                look->last = &q->next;
            continue;
        }
        q->r = r;
        q->err = *err;
        q->answered = true;
    }
}

static void lead(struct look *look, struct job *job, const struct question *own)
{
    struct question *batch = take_batch(look);
    struct err err = ERR_INIT;

    look->asking = true;
    pthread_mutex_unlock(&look->lock);
    int r = ask(look, job, batch, &err);
    pthread_mutex_lock(&look->lock);
    look->asking = false;
    answer(look, batch, own, r < 0 && job_check(job) < 0, r, &err);
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

static bool leave_queue(struct look *look, const struct question *own)
{
    for (struct question **q = &look->first; *q; q = &(*q)->next)
        if (*q == own) {
            *q = own->next;
            if (!*q)
                look->last = q;
            return true;
        }
    return false;
}

/* lock. Returns once the question is answered, or its job has ended and nobody holds it. */
static int until_answered(struct look *look, struct job *job, struct question *own)
{
    while (!own->answered) {
        int r = job_check(job);
        if (r < 0 && leave_queue(look, own))
            return r;
        if (r == 0 && !look->asking)
            lead(look, job, own);
        else
            wait_a_little(look);
    }
    return 0;
}

int look_sandbox(struct look *look, struct job *job, const char *sandbox, struct ec2_instance **ret,
                 size_t *ret_n, struct err *err)
{
    struct question own = {.sandbox = sandbox};

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
