/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A blocking ttrpc client.
 *
 * Model: one connection; callers put a *waiter* (on their own stack) into the list, write their
 * frame, and sleep on the waiter's condition; the reader thread reads frames and hands each body to
 * the waiter of its stream id. Ids are odd, rising, and are given out under the lock that also
 * covers the write, as Go servers insist on the order (kata-contract.md 1.3).
 *
 * Failures: when the connection ends or sends what is not ttrpc, the reader stores why, wakes all
 * waiters, and every later call fails with the same words; there is no redial, as a call must never
 * be sent twice. A call that runs out of time forgets its waiter; a late answer finds none and is
 * dropped. The server is told of the time limit too (timeout_nano).
 *
 * Locks: `write` for ids and the socket's sending side, `lock` for waiters and the verdict; taken
 * in this order, `write` never while waiting for an answer.
 */
#include "wire/ttrpc_client.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "base/clock.h"
#include "base/str.h"

struct waiter {
    struct waiter *next;
    uint32_t stream;
    pthread_cond_t answered;
    bool done;
    uint8_t *body; /* owned */
    size_t len;
};

struct ttrpc_client {
    int fd;
    char *path;
    pthread_t reader;
    pthread_mutex_t write;
    uint32_t next_stream; /* write */
    pthread_mutex_t lock;
    struct waiter *waiters; /* lock */
    int dead;               /* lock: negative errno once the connection is of no use */
    struct err why;         /* lock */
    unsigned calls;         /* lock: under way */
    pthread_cond_t idle;    /* calls became 0 */
};

static int wait_connected(int fd, int64_t timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int soft = 0, n;
    socklen_t len = sizeof(soft);

    do {
        n = poll(&p, 1, (int)MIN(timeout_ms, INT32_MAX));
    } while (n < 0 && errno == EINTR);
    if (n == 0)
        return -ETIMEDOUT;
    if (n < 0 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &soft, &len) < 0)
        return -errno;
    return -soft;
}

