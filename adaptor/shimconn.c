/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's connections to the agent: each is a relay (lib/relay/relay.h) whose far side is one
 * channel of the sandbox's tunnel. Bytes are moved, never looked at.
 *
 *     shim --agent.ttrpc--> relay.in  --channel--> forwarder --> agent
 *                       <-- relay.out <--channel--
 *
 * Birth: accept; number it (the record knows the next number, so that none is used twice); put it
 * into the store; make the relay's file; only then read. A socket in
 * the store without a file is a connection from which nothing has been read: recovery goes on with
 * its birth. What is not in the store when we die is lost, and its shim sees it closed.
 *
 * End: when the socket is broken or closed both ways, when both directions have ended and all is
 * acknowledged, or when the far side says that its end is gone and the shim has got what was for it
 * (an agent that ends says its last words first; what is held here is for the far side as good as
 * delivered). A shim that does not read them keeps its connection, as a socket would. Then channel,
 * name in the store, socket and file go, in this order.
 *
 * Plain mode: the far side is a connection of its own (lib/relay/plain.h), with the worker's edits
 * (lib/wire/splice_stream.h) on the way. It cannot be resumed, so neither end outlives this
 * process: nothing goes into the store, and the shim sees its connection closed when we die.
 *
 * A connection that has sent a byte is the pod's control connection; one that never does (the Rust
 * runtime's log reader) is carried and means nothing when it ends.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

#include "adaptor/plainmode.h"
#include "adaptor/rpc.h"
#include "adaptor/sandbox.h"
#include "base/log.h"
#include "relay/fdstore.h"
#include "relay/pump.h"
#include "relay/relay.h"
#include "wire/splice_stream.h"

#define SHIMCONNS_MAX 16 /* of one sandbox; more wait in the backlog */
#define ACCEPT_AGAIN_MS 1000

struct shimconn {
    struct shimconn *next;
    struct sandbox *sandbox;
    uint32_t id;
    struct relay *relay;
    struct pump *pump;
    struct plain_link *link; /* plain mode: in place of the tunnel */
    struct splice_stream *edits;
    uint8_t *rx_at;    /* plain mode: where the last rx_space was */
    bool fin_received; /* the agent's side sends no more */
    bool fin_acked;    /* and knows that the shim does not */
    bool far_gone;     /* nothing more comes or goes there */
};

/* -- names: in the state directory, and in the descriptor store -- */

struct conn_names {
    char file[24];
    char fd[FDSTORE_NAME_MAX + 1];
};

static struct conn_names names_of(const struct sandbox *sb, uint32_t id)
{
    struct conn_names n;
    snprintf(n.file, sizeof(n.file), "c%u.relay", id);
    snprintf(n.fd, sizeof(n.fd), "%s.c%u", sb->record.key, id);
    return n;
}

static void listener_name(const struct sandbox *sb, char out[FDSTORE_NAME_MAX + 1])
{
    snprintf(out, FDSTORE_NAME_MAX + 1, "%s.l", sb->record.key);
}

static void forget(struct sandbox *sb, uint32_t id)
{
    struct conn_names names = names_of(sb, id);
    fdstore_remove(names.fd, NULL);
    unlinkat(sb->dir, names.file, 0);
}

/* -- the channel's view -- */

static uint64_t ep_tx_head(void *ep)
{
    return relay_in_head(((struct shimconn *)ep)->relay);
}

static bool ep_tx_fin(void *ep)
{
    return relay_in_eof(((struct shimconn *)ep)->relay);
}

static uint64_t ep_tx_tail(void *ep)
{
    return relay_in_tail(((struct shimconn *)ep)->relay);
}

static size_t ep_tx_peek(void *ep, uint64_t offset, const uint8_t **ret)
{
    return relay_in_peek(((struct shimconn *)ep)->relay, offset, ret);
}

static int ep_tx_acked(void *ep, uint64_t offset)
{
    struct shimconn *c = ep;
    int r = relay_in_ack(c->relay, offset);
    pump_kick(c->pump);
    return r;
}

static uint64_t ep_rx_held(void *ep)
{
    return relay_out_head(((struct shimconn *)ep)->relay);
}

static uint64_t ep_rx_limit(void *ep)
{
    const struct shimconn *c = ep;
    return relay_out_head(c->relay) + relay_out_free(c->relay);
}

static ssize_t ep_rx_space(void *ep, uint8_t **ret)
{
    return relay_out_space(((struct shimconn *)ep)->relay, ret);
}

