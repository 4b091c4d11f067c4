/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the keys come from, in the order of AWS's SDKs; cached and refreshed. See credentials.c.
 */
#pragma once

#include "providers/aws/imds.h"
#include "providers/aws/wire.h"

struct credentials;

/* All borrowed. Any thread. */
struct credentials *credentials_new(const struct aws_config *config, struct aws_wire *wire,
                                    struct imds *imds);
void credentials_free(struct credentials *c);

/* An aws_key_fn; arg is a struct credentials. -EACCES: no source yields any. */
int credentials_get(void *arg, struct job *job, const char *refused, int64_t now_ms,
                    struct aws_key *ret, struct err *err);
/* "the web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)"; "" before the first success. */
void credentials_source(struct credentials *c, char ret[AWS_SOURCE_MAX]);

/* The JSON of IMDS and of container endpoints (fuzzed). -EINVAL, -EACCES for their own errors. */
int credentials_parse_json(const char *text, size_t len, struct aws_key *ret, struct err *err);
