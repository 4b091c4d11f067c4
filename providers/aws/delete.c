/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delete: everything that carries the sandbox's tag, and the instance of the given id, until AWS
 * says that it is terminated.
 *
 * Normally there is one instance. There are two where a repeated create found room in an earlier
 * place (create.c), so the tag is asked first. Then each is terminated (what the tag did not show is
 * asked about before) and asked about until its state is terminated: nobody undoes "shutting-down",
 * but interfaces and volumes are only gone after it.
 *
 * EC2 may not yet know an instance that it has just made. "InvalidInstanceID.NotFound" is therefore
 * believed only when it has been said for -aws-settle-time.
 *
 * Addresses and leftover interfaces are looked for only where there can be some: the instance had a
 * second interface, or it was gone before we came and nobody can tell any more.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/str.h"
#include "providers/aws/aws.h"
#include "providers/aws/hints.h"

#define POLL_MIN_MS 500
#define POLL_MAX_MS 5000
#define END_MS 600000 /* longer than AWS takes for the largest confidential VM */
#define INSTANCES_MAX 16
#define FAST_STEPS 3 /* ask, tell, ask without a pause: sometimes that is all */

struct ending {
    struct aws_provider *a;
    const struct instance *instance;
    bool tell;             /* TerminateInstances comes next, else a question */
    int64_t unknown_since; /* when AWS first did not know it; 0: it does */
};

/* 1: terminated. *ret_known: AWS knows it. */
static int ask(struct ending *e, struct job *job, bool *ret_known, struct err *err)
{
    struct ec2_instance i;
    int r = aws_look_at(e->a, job, e->instance, &i, err);

    *ret_known = r == 0 && *i.id;
    if (r < 0)
        return r;
    if (*ret_known && i.state == EC2_TERMINATED)
        return 1;
    e->tell = !*ret_known || i.state != EC2_SHUTTING_DOWN;
    return 0;
}

static int tell(struct ending *e, struct job *job, bool *ret_known, struct err *err)
{
    const char *id = e->instance->id;
    struct aws_error error;
    int r = ec2_terminate(e->a->client, job, &id, 1, &error, err);

    e->tell = false;
    *ret_known = true;
    if (r < 0 && aws_error_is(&error, "InvalidInstanceID.NotFound")) {
        err_clear(err);
        *ret_known = false;
        return 0;
    }
    return r;
}

/* 1: gone. 0: not yet, or not known yet. */
static int step(struct ending *e, struct job *job, struct err *err)
{
    bool known;
    int r = e->tell ? tell(e, job, &known, err) : ask(e, job, &known, err);

    if (r != 0)
        return r;
    if (known)
        e->unknown_since = 0;
    else if (!e->unknown_since)
        e->unknown_since = clock_mono_ms();
    else if (clock_mono_ms() - e->unknown_since >= e->a->config->settle_ns / 1000000)
        return 1;
    return 0;
}

/* running: it is known to be there, nobody has to be asked first. */
static int end_instance(struct aws_provider *a, struct job *job, const struct instance *instance,
                        bool running, struct err *err)
{
    struct ending e = {.a = a, .instance = instance, .tell = running};
    int64_t end = clock_mono_ms() + END_MS, pause = POLL_MIN_MS;
    unsigned steps = 0;

    for (;;) {
        bool unknown = e.unknown_since;
        int r = step(&e, job, err);
        if (r != 0)
            return MIN(r, 0);
        if (unknown && !e.unknown_since) {
            pause = POLL_MIN_MS;
            steps = 0;
        }
        if (clock_mono_ms() >= end)
            return err_set(err, -ETIMEDOUT, "instance %s is still not terminated after %d s",
                           instance->id, END_MS / 1000);
        if (++steps < FAST_STEPS && !e.unknown_since)
            continue;
        r = job_sleep(job, pause);
        if (r < 0)
            return err_errno(err, r, "waiting until instance %s is terminated", instance->id);
        pause = MIN(pause * 2, (int64_t)POLL_MAX_MS);
    }
}

struct targets {
    struct instance list[INSTANCES_MAX];
    size_t n, n_running; /* the first n_running are there for sure */
    bool extras;
};

static void add_target(struct targets *t, const char *id, const char *sandbox)
{
    struct instance *i = &t->list[t->n++];

    (void)str_format(i->id, sizeof(i->id), "%s", id);
    memcpy(i->sandbox, sandbox, sizeof(i->sandbox));
}

static int find_targets(struct aws_provider *a, struct job *job, const struct instance *instance,
                        struct targets *ret, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    size_t n = 0;
    bool known = false;
    int r = 0;

    if (*instance->sandbox)
        r = look_sandbox(a->look, job, instance->sandbox, &list, &n, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n && ret->n < INSTANCES_MAX - 1; i++) {
        known |= str_eq(list[i].id, instance->id);
        /* What its second interface had cannot be asked any more. */
        ret->extras |= *list[i].second_interface || list[i].state == EC2_TERMINATED;
        if (list[i].state != EC2_TERMINATED)
            add_target(ret, list[i].id, instance->sandbox);
    }
    ret->n_running = ret->n;
    if (!known && *instance->id) {
        ret->extras = true;
        add_target(ret, instance->id, instance->sandbox);
    }
    return 0;
}

int aws_delete(struct provider *p, struct job *job, const struct instance *instance,
               struct err *err)
{
    struct aws_provider *a = aws_of(p);
    _cleanup_free_ struct targets *targets = xcalloc(1, sizeof(*targets));
    int r = find_targets(a, job, instance, targets, err);

    for (size_t i = 0; r == 0 && i < targets->n; i++)
        r = end_instance(a, job, &targets->list[i], i < targets->n_running, err);
    if (r == 0 && targets->extras && *instance->sandbox)
        r = aws_external_remove(a, job, instance->sandbox, err);
    return r;
}
