/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One session: a TLS connection, its frames in and out, and the watch over its life.
 *
 * Model: a raw non-blocking TCP socket under uv_poll. Reading never stops, whatever the channels
 * do: each has a window, and what comes beyond our room is discarded and asked for again, so one
 * slow reader cannot delay another channel, the acknowledgements or a ping. Large DATA is read by
 * SSL_read straight into the endpoint's ring. Writing packs frames into one record of at most 16
 * KiB per SSL_write: control frames first, then acknowledgements, then one DATA frame of each
 * channel in turn. The bytes are copied once into that record; the copy is cheaper than the record
 * and system call of its own that each header would cost otherwise, and small frames of many
 * channels share one. The records of one run leave in one write (tls.c collects them). A socket is
 * read when the poll says so, not when something is to be written.
 *
 * Invariants: what the socket did not take goes first: collected records, then the one for which
 * there was no room among them (`pend`), which is offered again unchanged. tx_next counts a byte when it has been put into a record: the record is sent, or
 * the session ends. limit_sent only grows within a session, and a peer that sends beyond it is
 * wrong. While ch->drop is not DROP_NONE, bytes beyond rx_held are expected and discarded.
 *
 * Liveness: any byte of the peer's is a sign of life. A ping goes out when our bytes have been
 * unacknowledged for 2 s, or after 8 s of silence; 6 s after that the path is dead.
 *
 * Failures: whatever the peer does wrong ends the session with a sentence, never the process.
 * Callbacks may end the session or free the tunnel: behind each, `state` and `gone` are looked at.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdarg.h>

#include "base/log.h"
#include "relay/tunnel_int.h"

#define NOTSENT_LOWAT (128 << 10) /* more would queue before a ping in the kernel */
#define SMALL_DATA 1024 /* a DATA frame that could be longer is not made shorter than this */
#define PAYLOAD_KEEP 4096
#define RX_AHEAD 1024 /* of a frame that begins; the rest goes where it belongs without a copy */

static void on_poll(uv_poll_t *poll, int status, int events);

/* As of the turn of the loop, which no call measures: clock_mono_ms costs 30 ns a time. */
static int64_t now_ms(const struct session *s)
{
    return (int64_t)uv_now(s->t->hub->loop);
}

/* -- life -- */

static void on_closed(uv_handle_t *handle)
{
    struct session *s = handle->data;
    SSL_free(s->ssl);
    buf_done(&s->ctl);
    buf_done(&s->payload);
    free(s->pend);
    struct tunnel *t = s->t;
    free(s);
    tunnel_unref(t);
}

void session_close_quietly(struct session *s)
{
    if (s->state == SESSION_DEAD)
        return;
    if (s->state == SESSION_UP && !s->pend) {
        SSL_shutdown(s->ssl);
        ERR_clear_error();
    }
    s->state = SESSION_DEAD;
    if (s->t->cur == s)
        s->t->cur = NULL;
    link_remove(&s->in_hub);
    link_remove(&s->in_queue);
    link_remove(&s->in_tunnel);
    s->t->n_sessions--;
    uv_close((uv_handle_t *)&s->poll, on_closed);
    close(s->fd);
}

/* The session counts no more: what the tunnel and its owner have to know. */
static void report(struct session *s, bool was_up, bool was_cur, const struct err *why,
                   bool refused)
{
    struct tunnel *t = s->t;
    struct trouble *trouble = tunnel_trouble(t);
    bool news = refused && strcmp(trouble->refusal.text, why->text) != 0;
    trouble->err = *why;
    if (refused)
        trouble->refusal = *why;
    if (was_cur)
        tunnel_redial(t, refused ? TUNNEL_REFUSED_GAP_MS : TUNNEL_DIAL_GAP_MS);
    log_debug("tunnel %s: session with %s: %s", t->sandbox, s->peer, err_text(why));
    if (was_up) {
        t->stats.last_rx_ms = s->last_rx;
        t->ops->down(t->owner, why);
    }
    if (news && !t->dead)
        t->ops->refused(t->owner, why);
}

void session_end(struct session *s, const struct err *why, bool refused)
{
    if (s->state == SESSION_DEAD)
        return;
    struct err copy = *why;
    bool lingered = s->state == SESSION_LINGER, was_up = s->state == SESSION_UP;
    bool was_cur = s->t->cur == s;
    session_close_quietly(s);
    if (!lingered)
        report(s, was_up, was_cur, &copy, refused);
}

void session_fail(struct session *s, int code, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    struct err err = ERR_INIT;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    err_set(&err, code, "tunnel with %s: %s", s->peer, text);
    session_end(s, &err, false);
}

