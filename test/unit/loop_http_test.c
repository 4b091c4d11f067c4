/* SPDX-License-Identifier: Apache-2.0 */
/*
 * job_http against a small server in this process: what it sends, what it makes of good and bad
 * replies, its bounds, and that a cancel or a deadline ends it at once. One thread per connection,
 * so that keep-alive shows; the path of the request chooses what the server does.
 */
#include "unit/http_server.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "loop/http.h"
#include "loop/http_stats.h"
#include "loop/http_trace.h"

#define STACK_MEASURED (256U << 10)

static struct server plain, secure;
static char ca_file[] = "/tmp/pp-http-ca-XXXXXX";

/* ---- server ---- */

static bool reply_big(struct client *c, const char *size)
{
    _cleanup_free_ char *body = NULL;
    uint64_t n = 0;
    assert_int_equal(str_to_u64(size, 64 << 20, &n), 0);
    body = xcalloc(1, n + 1);
    memset(body, 'x', n);
    return reply(c, "200 OK", "", body, n);
}

static bool reply_without_end(struct client *c, const char *head, const char *piece, int wait_ms)
{
    bool ok = gives(c, head);
    while (ok && !c->server->stop) {
        ok = gives(c, piece);
        if (wait_ms)
            pause_ms(c, wait_ms);
    }
    return false;
}

static bool serve(struct client *c, const char *path, const struct buf *request)
{
    if (str_eq(path, "/ok"))
        return reply(c, "200 OK", "X-Two:  b \r\nEmpty:\r\n", "hello", 5);
    if (str_starts(request->data, "CONNECT ")) {
        c->server->connects++;
        return reply(c, "403 Forbidden", "", "", 0);
    }
    if (str_eq(path, "/echo") || str_starts(path, "http://proxied.invalid/"))
        return reply(c, "201 Created", "", request->data, request->len);
    if (str_starts(path, "/status/")) {
        _cleanup_free_ char *status = str_asprintf("%s Word", path + 8);
        return reply(c, status, "", "text", 4);
    }
    if (str_eq(path, "/204"))
        return gives(c, "HTTP/1.1 204 No Content\r\n\r\n");
    if (str_eq(path, "/chunked"))
        return gives(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                        "3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nTrailer: 1\r\n\r\n");
    if (str_eq(path, "/continue"))
        return gives(c, "HTTP/1.1 100 Continue\r\nOld: 1\r\n\r\n") &&
               reply(c, "200 OK", "", "x", 1);
    if (str_eq(path, "/redirect"))
        return reply(c, "302 Found", "Location: /ok\r\n", "", 0);
    if (str_starts(path, "/big/"))
        return reply_big(c, path + 5);
    if (str_eq(path, "/endless"))
        return reply_without_end(c, "HTTP/1.1 200 OK\r\n\r\n", "0123456789abcdef0123456789abcdef",
                                 0);
    if (str_eq(path, "/headers"))
        return reply_without_end(c, "HTTP/1.1 200 OK\r\n", "A-Header: 0123456789abcdef\r\n", 0);
    if (str_eq(path, "/continues"))
        return reply_without_end(c, "", "HTTP/1.1 100 Continue\r\n\r\n", 0);
    if (str_eq(path, "/drip"))
        return reply_without_end(c, "HTTP/1.1 200 OK\r\n\r\n", ".", 20);
    if (str_eq(path, "/garbage"))
        return gives(c, "\x16\x03\x01 this is not HTTP\r\n\r\n") && false;
    if (str_eq(path, "/badchunk"))
        return gives(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n") && false;
    if (str_eq(path, "/partial"))
        return gives(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this") && false;
    if (str_eq(path, "/slow"))
        pause_ms(c, 30000);
    return false; /* "/close" and others: not a byte */
}

static int set_up(void **state)
{
    server_start(&plain, NULL, serve);
    server_start(&secure, tls_make(ca_file), serve);
    return 0;
}

static int tear_down(void **state)
{
    http_close_idle();
    server_stop(&plain);
    server_stop(&secure);
    unlink(ca_file);
    return 0;
}

/* ---- tests ---- */

static int fetch_from(const struct server *s, struct job *job, struct http_request *request,
                      const char *path, struct http_response *ret, struct err *err)
{
    _cleanup_free_ char *url =
        str_asprintf("%s://127.0.0.1:%d%s", s->tls ? "https" : "http", s->port, path);
    request->url = url;
    if (!request->method)
        request->method = "GET";
    return job_http(job, request, ret, err);
}

/* Expects a failure; returns the errno and leaves the text in err. */
static int fails(struct http_request request, const char *path, struct err *err)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(0);
    struct http_response response = {0};
    int r;
    *err = ERR_INIT;
    if (request.timeout_ms == 0)
        request.timeout_ms = 5000;
    r = fetch_from(&plain, job, &request, path, &response, err);
    assert_null(response.body);
    assert_int_equal(err->code, r);
    return r;
}

static void a_reply_with_its_headers(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    struct http_request q = {0};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    assert_int_equal(fetch_from(&plain, job, &q, "/ok", &r, &err), 0);
    assert_int_equal(r.status, 200);
    assert_int_equal(r.body_len, 5);
    assert_string_equal(r.body, "hello");
    assert_string_equal(http_response_header(&r, "content-length"), "5");
    assert_string_equal(http_response_header(&r, "x-two"), "b");
    assert_string_equal(http_response_header(&r, "empty"), "");
    assert_null(http_response_header(&r, "x"));
    http_response_done(&r);
    http_response_done(&r);
}

static void every_status_is_an_answer(void **state)
{
    static const long all[] = {200, 206, 301, 400, 401, 404, 409, 429, 500, 503, 599};
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        _cleanup_free_ char *path = str_asprintf("/status/%ld", all[i]);
        struct http_request q = {0};
        struct http_response r = {0};
        struct err err = ERR_INIT;
        assert_int_equal(fetch_from(&plain, job, &q, path, &r, &err), 0);
        assert_int_equal(r.status, all[i]);
        assert_string_equal(r.body, "text");
        http_response_done(&r);
    }
}

