/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP for jobs, on libcurl.
 *
 * Model: a job that speaks HTTP has one *session*, a multi handle with its kept connections, checked
 * out of a pool with its first request and given back when the job's thread ends (job_attach). All
 * the job's requests go through it, so that polling a cloud reuses the connection, and the next job
 * finds it warm; at any time one thread has it, as libcurl shares no connections across threads.
 * What has been idle for long is closed at the next use of the pool. A request is one turn of
 * configure, drive, collect, on an easy handle of its own: one that is used again is not safe from a
 * reply whose first header begins with a blank (libcurl 7.88 goes on in a freed header of the reply
 * before).
 *
 * Waiting is curl_multi_poll with the job's cancel descriptor beside curl's own, so that a cancel
 * takes effect at once; time is bounded by the smaller of the request's limit and the job's
 * deadline. A name lookup in flight is left behind, not waited for (QUICK_EXIT): libcurl does it on
 * a thread of its own, which getaddrinfo's own time-outs end.
 *
 * libcurl sends a request again by itself when a kept connection turns out to be dead, although the
 * server may have read it. So POST and PATCH go out on a fresh connection, where it never does,
 * unless the caller says that they are repeatable (a cloud's describe call).
 *
 * Bounds: reply headers, reply body. Header names and values that hold line breaks are refused, as
 * they could smuggle a header into a signed request. No redirects (credentials would follow),
 * HTTP/1.1 only (one request at a time; HTTP/2 would cost 100 KiB of tables per job), no proxy
 * from the environment unless asked for, no default headers but Host, Accept and User-Agent:
 * signatures cover what is sent.
 *
 * The environment is read as Go's programs read it, since users have it set up for those: HTTP_PROXY
 * in capitals counts too (libcurl ignores it for fear of CGI), loopback is never proxied, and
 * SSL_CERT_FILE and SSL_CERT_DIR replace the system's authorities.
 *
 * Failures: an errno with curl's own words behind "METHOD scheme://host/path", never the query or
 * user info, which may hold tokens. A cancel wins over whatever curl says at the same time.
 *
 * SIGPIPE: OpenSSL writes without MSG_NOSIGNAL. Job threads block all signals; an inline job's
 * thread has it blocked for the time of the request and a pending one is eaten.
 */
#include "loop/http.h"

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "loop/http_stats.h"
#include "loop/http_trace.h"

#define TIMEOUT_MS_DEFAULT 30000
#define CONNECT_TIMEOUT_MS_DEFAULT 5000
#define POOL_IDLE_MAX 16
#define POOL_IDLE_MS 60000
#define SESSION_CONNECTIONS_MAX 4L

struct session {
    CURLM *multi;
    struct session *next; /* pool_lock */
    int64_t idle_ms;      /* pool_lock: since when */
};

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct session *pool; /* pool_lock: idle ones, the latest first */

/* One exchange. */
struct exchange {
    const struct http_request *request;
    struct session *session;
    CURL *easy;
    struct curl_slist *headers;
    struct buf body;
    struct buf reply_headers; /* "name: value" lines, each ending in NUL */
    size_t header_bytes;      /* of all header blocks (1xx replies, trailers) */
    bool body_over, headers_over;
    char error[CURL_ERROR_SIZE];
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_init_result;

static void curl_init(void)
{
    curl_init_result = curl_global_init(CURL_GLOBAL_ALL);
}

static void session_free(struct session *s)
{
    curl_multi_cleanup(s->multi);
    free(s);
}

/* pool_lock. Takes what is too old or too much off the pool's end. */
static struct session *pool_surplus(void)
{
    int64_t oldest = clock_mono_ms() - POOL_IDLE_MS;
    struct session **at = &pool, *surplus;

    for (unsigned n = 0; *at && n < POOL_IDLE_MAX && (*at)->idle_ms > oldest; n++)
        at = &(*at)->next;
    surplus = *at;
    *at = NULL;
    return surplus;
}

static void sessions_free(struct session *s)
{
    for (struct session *next; s; s = next) {
        next = s->next;
        session_free(s); /* may write to sockets: outside the lock */
    }
}

static struct session *pool_take(void)
{
    struct session *s, *surplus;

    pthread_mutex_lock(&pool_lock);
    surplus = pool_surplus();
    s = pool;
    if (s)
        pool = s->next;
    pthread_mutex_unlock(&pool_lock);
    sessions_free(surplus);
    return s;
}

void http_close_idle(void)
{
    struct session *all;

    pthread_mutex_lock(&pool_lock);
    all = pool;
    pool = NULL;
    pthread_mutex_unlock(&pool_lock);
    sessions_free(all);
}

static void pool_give(void *p)
{
    struct session *s = p, *surplus;

    pthread_mutex_lock(&pool_lock);
    s->idle_ms = clock_mono_ms();
    s->next = pool;
    pool = s;
    surplus = pool_surplus();
    pthread_mutex_unlock(&pool_lock);
    sessions_free(surplus);
}

static struct session *session_get(struct job *job)
{
    struct session *s = job_attached(job);

    if (s)
        return s;
    pthread_once(&curl_once, curl_init);
    if (curl_init_result != CURLE_OK)
        return NULL;
    s = pool_take();
    if (!s) {
        s = xcalloc(1, sizeof(*s));
        s->multi = curl_multi_init();
        if (!s->multi || curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS,
                                           SESSION_CONNECTIONS_MAX) != CURLM_OK) {
            session_free(s);
            return NULL;
        }
    }
    job_attach(job, s, pool_give);
    return s;
}

static void exchange_done(struct exchange *x)
{
    curl_easy_cleanup(x->easy);
    curl_slist_free_all(x->headers);
    buf_done(&x->body);
    buf_done(&x->reply_headers);
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct exchange *x = arg;

    if (buf_add(&x->body, data, size * n) == 0)
        return size * n;
    x->body_over = true;
    return 0;
}

/* A header block begins with its status line; only the last block is kept. */
static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    struct exchange *x = arg;
    size_t len = size * n, i;

    x->header_bytes += len;
    if (x->header_bytes > HTTP_HEADERS_MAX) {
        x->headers_over = true;
        return 0;
    }
    if (len >= 5 && memcmp(data, "HTTP/", 5) == 0) {
        x->reply_headers.len = 0;
        return len;
    }
    while (len > 0 && isspace((unsigned char)data[len - 1]))
        len--;
    if (len == 0 || memchr(data, '\0', len)) /* a NUL ends a line of reply_headers */
        return size * n;
    for (i = 0; i < len && data[i] != ':'; i++)
        data[i] = (char)tolower((unsigned char)data[i]);
    if (i < len && buf_add(&x->reply_headers, data, len) == 0)
        (void)buf_add(&x->reply_headers, "", 1);
    return size * n;
}