void session_refuse(struct session *s, enum tunnel_refusal code, const char *fmt, ...)
{
    static const int codes[] = {
        [TUNNEL_REFUSAL_PROTOCOL] = -EPROTO,    [TUNNEL_REFUSAL_KEY] = -EKEYREJECTED,
        [TUNNEL_REFUSAL_PROOF] = -EKEYREJECTED, [TUNNEL_REFUSAL_SANDBOX] = -EPROTO,
        [TUNNEL_REFUSAL_GENERATION] = -ESTALE,  [TUNNEL_REFUSAL_VERSION] = -EPROTONOSUPPORT,
        [TUNNEL_REFUSAL_LOCAL] = -EIO,
    };
    char text[TUNNEL_REASON_MAX + 1];
    struct err err = ERR_INIT;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    bool was_up = s->state == SESSION_UP, was_cur = s->t->cur == s;
    if (was_cur)
        s->t->cur = NULL;
    s->state = SESSION_LINGER;
    s->deadline = clock_mono_ms() + TUNNEL_LINGER_MS;
    tunnel_add_refuse(&s->ctl, code, text);
    hub_queue(s);
    err_set(&err, codes[code], "refusing the tunnel with %s: %s", s->peer, text);
    report(s, was_up, was_cur, &err, true);
}

static void peer_text(const struct sockaddr_storage *a, char *out, size_t size)
{
    char ip[INET6_ADDRSTRLEN] = "?";
    const struct sockaddr_in *v4 = (const void *)a;
    const struct sockaddr_in6 *v6 = (const void *)a;
    if (a->ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
        snprintf(out, size, "[%s]:%u", ip, ntohs(v6->sin6_port));
    } else {
        inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof(ip));
        snprintf(out, size, "%s:%u", ip, ntohs(v4->sin_port));
    }
}

/* Best effort: a socket that refuses one of these still works. */
static void socket_tune(int fd)
{
    int on = 1, lowat = NOTSENT_LOWAT;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof(lowat));
}

int session_new(struct tunnel *t, int fd, enum session_state state, struct err *err)
{
    _cleanup_close_ int owned = fd;
    SSL *ssl = NULL;
    int r = tls_connection_new(t->config.ctx, t->config.self, &ssl, err);
    if (r < 0)
        return r;
    struct session *s = xcalloc(1, sizeof(*s));
    r = tls_connection_attach(t->config.ctx, ssl, fd, err);
    if (r == 0) {
        r = uv_poll_init(t->loop, &s->poll, fd);
        if (r < 0)
            err_errno(err, r, "polling a connection");
    }
    if (r < 0) {
        SSL_free(ssl);
        free(s);
        return r;
    }
    s->t = t;
    s->fd = TAKE_FD(owned);
    s->ssl = ssl;
    s->state = state;
    s->poll.data = s;
    s->deadline = clock_mono_ms() + TUNNEL_HANDSHAKE_MS;
    s->ctl = BUF_INIT(TUNNEL_CTL_MAX);
    s->payload = BUF_INIT(TUNNEL_PAYLOAD_MAX + 1);
    struct sockaddr_storage peer = t->address;
    socklen_t len = sizeof(peer);
    if (state != SESSION_CONNECT)
        getpeername(fd, (struct sockaddr *)&peer, &len);
    else
        t->cur = s;
    peer_text(&peer, s->peer, sizeof(s->peer));
    socket_tune(fd);
    link_init(&s->in_queue);
    hub_add_session(t->hub, s);
    link_append(&t->sessions, &s->in_tunnel);
    t->n_sessions++;
    t->handles++;
    s->events = state == SESSION_CONNECT ? UV_WRITABLE : UV_READABLE;
    uv_poll_start(&s->poll, s->events, on_poll);
    return 0;
}

/* -- what OpenSSL says -- */

/* What the last operation waits for; 0: it has failed. SSL_get_error would be wrong where an error of
 * another operation lies in the queue, and to look into the queue before each costs as much as
 * a tenth of a small record. */
static int ssl_waits_for(const SSL *ssl)
{
    const BIO *bio = SSL_get_rbio(ssl);
    if (SSL_want_read(ssl) && BIO_should_read(bio))
        return UV_READABLE;
    return SSL_want_write(ssl) && BIO_should_write(bio) ? UV_WRITABLE : 0;
}

/* 0: would block, *ret_events says on what. Else the session has ended. */
static int ssl_blocked(struct session *s, int n, const char *what, int *ret_events)
{
    int saved = errno;
    struct err err = ERR_INIT;
    *ret_events = ssl_waits_for(s->ssl);
    if (*ret_events)
        return 0;
    switch (SSL_get_error(s->ssl, n)) {
    case SSL_ERROR_ZERO_RETURN:
        session_fail(s, -ECONNRESET, "%s: the other side closed the connection", what);
        return -ECONNRESET;
    case SSL_ERROR_SYSCALL:
        saved = saved ? saved : ECONNRESET;
        session_fail(s, -saved, "%s: %s", what, strerror(saved));
        ERR_clear_error();
        return -saved;
    default:
        tls_err(&err, -EPROTO, what);
        err_wrap(&err, -EPROTO, "tunnel with %s", s->peer);
        /* A handshake that fails in TLS fails again: the same pace as a refusal. */
        session_end(s, &err, s->state == SESSION_HANDSHAKE);
        return -EPROTO;
    }
}

static bool ended(const struct session *s)
{
    return s->state == SESSION_DEAD;
}

/* -- acknowledgements of what we sent -- */

