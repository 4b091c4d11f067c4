/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 *     WAIT       between two attempts (dialling only)
 *     CONNECT    TCP, at most CONNECT_MS
 *     HANDSHAKE  TLS, at most HANDSHAKE_MS
 *     CONFIRM    a TLS 1.3 client is done before the server has looked at its certificate: wait for
 *                the server's first ticket, for an alert, or for CONFIRM_MS of neither
 *     UP         bytes move, when there is an endpoint
 *
 * Up to CONFIRM a failure of a dialled link means another attempt: VMs come late, forwarders come
 * after them, and firewalls drop what comes before. From UP on, and for accepted links always, it
 * is the end: there is no resuming, because the other side knows of none. Nothing of the endpoint's
 * is sent before UP, so an attempt that fails has taken nothing with it.
 *
 * A byte is acknowledged to the endpoint when the kernel has it. The end of the endpoint's stream
 * goes out as close_notify (or a TCP FIN), and likewise back. A peer that ends without close_notify
 * has been cut off: the endpoint's connection is closed at once, so that a torn message looks torn.
 * A Go server that says close_notify closes both ways; as it does not answer any more, the side
 * that dialled ends CLOSE_MS after it (time for the last bytes to reach the shim).
 *
 * While there is no endpoint, or it has no room, the socket is not read but for one byte that is
 * peeked at: TLS processes its own messages there, and a closed connection is noticed.
 *
 * Callbacks may close the link: behind each `dead` is looked at; the memory goes with the last
 * handle.
 */
#include "relay/plain.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>

#include "base/clock.h"
#include "base/str.h"
#include "wire/tls_plain.h"

#define CONNECT_MS 500
#define GAP_MS 100
#define REFUSED_GAP_MS 1000
#define HANDSHAKE_MS 10000
#define CONFIRM_MS 300
#define CLOSE_MS 1000
#define NOSPC_MS 250
#define RECORD_MAX (16U << 10)
#define NOTSENT_LOWAT (128U << 10) /* else the kernel takes megabytes that nobody reads */
#define RX_AT_ONCE (256U << 10)
/* A path that is dead is noticed within about the shims' patience (kata-contract.md 5). */
#define KEEPALIVE_IDLE_S 15
#define KEEPALIVE_EVERY_S 5
#define KEEPALIVE_COUNT 3
#define USER_TIMEOUT_MS 30000

enum plain_state { PLAIN_WAIT, PLAIN_CONNECT, PLAIN_HANDSHAKE, PLAIN_CONFIRM, PLAIN_UP };

struct plain_link {
    uv_loop_t *loop;
    const struct plain_ops *ops;
    void *owner;
    const struct channel_ops *ep_ops;
    void *ep;
    struct plain_target target;
    bool dialled, dead;
    enum plain_state state;
    int fd;
    SSL *ssl;
    uv_poll_t *poll; /* of this attempt */
    int events;
    uv_timer_t timer;
    uv_idle_t idle; /* active: a run is due */
    unsigned handles;
    int64_t deadline_ms, attempt_ms;
    uint64_t sent; /* offset of the endpoint's stream */
    bool fin_sent, fin_seen;
    bool rx_blocked; /* by the endpoint */
    struct err last_err, last_refusal;
    struct plain_stats stats;
};

static void on_poll(uv_poll_t *poll, int status, int events);
static void on_timer(uv_timer_t *timer);
static void run(struct plain_link *l, bool readable);

/* -- the connection of one attempt -- */

static void poll_closed(uv_handle_t *handle)
{
    free(handle);
}

static void conn_drop(struct plain_link *l)
{
    if (l->poll)
        uv_close((uv_handle_t *)TAKE_PTR(l->poll), poll_closed);
    SSL_free(TAKE_PTR(l->ssl));
    if (l->fd >= 0)
        close(TAKE_FD(l->fd));
    l->events = 0;
}

static void poll_for(struct plain_link *l, int events)
{
    if (!l->poll || events == l->events)
        return;
    l->events = events;
    if (events)
        uv_poll_start(l->poll, events, on_poll);
    else
        uv_poll_stop(l->poll);
}

