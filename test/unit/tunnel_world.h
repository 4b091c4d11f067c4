/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two ends of a tunnel on one loop, over loopback, with endpoints in memory: what the tunnel's
 * tests share. The bytes of a stream are a pattern that both ends can compute, so nothing is
 * stored.
 */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/str.h"
#include "relay/tunnel.h"
#include "wire/tunnel_frame.h"

#define PATTERN 1048573U /* a prime: no power-of-two step finds the same byte again */
#define RING (256U << 10)
#define EPS 256
#define HELD_FDS 64

static uint8_t pattern[PATTERN];

struct ep { /* one end of one channel */
    struct tunnel **t;
    uint32_t id;
    bool used, gone, fin_acked;
    uint32_t seed, peer_seed;
    uint64_t total, tail; /* tx: bytes to send in all; acknowledged */
    bool keep_open;       /* no fin behind total */
    uint64_t held, read;  /* rx */
    bool fin, slow, full; /* slow: the test moves `read`; full: -ENOSPC */
    unsigned nospc;
    uint8_t ring[RING];
    char reason[TUNNEL_REASON_MAX + 1];
};

struct side {
    struct world *w;
    struct tunnel *t;
    struct tls_identity *id;
    struct tls_ctx *ctx;
    struct tunnel_config config;
    unsigned ups, downs, refusals, enrolled;
    int enrolled_result, open_result;
    bool agent_ready;
    uint64_t generation;
    char why[ERR_TEXT_MAX], refused[ERR_TEXT_MAX];
    uint8_t pin[TLS_PIN_SIZE];
    struct ep *eps[EPS];
};

struct world {
    uv_loop_t loop;
    uv_timer_t limit, step;
    uv_poll_t listen_poll;
    int listener;
    struct sockaddr_in address;
    bool refuse_all; /* accept and close */
    bool no_duplicates;
    int held[HELD_FDS]; /* duplicates of accepted sockets */
    unsigned accepted;
    struct side daemon, forwarder;
    bool (*done)(struct world *w);
    bool timed_out;
};

static _unused_ void pattern_init(void)
{
    uint32_t x = 1;
    for (size_t i = 0; i < PATTERN; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = (uint8_t)(x >> 24);
    }
}

/* -- endpoint -- */

static _unused_ uint64_t ep_tx_head(void *p)
{
    struct ep *e = p;
    return MIN(e->total, e->tail + RING);
}

static _unused_ bool ep_tx_fin(void *p)
{
    struct ep *e = p;
    return !e->keep_open && ep_tx_head(e) == e->total;
}

static _unused_ uint64_t ep_tx_tail(void *p)
{
    return ((struct ep *)p)->tail;
}

static _unused_ size_t ep_tx_peek(void *p, uint64_t offset, const uint8_t **ret)
{
    struct ep *e = p;
    size_t at = (size_t)((offset + e->seed) % PATTERN);
    assert_true(offset >= e->tail && offset <= ep_tx_head(e));
    *ret = pattern + at;
    return (size_t)MIN(PATTERN - at, ep_tx_head(e) - offset);
}

static _unused_ int ep_tx_acked(void *p, uint64_t offset)
{
    struct ep *e = p;
    if (offset > ep_tx_head(e))
        return -ERANGE;
    e->tail = MAX(e->tail, offset);
    if (e->tail < e->total)
        tunnel_channel_kick(*e->t, e->id);
    return 0;
}

static _unused_ uint64_t ep_rx_held(void *p)
{
    return ((struct ep *)p)->held;
}

static _unused_ uint64_t ep_rx_limit(void *p)
{
    return ((struct ep *)p)->read + RING;
}

static _unused_ ssize_t ep_rx_space(void *p, uint8_t **ret)
{
    struct ep *e = p;
    size_t at = (size_t)(e->held % RING);
    if (e->full) {
        e->nospc++;
        return -ENOSPC;
    }
    size_t n = (size_t)MIN(RING - at, e->read + RING - e->held);
    *ret = e->ring + at;
    return n ? (ssize_t)n : -ENOBUFS;
}

static _unused_ void ep_rx_commit(void *p, size_t n)
{
    struct ep *e = p;
    size_t at = (size_t)(e->held % RING);
    for (size_t done = 0; done < n;) {
        size_t from = (size_t)((e->held + done + e->peer_seed) % PATTERN);
        size_t len = MIN(n - done, PATTERN - from);
        if (memcmp(e->ring + at + done, pattern + from, len) != 0)
            fail_msg("channel %u: wrong bytes near offset %llu", e->id,
                     (unsigned long long)(e->held + done));
        done += len;
    }
    e->held += n;
    if (!e->slow) {
        e->read = e->held;
        tunnel_channel_kick(*e->t, e->id);
    }
}

static _unused_ void ep_rx_fin(void *p)
{
    ((struct ep *)p)->fin = true;
}

