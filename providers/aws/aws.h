/* SPDX-License-Identifier: Apache-2.0 */
/* The AWS provider, and what its parts share. */
#pragma once

#include "providers/aws/ec2.h"
#include "providers/aws/facts.h"
#include "providers/aws/look.h"

extern const struct provider_type aws_provider_type;

struct aws_provider {
    struct provider base;
    const struct aws_config *config;
    struct aws_client *client;
    struct aws_facts *facts;
    struct look *look;
};

static inline struct aws_provider *aws_of(struct provider *p)
{
    return (struct aws_provider *)p;
}

/* aws.c */
/* Without addresses while what the pod needs of them is not there yet. */
void aws_fill_instance(const struct aws_provider *a, const struct ec2_instance *i,
                       struct instance *ret);
/* The sandbox's instance that is not terminated; a living one if there is one. -ENOENT. */
int aws_find_sandbox(struct aws_provider *a, struct job *job, const char *sandbox,
                     struct ec2_instance *ret, struct err *err);

/* By the sandbox's tag where it is known (look.c), else by id; *ret->id is "" when AWS does not know
 * it. */
int aws_look_at(struct aws_provider *a, struct job *job, const struct instance *instance,
                struct ec2_instance *ret, struct err *err);

/* create.c */
struct aws_place {
    const char *type, *subnet; /* NULL: the launch template's */
};

/* Everything of a request but the place; strings borrowed from request, config and *plan. */
struct aws_plan {
    struct ec2_run run;
    struct tag tags[INSTANCE_TAGS_MAX + 2];
    struct aws_template template;
    struct aws_image image;
    struct aws_type allowed[PICKER_TYPES_MAX];
    struct aws_node node;
    char *node_groups[EC2_GROUPS_MAX + 1];
    const char *types[PICKER_TYPES_MAX];
    size_t n_types;
    const char *subnets[EC2_SUBNETS_MAX];
    size_t n_subnets;
};

/* Whether the instances are to be confidential; with a template that is known, it says so. */
bool aws_wants_snp(const struct aws_provider *a, const struct aws_template *template);
int aws_plan(struct aws_provider *a, struct job *job, const struct instance_request *request,
             struct aws_plan *ret, struct err *err);
int aws_create(struct provider *p, struct job *job, const struct instance_request *request,
               struct instance *ret, struct err *err);

/* external.c */
/* What one caller has done for an instance: EC2 may not show it at once. */
struct aws_external {
    char allocation[EC2_ID_MAX]; /* "": none yet */
    int64_t since_ms;
    bool associated;
};
/* Gives the second interface its Elastic IP if it has none; again and again is fine. */
int aws_external_connect(struct aws_provider *a, struct job *job, const struct ec2_instance *i,
                         struct aws_external *done, struct err *err);
/* Releases the sandbox's addresses and deletes its interfaces, until none is left. */
int aws_external_remove(struct aws_provider *a, struct job *job, const char *sandbox,
                        struct err *err);

/* verify.c */
int aws_verify(struct provider *p, struct job *job, struct err *err);
int aws_diagnose(struct provider *p, struct job *job, provider_finding_fn *fn, void *arg);

/* delete.c */
int aws_delete(struct provider *p, struct job *job, const struct instance *instance,
               struct err *err);
