/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of the AWS query services (EC2, STS): endpoint, credentials, signature, retries, errors.
 *
 * One client for the process, used by any number of jobs at once. A call signs anew for each try,
 * repeats by the policy of loop/rest.h what is safe to repeat, refreshes credentials that have
 * expired and corrects the clock; what comes back is the service's last word.
 */
#pragma once

#include "loop/http.h"
#include "providers/aws/config.h"
#include "providers/aws/error.h"

#define AWS_REGION_MAX 64

struct aws_request {
    const char *service; /* "ec2", "sts" or "servicequotas" */
    const char *action;  /* "RunInstances": for errors, metrics, logs and the throttle's bucket */
    const char *body;    /* form-encoded, Action and Version included; borrowed for the call */
    const char *target;  /* X-Amz-Target, and the body is JSON (AWS JSON 1.1); NULL: neither */
    bool repeatable;     /* twice has the effect of once: reads, or a ClientToken makes it so */
    bool dry_run;        /* DryRunOperation is success (status 412, empty body) */
    size_t body_max;     /* of the reply; 0: HTTP_BODY_MAX_DEFAULT */
    int64_t timeout_ms;  /* of one try; 0: 30 s */
    int64_t budget_ms;   /* of all tries; 0: the policy's own; the job's deadline rules as well */
};

struct aws_client;

/* config: borrowed for the client's life. Owned: aws_client_free. Makes no call; -EINVAL for an
 * endpoint that is no URL. */
int aws_client_new(const struct aws_config *config, struct aws_client **ret, struct err *err);
void aws_client_free(struct aws_client *client);
DEFINE_CLEANUP(struct aws_client, aws_client_free)

/*
 * 0: a 2xx reply, in *ret (http_response_done). Otherwise a negative errno, err with AWS's code,
 * message and request id in it, and *ret_error (may be NULL) to branch on:
 *   -EACCES     credentials or permissions      -EAGAIN   still throttled at the end of the budget
 *   -EREMOTEIO  any other error code of AWS's   -ECANCELED, -ETIMEDOUT  the job's
 *   anything else: no (complete) answer, as job_http says
 */
int aws_call(struct aws_client *client, struct job *job, const struct aws_request *request,
             struct http_response *ret, struct aws_error *ret_error, struct err *err);

/* The region in use: -aws-region, AWS_DEFAULT_REGION, the profile's, the node's own from IMDS.
 * Found once, then remembered. */
int aws_client_region(struct aws_client *client, struct job *job, char ret[AWS_REGION_MAX],
                      struct err *err);

/* GET of http://169.254.169.254/PATH with an IMDSv2 token (kept and refreshed). path without
 * leading slash ("latest/meta-data/mac"). -ENOENT for 404; else as job_http. ret is owned. */
int aws_metadata_get(struct aws_client *client, struct job *job, const char *path, char **ret,
                     struct err *err);

/* Where the credentials of the last call came from, for people: "profile x"; "" before the first. */
#define AWS_SOURCE_MAX 128
void aws_client_source(struct aws_client *client, char ret[AWS_SOURCE_MAX]);