static void get_text(struct job *job, const char *path, long status, const char *body)
{
    struct http_request q = {0};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    assert_int_equal(fetch_from(&plain, job, &q, path, &r, &err), 0);
    assert_int_equal(r.status, status);
    assert_string_equal(r.body, body);
    http_response_done(&r);
}

static void odd_but_good_replies(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    struct http_request q = {0};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    get_text(job, "/204", 204, "");
    get_text(job, "/chunked", 200, "abc0123456789abcdef");
    get_text(job, "/redirect", 302, "");
    assert_int_equal(fetch_from(&plain, job, &q, "/continue", &r, &err), 0);
    assert_string_equal(r.body, "x");
    assert_null(http_response_header(&r, "old")); /* of the interim reply */
    http_response_done(&r);
}

static void what_is_sent(void **state)
{
    static const struct {
        const char *method, *body;
        bool length;
    } cases[] = {{"GET", NULL, false},  {"DELETE", NULL, false}, {"PUT", NULL, true},
                 {"POST", "a=b", true}, {"PUT", "xyz", true},    {"DELETE", "why", true},
                 {"PATCH", "{}", true}};
    const char *headers[] = {"X-One: 1", "X-Empty:", "Accept: application/json", NULL};
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        size_t len = cases[i].body ? strlen(cases[i].body) : 0;
        struct http_request q = {
            .method = cases[i].method, .body = cases[i].body, .body_len = len, .headers = headers};
        struct http_response r = {0};
        struct err err = ERR_INIT;
        assert_int_equal(fetch_from(&plain, job, &q, "/echo?q=1", &r, &err), -ECONNRESET);
        err_clear(&err);
        assert_int_equal(fetch_from(&plain, job, &q, "/echo", &r, &err), 0);
        assert_true(str_starts(r.body, cases[i].method));
        assert_text_has(r.body, " /echo HTTP/1.1\r\n");
        assert_text_has(r.body, "\r\nX-One: 1\r\n");
        assert_text_has(r.body, "\r\nX-Empty:\r\n");
        assert_text_has(r.body, "\r\nAccept: application/json\r\n");
        assert_text_has(r.body, "\r\nUser-Agent: peerpod/");
        assert_null(strstr(r.body, "Expect:"));
        assert_null(strstr(r.body, "Content-Type:"));
        assert_true(!strstr(r.body, "Content-Length:") == !cases[i].length);
        assert_string_equal(r.body + r.body_len - len, cases[i].body ? cases[i].body : "");
        http_response_done(&r);
    }
}

