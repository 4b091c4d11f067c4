/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The EC2 actions that the provider uses: plain values in, plain values out. Errors carry AWS's own
 * code, message and request id, and a hint (hints.h); *ret_error (may be NULL) is to branch on.
 */
#pragma once

#include "providers/aws/client.h"
#include "providers/aws/xml.h"
#include "providers/provider.h"

#define EC2_ID_MAX 64 /* i-0123456789abcdef0 and its kin, device names, zones */
#define EC2_REASON_MAX 256
#define EC2_USER_DATA_MAX 16384 /* raw, before base64 */
#define EC2_TAGS_MAX 50         /* of one resource */
#define EC2_PAGE 100            /* MaxResults */
#define EC2_PAGES_MAX 1000
#define EC2_SUBNETS_MAX 16
#define EC2_GROUPS_MAX 16

/* ---- calling ---- */

#define EC2_ONCE 1U    /* sent twice it would act twice */
#define EC2_DRY_RUN 2U /* the body says DryRun: that it would have succeeded is success */

/* Takes the body. ret may be NULL, else *ret is owned (xml_free). */
int ec2_call(struct aws_client *client, struct job *job, const char *action, struct buf *body,
             unsigned flags, struct xml **ret, struct aws_error *ret_error, struct err *err);

/* ---- reading ---- */

/* On an instance whose second interface is to have an Elastic IP. */
#define TAG_EXTERNAL "peerpod-external-network"

struct ec2_filter {
    const char *name; /* "tag:peerpod-sandbox" */
    const char *const *values;
    size_t n;
};

struct ec2_describe {
    const char *action; /* "DescribeInstances" */
    const char *set;    /* the answer's element that holds the items: "reservationSet" */
    const char *id_key; /* "InstanceId" */
    const char *const *ids;
    size_t n_ids;
    const struct ec2_filter *filters;
    size_t n_filters;
    unsigned page; /* MaxResults; 0: not sent */
};

/* Non-zero ends the walk and is returned. */
typedef int ec2_item_fn(const struct xml_node *item, void *arg, struct err *err);

/* Every item on every page. Values of filters are taken literally. */
int ec2_describe(struct aws_client *client, struct job *job, const struct ec2_describe *what,
                 ec2_item_fn *item, void *arg, struct aws_error *ret_error, struct err *err);

enum ec2_state {
    EC2_PENDING,
    EC2_RUNNING,
    EC2_STOPPING,
    EC2_STOPPED,
    EC2_SHUTTING_DOWN,
    EC2_TERMINATED,
    EC2_UNKNOWN,
};

struct ec2_instance {
    char id[EC2_ID_MAX];
    enum ec2_state state;
    char reason[EC2_REASON_MAX]; /* why it is being stopped or terminated; "" */
    char private_ip[INSTANCE_ADDRESS_SIZE], public_ip[INSTANCE_ADDRESS_SIZE];
    char ipv6[INSTANCE_ADDRESS_SIZE];
    char name[INSTANCE_NAME_MAX + 1], sandbox[64 + 1], boot[40]; /* from its tags */
    char cluster[65], node[254], namespace[64], pod[254];        /* too; "" if longer */
    size_t n_interfaces;
    char second_interface[EC2_ID_MAX]; /* the one with device index 1; "" */
    bool second_public;                /* it has a public address */
    bool external;                     /* it is tagged as needing one */
};

const char *ec2_state_name(enum ec2_state state);
bool ec2_state_gone(enum ec2_state state); /* neither pending nor running */
int ec2_parse_instance(const struct xml_node *item, struct ec2_instance *ret, struct err *err);

/* *ret is owned (free), NULL when there are none. ids of n_ids (0: all), every one of tags (ends with
 * a NULL key, may be NULL). all: terminated ones too. */
int ec2_describe_instances(struct aws_client *client, struct job *job, const char *const *ids,
                           size_t n_ids, const struct tag *tags, bool all,
                           struct ec2_instance **ret, size_t *ret_n, struct aws_error *ret_error,
                           struct err *err);

/* ---- making ---- */

struct ec2_run {
    const char *token;
    const char *name;       /* becomes the tag Name */
    const struct tag *tags; /* ours; ends with a NULL key */
    char *const *more_tags; /* the operator's, "k=v"; ours win; may be NULL */
    const char *user_data;
    size_t user_data_len;
    const char *launch_template; /* NULL: none; then what is NULL below is the template's */
    const char *image, *type, *key_name, *subnet;
    char *const *groups;
    const char *root_device; /* NULL: the root volume is left as the AMI says */
    uint64_t root_gib;       /* 0: the AMI's */
    bool snp, public_ip, second_interface, spot;
    bool metadata_options, dry_run;
};

void ec2_add_tags(const struct ec2_run *run, size_t spec, const char *resource, struct buf *body);
/* The request's body; the caller frees it (buf_done_secret: user data holds the enrolment secret). */
int ec2_run_body(const struct ec2_run *run, struct buf *ret, struct err *err);
int ec2_run_instance(struct aws_client *client, struct job *job, const struct ec2_run *run,
                     struct ec2_instance *ret, struct aws_error *ret_error, struct err *err);

/* Success for what does not exist is the caller's business: InvalidInstanceID.NotFound. */
int ec2_terminate(struct aws_client *client, struct job *job, const char *const *ids, size_t n,
                  struct aws_error *ret_error, struct err *err);

/* ---- the external network ---- */

struct ec2_address {
    char allocation[EC2_ID_MAX], public_ip[INSTANCE_ADDRESS_SIZE];
    char interface[EC2_ID_MAX]; /* "": not associated */
};

#define EC2_LEFTOVERS_MAX 16

/* Of the sandbox's tag. */
int ec2_find_addresses(struct aws_client *client, struct job *job, const char *sandbox,
                       struct ec2_address ret[EC2_LEFTOVERS_MAX], size_t *ret_n, struct err *err);
int ec2_find_interfaces(struct aws_client *client, struct job *job, const char *sandbox,
                        char ret[EC2_LEFTOVERS_MAX][EC2_ID_MAX], size_t *ret_n, struct err *err);
int ec2_allocate_address(struct aws_client *client, struct job *job, const struct ec2_run *run,
                         struct ec2_address *ret, struct err *err);
int ec2_associate_address(struct aws_client *client, struct job *job, const char *allocation,
                          const char *interface, struct aws_error *ret_error, struct err *err);
int ec2_release_address(struct aws_client *client, struct job *job, const char *allocation,
                        struct aws_error *ret_error, struct err *err);
int ec2_delete_interface(struct aws_client *client, struct job *job, const char *interface,
                         struct aws_error *ret_error, struct err *err);
