/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts, each fetched by the first job that needs it while the others wait, then kept for the
 * process's life: instance types and AMIs are immutable, and a node's subnet is as well. A launch
 * template is not: what its default version says is asked for again after TEMPLATE_MS.
 *
 * A failure is not kept: the next pod asks again. One job at a time holds the facts, also while it asks
 * AWS; who waits for it looks every LOCK_POLL_MS whether it may go on, so that a cancelled job does not
 * hang behind a slow AWS, and says what the holder waits for.
 *
 * Types are asked for by a filter and not by name, because one name that the region does not know
 * would fail the whole call: such a type is listed as unknown, and only who needs it hears of it.
 */
#include "providers/aws/facts.h"

#include <errno.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/str.h"
#include "loop/throttle.h"
#include "providers/aws/query.h"

#define IMAGES_MAX 16
#define LOCK_POLL_MS 20
#define TEMPLATE_MS 60000

struct aws_facts {
    const struct aws_config *config;
    struct aws_client *client;
    pthread_mutex_t lock;
    struct job *holder; /* lock; whose all the rest is */

    struct aws_type types[PICKER_TYPES_MAX];
    size_t n_types;
    bool types_known;
    struct aws_type other; /* a template's type that is not among them */
    struct aws_template template;
    int64_t template_ms; /* when it was asked for, 0: not yet */
    struct aws_image images[IMAGES_MAX];
    size_t n_images, next_image;
    struct aws_node node;
    bool node_known;
};

static void add_type(struct aws_facts *f, const char *name)
{
    for (size_t i = 0; i < f->n_types; i++)
        if (str_eq(f->types[i].size.name, name))
            return;
    if (f->n_types < PICKER_TYPES_MAX)
        (void)str_format(f->types[f->n_types++].size.name, INSTANCE_TYPE_MAX, "%s", name);
}

static bool has(char *const *list, const char *name)
{
    for (; *list; list++)
        if (str_eq(*list, name))
            return true;
    return false;
}

struct aws_facts *aws_facts_new(const struct aws_config *config, struct aws_client *client)
{
    struct aws_facts *f = xcalloc(1, sizeof(*f));

    f->config = config;
    f->client = client;
    pthread_mutex_init(&f->lock, NULL);
    if (!has(config->instance_types, config->instance_type))
        add_type(f, config->instance_type);
    for (char *const *t = config->instance_types; *t; t++)
        add_type(f, *t);
    return f;
}

