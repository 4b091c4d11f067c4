/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aws_call against a server that answers badly: one row of a table is one case, with the server's
 * answers in their order and what must come of them. Then what does not fit a table: clocks,
 * credentials that change under way, TLS, endpoints, traces.
 */
#include "unit/http_server.h"

#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "loop/http.h"
#include "loop/rest.h"
#include "providers/aws/client.h"
#include "providers/aws/credentials.h"

#define REPLIES_MAX 4
#define REQUESTS_MAX 16
#define SCRIPTS 64

static struct server plain, secure;
static char ca_file[] = "/tmp/pp-aws-ca-XXXXXX";

/* ---- the server ---- */

/* What it does with one request; the last one of a row is repeated. */
struct answer {
    enum { END, ERROR, XML, RAW, CLOSE, HALF, BIG, SLOW } kind;
    const char *status, *code, *headers, *text;
};

#define OK_XML                                                                                     \
    {                                                                                              \
        XML, .status = "200 OK", .text = "<R><requestId>ok</requestId></R>"                        \
    }

#define ERR(st, co)                                                                                \
    {                                                                                              \
        ERROR, .status = st, .code = co                                                            \
    }
#define ERR_WITH(st, co, he)                                                                       \
    {                                                                                              \
        ERROR, .status = st, .code = co, .headers = he                                             \
    }
#define TEXT(st, te)                                                                               \
    {                                                                                              \
        RAW, .status = st, .text = te                                                              \
    }
#define JUST(k)                                                                                    \
    {                                                                                              \
        .kind = k                                                                                  \
    }

/* What the server is to do and what came; "/N/" in the URL chooses one, "/" the first. */
struct script {
    pthread_mutex_t lock;
    const struct answer *answers;
    unsigned n;
    char *requests[REQUESTS_MAX];
};

static struct script scripts[SCRIPTS];
static struct script *const script = &scripts[0];

static void script_begin(struct script *s, const struct answer *answers)
{
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < MIN(s->n, REQUESTS_MAX); i++)
        free(TAKE_PTR(s->requests[i]));
    s->n = 0;
    s->answers = answers;
    pthread_mutex_unlock(&s->lock);
}

static struct answer script_next(const char *path, const struct buf *request)
{
    unsigned number = 0;
    struct script *s;
    struct answer a;
    (void)sscanf(path, "/%u/", &number);
    s = &scripts[number % SCRIPTS];
    pthread_mutex_lock(&s->lock);
    if (s->n < REQUESTS_MAX)
        s->requests[s->n] = xstrdup(request->data);
    s->n++;
    a = *s->answers;
    if (s->answers[1].kind != END)
        s->answers++;
    pthread_mutex_unlock(&s->lock);
    return a;
}

static unsigned tries(struct script *s)
{
    unsigned n;
    pthread_mutex_lock(&s->lock);
    n = s->n;
    pthread_mutex_unlock(&s->lock);
    return n;
}

static bool give_error(struct client *c, const struct answer *a)
{
    _cleanup_free_ char *body = str_asprintf(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>%s</Code>"
        "<Message>%s</Message></Error></Errors><RequestID>req-1</RequestID></Response>",
        a->code, a->text ? a->text : "Words of AWS.");
    return reply(c, a->status, a->headers ? a->headers : "", body, strlen(body));
}

static bool give_big(struct client *c)
{
    _cleanup_free_ char *body = xcalloc(1, 10 << 20);
    memset(body, 'x', (10 << 20) - 1);
    return reply(c, "200 OK", "", body, (10 << 20) - 1);
}

