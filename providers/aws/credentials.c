/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS credentials: one cached key for all jobs, from the first source that is set up.
 *
 * Sources, in the order of AWS's SDKs: the options' static key; the profile that -aws-profile
 * names; a web identity token (IRSA: AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, exchanged at
 * STS); the profile of AWS_PROFILE or [default], if it says anything about credentials; a container
 * endpoint (ECS, EKS pod identity: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI); the role of
 * the node, from IMDS. The first that is *configured* is used, and its failure is the failure: going
 * on to the next would run with permissions that nobody meant.
 *
 * A profile holds a key, or names a role and whose key may assume it (source_profile,
 * credential_source), or a role and a token file. Profiles that run programs or use SSO are
 * refused by name: this daemon starts no helpers and has no browser.
 *
 * Cache. A key is good until MANDATORY_MS before its end. From ADVISORY_MS before it on, one job
 * fetches the next one while all others go on with the present one; later, or when AWS has refused
 * the key, all wait for that one job. They wait by looking every POLL_MS, so each keeps its own
 * deadline and cancel. A fetch that fails is everybody's failure who waited for it, once; when the
 * fetching job itself was cancelled, the next one takes over. A failed early refresh is only
 * logged, and tried again after RETRY_MS. Files and tokens are read anew at each fetch, so
 * rotation needs no restart.
 *
 * Keys are wiped before they are freed and never appear in logs or errors.
 */
#include "providers/aws/credentials.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "loop/rest.h"
#include "loop/throttle.h"
#include "providers/aws/hints.h"
#include "providers/aws/profile.h"
#include "providers/aws/query.h"
#include "providers/aws/xml.h"

#define ADVISORY_MS 300000
#define MANDATORY_MS 60000
#define RETRY_MS 30000
#define POLL_MS 20
#define TOKEN_FILE_MAX (64U << 10)
#define VALUE_MAX 16384 /* of a key's parts */
#define CHAIN_MAX 5     /* profiles that name each other */
#define ENDPOINT_TIMEOUT_MS 5000
#define ECS_ENDPOINT "http://169.254.170.2"
#define SESSION_MAX 64
#define ROLES_PATH "latest/meta-data/iam/security-credentials/"

struct credentials {
    const struct aws_config *config;
    struct aws_wire *wire;
    struct imds *imds;
    pthread_mutex_t lock;
    struct aws_key key;          /* lock; id NULL: none yet */
    char source[AWS_SOURCE_MAX]; /* lock */
    struct job *fetcher;         /* lock: the job that is at it, or NULL */
    uint64_t fetches;            /* lock: ended ones */
    struct err last;             /* lock: of the last fetch; code 0: it succeeded */
    int64_t fetched_ms;          /* lock: end of the last fetch, by AWS's clock */
};

/* One fetch. */
struct fetch {
    struct credentials *c;
    struct job *job;
    int64_t now_ms;
    struct profiles *profiles;
    char source[AWS_SOURCE_MAX];
};

/* What AssumeRole and AssumeRoleWithWebIdentity are told. */
struct role {
    const char *arn, *session, *external_id, *duration;
    const char *token;         /* web identity */
    const struct aws_key *key; /* else: who assumes it */
};

static int fetch_profile(struct fetch *f, const char *name, unsigned depth, struct aws_key *ret,
                         struct err *err);

/* NULL when unset or empty. */
static const char *env(const char *name)
{
    const char *value = getenv(name);

    return str_empty(value) ? NULL : value;
}

static void set_source(struct fetch *f, const char *text)
{
    snprintf(f->source, sizeof(f->source), "%s", text);
}

/* ---- parts of a key from outside ---- */

static bool good_part(const char *s)
{
    size_t len = s ? strlen(s) : 0;

    /* They go into headers. */
    return len > 0 && len <= VALUE_MAX && strspn(s, " \t\r\n") == 0 && !strpbrk(s, "\r\n");
}

static int key_make(const char *id, const char *secret, const char *token, const char *expires,
                    struct aws_key *ret, struct err *err)
{
    int64_t until = 0;

    if (!good_part(id) || !good_part(secret) || (token && !good_part(token)))
        return err_set(err, -EINVAL, "access key id, secret or token is missing or malformed");
    if (expires && clock_parse_rfc3339(expires, &until) < 0)
        return err_set(err, -EINVAL, "the expiration '%.40s' is no RFC 3339 time", expires);
    *ret = (struct aws_key){.id = xstrdup(id),
                            .secret = xstrdup(secret),
                            .token = token ? xstrdup(token) : NULL,
                            .expires_ms = until};
    return 0;
}