void aws_facts_free(struct aws_facts *f)
{
    if (!f)
        return;
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static int hold(struct aws_facts *f, struct job *job, struct err *err)
{
    int64_t since_ms = 0;
    int r = 0;

    pthread_mutex_lock(&f->lock);
    while (f->holder && r == 0) {
        throttle_follow(job, f->holder, &since_ms);
        pthread_mutex_unlock(&f->lock);
        r = job_sleep(job, LOCK_POLL_MS);
        pthread_mutex_lock(&f->lock);
    }
    if (r == 0)
        f->holder = job;
    pthread_mutex_unlock(&f->lock);
    job_say(job, NULL);
    return r < 0 ? err_errno(err, r, "waiting for what another job asks AWS") : 0;
}

static void let_go(struct aws_facts *f)
{
    pthread_mutex_lock(&f->lock);
    f->holder = NULL;
    pthread_mutex_unlock(&f->lock);
}

/* ---- types ---- */

size_t aws_facts_types_n(const struct aws_facts *f)
{
    return f->n_types;
}

/* What AWS is asked about. */
struct type_list {
    struct aws_type *types;
    size_t n;
};

static struct aws_type *type_of(const struct type_list *list, const struct xml_node *item)
{
    for (size_t i = 0; i < list->n; i++)
        if (xml_text_is(item, "instanceType", list->types[i].size.name))
            return &list->types[i];
    return NULL;
}

static bool list_has(const struct xml_node *list, const char *value)
{
    for (const struct xml_node *n = xml_first(list); n; n = xml_next(n))
        if (xml_text_is(n, "", value))
            return true;
    return false;
}

static int take_type(const struct xml_node *item, void *arg, _unused_ struct err *err)
{
    struct aws_type *t = type_of(arg, item);

    if (!t)
        return 0;
    t->known = true;
    t->size.vcpus = (uint32_t)MIN(xml_u64(item, "vCpuInfo.defaultVCpus", 0), (uint64_t)UINT32_MAX);
    t->size.memory_mib = xml_u64(item, "memoryInfo.sizeInMiB", 0);
    t->snp = list_has(xml_find(item, "processorInfo.supportedFeatures"), "amd-sev-snp");
    t->size.gpus = 0;
    const struct xml_node *gpu = xml_first(xml_find(item, "gpuInfo.gpus"));
    for (; gpu; gpu = xml_next(gpu))
        t->size.gpus += (uint32_t)MIN(xml_u64(gpu, "count", 0), (uint64_t)UINT16_MAX);
    return 0;
}

static int fetch_types(struct aws_facts *f, struct job *job, struct aws_type *types, size_t n,
                       struct err *err)
{
    const char *names[PICKER_TYPES_MAX];
    const struct ec2_filter filter = {"instance-type", names, n};
    const struct ec2_describe what = {.action = "DescribeInstanceTypes",
                                      .set = "instanceTypeSet",
                                      .filters = &filter,
                                      .n_filters = 1,
                                      .page = EC2_PAGE};
    struct type_list list = {types, n};

    for (size_t i = 0; i < n; i++)
        names[i] = types[i].size.name;
    return ec2_describe(f->client, job, &what, take_type, &list, NULL, err);
}

/* The template's type, when the operator's lists do not have it. */
static int fetch_other(struct aws_facts *f, struct job *job, const char *name, struct err *err)
{
    struct aws_type type = {0};
    int r;

    if (f->other.known && str_eq(f->other.size.name, name))
        return 0;
    (void)str_format(type.size.name, sizeof(type.size.name), "%s", name);
    r = fetch_types(f, job, &type, 1, err);
    if (r == 0)
        f->other = type;
    return r;
}

static int know_types(struct aws_facts *f, struct job *job, const char *def, struct err *err)
{
    int r = f->types_known ? 0 : fetch_types(f, job, f->types, f->n_types, err);

    if (r < 0)
        return r;
    f->types_known = true;
    for (size_t i = 0; i < f->n_types; i++)
        if (str_eq(f->types[i].size.name, def))
            return 0;
    return fetch_other(f, job, def, err);
}

static size_t copy_allowed(const struct aws_facts *f, const char *def, struct aws_type *ret)
{
    char *const *allowed = f->config->instance_types;
    size_t n = 0;

    if (str_eq(f->other.size.name, def))
        ret[n++] = f->other;
    for (size_t i = 0; i < f->n_types && n < PICKER_TYPES_MAX; i++)
        if (str_eq(f->types[i].size.name, def) || has(allowed, f->types[i].size.name))
            ret[n++] = f->types[i];
    return n;
}

int aws_facts_types(struct aws_facts *f, struct job *job, const char *def,
                    struct aws_type ret[PICKER_TYPES_MAX], size_t *ret_n, struct err *err)
{
    int r = hold(f, job, err);

    if (r < 0)
        return r;
    r = know_types(f, job, def, err);
    if (r == 0)
        *ret_n = copy_allowed(f, def, ret);
    let_go(f);
    return r;
}

/* ---- the launch template ---- */

static void take_template_network(const struct xml_node *data, struct aws_template *ret)
{
    const struct xml_node *nic = xml_first(xml_find(data, "networkInterfaceSet")), *group;

    while (nic && xml_u64(nic, "deviceIndex", 0) != 0)
        nic = xml_next(nic);
    (void)xml_text(nic, "subnetId", ret->network.subnet, sizeof(ret->network.subnet));
    group = xml_first(nic ? xml_find(nic, "groupSet") : xml_find(data, "securityGroupIdSet"));
    for (; group && ret->network.n_groups < EC2_GROUPS_MAX; group = xml_next(group))
        (void)xml_text(group, "", ret->network.groups[ret->network.n_groups++], EC2_ID_MAX);
}

static int take_template(const struct xml_node *item, struct aws_template *t, struct err *err)
{
    const struct xml_node *data = xml_find(item, "launchTemplateData");

    *t = (struct aws_template){.known = true};
    if (xml_text(data, "imageId", t->image, sizeof(t->image)) < 0 ||
        xml_text(data, "instanceType", t->type, sizeof(t->type)) < 0)
        return err_set(err, -EPROTO, "a launch template whose AMI or type is over %d characters",
                       INSTANCE_TYPE_MAX);
    t->snp = xml_text_is(data, "cpuOptions.amdSevSnp", "enabled");
    take_template_network(data, t);
    return 0;
}

static int fetch_template(struct aws_facts *f, struct job *job, struct err *err)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    struct aws_template template = {0};
    struct buf body;

    query_begin(&body, "DescribeLaunchTemplateVersions", QUERY_VERSION_EC2);
    query_add(&body, f->config->launch_template, "LaunchTemplateName");
    /* RunInstances takes the same one when it is told none. */
    query_add(&body, "$Default", "LaunchTemplateVersion.1");
    int r = ec2_call(f->client, job, "DescribeLaunchTemplateVersions", &body, 0, &xml, NULL, err);
    if (r < 0)
        return r;
    const struct xml_node *item = xml_first(xml_find(xml_root(xml), "launchTemplateVersionSet"));
    if (item && (r = take_template(item, &template, err)) < 0)
        return r;
    if (!template.known)
        return err_set(err, -ENOENT, "AWS lists no default version of the launch template %s",
                       f->config->launch_template);
    f->template = template;
    f->template_ms = clock_mono_ms();
    return 0;
}

int aws_facts_template(struct aws_facts *f, struct job *job, struct aws_template *ret,
                       struct err *err)
{
    int r = hold(f, job, err);

