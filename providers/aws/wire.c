/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests on the wire.
 *
 * A service is at the URL of its own option, of the option for all services, or at AWS's name for
 * it in the region's partition. rest.c decides about tries; each is signed anew, with the time of
 * AWS's clock and a key that is asked for anew, so that a try after a pause or a refusal is never
 * dated in the past or signed with what has expired.
 *
 * Signed are Host, Content-Type and the x-amz-* headers: those are what decides about the meaning,
 * and proxies leave them alone.
 *
 * EC2 counts calls by groups, each with a token bucket of its own (EC2 API throttling): reads,
 * changes, and RunInstances by itself. So do we: deletes do not queue behind creates.
 */
#include "providers/aws/wire.h"

#include <errno.h>
#include <pthread.h>

#include "base/str.h"
#include "loop/rest.h"
#include "providers/aws/error.h"
#include "providers/aws/profile.h"
#include "providers/aws/sigv4.h"

#define HEADERS_MAX 8
#define CONTENT_TYPE_FORM "application/x-www-form-urlencoded"
#define CONTENT_TYPE_JSON "application/x-amz-json-1.1"

struct aws_wire {
    const struct aws_config *config;
    struct imds *imds;
    struct rest *ec2, *sts, *quotas;
    pthread_mutex_t lock;
    char region[AWS_REGION_MAX]; /* lock; "": not known yet */
};

/* One aws_wire_call. Of RunInstances every try counts: a refusal after one without an answer is no word
 * about that one, which may have made the instance. */
struct wire_call {
    struct aws_wire *wire;
    const struct aws_request *request;
    char region[AWS_REGION_MAX];
    aws_key_fn *key_fn;
    void *key_arg;
    char *key_id; /* of the last try */
    char *url;
    const char *authority, *path; /* in url */
    size_t authority_len;
    char *headers[HEADERS_MAX]; /* of the try under way, NULL-terminated */
    struct aws_error *error;
    bool open, unsure; /* a try is without an answer; an earlier one remained so */
};

/* Regions' prefixes and the domains of their partitions; the last one is everybody else's. */
static const struct {
    const char *prefix, *domain;
} partitions[] = {
    {"cn-", "amazonaws.com.cn"}, {"us-isob-", "sc2s.sgov.gov"}, {"us-isof-", "csp.hci.ic.gov"},
    {"us-iso-", "c2s.ic.gov"},   {"eusc-", "amazonaws.eu"},     {"eu-isoe-", "cloud.adc-e.uk"},
    {"", "amazonaws.com"},
};

void aws_key_done(struct aws_key *key)
{
    if (key->secret)
        secret_wipe(key->secret, strlen(key->secret));
    if (key->token)
        secret_wipe(key->token, strlen(key->token));
    free(key->id);
    free(key->secret);
    free(key->token);
    *key = (struct aws_key){0};
}

struct aws_key aws_key_copy(const struct aws_key *key)
{
    return (struct aws_key){.id = xstrdup(key->id),
                            .secret = xstrdup(key->secret),
                            .token = key->token ? xstrdup(key->token) : NULL,
                            .expires_ms = key->expires_ms};
}

struct aws_wire *aws_wire_new(const struct aws_config *config, struct imds *imds)
{
    struct aws_wire *wire = xcalloc(1, sizeof(*wire));

    wire->config = config;
    wire->imds = imds;
    pthread_mutex_init(&wire->lock, NULL);
    wire->ec2 = rest_new("AWS", "ec2");
    wire->sts = rest_new("AWS", "sts");
    wire->quotas = rest_new("AWS", "servicequotas");
    return wire;
}

void aws_wire_free(struct aws_wire *wire)
{
    if (!wire)
        return;
    rest_free(wire->ec2);
    rest_free(wire->sts);
    rest_free(wire->quotas);
    pthread_mutex_destroy(&wire->lock);
    free(wire);
}

int64_t aws_wire_now_ms(const struct aws_wire *wire)
{
    return rest_now_ms(wire->ec2);
}

