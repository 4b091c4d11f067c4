/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: would a pod start here? Everything that can be known without making anything, one finding
 * after the other, for `peerpodctl verify aws`.
 *
 *   identity         STS GetCallerIdentity, region, where the credentials come from
 *   launch template  it exists; what it says stands in the options' place in all that follows
 *   image            it exists, is available, and boots UEFI where a confidential VM needs it
 *   instance types   the region has them, they support SNP
 *   subnets          they exist, have free addresses, in which zone
 *   security groups  let TCP 15150 and UDP 4789 in from this node
 *   permissions      the very request of a pod and a termination with DryRun
 *   quota            vCPUs of the default type's family, by Service Quotas
 *
 * A finding that is bad does not end the rest: one run shows all there is to mend. Only without an
 * identity nothing else is asked. What cannot be read (a Describe permission that pods do not need) is
 * a note, not a failure.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>

#include "base/json.h"
#include "base/str.h"
#include "providers/aws/aws.h"
#include "providers/aws/hints.h"
#include "providers/aws/query.h"

#define TEXT_MAX 512
#define NO_INSTANCE "i-00000000000000000" /* of the right form, and nobody's */
#define ADDRESSES_LOW 8
#define QUOTA_BUDGET_MS 10000 /* not every network has a way to Service Quotas */

struct findings {
    struct aws_provider *a;
    struct job *job;
    provider_finding_fn *fn;
    void *arg;
    bool bad;
    bool unsure;                         /* a security group names a prefix list */
    char node_ip[INSTANCE_ADDRESS_SIZE]; /* "": not on EC2 */
    struct aws_node node;
    struct aws_template template;
};

__attribute__((format(printf, 4, 5))) static void find(struct findings *f, enum finding kind,
                                                       const char *what, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    f->bad |= kind == FINDING_BAD;
    f->fn(kind, what, text, f->arg);
}

/* ---- identity ---- */

static int identity(struct findings *f)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    char arn[TEXT_MAX], region[AWS_REGION_MAX], source[AWS_SOURCE_MAX];
    struct http_response reply = {0};
    struct aws_error error = {0};
    struct err err = ERR_INIT;
    struct buf body;

    query_begin(&body, "GetCallerIdentity", QUERY_VERSION_STS);
    const struct aws_request q = {
        .service = "sts", .action = "GetCallerIdentity", .body = body.data, .repeatable = true};
    int r = aws_client_region(f->a->client, f->job, region, &err);
    if (r == 0)
        r = aws_call(f->a->client, f->job, &q, &reply, &error, &err);
    aws_hint(&error, q.service, q.action, &err);
    if (r == 0)
        r = xml_parse(reply.body, reply.body_len, &xml, &err);
    http_response_done(&reply);
    buf_done(&body);
    if (r < 0) {
        find(f, FINDING_BAD, "identity", "%s", err_text(&err));
        return r;
    }
    (void)xml_text(xml_root(xml), "GetCallerIdentityResult.Arn", arn, sizeof(arn));
    aws_client_source(f->a->client, source);
    find(f, FINDING_OK, "identity", "%s in %s (%s)", arn, region, source);
    return 0;
}

/* ---- launch template ---- */

static void template(struct findings *f)
{
    const struct aws_config *c = f->a->config;
    struct err err = ERR_INIT;
    int r = aws_facts_template(f->a->facts, f->job, &f->template, &err);

    if (r == -EACCES)
        find(
            f, FINDING_NOTE, "launch template",
            "%s decides about image, network and the type of a pod that asks for none, and may not "
            "be read: of these only what RunInstances checks is checked (%s)",
            c->launch_template, err_text(&err));
    else if (r < 0)
        find(f, FINDING_BAD, "launch template", "%s: %s", c->launch_template, err_text(&err));
    else if (!f->template.snp && !c->disable_cvm)
        find(f, FINDING_NOTE, "launch template",
             "%s does not enable AMD SEV-SNP in its CPU options: pod VMs will not be confidential",
             c->launch_template);
    else
        find(f, FINDING_OK, "launch template", "%s, its default version", c->launch_template);
}

static const char *default_type(const struct findings *f)
{
    return *f->template.type ? f->template.type : f->a->config->instance_type;
}

/* ---- image, types ---- */