/* Within a job, from one job to the next, and never by two at once. */
static void connections_are_kept(void **state)
{
    struct job *job = job_new_inline(10000), *other = job_new_inline(10000);
    int before;
    http_close_idle();
    before = plain.connections;
    for (int i = 0; i < 10; i++)
        get_text(job, "/ok", 200, "hello");
    assert_int_equal(plain.connections - before, 1);
    get_text(other, "/ok", 200, "hello");
    assert_int_equal(plain.connections - before, 2);
    job_free_inline(other);
    job_free_inline(job);
    for (int i = 0; i < 3; i++) {
        job = job_new_inline(10000);
        get_text(job, "/ok", 200, "hello");
        job_free_inline(job);
    }
    assert_int_equal(plain.connections - before, 2);
    http_close_idle();
    job = job_new_inline(10000);
    get_text(job, "/ok", 200, "hello");
    job_free_inline(job);
    assert_int_equal(plain.connections - before, 3);
}

static void sockets_are_not_inherited(void **state)
{
    struct job *job = job_new_inline(10000);
    int sockets = 0;
    get_text(job, "/ok", 200, "hello");
    for (int fd = 3; fd < 200; fd++) {
        struct sockaddr_in a;
        socklen_t len = sizeof(a);
        if (getpeername(fd, (struct sockaddr *)&a, &len) < 0 || a.sin_family != AF_INET ||
            ntohs(a.sin_port) != plain.port)
            continue;
        sockets++;
        assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    }
    assert_true(sockets > 0);
    job_free_inline(job);
}

static int fetch_proxied(const char *url, struct http_response *ret)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(3000);
    struct http_request q = {.method = "GET", .url = url, .use_proxy = true, .timeout_ms = 1000};
    return job_http(job, &q, ret, NULL);
}

/* As Go reads the environment. */
static void proxies_come_from_the_environment(void **state)
{
    _cleanup_free_ char *proxy = str_asprintf("http://127.0.0.1:%d", plain.port);
    _cleanup_free_ char *here = str_asprintf("http://127.0.0.1:%d/ok", plain.port);
    struct http_response r = {0};
    struct http_request q = {.method = "GET", .url = "http://proxied.invalid/", .timeout_ms = 1000};
    struct job *job = job_new_inline(3000);
    setenv("HTTP_PROXY", proxy, 1);
    setenv("HTTPS_PROXY", proxy, 1);
    assert_int_equal(fetch_proxied("http://proxied.invalid/", &r), 0);
    assert_true(str_starts(r.body, "GET http://proxied.invalid/ HTTP/1.1\r\n"));
    http_response_done(&r);
    plain.connects = 0;
    assert_true(fetch_proxied("https://proxied.invalid/", &r) < 0);
    assert_int_equal(plain.connects, 1);
    assert_int_equal(fetch_proxied(here, &r), 0); /* loopback */
    assert_string_equal(r.body, "hello");
    http_response_done(&r);
    assert_true(job_http(job, &q, &r, NULL) < 0); /* nobody asked for a proxy */
    setenv("NO_PROXY", "other.invalid,proxied.invalid", 1);
    assert_true(fetch_proxied("http://proxied.invalid/", &r) < 0);
    unsetenv("NO_PROXY");
    unsetenv("HTTP_PROXY");
    unsetenv("HTTPS_PROXY");
    job_free_inline(job);
}

static void find_stats(const struct http_stats *s, void *arg)
{
    struct http_stats *ret = arg;
    if (str_eq(s->operation, ret->operation))
        *ret = *s;
}

