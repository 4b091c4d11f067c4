/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP for jobs, on libcurl: one request, bounded, cancellable, no redirects, no proxies from the
 * environment unless asked for. Connections are kept for the next request of the job, and for the
 * next job.
 */
#pragma once

#include "loop/job.h"

#define HTTP_BODY_MAX_DEFAULT (4U << 20)
#define HTTP_HEADERS_MAX (64U << 10)

struct http_request {
    const char *method;         /* "GET", "PUT", "POST", "DELETE" */
    const char *url;            /* http or https */
    const char *const *headers; /* "Name: value", NULL-terminated, may be NULL */
    const void *body;           /* may be NULL */
    size_t body_len;
    size_t body_max;            /* of the reply; 0: HTTP_BODY_MAX_DEFAULT */
    int64_t timeout_ms;         /* whole exchange; 0: 30 s; the job's deadline rules as well */
    int64_t connect_timeout_ms; /* 0: 5 s */
    const char *ca_file;        /* NULL: SSL_CERT_FILE, SSL_CERT_DIR, the system's */
    bool repeatable;            /* a POST or PATCH that may reach the server twice: see http.c */
    bool use_proxy;             /* honour HTTPS_PROXY, NO_PROXY and friends */
    const char *operation;      /* counted under this name (http_stats.h); NULL: not counted */
};

struct http_response {
    bool sent; /* the server may have seen the request; set also when job_http fails */
    long status;
    char *body; /* owned, NUL-terminated */
    size_t body_len;
    char **headers; /* owned, "name: value", lower-case names, NULL-terminated */
};

void http_response_done(struct http_response *r);
/* Borrowed; NULL when absent. name in lower case. */
const char *http_response_header(const struct http_response *r, const char *name);

/* 0 for any HTTP status; a negative errno when there was no complete reply: -ECANCELED, -ETIMEDOUT,
 * -ECONNREFUSED, -EFBIG (beyond body_max), -EIO, ... with curl's own words in err. */
int job_http(struct job *job, const struct http_request *request, struct http_response *ret,
             struct err *err);

/* Closes the connections that no job has. Any thread. */
void http_close_idle(void);
