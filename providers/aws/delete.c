/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delete: everything that carries the sandbox's tag, and the instance of the given id, until AWS
 * says that it is terminated.
 *
 * Normally there is one instance. There are two where a repeated create found room in an earlier
 * place (create.c), so the tag is asked first. Then each is terminated (what the tag did not show is
 * asked about before) and asked about until its state is terminated: "shutting-down" may still be undone by nobody, but its interfaces and
 * volumes are only gone afterwards.
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
    const char *id;
    bool tell;             /* TerminateInstances comes next, else a question */
    int64_t unknown_since; /* when AWS first did not know it; 0: it does */
};

static int tell(struct ending *e, struct job *job, struct aws_error *error, struct err *err)
{
    int r = ec2_terminate(e->a->client, job, &e->id, 1, error, err);

    e->tell = false;
    return r;
}

/* 1: terminated. */
static int ask(struct ending *e, struct job *job, struct aws_error *error, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    size_t n = 0;
    int r = ec2_describe_instances(e->a->client, job, &e->id, 1, NULL, true, &list, &n, error, err);

    if (r < 0)
        return r;
    if (n == 1 && list[0].state == EC2_TERMINATED)
        return 1;
    e->tell = n == 1 && list[0].state != EC2_SHUTTING_DOWN;
    return 0;
}

/* 1: gone. 0: not yet, or not known yet. */
static int step(struct ending *e, struct job *job, struct err *err)
{
    struct aws_error error = {0};
    int r = e->tell ? tell(e, job, &error, err) : ask(e, job, &error, err);

    if (!aws_error_is(&error, "InvalidInstanceID.NotFound")) {
        e->unknown_since = 0;
        return r;
    }
    err_clear(err);
    if (!e->unknown_since)
        e->unknown_since = clock_mono_ms();
    e->tell = true;
    return clock_mono_ms() - e->unknown_since >= e->a->config->settle_ns / 1000000;
}

/* running: it is known to be there, nobody has to be asked first. */
static int end_instance(struct aws_provider *a, struct job *job, const char *id, bool running,
                        struct err *err)
{
    struct ending e = {.a = a, .id = id, .tell = running};
    int64_t end = clock_mono_ms() + END_MS, pause = POLL_MIN_MS;
    unsigned steps = 0;

    for (;;) {
        int r = step(&e, job, err);
        if (r != 0)
            return MIN(r, 0);
        if (clock_mono_ms() >= end)
            return err_set(err, -ETIMEDOUT, "instance %s is still not terminated after %d s", id,
                           END_MS / 1000);
        if (++steps < FAST_STEPS && !e.unknown_since)
            continue;
        r = job_sleep(job, pause);
        if (r < 0)
            return err_errno(err, r, "waiting until instance %s is terminated", id);
        pause = MIN(pause * 2, (int64_t)POLL_MAX_MS);
    }
}

struct targets {
    char ids[INSTANCES_MAX][EC2_ID_MAX];
    size_t n, n_running; /* the first n_running are there for sure */
    bool extras;
};

static int find_targets(struct aws_provider *a, struct job *job, const struct instance *instance,
                        struct targets *ret, struct err *err)
{
    const struct tag tags[] = {{TAG_SANDBOX, instance->sandbox}, {0}};
    _cleanup_free_ struct ec2_instance *list = NULL;
    size_t n = 0;
    bool known = false;
    int r = 0;

    *ret = (struct targets){0};
    if (*instance->sandbox)
        r = ec2_describe_instances(a->client, job, NULL, 0, tags, false, &list, &n, NULL, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n && ret->n < INSTANCES_MAX - 1; i++) {
        memcpy(ret->ids[ret->n++], list[i].id, EC2_ID_MAX);
        known |= str_eq(list[i].id, instance->id);
        ret->extras |= *list[i].second_interface;
    }
    ret->n_running = ret->n;
    if (known || !*instance->id)
        return 0;
    ret->extras = true;
    r = str_format(ret->ids[ret->n++], EC2_ID_MAX, "%s", instance->id);
    return r < 0 ? err_set(err, -EINVAL, "'%.80s' is no instance id", instance->id) : 0;
}

int aws_delete(struct provider *p, struct job *job, const struct instance *instance,
               struct err *err)
{
    struct aws_provider *a = aws_of(p);
    struct targets targets;
    int r = find_targets(a, job, instance, &targets, err);

    for (size_t i = 0; r == 0 && i < targets.n; i++)
        r = end_instance(a, job, targets.ids[i], i < targets.n_running, err);
    if (r == 0 && targets.extras && *instance->sandbox)
        r = aws_external_remove(a, job, instance->sandbox, err);
    return r;
}