/* The endpoint's own refusal, {"Code": ..., "Message": ...} in either case. */
static int json_refusal(struct json_object *o, struct err *err)
{
    const char *code = NULL, *message = "";

    if (json_get_string(o, "Code", &code, NULL) < 0)
        (void)json_get_string(o, "code", &code, NULL);
    if (!code || str_eq(code, "Success"))
        return 0;
    if (json_get_string(o, "Message", &message, NULL) < 0)
        (void)json_get_string(o, "message", &message, NULL);
    return err_set(err, -EACCES, "%.100s: %.300s", code, message);
}

int credentials_parse_json(const char *text, size_t len, struct aws_key *ret, struct err *err)
{
    static const char *const names[] = {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"};
    const char *values[ARRAY_SIZE(names)] = {NULL};
    _cleanup_(json_putp) struct json_object *o = NULL;
    int r = json_parse(text, len, &o, err);

    if (r == 0)
        r = json_refusal(o, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++) {
        r = json_get_string(o, names[i], &values[i], err);
        r = r == -ENOENT ? 0 : r;
        if (values[i] && !values[i][0])
            values[i] = NULL;
    }
    return r < 0 ? r : key_make(values[0], values[1], values[2], values[3], ret, err);
}

/* ---- STS ---- */

static int key_from_xml(const struct http_response *reply, const char *action, struct aws_key *ret,
                        struct err *err)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    const struct xml_node *at;
    char id[256], secret[1024], token[VALUE_MAX + 1], expires[64], path[96];
    int r = xml_parse(reply->body, reply->body_len, &xml, err);

    if (r < 0)
        return r;
    snprintf(path, sizeof(path), "%sResult.Credentials", action);
    at = xml_find(xml_root(xml), path);
    if (!at)
        return err_set(err, -EPROTO, "the answer holds no credentials");
    if (xml_text(at, "AccessKeyId", id, sizeof(id)) < 0 ||
        xml_text(at, "SecretAccessKey", secret, sizeof(secret)) < 0 ||
        xml_text(at, "SessionToken", token, sizeof(token)) < 0 ||
        xml_text(at, "Expiration", expires, sizeof(expires)) < 0)
        return err_set(err, -EFBIG, "a part of the credentials is too long");
    r = key_make(id, secret, token[0] ? token : NULL, expires[0] ? expires : NULL, ret, err);
    secret_wipe(secret, sizeof(secret));
    secret_wipe(token, sizeof(token));
    return r;
}

/* An aws_key_fn that knows one key. */
static int fixed_key(void *arg, struct job *job, const char *refused, int64_t now_ms,
                     struct aws_key *ret, struct err *err)
{
    (void)job;
    (void)refused;
    (void)now_ms;
    (void)err;
    *ret = aws_key_copy(arg);
    return 0;
}

static void session_name(const struct fetch *f, const struct role *role, char ret[SESSION_MAX + 1])
{
    if (role->session)
        snprintf(ret, SESSION_MAX + 1, "%s", role->session);
    else
        snprintf(ret, SESSION_MAX + 1, "peerpod-%lld", (long long)f->now_ms);
}

static int assume(struct fetch *f, const struct role *role, struct aws_key *ret, struct err *err)
{
    const char *action = role->token ? "AssumeRoleWithWebIdentity" : "AssumeRole";
    _cleanup_(buf_done_secret) struct buf body = {0};
    struct http_response reply = {0};
    struct aws_error error = {0};
    struct aws_key signer = {0};
    char session[SESSION_MAX + 1];
    int r;

    session_name(f, role, session);
    query_begin(&body, action, QUERY_VERSION_STS);
    query_add(&body, role->arn, "RoleArn");
    query_add(&body, session, "RoleSessionName");
    query_add(&body, role->duration, "DurationSeconds");
    query_add(&body, role->external_id, "ExternalId");
    query_add(&body, role->token, "WebIdentityToken");
    if (body.failed)
        return err_set(err, -EINVAL, "the request for role %.200s is too long", role->arn);
    if (role->key)
        signer = *role->key;
    const struct aws_request q = {
        .service = "sts", .action = action, .body = body.data, .repeatable = true};
    r = aws_wire_call(f->c->wire, f->job, &q, role->key ? fixed_key : NULL, &signer, &reply, &error,
                      err);
    if (r < 0)
        aws_hint(&error, q.service, action, err);
    else
        r = key_from_xml(&reply, action, ret, err);
    if (reply.body)
        secret_wipe(reply.body, reply.body_len);
    http_response_done(&reply);
    return r < 0 ? err_wrap(err, r, "role %.200s", role->arn) : 0;
}