static bool has_header(const struct http_request *r, const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; r->headers && r->headers[i]; i++)
        if (strncasecmp(r->headers[i], name, len) == 0 && r->headers[i][len] == ':')
            return true;
    return false;
}

static void add_header(struct exchange *x, const char *line)
{
    struct curl_slist *longer = curl_slist_append(x->headers, line);

    if (!longer)
        abort(); /* as xcalloc */
    x->headers = longer;
}

/* "Name: value" to curl's forms: an empty value is written "Name;" there. */
static int add_headers(struct exchange *x, struct err *err)
{
    const struct http_request *r = x->request;

    for (size_t i = 0; r->headers && r->headers[i]; i++) {
        const char *line = r->headers[i], *colon = strchr(line, ':');

        if (!colon || colon == line || strpbrk(line, "\r\n"))
            return err_set(err, -EINVAL, "header %zu is not one line of 'Name: value'", i + 1);
        if (colon[1 + strspn(colon + 1, " ")] == '\0') {
            _cleanup_free_ char *empty = str_asprintf("%.*s;", (int)(colon - line), line);

            add_header(x, empty);
        } else {
            add_header(x, line);
        }
    }
    add_header(x, "Expect:"); /* no round trip before a body */
    if (!has_header(r, "Content-Type"))
        add_header(x, "Content-Type:"); /* curl would call it a form */
    return 0;
}

/* CURLOPTs fail for want of memory or for an option that this libcurl does not have. */
#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode _c = curl_easy_setopt(easy, option, value);                                       \
        if (_c != CURLE_OK)                                                                        \
            return err_set(err, -EIO, "libcurl refuses " #option ": %s", curl_easy_strerror(_c));  \
    } while (0)