bool channel_tx_possible(const struct channel *ch)
{
    uint64_t head = ch->ops->tx_head(ch->ep);
    if (ch->tx_next < MIN(head, ch->peer_limit))
        return true;
    return ch->tx_next == head && !ch->fin_sent && ch->ops->tx_fin(ch->ep);
}

static void rewind_to(struct channel *ch, uint64_t offset)
{
    ch->tx_next = offset;
    ch->fin_sent = ch->fin_acked;
    ch->unacked_since = 0;
}

static void on_ack(struct session *s, struct channel *ch, const struct tunnel_position *p,
                   uint8_t flags)
{
    uint64_t tail = ch->ops->tx_tail(ch->ep);
    if (p->ack > ch->tx_next) {
        session_fail(s, -EPROTO, "channel %u: %llu acknowledged, %llu sent", ch->id,
                     (unsigned long long)p->ack, (unsigned long long)ch->tx_next);
        return;
    }
    if ((flags & TUNNEL_FLAG_FIN_HELD) && !ch->fin_sent) {
        session_fail(s, -EPROTO, "channel %u: an end acknowledged that was not sent", ch->id);
        return;
    }
    bool fin_news = (flags & TUNNEL_FLAG_FIN_HELD) && !ch->fin_acked;
    ch->fin_acked |= fin_news;
    ch->peer_limit = MAX(ch->peer_limit, p->limit);
    ch->tx_ready = true;
    if (p->ack == ch->tx_next)
        ch->unacked_since = 0;
    else if (p->ack > tail)
        ch->unacked_since = now_ms(s);
    if (flags & TUNNEL_FLAG_REWIND)
        rewind_to(ch, MAX(p->ack, tail));
    if (channel_tx_possible(ch))
        hub_queue(s);
    if (p->ack > tail && ch->ops->tx_acked(ch->ep, p->ack) < 0)
        session_fail(s, -EPROTO, "channel %u: acknowledged offset %llu was refused", ch->id,
                     (unsigned long long)p->ack);
    if (fin_news && !ch->gone && !ended(s) && ch->ops->tx_fin_acked)
        ch->ops->tx_fin_acked(ch->ep);
}

/* -- receiving -- */

static void owe_ack(struct session *s, struct channel *ch)
{
    if (ch->ops->rx_held(ch->ep) - ch->ack_sent >= ch->window / 4) {
        ch->ack_now = true;
        hub_queue(s);
    } else {
        hub_owe_ack(s->t->hub, ch);
    }
}

static void rx_next(struct session *s)
{
    s->stage = RX_HEADER;
    s->head_len = 0;
    s->rx_channel = NULL;
}

static void rx_skip(struct session *s, uint32_t n)
{
    s->left = n;
    s->stage = RX_SKIP;
    if (n == 0)
        rx_next(s);
}

static void data_finish(struct session *s)
{
    struct channel *ch = s->rx_channel;
    if ((s->rx_flags & TUNNEL_FLAG_FIN) && !s->rx_dropped && !ch->gone &&
        !ch->ops->rx_has_fin(ch->ep)) {
        ch->ack_now = true;
        hub_queue(s);
        ch->ops->rx_fin(ch->ep);
    }
    rx_next(s);
}

/* Whether the frame's place in the stream is one that a correct peer could use. */
static bool data_in_order(struct session *s, struct channel *ch, const struct tunnel_position *p)
{
    uint64_t held = ch->ops->rx_held(ch->ep), end = p->offset + s->left;
    uint64_t limit = MAX(ch->limit_sent, (uint64_t)TUNNEL_INITIAL_WINDOW);
    if (end > limit)
        session_fail(s, -EPROTO, "channel %u: bytes up to %llu, the window ends at %llu", ch->id,
                     (unsigned long long)end, (unsigned long long)limit);
    else if (p->offset > held && ch->drop == DROP_NONE)
        session_fail(s, -EPROTO, "channel %u: bytes at %llu, expected at %llu", ch->id,
                     (unsigned long long)p->offset, (unsigned long long)held);
    else if (end > held && ch->ops->rx_has_fin(ch->ep))
        session_fail(s, -EPROTO, "channel %u: bytes behind its end", ch->id);
    return !ended(s);
}

static void data_begin(struct session *s)
{
    struct tunnel *t = s->t;
    struct tunnel_position p;
    struct err err;
    uint32_t len = s->h.length - TUNNEL_DATA_PREFIX;
    err_clear(&err); /* not ERR_INIT: a kilobyte of zeros for each frame */
    if (tunnel_data_decode(s->head, len, &p, &err) < 0) {
        session_fail(s, -EPROTO, "channel %u: %s", s->h.channel, err_text(&err));
        return;
    }
    struct channel *ch = tunnel_find(t, s->h.channel);
    if (ch)
        on_ack(s, ch, &p, s->h.flags & TUNNEL_FLAG_FIN_HELD);
    if (ended(s))
        return;
    if (!ch || ch->gone) {
        if (s->h.channel > t->max_id)
            session_fail(s, -EPROTO, "data for channel %u, which was never opened", s->h.channel);
        else
            rx_skip(s, len); /* closed by us, on its way before the far side knew */
        return;
    }
    s->left = len;
    if (!data_in_order(s, ch, &p))
        return;
    uint64_t held = ch->ops->rx_held(ch->ep);
    s->rx_channel = ch;
    s->rx_flags = s->h.flags;
    s->rx_dropped = p.offset > held;
    s->rx_dup = p.offset < held ? (uint32_t)MIN(held - p.offset, (uint64_t)len) : 0;
    if (!s->rx_dropped)
        ch->drop = DROP_NONE;
    s->stage = RX_DATA;
    if (len == 0)
        data_finish(s);
}

