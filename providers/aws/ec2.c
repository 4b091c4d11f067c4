/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EC2's actions: each builds its body, calls, and reads the answer's few elements that matter.
 *
 * Reads may be repeated; so may everything that changes something here, but for AllocateAddress:
 * RunInstances carries a ClientToken, and terminating, releasing, deleting twice is an error that
 * says so. Descriptions come in pages, and a page that cannot be read fails the whole: half a list
 * would look like instances that are gone.
 *
 * Filters match with wildcards in AWS, and tag values come from pods: '*', '?' and '\' are escaped.
 */
#include "providers/aws/ec2.h"

#include <errno.h>

#include "base/base64.h"
#include "base/str.h"
#include "providers/aws/hints.h"
#include "providers/aws/query.h"

#define NEXT_TOKEN_MAX 4096
#define TAG_TEXT_MAX 512

int ec2_call(struct aws_client *client, struct job *job, const char *action, struct buf *body,
             unsigned flags, struct xml **ret, struct aws_error *ret_error, struct err *err)
{
    struct http_response reply = {0};
    struct aws_error local;
    struct aws_error *error = ret_error ? ret_error : &local;
    const struct aws_request request = {
        .service = "ec2",
        .action = action,
        .body = body->data,
        .repeatable = !(flags & EC2_ONCE),
        .dry_run = flags & EC2_DRY_RUN,
    };
    int r;

    *error = (struct aws_error){0};
    if (body->failed)
        r = err_set(err, -E2BIG, "the request %s would be over %u bytes", action, QUERY_BYTES_MAX);
    else
        r = aws_call(client, job, &request, &reply, error, err);
    buf_done_secret(body);
    if (r < 0)
        aws_hint(error, "ec2", action, err);
    else if (ret && (r = xml_parse(reply.body, reply.body_len, ret, err)) < 0)
        err_wrap(err, r, "%s", action);
    http_response_done(&reply);
    return r;
}

/* ---- reading ---- */

static void add_literal(struct buf *body, const char *value, size_t filter, size_t n)
{
    struct buf text = BUF_INIT(0);

    for (; *value; value++)
        buf_addf(&text, "%s%c", strchr("*?\\", *value) ? "\\" : "", *value);
    query_add(body, text.data ? text.data : "", "Filter.%zu.Value.%zu", filter, n);
    buf_done(&text);
}

static void describe_body(const struct ec2_describe *what, const char *next, struct buf *ret)
{
    query_begin(ret, what->action, QUERY_VERSION_EC2);
    for (size_t i = 0; i < what->n_ids; i++)
        query_add(ret, what->ids[i], "%s.%zu", what->id_key, i + 1);
    for (size_t i = 0; i < what->n_filters; i++) {
        query_add(ret, what->filters[i].name, "Filter.%zu.Name", i + 1);
        for (size_t j = 0; j < what->filters[i].n; j++)
            add_literal(ret, what->filters[i].values[j], i + 1, j + 1);
    }
    if (what->page)
        query_add_i64(ret, what->page, "MaxResults");
    query_add(ret, *next ? next : NULL, "NextToken");
}

static int each_item(const struct xml_node *set, ec2_item_fn *item, void *arg, struct err *err)
{
    int r = 0;

    for (const struct xml_node *n = xml_first(set); n && r == 0; n = xml_next(n))
        r = item(n, arg, err);
    return r;
}

int ec2_describe(struct aws_client *client, struct job *job, const struct ec2_describe *what,
                 ec2_item_fn *item, void *arg, struct aws_error *ret_error, struct err *err)
{
    char next[NEXT_TOKEN_MAX] = "";

    for (unsigned pages = 0; pages < EC2_PAGES_MAX; pages++) {
        _cleanup_(xml_freep) struct xml *xml = NULL;
        struct buf body;
        describe_body(what, next, &body);
        int r = ec2_call(client, job, what->action, &body, 0, &xml, ret_error, err);
        if (r == 0)
            r = each_item(xml_find(xml_root(xml), what->set), item, arg, err);
        if (r != 0)
            return r;
        if (xml_text(xml_root(xml), "nextToken", next, sizeof(next)) < 0)
            return err_set(err, -EPROTO, "%s: a nextToken over %d bytes", what->action,
                           NEXT_TOKEN_MAX);
        if (!*next)
            return 0;
    }
    return err_set(err, -EFBIG, "%s: more than %d pages", what->action, EC2_PAGES_MAX);
}

