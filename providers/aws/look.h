/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What EC2 knows of a sandbox, for many sandboxes in one call: everybody who asks at the same time
 * shares an answer. See look.c.
 */
#pragma once

#include "providers/aws/ec2.h"

#define LOOK_BATCH 50 /* sandboxes in one call; AWS takes 200 values in a filter */

struct look;

struct look *look_new(struct aws_client *client); /* borrows client */
void look_free(struct look *look);
DEFINE_CLEANUP(struct look, look_free)

/* All instances with the sandbox's tag, in any state, terminated ones too (for about an hour). *ret is
 * owned (free), NULL when there are none. */
int look_sandbox(struct look *look, struct job *job, const char *sandbox, struct ec2_instance **ret,
                 size_t *ret_n, struct err *err);