static bool serve(struct client *c, const char *path, const struct buf *request)
{
    struct answer a = script_next(path, request);
    switch (a.kind) {
    case ERROR:
        return give_error(c, &a);
    case XML:
    case RAW:
        return reply(c, a.status, a.headers ? a.headers : "", a.text, strlen(a.text));
    case HALF:
        return gives(c, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<R><half>") && false;
    case BIG:
        return give_big(c);
    case SLOW:
        pause_ms(c, 10000);
        return false;
    case CLOSE:
    case END:
        break;
    }
    return false;
}

/* ---- the client ---- */

struct world {
    struct aws_config config;
    struct opt_set sets[2];
    struct aws_client *client;
    struct http_response reply;
    struct aws_error error;
    struct err err;
};

/* The words of a command line, the server's URL as the endpoint before them. */
static void world_begin(struct world *w, const struct server *s, const char *const *words)
{
    _cleanup_free_ char *url =
        str_asprintf("%s://127.0.0.1:%d", s->tls ? "https" : "http", s->port);
    char *argv[16] = {"-aws-endpoint-url", url};
    for (size_t i = 0; words && words[i]; i++)
        argv[i + 2] = (char *)words[i];
    *w = (struct world){0};
    w->sets[0] = (struct opt_set){.title = "aws", .opts = aws_opts, .target = &w->config};
    if (opt_parse(w->sets, argv, NULL, NULL, &w->err) < 0 ||
        aws_client_new(&w->config, &w->client, &w->err) < 0)
        fail_msg("%s", err_text(&w->err));
}

static void world_end(struct world *w)
{
    http_response_done(&w->reply);
    aws_client_free(w->client);
    opt_done(w->sets);
}

static const char *const key_words[] = {
    "-aws-access-key-id", "AKIDTEST", "-aws-secret-key", "hush-secret", "-aws-region",
    "eu-test-1",          NULL};

static int call(struct world *w, struct aws_request q, int64_t deadline_ms)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(deadline_ms);
    http_response_done(&w->reply);
    err_clear(&w->err);
    q.service = q.service ? q.service : "ec2";
    q.action = q.action ? q.action : "RunInstances";
    q.body = q.body ? q.body : "Action=RunInstances&Version=2016-11-15&UserData=hush-data";
    return aws_call(w->client, job, &q, &w->reply, &w->error, &w->err);
}

/* ---- the table ---- */

struct golden {
    const char *name;
    struct answer answers[REPLIES_MAX];
    struct aws_request request;
    int64_t deadline_ms;
    int r;
    unsigned tries;    /* 0: more than one */
    const char *code;  /* in aws_error */
    const char *words; /* in err */
    int64_t least_ms, most_ms;
};

#define ONCE                                                                                       \
    {                                                                                              \
        0                                                                                          \
    }
#define REPEATABLE                                                                                 \
    {                                                                                              \
        .repeatable = true                                                                         \
    }

