/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Each connection has a reader thread. It reads one frame after the other,
 * writes the journal's line, and hands every good request to a pool of workers that grows whenever
 * no worker is idle: any number of calls may block at once and answers come in any order. Workers
 * write whole frames under the connection's lock.
 *
 * A call ends in one of four ways: it is answered; its deadline passes inside call_wait and the
 * server answers 4 itself; the client has gone and nothing is answered; the agent ends.
 * ttrpc-rust drops a handler in the middle when its client goes away, wherever it waits. Here a
 * handler notices at its next call_wait: the same for all handlers that block.
 *
 * What differs from our own server on purpose (kata-contract.md 1.3): unknown service 3 and unknown
 * method 12, an undecodable payload 2, an oversize body is swallowed and answered 3, a data frame
 * 3, even stream ids 3, no check that ids grow, end of input is the client's death also when it
 * only shut down its sending side.
 *
 * Life: a connection is referenced by its reader and by each call; the last one closes it. Readers
 * and workers are detached and counted; server_free waits for the count of busy ones, never for
 * idle ones.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"

#define WORKERS_MAX 4096 /* calls that may block at once */
#define SKIP_CHUNK (64U << 10)
#define NAME_LOGGED_MAX 256

struct conn {
    struct server *server;
    struct conn *next; /* server->lock */
    int fd, gone;      /* gone: an eventfd, readable once the client has left */
    uint64_t id;
    unsigned refs; /* server->lock */
    pthread_mutex_t send_lock;
};

struct call {
    struct call *next; /* server->lock, while queued */
    struct conn *conn;
    uint32_t stream;
    Ttrpc__Request *request;
    const struct method *method;
    int64_t deadline_ms; /* monotonic, 0: none */
    bool answered;
};

struct server {
    struct server_config config;
    int journal; /* descriptor or -1 */
    pthread_mutex_t lock;
    pthread_cond_t work, quiet;
    struct conn *conns;
    struct call *queue, **queue_tail;
    unsigned workers, idle, busy; /* busy: readers and running calls */
    uint64_t conn_ids, requests;
};

static void conn_unref(struct conn *c)
{
    struct server *s = c->server;

    pthread_mutex_lock(&s->lock);
    bool last = --c->refs == 0;
    if (last)
        for (struct conn **p = &s->conns; *p; p = &(*p)->next)
            if (*p == c) {
                *p = c->next;
                break;
            }
    pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    close(c->fd);
    close(c->gone);
    pthread_mutex_destroy(&c->send_lock);
    free(c);
}