static void image(struct findings *f)
{
    const char *id = *f->template.image ? f->template.image : f->a->config->image_id;
    const bool snp = aws_wants_snp(f->a, &f->template);
    struct aws_image i;
    struct err err = ERR_INIT;

    if (str_starts(id, "resolve:ssm:"))
        find(f, FINDING_NOTE, "image", "%s of the template is not looked up", id);
    else if (aws_facts_image(f->a->facts, f->job, id, &i, &err) < 0)
        find(f, FINDING_BAD, "image", "%s", err_text(&err));
    else if (*i.state && !str_eq(i.state, "available"))
        find(f, FINDING_BAD, "image", "%s is %s", id, i.state);
    else if (snp && !str_eq(i.boot_mode, "uefi") && !str_eq(i.boot_mode, "uefi-preferred"))
        find(
            f, FINDING_BAD, "image",
            "%s is registered with boot mode '%s', AMD SEV-SNP needs uefi: register the image with "
            "--boot-mode uefi, or set -disable-cvm",
            id, *i.boot_mode ? i.boot_mode : "(none)");
    else
        find(f, FINDING_OK, "image", "%s: %s, boot mode %s, root device %s of %llu GiB", id,
             i.architecture, *i.boot_mode ? i.boot_mode : "of the type", i.root_device,
             (unsigned long long)i.root_gib);
}

static void types(struct findings *f)
{
    _cleanup_free_ struct aws_type *list = xcalloc(PICKER_TYPES_MAX, sizeof(*list));
    struct err err = ERR_INIT;
    size_t n;

    if (aws_facts_types(f->a->facts, f->job, default_type(f), list, &n, &err) < 0) {
        find(f, FINDING_BAD, "instance types", "%s", err_text(&err));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const struct picker_type *size = &list[i].size;
        if (!list[i].known)
            find(f, FINDING_BAD, "instance type", "%s is not known in this region", size->name);
        else if (!list[i].snp && aws_wants_snp(f->a, &f->template))
            find(f, FINDING_BAD, "instance type", "%s does not support AMD SEV-SNP: %s", size->name,
                 f->template.known ? "the launch template asks for it"
                                   : "it is never chosen unless -disable-cvm is set");
        else
            find(f, FINDING_OK, "instance type", "%s: %u vCPUs, %llu MiB, %u GPUs%s", size->name,
                 size->vcpus, (unsigned long long)size->memory_mib, size->gpus,
                 list[i].snp ? ", AMD SEV-SNP" : "");
    }
}

/* ---- network ---- */

static int subnet(const struct xml_node *item, void *arg, _unused_ struct err *err)
{
    struct findings *f = arg;
    char id[EC2_ID_MAX], zone[EC2_ID_MAX], state[32];
    uint64_t n = xml_u64(item, "availableIpAddressCount", 0);

    (void)xml_text(item, "subnetId", id, sizeof(id));
    (void)xml_text(item, "availabilityZone", zone, sizeof(zone));
    (void)xml_text(item, "state", state, sizeof(state));
    find(f,
         n == 0 || !str_eq(state, "available") ? FINDING_BAD
         : n < ADDRESSES_LOW                   ? FINDING_NOTE
                                               : FINDING_OK,
         "subnet", "%s in %s: %s, %llu free addresses", id, zone, state, (unsigned long long)n);
    return 0;
}

/* One call; what pods do not need is a note when it may not be read. */
static void describe(struct findings *f, const char *what, const struct ec2_describe *d,
                     ec2_item_fn *fn)
{
    struct err err = ERR_INIT;
    int r = ec2_describe(f->a->client, f->job, d, fn, f, NULL, &err);

    if (r < 0)
        find(f, r == -EACCES ? FINDING_NOTE : FINDING_BAD, what, "%s", err_text(&err));
}

static void subnets(struct findings *f)
{
    const char *ids[EC2_SUBNETS_MAX];
    size_t n = 0;

    if (f->template.known)
        ids[n++] = f->template.network.subnet;
    for (char *const *s = f->a->config->subnet_ids; !n && *s && n < EC2_SUBNETS_MAX; s++)
        ids[n++] = *s;
    if (n == 0)
        ids[n++] = f->node.subnet;
    if (!*ids[0]) {
        find(f, FINDING_NOTE, "subnet", "the launch template names none: EC2's default one");
        return;
    }
    const struct ec2_describe d = {.action = "DescribeSubnets",
                                   .set = "subnetSet",
                                   .id_key = "SubnetId",
                                   .ids = ids,
                                   .n_ids = n};
    describe(f, "subnet", &d, subnet);
}