static const struct golden cases[] = {
    {"success", {OK_XML}, ONCE, .tries = 1},
    {"throttled, 503",
     {ERR("503 Service Unavailable", "RequestLimitExceeded"), OK_XML},
     ONCE,
     .tries = 2},
    {"throttled, 400", {ERR("400 Bad Request", "Throttling"), OK_XML}, ONCE, .tries = 2},
    {"throttled, 429 without words", {TEXT("429 Too Many Requests", ""), OK_XML}, ONCE, .tries = 2},
    {"throttled until the deadline",
     {ERR("503 Service Unavailable", "RequestLimitExceeded")},
     ONCE,
     .deadline_ms = 1500,
     .r = -ETIMEDOUT,
     .code = "RequestLimitExceeded",
     .words = "no time left while AWS throttles this node's RunInstances calls "
              "(RequestLimitExceeded)",
     .least_ms = 1400},
    {"throttled, to come back after the deadline",
     {ERR_WITH("503 Service Unavailable", "RequestLimitExceeded", "Retry-After: 60\r\n")},
     ONCE,
     .deadline_ms = 5000,
     .r = -EAGAIN,
     .tries = 1,
     .words = "RunInstances: RequestLimitExceeded: Words of AWS. (request req-1)",
     .most_ms = 3000},
    {"throttled, Retry-After",
     {ERR_WITH("400 Bad Request", "ThrottlingException", "Retry-After: 2\r\n"), OK_XML},
     ONCE,
     .tries = 2,
     .least_ms = 1900},
    {"no permission",
     {ERR("403 Forbidden", "UnauthorizedOperation")},
     REPEATABLE,
     .r = -EACCES,
     .code = "UnauthorizedOperation",
     .tries = 1,
     .words = "RunInstances: UnauthorizedOperation: Words of AWS. (request req-1)"},
    {"no capacity, 500",
     {ERR("500 Internal Server Error", "InsufficientInstanceCapacity")},
     REPEATABLE,
     .r = -EREMOTEIO,
     .code = "InsufficientInstanceCapacity",
     .tries = 1},
    {"its own trouble, twice",
     {ERR("500 Internal Server Error", "InternalError"),
      ERR("503 Service Unavailable", "Unavailable"), OK_XML},
     REPEATABLE,
     .tries = 3},
    {"its own trouble, not repeatable",
     {ERR("500 Internal Server Error", "InternalError"), OK_XML},
     ONCE,
     .r = -EREMOTEIO,
     .code = "InternalError",
     .tries = 1},
    {"its own trouble, Retry-After",
     {ERR_WITH("503 Service Unavailable", "ServiceUnavailable", "Retry-After: 1\r\n"), OK_XML},
     REPEATABLE,
     .tries = 2,
     .least_ms = 950},
    {"its own trouble, for longer than the budget",
     {ERR("503 Service Unavailable", "Unavailable")},
     {.repeatable = true, .budget_ms = 600},
     .r = -EREMOTEIO,
     .words = "Unavailable: Words of AWS. (request req-1) (",
     .most_ms = 4000},
    {"a balancer's page",
     {TEXT("502 Bad Gateway", "<html><p>Bad<br>Gateway</html>"), OK_XML},
     REPEATABLE,
     .tries = 2},
    {"an error without words",
     {TEXT("404 Not Found", "<html><p>no<br></html>")},
     REPEATABLE,
     .r = -EREMOTEIO,
     .code = "",
     .tries = 1,
     .words = "HTTP 404 without an error of AWS's in it"},
    {"an error with a bomb in it",
     {TEXT("400 Bad Request",
           "<!DOCTYPE r [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]>"
           "<r><Error><Code>&b;</Code></Error></r>")},
     REPEATABLE,
     .r = -EREMOTEIO,
     .code = "",
     .tries = 1},
    {"an error that breaks log lines",
     {{ERROR, .status = "400 Bad Request", .code = "InvalidParameter", .text = "one\ntwo\tthree"}},
     ONCE,
     .r = -EREMOTEIO,
     .tries = 1,
     .words = "InvalidParameter: one two three (request req-1)"},
    {"STS's form of an error",
     {TEXT("403 Forbidden",
           "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>"
           "<Type>Sender</Type><Code>AccessDenied</Code><Message>No.</Message></Error>"
           "<RequestId>req-2</RequestId></ErrorResponse>")},
     {.service = "sts", .action = "GetCallerIdentity"},
     .r = -EACCES,
     .code = "AccessDenied",
     .tries = 1,
     .words = "GetCallerIdentity: AccessDenied: No. (request req-2)"},
    {"JSON's form of an error",
     {TEXT("400 Bad Request", "{\"__type\":\"com.amazonaws.servicequotas#AccessDeniedException\","
                              "\"Message\":\"No\\nway.\"}")},
     {.service = "servicequotas", .action = "GetServiceQuota", .target = "S.GetServiceQuota"},
     .r = -EACCES,
     .code = "AccessDeniedException",
     .tries = 1,
     .words = "GetServiceQuota: AccessDeniedException: No way."},
    {"JSON's form of throttling",
     {TEXT("400 Bad Request", "{\"__type\":\"ThrottlingException\"}"), OK_XML},
     {.service = "servicequotas", .action = "GetServiceQuota", .target = "S.GetServiceQuota"},
     .tries = 2},
    {"JSON that is no error of AWS's",
     {TEXT("400 Bad Request", "{\"error\": 1}")},
     REPEATABLE,
     .r = -EREMOTEIO,
     .code = "",
     .tries = 1},
    {"denied, with good clocks and the same key again",
     {ERR("401 Unauthorized", "AuthFailure")},
     REPEATABLE,
     .r = -EACCES,
     .code = "AuthFailure",
     .tries = 2},
    {"a dry run that would have worked",
     {ERR("412 Precondition Failed", "DryRunOperation")},
     {.dry_run = true},
     .tries = 1},
    {"a dry run that nobody asked for",
     {ERR("412 Precondition Failed", "DryRunOperation")},
     ONCE,
     .r = -EREMOTEIO,
     .code = "DryRunOperation",
     .tries = 1},
    {"half an answer", {JUST(HALF), OK_XML}, REPEATABLE, .tries = 2},
    {"half an answer, not repeatable",
     {JUST(HALF), OK_XML},
     ONCE,
     .r = -ECONNRESET,
     .code = "",
     .tries = 1,
     .words = "(it may have been done all the same)"},
    {"no answer", {JUST(CLOSE), OK_XML}, REPEATABLE, .tries = 2},
    {"10 MB", {JUST(BIG)}, REPEATABLE, .r = -EFBIG, .tries = 1, .words = "exceeds 4194304 bytes"},
    {"slow",
     {JUST(SLOW), OK_XML},
     {.repeatable = true, .timeout_ms = 300},
     .tries = 2,
     .least_ms = 290},
    {"slow, not repeatable",
     {JUST(SLOW), OK_XML},
     {.timeout_ms = 300},
     .r = -ETIMEDOUT,
     .tries = 1,
     .words = "(it may have been done all the same)"},
    {"slow beyond the deadline",
     {JUST(SLOW)},
     REPEATABLE,
     .deadline_ms = 400,
     .r = -ETIMEDOUT,
     .tries = 1,
     .most_ms = 4000},
};

