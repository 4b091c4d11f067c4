/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create: from a pod's request to one instance.
 *
 * First a plan, the same for every place: AMI, root volume, tags, groups, the candidates of the
 * picker, the subnets. With a launch template its AMI, its network and, for a pod that asks for
 * nothing, its type are left alone; it is read because the picker has to know that type (it stands in
 * -instance-type's place), and because what it leaves open would be EC2's own default (m1.small). Then places are tried in order: the best type in each subnet, the next type
 * in each subnet, and so on; capacity refuses a type in a subnet, a full subnet refuses all types, a
 * quota refuses a type everywhere. Any other refusal is final.
 *
 * Idempotency. EC2 remembers a ClientToken with all parameters, so every place has a token of its
 * own: the request's with a hash of type and subnet behind. The same request sent again after a
 * crash meets the same places in the same order, and the place that succeeded answers with the
 * instance that it made. An earlier place that was full then and has room now would make a second
 * one: so the daemon looks by tag first, and delete ends whatever carries the sandbox's tag.
 * IdempotentParameterMismatch means that something about the request has changed since (the daemon
 * was started with other options): then the instance exists and is found by tag.
 *
 * Doubt. When no answer came (network, cancel, deadline, 5xx), an instance may exist. It is looked
 * up by tag for as long as EC2 may take to know of it (-aws-settle-time), by a job of our own because
 * the caller's may be over, and reported together with the error, so that the caller deletes it.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "providers/aws/aws.h"
#include "providers/aws/hints.h"

#define TOKEN_MAX 64
#define LOOK_EVERY_MS 1000
#define TRIED_TEXT_MAX 320
#define SETTLE_CALL_MS 20000 /* beyond the settle time, for the last look */

/* ---- the plan ---- */

/* What it leaves open is ours to say. Who may not read it adds nothing to it. */
static int plan_template(struct aws_provider *a, struct job *job, struct aws_plan *plan,
                         struct err *err)
{
    struct err local = ERR_INIT;
    int r = 0;

    if (plan->run.launch_template)
        r = aws_facts_template(a->facts, job, &plan->template, &local);
    return r == 0 || r == -EACCES ? 0 : err_set(err, r, "%s", local.text);
}

static int plan_image(struct aws_provider *a, struct job *job,
                      const struct instance_request *request, struct aws_plan *plan,
                      struct err *err)
{
    const bool asked = *request->spec.image;
    int r;

    if (plan->run.launch_template && !asked && (!plan->template.known || *plan->template.image))
        return 0; /* the template's, with its volumes */
    r = aws_facts_image(a->facts, job, asked ? request->spec.image : a->config->image_id,
                        &plan->image, err);
    if (r < 0)
        return r;
    plan->run.image = plan->image.id;
    if (!*plan->image.root_device)
        return 0;
    plan->run.root_device = plan->image.root_device;
    /* Smaller than the AMI's snapshot is refused by EC2. */
    plan->run.root_gib = MAX((uint64_t)a->config->root_volume_size, plan->image.root_gib);
    return 0;
}

static int plan_network(struct aws_provider *a, struct job *job, struct aws_plan *plan,
                        struct err *err)
{
    char *const *subnet = a->config->subnet_ids;

    plan->run.groups = a->config->security_group_ids;
    if (!*subnet || !*a->config->security_group_ids) {
        int r = aws_facts_node(a->facts, job, &plan->node, err);
        if (r < 0)
            return r;
    }
    if (!*subnet)
        plan->subnets[plan->n_subnets++] = plan->node.subnet;
    for (; *subnet && plan->n_subnets < EC2_SUBNETS_MAX; subnet++)
        plan->subnets[plan->n_subnets++] = *subnet;
    if (*a->config->security_group_ids)
        return 0;
    for (size_t i = 0; i < plan->node.n_groups; i++)
        plan->node_groups[i] = plan->node.groups[i];
    plan->run.groups = plan->node_groups;
    return 0;
}

bool aws_wants_snp(const struct aws_provider *a, const struct aws_template *template)
{
    return template->known ? template->snp : !a->config->disable_cvm;
}

/* The list without what the region does not know and, for confidential VMs, what is none. */
static size_t usable_types(const struct aws_type *types, size_t n, bool snp,
                           struct picker_type *ret, const char **position)
{
    size_t usable = 0;

    for (size_t i = 0; i < n; i++)
        if (types[i].known && (types[i].snp || !snp)) {
            ret[usable] = types[i].size;
            position[usable++] = types[i].size.name;
        }
    return usable;
}

static int pick_types(struct aws_plan *plan, size_t n, bool snp, const struct instance_spec *spec,
                      const char *def, struct err *err)
{
    _cleanup_free_ struct picker_type *list = xcalloc(n, sizeof(*list));
    _cleanup_free_ const char **names = xcalloc(n, sizeof(*names));
    size_t order[PICKER_TYPES_MAX];
    size_t usable = usable_types(plan->allowed, n, snp, list, names);
    int r = picker_pick(list, usable, spec, def, order, &plan->n_types, err);

    if (r < 0 && usable < n)
        return err_wrap(err, r,
                        "%zu of the %zu allowed types are left out, because the region does not "
                        "have them%s",
                        n - usable, n, snp ? " or they do not support AMD SEV-SNP" : "");
    for (size_t i = 0; r == 0 && i < plan->n_types; i++)
        plan->types[i] = names[order[i]];
    return r;
}

static int plan_types(struct aws_provider *a, struct job *job, const struct instance_spec *spec,
                      struct aws_plan *plan, struct err *err)
{
    const bool asks = *spec->type || spec->vcpus || spec->memory_mib || spec->gpus;
    const bool own = *plan->template.type; /* the template's, not -instance-type's */
    const char *def = own ? plan->template.type : a->config->instance_type;
    struct err local = ERR_INIT;
    size_t n;

    plan->n_types = 1;
    if (plan->run.launch_template && !asks && (own || !plan->template.known))
        return 0; /* types[0] is NULL: the template's */
    plan->types[0] = a->config->instance_type;
    if (!asks && aws_facts_types_n(a->facts) == 1)
        return 0;
    int r = aws_facts_types(a->facts, job, def, plan->allowed, &n, &local);
    if (r == -EACCES && !asks)
        return 0; /* the default does not need to be known; there is nothing to fall back to */
    if (r < 0)
        return err_set(err, r, "%s", local.text);
    return pick_types(plan, n, aws_wants_snp(a, &plan->template), spec, def, err);
}

static int plan_tags(const struct instance_request *request, struct aws_plan *plan, struct err *err)
{
    size_t n = 0;

    for (const struct tag *t = request->tags; t && t->key; t++) {
        if (n == INSTANCE_TAGS_MAX)
            return err_set(err, -EINVAL, "more than %d tags", INSTANCE_TAGS_MAX);
        plan->tags[n++] = *t;
    }
    if (request->external_network)
        plan->tags[n] = (struct tag){TAG_EXTERNAL, "elastic-ip"};
    plan->run.tags = plan->tags;
    return 0;
}

int aws_plan(struct aws_provider *a, struct job *job, const struct instance_request *request,
             struct aws_plan *ret, struct err *err)
{
    const struct aws_config *c = a->config;
    int r;

    *ret = (struct aws_plan){
        .run =
            {
                .name = request->name,
                .more_tags = c->tags,
                .user_data = request->user_data,
                .user_data_len = request->user_data_len,
                .launch_template = c->use_launch_template ? c->launch_template : NULL,
                .spot = c->spot,
                .second_interface = request->external_network,
            },
    };
    if (!c->use_launch_template) {
        ret->run.key_name = str_empty(c->key_name) ? NULL : c->key_name;
        ret->run.snp = !c->disable_cvm;
        ret->run.public_ip = c->use_public_ip;
        ret->run.metadata_options = true;
    }
    ret->n_subnets = 1; /* subnets[0] is NULL: the template's */
    r = plan_tags(request, ret, err);
    if (r == 0)
        r = plan_template(a, job, ret, err);
    if (r == 0)
        r = plan_image(a, job, request, ret, err);
    if (r == 0)
        r = plan_types(a, job, &request->spec, ret, err);
    /* A second interface has to say where it is; else a template's network is left alone. */
    if (r == 0 && (!c->use_launch_template || request->external_network)) {
        ret->n_subnets = 0;
        r = plan_network(a, job, ret, err);
    }
    return r;
}

/* ---- doubt ---- */

static const char *sandbox_of(const struct instance_request *request)
{
    for (const struct tag *t = request->tags; t && t->key; t++)
        if (str_eq(t->key, TAG_SANDBOX))
            return t->value;
    return "";
}

/* May the failed call have made an instance? A refusal of AWS's has not, if it was the first answer;
 * a 2xx that is none of ours may have. */
static bool in_doubt(int r, const struct aws_error *error)
{
    return r != -E2BIG && (error->unsure || (error->status >= 200 && error->status < 300));
}

/* 0 or -ENOENT, or why it could not be found out. */
static int look(struct aws_provider *a, const char *sandbox, struct ec2_instance *ret,
                struct err *err)
{
    int64_t settle = a->config->settle_ns / 1000000;
    struct job *job = job_new_inline(settle + SETTLE_CALL_MS);
    int64_t end = clock_mono_ms() + settle;
    int r;

    do {
        err_clear(err);
        r = aws_find_sandbox(a, job, sandbox, ret, err);
    } while (r == -ENOENT && clock_mono_ms() < end && job_sleep(job, LOOK_EVERY_MS) == 0);
    job_free_inline(job);
    return r;
}

static void report_doubtful(struct aws_provider *a, const struct instance_request *request,
                            struct instance *ret)
{
    struct ec2_instance found;
    struct err err = ERR_INIT;
    int r = look(a, sandbox_of(request), &found, &err);

    if (r == 0)
        aws_fill_instance(a, &found, ret);
    else if (r != -ENOENT)
        log_entry(LOG_LEVEL_WARN, sandbox_of(request), "create",
                  "whether RunInstances made an instance is not known: %s", err_text(&err));
}

/* ---- places ---- */

/* FNV-1a: that two places differ is all that is asked of it. */
static void place_token(const struct instance_request *request, const struct aws_place *place,
                        char ret[TOKEN_MAX + 1])
{
    uint32_t hash = 2166136261U;
    const char *parts[] = {place->type, "/", place->subnet};

    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        for (const char *c = parts[i] ? parts[i] : ""; *c; c++)
            hash = (hash ^ (unsigned char)*c) * 16777619U;
    snprintf(ret, TOKEN_MAX + 1, "%.48s-%08x", request->token, hash);
}

static int run_at(struct aws_provider *a, struct job *job, const struct instance_request *request,
                  const struct ec2_run *base, const struct aws_place *place, struct instance *ret,
                  struct aws_error *error, struct err *err)
{
    struct ec2_run run = *base;
    struct ec2_instance made;
    struct err local = ERR_INIT;
    char token[TOKEN_MAX + 1];

    place_token(request, place, token);
    run.token = token;
    run.type = place->type;
    run.subnet = place->subnet;
    int r = ec2_run_instance(a->client, job, &run, &made, error, &local);
    if (r < 0 && aws_error_is(error, "IdempotentParameterMismatch")) {
        struct err unused = ERR_INIT;
        r = look(a, sandbox_of(request), &made, &unused) == 0 ? 0 : r;
    }
    if (r < 0) {
        if (in_doubt(r, error))
            report_doubtful(a, request, ret);
        return err_set(err, r, "%s", local.text);
    }
    aws_fill_instance(a, &made, ret);
    if (ec2_state_gone(made.state))
        return err_set(err, -EHOSTDOWN, "instance %s is %s%s%s", made.id,
                       ec2_state_name(made.state), *made.reason ? ": " : "", made.reason);
    return 0;
}

struct attempts {
    bool subnet_full[EC2_SUBNETS_MAX];
    bool type_over; /* the type at hand is over its quota */
    struct buf tried;
    size_t n;
    struct aws_error error; /* of the last */
};

/* Whether another place may do. */
static bool refused_here(struct attempts *t, const struct aws_place *place, size_t subnet)
{
    enum aws_refusal refusal = aws_refusal(&t->error);

    if (refusal == AWS_REFUSAL_OTHER)
        return false;
    t->n++;
    if (t->tried.len < TRIED_TEXT_MAX)
        buf_addf(&t->tried, "%s%s in %s: %s", t->n > 1 ? ", " : "",
                 place->type ? place->type : "the template's type",
                 place->subnet ? place->subnet : "the template's subnet", t->error.code);
    t->subnet_full[subnet] |= refusal == AWS_REFUSAL_SUBNET;
    t->type_over = refusal == AWS_REFUSAL_QUOTA;
    return true;
}

static int try_type(struct aws_provider *a, struct job *job, const struct instance_request *request,
                    const struct aws_plan *plan, const char *type, struct attempts *t,
                    struct instance *ret, struct err *err)
{
    int r = -EREMOTEIO;

    t->type_over = false;
    for (size_t s = 0; s < plan->n_subnets && !t->type_over; s++) {
        const struct aws_place place = {type, plan->subnets[s]};
        if (t->subnet_full[s])
            continue;
        err_clear(err);
        r = run_at(a, job, request, &plan->run, &place, ret, &t->error, err);
        if (r == 0 || !refused_here(t, &place, s))
            return r;
        log_entry(LOG_LEVEL_INFO, sandbox_of(request), "create", "%s", err_text(err));
    }
    return r == 0 ? 0 : -ENOSPC;
}

static int try_places(struct aws_provider *a, struct job *job,
                      const struct instance_request *request, const struct aws_plan *plan,
                      struct instance *ret, struct err *err)
{
    struct attempts t = {.tried = BUF_INIT(0)};
    struct err last = ERR_INIT;
    int r = -ENOSPC;

    for (size_t i = 0; i < plan->n_types && r == -ENOSPC; i++)
        r = try_type(a, job, request, plan, plan->types[i], &t, ret, &last);
    if (r == -ENOSPC && t.n > 1)
        err_set(err, r, "no place for the instance among %zu (%s%s); the last: %s", t.n,
                t.tried.data, t.tried.len >= TRIED_TEXT_MAX ? ", ..." : "", last.text);
    else if (r < 0)
        err_set(err, r, "%s", err_text(&last));
    buf_done(&t.tried);
    return r;
}

int aws_create(struct provider *p, struct job *job, const struct instance_request *request,
               struct instance *ret, struct err *err)
{
    struct aws_provider *a = aws_of(p);
    _cleanup_free_ struct aws_plan *plan = xcalloc(1, sizeof(*plan));
    int r = aws_plan(a, job, request, plan, err);

    *ret = (struct instance){0};
    return r < 0 ? r : try_places(a, job, request, plan, ret, err);
}