static const char *domain_of(const char *region)
{
    size_t i = 0;

    while (!str_starts(region, partitions[i].prefix))
        i++;
    return partitions[i].domain;
}

static int check_region(const char *region, struct err *err)
{
    size_t len = strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-");

    if (len == 0 || region[len] || len >= AWS_REGION_MAX)
        return err_set(err, -EINVAL, "the AWS region '%.80s' is not of the form us-east-1", region);
    return 0;
}

/* Owned; NULL when nothing says it. */
static char *configured_region(const struct aws_config *config)
{
    const char *from_env = getenv("AWS_DEFAULT_REGION");

    if (!str_empty(config->region))
        return xstrdup(config->region);
    if (!str_empty(from_env))
        return xstrdup(from_env);
    return aws_profile_region(config);
}

int aws_wire_region(struct aws_wire *wire, struct job *job, char ret[AWS_REGION_MAX],
                    struct err *err)
{
    _cleanup_free_ char *region = NULL;
    int r;

    pthread_mutex_lock(&wire->lock);
    memcpy(ret, wire->region, AWS_REGION_MAX);
    pthread_mutex_unlock(&wire->lock);
    if (ret[0])
        return 0;
    region = configured_region(wire->config);
    if (!region &&
        (r = imds_get(wire->imds, job, "latest/meta-data/placement/region", &region, err)) < 0)
        return err_wrap(err, r,
                        "no AWS region is set (-aws-region, AWS_REGION, the profile), and "
                        "the node does not know its own");
    r = check_region(region, err);
    if (r < 0)
        return r;
    snprintf(ret, AWS_REGION_MAX, "%s", region);
    pthread_mutex_lock(&wire->lock);
    memcpy(wire->region, ret, AWS_REGION_MAX);
    pthread_mutex_unlock(&wire->lock);
    return 0;
}

/* Owned, with a path. */
static char *endpoint_url(const struct aws_config *config, const char *service, const char *region)
{
    const char *own = str_eq(service, "ec2")   ? config->endpoint_url_ec2
                      : str_eq(service, "sts") ? config->endpoint_url_sts
                                               : NULL;

    if (str_empty(own))
        own = config->endpoint_url;
    if (str_empty(own))
        return str_asprintf("https://%s.%s.%s/", service, region, domain_of(region));
    return str_asprintf("%s%s", own, own[strlen(own) - 1] == '/' ? "" : "/");
}

/* Where host and path are in the URL, which aws_client_new has checked. */
static void split_url(struct wire_call *c)
{
    c->authority = strstr(c->url, "://") + 3;
    c->authority_len = strcspn(c->authority, "/");
    c->path = c->authority + c->authority_len;
}

static void drop_headers(struct wire_call *c)
{
    for (size_t i = 0; c->headers[i]; i++) {
        secret_wipe(c->headers[i], strlen(c->headers[i]));
        free(c->headers[i]);
        c->headers[i] = NULL;
    }
}

static void sign(struct wire_call *c, const struct aws_key *key, int64_t now_ms, size_t n)
{
    char date[SIGV4_DATE_SIZE], hash[65];
    struct sigv4 s = {.method = "POST",
                      .path = c->path,
                      .headers = (const char *const *)c->headers,
                      .body = c->request->body,
                      .body_len = strlen(c->request->body),
                      .date = date,
                      .region = c->region,
                      .service = c->request->service,
                      .key_id = key->id,
                      .secret = key->secret};

    sigv4_date(now_ms, date);
    c->headers[n++] = str_asprintf("X-Amz-Date: %s", date);
    /* Not needed by AWS for these services, but the SDKs send it, and a proxy that writes the form
     * anew ('+' for "%20") can then still check the signature. */
    sigv4_payload_hash(c->request->body, strlen(c->request->body), hash);
    c->headers[n++] = str_asprintf("X-Amz-Content-Sha256: %s", hash);
    if (key->token)
        c->headers[n++] = str_asprintf("X-Amz-Security-Token: %s", key->token);
    c->headers[n] = sigv4_authorization(&s);
}