static void calls_are_counted(void **state)
{
    static const char *const paths[] = {"/ok", "/ok", "/status/404", "/status/503", "/partial"};
    struct http_stats s = {.operation = "test.counted"};
    uint64_t sum = 0;
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        _cleanup_(job_free_inlinep) struct job *job = job_new_inline(3000);
        struct http_request q = {.operation = s.operation};
        struct http_response r = {0};
        (void)fetch_from(&plain, job, &q, paths[i], &r, NULL);
        assert_true(r.sent);
        http_response_done(&r);
    }
    http_stats_each(find_stats, &s);
    assert_int_equal(s.calls, 5);
    assert_int_equal(s.by_status[2], 2);
    assert_int_equal(s.by_status[4], 1);
    assert_int_equal(s.by_status[5], 1);
    assert_int_equal(s.by_status[0], 1);
    assert_true(s.latency_us > 0);
    for (size_t i = 0; i <= HTTP_STATS_BOUNDS; i++)
        sum += s.latency[i];
    assert_int_equal(sum, 5);
}

static void traces_are_redacted(void **state)
{
    static const char out[] =
        "POST /path?sig=hush HTTP/1.1\r\nHost: here\r\nAuthorization: hush\r\n"
        "X-Amz-Security-Token:hush\r\nx-new-Token: hush\r\n"
        "Content-Length: 12\r\n\r\n";
    _cleanup_(buf_done) struct buf text = BUF_INIT(0);
    http_trace_head(out, sizeof(out) - 1, &text);
    assert_string_equal(text.data, "POST /path?...; Host: here; Authorization: (4 bytes); "
                                   "X-Amz-Security-Token: (4 bytes); x-new-Token: (4 bytes); "
                                   "Content-Length: 12");
    text.len = 0;
    http_trace_head("HTTP/1.1 200 OK\r\n", 17, &text);
    assert_string_equal(text.data, "HTTP/1.1 200 OK");
}

/* How often the server sees a request that it does not answer, on a kept connection. */
static int times_sent(const char *method, bool repeatable)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    struct http_request q = {.method = method, .repeatable = repeatable};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    int before;
    get_text(job, "/ok", 200, "hello");
    before = plain.requests;
    assert_int_equal(fetch_from(&plain, job, &q, "/close", &r, &err), -ECONNRESET);
    return plain.requests - before;
}

static void what_changes_the_world_is_sent_once(void **state)
{
    assert_int_equal(times_sent("POST", false), 1);
    assert_int_equal(times_sent("PATCH", false), 1);
    assert_int_equal(times_sent("POST", true), 2);
    assert_int_equal(times_sent("GET", false), 2);
}

static void bodies_are_bounded(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(20000);
    struct http_request exact = {.body_max = 100000};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    assert_int_equal(fetch_from(&plain, job, &exact, "/big/100000", &r, &err), 0);
    assert_int_equal(r.body_len, 100000);
    http_response_done(&r);
    assert_int_equal(fails((struct http_request){.body_max = 100000}, "/big/100001", &err), -EFBIG);
    assert_text_has(err_text(&err), "exceeds 100000 bytes");
    assert_int_equal(fails((struct http_request){0}, "/big/5000000", &err), -EFBIG);
    assert_int_equal(fails((struct http_request){0}, "/endless", &err), -EFBIG);
}

static void headers_are_bounded(void **state)
{
    struct err err;
    assert_int_equal(fails((struct http_request){0}, "/headers", &err), -EFBIG);
    assert_text_has(err_text(&err), "headers exceed");
    assert_int_equal(fails((struct http_request){0}, "/continues", &err), -EFBIG);
}

static void broken_replies(void **state)
{
    struct err err;
    assert_int_equal(fails((struct http_request){0}, "/close", &err), -ECONNRESET);
    assert_text_has(err_text(&err), "GET http://127.0.0.1:");
    assert_text_has(err_text(&err), "/close: ");
    assert_int_equal(fails((struct http_request){0}, "/partial", &err), -ECONNRESET);
    assert_int_equal(fails((struct http_request){0}, "/garbage", &err), -EPROTO);
    assert_true(fails((struct http_request){0}, "/badchunk", &err) < 0);
}

static void nobody_listens(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct server nobody = {0};
    struct http_request q = {0};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0); /* bound, not listening */
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    nobody.port = ntohs(a.sin_port);
    assert_int_equal(fetch_from(&nobody, job, &q, "/", &r, &err), -ECONNREFUSED);
    assert_text_has(err_text(&err), "refused");
}

