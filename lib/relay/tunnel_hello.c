/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may talk to whom, and where the streams go on: the start of a session.
 *
 * Model: TLS has proved that each side holds the key of its certificate; here is decided whether
 * that key is the right one. The forwarder knows the daemon's pin from the start. The daemon learns
 * the forwarder's at enrolment: the far side proves the one-time secret, by an HMAC over this very
 * connection (exporter) and both keys, so that a proof can be neither replayed nor relayed. The
 * daemon proves the secret as well.
 *
 * Order: the daemon says hello as soon as the handshake is over; the forwarder checks it, replaces
 * an older session, compares offsets, and answers with its own hello; the daemon checks that,
 * stores the pin (durably) where it had none, says ENROLLED, and compares offsets. The forwarder
 * retires the secret at ENROLLED, not before: a daemon that dies in between still holds the secret
 * or the pin, and either lets it in again.
 *
 * Comparing offsets: the far side's `held` must lie between what it has acknowledged and what we
 * have; sending goes on there. A channel that the far side does not know is opened (again) when it
 * has never carried a byte; else its bytes are lost and it is gone.
 *
 * Failures: each check that fails is told to the far side in the same words (REFUSE) where it
 * speaks our protocol; the words hold nothing that it did not say itself.
 */
#include <errno.h>
#include <openssl/crypto.h>

#include "base/log.h"
#include "relay/tunnel_int.h"

static bool is_daemon(const struct session *s)
{
    return s->t->config.role == TUNNEL_DAEMON;
}

static int proof(struct session *s, enum tunnel_hello_role role, uint8_t ret[TUNNEL_PROOF_SIZE],
                 struct err *err)
{
    struct tunnel_config *c = &s->t->config;
    uint8_t exporter[32], own[TLS_PIN_SIZE];
    tls_identity_pin(c->self, own);
    int r = tls_exporter(s->ssl, exporter, err);
    if (r < 0)
        return r;
    return tunnel_proof(c->secret, c->secret_len, role, c->sandbox_id, exporter,
                        is_daemon(s) ? own : s->peer_pin, is_daemon(s) ? s->peer_pin : own, ret,
                        err);
}

static void hello_fill(struct session *s, struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    *h = (struct tunnel_hello){
        .version_min = TUNNEL_VERSION,
        .version_max = TUNNEL_VERSION,
        .features = TUNNEL_FEATURES & ~t->config.feature_mask,
        .role = is_daemon(s) ? TUNNEL_HELLO_DAEMON : TUNNEL_HELLO_FORWARDER,
        .generation = t->config.generation,
        .agent_ready = t->agent_ready,
        .enrolling = is_daemon(s) ? !tunnel_enrolled(t) : t->config.secret_len > 0,
        .software = "peerpod " PP_VERSION,
        .n_channels = t->n_channels,
    };
    memcpy(h->sandbox, t->sandbox, sizeof(h->sandbox));
    for (size_t i = 0; i < t->n_channels; i++) {
        struct channel *ch = t->channels[i];
        uint64_t held = ch->ops->rx_held(ch->ep);
        ch->ack_sent = held;
        ch->limit_sent = MAX(ch->ops->rx_limit(ch->ep), held);
        ch->window = MAX(ch->window, ch->limit_sent - held);
        ch->fin_held_sent = ch->ops->rx_has_fin(ch->ep);
        ch->ack_now = false;
        hub_settle_ack(t->hub, ch);
        ch->drop = DROP_NONE;
        h->channels[i] = (struct tunnel_hello_channel){
            .id = ch->id, .held = held, .limit = ch->limit_sent, .fin = ch->fin_held_sent};
    }
}

static void hello_send(struct session *s)
{
    struct tunnel_hello h;
    hello_fill(s, &h);
    struct err err = ERR_INIT;
    int r = 0;
    if (s->t->config.secret_len > 0) {
        h.has_proof = true;
        r = proof(s, h.role, h.proof, &err);
    }
    if (r == 0)
        r = tunnel_add_hello(&s->ctl, &h);
    if (r < 0)
        session_fail(s, r, "saying hello: %s", err_text(&err));
    else
        hub_queue(s);
}