/* ---- web identity ---- */

/* A token's file; trailing line ends are not part of it. Owned, NUL-terminated. */
static int read_token(const char *path, char **ret, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = fs_read(AT_FDCWD, path, TOKEN_FILE_MAX, &text, &len, err);

    if (r < 0)
        return r;
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        text[--len] = '\0';
    if (len == 0 || strcspn(text, "\r\n") != len)
        return err_set(err, -EINVAL, "%s does not hold one token", path);
    *ret = TAKE_PTR(text);
    return 0;
}

static int fetch_web_identity(struct fetch *f, struct role *role, const char *file,
                              struct aws_key *ret, struct err *err)
{
    _cleanup_free_ char *token = NULL;
    int r = read_token(file, &token, err);

    if (r < 0)
        return r;
    role->token = token;
    r = assume(f, role, ret, err);
    role->token = NULL;
    secret_wipe(token, strlen(token));
    return r;
}

static int fetch_irsa(struct fetch *f, struct aws_key *ret, struct err *err)
{
    struct role role = {.arn = env("AWS_ROLE_ARN"), .session = env("AWS_ROLE_SESSION_NAME")};

    set_source(f, "the web identity token of AWS_WEB_IDENTITY_TOKEN_FILE");
    if (!role.arn)
        return err_set(err, -EACCES, "AWS_WEB_IDENTITY_TOKEN_FILE is set, AWS_ROLE_ARN is not");
    return fetch_web_identity(f, &role, env("AWS_WEB_IDENTITY_TOKEN_FILE"), ret, err);
}

/* ---- container endpoints ---- */

static bool local_address(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;

    if (strcasecmp(host, "localhost") == 0 || str_eq(host, "169.254.170.2") ||
        str_eq(host, "169.254.170.23"))
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) != 1)
        return false;
    return IN6_IS_ADDR_LOOPBACK(&v6) || strcasecmp(host, "fd00:ec2::23") == 0;
}

/* The token must not go to a stranger in plain text. */
static int check_endpoint(const char *url, struct err *err)
{
    const char *host;
    char name[256];
    size_t len;

    if (str_starts(url, "https://"))
        return 0;
    host = str_starts(url, "http://") ? url + 7 : "";
    len = strcspn(host, "/?#");
    if (host[0] == '[') {
        host++;
        len = strcspn(host, "]");
    } else {
        len = MIN(len, strcspn(host, ":"));
    }
    if (len < sizeof(name) && !memchr(host, '@', len)) {
        snprintf(name, sizeof(name), "%.*s", (int)len, host);
        if (local_address(name))
            return 0;
    }
    return err_set(err, -EACCES,
                   "AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or http to this machine, "
                   "169.254.170.2, 169.254.170.23 or [fd00:ec2::23]");
}

