/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AWS provider: the provider interface over EC2's actions.
 *
 * It keeps nothing about instances: what there is, EC2 knows, by id and by our tags. Shared between
 * jobs are the client (connections aside, credentials and throttling) and the facts, each with its
 * own lock.
 *
 *   create          create.c: a plan, then places in order, RunInstances with a ClientToken
 *   wait_addresses  until EC2 knows the addresses that the pod needs; for the external network it
 *                   also gives the second interface its Elastic IP (external.c)
 *   find, list      DescribeInstances by our tags, without what is terminated
 *   delete          delete.c: TerminateInstances, confirmed, then what was made beside it
 *
 * EC2 is eventually consistent: an instance that was just made may be unknown for some seconds
 * (-aws-settle-time), by id and by tag. Whoever asks here allows for it: waiting goes on, deleting
 * does not believe it at once, creating sends the same token again.
 *
 * A private address is known as soon as RunInstances answers, so that the daemon begins to dial
 * while the VM boots.
 */
#include "providers/aws/aws.h"

#include <errno.h>

#include "base/clock.h"
#include "base/str.h"
#include "providers/aws/hints.h"

#define WAIT_MIN_MS 500
#define WAIT_MAX_MS 5000

static void aws_close(struct provider *p)
{
    if (!p)
        return;
    look_free(aws_of(p)->look);
    aws_facts_free(aws_of(p)->facts);
    aws_client_free(aws_of(p)->client);
    free(aws_of(p));
}

static int aws_open(const void *config, struct provider **ret, struct err *err)
{
    struct aws_provider *a = xcalloc(1, sizeof(*a));
    int r;

    a->base.type = &aws_provider_type;
    a->config = config;
    r = aws_client_new(a->config, &a->client, err);
    if (r < 0) {
        free(a);
        return r;
    }
    a->facts = aws_facts_new(a->config, a->client);
    a->look = look_new(a->client);
    *ret = &a->base;
    return 0;
}

/* ---- results ---- */

static void add_address(struct instance *ret, const char *address)
{
    if (*address && ret->n_addresses < INSTANCE_ADDRESSES_MAX)
        (void)str_format(ret->addresses[ret->n_addresses++], INSTANCE_ADDRESS_SIZE, "%s", address);
}

void aws_fill_instance(const struct aws_provider *a, const struct ec2_instance *i,
                       struct instance *ret)
{
    *ret = (struct instance){.gone = ec2_state_gone(i->state)};
    (void)str_format(ret->id, sizeof(ret->id), "%s", i->id);
    memcpy(ret->name, i->name, sizeof(ret->name));
    memcpy(ret->sandbox, i->sandbox, sizeof(ret->sandbox));
    memcpy(ret->boot, i->boot, sizeof(ret->boot));
    if (i->external && !i->second_public)
        return;
    if (a->config->use_public_ip) {
        if (!*i->public_ip)
            return;
        add_address(ret, i->public_ip);
    }
    add_address(ret, i->private_ip);
    add_address(ret, i->ipv6);
}

/* ---- find, list ---- */