    if (r < 0)
        return r;
    if (!f->template_ms || clock_mono_ms() - f->template_ms > TEMPLATE_MS)
        r = fetch_template(f, job, err);
    if (r == 0)
        *ret = f->template;
    let_go(f);
    return r;
}

/* ---- AMIs ---- */

static int take_image(const struct xml_node *item, void *arg, _unused_ struct err *err)
{
    struct aws_image *image = arg;

    if (!xml_text_is(item, "imageId", image->id))
        return 0;
    (void)xml_text(item, "imageState", image->state, sizeof(image->state));
    (void)xml_text(item, "architecture", image->architecture, sizeof(image->architecture));
    (void)xml_text(item, "bootMode", image->boot_mode, sizeof(image->boot_mode));
    (void)xml_text(item, "rootDeviceName", image->root_device, sizeof(image->root_device));
    const struct xml_node *m = xml_first(xml_find(item, "blockDeviceMapping"));
    for (; m; m = xml_next(m))
        if (*image->root_device && xml_text_is(m, "deviceName", image->root_device))
            image->root_gib = xml_u64(m, "ebs.volumeSize", 0);
    return 1;
}

static int fetch_image(struct aws_facts *f, struct job *job, struct aws_image *ret, struct err *err)
{
    const char *id = ret->id;
    const struct ec2_describe what = {.action = "DescribeImages",
                                      .set = "imagesSet",
                                      .id_key = "ImageId",
                                      .ids = &id,
                                      .n_ids = 1};
    struct aws_error error;
    int r = ec2_describe(f->client, job, &what, take_image, ret, &error, err);

    if (r == 0)
        return err_set(err, -ENOENT, "AWS does not list the AMI %s in this region", ret->id);
    if (r < 0)
        return str_starts(error.code, "InvalidAMIID.") && r == -EREMOTEIO ? -ENOENT : r;
    /* One that is still being made will change. */
    if (str_eq(ret->state, "available")) {
        f->images[f->next_image] = *ret;
        f->next_image = (f->next_image + 1) % IMAGES_MAX;
        f->n_images = MIN(f->n_images + 1, (size_t)IMAGES_MAX);
    }
    return 0;
}

int aws_facts_image(struct aws_facts *f, struct job *job, const char *id, struct aws_image *ret,
                    struct err *err)
{
    int r = hold(f, job, err);

    if (r < 0)
        return r;
    *ret = (struct aws_image){0};
    for (size_t i = 0; i < f->n_images; i++)
        if (str_eq(f->images[i].id, id))
            *ret = f->images[i];
    if (!*ret->id && (r = str_format(ret->id, sizeof(ret->id), "%s", id)) < 0)
        err_set(err, -EINVAL, "an AMI's id has less than %d characters", EC2_ID_MAX);
    else if (!*ret->state)
        r = fetch_image(f, job, ret, err);
    let_go(f);
    return r;
}

/* ---- the node ---- */

static int node_value(struct aws_facts *f, struct job *job, const char *mac, const char *what,
                      char **ret, struct err *err)
{
    _cleanup_free_ char *path =
        str_asprintf("latest/meta-data/network/interfaces/macs/%s/%s", mac, what);

    return aws_metadata_get(f->client, job, path, ret, err);
}

static int take_groups(const char *text, struct aws_node *ret)
{
    while (*text && ret->n_groups < EC2_GROUPS_MAX) {
        size_t len = strcspn(text, "\r\n");
        if (len && str_format(ret->groups[ret->n_groups++], EC2_ID_MAX, "%.*s", (int)len, text) < 0)
            return -EPROTO;
        text += len + strspn(text + len, "\r\n");
    }
    return 0;
}

static int fetch_node(struct aws_facts *f, struct job *job, struct err *err)
{
    _cleanup_free_ char *mac = NULL;
    _cleanup_free_ char *subnet = NULL;
    _cleanup_free_ char *groups = NULL;
    int r = aws_metadata_get(f->client, job, "latest/meta-data/mac", &mac, err);

    if (r == 0)
        mac[strcspn(mac, "\r\n/")] = '\0';
    if (r == 0)
        r = node_value(f, job, mac, "subnet-id", &subnet, err);
    if (r == 0)
        r = node_value(f, job, mac, "security-group-ids", &groups, err);
    if (r < 0)
        return err_wrap(err, r,
                        "asking the node's metadata for its subnet and security groups, because "
                        "-subnetid or -securitygroupids is not set");
    subnet[strcspn(subnet, "\r\n")] = '\0';
    f->node = (struct aws_node){0};
    if (str_format(f->node.subnet, sizeof(f->node.subnet), "%s", subnet) < 0 ||
        take_groups(groups, &f->node) < 0)
        return err_set(err, -EPROTO, "the node's metadata names a subnet or a group that is none");
    return 0;
}

int aws_facts_node(struct aws_facts *f, struct job *job, struct aws_node *ret, struct err *err)
{
    int r = hold(f, job, err);

    if (r < 0)
        return r;
    if (!f->node_known)
        r = fetch_node(f, job, err);
    if (r == 0) {
        f->node_known = true;
        *ret = f->node;
    }
    let_go(f);
    return r;
}
