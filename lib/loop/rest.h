/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of a REST API with one policy of repeating for all clouds. A provider says how a request
 * is made and what a reply means; when and how often it is sent is decided here. See rest.c.
 */
#pragma once

#include "loop/http.h"
#include "loop/throttle.h"

enum rest_verdict {
    REST_DONE,      /* a good answer */
    REST_FAILED,    /* a final refusal */
    REST_BROKEN,    /* the service's own trouble: it may have acted or not */
    REST_THROTTLED, /* refused for too many calls, without acting */
    REST_DENIED,    /* refused for credentials or clock, without acting */
};

struct rest; /* one API of one provider; any thread */

/* provider: "AWS", service: "ec2" (of metrics: "ec2.RunInstances"); both borrowed. */
struct rest *rest_new(const char *provider, const char *service);
void rest_free(struct rest *rest);
DEFINE_CLEANUP(struct rest, rest_free)

/* Now by the provider's clock, as far as its Date headers have told; ms since 1970. */
int64_t rest_now_ms(const struct rest *rest);

struct rest_try {
    unsigned number; /* 1, 2, ... */
    int64_t now_ms;  /* rest_now_ms */
    bool renew;      /* the last try was denied: fetch credentials anew */
};

struct rest_op {
    const char *name;   /* "RunInstances" */
    const char *bucket; /* which operations are throttled together; NULL: name */
    bool repeatable;    /* sent twice it has the effect of once */
    bool seen;          /* the caller has to know of every try: none that libcurl makes by itself */
    int64_t budget_ms;  /* for all tries but those that were throttled; 0: REST_BUDGET_MS */
    /* Fills *ret, whose strings live until the next call of it or the end of rest_call. */
    int (*prepare)(void *arg, struct job *job, const struct rest_try *try, struct http_request *ret,
                   struct err *err);
    /* Sets err (code and text) for every verdict but REST_DONE; reason: the provider's short word
     * for a refusal, "" by default. */
    enum rest_verdict (*judge)(void *arg, const struct http_response *reply,
                               char reason[THROTTLE_REASON_MAX], struct err *err);
    void *arg;
};

#define REST_BUDGET_MS 60000
#define REST_TRIES_MAX 10 /* but those that were throttled */
#define REST_BACKOFF_MS 250
#define REST_BACKOFF_MAX_MS 10000
#define REST_RETRY_AFTER_MAX_MS 600000
#define REST_CLOCK_OFF_MIN_MS 60000 /* what the Date header must differ by to be believed */

/* 0 with the good answer in *ret; else err and the last reply (status 0: none) in *ret. The caller
 * frees it (http_response_done) in either case. */
int rest_call(struct rest *rest, struct job *job, const struct rest_op *op,
              struct http_response *ret, struct err *err);

/* A few tries of one repeatable request that needs neither signature nor throttle (metadata and
 * credential endpoints): as job_http, but replies of 5xx and 429 are failures (-EREMOTEIO) too. */
#define REST_FETCH_TRIES 3
int rest_fetch(struct job *job, const struct http_request *request, struct http_response *ret,
               struct err *err);

/* Full jitter: 0 .. min(REST_BACKOFF_MAX_MS, REST_BACKOFF_MS * 2^n), n from 0. */
int64_t rest_backoff_ms(unsigned n);
/* Of Retry-After (seconds or a date), Retry-After-Ms and X-Ms-Retry-After-Ms; 0: none. now_ms: as
 * the reply's Date sees it. */
int64_t rest_retry_after_ms(const struct http_response *reply, int64_t now_ms);
/* RFC 9110's three forms of a date; -1: it is none. ms since 1970. */
int64_t rest_parse_date_ms(const char *text);
