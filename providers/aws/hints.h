/* SPDX-License-Identifier: Apache-2.0 */
/* What AWS's error codes mean to us, and to the reader of an error. */
#pragma once

#include "providers/aws/client.h"

enum aws_refusal {
    AWS_REFUSAL_OTHER,    /* the same anywhere */
    AWS_REFUSAL_CAPACITY, /* no room for this type in this zone now, or it is not offered there */
    AWS_REFUSAL_SUBNET,   /* the subnet has no address left */
    AWS_REFUSAL_QUOTA,    /* the account may have no more of this type's family */
};

enum aws_refusal aws_refusal(const struct aws_error *error);
bool aws_error_is(const struct aws_error *error, const char *code);
/* Appends "; what to do" to err's text, where there is something to be done. action: of EC2 or STS,
 * for the permission's name when AWS does not say it. */
void aws_hint(const struct aws_error *error, const char *service, const char *action,
              struct err *err);