/* A full backlog is EAGAIN on unix sockets, and cannot be polled for. */
static int dial(int fd, const struct sockaddr_un *address, int64_t timeout_ms)
{
    int64_t end = clock_mono_ms() + timeout_ms;

    while (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        if (errno == EINPROGRESS)
            return wait_connected(fd, timeout_ms);
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (clock_mono_ms() >= end)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return 0;
}

static const char *dial_advice(int r)
{
    switch (r) {
    case -ENOENT:
        return "; is the daemon running, with this socket?";
    case -ECONNREFUSED:
        return "; the daemon that made this socket is gone: start it";
    case -EACCES:
    case -EPERM:
        return "; this needs root";
    default:
        return "";
    }
}

static int open_socket(const char *path, int64_t timeout_ms, int *ret, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = -1;
    int r;

    if (str_empty(path) || strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "socket path '%s': 1 to %zu bytes are allowed", path,
                       sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, -errno, "making a socket");
    r = dial(fd, &address, timeout_ms);
    if (r < 0)
        return err_set(err, r, "connecting to %s: %s%s", path, strerror(-r), dial_advice(r));
    *ret = TAKE_FD(fd);
    return 0;
}

/* The descriptor is non-blocking, so that writers can be bounded; readers wait here. */
static int read_full(int fd, uint8_t *data, size_t len)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    while (len > 0) {
        ssize_t n = recv(fd, data, len, 0);

        if (n == 0)
            return -ECONNRESET;
        if (n < 0 && errno == EAGAIN)
            poll(&p, 1, -1);
        else if (n < 0 && errno != EINTR)
            return -errno;
        data += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static struct waiter *waiter_take(struct ttrpc_client *c, uint32_t stream)
{
    for (struct waiter **at = &c->waiters; *at; at = &(*at)->next)
        if ((*at)->stream == stream) {
            struct waiter *w = *at;

            *at = w->next;
            return w;
        }
    return NULL;
}

static int read_frame(struct ttrpc_client *c, struct err *err)
{
    uint8_t raw[TTRPC_HEADER_SIZE];
    _cleanup_free_ uint8_t *body = NULL;
    struct ttrpc_header h;
    struct waiter *w;
    int r = read_full(c->fd, raw, sizeof(raw));

    if (r < 0)
        return err_set(err, r, "the connection to %s ended", c->path);
    ttrpc_header_decode(raw, &h);
    if (h.length > TTRPC_BODY_MAX)
        return err_set(err, -EPROTO, "%s sent a frame of %u bytes", c->path, h.length);
    body = xcalloc(1, (size_t)h.length + 1);
    r = read_full(c->fd, body, h.length);
    if (r < 0)
        return err_set(err, r, "the connection to %s ended within an answer", c->path);
    if (h.type != TTRPC_RESPONSE)
        return 0;
    pthread_mutex_lock(&c->lock);
    w = waiter_take(c, h.stream);
    if (w) {
        w->body = TAKE_PTR(body);
        w->len = h.length;
        w->done = true;
        pthread_cond_signal(&w->answered);
    }
    pthread_mutex_unlock(&c->lock);
    return 0;
}

static void *reader_main(void *arg)
{
    struct ttrpc_client *c = arg;
    struct err err = ERR_INIT;

    while (read_frame(c, &err) == 0)
        ;
    pthread_mutex_lock(&c->lock);
    if (c->dead == 0) {
        c->dead = err.code;
        c->why = err;
    }
    for (struct waiter *w = c->waiters; w; w = w->next)
        pthread_cond_signal(&w->answered);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int ttrpc_client_connect(const char *path, int64_t timeout_ms, struct ttrpc_client **ret,
                         struct err *err)
{
    struct ttrpc_client *c;
    int fd = -1, r = open_socket(path, timeout_ms, &fd, err);

    if (r < 0)
        return r;
    c = xcalloc(1, sizeof(*c));
    c->fd = fd;
    c->path = xstrdup(path);
    c->next_stream = 1;
    pthread_mutex_init(&c->write, NULL);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->idle, NULL);
    r = pthread_create(&c->reader, NULL, reader_main, c);
    if (r != 0) {
        close(fd);
        free(c->path);
        free(c);
        return err_errno(err, -r, "no thread for the connection to %s", path);
    }
    *ret = c;
    return 0;
}

void ttrpc_client_shutdown(struct ttrpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->dead == 0) {
        c->dead = -ESHUTDOWN;
        err_set(&c->why, -ESHUTDOWN, "the connection to %s was closed here", c->path);
    }
    pthread_mutex_unlock(&c->lock);
    shutdown(c->fd, SHUT_RDWR);
}

void ttrpc_client_free(struct ttrpc_client *c)
{
    if (!c)
        return;
    ttrpc_client_shutdown(c);
    pthread_join(c->reader, NULL);
    pthread_mutex_lock(&c->lock);
    while (c->calls > 0)
        pthread_cond_wait(&c->idle, &c->lock);
    pthread_mutex_unlock(&c->lock);
    close(c->fd);
    pthread_cond_destroy(&c->idle);
    pthread_mutex_destroy(&c->write);
    pthread_mutex_destroy(&c->lock);
    free(c->path);
    free(c);
}

/* end_ms 0: never. A frame that is written in part cannot be taken back: the connection is dead. */
static int write_frame(struct ttrpc_client *c, const struct buf *frame, int64_t end_ms,
                       struct err *err)
{
    struct pollfd p = {.fd = c->fd, .events = POLLOUT};
    size_t sent = 0;

    while (sent < frame->len) {
        ssize_t n = send(c->fd, frame->data + sent, frame->len - sent, MSG_NOSIGNAL);
        int64_t left = end_ms == 0 ? -1 : MAX(end_ms - clock_mono_ms(), 0);

        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_errno(err, -errno, "writing to %s", c->path);
        if (left != 0) {
            poll(&p, 1, (int)MIN(left, 1000));
            continue;
        }
        if (sent > 0)
            shutdown(c->fd, SHUT_RDWR);
        return err_set(err, -ETIMEDOUT, "%s does not read", c->path);
    }
    return 0;
}

static void waiter_init(struct waiter *w)
{
    pthread_condattr_t attr;

    *w = (struct waiter){0};
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->answered, &attr);
    pthread_condattr_destroy(&attr);
}

static void waiter_done(struct waiter *w)
{
    pthread_cond_destroy(&w->answered);
    free(w->body);
}

struct request {
    const char *service, *method;
    const void *payload;
    size_t len;
    int64_t timeout_ms, end_ms; /* 0: none */
};

