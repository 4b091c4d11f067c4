/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IMDSv2: a PUT yields a session token, GETs carry it.
 *
 * The token is asked for with the longest life (six hours), kept for all jobs and replaced when a
 * GET answers 401, or before it ends; several jobs may fetch one at the same time at start, which
 * does no harm. There is no fall-back to version 1: nodes that still have it have version 2 too.
 *
 * The service is on this machine, behind a link-local address: no proxy, short time-outs, few
 * tries. A PUT that is never answered usually means a pod without host network behind the default
 * hop limit of 1: the packet with the token is dropped on its way back. The error says so.
 */
#include "providers/aws/imds.h"

#include <errno.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/str.h"
#include "loop/rest.h"

#define TOKEN_TTL_S 21600
#define TOKEN_MARGIN_S 300
#define TOKEN_MAX 1024
#define TRY_TIMEOUT_MS 2000
#define TOKEN_HEADER "X-aws-ec2-metadata-token"

struct imds {
    const char *endpoint;
    pthread_mutex_t lock;
    char token[TOKEN_MAX + 1]; /* lock */
    int64_t token_until_ms;    /* lock; CLOCK_MONOTONIC */
};

struct imds *imds_new(const char *endpoint)
{
    struct imds *imds = xcalloc(1, sizeof(*imds));

    imds->endpoint = endpoint;
    pthread_mutex_init(&imds->lock, NULL);
    return imds;
}

void imds_free(struct imds *imds)
{
    if (!imds)
        return;
    pthread_mutex_destroy(&imds->lock);
    secret_wipe(imds->token, sizeof(imds->token));
    free(imds);
}

static int request(struct imds *imds, struct job *job, const char *method, const char *path,
                   const char *header, struct http_response *ret, struct err *err)
{
    const char *headers[] = {header, NULL};
    size_t len = strlen(imds->endpoint);
    _cleanup_free_ char *url = str_asprintf(
        "%s%s%s", imds->endpoint, len > 0 && imds->endpoint[len - 1] == '/' ? "" : "/", path);
    const struct http_request q = {.method = method,
                                   .url = url,
                                   .headers = headers,
                                   .body_max = IMDS_VALUE_MAX,
                                   .timeout_ms = TRY_TIMEOUT_MS,
                                   .connect_timeout_ms = TRY_TIMEOUT_MS / 2,
                                   .repeatable = true,
                                   .operation = str_eq(method, "PUT") ? "imds.token" : "imds.get"};

    return rest_fetch(job, &q, ret, err);
}

static int token_fetch(struct imds *imds, struct job *job, char ret[TOKEN_MAX + 1], struct err *err)
{
    struct http_response reply = {0};
    char ttl[80];
    int r;

    snprintf(ttl, sizeof(ttl), TOKEN_HEADER "-ttl-seconds: %d", TOKEN_TTL_S);
    r = request(imds, job, "PUT", "latest/api/token", ttl, &reply, err);
    if (r == -ETIMEDOUT && job_check(job) == 0)
        return err_wrap(err, r,
                        "the instance metadata service does not answer (a pod without host "
                        "network needs a metadata hop limit of 2)");
    if (r < 0)
        return err_wrap(err, r, "the instance metadata service");
    if (reply.status != 200 || reply.body_len == 0 || reply.body_len > TOKEN_MAX ||
        strcspn(reply.body, "\r\n") != reply.body_len)
        r = err_set(err, -EREMOTEIO, "the instance metadata service gives no token (HTTP %ld)",
                    reply.status);
    else
        memcpy(ret, reply.body, reply.body_len + 1);
    http_response_done(&reply);
    return r;
}

/* stale: a token that was refused, or NULL. */
static int token_get(struct imds *imds, struct job *job, const char *stale, char ret[TOKEN_MAX + 1],
                     struct err *err)
{
    bool good;
    int r;

    pthread_mutex_lock(&imds->lock);
    good = imds->token[0] && clock_mono_ms() < imds->token_until_ms &&
           !(stale && str_eq(stale, imds->token));
    memcpy(ret, imds->token, sizeof(imds->token));
    pthread_mutex_unlock(&imds->lock);
    if (good)
        return 0;
    r = token_fetch(imds, job, ret, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&imds->lock);
    memcpy(imds->token, ret, sizeof(imds->token));
    imds->token_until_ms = clock_mono_ms() + (TOKEN_TTL_S - TOKEN_MARGIN_S) * 1000;
    pthread_mutex_unlock(&imds->lock);
    return 0;
}

static int get_once(struct imds *imds, struct job *job, const char *path, const char *stale,
                    char token[TOKEN_MAX + 1], struct http_response *ret, struct err *err)
{
    char header[TOKEN_MAX + 64];
    int r = token_get(imds, job, stale, token, err);

    if (r < 0)
        return r;
    snprintf(header, sizeof(header), TOKEN_HEADER ": %s", token);
    r = request(imds, job, "GET", path, header, ret, err);
    secret_wipe(header, sizeof(header));
    return r;
}

static bool switched_off(void)
{
    const char *text = getenv("AWS_EC2_METADATA_DISABLED");

    return text && strcasecmp(text, "true") == 0;
}

int imds_get(struct imds *imds, struct job *job, const char *path, char **ret, struct err *err)
{
    struct http_response reply = {0};
    char token[TOKEN_MAX + 1] = "", again[TOKEN_MAX + 1];
    int r;

    if (switched_off())
        return err_set(err, -ENODEV, "AWS_EC2_METADATA_DISABLED is set");
    r = get_once(imds, job, path, NULL, token, &reply, err);
    if (r == 0 && reply.status == 401) {
        http_response_done(&reply);
        memcpy(again, token, sizeof(again));
        r = get_once(imds, job, path, again, token, &reply, err);
    }
    secret_wipe(token, sizeof(token));
    if (r < 0)
        return r;
    if (reply.status == 200)
        *ret = TAKE_PTR(reply.body);
    else
        r = err_set(err, reply.status == 404 ? -ENOENT : -EREMOTEIO,
                    "the instance metadata service: %s: HTTP %ld", path, reply.status);
    http_response_done(&reply);
    return r;
}
