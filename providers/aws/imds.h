/* SPDX-License-Identifier: Apache-2.0 */
/* The instance metadata service of the node, version 2 (with a session token). */
#pragma once

#include "loop/http.h"

#define IMDS_VALUE_MAX (64U << 10)

struct imds;

/* endpoint: "http://169.254.169.254", borrowed. Any thread. */
struct imds *imds_new(const char *endpoint);
void imds_free(struct imds *imds);

/* GET of ENDPOINT/PATH. 0 with the text in *ret (owned); -ENOENT: 404; -ENODEV: switched off by
 * AWS_EC2_METADATA_DISABLED; else as job_http. */
int imds_get(struct imds *imds, struct job *job, const char *path, char **ret, struct err *err);