/* The waiter is known before its frame leaves; the frame leaves before the next id is given out. */
static int client_send(struct ttrpc_client *c, const struct request *q, struct waiter *w,
                       struct err *err)
{
    _cleanup_(buf_done) struct buf frame = BUF_INIT(0);
    int64_t timeout_ns = MIN(q->timeout_ms, INT64_MAX / 1000000) * 1000000;
    int r;

    pthread_mutex_lock(&c->write);
    w->stream = c->next_stream;
    r = ttrpc_add_request(&frame, w->stream, q->service, q->method, q->payload, q->len, timeout_ns,
                          err);
    if (r == 0) {
        c->next_stream += 2;
        pthread_mutex_lock(&c->lock);
        r = c->dead < 0 ? err_set(err, c->dead, "%s", err_text(&c->why)) : 0;
        if (r == 0) {
            w->next = c->waiters;
            c->waiters = w;
        }
        pthread_mutex_unlock(&c->lock);
    }
    if (r == 0)
        r = write_frame(c, &frame, q->end_ms, err);
    pthread_mutex_unlock(&c->write);
    return r;
}

static int waiter_wait(struct ttrpc_client *c, struct waiter *w, int64_t end_ms, struct err *err)
{
    struct timespec end = {.tv_sec = end_ms / 1000, .tv_nsec = end_ms % 1000 * 1000000};
    int r = 0;

    pthread_mutex_lock(&c->lock);
    while (!w->done && c->dead == 0 && r == 0)
        r = end_ms ? pthread_cond_timedwait(&w->answered, &c->lock, &end)
                   : pthread_cond_wait(&w->answered, &c->lock);
    if (w->done)
        r = 0;
    else if (c->dead < 0)
        r = err_set(err, c->dead, "%s", err_text(&c->why));
    else
        r = err_set(err, -ETIMEDOUT, "%s did not answer in time", c->path);
    pthread_mutex_unlock(&c->lock);
    return r;
}

static void client_enter(struct ttrpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    c->calls++;
    pthread_mutex_unlock(&c->lock);
}

/* Behind this the client may be freed by another thread. */
static void client_leave(struct ttrpc_client *c, const struct waiter *w)
{
    pthread_mutex_lock(&c->lock);
    (void)waiter_take(c, w->stream); /* gone already when it was answered */
    if (--c->calls == 0)
        pthread_cond_signal(&c->idle);
    pthread_mutex_unlock(&c->lock);
}

static int answer_decode(const struct waiter *w, const ProtobufCMessageDescriptor *type,
                         ProtobufCMessage **ret, int *ret_code, struct err *err)
{
    Ttrpc__Response *answer;
    const ProtobufCBinaryData *payload;
    int r = ttrpc_response_decode(w->body, w->len, &answer, err);

    if (r < 0)
        return r;
    payload = &answer->payload;
    if (answer->status && answer->status->code != 0) {
        if (ret_code)
            *ret_code = answer->status->code;
        r = err_set(err, -EREMOTEIO, "%s: %s",
                    ttrpc_code_name((enum ttrpc_code)answer->status->code),
                    answer->status->message);
    } else {
        r = ttrpc_message_decode(type, payload->data, payload->len, ret, err);
    }
    ttrpc__response__free_unpacked(answer, NULL);
    return r;
}

int ttrpc_client_call(struct ttrpc_client *c, const char *service, const char *method,
                      const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply,
                      int64_t timeout_ms, ProtobufCMessage **ret, int *ret_code, struct err *err)
{
    size_t len = protobuf_c_message_get_packed_size(request);
    _cleanup_free_ uint8_t *payload = xcalloc(1, len + 1);
    struct request q = {.service = service,
                        .method = method,
                        .payload = payload,
                        .len = len,
                        .timeout_ms = MAX(timeout_ms, 0),
                        .end_ms = timeout_ms > 0 ? clock_mono_ms() + timeout_ms : 0};
    struct waiter w;
    int r;

    if (ret_code)
        *ret_code = TTRPC_OK;
    protobuf_c_message_pack(request, payload);
    waiter_init(&w);
    client_enter(c);
    r = client_send(c, &q, &w, err);
    if (r == 0)
        r = waiter_wait(c, &w, q.end_ms, err);
    client_leave(c, &w);
    if (r == 0)
        r = answer_decode(&w, reply, ret, ret_code, err);
    waiter_done(&w);
    return r < 0 ? err_wrap(err, r, "%s", method) : 0;
}
