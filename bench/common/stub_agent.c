/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: bench-agent [--verify] [SOCKET]
 *
 * An agent that is never the bottleneck: a thread for each connection, blocking calls, no copy of
 * what it sends. It answers Check, ReadStdout, CopyFile, CreateContainer, WaitProcess, SignalProcess
 * and Counters (traffic.h), and everything else with an empty answer. With --verify it compares what it gets.
 *
 * Names carry numbers: container "r3" reads stream 3 and goes on where the last ReadStdout of that
 * stream ended, whichever connection it came on; file ".../f3" is expected from its first byte to
 * its last; container "c12" may be created once, process "w12" waited for once. So a request that is
 * executed twice is noticed. WaitProcess is answered when SignalProcess comes for the same process.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "base/str.h"
#include "bench/common/traffic.h"
#include "wire/ttrpc.h"

#define SOCKET_DEFAULT "/run/kata-containers/agent.sock"
#define CHUNK (256U << 10)
#define BUFFER (TTRPC_HEADER_SIZE + TTRPC_BODY_MAX + CHUNK)

static bool verify;
static struct traffic_counters count;
static uint64_t read_at[TRAFFIC_STREAMS], copy_at[TRAFFIC_STREAMS];
static uint8_t created[TRAFFIC_CREATES], waited[TRAFFIC_CREATES];

struct wait {
    uint32_t process, stream; /* stream 0: free */
};

struct connection {
    int fd;
    uint8_t *in;
    size_t at, have;
    struct wait waits[TRAFFIC_WAITS];
};

struct call {
    uint32_t stream;
    struct field method, payload;
};

static void counted(uint64_t *counter, uint64_t n)
{
    __atomic_add_fetch(counter, n, __ATOMIC_RELAXED);
}