static void secrets_stay_out_of_errors(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    _cleanup_free_ char *url =
        str_asprintf("http://user:hush@127.0.0.1:%d/close?token=hush@x#hush", plain.port);
    struct http_request q = {.method = "GET", .url = url};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    assert_int_equal(job_http(job, &q, &r, &err), -ECONNRESET);
    assert_null(strstr(err_text(&err), "hush"));
    assert_text_has(err_text(&err), "GET http://127.0.0.1:");
}

static void bad_requests_are_refused(void **state)
{
    static const char *const urls[] = {"ftp://127.0.0.1/", "file:///etc/passwd",
                                       "http://a b/",      "http://x/\r\nHeader: 1",
                                       "nonsense://",      ""};
    const char *bad[] = {"X: a\r\nY: b", "no colon", ": empty", "X: a\nY: b"};
    struct err err;
    for (size_t i = 0; i < ARRAY_SIZE(urls); i++) {
        _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
        struct http_request q = {.method = "GET", .url = urls[i]};
        struct http_response r = {0};
        err = ERR_INIT;
        assert_true(job_http(job, &q, &r, &err) < 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        const char *headers[] = {bad[i], NULL};
        assert_int_equal(fails((struct http_request){.headers = headers}, "/ok", &err), -EINVAL);
    }
}

static void time_is_bounded(void **state)
{
    int64_t began = clock_mono_ms();
    struct err err;
    assert_int_equal(fails((struct http_request){.timeout_ms = 100}, "/slow", &err), -ETIMEDOUT);
    assert_int_equal(fails((struct http_request){.timeout_ms = 100}, "/drip", &err), -ETIMEDOUT);
    assert_in_range(clock_mono_ms() - began, 200, 5000);
}

static void the_jobs_deadline_rules(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(100);
    struct http_request q = {0};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    int64_t began = clock_mono_ms();
    assert_int_equal(fetch_from(&plain, job, &q, "/slow", &r, &err), -ETIMEDOUT);
    assert_in_range(clock_mono_ms() - began, 90, 5000);
    err_clear(&err);
    assert_int_equal(fetch_from(&plain, job, &q, "/ok", &r, &err), -ETIMEDOUT);
}

static void *cancel_later(void *job)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    job_cancel(job);
    return NULL;
}

static void cancelled_at(const char *path)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(0);
    struct http_request q = {.body_max = 1U << 30};
    struct http_response r = {0};
    struct err err = ERR_INIT;
    int64_t began = clock_mono_ms();
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, cancel_later, job), 0);
    assert_int_equal(fetch_from(&plain, job, &q, path, &r, &err), -ECANCELED);
    pthread_join(thread, NULL);
    assert_in_range(clock_mono_ms() - began, 90, 5000);
    assert_text_has(err_text(&err), "cancelled");
    err_clear(&err);
    assert_int_equal(fetch_from(&plain, job, &q, "/ok", &r, &err), -ECANCELED);
}

static void a_cancel_ends_it_at_once(void **state)
{
    cancelled_at("/slow");
    cancelled_at("/drip");
}

static int fetch_tls(const char *host, const char *ca, struct err *err)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(10000);
    _cleanup_free_ char *url = str_asprintf("https://%s:%d/ok", host, secure.port);
    struct http_request q = {.method = "GET", .url = url, .ca_file = ca};
    struct http_response r = {0};
    int ret;
    *err = ERR_INIT;
    ret = job_http(job, &q, &r, err);
    if (ret == 0)
        assert_string_equal(r.body, "hello");
    http_response_done(&r);
    return ret;
}