static void ep_rx_commit(void *ep, size_t n)
{
    struct shimconn *c = ep;
    relay_out_commit(c->relay, n, NULL, 0);
    pump_kick(c->pump);
}

static void ep_rx_fin(void *ep)
{
    struct shimconn *c = ep;
    c->fin_received = true;
    relay_out_fin(c->relay);
    pump_kick(c->pump);
}

static bool ep_rx_has_fin(void *ep)
{
    return ((struct shimconn *)ep)->fin_received;
}

static void conn_end(struct shimconn *c, bool tell_peer, const char *reason);

static bool finished_both_ways(const struct shimconn *c)
{
    return c->fin_acked && relay_in_tail(c->relay) == relay_in_head(c->relay) &&
           relay_out_finished(c->relay);
}

static void ep_tx_fin_acked(void *ep)
{
    struct shimconn *c = ep;
    c->fin_acked = true;
    if (finished_both_ways(c))
        conn_end(c, true, "both directions have ended");
}

static bool all_handed_on(const struct shimconn *c)
{
    return relay_out_done(c->relay) == relay_out_head(c->relay);
}

/* Nobody wants what the shim says any more, and a full ring would hide its end. */
static void discard_in(struct shimconn *c)
{
    relay_in_ack(c->relay, relay_in_head(c->relay));
}

static void ep_gone(void *ep, const char *reason)
{
    struct shimconn *c = ep;
    c->link = NULL;
    c->far_gone = true;
    discard_in(c);
    if (all_handed_on(c))
        conn_end(c, false, reason);
    else
        pump_kick(c->pump);
}