static bool write_all(int fd, struct iovec *iov, int n)
{
    while (n > 0) {
        ssize_t wrote = writev(fd, iov, n);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return false;
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
    return true;
}

/* A response whose payload is {1: data}, or empty. */
static bool answer(const struct connection *c, uint32_t stream, const void *data, size_t len)
{
    uint8_t head[TTRPC_HEADER_SIZE + 32], inner[16];
    uint8_t *end = head + TTRPC_HEADER_SIZE;
    size_t inner_len = data ? (size_t)(put_length(inner, 1, len) - inner) : 0;
    end = put_length(end, 1, 0); /* status OK, as ttrpc-rust sends it */
    if (data) {
        end = put_length(end, 2, inner_len + len);
        memcpy(end, inner, inner_len);
        end += inner_len;
    }
    struct ttrpc_header h = {.length = (uint32_t)((size_t)(end - head) - TTRPC_HEADER_SIZE + len),
                             .stream = stream,
                             .type = TTRPC_RESPONSE};
    ttrpc_header_encode(&h, head);
    struct iovec iov[2] = {{head, (size_t)(end - head)}, {(void *)(uintptr_t)data, len}};
    return write_all(c->fd, iov, len > 0 ? 2 : 1);
}

/* The number at the end of a name; UINT32_MAX when there is none below max. */
static uint32_t number_of(const struct field *name, uint32_t max)
{
    uint64_t n = 0;
    size_t at = (size_t)name->value;
    while (at > 0 && name->data[at - 1] >= '0' && name->data[at - 1] <= '9')
        at--;
    for (; at < name->value; at++)
        n = n * 10 + (uint64_t)(name->data[at] - '0');
    return n < max ? (uint32_t)n : UINT32_MAX;
}

static bool serve_read(const struct connection *c, const struct call *call)
{
    const uint8_t *at = call->payload.data, *end = at + call->payload.value;
    uint32_t stream = UINT32_MAX;
    uint64_t len = 0;
    for (struct field f; field_next(&at, end, &f);) {
        if (f.number == 1)
            stream = number_of(&f, TRAFFIC_STREAMS);
        else if (f.number == 3)
            len = f.value;
    }
    counted(&count.reads, 1);
    if (stream == UINT32_MAX || len > TRAFFIC_COPY) {
        counted(&count.wrong, 1);
        return answer(c, call->stream, NULL, 0);
    }
    uint64_t from = __atomic_fetch_add(&read_at[stream], len, __ATOMIC_RELAXED);
    return answer(c, call->stream, traffic_bytes(stream, from), (size_t)len);
}

static bool serve_copy(const struct connection *c, const struct call *call)
{
    const uint8_t *at = call->payload.data, *end = at + call->payload.value;
    uint32_t stream = UINT32_MAX;
    uint64_t offset = 0;
    struct field data = {0};
    for (struct field f; field_next(&at, end, &f);) {
        if (f.number == 1)
            stream = number_of(&f, TRAFFIC_STREAMS);
        else if (f.number == 7)
            offset = f.value;
        else if (f.number == 8)
            data = f;
    }
    counted(&count.copies, 1);
    if (stream == UINT32_MAX || data.value > TRAFFIC_COPY ||
        (verify && (offset != copy_at[stream] ||
                    memcmp(data.data, traffic_bytes(stream, offset), data.value) != 0))) {
        counted(&count.wrong, 1);
    } else {
        copy_at[stream] = offset + data.value;
        counted(&count.copy_bytes, data.value);
    }
    return answer(c, call->stream, NULL, 0);
}

static bool serve_create(const struct connection *c, const struct call *call)
{
    const uint8_t *at = call->payload.data, *end = at + call->payload.value;
    uint32_t id = UINT32_MAX;
    struct field data = {0};
    for (struct field f; field_next(&at, end, &f);) {
        if (f.number == 1)
            id = number_of(&f, TRAFFIC_CREATES);
        else if (f.number == TRAFFIC_FILLER)
            data = f;
    }
    counted(&count.creates, 1);
    if (id == UINT32_MAX || data.value != TRAFFIC_CREATE ||
        memcmp(data.data, traffic_bytes(id, 0), TRAFFIC_CREATE) != 0)
        counted(&count.wrong, 1);
    else if (__atomic_exchange_n(&created[id], 1, __ATOMIC_RELAXED))
        counted(&count.twice, 1);
    return answer(c, call->stream, NULL, 0);
}

/* The process of WaitProcess and SignalProcess: field 1. */
static uint32_t process_of(const struct call *call)
{
    const uint8_t *at = call->payload.data, *end = at + call->payload.value;
    for (struct field f; field_next(&at, end, &f);)
        if (f.number == 1)
            return number_of(&f, TRAFFIC_CREATES);
    return UINT32_MAX;
}

static bool serve_wait(struct connection *c, const struct call *call)
{
    uint32_t process = process_of(call);
    if (process == UINT32_MAX)
        counted(&count.wrong, 1);
    else if (__atomic_exchange_n(&waited[process], 1, __ATOMIC_RELAXED))
        counted(&count.twice, 1);
    for (size_t i = 0; i < TRAFFIC_WAITS; i++)
        if (!c->waits[i].stream) {
            c->waits[i] = (struct wait){process, call->stream};
            return true;
        }
    return false;
}

static bool serve_signal(struct connection *c, const struct call *call)
{
    uint32_t process = process_of(call);
    uint64_t status = process;
    for (size_t i = 0; i < TRAFFIC_WAITS; i++)
        if (c->waits[i].stream && c->waits[i].process == process) {
            counted(&count.waits, 1);
            if (!answer(c, c->waits[i].stream, &status, sizeof(status)))
                return false;
            c->waits[i].stream = 0;
            return answer(c, call->stream, NULL, 0);
        }
    counted(&count.wrong, 1);
    return answer(c, call->stream, NULL, 0);
}

static bool is(const struct field *f, const char *name)
{
    return f->value == strlen(name) && memcmp(f->data, name, f->value) == 0;
}

static bool serve_call(struct connection *c, const struct call *call)
{
    if (is(&call->method, "WaitProcess"))
        return serve_wait(c, call);
    if (is(&call->method, "SignalProcess"))
        return serve_signal(c, call);
    if (is(&call->method, "ReadStdout"))
        return serve_read(c, call);
    if (is(&call->method, "CopyFile"))
        return serve_copy(c, call);
    if (is(&call->method, "CreateContainer"))
        return serve_create(c, call);
    if (is(&call->method, "Counters")) {
        struct traffic_counters now = count;
        return answer(c, call->stream, &now, sizeof(now));
    }
    counted(&count.checks, is(&call->method, "Check"));
    return answer(c, call->stream, NULL, 0);
}

/* A whole frame is at c->in + c->at. */
static bool serve_frame(struct connection *c, const struct ttrpc_header *h)
{
    const uint8_t *at = c->in + c->at + TTRPC_HEADER_SIZE, *end = at + h->length;
    struct call call = {.stream = h->stream};
    for (struct field f; field_next(&at, end, &f);) {
        if (f.number == 2)
            call.method = f;
        else if (f.number == 3)
            call.payload = f;
    }
    return serve_call(c, &call);
}

static bool serve_frames(struct connection *c)
{
    struct ttrpc_header h;
    while (c->have - c->at >= TTRPC_HEADER_SIZE) {
        ttrpc_header_decode(c->in + c->at, &h);
        if (h.length > TTRPC_BODY_MAX)
            return false;
        if (c->have - c->at < TTRPC_HEADER_SIZE + h.length)
            break;
        if (!serve_frame(c, &h))
            return false;
        c->at += TTRPC_HEADER_SIZE + h.length;
    }
    memmove(c->in, c->in + c->at, c->have - c->at);
    c->have -= c->at;
    c->at = 0;
    return true;
}

static void *serve(void *p)
{
    struct connection *c = p;
    do {
        ssize_t n = recv(c->fd, c->in + c->have, CHUNK, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        c->have += (size_t)n;
    } while (serve_frames(c));
    close(c->fd);
    free(c->in);
    free(c);
    return NULL;
}

static int listen_at(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mkdir("/run/kata-containers", 0755);
    if (str_format(a.sun_path, sizeof(a.sun_path), "%s", path) < 0)
        return -ENAMETOOLONG;
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 64) < 0)
        return -errno;
    return fd;
}

int main(int argc, char **argv)
{
    const char *path = SOCKET_DEFAULT;
    for (int i = 1; i < argc; i++) {
        if (str_eq(argv[i], "--verify"))
            verify = true;
        else
            path = argv[i];
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_at(path);
    if (listener < 0) {
        fprintf(stderr, "bench-agent: %s: %s\n", path, strerror(-listener));
        return 1;
    }
    for (;;) {
        pthread_t thread;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        struct connection *c = xcalloc(1, sizeof(*c));
        *c = (struct connection){.fd = fd, .in = xcalloc(1, BUFFER)};
        if (pthread_create(&thread, NULL, serve, c) == 0)
            pthread_detach(thread);
    }
}
