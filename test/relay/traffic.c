/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Two directions, each with a writer at one socket and a reader at the other. Both change their
 * manners every few milliseconds: writes from one byte to 200 KB, in bursts or with pauses; reads
 * small or large, or none for a while, so that every queue between them runs full and empty. Each
 * direction has an end of its own, chosen at the start (sometimes no byte at all) or now when
 * `stop` is set; behind it the writer shuts down, and the reader must see the end of file at
 * exactly the right offset while the other direction goes on.
 */
#include "relay/traffic.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "relay/stream.h"

#define BUFFER (200U << 10)

struct manner {
    size_t most; /* bytes in one call */
    bool paused;
    int64_t until_us; /* then another */
};

struct direction {
    const char *name;
    int from, to;
    uint64_t key, sent, end, got;
    bool sent_fin, got_fin;
    struct manner writer, reader;
};

static uint8_t buffer[BUFFER], expected[BUFFER];

static void change(struct manner *m, int64_t now, uint64_t *random)
{
    static const size_t most[] = {1, 60, 300, 4096, 20000, BUFFER, BUFFER, BUFFER};

    if (now < m->until_us)
        return;
    m->most = most[stream_below(random, ARRAY_SIZE(most))];
    m->paused = stream_below(random, 6) == 0;
    m->until_us = now + 200 + (int64_t)stream_below(random, m->paused ? 3000 : 12000);
}

static int fail(const struct traffic *t, const struct direction *d, uint64_t wrong,
                const char *what)
{
    snprintf(t->shared->message, sizeof(t->shared->message),
             "%s: %s at offset %llu (sent %llu of %llu)", d->name, what, (unsigned long long)d->got,
             (unsigned long long)d->sent, (unsigned long long)d->end);
    __atomic_add_fetch(&t->shared->wrong, wrong, __ATOMIC_RELAXED);
    return -EBADMSG;
}

static int write_some(const struct traffic *t, struct direction *d, uint64_t *random)
{
    size_t n = 1 + (size_t)stream_below(random, d->writer.most);

    if (__atomic_load_n(&t->shared->stop, __ATOMIC_RELAXED))
        d->end = d->sent;
    n = (size_t)MIN(n, d->end - d->sent);
    if (n == 0) {
        if (shutdown(d->from, SHUT_WR) < 0)
            return fail(t, d, 1, "shutdown failed");
        d->sent_fin = true;
        return 0;
    }
    stream_source(d->key, d->sent, buffer, n);
    ssize_t r = send(d->from, buffer, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (r < 0 && errno != EAGAIN)
        return fail(t, d, 1, strerror(errno));
    d->sent += r > 0 ? (uint64_t)r : 0;
    return 0;
}

static int check_end(const struct traffic *t, struct direction *d)
{
    uint64_t source = stream_source_offset(d->got);

    d->got_fin = true;
    if (!d->sent_fin)
        return fail(t, d, 1, "end of file too early");
    if (source != d->sent)
        return fail(t, d, d->sent - source, "bytes missing");
    if (stream_inject_due(d->got))
        return fail(t, d, STREAM_INJECT, "the last injection is missing");
    return 0;
}

static int read_some(const struct traffic *t, struct direction *d, uint64_t *random)
{
    size_t n = 1 + (size_t)stream_below(random, d->reader.most);
    ssize_t r = recv(d->to, buffer, n, MSG_DONTWAIT);

    if (r == 0)
        return check_end(t, d);
    if (r < 0)
        return errno == EAGAIN ? 0 : fail(t, d, 1, strerror(errno));
    stream_expected(d->key, d->got, expected, (size_t)r);
    if (memcmp(buffer, expected, (size_t)r) != 0) {
        uint64_t wrong = 0;
        for (ssize_t i = 0; i < r; i++)
            wrong += buffer[i] != expected[i];
        return fail(t, d, wrong, "wrong bytes");
    }
    d->got += (uint64_t)r;
    __atomic_add_fetch(&t->shared->bytes, (uint64_t)r, __ATOMIC_RELAXED);
    return 0;
}

static int step(const struct traffic *t, struct direction d[2], uint64_t *random)
{
    struct pollfd fds[4];
    int64_t now = clock_mono_us();
    bool stop = __atomic_load_n(&t->shared->stop, __ATOMIC_RELAXED);
    int r = 0;

    for (int i = 0; i < 2; i++) {
        change(&d[i].writer, now, random);
        change(&d[i].reader, now, random);
        bool write = !d[i].sent_fin && (stop || !d[i].writer.paused);
        bool read = !d[i].got_fin && (stop || !d[i].reader.paused);
        fds[2 * i] = (struct pollfd){.fd = write ? d[i].from : -1, .events = POLLOUT};
        fds[2 * i + 1] = (struct pollfd){.fd = read ? d[i].to : -1, .events = POLLIN};
    }
    poll(fds, ARRAY_SIZE(fds), 2);
    for (int i = 0; i < 2 && r == 0; i++) {
        if (fds[2 * i].revents || (stop && !d[i].sent_fin))
            r = write_some(t, &d[i], random);
        if (r == 0 && fds[2 * i + 1].revents)
            r = read_some(t, &d[i], random);
    }
    return r;
}

int traffic_run(const struct traffic *t)
{
    uint64_t random = t->seed;
    struct direction d[2] = {{.name = "a to b", .from = t->a, .to = t->b},
                             {.name = "b to a", .from = t->b, .to = t->a}};

    for (int i = 0; i < 2; i++) {
        d[i].key = stream_random(&random);
        d[i].end = stream_below(&random, 4) ? stream_below(&random, t->limit) : 0;
    }
    /* One of the two has something to say. */
    d[stream_below(&random, 2)].end = t->limit;
    while (!(d[0].got_fin && d[1].got_fin))
        if (step(t, d, &random) < 0)
            return 1;
    return 0;
}
