/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The external network: the pod's way to the world is the VM's second interface with an Elastic IP.
 *
 * The interface is made with the instance and ends with it. The address is a thing of its own: it
 * is allocated once the instance runs, with the sandbox's tag, and associated. A process that dies
 * in between leaves an address that the next one finds by the tag, here or at the end.
 *
 * EC2 shows late what it has done: the caller keeps what it was given for as long (-aws-settle-time), so
 * that an address that no list has yet is not asked for once more. An account has five of them.
 *
 * At the end AWS frees an address only some time after its interface is gone, so the release is
 * repeated until it succeeds or the job's patience ends.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/str.h"
#include "providers/aws/aws.h"
#include "providers/aws/hints.h"

#define REMOVE_MIN_MS 500
#define REMOVE_MAX_MS 4000
#define REMOVE_MS 120000

#define ADDRESS_TAGS_MAX 8

/* The instance's own, so that whoever finds the address knows whose it is. */
static void copy_tags(const struct ec2_instance *i, struct tag ret[ADDRESS_TAGS_MAX])
{
    const struct tag all[] = {{TAG_CREATOR, "cloud-api-adaptor"},
                              {TAG_SANDBOX, i->sandbox},
                              {TAG_BOOT, i->boot},
                              {TAG_CLUSTER, i->cluster},
                              {TAG_NODE, i->node},
                              {TAG_NAMESPACE, i->namespace},
                              {TAG_POD, i->pod}};
    size_t n = 0;

    _Static_assert(ARRAY_SIZE(all) < ADDRESS_TAGS_MAX, "and the end");
    for (size_t k = 0; k < ARRAY_SIZE(all); k++)
        if (*all[k].value)
            ret[n++] = all[k];
    ret[n] = (struct tag){0};
}

/* The address that carries the sandbox's tag, or a new one. */
static int get_address(struct aws_provider *a, struct job *job, const struct ec2_instance *i,
                       struct aws_external *done, struct err *err)
{
    struct tag tags[ADDRESS_TAGS_MAX];
    const struct ec2_run owner = {.name = i->name, .tags = tags, .more_tags = a->config->tags};
    struct ec2_address found[EC2_LEFTOVERS_MAX], one;
    size_t n;
    int r = ec2_find_addresses(a->client, job, i->sandbox, found, &n, err);

    copy_tags(i, tags);
    if (r < 0)
        return r;
    if (n > 0)
        one = found[0];
    else if ((r = ec2_allocate_address(a->client, job, &owner, &one, err)) < 0)
        return r;
    for (size_t k = 0; k < n && !done->associated; k++)
        if (str_eq(found[k].interface, i->second_interface)) {
            one = found[k];
            done->associated = true;
        }
    memcpy(done->allocation, one.allocation, sizeof(done->allocation));
    done->since_ms = clock_mono_ms();
    return 0;
}

int aws_external_connect(struct aws_provider *a, struct job *job, const struct ec2_instance *i,
                         struct aws_external *done, struct err *err)
{
    int64_t settle = a->config->settle_ns / 1000000;
    struct aws_error error;
    int r;

    if (*done->allocation && clock_mono_ms() - done->since_ms > settle)
        *done = (struct aws_external){0}; /* it should be seen by now */
    r = *done->allocation ? 0 : get_address(a, job, i, done, err);
    if (r < 0 || done->associated)
        return r;
    r = ec2_associate_address(a->client, job, done->allocation, i->second_interface, &error, err);
    done->associated = r == 0;
    if (r == -EREMOTEIO && str_starts(error.code, "InvalidAllocationID") &&
        clock_mono_ms() - done->since_ms < settle) {
        err_clear(err); /* EC2 does not know yet what it has just given */
        return 0;
    }
    return r;
}

/* What is refused now may be possible later; what does not exist is done. */
static int settle(int r, const struct aws_error *error, const char *gone, bool *ret_left,
                  struct err *err)
{
    if (r == 0)
        return 0;
    if (r == -EREMOTEIO && str_starts(error->code, gone)) {
        err_clear(err);
        return 0;
    }
    if (r != -EREMOTEIO)
        return r;
    *ret_left = true; /* in use: still being taken down */
    return 0;
}

static int release_all(struct aws_provider *a, struct job *job, const char *sandbox, bool *ret_left,
                       struct err *err)
{
    struct ec2_address found[EC2_LEFTOVERS_MAX];
    struct aws_error error;
    size_t n;
    int r = ec2_find_addresses(a->client, job, sandbox, found, &n, err);

    *ret_left |= n == EC2_LEFTOVERS_MAX; /* there may be more */
    for (size_t i = 0; r == 0 && i < n; i++) {
        err_clear(err);
        r = ec2_release_address(a->client, job, found[i].allocation, &error, err);
        r = settle(r, &error, "InvalidAllocationID.NotFound", ret_left, err);
    }
    return r;
}

static int delete_all(struct aws_provider *a, struct job *job, const char *sandbox, bool *ret_left,
                      struct err *err)
{
    char found[EC2_LEFTOVERS_MAX][EC2_ID_MAX];
    struct aws_error error;
    size_t n;
    int r = ec2_find_interfaces(a->client, job, sandbox, found, &n, err);

    *ret_left |= n == EC2_LEFTOVERS_MAX;
    for (size_t i = 0; r == 0 && i < n; i++) {
        err_clear(err);
        r = ec2_delete_interface(a->client, job, found[i], &error, err);
        r = settle(r, &error, "InvalidNetworkInterfaceID.NotFound", ret_left, err);
    }
    return r;
}

int aws_external_remove(struct aws_provider *a, struct job *job, const char *sandbox,
                        struct err *err)
{
    int64_t end = clock_mono_ms() + REMOVE_MS, pause = REMOVE_MIN_MS;
    struct err local = ERR_INIT;
    bool left;
    int r;

    do {
        left = false;
        err_clear(&local);
        r = release_all(a, job, sandbox, &left, &local);
        if (r == 0 && !left)
            r = delete_all(a, job, sandbox, &left, &local);
        if (r < 0 || !left)
            break;
        r = job_sleep(job, pause);
        pause = MIN(pause * 2, (int64_t)REMOVE_MAX_MS);
    } while (r == 0 && clock_mono_ms() < end);
    if (r == 0 && left)
        r = -ETIMEDOUT;
    if (r < 0 && local.code)
        return err_set(err, r, "%s", local.text);
    return r < 0 ? err_errno(err, r, "removing addresses and interfaces of sandbox %s", sandbox)
                 : 0;
}
