/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests are built on the stack up to where their data begin and written with it in one call;
 * answers are parsed in place, in one buffer.
 */
#include "bench/common/client.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "base/str.h"
#include "wire/ttrpc.h"

#define CHUNK (256U << 10)
#define BUFFER (TTRPC_HEADER_SIZE + TTRPC_BODY_MAX + CHUNK)
#define HEAD_MAX 256

int client_open(struct client *c, const char *path, struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    *c = (struct client){.fd = -1, .next_stream = 1};
    if (str_format(a.sun_path, sizeof(a.sun_path), "%s", path) < 0)
        return err_set(err, -ENAMETOOLONG, "%s", path);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        return err_errno(err, -errno, "connecting to %s", path);
    c->fd = TAKE_FD(fd);
    c->in = xcalloc(1, BUFFER);
    return 0;
}

void client_close(struct client *c)
{
    closep(&c->fd);
    free(c->in);
    *c = (struct client){.fd = -1};
}

int client_timeout(struct client *c, int64_t ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    return setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
                   setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0
               ? -errno
               : 0;
}

static int write_all(int fd, struct iovec *iov, int n)
{
    while (n > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t wrote = sendmsg(fd, &m, MSG_NOSIGNAL);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return errno == EAGAIN ? -ETIMEDOUT : -errno;
        while (n > 0 && (size_t)wrote >= iov->iov_len) {
            wrote -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + wrote;
            iov->iov_len -= (size_t)wrote;
        }
    }
    return 0;
}

struct request {
    const char *service, *method;
    uint8_t fields[64]; /* of the payload, in front of data; data's own header is the last */
    size_t fields_len;
    const uint8_t *data;
    size_t len;
};

static int64_t request_send(struct client *c, const struct request *q)
{
    static const uint8_t timeout[] = {4 << 3, 0x80, 0xb0, 0x9d, 0xc2, 0xdf, 0x01}; /* 60 s */
    uint8_t head[HEAD_MAX], *p = head + TTRPC_HEADER_SIZE;
    size_t payload = q->fields_len + q->len;
    p = put_bytes(p, 1, q->service, strlen(q->service));
    p = put_bytes(p, 2, q->method, strlen(q->method));
    p = put_length(p, 3, payload);
    memcpy(p, q->fields, q->fields_len);
    p += q->fields_len;
    uint32_t stream = c->next_stream;
    c->next_stream += 2;
    struct ttrpc_header h = {.stream = stream, .type = TTRPC_REQUEST};
    h.length = (uint32_t)((size_t)(p - head) - TTRPC_HEADER_SIZE + q->len + sizeof(timeout));
    ttrpc_header_encode(&h, head);
    struct iovec iov[3] = {{head, (size_t)(p - head)},
                           {(void *)(uintptr_t)q->data, q->len},
                           {(void *)(uintptr_t)timeout, sizeof(timeout)}};
    int r = write_all(c->fd, iov, 3);
    return r < 0 ? r : (int64_t)stream;
}

/* {1: prefix + number}, the name of a stream. */
static uint8_t *put_name(uint8_t *out, const char *prefix, uint32_t number)
{
    char name[24];
    (void)str_format(name, sizeof(name), "%s%u", prefix, number);
    return put_bytes(out, 1, name, strlen(name));
}

int64_t client_check(struct client *c)
{
    struct request q = {.service = "grpc.Health", .method = "Check"};
    return request_send(c, &q);
}

int64_t client_counters(struct client *c)
{
    struct request q = {.service = "bench.Agent", .method = "Counters"};
    return request_send(c, &q);
}

int64_t client_read(struct client *c, uint32_t stream, size_t len)
{
    struct request q = {.service = "grpc.AgentService", .method = "ReadStdout"};
    uint8_t *p = put_name(q.fields, "r", stream);
    q.fields_len = (size_t)(put_number(p, 3, len) - q.fields);
    return request_send(c, &q);
}

int64_t client_copy(struct client *c, uint32_t stream, uint64_t offset, uint64_t size)
{
    struct request q = {.service = "grpc.AgentService", .method = "CopyFile"};
    q.data = traffic_bytes(stream, offset);
    q.len = (size_t)MIN(size - offset, (uint64_t)TRAFFIC_COPY);
    uint8_t *p = put_name(q.fields, "/f", stream);
    p = put_number(p, 2, size);
    p = put_number(p, 3, 0100644);
    p = put_number(p, 7, offset);
    q.fields_len = (size_t)(put_length(p, 8, q.len) - q.fields);
    return request_send(c, &q);
}

int64_t client_create(struct client *c, uint32_t number)
{
    struct request q = {.service = "grpc.AgentService", .method = "CreateContainer"};
    q.data = traffic_bytes(number, 0);
    q.len = TRAFFIC_CREATE;
    uint8_t *p = put_name(q.fields, "c", number);
    q.fields_len = (size_t)(put_length(p, TRAFFIC_FILLER, q.len) - q.fields);
    return request_send(c, &q);
}

static int64_t process_send(struct client *c, const char *method, uint32_t number)
{
    struct request q = {.service = "grpc.AgentService", .method = method};
    q.fields_len = (size_t)(put_name(q.fields, "w", number) - q.fields);
    return request_send(c, &q);
}

int64_t client_wait(struct client *c, uint32_t number)
{
    return process_send(c, "WaitProcess", number);
}

int64_t client_end(struct client *c, uint32_t number)
{
    return process_send(c, "SignalProcess", number);
}

/* Until n bytes lie at c->at. */
static int need(struct client *c, size_t n)
{
    if (c->have - c->at >= n)
        return 0;
    memmove(c->in, c->in + c->at, c->have - c->at);
    c->have -= c->at;
    c->at = 0;
    while (c->have < n) {
        ssize_t got = recv(c->fd, c->in + c->have, CHUNK, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got == 0 ? -ECONNRESET : errno == EAGAIN ? -ETIMEDOUT : -errno;
        c->have += (size_t)got;
    }
    return 0;
}

static void reply_parse(const uint8_t *at, const uint8_t *end, struct reply *ret)
{
    for (struct field f; field_next(&at, end, &f);) {
        const uint8_t *in = f.data, *in_end = in + f.value;
        for (struct field g; field_next(&in, in_end, &g);) {
            if (f.number == 1 && g.number == 1) {
                ret->code = (int)g.value;
            } else if (f.number == 2 && g.number == 1) {
                ret->data = g.data;
                ret->len = (size_t)g.value;
            }
        }
    }
}

int client_receive(struct client *c, struct reply *ret)
{
    struct ttrpc_header h;
    int r = need(c, TTRPC_HEADER_SIZE);
    if (r < 0)
        return r;
    ttrpc_header_decode(c->in + c->at, &h);
    if (h.length > TTRPC_BODY_MAX || h.type != TTRPC_RESPONSE)
        return -EPROTO;
    r = need(c, TTRPC_HEADER_SIZE + h.length);
    if (r < 0)
        return r;
    const uint8_t *body = c->in + c->at + TTRPC_HEADER_SIZE;
    *ret = (struct reply){.stream = h.stream};
    reply_parse(body, body + h.length, ret);
    c->at += TTRPC_HEADER_SIZE + h.length;
    return 0;
}
