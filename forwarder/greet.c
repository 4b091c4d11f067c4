/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Native and plain mode share one port. A daemon in native mode offers the ALPN protocol of the
 * tunnel in its ClientHello, a stock adaptor offers none, so the first bytes tell. They are peeked
 * at, never taken: whoever gets the connection reads them as if nobody had looked.
 *
 * What has been peeked at stays readable. So that poll does not wake us for the same bytes again,
 * SO_RCVLOWAT asks for one byte more than there are; the end of the stream wakes us all the same.
 *
 * Limits: GREETINGS_MAX at once, the oldest goes first, each for a limited time.
 */
#include "forwarder/greet.h"

#include <errno.h>
#include <sys/socket.h>

#include "base/macros.h"
#include "wire/tls_plain.h"

#define GREETINGS_MAX 64

struct greeting {
    struct greeter *greeter;
    struct greeting *next;
    int fd;
    uv_poll_t poll;
    uv_timer_t timer;
    unsigned handles;
};

struct greeter {
    uv_loop_t *loop;
    greet_decided_fn *decided;
    void *owner;
    struct greeting *first; /* newest first */
    unsigned n;
};

struct greeter *greeter_new(uv_loop_t *loop, greet_decided_fn *decided, void *owner)
{
    struct greeter *g = xcalloc(1, sizeof(*g));
    *g = (struct greeter){.loop = loop, .decided = decided, .owner = owner};
    return g;
}

static void on_closed(uv_handle_t *handle)
{
    struct greeting *x = handle->data;
    if (--x->handles == 0)
        free(x);
}

/* Returns the descriptor. */
static int greeting_end(struct greeting *x)
{
    struct greeting **at = &x->greeter->first;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    x->greeter->n--;
    uv_close((uv_handle_t *)&x->poll, on_closed);
    uv_close((uv_handle_t *)&x->timer, on_closed);
    return x->fd;
}

void greeter_free(struct greeter *g)
{
    if (!g)
        return;
    while (g->first)
        close(greeting_end(g->first));
    free(g);
}

static void want(int fd, int bytes)
{
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes));
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct greeting *x = poll->data;
    struct greeter *g = x->greeter;
    uint8_t data[TLS_HELLO_MAX];
    (void)events;
    ssize_t n = status < 0 ? -1 : recv(x->fd, data, sizeof(data), MSG_PEEK);
    if (n < 0 && status == 0 && (errno == EAGAIN || errno == EINTR))
        return;
    int r = n > 0 ? tls_hello_offers(data, (size_t)n, TLS_ALPN_TUNNEL) : -ECONNRESET;
    int lowat = 0;
    socklen_t len = sizeof(lowat);
    getsockopt(x->fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, &len);
    if (r == -EAGAIN && n >= lowat) {
        want(x->fd, (int)n + 1);
        return;
    }
    int fd = greeting_end(x);
    if (r < 0) { /* it ended before it had said enough */
        close(fd);
        return;
    }
    want(fd, 1);
    g->decided(g->owner, fd, r == 1);
}

static void on_timer(uv_timer_t *timer)
{
    close(greeting_end(timer->data));
}

static void evict_oldest(struct greeter *g)
{
    struct greeting *oldest = g->first;
    while (oldest->next)
        oldest = oldest->next;
    close(greeting_end(oldest));
}

void greeter_add(struct greeter *g, int fd, unsigned patience_ms)
{
    if (g->n >= GREETINGS_MAX)
        evict_oldest(g);
    struct greeting *x = xcalloc(1, sizeof(*x));
    *x = (struct greeting){.greeter = g, .next = g->first, .fd = fd};
    if (uv_poll_init(g->loop, &x->poll, fd) < 0) {
        close(fd);
        free(x);
        return;
    }
    uv_timer_init(g->loop, &x->timer);
    x->poll.data = x->timer.data = x;
    x->handles = 2;
    g->first = x;
    g->n++;
    uv_poll_start(&x->poll, UV_READABLE, on_poll);
    uv_timer_start(&x->timer, on_timer, patience_ms, 0);
}
