/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signatures: all vectors of awslabs/aws-c-auth, step by step, in header form and in query form (the
 * product has no use for the latter, but its canonical requests exercise the same code); and every
 * request that AWS's own SDK and command line have sent in the recordings, signed again.
 */
#include "unit/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "providers/aws/sigv4.h"

#define FILE_MAX (16U << 20)
#define HEADERS_MAX 32
#define VECTORS 38
#define SIGNED_RECORDINGS_MIN 45

/* ---- reading ---- */

static char *corpus_path(const char *name)
{
    const char *dir = getenv("PEERPOD_CORPUS");
    return str_asprintf("%s/%s", dir ? dir : PP_CORPUS_DEFAULT, name);
}

/* Owned; fails the test when it is absent. */
static char *read_file(const char *path, size_t *ret_len)
{
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t len;
    if (fs_read(AT_FDCWD, path, FILE_MAX, &text, ret_len ? ret_len : &len, &err) < 0)
        fail_msg("%s", err_text(&err));
    return text;
}

static void need_corpus(const char *path)
{
    if (access(path, R_OK) == 0)
        return;
    print_message("skipped: no %s (PEERPOD_CORPUS)\n", path);
    assert_false(str_eq(getenv("STRICT"), "1"));
    skip();
}

struct vector {
    const char *dir;
    char *text; /* request.txt, cut into pieces */
    char *method, *path, *query, *body;
    char *headers[HEADERS_MAX];
    size_t n_headers;
    struct json_object *context;
    const char *id, *secret, *token;
    bool normalize, sign_body, omit_token;
    char date[SIGV4_DATE_SIZE];
};

static void add_header(struct vector *v, char *line)
{
    assert_true(v->n_headers + 1 < HEADERS_MAX);
    v->headers[v->n_headers++] = line;
}

/* "Name: value" lines; one that begins with a blank goes on with the value above. */
static void take_headers(struct vector *v, char *at)
{
    while (*at && *at != '\n') {
        char *end = at + strcspn(at, "\n");
        bool more = *end != '\0';
        *end = '\0';
        if (*at == ' ') {
            char **last = &v->headers[v->n_headers - 1];
            char *longer = str_asprintf("%s\n%s", *last, at);
            free(*last);
            *last = longer;
        } else {
            add_header(v, xstrdup(at));
        }
        at = end + more;
    }
    v->body = *at == '\n' ? at + 1 : at;
}

/* "GET /path with blanks?query HTTP/1.1" */
static void take_request(struct vector *v)
{
    char *end = strchr(v->text, '\n'), *version;
    assert_non_null(end);
    *end = '\0';
    version = strstr(v->text, " HTTP/1.1");
    assert_non_null(version);
    *version = '\0';
    v->method = v->text;
    v->path = strchr(v->text, ' ');
    *v->path++ = '\0';
    v->query = strchr(v->path, '?');
    if (v->query)
        *v->query++ = '\0';
    take_headers(v, end + 1);
}

static void take_context(struct vector *v, const char *text, size_t len)
{
    struct err err = ERR_INIT;
    struct json_object *credentials;
    const char *timestamp;
    int64_t ms;
    assert_int_equal(json_parse(text, len, &v->context, &err), 0);
    assert_int_equal(json_get_object(v->context, "credentials", &credentials, &err), 0);
    assert_int_equal(json_get_string(credentials, "access_key_id", &v->id, &err), 0);
    assert_int_equal(json_get_string(credentials, "secret_access_key", &v->secret, &err), 0);
    (void)json_get_string(credentials, "token", &v->token, &err);
    assert_int_equal(json_get_bool(v->context, "normalize", &v->normalize, &err), 0);
    assert_int_equal(json_get_bool(v->context, "sign_body", &v->sign_body, &err), 0);
    (void)json_get_bool(v->context, "omit_session_token", &v->omit_token, &err);
    assert_int_equal(json_get_string(v->context, "timestamp", &timestamp, &err), 0);
    assert_int_equal(clock_parse_rfc3339(timestamp, &ms), 0);
    sigv4_date(ms, v->date);
}

static void vector_read(struct vector *v, const char *dir)
{
    _cleanup_free_ char *request = str_asprintf("%s/request.txt", dir);
    _cleanup_free_ char *context = str_asprintf("%s/context.json", dir);
    _cleanup_free_ char *text = NULL;
    size_t len;
    *v = (struct vector){.dir = dir};
    text = read_file(context, &len);
    take_context(v, text, len);
    v->text = read_file(request, NULL);
    take_request(v);
}