/* "Authorization: ...", owned; NULL when none is set. */
static int endpoint_authorization(char **ret, struct err *err)
{
    const char *file = env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    const char *set = env("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    _cleanup_free_ char *token = NULL;
    int r = 0;

    if (file)
        r = read_token(file, &token, err);
    else if (set && strpbrk(set, "\r\n"))
        return err_set(err, -EINVAL, "AWS_CONTAINER_AUTHORIZATION_TOKEN holds a line break");
    else if (set)
        token = xstrdup(set);
    if (r < 0)
        return r;
    *ret = token ? str_asprintf("Authorization: %s", token) : NULL;
    if (token)
        secret_wipe(token, strlen(token));
    return 0;
}

static int endpoint_fetch(struct fetch *f, const char *url, struct http_response *ret,
                          struct err *err)
{
    _cleanup_free_ char *authorization = NULL;
    const char *ca = f->c->config->ca_bundle;
    int r = endpoint_authorization(&authorization, err);
    const char *headers[] = {"Accept: application/json", authorization, NULL};
    const struct http_request q = {.method = "GET",
                                   .url = url,
                                   .headers = headers,
                                   .body_max = TOKEN_FILE_MAX,
                                   .timeout_ms = ENDPOINT_TIMEOUT_MS,
                                   .connect_timeout_ms = ENDPOINT_TIMEOUT_MS / 2,
                                   .ca_file = str_empty(ca) ? NULL : ca,
                                   .use_proxy = str_starts(url, "https://"),
                                   .operation = "container.credentials"};

    if (r < 0)
        return r;
    r = rest_fetch(f->job, &q, ret, err);
    if (authorization)
        secret_wipe(authorization, strlen(authorization));
    return r;
}

static int fetch_container(struct fetch *f, struct aws_key *ret, struct err *err)
{
    const char *relative = env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    _cleanup_free_ char *url = relative ? str_asprintf(ECS_ENDPOINT "%s", relative)
                                        : xstrdup(env("AWS_CONTAINER_CREDENTIALS_FULL_URI"));
    struct http_response reply = {0};
    int r = check_endpoint(url, err);

    set_source(f, relative ? "the container's role (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI)"
                           : "the pod's identity (AWS_CONTAINER_CREDENTIALS_FULL_URI)");
    if (r == 0)
        r = endpoint_fetch(f, url, &reply, err);
    if (r < 0)
        return r;
    if (reply.status == 200)
        r = credentials_parse_json(reply.body, reply.body_len, ret, err);
    else
        r = err_set(err, -EACCES, "%.200s: HTTP %ld: %.200s", url, reply.status, reply.body);
    if (reply.body)
        secret_wipe(reply.body, reply.body_len);
    http_response_done(&reply);
    return r;
}

/* ---- the node's role ---- */

static int fetch_node(struct fetch *f, struct aws_key *ret, struct err *err)
{
    _cleanup_free_ char *roles = NULL, *text = NULL, *path = NULL;
    int r;

    set_source(f, "the node's role (IMDS)");
    r = imds_get(f->c->imds, f->job, ROLES_PATH, &roles, err);
    if (r == -ENOENT)
        return err_wrap(err, -EACCES, "the node has no IAM role");
    if (r < 0)
        return r;
    path = str_asprintf(ROLES_PATH "%.*s", (int)MIN(strcspn(roles, "\r\n"), 256U), roles);
    r = imds_get(f->c->imds, f->job, path, &text, err);
    if (r < 0)
        return r;
    r = credentials_parse_json(text, strlen(text), ret, err);
    secret_wipe(text, strlen(text));
    return r < 0 ? err_wrap(err, r, "%s", path) : 0;
}

/* What every SDK tries when nothing else is set up. */
static int fetch_ambient(struct fetch *f, struct aws_key *ret, struct err *err)
{
    int r;

    if (env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || env("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
        return fetch_container(f, ret, err);
    r = fetch_node(f, ret, err);
    if (r == -ECANCELED || r == 0)
        return r;
    return err_wrap(err, r,
                    "no access key (-aws-access-key-id), profile, web identity or pod "
                    "identity is set, and the node's role does not help");
}

/* ---- profiles ---- */

static int fetch_profile_key(struct fetch *f, const char *name, struct aws_key *ret,
                             struct err *err)
{
    const struct profiles *p = f->profiles;

    return key_make(profiles_get(p, name, "aws_access_key_id"),
                    profiles_get(p, name, "aws_secret_access_key"),
                    profiles_get(p, name, "aws_session_token"), NULL, ret, err);
}

static int fetch_named_source(struct fetch *f, const char *word, struct aws_key *ret,
                              struct err *err)
{
    if (strcasecmp(word, "Ec2InstanceMetadata") == 0)
        return fetch_node(f, ret, err);
    if (strcasecmp(word, "EcsContainer") == 0)
        return fetch_ambient(f, ret, err);
    if (strcasecmp(word, "Environment") == 0)
        return key_make(env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY"),
                        env("AWS_SESSION_TOKEN"), NULL, ret, err);
    return err_set(err, -EINVAL,
                   "credential_source '%.40s' is none of Ec2InstanceMetadata, EcsContainer and "
                   "Environment",
                   word);
}

/* Who assumes the profile's role. */
static int fetch_assumer(struct fetch *f, const char *name, unsigned depth, struct aws_key *ret,
                         struct err *err)
{
    const char *from = profiles_get(f->profiles, name, "source_profile");
    const char *word = profiles_get(f->profiles, name, "credential_source");

    if (from && str_eq(from, name))
        return fetch_profile_key(f, name, ret, err);
    if (from)
        return fetch_profile(f, from, depth + 1, ret, err);
    if (word)
        return fetch_named_source(f, word, ret, err);
    return err_set(err, -EINVAL,
                   "a role_arn needs source_profile, credential_source or "
                   "web_identity_token_file");
}

static int fetch_role(struct fetch *f, const char *name, unsigned depth, struct aws_key *ret,
                      struct err *err)
{
    const struct profiles *p = f->profiles;
    const char *file = profiles_get(p, name, "web_identity_token_file");
    struct role role = {.arn = profiles_get(p, name, "role_arn"),
                        .session = profiles_get(p, name, "role_session_name"),
                        .external_id = profiles_get(p, name, "external_id"),
                        .duration = profiles_get(p, name, "duration_seconds")};
    struct aws_key key = {0};
    int r;

    if (profiles_get(p, name, "mfa_serial"))
        return err_set(err, -ENOTSUP, "mfa_serial: a daemon cannot ask for a code");
    if (file)
        return fetch_web_identity(f, &role, file, ret, err);
    r = fetch_assumer(f, name, depth, &key, err);
    if (r < 0)
        return r;
    role.key = &key;
    r = assume(f, &role, ret, err);
    aws_key_done(&key);
    return r;
}

static int refuse_foreign(const struct profiles *p, const char *name, struct err *err)
{
    static const char *const keys[] = {"credential_process", "sso_session", "sso_start_url"};

    for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
        if (profiles_get(p, name, keys[i]))
            return err_set(err, -ENOTSUP,
                           "%s is not supported: give the daemon a role (IRSA, pod identity, the "
                           "node's) or a key",
                           keys[i]);
    return 0;
}

/* Does it say where credentials come from? */
static bool profile_speaks(const struct profiles *p, const char *name)
{
    static const char *const keys[] = {
        "aws_access_key_id", "role_arn",      "credential_process",     "credential_source",
        "sso_session",       "sso_start_url", "web_identity_token_file"};

    for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
        if (profiles_get(p, name, keys[i]))
            return true;
    return false;
}

static int fetch_profile(struct fetch *f, const char *name, unsigned depth, struct aws_key *ret,
                         struct err *err)
{
    int r;

    if (depth >= CHAIN_MAX)
        r = err_set(err, -ELOOP, "more than %d profiles in a row", CHAIN_MAX);
    else if (!profiles_has(f->profiles, name))
        r = err_set(err, -ENOENT,
                    "there is no such profile in the shared credentials and config "
                    "files");
    else if (profiles_get(f->profiles, name, "role_arn"))
        r = fetch_role(f, name, depth, ret, err);
    else if (profiles_get(f->profiles, name, "aws_access_key_id"))
        r = fetch_profile_key(f, name, ret, err);
    else if ((r = refuse_foreign(f->profiles, name, err)) == 0)
        r = fetch_ambient(f, ret, err);
    return r < 0 ? err_wrap(err, r, "profile %.64s", name) : 0;
}

/* ---- the order ---- */

static int fetch_from(struct fetch *f, struct aws_key *ret, struct err *err)
{
    const struct aws_config *config = f->c->config;
    const char *token = config->session_token, *name;
    bool asked;
    int r;

    if (!str_empty(config->access_key_id) && !str_empty(config->secret_key)) {
        set_source(f, "the access key of the options");
        return key_make(config->access_key_id, config->secret_key, str_empty(token) ? NULL : token,
                        NULL, ret, err);
    }
    if (str_empty(config->profile) && env("AWS_WEB_IDENTITY_TOKEN_FILE"))
        return fetch_irsa(f, ret, err);
    r = profiles_load(&f->profiles, err);
    if (r < 0)
        return r;
    name = aws_profile_name(config, &asked);
    if (!asked && !profile_speaks(f->profiles, name))
        return fetch_ambient(f, ret, err);
    r = fetch_profile(f, name, 0, ret, err);
    snprintf(f->source, sizeof(f->source), "profile %.100s", name);
    return r;
}

/* ---- the cache ---- */

struct credentials *credentials_new(const struct aws_config *config, struct aws_wire *wire,
                                    struct imds *imds)
{
    struct credentials *c = xcalloc(1, sizeof(*c));

    c->config = config;
    c->wire = wire;
    c->imds = imds;
    pthread_mutex_init(&c->lock, NULL);
    if (str_empty(config->access_key_id) != str_empty(config->secret_key))
        log_warn("of -aws-access-key-id and -aws-secret-key only one is set: it is ignored");
    return c;
}

void credentials_free(struct credentials *c)
{
    if (!c)
        return;
    aws_key_done(&c->key);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void credentials_source(struct credentials *c, char ret[AWS_SOURCE_MAX])
{
    pthread_mutex_lock(&c->lock);
    memcpy(ret, c->source, AWS_SOURCE_MAX);
    pthread_mutex_unlock(&c->lock);
}

/* lock, which is let go meanwhile. */
static int fetch(struct credentials *c, struct job *job, int64_t now_ms, struct err *err)
{
    struct fetch f = {.c = c, .job = job, .now_ms = now_ms};
    struct err now = ERR_INIT;
    struct aws_key key = {0};
    int r;

    c->fetcher = job;
    pthread_mutex_unlock(&c->lock);
    r = fetch_from(&f, &key, &now);
    profiles_free(f.profiles);
    if (r < 0 && job_check(job) < 0)
        r = now.code = job_check(job);
    pthread_mutex_lock(&c->lock);
    c->fetcher = NULL;
    c->fetches++;
    c->last = now;
    c->fetched_ms = now_ms;
    if (r < 0)
        return err_set(err, r, "credentials: %s", err_text(&now));
    aws_key_done(&c->key);
    c->key = key;
    memcpy(c->source, f.source, sizeof(c->source));
    return 0;
}

enum need { NEED_NOTHING, NEED_SOON, NEED_NOW };

/* lock */
static enum need need_of(const struct credentials *c, const char *refused, int64_t now_ms)
{
    int64_t left = c->key.expires_ms - now_ms;

    if (!c->key.id || (refused && str_eq(refused, c->key.id)) ||
        (c->key.expires_ms != 0 && left <= 0))
        return NEED_NOW;
    if (c->key.expires_ms == 0 || left > ADVISORY_MS || llabs(now_ms - c->fetched_ms) < RETRY_MS)
        return NEED_NOTHING;
    return left > MANDATORY_MS ? NEED_SOON : NEED_NOW;
}

/* lock, which is let go meanwhile. Another job is fetching; seen: c->fetches when this one came. */
static int wait_for_other(struct credentials *c, struct job *job, uint64_t seen, int64_t *since_ms,
                          struct err *err)
{
    int r;

    throttle_follow(job, c->fetcher, since_ms);
    pthread_mutex_unlock(&c->lock);
    r = job_sleep(job, POLL_MS);
    pthread_mutex_lock(&c->lock);
    job_say(job, NULL);
    if (r < 0)
        return err_set(err, r, "%s while waiting for credentials",
                       r == -ECANCELED ? "cancelled" : "no time left");
    /* The end of the other job alone is no verdict about the credentials. */
    if (c->fetches != seen && c->last.code < 0 && c->last.code != -ECANCELED &&
        c->last.code != -ETIMEDOUT)
        return err_set(err, c->last.code, "credentials: %s", err_text(&c->last));
    return 0;
}

/* lock. Leaves a key that may be used in c->key. */
static int ensure(struct credentials *c, struct job *job, const char *refused, int64_t now_ms,
                  struct err *err)
{
    uint64_t seen = c->fetches;
    int64_t since_ms = 0;
    struct err why = ERR_INIT;

    for (;;) {
        enum need need = need_of(c, refused, now_ms);
        int r;

        if (need == NEED_NOTHING || (need == NEED_SOON && c->fetcher))
            return 0;
        /* Also when it is the refused one again: there is no other. */
        if (c->fetches != seen && c->last.code == 0)
            return 0;
        if (c->fetcher) {
            r = wait_for_other(c, job, seen, &since_ms, err);
            if (r < 0)
                return r;
            continue;
        }
        r = fetch(c, job, now_ms, &why);
        if (r == 0)
            return 0;
        if (need_of(c, refused, now_ms) == NEED_NOW)
            return err_set(err, r, "%s", err_text(&why));
        log_warn("%s; the present ones are used until they expire", err_text(&why));
        return 0;
    }
}

int credentials_get(void *arg, struct job *job, const char *refused, int64_t now_ms,
                    struct aws_key *ret, struct err *err)
{
    struct credentials *c = arg;
    int r;

    pthread_mutex_lock(&c->lock);
    r = ensure(c, job, refused, now_ms, err);
    if (r == 0)
        *ret = aws_key_copy(&c->key);
    pthread_mutex_unlock(&c->lock);
    return r;
}