int aws_find_sandbox(struct aws_provider *a, struct job *job, const char *sandbox,
                     struct ec2_instance *ret, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    const struct ec2_instance *best = NULL;
    size_t n;
    int r = look_sandbox(a->look, job, sandbox, &list, &n, err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (list[i].state != EC2_TERMINATED && (!best || ec2_state_gone(best->state)))
            best = &list[i];
    if (!best)
        return n ? err_set(err, -ENOENT, "its instance %s is terminated%s%s", list[0].id,
                           *list[0].reason ? ": " : "", list[0].reason)
                 : err_set(err, -ENOENT, "there is no instance of sandbox %s", sandbox);
    *ret = *best;
    return 0;
}

static int aws_find(struct provider *p, struct job *job, const char *sandbox, struct instance *ret,
                    struct err *err)
{
    struct ec2_instance found;
    int r = aws_find_sandbox(aws_of(p), job, sandbox, &found, err);

    if (r == 0)
        aws_fill_instance(aws_of(p), &found, ret);
    return r;
}

static int aws_list(struct provider *p, struct job *job, const struct tag *tags,
                    struct instance **ret, size_t *ret_n, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    size_t n;
    int r =
        ec2_describe_instances(aws_of(p)->client, job, NULL, 0, tags, false, &list, &n, NULL, err);

    if (r < 0)
        return r;
    *ret = xcalloc(n + 1, sizeof(**ret));
    for (size_t i = 0; i < n; i++)
        aws_fill_instance(aws_of(p), &list[i], &(*ret)[i]);
    *ret_n = n;
    return 0;
}

/* ---- wait ---- */

static int look_by_id(struct aws_provider *a, struct job *job, const char *id,
                      struct ec2_instance *ret, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    struct aws_error error;
    size_t n = 0;
    int r = ec2_describe_instances(a->client, job, &id, 1, NULL, true, &list, &n, &error, err);

    if (r < 0 && aws_error_is(&error, "InvalidInstanceID.NotFound")) {
        err_clear(err);
        r = 0;
    }
    if (r == 0 && n > 0)
        *ret = list[0];
    return r;
}

int aws_look_at(struct aws_provider *a, struct job *job, const struct instance *instance,
                struct ec2_instance *ret, struct err *err)
{
    _cleanup_free_ struct ec2_instance *list = NULL;
    size_t n = 0;
    int r = 0;

    *ret = (struct ec2_instance){0};
    if (*instance->sandbox)
        r = look_sandbox(a->look, job, instance->sandbox, &list, &n, err);
    for (size_t i = 0; i < n; i++)
        if (str_eq(list[i].id, instance->id)) {
            *ret = list[i];
            return 0;
        }
    return r < 0 ? r : look_by_id(a, job, instance->id, ret, err);
}

/* 0 also while there is no address yet, or AWS does not know the instance (*ret_known). */
static int wait_step(struct aws_provider *a, struct job *job, struct instance *instance,
                     struct aws_external *external, bool *ret_known, struct err *err)
{
    struct ec2_instance i;
    int r = aws_look_at(a, job, instance, &i, err);

    *ret_known = r == 0 && *i.id;
    if (r < 0 || !*ret_known)
        return r;
    if (ec2_state_gone(i.state)) {
        instance->gone = true;
        return err_set(err, -EHOSTDOWN, "instance %s is %s%s%s", i.id, ec2_state_name(i.state),
                       *i.reason ? ": " : "", i.reason);
    }
    if (i.external && !i.second_public && i.state == EC2_RUNNING)
        r = aws_external_connect(a, job, &i, external, err);
    if (r == 0)
        aws_fill_instance(a, &i, instance);
    return r;
}

static int aws_wait_addresses(struct provider *p, struct job *job, struct instance *instance,
                              struct err *err)
{
    struct aws_provider *a = aws_of(p);
    int64_t unknown_since = 0, pause = WAIT_MIN_MS;
    struct aws_external external = {0};
    bool known;

    while (instance->n_addresses == 0) {
        int r = wait_step(a, job, instance, &external, &known, err);
        if (r < 0 || instance->n_addresses > 0)
            return r;
        if (known)
            unknown_since = 0;
        else if (!unknown_since)
            unknown_since = clock_mono_ms();
        else if (clock_mono_ms() - unknown_since >= a->config->settle_ns / 1000000)
            return err_set(err, -EHOSTDOWN, "AWS does not know the instance %s", instance->id);
        r = job_sleep(job, pause);
        if (r < 0)
            return err_errno(err, r, "waiting for the address of instance %s", instance->id);
        pause = MIN(pause * 2, (int64_t)WAIT_MAX_MS);
    }
    return 0;
}

static int64_t aws_settle_ms(struct provider *p)
{
    return aws_of(p)->config->settle_ns / 1000000;
}

const struct provider_type aws_provider_type = {
    .name = "aws",
    .summary = "Amazon EC2: confidential VMs (AMD SEV-SNP) or ordinary ones",
    .opts = aws_opts,
    .config_size = sizeof(struct aws_config),
    .user_data_max = EC2_USER_DATA_MAX,
    .open = aws_open,
    .close = aws_close,
    .verify = aws_verify,
    .diagnose = aws_diagnose,
    .create = aws_create,
    .find = aws_find,
    .list = aws_list,
    .wait_addresses = aws_wait_addresses,
    .delete = aws_delete,
    .settle_ms = aws_settle_ms,
};