static void vector_done(struct vector *v)
{
    for (size_t i = 0; i < v->n_headers; i++)
        free(v->headers[i]);
    json_put(v->context);
    free(v->text);
}

/* ---- comparing ---- */

static void same_as_file(const struct vector *v, const char *name, const char *text)
{
    _cleanup_free_ char *path = str_asprintf("%s/%s", v->dir, name);
    _cleanup_free_ char *want = read_file(path, NULL);
    if (!str_eq(want, text))
        fail_msg("%s:\n%s\n---- instead of ----\n%s", path, text, want);
}

/* The three steps against the files of one form ("header", "query"). */
static void check_steps(const struct vector *v, const struct sigv4 *s, const char *form)
{
    _cleanup_(buf_done) struct buf canonical = BUF_INIT(0), names = BUF_INIT(0),
                                   to_sign = BUF_INIT(0);
    char signature[65], name[64];
    sigv4_canonical(s, &canonical, &names);
    snprintf(name, sizeof(name), "%s-canonical-request.txt", form);
    same_as_file(v, name, canonical.data);
    sigv4_to_sign(s, &canonical, &to_sign);
    snprintf(name, sizeof(name), "%s-string-to-sign.txt", form);
    same_as_file(v, name, to_sign.data);
    sigv4_signature(s, &to_sign, signature);
    snprintf(name, sizeof(name), "%s-signature.txt", form);
    same_as_file(v, name, signature);
}

static struct sigv4 input_of(const struct vector *v)
{
    return (struct sigv4){.method = v->method,
                          .path = v->path,
                          .query = v->query,
                          .keep_path = !v->normalize,
                          .headers = (const char *const *)v->headers,
                          .body = v->body,
                          .body_len = strlen(v->body),
                          .date = v->date,
                          .region = "us-east-1",
                          .service = "service",
                          .key_id = v->id,
                          .secret = v->secret};
}

static void check_query_form(struct vector *v)
{
    _cleanup_(buf_done) struct buf query = BUF_INIT(0), names = BUF_INIT(0), unused = BUF_INIT(0);
    struct sigv4 s = input_of(v);
    sigv4_canonical(&s, &unused, &names);
    buf_addf(&query, "%s%sX-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=3600&X-Amz-Date=%s",
             v->query ? v->query : "", v->query ? "&" : "", v->date);
    buf_addf(&query, "&X-Amz-Credential=%s/%.8s/us-east-1/service/aws4_request", v->id, v->date);
    buf_addf(&query, "&X-Amz-SignedHeaders=%s", names.data);
    if (v->token && !v->omit_token) { /* '=' within a value */
        buf_adds(&query, "&X-Amz-Security-Token=");
        buf_adds(&query, v->token);
    }
    s.query = query.data;
    check_steps(v, &s, "query");
}

static void check_header_form(struct vector *v)
{
    _cleanup_free_ char *authorization = NULL, *signed_path = NULL, *want = NULL;
    struct sigv4 s;
    add_header(v, str_asprintf("X-Amz-Date:%s", v->date));
    if (v->token && !v->omit_token)
        add_header(v, str_asprintf("X-Amz-Security-Token:%s", v->token));
    if (v->sign_body) {
        unsigned char hash[32];
        char hex[65];
        EVP_Digest(v->body, strlen(v->body), hash, NULL, EVP_sha256(), NULL);
        str_hex(hash, sizeof(hash), hex);
        add_header(v, str_asprintf("x-amz-content-sha256:%s", hex));
    }
    s = input_of(v);
    check_steps(v, &s, "header");
    authorization = sigv4_authorization(&s);
    signed_path = str_asprintf("%s/header-signed-request.txt", v->dir);
    want = read_file(signed_path, NULL);
    assert_text_has(want, authorization + strlen("Authorization: "));
}

static void all_vectors(void **state)
{
    _cleanup_free_ char *suite = corpus_path("aws/sigv4-test-suite");
    unsigned n = 0;
    DIR *dir;
    struct dirent *e;
    need_corpus(suite);
    dir = opendir(suite);
    assert_non_null(dir);
    while ((e = readdir(dir))) {
        _cleanup_free_ char *path = str_asprintf("%s/%s", suite, e->d_name);
        struct vector v;
        if (e->d_name[0] == '.')
            continue;
        vector_read(&v, path);
        check_query_form(&v);
        check_header_form(&v);
        vector_done(&v);
        n++;
    }
    closedir(dir);
    print_message("%u vectors, header form and query form\n", n);
    assert_int_equal(n, VECTORS);
}

/* ---- recordings ---- */