/* Where the next bytes of a DATA frame go. */
static size_t data_target(struct session *s, uint8_t **ret)
{
    struct channel *ch = s->rx_channel;
    *ret = s->t->hub->scratch;
    if (s->rx_dup > 0)
        return MIN(s->rx_dup, (uint32_t)TUNNEL_RECORD);
    if (s->rx_dropped || ch->gone)
        return MIN(s->left, (uint32_t)TUNNEL_RECORD);
    uint8_t *space = NULL;
    ssize_t n = ch->ops->rx_space(ch->ep, &space);
    if (n > 0) {
        *ret = space;
        return MIN((size_t)n, (size_t)s->left);
    }
    if (!(s->features & TUNNEL_FEATURE_REWIND)) {
        session_fail(s, (int)(n < 0 ? n : -ENOBUFS), "channel %u: no room for its bytes", ch->id);
        return 0;
    }
    s->rx_dropped = true;
    ch->drop = DROP_WAIT;
    return MIN(s->left, (uint32_t)TUNNEL_RECORD);
}

static void data_arrived(struct session *s, uint32_t n)
{
    struct channel *ch = s->rx_channel;
    s->left -= n;
    if (s->rx_dup > 0) {
        s->rx_dup -= n;
        hub_owe_ack(s->t->hub, ch); /* it seems not to know what we hold */
    } else if (!s->rx_dropped && !ch->gone) {
        s->t->stats.bytes_rx += n;
        ch->ops->rx_commit(ch->ep, n);
        if (!ended(s) && !ch->gone)
            owe_ack(s, ch);
    }
    if (!ended(s) && s->left == 0)
        data_finish(s);
}

static void open_received(struct session *s, const uint8_t *in)
{
    struct tunnel *t = s->t;
    uint32_t id = s->h.channel;
    const struct channel_ops *ops = NULL;
    void *ep = NULL;
    struct channel *ch = NULL;
    if (t->config.role != TUNNEL_FORWARDER) {
        session_fail(s, -EPROTO, "OPEN is for the daemon to say");
        return;
    }
    if (tunnel_find(t, id))
        return;
    int r = t->n_channels == TUNNEL_CHANNELS_MAX ? -EMFILE : 0;
    t->max_id = MAX(t->max_id, id);
    if (r == 0)
        r = t->ops->open(t->owner, id, &ops, &ep);
    if (ended(s))
        return;
    if (r == 0)
        r = tunnel_insert(t, id, ops, ep, &ch);
    if (r < 0) {
        char why[128];
        snprintf(why, sizeof(why), "the pod VM cannot open it: %s", strerror(-r));
        tunnel_add_close(&s->ctl, id, why);
    } else {
        ch->peer_limit = tunnel_u64_decode(in);
        ch->limit_sent = TUNNEL_INITIAL_WINDOW;
        ch->window = TUNNEL_INITIAL_WINDOW;
        ch->tx_ready = ch->ack_now = true;
    }
    hub_queue(s);
}

static void channel_frame(struct session *s, const uint8_t *in, size_t len)
{
    struct tunnel *t = s->t;
    struct tunnel_position p;
    struct err err = ERR_INIT;
    char reason[TUNNEL_REASON_MAX + 1];
    struct channel *ch = tunnel_find(t, s->h.channel);
    if (s->h.type == TUNNEL_OPEN) {
        open_received(s, in);
    } else if (!ch && s->h.channel > t->max_id) {
        session_fail(s, -EPROTO, "a frame for channel %u, which was never opened", s->h.channel);
    } else if (!ch) {
        return;
    } else if (s->h.type == TUNNEL_CLOSE) {
        tunnel_reason_decode(in, len, reason);
        tunnel_lose(t, ch, reason[0] ? reason : "closed by the far side");
    } else if (tunnel_ack_decode(in, &p, &err) < 0) {
        session_fail(s, -EPROTO, "channel %u: %s", s->h.channel, err_text(&err));
    } else {
        on_ack(s, ch, &p, s->h.flags);
    }
}

static void agent_ready_received(struct session *s, bool ready)
{
    struct tunnel *t = s->t;
    if (t->config.role != TUNNEL_DAEMON) {
        session_fail(s, -EPROTO, "AGENT_READY is for the forwarder to say");
        return;
    }
    t->stats.agent_ready = ready;
    t->ops->agent_ready(t->owner, ready);
}