static int set_method(CURL *easy, const struct http_request *r, struct err *err)
{
    bool once = !r->repeatable && (str_eq(r->method, "POST") || str_eq(r->method, "PATCH"));
    bool body = r->body || str_eq(r->method, "PUT") || str_eq(r->method, "POST") ||
                str_eq(r->method, "PATCH");

    if (body) {
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(r->body ? r->body_len : 0));
        SET(CURLOPT_POSTFIELDS, r->body ? r->body : "");
    } else if (str_eq(r->method, "HEAD")) {
        SET(CURLOPT_NOBODY, 1L);
    } else {
        SET(CURLOPT_HTTPGET, 1L);
    }
    SET(CURLOPT_CUSTOMREQUEST, r->method);
    SET(CURLOPT_FRESH_CONNECT, once ? 1L : 0L);
    return 0;
}

static int set_limits(CURL *easy, const struct http_request *r, const struct job *job,
                      struct err *err)
{
    int64_t total = r->timeout_ms > 0 ? r->timeout_ms : TIMEOUT_MS_DEFAULT;
    int64_t connecting =
        r->connect_timeout_ms > 0 ? r->connect_timeout_ms : CONNECT_TIMEOUT_MS_DEFAULT;
    int64_t left = job_remaining_ms(job);

    if (left >= 0)
        total = MIN(total, MAX(left, 1)); /* 0 would mean none */
    SET(CURLOPT_TIMEOUT_MS, (long)total);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)connecting);
    return 0;
}

static int set_callbacks(CURL *easy, struct exchange *x, struct err *err)
{
    SET(CURLOPT_ERRORBUFFER, x->error);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, x);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, x);
    return 0;
}

/* libcurl's own sockets would be inherited by the children of the daemon. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    (void)arg;
    (void)purpose;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static int on_trace(CURL *easy, curl_infotype type, char *data, size_t len, void *arg)
{
    _cleanup_(buf_done) struct buf text = BUF_INIT(2 * HTTP_HEADERS_MAX);

    (void)easy;
    (void)arg;
    if (type == CURLINFO_DATA_OUT || type == CURLINFO_DATA_IN) {
        log_debug("http %c %zu bytes of body", type == CURLINFO_DATA_OUT ? '>' : '<', len);
    } else if (type == CURLINFO_HEADER_OUT || type == CURLINFO_HEADER_IN) {
        http_trace_head(data, len, &text);
        if (text.len > 0)
            log_debug("http %c %s", type == CURLINFO_HEADER_OUT ? '>' : '<', text.data);
    }
    return 0;
}

static int set_manners(CURL *easy, struct err *err)
{
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_USERAGENT, "peerpod/" PP_VERSION);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    if (log_enabled(LOG_LEVEL_DEBUG)) {
        SET(CURLOPT_VERBOSE, 1L);
        SET(CURLOPT_DEBUGFUNCTION, on_trace);
    }
    return 0;
}

/* NULL when unset or empty. */
static const char *env(const char *name)
{
    const char *value = getenv(name);

    return str_empty(value) ? NULL : value;
}

static bool is_loopback(const char *url)
{
    const char *host = strstr(url, "://");

    host = host ? host + 3 : url;
    return str_starts(host, "127.") || str_starts(host, "[::1]") ||
           (strncasecmp(host, "localhost", 9) == 0 && (!host[9] || strchr(":/?", host[9])));
}

static int set_surroundings(CURL *easy, const struct http_request *r, struct err *err)
{
    const char *file = r->ca_file ? r->ca_file : env("SSL_CERT_FILE");
    const char *dir = r->ca_file ? NULL : env("SSL_CERT_DIR");

    if (!r->use_proxy || is_loopback(r->url))
        SET(CURLOPT_PROXY, "");
    else if (strncasecmp(r->url, "http:", 5) == 0 && !env("http_proxy") && env("HTTP_PROXY"))
        SET(CURLOPT_PROXY, env("HTTP_PROXY"));
    if (file || dir) {
        SET(CURLOPT_CAINFO, file);
        SET(CURLOPT_CAPATH, dir);
    }
    return 0;
}

