/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tunnel in native mode: one sandbox's byte streams over TLS connections that come and go.
 * See tunnel.c for the theory of operation, docs/tunnel.md for the wire format (design.md 4, 7).
 *
 * A tunnel lives as long as its sandbox; a session is one TLS connection. The daemon (TLS client)
 * dials and redials; the forwarder (TLS server) accepts; the newest session that has passed hello
 * replaces the one before. Channels 1..n are byte streams, opened by the daemon, numbered upwards,
 * never reused. All their state that must survive a session (and a process) is the endpoint's:
 * the tunnel asks it for offsets and never keeps a byte of its own.
 *
 * Everything runs on the loop. The tunnel does not log above debug; it reports through ops.
 */
#pragma once

#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "wire/tls.h"

struct tunnel;

/* What a channel's owner provides; offsets as in relay.h. tx: towards the far side. */
struct channel_ops {
    uint64_t (*tx_head)(void *ep); /* bytes we have so far */
    bool (*tx_fin)(void *ep);      /* nothing comes behind head */
    uint64_t (*tx_tail)(void *ep); /* acknowledged so far */
    size_t (*tx_peek)(void *ep, uint64_t offset, const uint8_t **ret); /* contiguous */
    int (*tx_acked)(void *ep, uint64_t offset); /* far side holds all below; -ERANGE: protocol */
    uint64_t (*rx_held)(void *ep);              /* bytes we hold safely so far */
    uint64_t (*rx_limit)(void *ep); /* the far side may send up to here; never goes down */
    ssize_t (*rx_space)(void *ep, uint8_t **ret); /* room at rx_held: >0, -ENOBUFS, -ENOSPC */
    void (*rx_commit)(void *ep, size_t n);        /* n bytes were put there */
    void (*rx_fin)(void *ep);                     /* nothing comes behind rx_held; idempotent */
    bool (*rx_has_fin)(void *ep);
    /* May be NULL. The far side knows that nothing comes behind head: together with tx_tail == head
     * and rx_has_fin this channel is complete and may be removed. Comes again after a resume. */
    void (*tx_fin_acked)(void *ep);
    /* The far side has closed or lost this channel, or it broke the protocol on it. The tunnel has
     * already forgotten it; the owner closes its connection. reason: for the log. */
    void (*gone)(void *ep, const char *reason);
};

enum tunnel_role { TUNNEL_DAEMON, TUNNEL_FORWARDER };

struct tunnel_config {
    enum tunnel_role role;
    const char *sandbox_id;    /* both sides must agree; copied */
    struct tls_identity *self; /* borrowed for the tunnel's life */
    struct tls_ctx *ctx;       /* shared context, borrowed */
    uint64_t generation;       /* daemon: ours. forwarder: the highest seen so far */
    /* SPKI SHA-256 pin of the other side; all zero on the daemon: not yet enrolled. */
    uint8_t peer_pin[TLS_PIN_SIZE];
    /* One-time enrolment secret; len 0: retired (forwarder) or not needed any more (daemon).
     * Copied, wiped when enrolment is over. */
    uint8_t secret[64];
    size_t secret_len;
    uint64_t feature_mask; /* feature bits not to offer (tests of old peers) */
};

struct tunnel_ops {
    /* A session has passed hello. first: never before in this process. */
    void (*up)(void *owner, bool first);
    /* The session has ended; the daemon is dialling again already. */
    void (*down)(void *owner, const struct err *why);
    /* The other side was refused, or has refused us, in a way that trying again may not mend (pin,
     * proof, sandbox, generation, ALPN, TLS itself): dialling goes on at 1 s, the text is for the
     * log and for StartVM's error. Called once for each new text, not for each repetition. */
    void (*refused)(void *owner, const struct err *why);
    /* The far agent's readiness, at hello and whenever it changes (daemon side only). */
    void (*agent_ready)(void *owner, bool ready);
    /* Enrolment: store the pin durably (daemon: before it acknowledges; forwarder: NULL pin = the
     * secret is retired now). 0, or a negative errno that ends the session. */
    int (*enrolled)(void *owner, const uint8_t pin[TLS_PIN_SIZE]);
    /* forwarder: a higher generation was accepted; store it. */
    int (*generation)(void *owner, uint64_t generation);
    /* forwarder: the daemon has opened channel id. On 0 *ret_ops and *ret_ep are set. */
    int (*open)(void *owner, uint32_t id, const struct channel_ops **ret_ops, void **ret_ep);
};

struct tunnel_stats {
    uint64_t bytes_tx, bytes_rx; /* payload of channels */
    uint64_t sessions, redials, resumes;
    uint64_t evicted;   /* forwarder: connections that had to go before they said hello */
    int64_t last_rx_ms; /* clock_mono_ms; of the last session that was up */
    int64_t silence_ms; /* the last resume: time since the last byte before it */
    int64_t rtt_us;     /* of the last ping; 0: none was needed yet */
    bool up, agent_ready;
    char peer[64]; /* address of the present session */
};

int tunnel_new(uv_loop_t *loop, const struct tunnel_config *config, const struct tunnel_ops *ops,
               void *owner, struct tunnel **ret, struct err *err);
/* Ends the session, forgets the channels (no callbacks). Handles close asynchronously. */
void tunnel_free(struct tunnel *t);

/* daemon: begin to dial, and go on for ever. A connect attempt lasts at most 500 ms, attempts start
 * at least 100 ms apart. Call again to change the address. */
int tunnel_dial(struct tunnel *t, const struct sockaddr *address, socklen_t len);
/* forwarder: a TCP connection was accepted; takes fd. */
int tunnel_accept(struct tunnel *t, int fd, struct err *err);
/* forwarder: tell the daemon whether the agent can be reached. */
void tunnel_set_agent_ready(struct tunnel *t, bool ready);

/* A channel of ours: new (daemon), or recovered from its file (both). ep is borrowed until
 * tunnel_channel_remove or ops->gone. */
int tunnel_channel_add(struct tunnel *t, uint32_t id, const struct channel_ops *ops, void *ep);
/* Something changed at the endpoint: new bytes, fin, more room. Cheap; may be called in bursts. */
void tunnel_channel_kick(struct tunnel *t, uint32_t id);
/* Our end is gone (connection broken, or finished both ways): tells the far side. */
void tunnel_channel_remove(struct tunnel *t, uint32_t id, const char *reason);

void tunnel_get_stats(const struct tunnel *t, struct tunnel_stats *ret);
/* Why the last session or attempt ended; not set when none has. For "the forwarder never came". */
void tunnel_last_error(const struct tunnel *t, struct err *ret);