static int prepare(void *arg, struct job *job, const struct rest_try *try, struct http_request *ret,
                   struct err *err)
{
    struct wire_call *c = arg;
    struct aws_key key = {0};
    const char *target = c->request->target;
    size_t n = 0;
    int r;

    drop_headers(c);
    c->unsure |= c->open;
    c->open = false;
    c->headers[n++] = str_asprintf("Host: %.*s", (int)c->authority_len, c->authority);
    c->headers[n++] =
        str_asprintf("Content-Type: %s", target ? CONTENT_TYPE_JSON : CONTENT_TYPE_FORM);
    if (target)
        c->headers[n++] = str_asprintf("X-Amz-Target: %s", target);
    if (c->key_fn) {
        r = c->key_fn(c->key_arg, job, try->renew ? c->key_id : NULL, try->now_ms, &key, err);
        if (r < 0)
            return r;
        sign(c, &key, try->now_ms, n);
        free(c->key_id);
        c->key_id = xstrdup(key.id);
        aws_key_done(&key);
    }
    *ret = (struct http_request){
        .method = "POST",
        .url = c->url,
        .headers = (const char *const *)c->headers,
        .body = c->request->body,
        .body_len = strlen(c->request->body),
        .body_max = c->request->body_max,
        .timeout_ms = c->request->timeout_ms,
        .ca_file = str_empty(c->wire->config->ca_bundle) ? NULL : c->wire->config->ca_bundle,
        .use_proxy = true,
    };
    c->open = true;
    return 0;
}

static enum rest_verdict judge(void *arg, const struct http_response *reply,
                               char reason[THROTTLE_REASON_MAX], struct err *err)
{
    struct wire_call *c = arg;
    enum rest_verdict verdict;
    struct err words = ERR_INIT;

    c->open = false;
    if (reply->status >= 200 && reply->status < 300) {
        *c->error = (struct aws_error){.status = reply->status};
        return REST_DONE;
    }
    verdict = aws_error_judge(reply, c->error, &words);
    c->unsure |= verdict == REST_BROKEN;
    if (c->request->dry_run && str_eq(c->error->code, "DryRunOperation"))
        return REST_DONE;
    snprintf(reason, THROTTLE_REASON_MAX, "%s", c->error->code);
    err_set(err, words.code, "%s", err_text(&words));
    return verdict;
}

static const char *bucket_of(const struct aws_request *request)
{
    if (str_eq(request->action, "RunInstances"))
        return request->action;
    return str_starts(request->action, "Describe") || str_starts(request->action, "Get") ? "read"
                                                                                         : "change";
}

static struct rest *rest_of(const struct aws_wire *wire, const char *service)
{
    if (str_eq(service, "ec2"))
        return wire->ec2;
    return str_eq(service, "sts") ? wire->sts : wire->quotas;
}

int aws_wire_call(struct aws_wire *wire, struct job *job, const struct aws_request *request,
                  aws_key_fn *key, void *key_arg, struct http_response *ret,
                  struct aws_error *ret_error, struct err *err)
{
    struct aws_error error = {0};
    struct wire_call c = {.wire = wire,
                          .request = request,
                          .key_fn = key,
                          .key_arg = key_arg,
                          .error = ret_error ? ret_error : &error};
    const struct rest_op op = {.name = request->action,
                               .bucket = bucket_of(request),
                               .repeatable = request->repeatable,
                               .seen = str_eq(request->action, "RunInstances"),
                               .budget_ms = request->budget_ms,
                               .prepare = prepare,
                               .judge = judge,
                               .arg = &c};
    int r;

    *c.error = (struct aws_error){0};
    *ret = (struct http_response){0};
    r = aws_wire_region(wire, job, c.region, err);
    if (r < 0)
        return r;
    c.url = endpoint_url(wire->config, request->service, c.region);
    split_url(&c);
    r = rest_call(rest_of(wire, request->service), job, &op, ret, err);
    c.error->unsure = r < 0 && (c.unsure || c.open);
    drop_headers(&c);
    free(c.url);
    free(c.key_id);
    if (r < 0)
        http_response_done(ret);
    return r;
}
