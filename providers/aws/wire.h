/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request of the AWS query services on its way: endpoint, signature, tries. What signs it comes
 * from the caller: the client's credentials, or those of a step on the way to them.
 */
#pragma once

#include "providers/aws/client.h"
#include "providers/aws/imds.h"

struct aws_key {
    char *id, *secret;
    char *token;        /* NULL: none */
    int64_t expires_ms; /* real time; 0: never */
};

void aws_key_done(struct aws_key *key);
struct aws_key aws_key_copy(const struct aws_key *key);

/* Yields a key for one try, owned by the caller. refused: the id of the key that AWS has just
 * refused, or NULL. now_ms: the time by AWS's clock. */
typedef int aws_key_fn(void *arg, struct job *job, const char *refused, int64_t now_ms,
                       struct aws_key *ret, struct err *err);

struct aws_wire;

/* Both are borrowed. */
struct aws_wire *aws_wire_new(const struct aws_config *config, struct imds *imds);
void aws_wire_free(struct aws_wire *wire);
/* By AWS's clock. */
int64_t aws_wire_now_ms(const struct aws_wire *wire);
/* As aws_client_region. */
int aws_wire_region(struct aws_wire *wire, struct job *job, char ret[AWS_REGION_MAX],
                    struct err *err);
/* As aws_call. key: NULL sends the request without a signature (AssumeRoleWithWebIdentity). */
int aws_wire_call(struct aws_wire *wire, struct job *job, const struct aws_request *request,
                  aws_key_fn *key, void *key_arg, struct http_response *ret,
                  struct aws_error *ret_error, struct err *err);