/* One row under way, on a thread of its own: most of its time is pauses. */
struct running {
    const struct golden *golden;
    struct script *script;
    struct world w;
    pthread_t thread;
    int r;
    int64_t ms;
};

static void *run_main(void *arg)
{
    struct running *run = arg;
    const struct golden *g = run->golden;
    int64_t begun = clock_mono_ms();
    run->r = call(&run->w, g->request, g->deadline_ms ? g->deadline_ms : 30000);
    run->ms = clock_mono_ms() - begun;
    return NULL;
}

static void run_begin(struct running *run, size_t i)
{
    _cleanup_free_ char *url = str_asprintf("http://127.0.0.1:%d/%zu/", plain.port, i + 1);
    const char *words[16] = {NULL};
    size_t n = 0;
    for (; key_words[n]; n++)
        words[n] = key_words[n];
    words[n++] = "-aws-endpoint-url";
    words[n] = url;
    *run = (struct running){.golden = &cases[i], .script = &scripts[i + 1]};
    script_begin(run->script, cases[i].answers);
    world_begin(&run->w, &plain, words);
    assert_int_equal(pthread_create(&run->thread, NULL, run_main, run), 0);
}

static void check(const struct running *run)
{
    const struct golden *g = run->golden;
    const struct world *w = &run->w;
    print_message("%s: %s\n", g->name, err_text(&w->err));
    assert_int_equal(run->r, g->r);
    assert_int_equal(w->err.code, run->r);
    if (g->tries ? tries(run->script) != g->tries : tries(run->script) < 2)
        fail_msg("%u tries", tries(run->script));
    if (run->r == 0 && !g->request.dry_run)
        assert_string_equal(w->reply.body, "<R><requestId>ok</requestId></R>");
    if (run->r < 0)
        assert_null(w->reply.body);
    if (g->code)
        assert_string_equal(w->error.code, g->code);
    if (g->words)
        assert_text_has(err_text(&w->err), g->words);
    assert_null(strstr(err_text(&w->err), "hush"));
    assert_true(run->ms >= g->least_ms);
    if (g->most_ms)
        assert_true(run->ms <= g->most_ms);
}

static void golden_cases(void **state)
{
    struct running *all = xcalloc(ARRAY_SIZE(cases), sizeof(*all));
    assert_true(ARRAY_SIZE(cases) < SCRIPTS);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        run_begin(&all[i], i);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        pthread_join(all[i].thread, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        check(&all[i]);
        world_end(&all[i].w);
        script_begin(all[i].script, NULL);
    }
    free(all);
}

/* ---- what is on the wire ---- */

static void what_is_sent(void **state)
{
    static const struct answer answers[] = {OK_XML, JUST(END)};
    struct world w;
    const char *sent;
    script_begin(script, answers);
    world_begin(&w, &plain, key_words);
    assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
    sent = script->requests[0];
    assert_true(str_starts(sent, "POST / HTTP/1.1\r\nHost: 127.0.0.1:"));
    assert_text_has(sent, "\r\nContent-Type: application/x-www-form-urlencoded\r\n");
    assert_text_has(sent, "\r\nUser-Agent: peerpod/");
    assert_text_has(sent, "\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIDTEST/");
    assert_text_has(sent, "/eu-test-1/ec2/aws4_request, SignedHeaders=content-type;host;"
                          "x-amz-content-sha256;x-amz-date, Signature=");
    assert_text_has(sent, "\r\n\r\nAction=RunInstances&Version=2016-11-15&UserData=hush-data");
    assert_null(strstr(sent, "hush-secret"));
    assert_null(strstr(sent, "X-Amz-Security-Token"));
    world_end(&w);
}