/* The client is dead to us: waiting handlers wake up, blocked writers fail. */
static void conn_cancel(struct conn *c)
{
    static const uint64_t one = 1;

    if (write(c->gone, &one, sizeof one) < 0)
        log_error("cancelling a connection: %s", strerror(errno));
    shutdown(c->fd, SHUT_RDWR);
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_all(int fd, void *data, size_t len)
{
    for (char *p = data; len > 0;) {
        ssize_t n = recv(fd, p, len, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ECONNRESET;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static void conn_send(struct conn *c, const struct buf *frame)
{
    pthread_mutex_lock(&c->send_lock);
    (void)write_all(c->fd, frame->data, frame->len); /* a client that is gone misses nothing */
    pthread_mutex_unlock(&c->send_lock);
}

static void conn_send_error(struct conn *c, uint32_t stream, enum ttrpc_code code,
                            const char *message)
{
    struct buf frame = BUF_INIT(0);

    ttrpc_add_error(&frame, stream, code, message);
    conn_send(c, &frame);
    buf_done(&frame);
}

int call_reply(struct call *call, const ProtobufCMessage *reply)
{
    size_t len = reply ? protobuf_c_message_get_packed_size(reply) : 0;
    _cleanup_free_ uint8_t *payload = xcalloc(1, len + 1);
    struct buf frame = BUF_INIT(0);
    struct err err = ERR_INIT;

    if (reply)
        protobuf_c_message_pack(reply, payload);
    if (ttrpc_add_response(&frame, call->stream, payload, len, &err) < 0)
        ttrpc_add_error(&frame, call->stream, TTRPC_INVALID_ARGUMENT, err_text(&err));
    conn_send(call->conn, &frame);
    buf_done(&frame);
    call->answered = true;
    return 0;
}

int call_fail(struct call *call, enum ttrpc_code code, const char *fmt, ...)
{
    _cleanup_free_ char *message = NULL;
    va_list args;

    va_start(args, fmt);
    if (vasprintf(&message, fmt, args) < 0)
        abort();
    va_end(args);
    conn_send_error(call->conn, call->stream, code, message);
    call->answered = true;
    return 0;
}

const ProtobufCBinaryData *call_payload(const struct call *call)
{
    return &call->request->payload;
}

static int remaining_ms(const struct call *call)
{
    if (call->deadline_ms == 0)
        return -1;
    int64_t left = call->deadline_ms - clock_mono_ms();
    return left <= 0 ? 0 : (int)MIN(left, 3600 * 1000);
}

int call_wait2(struct call *call, int fd, short events, int fd2, short events2)
{
    struct pollfd p[3] = {
        {.fd = call->conn->gone, .events = POLLIN},
        {.fd = fd, .events = events},
        {.fd = fd2, .events = events2},
    };

    for (;;) {
        int timeout = remaining_ms(call);
        int n = poll(p, ARRAY_SIZE(p), timeout);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (p[0].revents)
            return -ECANCELED;
        if (n > 0)
            return 0;
        if (remaining_ms(call) == 0)
            return -ETIMEDOUT;
    }
}

int call_wait(struct call *call, int fd, short events)
{
    return call_wait2(call, fd, events, -1, 0);
}

static void call_free(struct call *call)
{
    conn_unref(call->conn);
    ttrpc__request__free_unpacked(call->request, NULL);
    free(call);
}

static void call_run(struct call *call)
{
    ProtobufCMessage *request = protobuf_c_message_unpack(
        call->method->request, NULL, call->request->payload.len, call->request->payload.data);

    if (!request) {
        call_fail(call, TTRPC_UNKNOWN, "Protobuf error: payload of %s", call->method->name);
        return;
    }
    int r = call->method->run(call, request);
    if (!call->answered && r == -ETIMEDOUT)
        call_fail(call, TTRPC_DEADLINE_EXCEEDED, "timeout");
    else if (!call->answered && r < 0 && r != -ECANCELED)
        call_fail(call, TTRPC_INTERNAL, "%s", strerror(-r));
    protobuf_c_message_free_unpacked(request, NULL);
}

static void *worker_main(void *arg)
{
    struct server *s = arg;

    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->queue) {
            s->idle++;
            pthread_cond_wait(&s->work, &s->lock);
            s->idle--;
        }
        struct call *call = s->queue;
        s->queue = call->next;
        if (!s->queue)
            s->queue_tail = &s->queue;
        pthread_mutex_unlock(&s->lock);
        call_run(call);
        call_free(call);
        pthread_mutex_lock(&s->lock);
        if (--s->busy == 0)
            pthread_cond_broadcast(&s->quiet);
    }
    return NULL;
}

static int thread_start(void *(*main_fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 256U << 10);
    int r = pthread_create(&thread, &attr, main_fn, arg);
    pthread_attr_destroy(&attr);
    return -r;
}

/* Takes call. Queued calls are counted busy at once, so that server_free waits for them. */
static int call_queue(struct server *s, struct call *call)
{
    int r = 0;

    pthread_mutex_lock(&s->lock);
    unsigned queued = 1;
    for (struct call *c = s->queue; c; c = c->next)
        queued++;
    if (s->idle < queued) {
        r = s->workers < WORKERS_MAX ? thread_start(worker_main, s) : -EAGAIN;
        if (r == 0)
            s->workers++;
    }
    if (r < 0 && s->workers == 0) {
        pthread_mutex_unlock(&s->lock);
        call_free(call);
        return r;
    }
    call->next = NULL;
    *s->queue_tail = call;
    s->queue_tail = &call->next;
    s->busy++;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static char *journal_line(uint64_t conn, const struct ttrpc_header *h, const uint8_t *body,
                          const Ttrpc__Request *q)
{
    struct json_object *o = json_object_new_object();
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char hex[2 * SHA256_DIGEST_LENGTH + 1];

    SHA256(body, h->length, digest);
    str_hex(digest, sizeof digest, hex);
    json_add_i64(o, "t", clock_real_ms());
    json_add_i64(o, "conn", (int64_t)conn);
    json_add_i64(o, "sid", h->stream);
    json_add_i64(o, "type", h->type);
    json_add_i64(o, "flags", h->flags);
    json_add_string(o, "service", q ? q->service : NULL);
    json_add_string(o, "method", q ? q->method : NULL);
    json_add_i64(o, "len", h->length);
    json_add_string(o, "sha256", hex);
    char *line = str_asprintf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return line;
}

/* One write per line: O_APPEND keeps lines of concurrent connections whole. */
static void journal_write(struct server *s, const struct conn *c, const struct ttrpc_header *h,
                          const uint8_t *body, const Ttrpc__Request *q)
{
    pthread_mutex_lock(&s->lock);
    uint64_t number = ++s->requests;
    pthread_mutex_unlock(&s->lock);
    if (s->journal >= 0) {
        _cleanup_free_ char *line = journal_line(c->id, h, body, q);

        if (write(s->journal, line, strlen(line)) < 0)
            log_error("journal: %s", strerror(errno));
    }
    if (s->config.bodies) {
        _cleanup_free_ char *path =
            str_asprintf("%s/%06llu", s->config.bodies, (unsigned long long)number);
        struct err err = ERR_INIT;

        if (fs_write_atomic(AT_FDCWD, path, body, h->length, 0600, &err) < 0)
            log_error("%s", err_text(&err));
    }
}

static const struct method *method_find(const struct server *s, const Ttrpc__Request *q,
                                        bool *ret_service_known)
{
    *ret_service_known = false;
    for (const struct method *m = s->config.methods; m->service; m++) {
        if (!str_eq(m->service, q->service))
            continue;
        *ret_service_known = true;
        if (str_eq(m->name, q->method))
            return m;
    }
    return NULL;
}

/* Takes q. */
static void request_accept(struct conn *c, uint32_t stream, Ttrpc__Request *q)
{
    struct server *s = c->server;
    bool service_known;
    const struct method *m = method_find(s, q, &service_known);

    if (!m) {
        _cleanup_free_ char *text =
            service_known ? str_asprintf("%.*s/%.*s is not supported", NAME_LOGGED_MAX, q->service,
                                         NAME_LOGGED_MAX, q->method)
                          : str_asprintf("/%.*s/%.*s service does not exist", NAME_LOGGED_MAX,
                                         q->service, NAME_LOGGED_MAX, q->method);
        conn_send_error(c, stream, service_known ? TTRPC_UNIMPLEMENTED : TTRPC_INVALID_ARGUMENT,
                        text);
        ttrpc__request__free_unpacked(q, NULL);
        return;
    }
    struct call *call = xcalloc(1, sizeof *call);
    *call = (struct call){.conn = c, .stream = stream, .request = q, .method = m};
    if (q->timeout_nano > 0) /* never later than a year from now: no overflow */
        call->deadline_ms =
            clock_mono_ms() + MIN(MAX(q->timeout_nano / 1000000, 1), 365LL * 86400 * 1000);
    pthread_mutex_lock(&s->lock);
    c->refs++;
    pthread_mutex_unlock(&s->lock);
    if (call_queue(s, call) < 0)
        conn_send_error(c, stream, TTRPC_RESOURCE_EXHAUSTED, "no thread for this call");
}

static int body_skip(struct conn *c, uint32_t len)
{
    _cleanup_free_ uint8_t *junk = xcalloc(1, SKIP_CHUNK);
    int r = 0;

    while (len > 0 && r == 0) {
        uint32_t n = MIN(len, SKIP_CHUNK);

        r = read_all(c->fd, junk, n);
        len -= n;
    }
    return r;
}

static void frame_accept(struct conn *c, const struct ttrpc_header *h, const uint8_t *body)
{
    Ttrpc__Request *q = NULL;
    struct err err = ERR_INIT;

    if (h->type == TTRPC_REQUEST)
        (void)ttrpc_request_decode(body, h->length, &q, &err);
    journal_write(c->server, c, h, body, q);
    if (h->type == TTRPC_REQUEST && q && h->stream % 2 == 1) {
        request_accept(c, h->stream, q);
        return;
    }
    if (h->type == TTRPC_REQUEST)
        conn_send_error(c, h->stream, TTRPC_INVALID_ARGUMENT,
                        h->stream % 2 == 0 ? "stream ID must be odd" : err_text(&err));
    else if (h->type == TTRPC_DATA)
        conn_send_error(c, h->stream, TTRPC_INVALID_ARGUMENT, "Stream is no longer active");
    if (q)
        ttrpc__request__free_unpacked(q, NULL);
}

static int frame_read(struct conn *c)
{
    uint8_t head[TTRPC_HEADER_SIZE];
    struct ttrpc_header h;

    int r = read_all(c->fd, head, sizeof head);
    if (r < 0)
        return r;
    ttrpc_header_decode(head, &h);
    if (h.length > TTRPC_BODY_MAX) {
        r = body_skip(c, h.length);
        if (r == 0)
            conn_send_error(c, h.stream, TTRPC_INVALID_ARGUMENT,
                            "message length exceeds maximum message size of 4194304");
        return r;
    }
    _cleanup_free_ uint8_t *body = xcalloc(1, (size_t)h.length + 1);
    r = read_all(c->fd, body, h.length);
    if (r == 0)
        frame_accept(c, &h, body);
    return r;
}

static void *reader_main(void *arg)
{
    struct conn *c = arg;
    struct server *s = c->server;

    while (frame_read(c) == 0)
        ;
    conn_cancel(c);
    conn_unref(c);
    OPENSSL_thread_stop(); /* what libcrypto keeps for this thread, before anyone counts leaks */
    pthread_mutex_lock(&s->lock);
    if (--s->busy == 0)
        pthread_cond_broadcast(&s->quiet);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void server_add(struct server *s, int fd)
{
    struct conn *c = xcalloc(1, sizeof *c);

    *c = (struct conn){.server = s, .fd = fd, .gone = eventfd(0, EFD_CLOEXEC), .refs = 1};
    pthread_mutex_init(&c->send_lock, NULL);
    pthread_mutex_lock(&s->lock);
    c->id = ++s->conn_ids;
    c->next = s->conns;
    s->conns = c;
    s->busy++;
    int r = c->gone < 0 ? -EMFILE : thread_start(reader_main, c);
    if (r < 0)
        s->busy--;
    pthread_mutex_unlock(&s->lock);
    if (r < 0) {
        log_error("a connection is refused: %s", strerror(-r));
        conn_unref(c);
    }
}

int server_new(const struct server_config *config, struct server **ret, struct err *err)
{
    int journal = -1;

    if (config->journal) {
        journal = open(config->journal, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (journal < 0)
            return err_errno(err, -errno, "opening the journal %s", config->journal);
    }
    if (config->bodies && mkdir(config->bodies, 0700) < 0 && errno != EEXIST) {
        int r = -errno;
        if (journal >= 0)
            close(journal);
        return err_errno(err, r, "making %s", config->bodies);
    }
    struct server *s = xcalloc(1, sizeof *s);
    *s = (struct server){.config = *config, .journal = journal};
    s->queue_tail = &s->queue;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->quiet, NULL);
    *ret = s;
    return 0;
}

void server_free(struct server *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    for (struct conn *c = s->conns; c; c = c->next)
        conn_cancel(c);
    while (s->busy > 0)
        pthread_cond_wait(&s->quiet, &s->lock);
    if (s->journal >= 0)
        close(s->journal);
    s->journal = -1;
    pthread_mutex_unlock(&s->lock);
    /* Idle workers still look at s: it lives until the process ends. */
}
