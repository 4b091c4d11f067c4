/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS Signature Version 4 (header form): what a request must carry in Authorization.
 * Source: "Create a signed AWS API request", IAM User Guide; vectors: awslabs/aws-c-auth.
 */
#pragma once

#include "base/buf.h"

#define SIGV4_DATE_SIZE 17 /* "20150830T123600Z" */

struct sigv4 {
    const char *method;
    const char *path;           /* as written by a person: not encoded */
    const char *query;          /* without '?'; what is encoded stays so; NULL: none */
    bool keep_path;             /* no removal of "." and "..", no merging of slashes */
    const char *const *headers; /* "Name: value", NULL-terminated; all of them are signed */
    const void *body;
    size_t body_len;
    const char *date; /* as in x-amz-date */
    const char *region, *service;
    const char *key_id, *secret;
};

void sigv4_date(int64_t real_ms, char ret[SIGV4_DATE_SIZE]);
/* The value of x-amz-content-sha256. */
void sigv4_payload_hash(const void *body, size_t len, char ret[65]);
/* The canonical request and, separately, the list of signed headers. */
void sigv4_canonical(const struct sigv4 *s, struct buf *ret, struct buf *ret_signed);
void sigv4_to_sign(const struct sigv4 *s, const struct buf *canonical, struct buf *ret);
/* 64 hex digits. */
void sigv4_signature(const struct sigv4 *s, const struct buf *to_sign, char ret[65]);
/* "Authorization: AWS4-HMAC-SHA256 ...", owned. */
char *sigv4_authorization(const struct sigv4 *s);