static _unused_ bool ep_rx_has_fin(void *p)
{
    return ((struct ep *)p)->fin;
}

static _unused_ void ep_tx_fin_acked(void *p)
{
    ((struct ep *)p)->fin_acked = true;
}

static _unused_ void ep_gone(void *p, const char *reason)
{
    struct ep *e = p;
    e->gone = true;
    snprintf(e->reason, sizeof(e->reason), "%s", reason);
}

static const struct channel_ops ep_ops = {
    .tx_head = ep_tx_head,
    .tx_fin = ep_tx_fin,
    .tx_tail = ep_tx_tail,
    .tx_peek = ep_tx_peek,
    .tx_acked = ep_tx_acked,
    .rx_held = ep_rx_held,
    .rx_limit = ep_rx_limit,
    .rx_space = ep_rx_space,
    .rx_commit = ep_rx_commit,
    .rx_fin = ep_rx_fin,
    .rx_has_fin = ep_rx_has_fin,
    .tx_fin_acked = ep_tx_fin_acked,
    .gone = ep_gone,
};

static _unused_ struct ep *ep_get(struct side *s, uint32_t id)
{
    if (!s->eps[id]) {
        bool daemon = s == &s->w->daemon;
        struct ep *e = s->eps[id] = xcalloc(1, sizeof(*e));
        e->t = &s->t;
        e->id = id;
        e->seed = id * 7919 + (daemon ? 1 : 2);
        e->peer_seed = id * 7919 + (daemon ? 2 : 1);
        e->keep_open = true;
    }
    return s->eps[id];
}

/* -- owner -- */

static _unused_ void on_up(void *p, bool first)
{
    struct side *s = p;
    assert_int_equal(first, s->ups == 0);
    s->ups++;
}

static _unused_ void on_down(void *p, const struct err *why)
{
    struct side *s = p;
    s->downs++;
    snprintf(s->why, sizeof(s->why), "%s", why->text);
}

static _unused_ void on_refused(void *p, const struct err *why)
{
    struct side *s = p;
    s->refusals++;
    snprintf(s->refused, sizeof(s->refused), "%s", why->text);
}

static _unused_ void on_agent_ready(void *p, bool ready)
{
    ((struct side *)p)->agent_ready = ready;
}

static _unused_ int on_enrolled(void *p, const uint8_t pin[TLS_PIN_SIZE])
{
    struct side *s = p;
    if (s->enrolled_result < 0)
        return s->enrolled_result;
    s->enrolled++;
    if (pin)
        memcpy(s->pin, pin, TLS_PIN_SIZE);
    return 0;
}

static _unused_ int on_generation(void *p, uint64_t generation)
{
    ((struct side *)p)->generation = generation;
    return 0;
}

static _unused_ int on_open(void *p, uint32_t id, const struct channel_ops **ret_ops, void **ret_ep)
{
    struct side *s = p;
    if (s->open_result < 0)
        return s->open_result;
    struct ep *e = ep_get(s, id);
    e->used = true;
    *ret_ops = &ep_ops;
    *ret_ep = e;
    return 0;
}

static const struct tunnel_ops side_ops = {
    .up = on_up,
    .down = on_down,
    .refused = on_refused,
    .agent_ready = on_agent_ready,
    .enrolled = on_enrolled,
    .generation = on_generation,
    .open = on_open,
};

/* -- world -- */

static _unused_ void on_accept(uv_poll_t *poll, int status, int events)
{
    struct world *w = poll->data;
    assert_int_equal(status, 0);
    int fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (w->refuse_all || !w->forwarder.t) {
        close(fd);
        return;
    }
    struct err err = ERR_INIT;
    unsigned slot = w->accepted++ % HELD_FDS;
    if (w->held[slot] >= 0)
        close(w->held[slot]);
    w->held[slot] = w->no_duplicates ? -1 : dup(fd);
    if (tunnel_accept(w->forwarder.t, fd, &err) < 0)
        fail_msg("%s", err.text);
}

static _unused_ int last_fd(const struct world *w)
{
    return w->held[(w->accepted - 1) % HELD_FDS];
}

/* A reset: both ends see ECONNRESET. */
static _unused_ void cut_reset(struct world *w)
{
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    (void)connect(last_fd(w), &none, sizeof(none));
}

static _unused_ void cut_close(struct world *w)
{
    shutdown(last_fd(w), SHUT_RDWR);
}

static _unused_ void on_limit(uv_timer_t *timer)
{
    struct world *w = timer->data;
    w->timed_out = true;
    uv_stop(timer->loop);
}

static _unused_ void on_step(uv_timer_t *timer)
{
    struct world *w = timer->data;
    if (w->done && w->done(w))
        uv_stop(timer->loop);
}