static void endpoints_are_checked(void **state)
{
    static const char *const bad[] = {"ftp://x/",    "x:80",        "http://",
                                      "http://u@h/", "http://h/?a", "https://h/a b"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct aws_config config = {.endpoint_url = (char *)bad[i],
                                    .metadata_endpoint = (char *)"http://127.0.0.1:1"};
        struct aws_client *client = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(aws_client_new(&config, &client, &err), -EINVAL);
        assert_text_has(err_text(&err), "-aws-endpoint-url");
    }
}

/* ---- clocks ---- */

/* The server's clock, and whether it insists on it. */
static _Atomic int64_t server_off_ms;

static bool serve_clock(struct client *c, const char *path, const struct buf *request)
{
    static const struct answer expired = {ERROR, "400 Bad Request", "RequestExpired", NULL,
                                          "Request has expired."};
    int64_t now = clock_real_ms() + server_off_ms, sent = 0;
    const char *at = strstr(request->data, "X-Amz-Date: ");
    char text[40], date[80];
    struct answer a = expired;
    time_t seconds = (time_t)(now / 1000);
    struct tm tm;
    (void)script_next(path, request);
    snprintf(text, sizeof(text), "%.4s-%.2s-%.2sT%.2s:%.2s:%.2sZ", at + 12, at + 16, at + 18,
             at + 21, at + 23, at + 25);
    assert_int_equal(clock_parse_rfc3339(text, &sent), 0);
    gmtime_r(&seconds, &tm);
    strftime(date, sizeof(date), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm);
    a.headers = date;
    if (llabs(now - sent) > 300000)
        return give_error(c, &a);
    return reply(c, "200 OK", date, "<R/>", 4);
}

static void a_wrong_clock_is_corrected(void **state)
{
    static const int64_t offs[] = {-7200000, 0, 86400000, 1800000};
    static const struct answer none[] = {JUST(CLOSE), JUST(END)};
    struct server s;
    struct world w;
    server_off_ms = 0;
    server_start(&s, NULL, serve_clock);
    world_begin(&w, &s, key_words);
    for (size_t i = 0; i < ARRAY_SIZE(offs); i++) {
        server_off_ms = offs[i];
        script_begin(script, none);
        assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
        assert_int_equal(tries(script), 2); /* refused once, also when the clock comes back */
        assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
        assert_int_equal(tries(script), 3); /* and not again */
    }
    world_end(&w);
    http_close_idle();
    server_stop(&s);
}

/* ---- credentials that change ---- */

static atomic_int key_number, keys_given;
static atomic_bool endpoint_down;

/* EC2 and the pod identity's endpoint at once: the endpoint's key number counts up with key_number,
 * and EC2 takes the latest alone. */
static bool serve_keys(struct client *c, const char *path, const struct buf *request)
{
    static const struct answer expired = ERR("400 Bad Request", "ExpiredToken");
    char want[64];
    if (str_starts(path, "/v1/credentials")) {
        _cleanup_free_ char *body =
            str_asprintf("{\"AccessKeyId\":\"ASIA%d\",\"SecretAccessKey\":\"hush-s\",\"Token\":"
                         "\"hush-t%d\",\"Expiration\":\"2099-01-01T00:00:00Z\"}",
                         key_number, key_number);
        keys_given++;
        if (endpoint_down)
            return reply(c, "400 Bad Request", "", "down", 4);
        if (!strstr(request->data, "Authorization: hush-pod-token\r\n"))
            return reply(c, "401 Unauthorized", "", "", 0);
        return reply(c, "200 OK", "", body, strlen(body));
    }
    (void)script_next(path, request);
    snprintf(want, sizeof(want), "Credential=ASIA%d/", key_number);
    if (!strstr(request->data, want))
        return give_error(c, &expired);
    snprintf(want, sizeof(want), "X-Amz-Security-Token: hush-t%d\r\n", key_number);
    assert_text_has(request->data, want);
    return reply(c, "200 OK", "", "<R/>", 4);
}

static void set_pod_identity(const struct server *s)
{
    _cleanup_free_ char *url = str_asprintf("http://127.0.0.1:%d/v1/credentials", s->port);
    setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
    setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hush-pod-token", 1);
}