static const char *const state_names[] = {
    [EC2_PENDING] = "pending",
    [EC2_RUNNING] = "running",
    [EC2_STOPPING] = "stopping",
    [EC2_STOPPED] = "stopped",
    [EC2_SHUTTING_DOWN] = "shutting-down",
    [EC2_TERMINATED] = "terminated",
    [EC2_UNKNOWN] = "unknown",
};

const char *ec2_state_name(enum ec2_state state)
{
    return state_names[state];
}

bool ec2_state_gone(enum ec2_state state)
{
    return state != EC2_PENDING && state != EC2_RUNNING && state != EC2_UNKNOWN;
}

static enum ec2_state parse_state(const struct xml_node *item)
{
    for (enum ec2_state s = 0; s < EC2_UNKNOWN; s++)
        if (xml_text_is(item, "instanceState.name", state_names[s]))
            return s;
    return EC2_UNKNOWN;
}

static void parse_tags(const struct xml_node *item, struct ec2_instance *ret)
{
    const struct {
        const char *key;
        char *value;
        size_t size;
    } kept[] = {
        {"Name", ret->name, sizeof(ret->name)},
        {TAG_SANDBOX, ret->sandbox, sizeof(ret->sandbox)},
        {TAG_BOOT, ret->boot, sizeof(ret->boot)},
        {TAG_CLUSTER, ret->cluster, sizeof(ret->cluster)},
        {TAG_NODE, ret->node, sizeof(ret->node)},
        {TAG_NAMESPACE, ret->namespace, sizeof(ret->namespace)},
        {TAG_POD, ret->pod, sizeof(ret->pod)},
    };
    char key[TAG_TEXT_MAX];

    for (const struct xml_node *t = xml_first(xml_find(item, "tagSet")); t; t = xml_next(t)) {
        (void)xml_text(t, "key", key, sizeof(key));
        for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
            if (str_eq(key, kept[i].key))
                (void)xml_text(t, "value", kept[i].value, kept[i].size);
        ret->external |= str_eq(key, TAG_EXTERNAL);
    }
}

int ec2_parse_instance(const struct xml_node *item, struct ec2_instance *ret, struct err *err)
{
    *ret = (struct ec2_instance){.state = parse_state(item)};
    if (xml_text(item, "instanceId", ret->id, sizeof(ret->id)) < 0 || !*ret->id)
        return err_set(err, -EPROTO, "AWS described an instance without a usable instanceId");
    (void)xml_text(item, "stateReason.message", ret->reason, sizeof(ret->reason));
    (void)xml_text(item, "privateIpAddress", ret->private_ip, sizeof(ret->private_ip));
    (void)xml_text(item, "ipAddress", ret->public_ip, sizeof(ret->public_ip));
    (void)xml_text(item, "ipv6Address", ret->ipv6, sizeof(ret->ipv6));
    parse_tags(item, ret);
    const struct xml_node *n = xml_first(xml_find(item, "networkInterfaceSet"));
    for (; n; n = xml_next(n)) {
        ret->n_interfaces++;
        if (xml_u64(n, "attachment.deviceIndex", 0) != 1)
            continue;
        (void)xml_text(n, "networkInterfaceId", ret->second_interface,
                       sizeof(ret->second_interface));
        ret->second_public = xml_find(n, "association.publicIp") != NULL;
    }
    return 0;
}

struct instances {
    struct ec2_instance *list;
    size_t n;
};

static int take_reservation(const struct xml_node *item, void *arg, struct err *err)
{
    struct instances *all = arg;
    const struct xml_node *n = xml_first(xml_find(item, "instancesSet"));
    int r = 0;

    for (; n && r == 0; n = xml_next(n)) {
        all->list = xrealloc(all->list, (all->n + 1) * sizeof(*all->list));
        r = ec2_parse_instance(n, &all->list[all->n], err);
        all->n += r == 0;
    }
    return r;
}