/* The secret that belongs to a key id: made up by the recorder, or handed out in an answer. */
static char *secret_of(const char *id, const char *inputs, const char *answers)
{
    _cleanup_free_ char *line = str_asprintf("AKID=%s\nSAK=", id);
    _cleanup_free_ char *xml = str_asprintf("<AccessKeyId>%s</AccessKeyId><SecretAccessKey>", id);
    const char *at = strstr(inputs, line);
    at = at ? at + strlen(line) : strstr(answers, xml);
    if (!at)
        return NULL;
    if (*at == '<')
        at += strlen(xml);
    return str_asprintf("%.*s", (int)strcspn(at, "<\n"), at);
}

static const char *header_of(struct json_object *headers, const char *name)
{
    for (size_t i = 0; i < json_object_array_length(headers); i++) {
        struct json_object *h = json_object_array_get_idx(headers, i);
        if (strcasecmp(json_object_get_string(json_object_array_get_idx(h, 0)), name) == 0)
            return json_object_get_string(json_object_array_get_idx(h, 1));
    }
    return NULL;
}

static bool refused(struct json_object *o)
{
    struct json_object *response;
    struct err err = ERR_INIT;
    int64_t status;
    assert_int_equal(json_get_object(o, "response", &response, &err), 0);
    assert_int_equal(json_get_i64(response, "status", &status, &err), 0);
    return status == 401;
}

/* One recorded request whose Authorization is ours to find again. */
static void sign_again(struct json_object *o, struct json_object *headers, const char *given,
                       const char *inputs, const char *answers)
{
    char id[64], day[16], region[32], service[16], names[512];
    char *list[HEADERS_MAX] = {NULL}, *word, *rest = names;
    _cleanup_free_ char *secret = NULL, *authorization = NULL;
    struct sigv4 s = {.headers = (const char *const *)list};
    struct err err = ERR_INIT;
    size_t n = 0;
    assert_int_equal(sscanf(given,
                            "AWS4-HMAC-SHA256 Credential=%63[^/]/%15[^/]/%31[^/]/%15[^/]/"
                            "aws4_request, SignedHeaders=%511[^,]",
                            id, day, region, service, names),
                     5);
    secret = secret_of(id, inputs, answers);
    if (!secret) { /* a key that does not exist */
        assert_true(refused(o));
        return;
    }
    while ((word = strsep(&rest, ";"))) {
        assert_true(n + 1 < HEADERS_MAX);
        list[n++] = str_asprintf("%s:%s", word, header_of(headers, word));
    }
    assert_int_equal(json_get_string(o, "method", &s.method, &err), 0);
    assert_int_equal(json_get_string(o, "path", &s.path, &err), 0);
    (void)json_get_string(o, "body", (const char **)&s.body, &err);
    s.body_len = s.body ? strlen(s.body) : 0;
    s.date = header_of(headers, "x-amz-date");
    s.region = region;
    s.service = service;
    s.key_id = id;
    s.secret = secret;
    authorization = sigv4_authorization(&s);
    /* The recorder has spoiled one on purpose. */
    if (refused(o))
        assert_string_not_equal(authorization + strlen("Authorization: "), given);
    else
        assert_string_equal(authorization + strlen("Authorization: "), given);
    while (n > 0)
        free(list[--n]);
}

static void recorded_requests(void **state)
{
    static const char *const files[] = {"aws-ec2.jsonl", "aws-credentials.jsonl"};
    _cleanup_free_ char *inputs_path = corpus_path("recordings/aws-recording-inputs.env");
    _cleanup_free_ char *inputs = NULL;
    unsigned n = 0;
    need_corpus(inputs_path);
    inputs = read_file(inputs_path, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        _cleanup_free_ char *name = str_asprintf("recordings/%s", files[i]);
        _cleanup_free_ char *path = corpus_path(name), *text = read_file(path, NULL);
        _cleanup_free_ char *answers = xstrdup(text);
        char *line, *rest = text;
        while ((line = strsep(&rest, "\n")) && *line) {
            _cleanup_(json_putp) struct json_object *o = NULL;
            struct json_object *headers;
            struct err err = ERR_INIT;
            const char *given;
            assert_int_equal(json_parse(line, strlen(line), &o, &err), 0);
            assert_int_equal(json_get_array(o, "headers", &headers, &err), 0);
            given = header_of(headers, "authorization");
            if (!given || !str_starts(given, "AWS4-"))
                continue;
            sign_again(o, headers, given, inputs, answers);
            n++;
        }
    }
    print_message("%u recorded requests signed again\n", n);
    assert_true(n >= SIGNED_RECORDINGS_MIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_vectors),
        cmocka_unit_test(recorded_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