static void frame_received(struct session *s, const uint8_t *in, size_t len)
{
    switch (s->h.type) {
    case TUNNEL_HELLO:
        hello_received(s, in, len);
        break;
    case TUNNEL_REFUSE:
        hello_refused(s, in, len);
        break;
    case TUNNEL_ENROLLED:
        hello_enrolled(s);
        break;
    case TUNNEL_PING:
        s->pong_due = true;
        s->pong = tunnel_u64_decode(in);
        hub_queue(s);
        break;
    case TUNNEL_PONG:
        s->t->stats.rtt_us = (int64_t)((uint64_t)clock_mono_us() - tunnel_u64_decode(in));
        break;
    case TUNNEL_AGENT_READY:
        agent_ready_received(s, in[0] != 0);
        break;
    default:
        channel_frame(s, in, len);
    }
}

static void payload_finish(struct session *s)
{
    frame_received(s, (const uint8_t *)s->payload.data, s->payload.len);
    if (ended(s))
        return;
    s->payload.len = 0;
    if (s->payload.cap > PAYLOAD_KEEP)
        buf_done(&s->payload);
    rx_next(s);
}

static bool type_allowed(const struct session *s)
{
    if (!s->h.known || s->h.type == TUNNEL_REFUSE)
        return true;
    return (s->h.type == TUNNEL_HELLO) == (s->state == SESSION_HELLO);
}

static void header_finish(struct session *s)
{
    struct err err;
    err_clear(&err); /* not ERR_INIT: a kilobyte of zeros for each frame */
    s->head_len = 0;
    if (tunnel_header_decode(s->head, &s->h, &err) < 0) {
        session_fail(s, -EPROTO, "%s", err_text(&err));
        return;
    }
    if (!type_allowed(s)) {
        session_fail(s, -EPROTO, "a frame of type %u %s hello", s->h.type,
                     s->state == SESSION_HELLO ? "before" : "behind");
        return;
    }
    if (!s->h.known) {
        rx_skip(s, s->h.length);
    } else if (s->h.type == TUNNEL_DATA) {
        s->stage = RX_PREFIX;
    } else {
        s->stage = RX_PAYLOAD;
        s->left = s->h.length;
        if (buf_reserve(&s->payload, s->left + 1) < 0)
            session_fail(s, -ENOMEM, "no memory for a frame");
        else if (s->left == 0)
            payload_finish(s);
    }
}

/* Where the next bytes go. 0: the session has ended. */
static size_t rx_target(struct session *s, uint8_t **ret)
{
    *ret = s->t->hub->scratch;
    if (s->state == SESSION_LINGER)
        return TUNNEL_RECORD;
    switch (s->stage) {
    case RX_HEADER:
        *ret = s->head + s->head_len;
        return TUNNEL_HEADER_SIZE - s->head_len;
    case RX_PREFIX:
        *ret = s->head + s->head_len;
        return TUNNEL_DATA_PREFIX - s->head_len;
    case RX_DATA:
        return data_target(s, ret);
    case RX_PAYLOAD:
        *ret = (uint8_t *)s->payload.data + s->payload.len;
        return s->left;
    case RX_SKIP:
        break;
    }
    return MIN(s->left, (uint32_t)TUNNEL_RECORD);
}

static void rx_arrived(struct session *s, uint32_t n)
{
    if (s->state == SESSION_LINGER)
        return;
    switch (s->stage) {
    case RX_HEADER:
        s->head_len += n;
        if (s->head_len == TUNNEL_HEADER_SIZE)
            header_finish(s);
        break;
    case RX_PREFIX:
        s->head_len += n;
        if (s->head_len == TUNNEL_DATA_PREFIX)
            data_begin(s);
        break;
    case RX_DATA:
        data_arrived(s, n);
        break;
    case RX_PAYLOAD:
        buf_grown(&s->payload, n);
        s->left -= n;
        if (s->left == 0)
            payload_finish(s);
        break;
    case RX_SKIP:
        rx_skip(s, s->left - n);
        break;
    }
}

/* Bytes that were read ahead of their frames. */
static void rx_feed(struct session *s, const uint8_t *data, size_t len)
{
    while (len > 0 && !ended(s)) {
        uint8_t *p = NULL;
        size_t n = MIN(rx_target(s, &p), len);
        if (n == 0)
            return;
        memcpy(p, data, n);
        rx_arrived(s, (uint32_t)n);
        data += n;
        len -= n;
    }
}

/* Headers are read together with what is behind them: a small frame is one SSL_read then. Returns
 * as SSL_read. */
static int rx_read(struct session *s, uint8_t *p, size_t want)
{
    uint8_t ahead[RX_AHEAD];
    errno = 0;
    if (s->stage != RX_HEADER && s->stage != RX_PREFIX) {
        int n = SSL_read(s->ssl, p, (int)want);
        if (n > 0)
            rx_arrived(s, (uint32_t)n);
        return n;
    }
    int n = SSL_read(s->ssl, ahead, sizeof(ahead));
    if (n > 0)
        rx_feed(s, ahead, (size_t)n);
    return n;
}

/* A session that speaks rarely gives its buffers back at once: with a thousand of them, those that
 * wait for the tick would take megabytes. */