static const struct channel_ops channel_callbacks = {
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

/* -- plain mode: the far side is a connection of its own, and the edits are ours -- */

/* The shim's bytes into the edits, as far as they go. */
static void plain_pull(struct shimconn *c)
{
    const uint8_t *p;
    size_t n, took = 1;
    uint64_t at;
    while (took > 0 && (n = relay_in_peek(c->relay, at = relay_in_tail(c->relay), &p)) > 0) {
        took = splice_stream_put(c->edits, p, n);
        relay_in_ack(c->relay, at + took);
    }
    if (relay_in_eof(c->relay) && relay_in_tail(c->relay) == relay_in_head(c->relay))
        splice_stream_end(c->edits);
    pump_kick(c->pump);
}

/* An answer of ours, when it is its turn, to the shim. */
static void plain_answer(struct shimconn *c)
{
    const uint8_t *p;
    uint8_t *to;
    size_t n;
    ssize_t room;
    while (splice_stream_limit(c->edits) == 0 && (n = splice_stream_answer(c->edits, &p)) > 0 &&
           (room = relay_out_space(c->relay, &to)) > 0) {
        n = MIN(n, (size_t)room);
        memcpy(to, p, n);
        relay_out_commit(c->relay, n, NULL, 0);
        splice_stream_answered(c->edits, n);
        pump_kick(c->pump);
    }
}

static uint64_t plain_tx_head(void *ep)
{
    return splice_stream_head(((struct shimconn *)ep)->edits);
}

static bool plain_tx_fin(void *ep)
{
    const struct shimconn *c = ep;
    return relay_in_eof(c->relay) && relay_in_tail(c->relay) == relay_in_head(c->relay);
}

static uint64_t plain_tx_tail(void *ep)
{
    return splice_stream_tail(((struct shimconn *)ep)->edits);
}

static size_t plain_tx_peek(void *ep, uint64_t offset, const uint8_t **ret)
{
    struct shimconn *c = ep;
    plain_pull(c);
    plain_answer(c);
    return splice_stream_peek(c->edits, offset, ret);
}

static int plain_tx_acked(void *ep, uint64_t offset)
{
    return splice_stream_ack(((struct shimconn *)ep)->edits, offset);
}

static ssize_t plain_rx_space(void *ep, uint8_t **ret)
{
    struct shimconn *c = ep;
    plain_answer(c);
    size_t limit = splice_stream_limit(c->edits);
    ssize_t room = limit > 0 ? relay_out_space(c->relay, ret) : -ENOBUFS;
    if (room <= 0)
        return room;
    c->rx_at = *ret;
    return (ssize_t)MIN((size_t)room, limit);
}

static void plain_rx_commit(void *ep, size_t n)
{
    struct shimconn *c = ep;
    splice_stream_pass(c->edits, c->rx_at, n);
    ep_rx_commit(ep, n);
}

static const struct channel_ops plain_callbacks = {
    .tx_head = plain_tx_head,
    .tx_fin = plain_tx_fin,
    .tx_tail = plain_tx_tail,
    .tx_peek = plain_tx_peek,
    .tx_acked = plain_tx_acked,
    .rx_held = ep_rx_held,
    .rx_limit = ep_rx_limit,
    .rx_space = plain_rx_space,
    .rx_commit = plain_rx_commit,
    .rx_fin = ep_rx_fin,
    .rx_has_fin = ep_rx_has_fin,
    .tx_fin_acked = ep_tx_fin_acked,
    .gone = ep_gone,
};

/* Never called: the endpoint is attached from the beginning. */
static void link_up(void *owner _unused_)
{
}

static void link_ended(void *owner _unused_, const struct err *why _unused_)
{
}

static const struct plain_ops link_callbacks = {.up = link_up, .ended = link_ended};

/* Before StartVM has found the forwarder the connection waits (shimconn_attach_all). */
static int plain_join(struct shimconn *c, struct err *err)
{
    const struct splice_rules *rules = NULL;
    if (!c->sandbox->plain || c->link || c->far_gone)
        return 0;
    int r = plainmode_connect(c->sandbox, &link_callbacks, c, &rules, &c->link, err);
    if (r < 0)
        return r;
    c->edits = splice_stream_new(rules);
    plain_attach(c->link, &plain_callbacks, c);
    return 0;
}

/* -- the pump's view -- */

static void far_kick(struct shimconn *c)
{
    if (c->link)
        plain_kick(c->link);
    else if (c->sandbox->tunnel)
        tunnel_channel_kick(c->sandbox->tunnel, c->id);
}

static void on_in_ready(void *owner)
{
    struct shimconn *c = owner;
    if (relay_in_head(c->relay) > 0)
        sandbox_watch_shim(c->sandbox);
    if (c->far_gone)
        discard_in(c);
    far_kick(c);
}

static void on_out_room(void *owner)
{
    struct shimconn *c = owner;
    far_kick(c);
    if (finished_both_ways(c))
        conn_end(c, true, "both directions have ended");
    else if (c->far_gone && all_handed_on(c))
        conn_end(c, false, "the far side has ended");
}

/* A shim that has got the agent's end and has said its own looks like one that has hung up, and is not:
 * its last bytes are still to be delivered. */
static void on_broken(void *owner, int error)
{
    struct shimconn *c = owner;
    if (error != 0 || !relay_out_finished(c->relay) || c->far_gone || finished_both_ways(c))
        conn_end(c, true, error ? strerror(-error) : "closed by the shim");
}

static const struct pump_ops pump_callbacks = {
    .in_ready = on_in_ready,
    .out_room = on_out_room,
    .broken = on_broken,
};

/* -- life -- */

static void accept_more(struct sandbox *sb);

/* Socket and file go on without us: the next process takes them over. */
static void conn_let_go(struct shimconn *c)
{
    struct sandbox *sb = c->sandbox;
    struct shimconn **at = &sb->conns;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (c->pump)
        pump_stop(c->pump);
    plain_close(c->link);
    splice_stream_free(c->edits);
    relay_close(c->relay);
    free(c);
    accept_more(sb);
}

static void conn_release(struct shimconn *c)
{
    forget(c->sandbox, c->id);
    conn_let_go(c);
}

static void conn_end(struct shimconn *c, bool tell_peer, const char *reason)
{
    struct sandbox *sb = c->sandbox;
    log_entry(LOG_LEVEL_DEBUG, sb->record.id, "shim", "connection %u ended after %llu bytes: %s",
              c->id, (unsigned long long)relay_in_head(c->relay), reason);
    if (tell_peer && sb->tunnel)
        tunnel_channel_remove(sb->tunnel, c->id, reason);
    conn_release(c);
    sandbox_watch_shim(sb);
}

/* Takes the relay. On failure the socket is closed here; store and file have it still. */
static int conn_add(struct sandbox *sb, uint32_t id, struct relay *relay, struct err *err)
{
    struct shimconn *c = xcalloc(1, sizeof(*c));
    uint8_t *space;
    c->sandbox = sb;
    c->id = id;
    c->relay = relay;
    c->fin_received = relay_out_space(relay, &space) == -EPIPE;
    c->next = sb->conns;
    sb->conns = c;
    int r = pump_start(sb->adaptor->loop, relay, &pump_callbacks, c, &c->pump, err);
    if (r == 0 && sb->record.plain && sb->tunnel_up)
        r = plain_join(c, err);
    else if (r == 0 && sb->tunnel && tunnel_channel_add(sb->tunnel, id, &channel_callbacks, c) < 0)
        r = err_set(err, -EUSERS, "the tunnel has too many channels");
    if (r < 0)
        conn_let_go(c);
    return r;
}

/* Takes fd. In plain mode nothing is stored: it ends with us, and at once. */
static int conn_accept(struct sandbox *sb, int fd, struct err *err)
{
    struct relay *relay = NULL;
    uint32_t id = sb->record.next_channel++;
    struct conn_names names = names_of(sb, id);
    int r = sandbox_save(sb, err);
    if (r == 0 && !sb->record.plain)
        r = fdstore_add(names.fd, fd, err);
    if (r == 0)
        r = relay_create(sb->dir, names.file, fd, RELAY_RING_DEFAULT, &relay, err);
    if (r < 0)
        close(fd);
    else
        r = conn_add(sb, id, relay, err);
    if (r < 0)
        forget(sb, id);
    return r;
}

static bool peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void on_retry(uv_timer_t *timer)
{
    accept_more(timer->data);
}

/* A socket with a connection in its backlog is ready all the time: what cannot be accepted now must
 * not be polled for. */
static void accept_later(struct sandbox *sb, const char *why)
{
    log_entry(LOG_LEVEL_WARN, sb->record.id, "shim", "a connection has to wait: %s", why);
    uv_poll_stop(sb->listen_poll);
    uv_timer_start(&sb->accept_again, on_retry, ACCEPT_AGAIN_MS, 0);
}

static void on_listener(uv_poll_t *poll, int status, int events)
{
    struct sandbox *sb = poll->data;
    struct err err = ERR_INIT;
    (void)status;
    (void)events;
    if (shimconn_count(sb) >= SHIMCONNS_MAX) {
        uv_poll_stop(poll); /* the end of one goes on */
        return;
    }
    int fd = accept4(sb->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            accept_later(sb, strerror(errno));
    } else if (!peer_allowed(fd)) {
        log_entry(LOG_LEVEL_WARN, sb->record.id, "shim",
                  "a connection to the agent socket by a user other than root was refused");
        close(fd);
    } else if (conn_accept(sb, fd, &err) < 0) {
        log_entry(LOG_LEVEL_ERROR, sb->record.id, "shim", "a connection was closed: %s",
                  err_text(&err));
    }
}

static void accept_more(struct sandbox *sb)
{
    if (sb->listen_poll)
        uv_poll_start(sb->listen_poll, UV_READABLE, on_listener);
}

static void poll_closed(uv_handle_t *handle)
{
    free(handle);
}

int shimconn_listen(struct sandbox *sb, struct err *err)
{
    char name[FDSTORE_NAME_MAX + 1];
    listener_name(sb, name);
    sb->listen_fd = fdstore_take(name);
    bool inherited = sb->listen_fd >= 0;
    int r = inherited ? 0 : rpc_listen(sb->socket_path, &sb->listen_fd, err);
    if (r == 0 && !inherited)
        r = fdstore_add(name, sb->listen_fd, err);
    if (r < 0)
        return err_wrap(err, r, "the agent socket of sandbox %s", sb->record.id);
    sb->listen_poll = xcalloc(1, sizeof(*sb->listen_poll));
    r = uv_poll_init(sb->adaptor->loop, sb->listen_poll, sb->listen_fd);
    if (r < 0) {
        free(TAKE_PTR(sb->listen_poll));
        return err_set(err, r, "watching the agent socket: %s", uv_strerror(r));
    }
    sb->listen_poll->data = sb;
    accept_more(sb);
    return 0;
}

static void listener_let_go(struct sandbox *sb)
{
    uv_timer_stop(&sb->accept_again);
    if (sb->listen_poll)
        uv_close((uv_handle_t *)TAKE_PTR(sb->listen_poll), poll_closed);
    if (sb->listen_fd >= 0)
        close(TAKE_FD(sb->listen_fd));
}

void shimconn_unlisten(struct sandbox *sb)
{
    char name[FDSTORE_NAME_MAX + 1];
    if (sb->listen_fd < 0)
        return;
    listener_name(sb, name);
    fdstore_remove(name, NULL);
    unlinkat(sb->dir, "agent.ttrpc", 0);
    listener_let_go(sb);
}

void shimconn_release_all(struct sandbox *sb)
{
    listener_let_go(sb);
    while (sb->conns)
        conn_let_go(sb->conns);
}

/* Its file, or a new one where the predecessor died in conn_accept. Takes fd on success. */
static int relay_of(struct sandbox *sb, const char *file, int fd, struct relay **ret,
                    struct err *err)
{
    struct err local = ERR_INIT;
    int r = relay_recover(sb->dir, file, fd, ret, &local);
    if (r == -ENODATA || r == -ENOENT) {
        unlinkat(sb->dir, file, 0);
        return relay_create(sb->dir, file, fd, RELAY_RING_DEFAULT, ret, err);
    }
    /* Its blocks were there before: that there is no room for them is not the end of it. */
    return r < 0 ? err_set(err, r == -ENOSPC ? -EAGAIN : r, "%s", err_text(&local)) : 0;
}

static int conn_recover(struct sandbox *sb, uint32_t id, struct err *err)
{
    struct conn_names names = names_of(sb, id);
    struct err local = ERR_INIT;
    struct relay *relay = NULL;
    int fd = fdstore_take(names.fd);
    int r = fd < 0 ? err_set(&local, -EBADF, "its socket is not in the store")
                   : relay_of(sb, names.file, fd, &relay, &local);
    if (r < 0)
        closep(&fd);
    else
        r = conn_add(sb, id, relay, &local);
    if (sandbox_is_trouble(r))
        return err_set(err, r, "connection %u of the shim: %s", id, err_text(&local));
    if (r < 0) {
        forget(sb, id);
        log_entry(sb->record.plain ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, sb->record.id, "recover",
                  "connection %u of the shim is lost: %s", id, err_text(&local));
    }
    return 0;
}

/* The numbers of a sandbox's connections, each once. */
struct conn_ids {
    uint32_t ids[SHIMCONNS_MAX];
    size_t n;
};

static void note_id(struct conn_ids *all, uint32_t id)
{
    for (size_t i = 0; i < all->n; i++)
        if (all->ids[i] == id)
            return;
    if (id && all->n < SHIMCONNS_MAX)
        all->ids[all->n++] = id;
}

/* A socket in the store, KEY.cNUMBER: its file may not have been made yet. */
static void note_stored(const char *name, int fd _unused_, void *arg)
{
    uint64_t id;
    if (str_to_u64(strrchr(name, 'c') + 1, UINT32_MAX, &id) == 0)
        note_id(arg, (uint32_t)id);
}

static uint32_t id_of_file(const char *name)
{
    char digits[16] = "";
    uint64_t id;
    const char *end = strstr(name, ".relay");
    if (*name != 'c' || !end || end[6] || (size_t)(end - name) > sizeof(digits))
        return 0;
    memcpy(digits, name + 1, (size_t)(end - name) - 1);
    return str_to_u64(digits, UINT32_MAX, &id) < 0 ? 0 : (uint32_t)id;
}

int shimconn_recover_all(struct sandbox *sb, struct err *err)
{
    char sockets[FDSTORE_NAME_MAX + 1];
    struct conn_ids all = {.n = 0};
    int r = 0, fd = openat(sb->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        r = err_errno(err, -errno, "reading its directory");
        closep(&fd);
        return r;
    }
    for (struct dirent *e; errno = 0, (e = readdir(dir));)
        note_id(&all, id_of_file(e->d_name));
    if (errno)
        r = err_errno(err, -errno, "reading its directory");
    closedir(dir);
    snprintf(sockets, sizeof(sockets), "%s.c", sb->record.key);
    fdstore_each(sockets, note_stored, &all);
    while (r == 0 && all.n > 0)
        r = conn_recover(sb, all.ids[--all.n], err);
    return r;
}

void shimconn_close_all(struct sandbox *sb)
{
    while (sb->conns)
        conn_release(sb->conns);
}

void shimconn_attach_all(struct sandbox *sb)
{
    struct shimconn *next;
    for (struct shimconn *c = sb->conns; c && sb->record.plain; c = next) {
        struct err err = ERR_INIT;
        next = c->next;
        if (plain_join(c, &err) < 0)
            conn_end(c, false, err_text(&err));
    }
    for (struct shimconn *c = sb->conns; c && sb->tunnel; c = c->next)
        if (tunnel_channel_add(sb->tunnel, c->id, &channel_callbacks, c) < 0)
            log_entry(LOG_LEVEL_ERROR, sb->record.id, "shim", "connection %u has no channel",
                      c->id);
}

unsigned shimconn_count(const struct sandbox *sb)
{
    unsigned n = 0;
    for (const struct shimconn *c = sb->conns; c; c = c->next)
        n++;
    return n;
}

bool shimconn_has_control(const struct sandbox *sb)
{
    for (const struct shimconn *c = sb->conns; c; c = c->next)
        if (relay_in_head(c->relay) > 0)
            return true;
    return false;
}