static int exchange_configure(struct exchange *x, const struct job *job, struct err *err)
{
    const struct http_request *r = x->request;
    CURL *easy = x->easy;
    int ret;

    if (strpbrk(r->url, "\r\n \t"))
        return err_set(err, -EINVAL, "the URL holds white space");
    SET(CURLOPT_URL, r->url);
    if ((ret = set_method(easy, r, err)) < 0 || (ret = set_limits(easy, r, job, err)) < 0 ||
        (ret = set_callbacks(easy, x, err)) < 0 || (ret = set_manners(easy, err)) < 0 ||
        (ret = set_surroundings(easy, r, err)) < 0 || (ret = add_headers(x, err)) < 0)
        return ret;
    SET(CURLOPT_HTTPHEADER, x->headers);
    return 0;
}

/* Drives the transfer to its end; *ret_code is curl's verdict. 0, -ECANCELED or -EIO. */
static int exchange_drive(struct exchange *x, struct job *job, CURLcode *ret_code, struct err *err)
{
    struct curl_waitfd cancel = {.fd = job_cancel_fd(job), .events = CURL_WAIT_POLLIN};
    CURLMcode m = CURLM_OK;
    int running = 1, left;

    while (m == CURLM_OK && !job_cancelled(job)) {
        const CURLMsg *message;

        m = curl_multi_perform(x->session->multi, &running);
        while ((message = curl_multi_info_read(x->session->multi, &left)))
            if (message->msg == CURLMSG_DONE) {
                *ret_code = message->data.result;
                return 0;
            }
        if (m == CURLM_OK)
            m = curl_multi_poll(x->session->multi, &cancel, 1, 1000, NULL);
    }
    if (job_cancelled(job))
        return err_set(err, -ECANCELED, "cancelled");
    return err_set(err, -EIO, "libcurl: %s", curl_multi_strerror(m));
}

static int errno_of_connect(CURL *easy)
{
    long os = 0;

    curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &os);
    return os > 0 && os < 4096 ? -(int)os : -ECONNREFUSED;
}

static int errno_of(const struct exchange *x, CURLcode code)
{
    if (x->body_over || x->headers_over)
        return -EFBIG;
    switch (code) {
    case CURLE_OK:
        return 0;
    case CURLE_URL_MALFORMAT:
        return -EINVAL;
    case CURLE_UNSUPPORTED_PROTOCOL: /* also a reply that is not HTTP/1 */
        return -EPROTO;
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
        return -EHOSTUNREACH;
    case CURLE_COULDNT_CONNECT:
        return errno_of_connect(x->easy);
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
        return -ECONNRESET;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_WEIRD_SERVER_REPLY:
        return -EPROTO;
    case CURLE_PEER_FAILED_VERIFICATION:
        return -EKEYREJECTED;
    case CURLE_SSL_CACERT_BADFILE:
        return -ENOENT;
    case CURLE_OUT_OF_MEMORY:
        return -ENOMEM;
    default:
        return -EIO;
    }
}

/* curl's word for it, or ours where the limit is ours. */
static int exchange_verdict(const struct exchange *x, const struct job *job, CURLcode code,
                            struct err *err)
{
    int r = errno_of(x, code);

    if (r == 0)
        return 0;
    if (job_check(job) < 0)
        r = job_check(job);
    if (r == -ECANCELED)
        return err_set(err, r, "cancelled");
    if (x->headers_over)
        return err_set(err, r, "the reply's headers exceed %u bytes", HTTP_HEADERS_MAX);
    if (x->body_over)
        return err_set(err, r, "the reply exceeds %zu bytes", x->body.max);
    /* curl's sentence about a failed connect does not say why. */
    return err_set(err, r, "%s%s%s", x->error[0] ? x->error : curl_easy_strerror(code),
                   code == CURLE_COULDNT_CONNECT ? ": " : "",
                   code == CURLE_COULDNT_CONNECT ? strerror(-r) : "");
}

static char **collect_headers(const struct buf *lines)
{
    size_t count = 0, n = 0;
    char **v;

    for (size_t i = 0; i < lines->len; i++)
        count += lines->data[i] == '\0';
    v = xcalloc(count + 1, sizeof(*v));
    for (size_t i = 0; n < count; i += strlen(lines->data + i) + 1)
        v[n++] = xstrdup(lines->data + i);
    return v;
}