static int conn_watch(struct plain_link *l, struct err *err)
{
    l->poll = xcalloc(1, sizeof(*l->poll));
    int r = uv_poll_init(l->loop, l->poll, l->fd);
    if (r < 0) {
        free(TAKE_PTR(l->poll));
        return err_errno(err, r, "polling a connection");
    }
    l->poll->data = l;
    return 0;
}

static void timer_set(struct plain_link *l, int64_t ms)
{
    uv_update_time(l->loop);
    uv_timer_start(&l->timer, on_timer, (uint64_t)MAX(ms, (int64_t)0), 0);
}

/* -- the end -- */

static void on_closed(uv_handle_t *handle)
{
    struct plain_link *l = handle->data;
    if (--l->handles == 0)
        free(l);
}

static void die(struct plain_link *l)
{
    l->dead = true;
    conn_drop(l);
    uv_close((uv_handle_t *)&l->timer, on_closed);
    uv_close((uv_handle_t *)&l->idle, on_closed);
}

static void finish(struct plain_link *l, const struct err *why)
{
    struct err copy = *why; /* may be ours */
    die(l);
    if (l->ep_ops)
        l->ep_ops->gone(l->ep, err_text(&copy));
    else
        l->ops->ended(l->owner, &copy);
}

static void attempt_failed(struct plain_link *l, const struct err *why, bool refused)
{
    bool news = refused && strcmp(l->last_refusal.text, why->text) != 0;
    bool final = !l->dialled || l->state == PLAIN_UP;
    l->last_err = *why;
    conn_drop(l);
    if (final || (l->deadline_ms > 0 && clock_mono_ms() >= l->deadline_ms)) {
        finish(l, &l->last_err);
        return;
    }
    l->state = PLAIN_WAIT;
    int64_t gap = refused ? REFUSED_GAP_MS : GAP_MS;
    timer_set(l, l->attempt_ms + gap - clock_mono_ms());
    if (!news)
        return;
    l->last_refusal = *why;
    if (!l->ep_ops && l->ops->refused)
        l->ops->refused(l->owner, why);
}

static void fail(struct plain_link *l, int code, const char *what)
{
    struct err err = ERR_INIT;
    err_errno(&err, code, "%s", what);
    attempt_failed(l, &err, false);
}

void plain_close(struct plain_link *l)
{
    if (!l || l->dead)
        return;
    if (l->ssl && l->state == PLAIN_UP) {
        SSL_shutdown(l->ssl);
        ERR_clear_error();
    }
    die(l);
}

/* -- reading and writing: > 0; 0: the other side has finished; -EAGAIN; else it is broken -- */

static ssize_t ssl_result(struct plain_link *l, int n, const char *what)
{
    int saved = errno;
    switch (SSL_get_error(l->ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        err_clear(&l->last_err);
        ERR_clear_error();
        return err_errno(&l->last_err, saved ? -saved : -ECONNRESET, "%s", what);
    default:
        err_clear(&l->last_err);
        return tls_plain_failure(l->ssl, what, &l->last_err);
    }
}

static ssize_t socket_result(struct plain_link *l, ssize_t n, const char *what)
{
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EINTR)
        return -EAGAIN;
    err_clear(&l->last_err);
    return err_errno(&l->last_err, -errno, "%s", what);
}

static ssize_t io_read(struct plain_link *l, void *data, size_t len, bool peek)
{
    static const char what[] = "reading from the other side";
    if (!l->ssl)
        return socket_result(l, recv(l->fd, data, len, peek ? MSG_PEEK : 0), what);
    ERR_clear_error();
    int n = peek ? SSL_peek(l->ssl, data, (int)len) : SSL_read(l->ssl, data, (int)len);
    return n > 0 ? n : ssl_result(l, n, what);
}