static void unset_pod_identity(void)
{
    unsetenv("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    unsetenv("AWS_CONTAINER_AUTHORIZATION_TOKEN");
}

static void an_expired_token_is_renewed_under_way(void **state)
{
    static const char *const words[] = {"-aws-region", "eu-test-1", NULL};
    static const struct answer none[] = {JUST(CLOSE), JUST(END)};
    struct server s;
    struct world w;
    key_number = 1;
    keys_given = 0;
    server_start(&s, NULL, serve_keys);
    set_pod_identity(&s);
    world_begin(&w, &s, words);
    script_begin(script, none);
    assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
    assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
    assert_int_equal(tries(script), 2);
    assert_int_equal(keys_given, 1); /* cached */
    key_number = 2;
    assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
    assert_int_equal(tries(script), 4);
    assert_int_equal(keys_given, 2);
    world_end(&w);
    unset_pod_identity();
    http_close_idle();
    server_stop(&s);
}

#define CALLERS 24

struct caller {
    struct world *w;
    int r;
    pthread_t thread;
};

static void *caller_main(void *arg)
{
    struct caller *c = arg;
    struct job *job = job_new_inline(20000);
    struct aws_request q = {
        .service = "ec2", .action = "DescribeInstances", .body = "Action=D", .repeatable = true};
    struct http_response reply;
    c->r = aws_call(c->w->client, job, &q, &reply, NULL, NULL);
    http_response_done(&reply);
    job_free_inline(job);
    return NULL;
}

/* However many wait, one fetches: at first and after a refusal. */
static void one_job_fetches_for_all(void **state)
{
    static const char *const words[] = {"-aws-region", "eu-test-1", NULL};
    static const struct answer none[] = {JUST(CLOSE), JUST(END)};
    struct caller all[CALLERS];
    struct server s;
    struct world w;
    key_number = 1;
    keys_given = 0;
    server_start(&s, NULL, serve_keys);
    set_pod_identity(&s);
    world_begin(&w, &s, words);
    script_begin(script, none);
    for (int round = 1; round <= 2; round++) {
        key_number = round;
        for (size_t i = 0; i < CALLERS; i++) {
            all[i] = (struct caller){.w = &w};
            assert_int_equal(pthread_create(&all[i].thread, NULL, caller_main, &all[i]), 0);
        }
        for (size_t i = 0; i < CALLERS; i++) {
            pthread_join(all[i].thread, NULL);
            assert_int_equal(all[i].r, 0);
        }
        assert_int_equal(keys_given, round);
    }
    world_end(&w);
    unset_pod_identity();
    http_close_idle();
    server_stop(&s);
}

#define MINUTE 60000LL
#define EXPIRES_MS 4070908800000LL /* 2099-01-01 */

/* The id of the key that is given at a moment before its end; "" when there is none. */
static const char *key_at(struct credentials *c, int64_t before_ms, char ret[32])
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    struct aws_key key = {0};
    struct err err = ERR_INIT;
    if (credentials_get(c, job, NULL, EXPIRES_MS - before_ms, &key, &err) < 0)
        print_message("%s\n", err_text(&err));
    snprintf(ret, 32, "%s", key.id ? key.id : "");
    aws_key_done(&key);
    return ret;
}

/* Ahead of the end; a failure then is no failure yet. Times are what the caller says. */
static void keys_are_refreshed_ahead(void **state)
{
    struct aws_config config = {.metadata_endpoint = (char *)"http://127.0.0.1:1"};
    struct imds *imds = imds_new(config.metadata_endpoint);
    struct aws_wire *wire = aws_wire_new(&config, imds);
    struct credentials *c;
    struct server s;
    char id[32];
    key_number = 1;
    keys_given = 0;
    server_start(&s, NULL, serve_keys);
    set_pod_identity(&s);
    c = credentials_new(&config, wire, imds);
    assert_string_equal(key_at(c, 60 * MINUTE, id), "ASIA1");
    assert_string_equal(key_at(c, 6 * MINUTE, id), "ASIA1");
    assert_int_equal(keys_given, 1);
    key_number = 2;
    assert_string_equal(key_at(c, 4 * MINUTE, id), "ASIA2"); /* early */
    assert_string_equal(key_at(c, 4 * MINUTE - 10000, id), "ASIA2");
    assert_int_equal(keys_given, 2); /* not for each call */
    endpoint_down = true;
    key_number = 3;
    assert_string_equal(key_at(c, 2 * MINUTE, id), "ASIA2"); /* good for two minutes yet */
    assert_string_equal(key_at(c, MINUTE / 2, id), "ASIA2");
    assert_string_equal(key_at(c, 0, id), "");
    assert_int_equal(keys_given, 5);
    endpoint_down = false;
    assert_string_equal(key_at(c, 0, id), "ASIA3");
    credentials_free(c);
    aws_wire_free(wire);
    imds_free(imds);
    unset_pod_identity();
    http_close_idle();
    server_stop(&s);
}