static bool in_range(const char *cidr, const char *address)
{
    char text[INSTANCE_ADDRESS_SIZE];
    struct in_addr net, a;
    uint64_t bits;
    const char *slash = strchr(cidr, '/');

    if (!slash || str_to_u64(slash + 1, 32, &bits) < 0 ||
        str_format(text, sizeof(text), "%.*s", (int)(slash - cidr), cidr) < 0 ||
        inet_pton(AF_INET, text, &net) != 1 || inet_pton(AF_INET, address, &a) != 1)
        return false;
    return bits == 0 || ((ntohl(net.s_addr) ^ ntohl(a.s_addr)) >> (32 - bits)) == 0;
}

/* Does this permission of a group name the node, by address or by a group of its own? What a prefix
 * list holds is not asked: it may. */
static bool admits_node(struct findings *f, const struct xml_node *permission)
{
    char value[EC2_ID_MAX];

    for (const struct xml_node *n = xml_first(xml_find(permission, "ipRanges")); n; n = xml_next(n))
        if (xml_text(n, "cidrIp", value, sizeof(value)) == 0 && in_range(value, f->node_ip))
            return true;
    for (const struct xml_node *n = xml_first(xml_find(permission, "groups")); n; n = xml_next(n))
        for (size_t i = 0; i < f->node.n_groups; i++)
            if (xml_text_is(n, "groupId", f->node.groups[i]))
                return true;
    f->unsure |= xml_first(xml_find(permission, "prefixListIds")) != NULL;
    return false;
}

static bool admits(struct findings *f, const struct xml_node *group, const char *protocol,
                   uint64_t port)
{
    const struct xml_node *n = xml_first(xml_find(group, "ipPermissions"));

    for (; n; n = xml_next(n)) {
        bool all = xml_text_is(n, "ipProtocol", "-1");
        if (!all && !xml_text_is(n, "ipProtocol", protocol))
            continue;
        if ((all ||
             (xml_u64(n, "fromPort", UINT64_MAX) <= port && xml_u64(n, "toPort", 0) >= port)) &&
            admits_node(f, n))
            return true;
    }
    return false;
}

struct groups {
    struct findings *f;
    bool tunnel, vxlan;
    size_t n;
};

static int group(const struct xml_node *item, void *arg, _unused_ struct err *err)
{
    struct groups *g = arg;

    g->n++;
    g->tunnel |= admits(g->f, item, "tcp", 15150);
    g->vxlan |= admits(g->f, item, "udp", 4789);
    return 0;
}

/* Of the template, the options or the node. */
static size_t group_ids(const struct findings *f, const char *ret[EC2_GROUPS_MAX])
{
    char *const *s = f->a->config->security_group_ids;
    const struct aws_node *from = f->template.known ? &f->template.network : &f->node;
    size_t n = 0;

    for (; !f->template.known && *s && n < EC2_GROUPS_MAX; s++)
        ret[n++] = *s;
    for (size_t i = 0; n == i && i < from->n_groups; i++)
        ret[n++] = from->groups[i];
    return n;
}

/* The groups of an instance add up. */
static void groups(struct findings *f)
{
    const char *ids[EC2_GROUPS_MAX];
    struct groups g = {.f = f};
    struct err err = ERR_INIT;
    size_t n = group_ids(f, ids);

    if (n == 0) {
        find(f, FINDING_NOTE, "security groups",
             "the launch template names none: the VPC's default one");
        return;
    }
    const struct ec2_describe d = {.action = "DescribeSecurityGroups",
                                   .set = "securityGroupInfo",
                                   .id_key = "GroupId",
                                   .ids = ids,
                                   .n_ids = n};
    int r = ec2_describe(f->a->client, f->job, &d, group, &g, NULL, &err);
    if (r < 0)
        find(f, r == -EACCES ? FINDING_NOTE : FINDING_BAD, "security groups", "%s", err_text(&err));
    else if (!*f->node_ip)
        find(f, FINDING_NOTE, "security groups",
             "%zu exist; whether they let TCP 15150 and UDP 4789 in from this node is not known, "
             "its "
             "metadata service does not answer",
             g.n);
    else if (!g.tunnel || !g.vxlan)
        find(f, f->unsure ? FINDING_NOTE : FINDING_BAD, "security groups",
             "%s%s%s not open from this node (%s)%s: allow both from the nodes' security group",
             g.tunnel ? "" : "TCP 15150 (tunnel)", !g.tunnel && !g.vxlan ? " and " : "",
             g.vxlan ? " is" : "UDP 4789 (pod network) is", f->node_ip,
             f->unsure ? ", unless by a prefix list, which is not looked into" : "");
    else
        find(f, FINDING_OK, "security groups", "TCP 15150 and UDP 4789 are open from %s",
             f->node_ip);
}