static void tls_is_verified(void **state)
{
    struct err err;
    assert_int_equal(fetch_tls("127.0.0.1", ca_file, &err), 0);
    assert_int_equal(fetch_tls("127.0.0.1", NULL, &err), -EKEYREJECTED);
    assert_int_equal(fetch_tls("localhost", ca_file, &err), -EKEYREJECTED); /* another name */
    assert_int_equal(fetch_tls("127.0.0.1", "/nonexistent", &err), -ENOENT);
    setenv("SSL_CERT_FILE", ca_file, 1);
    assert_int_equal(fetch_tls("127.0.0.1", NULL, &err), 0);
    unsetenv("SSL_CERT_FILE");
    assert_int_equal(fetch_tls("127.0.0.1", NULL, &err), -EKEYREJECTED);
    plain.tls = secure.tls; /* https to a port that does not speak it */
    {
        _cleanup_(job_free_inlinep) struct job *job = job_new_inline(3000);
        _cleanup_free_ char *url = str_asprintf("https://127.0.0.1:%d/ok", plain.port);
        struct http_request q = {.method = "GET", .url = url, .timeout_ms = 500};
        struct http_response r = {0};
        err = ERR_INIT;
        plain.tls = NULL;
        assert_true(job_http(job, &q, &r, &err) < 0);
    }
}

static void run_tls(struct job *job, void *arg)
{
    struct err *err = arg;
    assert_int_equal(fetch_tls("localhost", ca_file, err), -EKEYREJECTED);
    assert_int_equal(fetch_tls("127.0.0.1", ca_file, err), 0);
    (void)job;
}

static void *run_tls_thread(void *arg)
{
    run_tls(NULL, arg);
    return NULL;
}

/* The figure behind the job threads' stack size: name resolution, TLS with verification, a
 * failure's text. */
static void the_stack_is_deep_enough(void **state)
{
    uint8_t *stack = mmap(NULL, STACK_MEASURED, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    pthread_attr_t attr;
    struct err err = ERR_INIT;
    pthread_t thread;
    size_t untouched = 0;
    http_close_idle();
    memset(stack, 0xa5, STACK_MEASURED);
    pthread_attr_init(&attr);
    assert_int_equal(pthread_attr_setstack(&attr, stack, STACK_MEASURED), 0);
    assert_int_equal(pthread_create(&thread, &attr, run_tls_thread, &err), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
    while (untouched < STACK_MEASURED && stack[untouched] == 0xa5)
        untouched++;
    print_message("an HTTPS request uses %zu KiB of stack\n", (STACK_MEASURED - untouched) >> 10);
    assert_true(untouched > STACK_MEASURED / 2);
    munmap(stack, STACK_MEASURED);
}

static void run_many(struct job *job, void *arg)
{
    get_text(job, "/ok", 200, "hello");
    get_text(job, "/chunked", 200, "abc0123456789abcdef");
    ++*(int *)arg;
}

static void done_many(void *arg, bool ran)
{
    assert_true(ran);
}

static void many_jobs_at_once(void **state)
{
    static const unsigned limits[JOB_CLASSES] = {16, 16, 16};
    int counts[100] = {0};
    struct job_pool *pool;
    struct err err = ERR_INIT;
    uv_loop_t loop;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(job_pool_new(&loop, limits, &pool, &err), 0);
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
        assert_int_equal(
            job_start(pool, JOB_OTHER, "fetch", 20000, run_many, done_many, &counts[i], NULL, &err),
            0);
    uv_run(&loop, UV_RUN_DEFAULT);
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
        assert_int_equal(counts[i], 1);
    job_pool_free(pool);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reply_with_its_headers),
        cmocka_unit_test(every_status_is_an_answer),
        cmocka_unit_test(odd_but_good_replies),
        cmocka_unit_test(what_is_sent),
        cmocka_unit_test(connections_are_kept),
        cmocka_unit_test(sockets_are_not_inherited),
        cmocka_unit_test(proxies_come_from_the_environment),
        cmocka_unit_test(calls_are_counted),
        cmocka_unit_test(traces_are_redacted),
        cmocka_unit_test(what_changes_the_world_is_sent_once),
        cmocka_unit_test(bodies_are_bounded),
        cmocka_unit_test(headers_are_bounded),
        cmocka_unit_test(broken_replies),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(secrets_stay_out_of_errors),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(time_is_bounded),
        cmocka_unit_test(the_jobs_deadline_rules),
        cmocka_unit_test(a_cancel_ends_it_at_once),
        cmocka_unit_test(tls_is_verified),
        cmocka_unit_test(the_stack_is_deep_enough),
        cmocka_unit_test(many_jobs_at_once),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