void hello_handshaken(struct session *s)
{
    struct tunnel *t = s->t;
    struct err err = ERR_INIT;
    if (!tls_connection_is_tunnel(s->ssl)) {
        err_set(&err, -EPROTONOSUPPORT, "%s did not agree on " TLS_ALPN_TUNNEL ": %s", s->peer,
                is_daemon(s) ? "a stock forwarder answers there; -forwarder-compat upstream is for "
                               "those"
                             : "a stock adaptor calls, which this forwarder was not set up for");
        session_end(s, &err, true);
        return;
    }
    int r = tls_peer_pin(s->ssl, s->peer_pin, &err);
    if (r < 0) {
        session_end(s, &err, true);
        return;
    }
    s->state = SESSION_HELLO;
    if (tunnel_enrolled(t) && CRYPTO_memcmp(s->peer_pin, t->config.peer_pin, TLS_PIN_SIZE) != 0) {
        session_refuse(s, TUNNEL_REFUSAL_KEY, "%s",
                       is_daemon(s) ? "the pod VM's key is not the one that was enrolled"
                                    : "the daemon's key is not the one in this pod VM's user data");
        return;
    }
    if (is_daemon(s))
        hello_send(s);
}

/* -- checks; each answers whether to go on -- */

static bool check_version(struct session *s, const struct tunnel_hello *h)
{
    if (h->version_min > TUNNEL_VERSION || h->version_max < TUNNEL_VERSION) {
        session_refuse(s, TUNNEL_REFUSAL_VERSION,
                       "tunnel versions %u to %u are offered, this side has %u", h->version_min,
                       h->version_max, TUNNEL_VERSION);
        return false;
    }
    enum tunnel_hello_role want = is_daemon(s) ? TUNNEL_HELLO_FORWARDER : TUNNEL_HELLO_DAEMON;
    if (h->role != want) {
        session_refuse(s, TUNNEL_REFUSAL_PROTOCOL, "hello came with role %d", (int)h->role);
        return false;
    }
    return true;
}

static bool check_sandbox(struct session *s, const struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    if (strcmp(h->sandbox, t->sandbox) != 0) {
        session_refuse(s, TUNNEL_REFUSAL_SANDBOX, "hello is for sandbox %s, this is another one",
                       h->sandbox);
        return false;
    }
    if (!is_daemon(s) && h->generation < t->config.generation) {
        session_refuse(s, TUNNEL_REFUSAL_GENERATION,
                       "daemon generation %llu is older than one that was here before",
                       (unsigned long long)h->generation);
        return false;
    }
    return true;
}

static bool proof_is_right(struct session *s, const struct tunnel_hello *h)
{
    uint8_t want[TUNNEL_PROOF_SIZE];
    if (!h->has_proof || proof(s, h->role, want, NULL) < 0)
        return false;
    return CRYPTO_memcmp(want, h->proof, sizeof(want)) == 0;
}

/* The forwarder, whose pin of the daemon has matched already. A daemon without a pin of ours proves
 * the secret; one that has it need not (it died between storing the pin and saying so). */
static bool check_daemon_proof(struct session *s, const struct tunnel_hello *h)
{
    bool holds = s->t->config.secret_len > 0;
    if (!holds && h->enrolling) {
        session_refuse(s, TUNNEL_REFUSAL_PROOF,
                       "this pod VM is enrolled already, and the daemon has lost its pin");
        return false;
    }
    if (holds && (h->has_proof || h->enrolling) && !proof_is_right(s, h)) {
        session_refuse(s, TUNNEL_REFUSAL_PROOF, "the daemon's enrolment secret is wrong");
        return false;
    }
    return true;
}

