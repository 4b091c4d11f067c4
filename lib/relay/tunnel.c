/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tunnel: tunnels, their channels, and the daemon's dialling.
 *
 * Model: a tunnel lives as long as its sandbox and owns channels and sessions. A channel is a pair
 * of byte streams whose bytes and offsets are the endpoint's; here lies only what one session needs
 * to know (how far it has sent, what it has announced), and each hello makes that anew. A session
 * is one TLS connection (tunnel_session.c). The daemon has at most one that counts, t->cur, from
 * the first SYN on; the forwarder has one that is up and up to TUNNEL_PENDING_MAX that still have
 * to prove who they are.
 *
 * Happy path: the daemon dials; both sides shake hands; the daemon says hello, the forwarder checks
 * and answers (tunnel_hello.c), which replaces an older session; both compare offsets, so that
 * every stream goes on where the far side's holdings end. Then data flows (tunnel_session.c).
 *
 * Failures: whatever goes wrong on a session ends that session alone, with a sentence; the daemon
 * dials again: attempts last at most 500 ms (a SYN's back-off would notice a VM up to 15 s late),
 * begin at least 100 ms apart, and 1 s after a refusal, which time alone does not mend. A channel
 * is lost only when the far side does not know it although it has carried bytes, when offsets do
 * not meet, or when the far side says so.
 *
 * Invariants: callbacks of owner and endpoints may call every function here, tunnel_free included.
 * So memory is freed later: sessions and the tunnel when their handles have closed, channels in
 * the hub's grave; code behind a callback looks at `dead`, `gone` and SESSION_DEAD first.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "base/log.h"
#include "relay/tunnel_int.h"

/* -- channels -- */

/* Index of id, or of where it would be. Ids are made upwards, so most searches end at once. */
static size_t channel_index(const struct tunnel *t, uint32_t id)
{
    size_t lo = 0, hi = t->n_channels;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (t->channels[mid]->id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

struct channel *tunnel_find(const struct tunnel *t, uint32_t id)
{
    size_t i = channel_index(t, id);
    return i < t->n_channels && t->channels[i]->id == id ? t->channels[i] : NULL;
}

int tunnel_insert(struct tunnel *t, uint32_t id, const struct channel_ops *ops, void *ep,
                  struct channel **ret)
{
    size_t i = channel_index(t, id);
    if (id == 0)
        return -EINVAL;
    if (i < t->n_channels && t->channels[i]->id == id)
        return -EEXIST;
    if (t->n_channels == TUNNEL_CHANNELS_MAX)
        return -EMFILE;
    if (t->n_channels == t->cap_channels) {
        t->cap_channels = MAX(t->cap_channels * 2, (size_t)4);
        t->channels = xrealloc(t->channels, t->cap_channels * sizeof(*t->channels));
    }
    struct channel *ch = xcalloc(1, sizeof(*ch));
    *ch = (struct channel){.id = id, .ops = ops, .ep = ep};
    memmove(t->channels + i + 1, t->channels + i, (t->n_channels - i) * sizeof(*t->channels));
    t->channels[i] = ch;
    t->n_channels++;
    t->max_id = MAX(t->max_id, id);
    *ret = ch;
    return 0;
}

void tunnel_forget(struct tunnel *t, struct channel *ch)
{
    size_t i = channel_index(t, ch->id);
    t->n_channels--;
    memmove(t->channels + i, t->channels + i + 1, (t->n_channels - i) * sizeof(*t->channels));
    hub_bury(t->hub, ch);
}

void tunnel_lose(struct tunnel *t, struct channel *ch, const char *reason)
{
    log_debug("tunnel %s: channel %u is gone: %s", t->sandbox, ch->id, reason);
    tunnel_forget(t, ch);
    ch->ops->gone(ch->ep, reason);
}

static struct session *up_session(const struct tunnel *t)
{
    return t->cur && t->cur->state == SESSION_UP ? t->cur : NULL;
}

int tunnel_channel_add(struct tunnel *t, uint32_t id, const struct channel_ops *ops, void *ep)
{
    struct session *up = up_session(t);
    struct channel *ch = NULL;
    if (up && t->config.role == TUNNEL_FORWARDER)
        return -EBUSY; /* the daemon has been told already what we hold */
    int r = tunnel_insert(t, id, ops, ep, &ch);
    if (r < 0)
        return r;
    ch->open_due = ch->tx_ready = true;
    ch->peer_limit = TUNNEL_INITIAL_WINDOW;
    if (up)
        hub_queue(up);
    return 0;
}

/* More room is announced at once when it is a quarter of the window, else with the next
 * acknowledgement: a reader that takes byte by byte must not cost a frame for each. */
static void announce_room(struct tunnel *t, struct channel *ch)
{
    uint64_t limit = ch->ops->rx_limit(ch->ep);
    if (limit <= ch->limit_sent)
        return;
    if (limit - ch->limit_sent >= ch->window / 4) {
        ch->ack_now = true;
    } else {
        hub_owe_ack(t->hub, ch);
    }
}

void tunnel_channel_kick(struct tunnel *t, uint32_t id)
{
    struct session *up = up_session(t);
    struct channel *ch = up ? tunnel_find(t, id) : NULL;
    if (!ch)
        return;
    ch->tx_ready = true;
    announce_room(t, ch);
    if (ch->ack_now || channel_tx_possible(ch))
        hub_queue(up);
}

void tunnel_channel_remove(struct tunnel *t, uint32_t id, const char *reason)
{
    struct channel *ch = tunnel_find(t, id);
    if (!ch)
        return;
    struct session *up = up_session(t);
    if (up && !ch->open_due) {
        tunnel_add_close(&up->ctl, id, reason);
        hub_queue(up);
    }
    tunnel_forget(t, ch);
}

/* -- dialling (daemon) -- */

bool tunnel_enrolled(const struct tunnel *t)
{
    static const uint8_t none[TLS_PIN_SIZE];
    return memcmp(t->config.peer_pin, none, TLS_PIN_SIZE) != 0;
}

static int connect_socket(struct tunnel *t, int *ret, struct err *err)
{
    _cleanup_close_ int fd =
        socket(t->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, -errno, "making a socket");
    if (connect(fd, (struct sockaddr *)&t->address, t->address_len) < 0 && errno != EINPROGRESS)
        return err_errno(err, -errno, "connecting");
    *ret = TAKE_FD(fd);
    return 0;
}

static void on_dial_timer(uv_timer_t *timer);

static void dial_timer_start(struct tunnel *t, int64_t ms)
{
    uv_timer_start(&t->dial_timer, on_dial_timer, (uint64_t)MAX(ms, (int64_t)0), 0);
}

void tunnel_redial(struct tunnel *t, int64_t gap_ms)
{
    if (t->dead || t->config.role != TUNNEL_DAEMON || t->address_len == 0)
        return;
    uv_update_time(t->loop);
    dial_timer_start(t, t->dialled_at + gap_ms - clock_mono_ms());
}

struct trouble *tunnel_trouble(struct tunnel *t)
{
    if (!t->trouble)
        t->trouble = xcalloc(1, sizeof(*t->trouble));
    return t->trouble;
}

static void dial(struct tunnel *t)
{
    struct err err = ERR_INIT;
    int fd = -1;
    t->dialled_at = clock_mono_ms();
    t->stats.redials += t->was_up;
    int r = connect_socket(t, &fd, &err);
    if (r == 0)
        r = session_new(t, fd, SESSION_CONNECT, &err);
    if (r < 0) {
        tunnel_trouble(t)->err = err;
        tunnel_redial(t, TUNNEL_CONNECT_MS);
        return;
    }
    uv_update_time(t->loop);
    dial_timer_start(t, TUNNEL_CONNECT_MS);
}

/* Either a gap is over, or an attempt has had its time. */
static void on_dial_timer(uv_timer_t *timer)
{
    struct tunnel *t = timer->data;
    if (t->cur && t->cur->state != SESSION_CONNECT)
        return; /* connected: the session has a deadline of its own */
    if (t->cur) {
        session_fail(t->cur, -ETIMEDOUT, "no answer to a connect within %d ms", TUNNEL_CONNECT_MS);
        return;
    }
    dial(t);
}

int tunnel_dial(struct tunnel *t, const struct sockaddr *address, socklen_t len)
{
    if (t->config.role != TUNNEL_DAEMON || len == 0 || len > sizeof(t->address))
        return -EINVAL;
    bool same = len == t->address_len && memcmp(&t->address, address, len) == 0;
    if (same)
        return 0;
    memcpy(&t->address, address, len);
    t->address_len = len;
    if (t->cur)
        session_fail(t->cur, -ECANCELED, "the address has changed");
    else
        tunnel_redial(t, TUNNEL_DIAL_GAP_MS);
    return 0;
}

/* -- accepting (forwarder) -- */

/* The oldest that has said nothing, else the oldest: silence costs nothing and must win no place. */
static struct session *worst_pending(const struct tunnel *t)
{
    struct session *oldest = NULL;
    for (struct link *l = t->sessions.next; l != &t->sessions; l = l->next) {
        struct session *s = container_of(l, struct session, in_tunnel);
        if (s == t->cur)
            continue;
        if (s->state == SESSION_HANDSHAKE && SSL_get_state(s->ssl) == TLS_ST_BEFORE)
            return s;
        oldest = oldest ? oldest : s;
    }
    return oldest;
}

static void evict_pending(struct tunnel *t)
{
    struct session *s = worst_pending(t);
    if (!s)
        return;
    t->stats.evicted++;
    session_fail(s, -EBUSY, "too many connections at once that have not said hello");
}

int tunnel_accept(struct tunnel *t, int fd, struct err *err)
{
    _cleanup_close_ int owned = fd;
    if (t->config.role != TUNNEL_FORWARDER)
        return err_set(err, -EINVAL, "only a forwarder accepts");
    /* One goes: whoever wants to keep the daemon out has to win a race against its whole handshake
     * each time, instead of parking sixteen sockets. */
    if (t->n_sessions - (t->cur ? 1 : 0) >= TUNNEL_PENDING_MAX)
        evict_pending(t);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_errno(err, -errno, "making a connection non-blocking");
    int r = session_new(t, TAKE_FD(owned), SESSION_HANDSHAKE, err);
    /* What it has said already is heard before the next ones come: it is not taken for silent. */
    if (r == 0)
        hub_queue(container_of(t->sessions.prev, struct session, in_tunnel));
    return r;
}

void tunnel_set_agent_ready(struct tunnel *t, bool ready)
{
    struct session *up = up_session(t);
    if (t->agent_ready == ready)
        return;
    t->agent_ready = t->stats.agent_ready = ready;
    if (!up || !(ready || (up->features & TUNNEL_FEATURE_AGENT_READY)))
        return;
    up->agent_due = true;
    hub_queue(up);
}

/* -- life -- */

static int config_check(const struct tunnel_config *c, struct err *err)
{
    static const uint8_t none[TLS_PIN_SIZE];
    bool pinned = memcmp(c->peer_pin, none, sizeof(none)) != 0;
    const char *why = NULL;
    if (str_check_sandbox_id(c->sandbox_id, &why) < 0)
        return err_set(err, -EINVAL, "sandbox id: %s", why);
    if (c->secret_len > sizeof(c->secret))
        return err_set(err, -EINVAL, "an enrolment secret of %zu bytes; at most %zu are allowed",
                       c->secret_len, sizeof(c->secret));
    if (c->role == TUNNEL_FORWARDER && !pinned)
        return err_set(err, -EINVAL, "the daemon's certificate (tls-client-ca) is not known");
    if (c->role == TUNNEL_DAEMON && !pinned && c->secret_len == 0)
        return err_set(err, -EINVAL,
                       "neither the pod VM's key nor its enrolment secret is known: the record of "
                       "this sandbox is incomplete");
    return 0;
}

int tunnel_new(uv_loop_t *loop, const struct tunnel_config *config, const struct tunnel_ops *ops,
               void *owner, struct tunnel **ret, struct err *err)
{
    int r = config_check(config, err);
    if (r < 0)
        return r;
    struct tunnel *t = xcalloc(1, sizeof(*t));
    t->loop = loop;
    t->hub = hub_get(loop);
    t->config = *config;
    memcpy(t->sandbox, config->sandbox_id, strlen(config->sandbox_id) + 1);
    t->config.sandbox_id = t->sandbox;
    t->ops = ops;
    t->owner = owner;
    link_init(&t->sessions);
    uv_timer_init(loop, &t->dial_timer);
    t->dial_timer.data = t;
    t->handles = 1;
    *ret = t;
    return 0;
}

void tunnel_unref(struct tunnel *t)
{
    if (--t->handles > 0)
        return;
    hub_put(t->hub);
    free(t->channels);
    free(t->trouble);
    free(t);
}

static void on_timer_closed(uv_handle_t *handle)
{
    tunnel_unref(handle->data);
}

void tunnel_free(struct tunnel *t)
{
    if (!t || t->dead)
        return;
    t->dead = true;
    while (!link_empty(&t->sessions))
        session_close_quietly(container_of(t->sessions.next, struct session, in_tunnel));
    while (t->n_channels > 0)
        tunnel_forget(t, t->channels[t->n_channels - 1]);
    secret_wipe(t->config.secret, sizeof(t->config.secret));
    uv_close((uv_handle_t *)&t->dial_timer, on_timer_closed);
}

void tunnel_get_stats(const struct tunnel *t, struct tunnel_stats *ret)
{
    *ret = t->stats;
    ret->up = up_session(t) != NULL;
    if (ret->up)
        ret->last_rx_ms = t->cur->last_rx;
}

void tunnel_last_error(const struct tunnel *t, struct err *ret)
{
    *ret = t->trouble ? t->trouble->err : ERR_INIT;
}