static void rx_drained(struct session *s, bool rare)
{
    if (rare && !ended(s))
        tls_connection_trim(s->ssl);
}

static void session_read(struct session *s)
{
    size_t budget = TUNNEL_RUN_BYTES;
    bool rare = false;
    s->read_more = false;
    while (!ended(s)) {
        uint8_t *p = NULL;
        size_t want = rx_target(s, &p);
        if (want == 0)
            return;
        if (budget == 0) {
            s->read_more = true; /* OpenSSL may hold bytes that no poll tells of */
            hub_queue(s);
            return;
        }
        int n = rx_read(s, p, want), events = 0;
        if (n <= 0) {
            ssl_blocked(s, n, "reading", &events);
            rx_drained(s, rare);
            return;
        }
        if (budget == TUNNEL_RUN_BYTES) {
            int64_t now = now_ms(s);
            rare = now - s->last_rx >= TUNNEL_RARE_MS;
            s->last_rx = now;
        }
        budget -= MIN(budget, (size_t)n);
        s->ping_at = 0;
        if (!ended(s) && tls_connection_drained(s->ssl)) {
            rx_drained(s, rare);
            return;
        }
    }
}

/* -- sending -- */

struct record {
    uint8_t *data;
    size_t len;
};

static size_t record_room(const struct record *r)
{
    return TUNNEL_RECORD - r->len;
}

static void fill_control(struct session *s, struct record *r)
{
    size_t n = MIN(s->ctl.len, record_room(r));
    if (n == 0)
        return;
    memcpy(r->data + r->len, s->ctl.data, n);
    r->len += n;
    buf_consume(&s->ctl, n);
    if (s->ctl.len == 0 && s->ctl.cap > PAYLOAD_KEEP)
        buf_done(&s->ctl);
}

/* Frames that replace their predecessors instead of queueing behind them. */
static void queue_latest(struct session *s)
{
    if (s->pong_due)
        tunnel_add_u64(&s->ctl, TUNNEL_PONG, 0, s->pong);
    if (s->agent_due)
        tunnel_add_bytes(&s->ctl, TUNNEL_AGENT_READY, 0, s->t->agent_ready ? "\1" : "\0", 1);
    s->pong_due = s->agent_due = false;
}

/* What we hold and have room for, as of now, and the flags that go with it. */
static uint8_t position_now(struct session *s, struct channel *ch, struct tunnel_position *p)
{
    bool fin = ch->ops->rx_has_fin(ch->ep);
    p->ack = ch->ops->rx_held(ch->ep);
    p->limit = MAX(MAX(ch->ops->rx_limit(ch->ep), ch->limit_sent), p->ack);
    ch->ack_sent = p->ack;
    ch->limit_sent = p->limit;
    ch->window = MAX(ch->window, p->limit - p->ack);
    ch->fin_held_sent = fin;
    ch->ack_now = ch->drop == DROP_ROOM;
    hub_settle_ack(s->t->hub, ch);
    return fin ? TUNNEL_FLAG_FIN_HELD : 0;
}

static void fill_open(struct session *s, struct channel *ch)
{
    struct tunnel_position p = {0};
    position_now(s, ch, &p);
    tunnel_add_u64(&s->ctl, TUNNEL_OPEN, ch->id, p.limit);
    ch->open_due = false;
}

static bool fill_ack(struct session *s, struct channel *ch, struct record *r)
{
    struct tunnel_position p = {0};
    if (record_room(r) < TUNNEL_ACK_SIZE)
        return false;
    uint8_t flags = position_now(s, ch, &p);
    if (ch->drop == DROP_ROOM) {
        flags |= TUNNEL_FLAG_REWIND;
        ch->drop = DROP_ASKED;
        ch->ack_now = false;
    }
    tunnel_ack_encode(ch->id, flags, &p, r->data + r->len);
    r->len += TUNNEL_ACK_SIZE;
    return true;
}

/* One DATA frame of ch. false: the record is full. */
static bool fill_data(struct session *s, struct channel *ch, struct record *r)
{
    const size_t overhead = TUNNEL_HEADER_SIZE + TUNNEL_DATA_PREFIX;
    uint64_t head = ch->ops->tx_head(ch->ep), end = MIN(head, ch->peer_limit);
    const uint8_t *from = NULL;
    size_t len = 0;
    if (ch->tx_next < end)
        len = MIN(ch->ops->tx_peek(ch->ep, ch->tx_next, &from), (size_t)(end - ch->tx_next));
    if (len == 0 && ch->tx_next < end) {
        ch->tx_ready = false; /* the endpoint cannot show them now: it will kick */
        return true;
    }
    if (record_room(r) < overhead + MIN(len, (size_t)SMALL_DATA))
        return false;
    len = MIN(len, record_room(r) - overhead);
    struct tunnel_position p = {.offset = ch->tx_next};
    uint8_t flags = position_now(s, ch, &p);
    if (ch->tx_next + len == head && ch->ops->tx_fin(ch->ep)) {
        flags |= TUNNEL_FLAG_FIN;
        ch->fin_sent = true;
    }
    tunnel_data_encode(ch->id, flags, &p, (uint32_t)len, r->data + r->len);
    r->len += overhead;
    if (len > 0)
        memcpy(r->data + r->len, from, len);
    r->len += len;
    ch->tx_next += len;
    s->t->stats.bytes_tx += len;
    if (ch->unacked_since == 0 && len > 0)
        ch->unacked_since = now_ms(s);
    return true;
}

