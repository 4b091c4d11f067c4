/* SPDX-License-Identifier: Apache-2.0 */
/* Errors of the AWS query services: what they say, and what it means for another try. */
#pragma once

#include "loop/rest.h"

#define AWS_ERROR_CODE_MAX 128
#define AWS_ERROR_MESSAGE_MAX 512
#define AWS_REQUEST_ID_MAX 128

/* AWS's own words. code "" means that no error of AWS's arrived (the network failed). */
struct aws_error {
    char code[AWS_ERROR_CODE_MAX];
    char message[AWS_ERROR_MESSAGE_MAX]; /* cut to fit */
    char request_id[AWS_REQUEST_ID_MAX];
    long status; /* HTTP; 0: no reply */
    bool unsure; /* some try had no answer, or one of AWS's own trouble: it may have been done */
};

/* The first error of a reply (EC2's and STS's XML, or AWS JSON 1.1); false: there is none in it.
 * *ret's status is left alone. */
bool aws_error_parse(const char *body, size_t len, struct aws_error *ret);

/* status >= 300. Fills *ret from the reply and sets err: "CODE: message (request ID)" with
 * -EACCES, -EAGAIN or -EREMOTEIO (client.h). */
enum rest_verdict aws_error_judge(const struct http_response *reply, struct aws_error *ret,
                                  struct err *err);