static ssize_t io_write(struct plain_link *l, const void *data, size_t len)
{
    static const char what[] = "writing to the other side";
    if (!l->ssl)
        return socket_result(l, send(l->fd, data, len, MSG_NOSIGNAL), what);
    ERR_clear_error();
    int n = SSL_write(l->ssl, data, (int)len);
    return n > 0 ? n : ssl_result(l, n, what);
}

static void broken(struct plain_link *l)
{
    struct err why = l->last_err;
    finish(l, &why);
}

/* -- UP: the bytes -- */

/* UV_WRITABLE when the socket has no room for it. */
static int say_fin(struct plain_link *l)
{
    ERR_clear_error();
    int n = l->ssl ? SSL_shutdown(l->ssl) : shutdown(l->fd, SHUT_WR);
    bool full = n < 0 && l->ssl && SSL_get_error(l->ssl, n) == SSL_ERROR_WANT_WRITE;
    ERR_clear_error();
    if (full)
        return UV_WRITABLE;
    l->fin_sent = true;
    if (l->ep_ops->tx_fin_acked)
        l->ep_ops->tx_fin_acked(l->ep);
    return 0;
}

static bool fin_due(const struct plain_link *l)
{
    return !l->fin_sent && l->ep_ops->tx_fin(l->ep) && l->sent == l->ep_ops->tx_head(l->ep);
}

/* False when the link is no more. */
static bool send_some(struct plain_link *l)
{
    const uint8_t *p;
    size_t n;
    int want = 0;
    while (!l->fin_sent && (n = l->ep_ops->tx_peek(l->ep, l->sent, &p)) > 0) {
        ssize_t r = io_write(l, p, MIN(n, (size_t)RECORD_MAX));
        if (r == -EAGAIN) {
            want = UV_WRITABLE;
            break;
        }
        if (r <= 0) {
            broken(l);
            return false;
        }
        l->sent += (uint64_t)r;
        l->stats.bytes_tx += (uint64_t)r;
        l->ep_ops->tx_acked(l->ep, l->sent);
        if (l->dead)
            return false;
    }
    if (!want && fin_due(l))
        want = say_fin(l);
    if (!l->dead)
        poll_for(l, (l->events & ~UV_WRITABLE) | want);
    return !l->dead;
}

static void got_fin(struct plain_link *l)
{
    l->fin_seen = true;
    poll_for(l, l->events & ~UV_READABLE);
    if (l->dialled)
        timer_set(l, CLOSE_MS);
    l->ep_ops->rx_fin(l->ep);
}

/* One read: true to go on. */
static bool receive_once(struct plain_link *l, size_t *total)
{
    uint8_t *to;
    ssize_t room = l->ep_ops->rx_space(l->ep, &to);
    if (room <= 0) {
        l->rx_blocked = true;
        if (room == -ENOSPC)
            timer_set(l, NOSPC_MS);
        return false;
    }
    ssize_t n = io_read(l, to, MIN((size_t)room, (size_t)RX_AT_ONCE), false);
    if (n > 0) {
        *total += (size_t)n;
        l->stats.bytes_rx += (uint64_t)n;
        l->ep_ops->rx_commit(l->ep, (size_t)n);
    } else if (n == 0) {
        got_fin(l);
    } else if (n != -EAGAIN) {
        broken(l);
    }
    return n > 0 && !l->dead;
}

static void receive_some(struct plain_link *l)
{
    size_t total = 0;
    l->rx_blocked = false;
    while (total < RX_AT_ONCE && receive_once(l, &total))
        continue;
    if (l->dead || l->fin_seen)
        return;
    if (total >= RX_AT_ONCE) {
        l->rx_blocked = true; /* by fairness: the next turn of the loop goes on */
        plain_kick(l);
    }
    poll_for(l, l->rx_blocked ? l->events & ~UV_READABLE : l->events | UV_READABLE);
}

/* No endpoint yet: what TLS itself has to say, or the end. */
static void look(struct plain_link *l)
{
    uint8_t byte;
    ssize_t n = io_read(l, &byte, 1, true);
    if (n == -EAGAIN) {
        poll_for(l, UV_READABLE);
    } else if (n > 0) {
        poll_for(l, 0); /* somebody will want it */
    } else {
        struct err why = l->last_err;
        if (n == 0)
            err_set(&why, -ECONNRESET, "closed by the other side");
        attempt_failed(l, &why, false);
    }
}

