/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tunnel's files share: tunnel.c (tunnels, channels, dialling), tunnel_session.c (one TLS
 * connection), tunnel_hello.c (who may talk to whom), tunnel_hub.c (what all tunnels of a loop
 * share). Nobody else includes this.
 */
#pragma once

#include "base/buf.h"
#include "base/clock.h"
#include "relay/tunnel.h"
#include "wire/tunnel_frame.h"

#define TUNNEL_RECORD 16384               /* plaintext of one TLS record */
#define TUNNEL_CTL_MAX (256U << 10)       /* queued control bytes of a peer that does not read */
#define TUNNEL_RUN_BYTES (512U << 10)     /* of one session before another has its turn */
#define TUNNEL_PENDING_MAX 16             /* connections of one tunnel that have not passed hello */
#define TUNNEL_REKEY_RECORDS (1ULL << 23) /* half of what AES-GCM allows under one key */

#define TUNNEL_TICK_MS 250
#define TUNNEL_ACK_MS 50
#define TUNNEL_CONNECT_MS 500
#define TUNNEL_DIAL_GAP_MS 100
#define TUNNEL_REFUSED_GAP_MS 1000
#define TUNNEL_HANDSHAKE_MS 5000 /* TLS handshake and hello together */
#define TUNNEL_LINGER_MS 1000    /* for a refusal to arrive */
#define TUNNEL_UNACKED_MS 2000
#define TUNNEL_SILENCE_MS 8000
#define TUNNEL_DEAD_MS 6000
#define TUNNEL_RARE_MS 2000

/* An intrusive, circular list; an unlinked link points to itself. */
struct link {
    struct link *prev, *next;
};

static inline void link_init(struct link *l)
{
    l->prev = l->next = l;
}

static inline bool link_empty(const struct link *l)
{
    return l->next == l;
}

static inline void link_remove(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    link_init(l);
}

static inline void link_append(struct link *list, struct link *l)
{
    l->prev = list->prev;
    l->next = list;
    list->prev->next = l;
    list->prev = l;
}

struct hub {
    uv_loop_t *loop;
    struct hub *next;     /* under the lock of tunnel_hub.c */
    unsigned users;       /* tunnels; under the lock */
    unsigned handles;     /* not yet closed */
    uv_timer_t tick;      /* liveness, deadlines */
    uv_timer_t ack_timer; /* runs while some channel owes an acknowledgement */
    size_t owing;         /* channels with ack_pending */
    uv_prepare_t prepare; /* runs the queue before each poll */
    uv_check_t check;     /* and behind it */
    uv_idle_t idle;       /* active while something is left for the next turn: poll does not wait */
    struct link sessions; /* session.in_hub */
    struct link queue;    /* session.in_queue */
    int64_t ticked_at, late; /* how long this process stood still before the present tick */
    struct channel *grave;   /* freed when no stack can hold them any more */
    uint8_t scratch[TUNNEL_RECORD];
};

enum drop {
    DROP_NONE,
    DROP_WAIT,  /* bytes behind rx_held are discarded, there is no room for them */
    DROP_ROOM,  /* room again: the far side is to be asked to go back */
    DROP_ASKED, /* it was asked */
};

struct channel {
    uint32_t id;
    const struct channel_ops *ops;
    void *ep;
    bool gone;            /* in the grave: touch nothing */
    struct channel *next; /* there */

    /* Of the present session. */
    uint64_t tx_next;    /* sent below */
    uint64_t peer_limit; /* may be sent below */
    uint64_t ack_sent, limit_sent;
    uint64_t window;       /* the largest that we ever offered */
    int64_t unacked_since; /* 0: nothing unacknowledged */
    bool open_due, tx_ready, fin_sent, fin_acked;
    bool ack_now, ack_pending, fin_held_sent;
    enum drop drop;
};

enum session_state {
    SESSION_CONNECT,   /* daemon: TCP */
    SESSION_HANDSHAKE, /* TLS */
    SESSION_HELLO,     /* waiting for the far side's hello */
    SESSION_UP,        /* may carry channels; t->cur */
    SESSION_LINGER,    /* a refusal is on its way; input is discarded */
    SESSION_DEAD,      /* its memory lives until its handle is closed */
};

enum rx_stage {
    RX_HEADER,  /* the header's 12 bytes */
    RX_PREFIX,  /* DATA: offset, ack, limit */
    RX_DATA,    /* DATA: straight to the endpoint */
    RX_PAYLOAD, /* a known control frame, collected */
    RX_SKIP,    /* `left` bytes to discard */
};