static void fill_acks(struct session *s, struct record *r)
{
    struct tunnel *t = s->t;
    for (size_t i = 0; i < t->n_channels; i++)
        if (t->channels[i]->ack_now && !fill_ack(s, t->channels[i], r))
            return;
}

/* Each channel in turn, going on where the last record ended. */
static void fill_streams(struct session *s, struct record *r)
{
    struct tunnel *t = s->t;
    for (size_t idle = 0; idle < t->n_channels; t->turn++) {
        struct channel *ch = t->channels[t->turn % t->n_channels];
        if (ch->tx_ready && !channel_tx_possible(ch))
            ch->tx_ready = false;
        if (!ch->tx_ready) {
            idle++;
            continue;
        }
        idle = 0;
        if (!fill_data(s, ch, r))
            return;
    }
}

static size_t record_fill(struct session *s, uint8_t *data)
{
    struct tunnel *t = s->t;
    struct record r = {.data = data};
    if (s->state == SESSION_UP) {
        queue_latest(s);
        for (size_t i = 0; i < t->n_channels; i++)
            if (t->channels[i]->open_due)
                fill_open(s, t->channels[i]);
    }
    fill_control(s, &r);
    if (s->state != SESSION_UP || s->ctl.len > 0)
        return r.len;
    fill_acks(s, &r);
    fill_streams(s, &r);
    return r.len;
}

/* false: the socket is full, or the session has ended. */
static bool record_write(struct session *s, const uint8_t *data, size_t len)
{
    errno = 0;
    int n = SSL_write(s->ssl, data, (int)len), events = 0;
    if (n > 0) {
        free(TAKE_PTR(s->pend));
        s->pend_len = 0;
        /* An AES-GCM key wears out; TLS 1.3 changes it in passing. */
        if (++s->records % TUNNEL_REKEY_RECORDS == 0)
            SSL_key_update(s->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
        return true;
    }
    if (ssl_blocked(s, n, "writing", &events) < 0)
        return false;
    if (!s->pend) {
        s->pend = xcalloc(1, TUNNEL_RECORD);
        memcpy(s->pend, data, len);
        s->pend_len = len;
    }
    return false;
}

static void linger_shut(struct session *s)
{
    if (s->shut)
        return;
    s->shut = true;
    SSL_shutdown(s->ssl);
    ERR_clear_error();
    shutdown(s->fd, SHUT_WR);
}

/* false: the socket is full, or the session has ended. */
static bool flush(struct session *s)
{
    int r = tls_connection_flush(s->ssl);
    if (r < 0 && r != -EAGAIN)
        session_fail(s, r, "writing: %s", strerror(-r));
    return r == 0;
}

static void write_records(struct session *s)
{
    size_t budget = TUNNEL_RUN_BYTES;
    while (!ended(s)) {
        if (s->ctl.failed) {
            session_fail(s, -ENOBUFS, "it does not read what it asks for");
            return;
        }
        uint8_t *scratch = s->t->hub->scratch;
        const uint8_t *data = s->pend ? s->pend : scratch;
        size_t len = s->pend ? s->pend_len : record_fill(s, scratch);
        if (len == 0 || !record_write(s, data, len))
            return;
        tls_connection_cork(
            s->ssl); /* the first leaves at once: the far side works on it meanwhile */
        if (budget < len) {
            hub_queue(s);
            return;
        }
        budget -= len;
    }
}

/* A peer without the feature learns only by hello that the agent is there: it is to dial again.
 * Nothing but that waits for it: StartVM. */
static void renew_for_agent(struct session *s)
{
    if (s->state == SESSION_UP && s->agent_due && !(s->features & TUNNEL_FEATURE_AGENT_READY))
        session_fail(s, -ECONNRESET, "the agent is there, which this peer learns by hello alone");
}

static void session_write(struct session *s)
{
    renew_for_agent(s);
    if (ended(s) || (tls_connection_unsent(s->ssl) && !flush(s)))
        return;
    write_records(s);
    if (!ended(s) && flush(s) && s->state == SESSION_LINGER && !s->pend && s->ctl.len == 0)
        linger_shut(s);
}

/* -- the loop -- */

static void poll_for(struct session *s, int events)
{
    if (ended(s) || events == s->events)
        return;
    s->events = events;
    uv_poll_start(&s->poll, events, on_poll);
}

static void handshake_run(struct session *s)
{
    int events = 0;
    ERR_clear_error();
    errno = 0;
    int n = SSL_do_handshake(s->ssl);
    if (n != 1) {
        if (ssl_blocked(s, n, "TLS handshake", &events) == 0)
            poll_for(s, events);
        return;
    }
    ERR_clear_error();   /* of what was tried in passing */
    s->read_more = true; /* OpenSSL may hold what came behind, and no poll tells of it */
    hello_handshaken(s);
}

static void connect_run(struct session *s)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    if (error) {
        session_fail(s, -error, "connecting: %s", strerror(error));
        return;
    }
    s->state = SESSION_HANDSHAKE;
    s->deadline = clock_mono_ms() + TUNNEL_HANDSHAKE_MS;
    uv_timer_stop(&s->t->dial_timer);
}