static void network(struct findings *f)
{
    const bool needed =
        !f->template.known && (!*f->a->config->subnet_ids || !*f->a->config->security_group_ids);
    _cleanup_free_ char *ip = NULL;
    struct err err = ERR_INIT;

    if (aws_metadata_get(f->a->client, f->job, "latest/meta-data/local-ipv4", &ip, &err) == 0)
        (void)str_format(f->node_ip, sizeof(f->node_ip), "%.*s", (int)strcspn(ip, "\r\n"), ip);
    err_clear(&err);
    if ((needed || *f->node_ip) && aws_facts_node(f->a->facts, f->job, &f->node, &err) < 0 &&
        needed) {
        find(f, FINDING_BAD, "network", "%s", err_text(&err));
        return;
    }
    subnets(f);
    groups(f);
}

/* ---- quota ---- */

/* The quota that counts instances of this type; NULL: none that we know by code. */
static const char *quota_code(const char *type, bool spot)
{
    static const struct {
        const char *families, *on_demand, *spot;
    } quotas[] = {
        {"acdhimrtz", "L-1216C47A", "L-34B43A08"},
        {"g", "L-DB2E81BA", "L-3819A6DF"},
        {"p", "L-417A185B", "L-7212CCBC"},
    };

    if (strcspn(type, "0123456789") != 1) /* of "m6a.large": "m" */
        return NULL;
    for (size_t i = 0; i < ARRAY_SIZE(quotas); i++)
        if (strchr(quotas[i].families, type[0]))
            return spot ? quotas[i].spot : quotas[i].on_demand;
    return NULL;
}

static int quota_value(const struct http_response *reply, double *ret, struct err *err)
{
    _cleanup_(json_putp) struct json_object *o = NULL;
    struct json_object *quota, *value;
    int r = json_parse(reply->body, reply->body_len, &o, err);

    if (r < 0)
        return r;
    if (!json_object_object_get_ex(o, "Quota", &quota) ||
        !json_object_object_get_ex(quota, "Value", &value) ||
        !(json_object_is_type(value, json_type_double) ||
          json_object_is_type(value, json_type_int)))
        return err_set(err, -EPROTO, "the answer of GetServiceQuota has no value");
    *ret = json_object_get_double(value);
    return 0;
}

static int get_quota(struct findings *f, const char *code, double *ret, struct err *err)
{
    _cleanup_free_ char *body =
        str_asprintf("{\"ServiceCode\":\"ec2\",\"QuotaCode\":\"%s\"}", code);
    const struct aws_request q = {.service = "servicequotas",
                                  .action = "GetServiceQuota",
                                  .target = "ServiceQuotasV20190624.GetServiceQuota",
                                  .body = body,
                                  .budget_ms = QUOTA_BUDGET_MS,
                                  .timeout_ms = QUOTA_BUDGET_MS,
                                  .repeatable = true};
    struct http_response reply = {0};
    struct aws_error error = {0};
    int r = aws_call(f->a->client, f->job, &q, &reply, &error, err);

    if (r == 0)
        r = quota_value(&reply, ret, err);
    else
        aws_hint(&error, q.service, q.action, err);
    http_response_done(&reply);
    return r;
}

/* How much of it is in use cannot be asked without CloudWatch; a quota that is too small for one
 * pod is what new accounts have. */