static void run(struct plain_link *l, bool readable)
{
    if (l->dead || l->state != PLAIN_UP)
        return;
    if (!l->ep_ops) {
        look(l);
        return;
    }
    if (!l->fin_seen && (readable || l->rx_blocked))
        receive_some(l);
    if (!l->dead)
        send_some(l);
}

static void on_idle(uv_idle_t *idle)
{
    struct plain_link *l = idle->data;
    uv_idle_stop(idle);
    run(l, false);
}

void plain_kick(struct plain_link *l)
{
    if (!l->dead && l->state == PLAIN_UP)
        uv_idle_start(&l->idle, on_idle);
}

void plain_attach(struct plain_link *l, const struct channel_ops *ops, void *ep)
{
    l->ep_ops = ops;
    l->ep = ep;
    l->sent = ops->tx_tail(ep);
    l->rx_blocked = true; /* what came before has not been read */
    plain_kick(l);
}

/* -- the way there -- */

static void is_up(struct plain_link *l)
{
    uv_timer_stop(&l->timer);
    l->state = PLAIN_UP;
    poll_for(l, UV_READABLE);
    if (l->ep_ops)
        run(l, true);
    else
        l->ops->up(l->owner);
}

static void confirm(struct plain_link *l)
{
    uint8_t byte;
    ssize_t n = io_read(l, &byte, 1, true);
    if (n > 0 || tls_plain_confirmed(l->ssl)) {
        is_up(l);
    } else if (n == -EAGAIN) {
        poll_for(l, UV_READABLE);
    } else {
        struct err why = l->last_err;
        if (n == 0)
            err_set(&why, -ECONNRESET, "closed by the other side behind the TLS handshake");
        attempt_failed(l, &why, n < 0 && why.code == -EPROTO);
    }
}

static void handshake(struct plain_link *l)
{
    ERR_clear_error();
    int n = SSL_do_handshake(l->ssl);
    int why = SSL_get_error(l->ssl, n);
    if (n == 1 && l->dialled) {
        l->state = PLAIN_CONFIRM;
        timer_set(l, CONFIRM_MS);
        confirm(l);
    } else if (n == 1) {
        is_up(l);
    } else if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
        poll_for(l, why == SSL_ERROR_WANT_READ ? UV_READABLE : UV_WRITABLE);
    } else {
        struct err err = ERR_INIT;
        bool reset = why == SSL_ERROR_SYSCALL;
        if (reset) {
            ERR_clear_error();
            err_errno(&err, errno ? -errno : -ECONNRESET, "TLS handshake");
        } else {
            tls_plain_failure(l->ssl, "TLS handshake", &err);
        }
        attempt_failed(l, &err, !reset);
    }
}

static void set_options(int fd)
{
    int on = 1, idle = KEEPALIVE_IDLE_S, every = KEEPALIVE_EVERY_S, count = KEEPALIVE_COUNT;
    unsigned limit = USER_TIMEOUT_MS, lowat = NOTSENT_LOWAT;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof(lowat));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof(limit));
}

static int tls_begin(struct plain_link *l, struct err *err)
{
    const char *name = l->dialled ? l->target.server_name : NULL;
    int r = tls_plain_connection_new(l->target.ctx, name, &l->ssl, err);
    return r < 0 ? r : tls_connection_attach(l->target.ctx, l->ssl, l->fd, err);
}

/* TCP stands. */
static void connected(struct plain_link *l)
{
    struct err err = ERR_INIT;
    if (!l->target.ctx) {
        is_up(l);
        return;
    }
    l->state = PLAIN_HANDSHAKE;
    timer_set(l, HANDSHAKE_MS);
    if (tls_begin(l, &err) < 0)
        attempt_failed(l, &err, false);
    else
        handshake(l);
}

static void check_connect(struct plain_link *l)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    if (error)
        fail(l, -error, "connecting");
    else
        connected(l);
}

