/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What does not change while the daemon runs, asked for once: the allowed instance types, AMIs, and
 * where this node is; and the launch template, which changes seldom.
 */
#pragma once

#include "providers/aws/ec2.h"
#include "providers/picker.h"

struct aws_type {
    struct picker_type size; /* name alone where the region does not know the type */
    bool known, snp;
};

struct aws_image {
    char id[EC2_ID_MAX];
    char state[32], architecture[32], boot_mode[32]; /* as AWS says; "" where it does not */
    char root_device[EC2_ID_MAX];
    uint64_t root_gib; /* of its snapshot; 0: unknown */
};

struct aws_node {
    char subnet[EC2_ID_MAX];
    char groups[EC2_GROUPS_MAX][EC2_ID_MAX];
    size_t n_groups;
};

/* The default version of the launch template; "" where it leaves something open. */
struct aws_template {
    bool known;
    char image[INSTANCE_IMAGE_MAX], type[INSTANCE_TYPE_MAX];
    struct aws_node network; /* of its first interface */
    bool snp;
};

struct aws_facts;

/* Both borrowed for the facts' life. */
struct aws_facts *aws_facts_new(const struct aws_config *config, struct aws_client *client);
void aws_facts_free(struct aws_facts *facts);
DEFINE_CLEANUP(struct aws_facts, aws_facts_free)

/* The types that may be chosen: def, the default, and those of -instance-types; def is first if it is
 * not among these. */
int aws_facts_types(struct aws_facts *facts, struct job *job, const char *def,
                    struct aws_type ret[PICKER_TYPES_MAX], size_t *ret_n, struct err *err);
/* How many there are with -instance-type as the default, without asking AWS. */
size_t aws_facts_types_n(const struct aws_facts *facts);
/* -ENOENT: AWS does not know it, or does not let us see it. */
int aws_facts_image(struct aws_facts *facts, struct job *job, const char *id, struct aws_image *ret,
                    struct err *err);
/* -EACCES: the identity may not read it. */
int aws_facts_template(struct aws_facts *facts, struct job *job, struct aws_template *ret,
                       struct err *err);
/* From IMDS. */
int aws_facts_node(struct aws_facts *facts, struct job *job, struct aws_node *ret, struct err *err);
