/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bodies of the AWS query protocol: Action=...&Version=...&Key.1.Name=value, percent-encoded as
 * SigV4 and the SDKs do it (everything but A-Z a-z 0-9 - . _ ~).
 */
#pragma once

#include "base/buf.h"

#define QUERY_BYTES_MAX (256U << 10)
#define QUERY_VERSION_EC2 "2016-11-15"
#define QUERY_VERSION_STS "2011-06-15"

/* A body is a struct buf; text.failed tells that something did not fit (QUERY_BYTES_MAX). */
void query_begin(struct buf *body, const char *action, const char *version);
/* The key is a format: query_add(&body, id, "InstanceId.%zu", i). Keys are ours and written as they
 * are; values are encoded. NULL values are left out. */
void query_add(struct buf *body, const char *value, const char *key, ...) _printf_(3, 4);
void query_add_i64(struct buf *body, int64_t value, const char *key, ...) _printf_(3, 4);