/* ---- TLS ---- */

static void tls_is_verified(void **state)
{
    static const struct answer answers[] = {OK_XML, JUST(END)};
    const char *words[16] = {NULL};
    struct world w;
    memcpy(words, key_words, sizeof(key_words));
    script_begin(script, answers);
    world_begin(&w, &secure, words);
    assert_int_equal(call(&w, (struct aws_request){.repeatable = true}, 10000), -EKEYREJECTED);
    assert_int_equal(tries(script), 0);
    print_message("%s\n", err_text(&w.err));
    world_end(&w);
    words[6] = "-aws-ca-bundle";
    words[7] = ca_file;
    world_begin(&w, &secure, words);
    assert_int_equal(call(&w, (struct aws_request){0}, 10000), 0);
    world_end(&w);
}

/* ---- logs ---- */

static void traces_hold_no_secret(void **state)
{
    static const char *const words[] = {"-aws-region", "eu-test-1", NULL};
    static const struct answer none[] = {JUST(CLOSE), JUST(END)};
    char name[] = "/tmp/pp-aws-log-XXXXXX", text[65536];
    int fd = mkstemp(name), saved = dup(STDERR_FILENO);
    struct server s;
    struct world w;
    ssize_t n;
    key_number = 1;
    server_start(&s, NULL, serve_keys);
    set_pod_identity(&s);
    script_begin(script, none);
    dup2(fd, STDERR_FILENO);
    log_init("test", LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT);
    world_begin(&w, &s, words);
    (void)call(&w, (struct aws_request){0}, 10000);
    key_number = 2;
    (void)call(&w, (struct aws_request){0}, 10000);
    log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    dup2(saved, STDERR_FILENO);
    n = pread(fd, text, sizeof(text) - 1, 0);
    text[MAX(n, 0)] = '\0';
    close(fd);
    close(saved);
    unlink(name);
    assert_text_has(text, "http > POST / HTTP/1.1; Host: 127.0.0.1:");
    assert_text_has(text, "Authorization: (");
    assert_text_has(text, "X-Amz-Security-Token: (");
    assert_null(strstr(text, "hush"));
    assert_null(strstr(text, "Signature="));
    world_end(&w);
    unset_pod_identity();
    http_close_idle();
    server_stop(&s);
}

static int set_up(void **state)
{
    static const char *const foreign[] = {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",       "AWS_SESSION_TOKEN", "AWS_PROFILE",
        "AWS_REGION",        "AWS_WEB_IDENTITY_TOKEN_FILE", "HTTP_PROXY"};
    for (size_t i = 0; i < ARRAY_SIZE(foreign); i++)
        unsetenv(foreign[i]);
    setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
    setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
    setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
    for (size_t i = 0; i < SCRIPTS; i++)
        pthread_mutex_init(&scripts[i].lock, NULL);
    server_start(&plain, NULL, serve);
    server_start(&secure, tls_make(ca_file), serve);
    return 0;
}

static int tear_down(void **state)
{
    for (size_t i = 0; i < SCRIPTS; i++)
        script_begin(&scripts[i], NULL);
    http_close_idle();
    server_stop(&plain);
    server_stop(&secure);
    unlink(ca_file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_cases),
        cmocka_unit_test(what_is_sent),
        cmocka_unit_test(endpoints_are_checked),
        cmocka_unit_test(a_wrong_clock_is_corrected),
        cmocka_unit_test(an_expired_token_is_renewed_under_way),
        cmocka_unit_test(one_job_fetches_for_all),
        cmocka_unit_test(keys_are_refreshed_ahead),
        cmocka_unit_test(tls_is_verified),
        cmocka_unit_test(traces_hold_no_secret),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