static bool enrol_forwarder(struct session *s, const struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    if (tunnel_enrolled(t))
        return true;
    if (!proof_is_right(s, h)) {
        session_refuse(s, TUNNEL_REFUSAL_PROOF, "%s",
                       h->has_proof ? "the pod VM's enrolment secret is wrong"
                                    : "the pod VM did not prove the enrolment secret");
        return false;
    }
    int r = t->ops->enrolled(t->owner, s->peer_pin);
    if (s->state == SESSION_DEAD)
        return false;
    if (r < 0) {
        session_refuse(s, TUNNEL_REFUSAL_LOCAL, "the daemon could not store the pod VM's key: %s",
                       strerror(-r));
        return false;
    }
    memcpy(t->config.peer_pin, s->peer_pin, TLS_PIN_SIZE);
    secret_wipe(t->config.secret, sizeof(t->config.secret));
    t->config.secret_len = 0;
    return true;
}

/* -- where the streams go on -- */

static void resume_channel(struct session *s, struct channel *ch,
                           const struct tunnel_hello_channel *far)
{
    uint64_t tail = ch->ops->tx_tail(ch->ep), head = ch->ops->tx_head(ch->ep);
    const char *why = NULL;
    if (far->held < tail || far->held > head)
        why = "the two sides' offsets do not meet";
    else if (far->fin && (far->held != head || !ch->ops->tx_fin(ch->ep)))
        why = "the far side saw an end that was not sent";
    if (why) {
        tunnel_add_close(&s->ctl, ch->id, why);
        tunnel_lose(s->t, ch, why);
        return;
    }
    ch->tx_next = far->held;
    ch->peer_limit = far->limit;
    ch->fin_sent = ch->fin_acked = far->fin;
    ch->unacked_since = 0;
    ch->open_due = false;
    ch->tx_ready = true;
    ch->ops->tx_acked(ch->ep, far->held); /* within its bounds, as was just seen */
    if (far->fin && !ch->gone && ch->ops->tx_fin_acked)
        ch->ops->tx_fin_acked(ch->ep);
}

/* The far side does not know it. */
static void reopen_channel(struct session *s, struct channel *ch)
{
    bool fresh = ch->ops->tx_tail(ch->ep) == 0 && ch->ops->rx_held(ch->ep) == 0;
    if (!is_daemon(s) || !fresh) {
        tunnel_lose(s->t, ch, "the far side does not know this connection any more");
        return;
    }
    ch->tx_next = 0;
    ch->peer_limit = TUNNEL_INITIAL_WINDOW;
    ch->fin_sent = ch->fin_acked = false;
    ch->unacked_since = 0;
    ch->open_due = ch->tx_ready = true;
}

static const struct tunnel_hello_channel *hello_find(const struct tunnel_hello *h, uint32_t id)
{
    for (size_t i = 0; i < h->n_channels; i++)
        if (h->channels[i].id == id)
            return &h->channels[i];
    return NULL;
}

/* Owners may remove channels from inside the callbacks: go by id. */
static void resume_channels(struct session *s, const struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    for (uint32_t id = 0; !t->dead;) {
        struct channel *ch = NULL;
        for (size_t i = 0; i < t->n_channels && !ch; i++)
            if (t->channels[i]->id > id)
                ch = t->channels[i];
        if (!ch)
            break;
        id = ch->id;
        const struct tunnel_hello_channel *far = hello_find(h, id);
        if (far)
            resume_channel(s, ch, far);
        else
            reopen_channel(s, ch);
    }
    for (size_t i = 0; i < h->n_channels && is_daemon(s) && !t->dead; i++)
        if (!tunnel_find(t, h->channels[i].id))
            tunnel_add_close(&s->ctl, h->channels[i].id, "closed while the tunnel was down");
}