static _unused_ bool run(struct world *w, bool (*done)(struct world *w), unsigned ms)
{
    w->done = done;
    w->timed_out = false;
    uv_update_time(&w->loop);
    uv_timer_start(&w->limit, on_limit, ms, 0);
    uv_timer_start(&w->step, on_step, 1, 1);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    uv_timer_stop(&w->limit);
    uv_timer_stop(&w->step);
    return !w->timed_out;
}

static _unused_ void world_listen(struct world *w)
{
    socklen_t len = sizeof(w->address);
    w->address =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    w->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(w->listener >= 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&w->address, sizeof(w->address)), 0);
    assert_int_equal(listen(w->listener, 64), 0);
    assert_int_equal(getsockname(w->listener, (struct sockaddr *)&w->address, &len), 0);
    uv_poll_init(&w->loop, &w->listen_poll, w->listener);
    w->listen_poll.data = w;
    uv_poll_start(&w->listen_poll, UV_READABLE, on_accept);
}

static _unused_ void side_init(struct world *w, struct side *s, enum tunnel_role role,
                               const char *name)
{
    struct err err = ERR_INIT;
    s->w = w;
    assert_int_equal(tls_identity_new(name, &s->id, &err), 0);
    assert_int_equal(tls_ctx_new(role == TUNNEL_FORWARDER, &s->ctx, &err), 0);
    s->config = (struct tunnel_config){
        .role = role, .sandbox_id = "sandbox-1", .self = s->id, .ctx = s->ctx, .generation = 1};
}

/* Both pinned; a test changes the configurations before side_start. */
static _unused_ struct world *world_new(void)
{
    struct world *w = xcalloc(1, sizeof(*w));
    for (size_t i = 0; i < HELD_FDS; i++)
        w->held[i] = -1;
    uv_loop_init(&w->loop);
    uv_timer_init(&w->loop, &w->limit);
    uv_timer_init(&w->loop, &w->step);
    w->limit.data = w->step.data = w;
    world_listen(w);
    side_init(w, &w->daemon, TUNNEL_DAEMON, "daemon");
    side_init(w, &w->forwarder, TUNNEL_FORWARDER, "forwarder");
    tls_identity_pin(w->daemon.id, w->forwarder.config.peer_pin);
    tls_identity_pin(w->forwarder.id, w->daemon.config.peer_pin);
    return w;
}

static _unused_ void side_start(struct side *s)
{
    struct err err = ERR_INIT;
    if (tunnel_new(&s->w->loop, &s->config, &side_ops, s, &s->t, &err) < 0)
        fail_msg("%s", err.text);
    if (s->config.role == TUNNEL_DAEMON)
        assert_int_equal(
            tunnel_dial(s->t, (struct sockaddr *)&s->w->address, sizeof(s->w->address)), 0);
}

static _unused_ void world_start(struct world *w)
{
    side_start(&w->forwarder);
    side_start(&w->daemon);
}

static _unused_ void side_done(struct side *s)
{
    tunnel_free(s->t);
    tls_identity_free(s->id);
    for (size_t i = 0; i < EPS; i++)
        free(s->eps[i]);
}

static _unused_ void world_free(struct world *w)
{
    uv_close((uv_handle_t *)&w->listen_poll, NULL);
    uv_close((uv_handle_t *)&w->limit, NULL);
    uv_close((uv_handle_t *)&w->step, NULL);
    close(w->listener);
    for (size_t i = 0; i < HELD_FDS; i++)
        if (w->held[i] >= 0)
            close(w->held[i]);
    side_done(&w->daemon);
    side_done(&w->forwarder);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0); /* no handle was forgotten */
    tls_ctx_free(w->daemon.ctx);
    tls_ctx_free(w->forwarder.ctx);
    free(w);
}

static _unused_ bool both_up(struct world *w)
{
    struct tunnel_stats a, b;
    tunnel_get_stats(w->daemon.t, &a);
    tunnel_get_stats(w->forwarder.t, &b);
    return a.up && b.up;
}

/* Adds channel id at the daemon; both ends will send so many bytes, and a fin if told. */
static _unused_ struct ep *open_channel(struct world *w, uint32_t id, uint64_t up, uint64_t down,
                                        bool fin)
{
    struct ep *e = ep_get(&w->daemon, id), *f = ep_get(&w->forwarder, id);
    e->used = true;
    e->total = up;
    f->total = down;
    e->keep_open = f->keep_open = !fin;
    assert_int_equal(tunnel_channel_add(w->daemon.t, id, &ep_ops, e), 0);
    return e;
}

static _unused_ bool ep_complete(const struct ep *e, const struct ep *far)
{
    return e->tail == e->total && e->held == far->total && (far->keep_open || e->fin) &&
           (e->keep_open || e->fin_acked);
}

static _unused_ bool all_complete(struct world *w)
{
    for (size_t i = 0; i < EPS; i++) {
        const struct ep *a = w->daemon.eps[i], *b = w->forwarder.eps[i];
        if (a && (!ep_complete(a, b) || !ep_complete(b, a)))
            return false;
    }
    return true;
}