static void exchange_collect(struct exchange *x, struct http_response *ret)
{
    curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &ret->status);
    ret->body_len = x->body.len;
    ret->body = buf_steal(&x->body);
    ret->headers = collect_headers(&x->reply_headers);
}

/* A request of which curl has written nothing cannot have been acted on. */
static bool exchange_sent(const struct exchange *x)
{
    long bytes = 0;

    curl_easy_getinfo(x->easy, CURLINFO_REQUEST_SIZE, &bytes);
    return bytes > 0;
}

static int exchange_run(struct exchange *x, struct job *job, struct http_response *ret,
                        struct err *err)
{
    CURLcode code = CURLE_OK;
    int r = job_check(job);

    if (r < 0)
        return err_set(err, r, "%s", r == -ECANCELED ? "cancelled" : "no time left");
    x->session = session_get(job);
    x->easy = curl_easy_init();
    if (!x->session || !x->easy)
        return err_set(err, -ENOMEM, "libcurl cannot be set up");
    r = exchange_configure(x, job, err);
    if (r < 0)
        return r;
    if (curl_multi_add_handle(x->session->multi, x->easy) != CURLM_OK)
        return err_set(err, -EIO, "libcurl refuses the request");
    r = exchange_drive(x, job, &code, err);
    curl_multi_remove_handle(x->session->multi, x->easy);
    ret->sent = exchange_sent(x);
    if (r == 0)
        r = exchange_verdict(x, job, code, err);
    if (r == 0)
        exchange_collect(x, ret);
    return r;
}

/* "GET https://host/path", without user info and query. */
static void request_label(const struct http_request *r, char *out, size_t size)
{
    const char *host = strstr(r->url, "://"), *at, *end;

    host = host ? host + 3 : r->url;
    end = host + strcspn(host, "?#");
    at = memrchr(host, '@', MIN(strcspn(host, "/?#"), (size_t)(end - host)));
    snprintf(out, size, "%s %.*s%.*s", r->method, (int)(host - r->url), r->url,
             (int)MIN(at ? end - at - 1 : end - host, 300), at ? at + 1 : host);
}

static void sigpipe_set(sigset_t *ret)
{
    sigemptyset(ret);
    sigaddset(ret, SIGPIPE);
}

/* Puts the mask back; a SIGPIPE that came meanwhile is ours and is eaten. */
static void sigpipe_restore(const sigset_t *old)
{
    const struct timespec now = {0};
    sigset_t set;

    if (sigismember(old, SIGPIPE))
        return;
    sigpipe_set(&set);
    while (sigtimedwait(&set, NULL, &now) < 0 && errno == EINTR)
        ;
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

int job_http(struct job *job, const struct http_request *request, struct http_response *ret,
             struct err *err)
{
    _cleanup_(exchange_done) struct exchange x = {
        .request = request,
        .body = BUF_INIT(request->body_max ? request->body_max : HTTP_BODY_MAX_DEFAULT),
        .reply_headers = BUF_INIT(2 * HTTP_HEADERS_MAX),
    };
    char label[400];
    sigset_t pipe_set, old;
    int64_t begun_us = clock_mono_us();
    int r;

    *ret = (struct http_response){0};
    sigpipe_set(&pipe_set);
    pthread_sigmask(SIG_BLOCK, &pipe_set, &old);
    r = exchange_run(&x, job, ret, err);
    sigpipe_restore(&old);
    if (request->operation)
        http_stats_call(request->operation, ret->status, clock_mono_us() - begun_us);
    if (r == 0)
        return 0;
    request_label(request, label, sizeof(label));
    return err_wrap(err, r, "%s", label);
}

void http_response_done(struct http_response *r)
{
    free(r->body);
    strv_free(r->headers);
    *r = (struct http_response){0};
}

const char *http_response_header(const struct http_response *r, const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; r->headers && r->headers[i]; i++)
        if (strncmp(r->headers[i], name, len) == 0 && r->headers[i][len] == ':')
            return r->headers[i] + len + 1 + strspn(r->headers[i] + len + 1, " \t");
    return NULL;
}