static void session_up(struct session *s)
{
    struct tunnel *t = s->t;
    bool first = !t->was_up;
    s->state = SESSION_UP;
    t->cur = s;
    t->was_up = true;
    t->stats.sessions++;
    t->stats.resumes += !first;
    if (!first)
        t->stats.silence_ms = clock_mono_ms() - t->stats.last_rx_ms;
    free(TAKE_PTR(t->trouble));
    tls_connection_settle(s->ssl);
    if (is_daemon(s)) /* of whose tunnels there are a thousand */
        tls_identity_rest(t->config.self);
    memcpy(t->stats.peer, s->peer, sizeof(t->stats.peer));
    hub_queue(s);
    t->ops->up(t->owner, first);
}

static void daemon_hello(struct session *s, const struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    if (!enrol_forwarder(s, h))
        return;
    if (h->enrolling)
        tunnel_add_bytes(&s->ctl, TUNNEL_ENROLLED, 0, NULL, 0);
    resume_channels(s, h);
    if (s->state == SESSION_DEAD)
        return;
    t->stats.agent_ready = h->agent_ready;
    session_up(s);
    if (s->state != SESSION_DEAD)
        t->ops->agent_ready(t->owner, h->agent_ready);
}

static void forwarder_hello(struct session *s, const struct tunnel_hello *h)
{
    struct tunnel *t = s->t;
    if (!check_daemon_proof(s, h))
        return;
    if (h->generation > t->config.generation) {
        int r = t->ops->generation(t->owner, h->generation);
        if (s->state == SESSION_DEAD)
            return;
        if (r < 0) {
            session_refuse(s, TUNNEL_REFUSAL_LOCAL, "the pod VM could not store the generation: %s",
                           strerror(-r));
            return;
        }
        t->config.generation = h->generation;
    }
    if (t->cur)
        session_fail(t->cur, -ECONNRESET, "replaced by a newer connection from %s", s->peer);
    if (s->state == SESSION_DEAD)
        return;
    resume_channels(s, h);
    if (s->state == SESSION_DEAD)
        return;
    hello_send(s);
    if (s->state != SESSION_DEAD)
        session_up(s);
}

void hello_received(struct session *s, const uint8_t *in, size_t len)
{
    struct tunnel_hello h;
    struct err err = ERR_INIT;
    if (tunnel_hello_decode(in, len, &h, &err) < 0) {
        session_refuse(s, TUNNEL_REFUSAL_PROTOCOL, "%s", err_text(&err));
        return;
    }
    if (!check_version(s, &h) || !check_sandbox(s, &h))
        return;
    s->features = h.features & TUNNEL_FEATURES & ~s->t->config.feature_mask;
    log_debug("tunnel %s: hello from %s (%s), features %llx in common, %zu channels", s->t->sandbox,
              s->peer, h.software, (unsigned long long)s->features, h.n_channels);
    if (is_daemon(s))
        daemon_hello(s, &h);
    else
        forwarder_hello(s, &h);
}

void hello_refused(struct session *s, const uint8_t *in, size_t len)
{
    char reason[TUNNEL_REASON_MAX + 1];
    struct err err = ERR_INIT;
    tunnel_reason_decode(in + 2, len - 2, reason);
    err_set(&err, -EACCES, "%s at %s refuses the tunnel: %s",
            is_daemon(s) ? "the forwarder" : "the daemon", s->peer, reason);
    session_end(s, &err, true);
}

void hello_enrolled(struct session *s)
{
    struct tunnel *t = s->t;
    if (is_daemon(s)) {
        session_fail(s, -EPROTO, "ENROLLED is for the daemon to say");
        return;
    }
    if (t->config.secret_len == 0)
        return;
    int r = t->ops->enrolled(t->owner, NULL);
    if (s->state == SESSION_DEAD)
        return;
    if (r < 0) {
        session_fail(s, r, "retiring the enrolment secret: %s", strerror(-r));
        return;
    }
    secret_wipe(t->config.secret, sizeof(t->config.secret));
    t->config.secret_len = 0;
}