static void quota(struct findings *f)
{
    const struct aws_config *c = f->a->config;
    const bool unknown = c->use_launch_template && !f->template.known;
    const char *type = unknown ? "the template's type" : default_type(f);
    const char *code = unknown ? NULL : quota_code(type, c->spot);
    _cleanup_free_ struct aws_type *list = xcalloc(PICKER_TYPES_MAX, sizeof(*list));
    struct err err = ERR_INIT;
    uint32_t vcpus = 0;
    double value = 0;
    size_t n;

    if (!code) {
        find(f, FINDING_NOTE, "quota", "which quota counts %s is not known here", type);
        return;
    }
    if (get_quota(f, code, &value, &err) < 0) {
        find(f, FINDING_NOTE, "quota", "%s is not readable: %s", code, err_text(&err));
        return;
    }
    if (aws_facts_types(f->a->facts, f->job, type, list, &n, NULL) == 0)
        for (size_t i = 0; i < n; i++)
            if (str_eq(list[i].size.name, type))
                vcpus = list[i].size.vcpus;
    find(f, value < MAX(vcpus, 1U) ? FINDING_BAD : FINDING_OK, "quota",
         "%s of EC2 in Service Quotas: %.0f vCPUs for all instances like %s, which has %u", code,
         value, type, vcpus);
}

/* ---- permissions ---- */

static void may_run(struct findings *f)
{
    static const char data[] = "#cloud-config\n";
    const struct tag tags[] = {{TAG_CREATOR, "cloud-api-adaptor"}, {TAG_SANDBOX, "verify"}, {0}};
    const struct instance_request request = {.name = "podvm-verify",
                                             .token = "",
                                             .tags = tags,
                                             .user_data = data,
                                             .user_data_len = sizeof(data) - 1};
    _cleanup_free_ struct aws_plan *plan = xcalloc(1, sizeof(*plan));
    struct ec2_instance unused;
    struct aws_error error = {0};
    struct err err = ERR_INIT;
    int r = aws_plan(f->a, f->job, &request, plan, &err);

    if (r == 0) {
        plan->run.dry_run = true;
        plan->run.type = plan->types[0];
        plan->run.subnet = plan->subnets[0];
        r = ec2_run_instance(f->a->client, f->job, &plan->run, &unused, &error, &err);
    }
    if (r < 0)
        find(f, FINDING_BAD, "RunInstances", "%s", err_text(&err));
    else
        find(f, FINDING_OK, "RunInstances", "allowed, with our tags (DryRun)");
}

static void may_terminate(struct findings *f)
{
    struct aws_error error = {0};
    struct err err = ERR_INIT;
    struct buf body;

    query_begin(&body, "TerminateInstances", QUERY_VERSION_EC2);
    query_add(&body, NO_INSTANCE, "InstanceId.1");
    query_add(&body, "true", "DryRun");
    int r = ec2_call(f->a->client, f->job, "TerminateInstances", &body, EC2_DRY_RUN, NULL, &error,
                     &err);
    /* Who may not do it is told so before AWS looks for the instance. */
    if (r < 0 && !str_starts(error.code, "InvalidInstanceID"))
        find(f, FINDING_BAD, "TerminateInstances", "%s", err_text(&err));
    else
        find(f, FINDING_OK, "TerminateInstances", "allowed (DryRun)");
}

static void may_list(struct findings *f)
{
    const struct tag tags[] = {{TAG_SANDBOX, "verify"}, {0}};
    _cleanup_free_ struct ec2_instance *list = NULL;
    struct err err = ERR_INIT;
    size_t n;

    if (ec2_describe_instances(f->a->client, f->job, NULL, 0, tags, false, &list, &n, NULL, &err) <
        0)
        find(f, FINDING_BAD, "DescribeInstances", "%s", err_text(&err));
    else
        find(f, FINDING_OK, "DescribeInstances", "allowed");
}

int aws_diagnose(struct provider *p, struct job *job, provider_finding_fn *fn, void *arg)
{
    struct findings f = {.a = aws_of(p), .job = job, .fn = fn, .arg = arg};

    if (identity(&f) < 0)
        return -EINVAL;
    if (f.a->config->use_launch_template)
        template(&f);
    if (!f.a->config->use_launch_template || f.template.known) {
        image(&f);
        types(&f);
        network(&f);
    } else if (*f.a->config->instance_types) {
        types(&f);
    }
    may_run(&f);
    may_terminate(&f);
    may_list(&f);
    quota(&f);
    return f.bad ? -EINVAL : 0;
}

/* The same for who wants one answer: the first bad finding. */
static void first_bad(enum finding kind, const char *what, const char *text, void *arg)
{
    struct err *err = arg;

    if (kind == FINDING_BAD && !err->code)
        err_set(err, -EINVAL, "%s: %s", what, text);
}

int aws_verify(struct provider *p, struct job *job, struct err *err)
{
    return aws_diagnose(p, job, first_bad, err);
}