int ec2_describe_instances(struct aws_client *client, struct job *job, const char *const *ids,
                           size_t n_ids, const struct tag *tags, bool all,
                           struct ec2_instance **ret, size_t *ret_n, struct aws_error *ret_error,
                           struct err *err)
{
    static const char *const living[] = {"pending", "running", "shutting-down", "stopping",
                                         "stopped"};
    char names[INSTANCE_TAGS_MAX][TAG_TEXT_MAX];
    const char *values[INSTANCE_TAGS_MAX];
    struct ec2_filter filters[INSTANCE_TAGS_MAX + 1];
    struct instances found = {0};
    size_t n = 0;

    for (; tags && tags[n].key && n < INSTANCE_TAGS_MAX; n++) {
        snprintf(names[n], sizeof(names[n]), "tag:%s", tags[n].key);
        values[n] = tags[n].value;
        filters[n] = (struct ec2_filter){names[n], &values[n], 1};
    }
    if (!all)
        filters[n++] = (struct ec2_filter){"instance-state-name", living, ARRAY_SIZE(living)};
    const struct ec2_describe what = {.action = "DescribeInstances",
                                      .set = "reservationSet",
                                      .id_key = "InstanceId",
                                      .ids = ids,
                                      .n_ids = n_ids,
                                      .filters = filters,
                                      .n_filters = n,
                                      .page = n_ids ? 0 : EC2_PAGE};
    int r = ec2_describe(client, job, &what, take_reservation, &found, ret_error, err);
    if (r < 0) {
        free(found.list);
        return r;
    }
    *ret = found.list;
    *ret_n = found.n;
    return 0;
}

/* ---- making ---- */

static bool is_ours(const struct ec2_run *run, const char *key, size_t len)
{
    if (len == 4 && strncmp(key, "Name", 4) == 0)
        return true;
    for (const struct tag *t = run->tags; t && t->key; t++)
        if (strlen(t->key) == len && strncmp(t->key, key, len) == 0)
            return true;
    return false;
}

void ec2_add_tags(const struct ec2_run *run, size_t spec, const char *resource, struct buf *body)
{
    size_t n = 1;

    query_add(body, resource, "TagSpecification.%zu.ResourceType", spec);
    query_add(body, "Name", "TagSpecification.%zu.Tag.%zu.Key", spec, n);
    query_add(body, run->name, "TagSpecification.%zu.Tag.%zu.Value", spec, n);
    for (const struct tag *t = run->tags; t && t->key; t++) {
        query_add(body, t->key, "TagSpecification.%zu.Tag.%zu.Key", spec, ++n);
        query_add(body, t->value, "TagSpecification.%zu.Tag.%zu.Value", spec, n);
    }
    for (char *const *m = run->more_tags; m && *m; m++) {
        size_t len = strcspn(*m, "=");
        if (is_ours(run, *m, len))
            continue;
        _cleanup_free_ char *key = str_asprintf("%.*s", (int)len, *m);
        query_add(body, key, "TagSpecification.%zu.Tag.%zu.Key", spec, ++n);
        query_add(body, *m + len + ((*m)[len] == '='), "TagSpecification.%zu.Tag.%zu.Value", spec,
                  n);
    }
}

static void add_interface(const struct ec2_run *run, unsigned index, struct buf *body)
{
    char prefix[32];

    snprintf(prefix, sizeof(prefix), "NetworkInterface.%u.", index + 1);
    query_add_i64(body, index, "%sDeviceIndex", prefix);
    query_add(body, run->subnet, "%sSubnetId", prefix);
    for (size_t i = 0; run->groups && run->groups[i]; i++)
        query_add(body, run->groups[i], "%sSecurityGroupId.%zu", prefix, i + 1);
    query_add(body, "true", "%sDeleteOnTermination", prefix);
    /* AWS takes it with one interface only. */
    if (run->public_ip && !run->second_interface)
        query_add(body, "true", "%sAssociatePublicIpAddress", prefix);
}

/* Spelt out as interfaces, because only so does EC2 take that they go with the instance. */
static void add_network(const struct ec2_run *run, struct buf *body)
{
    if (!run->subnet)
        return; /* the template's */
    add_interface(run, 0, body);
    if (run->second_interface)
        add_interface(run, 1, body);
}

