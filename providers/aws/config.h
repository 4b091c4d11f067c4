/* SPDX-License-Identifier: Apache-2.0 */
/* The options of the AWS provider (compat.md "aws", and ours), from one table. */
#pragma once

#include "base/opt.h"

struct aws_config {
    /* Credentials: see credentials.h for what is used when these are empty. */
    char *access_key_id, *secret_key, *session_token;
    char *profile;
    char *region; /* "": the profile's, or the node's own (aws_client_region) */

    /* The instance. */
    char *instance_type;
    char **instance_types;
    char *image_id;
    char *launch_template;
    bool use_launch_template;
    char *key_name;
    char **subnet_ids; /* in the order in which they are tried */
    char **security_group_ids;
    bool use_public_ip;
    int64_t root_volume_size; /* GiB */
    bool disable_cvm;
    bool spot;
    int64_t settle_ns; /* how long EC2 may not know of what it has made */
    char **tags;

    /* Where the services are, when not at AWS's own names. */
    char *endpoint_url, *endpoint_url_ec2, *endpoint_url_sts;
    char *metadata_endpoint;
    char *ca_bundle;
};

extern const struct opt aws_opts[];