static void dial(struct plain_link *l)
{
    struct err err = ERR_INIT;
    const struct sockaddr *to = (const struct sockaddr *)&l->target.address;
    l->attempt_ms = clock_mono_ms();
    l->state = PLAIN_CONNECT;
    l->fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0) {
        fail(l, -errno, "socket");
        return;
    }
    set_options(l->fd);
    if (connect(l->fd, to, l->target.address_len) < 0 && errno != EINPROGRESS) {
        fail(l, -errno, "connecting");
    } else if (conn_watch(l, &err) < 0) {
        attempt_failed(l, &err, false);
    } else {
        poll_for(l, UV_WRITABLE);
        timer_set(l, CONNECT_MS);
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct plain_link *l = timer->data;
    struct err err = ERR_INIT;
    switch (l->state) {
    case PLAIN_WAIT:
        dial(l);
        break;
    case PLAIN_CONNECT:
        fail(l, -ETIMEDOUT, "connecting");
        break;
    case PLAIN_HANDSHAKE:
        fail(l, -ETIMEDOUT, "TLS handshake");
        break;
    case PLAIN_CONFIRM:
        is_up(l);
        break;
    case PLAIN_UP:
        if (l->fin_seen) {
            err_set(&err, -ECONNRESET, "closed by the other side");
            finish(l, &err);
        } else {
            run(l, true); /* blocks may have become free */
        }
        break;
    }
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct plain_link *l = poll->data;
    if (status < 0)
        l->events = 0; /* libuv has stopped it; the next call says what is wrong */
    switch (l->state) {
    case PLAIN_WAIT:
        break;
    case PLAIN_CONNECT:
        check_connect(l);
        break;
    case PLAIN_HANDSHAKE:
        handshake(l);
        break;
    case PLAIN_CONFIRM:
        confirm(l);
        break;
    case PLAIN_UP:
        run(l, status < 0 || (events & UV_READABLE));
        break;
    }
}

/* -- birth -- */

static struct plain_link *link_new(uv_loop_t *loop, const struct plain_ops *ops, void *owner)
{
    struct plain_link *l = xcalloc(1, sizeof(*l));
    l->loop = loop;
    l->ops = ops;
    l->owner = owner;
    l->fd = -1;
    uv_timer_init(loop, &l->timer);
    uv_idle_init(loop, &l->idle);
    l->timer.data = l->idle.data = l;
    l->handles = 2;
    return l;
}

int plain_dial(uv_loop_t *loop, const struct plain_target *target, int64_t deadline_ms,
               const struct plain_ops *ops, void *owner, struct plain_link **ret, struct err *err)
{
    if (target->address_len == 0 || target->address_len > sizeof(target->address))
        return err_set(err, -EINVAL, "no address to dial");
    struct plain_link *l = link_new(loop, ops, owner);
    l->target = *target;
    l->dialled = true;
    l->deadline_ms = deadline_ms;
    timer_set(l, 0);
    *ret = l;
    return 0;
}

int plain_accept(uv_loop_t *loop, int fd, struct tls_ctx *ctx, const struct plain_ops *ops,
                 void *owner, struct plain_link **ret, struct err *err)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        int r = -errno;
        close(fd);
        return err_errno(err, r, "making a connection non-blocking");
    }
    struct plain_link *l = link_new(loop, ops, owner);
    l->fd = fd;
    l->target.ctx = ctx;
    l->state = PLAIN_CONNECT;
    set_options(fd);
    int r = conn_watch(l, err);
    if (r < 0) {
        die(l);
        return r;
    }
    poll_for(l, UV_WRITABLE); /* at once: it is connected */
    *ret = l;
    return 0;
}

bool plain_is_up(const struct plain_link *l)
{
    return l->state == PLAIN_UP && !l->dead;
}

void plain_last_error(const struct plain_link *l, struct err *ret)
{
    *ret = l->last_err;
}

void plain_get_stats(const struct plain_link *l, struct plain_stats *ret)
{
    *ret = l->stats;
}