static void add_root_volume(const struct ec2_run *run, struct buf *body)
{
    if (!run->root_device)
        return;
    query_add(body, run->root_device, "BlockDeviceMapping.1.DeviceName");
    /* Whatever the AMI says: no volume outlives its pod. */
    query_add(body, "true", "BlockDeviceMapping.1.Ebs.DeleteOnTermination");
    if (run->root_gib)
        query_add_i64(body, (int64_t)run->root_gib, "BlockDeviceMapping.1.Ebs.VolumeSize");
}

static void add_options(const struct ec2_run *run, struct buf *body)
{
    if (run->snp)
        query_add(body, "enabled", "CpuOptions.AmdSevSnp");
    if (run->metadata_options) {
        query_add(body, "enabled", "MetadataOptions.HttpEndpoint");
        query_add(body, "required", "MetadataOptions.HttpTokens");
        query_add(body, "1", "MetadataOptions.HttpPutResponseHopLimit");
    }
    if (run->spot) {
        query_add(body, "spot", "InstanceMarketOptions.MarketType");
        query_add(body, "one-time", "InstanceMarketOptions.SpotOptions.SpotInstanceType");
        query_add(body, "terminate",
                  "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior");
    }
}

int ec2_run_body(const struct ec2_run *run, struct buf *ret, struct err *err)
{
    _cleanup_free_ char *data = NULL;

    if (run->user_data_len > EC2_USER_DATA_MAX)
        return err_set(err, -E2BIG, "user data of %zu bytes, EC2 takes %d", run->user_data_len,
                       EC2_USER_DATA_MAX);
    query_begin(ret, "RunInstances", QUERY_VERSION_EC2);
    query_add(ret, "1", "MinCount");
    query_add(ret, "1", "MaxCount");
    query_add(ret, run->token, "ClientToken");
    query_add(ret, run->dry_run ? "true" : NULL, "DryRun");
    query_add(ret, run->launch_template, "LaunchTemplate.LaunchTemplateName");
    query_add(ret, run->image, "ImageId");
    query_add(ret, run->type, "InstanceType");
    query_add(ret, run->key_name, "KeyName");
    if (run->user_data) {
        data = base64_encode(run->user_data, run->user_data_len);
        query_add(ret, data, "UserData");
        secret_wipe(data, strlen(data));
    }
    add_root_volume(run, ret);
    add_network(run, ret);
    add_options(run, ret);
    /* A pod VM that shuts itself down has ended; a stopped one would wait for ever. */
    query_add(ret, "terminate", "InstanceInitiatedShutdownBehavior");
    ec2_add_tags(run, 1, "instance", ret);
    ec2_add_tags(run, 2, "volume", ret);
    ec2_add_tags(run, 3, "network-interface", ret);
    if (run->spot)
        ec2_add_tags(run, 4, "spot-instances-request", ret);
    return 0;
}

int ec2_run_instance(struct aws_client *client, struct job *job, const struct ec2_run *run,
                     struct ec2_instance *ret, struct aws_error *ret_error, struct err *err)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    struct buf body;
    int r = ec2_run_body(run, &body, err);

    if (r == 0)
        r = ec2_call(client, job, "RunInstances", &body, run->dry_run ? EC2_DRY_RUN : 0,
                     run->dry_run ? NULL : &xml, ret_error, err);
    if (r < 0 || run->dry_run)
        return r;
    const struct xml_node *item = xml_first(xml_find(xml_root(xml), "instancesSet"));
    if (!item)
        return err_set(err, -EPROTO, "RunInstances: AWS's answer has no instance");
    return ec2_parse_instance(item, ret, err);
}

int ec2_terminate(struct aws_client *client, struct job *job, const char *const *ids, size_t n,
                  struct aws_error *ret_error, struct err *err)
{
    struct buf body;

    query_begin(&body, "TerminateInstances", QUERY_VERSION_EC2);
    for (size_t i = 0; i < n; i++)
        query_add(&body, ids[i], "InstanceId.%zu", i + 1);
    return ec2_call(client, job, "TerminateInstances", &body, 0, NULL, ret_error, err);
}
