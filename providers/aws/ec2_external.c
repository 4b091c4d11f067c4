/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EC2's actions for the external network: Elastic IPs, and interfaces that may be left over.
 *
 * AllocateAddress knows no ClientToken: it is sent once, and an answer that is lost leaves an
 * address that carries the sandbox's tag and goes with the sandbox.
 */
#include <errno.h>

#include "base/str.h"
#include "providers/aws/ec2.h"
#include "providers/aws/hints.h"
#include "providers/aws/query.h"

static void by_sandbox(struct ec2_describe *what, struct ec2_filter *filter, const char **sandbox)
{
    *filter = (struct ec2_filter){"tag:" TAG_SANDBOX, sandbox, 1};
    what->filters = filter;
    what->n_filters = 1;
}

struct found {
    struct ec2_address *addresses;
    char (*interfaces)[EC2_ID_MAX];
    size_t n;
};

static int take_address(const struct xml_node *item, void *arg, struct err *err)
{
    struct found *found = arg;
    struct ec2_address *a = &found->addresses[found->n];

    if (found->n == EC2_LEFTOVERS_MAX)
        return 1; /* the rest at the next try */
    *a = (struct ec2_address){0};
    if (xml_text(item, "allocationId", a->allocation, sizeof(a->allocation)) < 0 || !*a->allocation)
        return err_set(err, -EPROTO, "AWS described an address without a usable allocationId");
    (void)xml_text(item, "publicIp", a->public_ip, sizeof(a->public_ip));
    (void)xml_text(item, "networkInterfaceId", a->interface, sizeof(a->interface));
    found->n++;
    return 0;
}

static int take_interface(const struct xml_node *item, void *arg, struct err *err)
{
    struct found *found = arg;
    char *id = found->interfaces[found->n];

    if (found->n == EC2_LEFTOVERS_MAX)
        return 1;
    if (xml_text(item, "networkInterfaceId", id, EC2_ID_MAX) < 0 || !*id)
        return err_set(err, -EPROTO, "AWS described an interface without a usable id");
    found->n++;
    return 0;
}

int ec2_find_addresses(struct aws_client *client, struct job *job, const char *sandbox,
                       struct ec2_address ret[EC2_LEFTOVERS_MAX], size_t *ret_n, struct err *err)
{
    struct ec2_describe what = {.action = "DescribeAddresses", .set = "addressesSet"};
    struct ec2_filter filter;
    struct found found = {.addresses = ret};

    by_sandbox(&what, &filter, &sandbox);
    int r = ec2_describe(client, job, &what, take_address, &found, NULL, err);
    *ret_n = found.n;
    return MIN(r, 0);
}

int ec2_find_interfaces(struct aws_client *client, struct job *job, const char *sandbox,
                        char ret[EC2_LEFTOVERS_MAX][EC2_ID_MAX], size_t *ret_n, struct err *err)
{
    struct ec2_describe what = {.action = "DescribeNetworkInterfaces",
                                .set = "networkInterfaceSet"};
    struct ec2_filter filter;
    struct found found = {.interfaces = ret};

    by_sandbox(&what, &filter, &sandbox);
    int r = ec2_describe(client, job, &what, take_interface, &found, NULL, err);
    *ret_n = found.n;
    return MIN(r, 0);
}

int ec2_allocate_address(struct aws_client *client, struct job *job, const struct ec2_run *run,
                         struct ec2_address *ret, struct err *err)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    struct buf body;

    *ret = (struct ec2_address){0};
    query_begin(&body, "AllocateAddress", QUERY_VERSION_EC2);
    query_add(&body, "vpc", "Domain");
    ec2_add_tags(run, 1, "elastic-ip", &body);
    int r = ec2_call(client, job, "AllocateAddress", &body, EC2_ONCE, &xml, NULL, err);
    if (r < 0)
        return r;
    if (xml_text(xml_root(xml), "allocationId", ret->allocation, sizeof(ret->allocation)) < 0 ||
        !*ret->allocation)
        return err_set(err, -EPROTO, "AllocateAddress: the answer has no usable allocationId");
    (void)xml_text(xml_root(xml), "publicIp", ret->public_ip, sizeof(ret->public_ip));
    return 0;
}

int ec2_associate_address(struct aws_client *client, struct job *job, const char *allocation,
                          const char *interface, struct aws_error *ret_error, struct err *err)
{
    struct buf body;

    query_begin(&body, "AssociateAddress", QUERY_VERSION_EC2);
    query_add(&body, allocation, "AllocationId");
    query_add(&body, interface, "NetworkInterfaceId");
    /* To the same interface again is no change; it is ours, no other can have it. */
    query_add(&body, "true", "AllowReassociation");
    return ec2_call(client, job, "AssociateAddress", &body, 0, NULL, ret_error, err);
}

int ec2_release_address(struct aws_client *client, struct job *job, const char *allocation,
                        struct aws_error *ret_error, struct err *err)
{
    struct buf body;

    query_begin(&body, "ReleaseAddress", QUERY_VERSION_EC2);
    query_add(&body, allocation, "AllocationId");
    return ec2_call(client, job, "ReleaseAddress", &body, 0, NULL, ret_error, err);
}

int ec2_delete_interface(struct aws_client *client, struct job *job, const char *interface,
                         struct aws_error *ret_error, struct err *err)
{
    struct buf body;

    query_begin(&body, "DeleteNetworkInterface", QUERY_VERSION_EC2);
    query_add(&body, interface, "NetworkInterfaceId");
    return ec2_call(client, job, "DeleteNetworkInterface", &body, 0, NULL, ret_error, err);
}