static void run(struct session *s, bool polled)
{
    if (s->state == SESSION_HANDSHAKE)
        handshake_run(s);
    if (s->state != SESSION_HELLO && s->state != SESSION_UP && s->state != SESSION_LINGER)
        return;
    s->awake = true;
    if (s->read_more)
        session_read(s);
    /* What the peer's frames have caused to be said is in the queue, whose turn is behind the polls. */
    if (!polled || !link_empty(&s->in_queue) || s->pend || tls_connection_unsent(s->ssl))
        session_write(s);
    if (!ended(s))
        poll_for(s, UV_READABLE | (s->pend || tls_connection_unsent(s->ssl) ? UV_WRITABLE : 0));
}

void session_run(struct session *s)
{
    run(s, false);
}

/* libuv reports an error condition of the socket as a status and stops polling; the socket's own
 * calls say which it is, behind the bytes that came before it. */
static void on_poll(uv_poll_t *poll, int status, int events _unused_)
{
    struct session *s = poll->data;
    s->read_more = true;
    tls_connection_readable(s->ssl);
    if (s->state == SESSION_CONNECT)
        connect_run(s);
    run(s, true);
    if (status < 0 && !ended(s))
        session_fail(s, -ECONNRESET, "the connection broke");
}

/* -- the tick -- */

static void channel_tick(struct session *s, struct channel *ch)
{
    uint8_t *space = NULL;
    if (ch->drop == DROP_WAIT && ch->ops->rx_space(ch->ep, &space) > 0) {
        ch->drop = DROP_ROOM;
        ch->ack_now = true;
        hub_queue(s);
    }
}

static bool unacked_too_long(const struct tunnel *t, int64_t now)
{
    for (size_t i = 0; i < t->n_channels; i++)
        if (t->channels[i]->unacked_since &&
            now - t->channels[i]->unacked_since >= TUNNEL_UNACKED_MS)
            return true;
    return false;
}

/* Nothing has moved since the last tick, and nothing was owed then: silence is the one concern. */
static bool asleep(const struct session *s, int64_t now)
{
    return s->state == SESSION_UP && !s->awake && s->t->hub->late == 0 &&
           now - MAX(s->last_rx, s->last_ping) < TUNNEL_SILENCE_MS;
}

static bool waits(const struct session *s)
{
    const struct tunnel *t = s->t;
    for (size_t i = 0; i < t->n_channels; i++)
        if (t->channels[i]->unacked_since || t->channels[i]->drop == DROP_WAIT)
            return true;
    return s->ping_at != 0;
}

static void up_tick(struct session *s, int64_t now)
{
    struct tunnel *t = s->t;
    if (s->ping_at && now - s->ping_at >= TUNNEL_DEAD_MS) {
        session_fail(s, -ETIMEDOUT, "nothing was heard for %lld s, nor an answer to a ping",
                     (long long)(now - s->last_rx) / 1000);
        return;
    }
    for (size_t i = 0; i < t->n_channels; i++)
        channel_tick(s, t->channels[i]);
    s->awake = waits(s);
    bool silent = now - MAX(s->last_rx, s->last_ping) >= TUNNEL_SILENCE_MS;
    bool stuck = now - s->last_ping >= TUNNEL_UNACKED_MS && unacked_too_long(t, now);
    if (s->ping_at || !(silent || stuck))
        return;
    s->ping_at = s->last_ping = now;
    tunnel_add_u64(&s->ctl, TUNNEL_PING, 0, (uint64_t)clock_mono_us());
    hub_queue(s);
}

void session_tick(struct session *s, int64_t now)
{
    if (asleep(s, now))
        return;
    if (s->t->hub->late > 0) {
        s->deadline += s->t->hub->late;
        if (s->ping_at)
            s->ping_at = now;
    }
    tls_connection_trim(s->ssl);
    if (s->state == SESSION_UP)
        up_tick(s, now);
    else if (s->state == SESSION_LINGER && now >= s->deadline)
        session_fail(s, -ETIMEDOUT, "refused");
    else if (s->state != SESSION_CONNECT && now >= s->deadline)
        session_fail(s, -ETIMEDOUT, "no %s within %d s",
                     s->state == SESSION_HELLO ? "hello" : "TLS handshake",
                     TUNNEL_HANDSHAKE_MS / 1000);
}

void session_ack_timer(struct session *s)
{
    struct tunnel *t = s->t;
    if (s->state != SESSION_UP)
        return;
    for (size_t i = 0; i < t->n_channels; i++)
        if (t->channels[i]->ack_pending) {
            t->channels[i]->ack_now = true;
            hub_queue(s);
        }
}