struct session {
    struct tunnel *t;
    struct link in_hub, in_queue, in_tunnel;
    enum session_state state;
    uv_poll_t poll;
    int fd, events;
    SSL *ssl;
    int64_t deadline; /* until UP, and of LINGER */
    char peer[64];
    uint8_t peer_pin[TLS_PIN_SIZE];
    uint64_t features; /* of both */

    /* receiving */
    enum rx_stage stage;
    uint8_t head[TUNNEL_DATA_PREFIX];
    size_t head_len;
    struct tunnel_header h;
    uint32_t left;
    struct buf payload;
    struct channel *rx_channel; /* RX_DATA; may be gone */
    uint32_t rx_dup;            /* RX_DATA: bytes at the front that we hold already */
    bool rx_dropped;            /* RX_DATA: there is no room, or no order: discard the rest */
    uint8_t rx_flags;

    /* sending */
    struct buf ctl; /* whole frames, first in line */
    uint8_t *pend;  /* a record that the socket did not take, TUNNEL_RECORD bytes, or NULL */
    size_t pend_len;
    uint64_t records;
    bool pong_due, agent_due, shut;
    bool read_more; /* the socket or OpenSSL may hold bytes for us */
    uint64_t pong;

    int64_t last_rx, last_ping, ping_at; /* clock_mono_ms; ping_at 0: none unanswered */
    bool awake; /* something has moved since the last tick, or was owed then */
};

struct trouble {
    struct err err, refusal; /* the last */
};

struct tunnel {
    struct hub *hub;
    uv_loop_t *loop;
    struct tunnel_config config; /* sandbox_id points to `sandbox`; holds pin and secret */
    char sandbox[SANDBOX_ID_MAX + 1];
    const struct tunnel_ops *ops;
    void *owner;
    bool dead; /* tunnel_free was called */
    unsigned handles;

    struct channel **channels; /* by id */
    size_t n_channels, cap_channels;
    uint32_t max_id; /* ever opened */
    size_t turn;     /* of the round-robin */
    bool agent_ready;

    struct session *cur;  /* daemon: the one we dial or have; forwarder: the one that is UP */
    struct link sessions; /* all */
    unsigned n_sessions;

    uv_timer_t dial_timer;
    struct sockaddr_storage address;
    socklen_t address_len;
    int64_t dialled_at;

    bool was_up;
    struct trouble *trouble; /* since it was up; owned, NULL: none */
    struct tunnel_stats stats;
};

/* tunnel_hub.c */
struct hub *hub_get(uv_loop_t *loop);
void hub_add_session(struct hub *hub, struct session *s);
void hub_put(struct hub *hub);
void hub_queue(struct session *s); /* session_run soon, once */
/* ch owes an acknowledgement, within 50 ms; does no more. */
void hub_owe_ack(struct hub *hub, struct channel *ch);
void hub_settle_ack(struct hub *hub, struct channel *ch);
void hub_bury(struct hub *hub, struct channel *ch);

/* tunnel_session.c */
int session_new(struct tunnel *t, int fd, enum session_state state, struct err *err);
void session_run(struct session *s);
bool channel_tx_possible(const struct channel *ch); /* bytes or the end, and a window for them */
void session_tick(struct session *s, int64_t now);
void session_ack_timer(struct session *s);
/* Ends it now. why: copied. refused: as ops->refused says. */
void session_end(struct session *s, const struct err *why, bool refused);
void session_fail(struct session *s, int code, const char *fmt, ...) _printf_(3, 4);
/* Tells the far side, then ends; the same text at both ends. */
void session_refuse(struct session *s, enum tunnel_refusal code, const char *fmt, ...)
    _printf_(3, 4);
void session_close_quietly(struct session *s); /* no callbacks: for tunnel_free */

/* tunnel_hello.c; they end or refuse the session themselves where they must */
void hello_handshaken(struct session *s);
void hello_received(struct session *s, const uint8_t *in, size_t len);
void hello_refused(struct session *s, const uint8_t *in, size_t len);
void hello_enrolled(struct session *s);

/* tunnel.c */
struct trouble *tunnel_trouble(struct tunnel *t); /* made if need be */
struct channel *tunnel_find(const struct tunnel *t, uint32_t id);
int tunnel_insert(struct tunnel *t, uint32_t id, const struct channel_ops *ops, void *ep,
                  struct channel **ret);
void tunnel_forget(struct tunnel *t, struct channel *ch);                   /* no callback */
void tunnel_lose(struct tunnel *t, struct channel *ch, const char *reason); /* ops->gone */
void tunnel_unref(struct tunnel *t); /* a handle of the tunnel has closed */
void tunnel_redial(struct tunnel *t, int64_t gap_ms);
bool tunnel_enrolled(const struct tunnel *t); /* daemon: holds a pin */
