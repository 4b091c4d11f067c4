/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tunnel's wire format: frames and the hello message (docs/tunnel.md). Pure functions on bytes;
 * the rules of when which frame may come are the engine's (relay/tunnel.c).
 */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"
#include "wire/tls.h"

#define TUNNEL_HEADER_SIZE 12
#define TUNNEL_DATA_PREFIX 24       /* offset, ack, limit: before a DATA frame's bytes */
#define TUNNEL_DATA_MAX (64U << 10) /* bytes of one DATA frame */
#define TUNNEL_HELLO_MAX (64U << 10)
#define TUNNEL_PAYLOAD_MAX (TUNNEL_DATA_MAX + TUNNEL_DATA_PREFIX) /* of any frame, also unknown */
#define TUNNEL_CONTROL_MAX 1024 /* payload of the small frames, with room to grow */
#define TUNNEL_REASON_MAX 256
#define TUNNEL_CHANNELS_MAX 256           /* of one tunnel at the same time */
#define TUNNEL_INITIAL_WINDOW (32U << 10) /* a fresh channel takes so much unasked */
#define TUNNEL_SOFTWARE_MAX 64
#define TUNNEL_SECRET_MAX 64
#define TUNNEL_PROOF_SIZE 32
#define TUNNEL_VERSION 1

enum tunnel_type {
    TUNNEL_HELLO = 1,
    TUNNEL_REFUSE = 2,
    TUNNEL_ENROLLED = 3,
    TUNNEL_PING = 4,
    TUNNEL_PONG = 5,
    TUNNEL_AGENT_READY = 6,
    TUNNEL_STATS = 7,     /* reserved; skipped */
    TUNNEL_GUEST_LOG = 8, /* reserved; skipped */
    TUNNEL_OPEN = 16,
    TUNNEL_DATA = 17,
    TUNNEL_ACK = 18,
    TUNNEL_CLOSE = 19,
};

enum tunnel_flags {
    TUNNEL_FLAG_FIN = 0x01,      /* DATA: nothing comes behind these bytes */
    TUNNEL_FLAG_FIN_HELD = 0x02, /* DATA, ACK: the fin of the other direction has arrived */
    TUNNEL_FLAG_REWIND = 0x04,   /* ACK: send again from here, what came behind was dropped */
    TUNNEL_FLAG_MUST = 0x80,     /* who does not know this type ends the session */
};

/* Feature bits of hello: used when both sides have them. */
#define TUNNEL_FEATURE_REWIND (1ULL << 0)      /* REWIND; else a receiver without room hangs up */
#define TUNNEL_FEATURE_AGENT_READY (1ULL << 1) /* AGENT_READY frames after hello */
#define TUNNEL_FEATURES (TUNNEL_FEATURE_REWIND | TUNNEL_FEATURE_AGENT_READY)

/* Codes of REFUSE. */
enum tunnel_refusal {
    TUNNEL_REFUSAL_PROTOCOL = 1,
    TUNNEL_REFUSAL_KEY = 2,
    TUNNEL_REFUSAL_PROOF = 3,
    TUNNEL_REFUSAL_SANDBOX = 4,
    TUNNEL_REFUSAL_GENERATION = 5,
    TUNNEL_REFUSAL_VERSION = 6,
    TUNNEL_REFUSAL_LOCAL = 7, /* our own trouble: out of memory, a pin that cannot be stored */
};

struct tunnel_header {
    uint32_t length, channel;
    uint8_t type, flags;
    bool known;
};

/* -EPROTO with the reason: too long, too short, on the wrong channel, unknown and must-understand.
 * Unknown types otherwise come back with known = false: skip `length` bytes. */
int tunnel_header_decode(const uint8_t in[TUNNEL_HEADER_SIZE], struct tunnel_header *ret,
                         struct err *err);
void tunnel_header_encode(const struct tunnel_header *h, uint8_t out[TUNNEL_HEADER_SIZE]);

struct tunnel_position {
    uint64_t offset; /* DATA only */
    uint64_t ack, limit;
};

/* Payload prefix of DATA. -EPROTO: offset + len overflows, limit below ack. */
int tunnel_data_decode(const uint8_t in[TUNNEL_DATA_PREFIX], uint32_t len,
                       struct tunnel_position *ret, struct err *err);
/* Payload of ACK: at least 16 bytes (checked by the header's decoder). */
int tunnel_ack_decode(const uint8_t *in, struct tunnel_position *ret, struct err *err);
uint64_t tunnel_u64_decode(const uint8_t in[8]);

/* Whole frames but for DATA's bytes, which follow. */
void tunnel_data_encode(uint32_t channel, uint8_t flags, const struct tunnel_position *p,
                        uint32_t len, uint8_t out[TUNNEL_HEADER_SIZE + TUNNEL_DATA_PREFIX]);
#define TUNNEL_ACK_SIZE (TUNNEL_HEADER_SIZE + 16)
void tunnel_ack_encode(uint32_t channel, uint8_t flags, const struct tunnel_position *p,
                       uint8_t out[TUNNEL_ACK_SIZE]);
/* OPEN, PING, PONG: one u64. */
int tunnel_add_u64(struct buf *out, enum tunnel_type type, uint32_t channel, uint64_t value);
int tunnel_add_bytes(struct buf *out, enum tunnel_type type, uint32_t channel, const void *data,
                     size_t len);
/* The text is cut at TUNNEL_REASON_MAX. */
int tunnel_add_close(struct buf *out, uint32_t channel, const char *reason);
int tunnel_add_refuse(struct buf *out, enum tunnel_refusal code, const char *reason);
/* A reason that came from the other side as text for a log: printable, NUL-terminated. */
void tunnel_reason_decode(const uint8_t *in, size_t len, char ret[TUNNEL_REASON_MAX + 1]);

struct tunnel_hello_channel {
    uint32_t id;
    bool fin;
    uint64_t held, limit;
};

enum tunnel_hello_role { TUNNEL_HELLO_DAEMON = 1, TUNNEL_HELLO_FORWARDER = 2 };

struct tunnel_hello {
    uint32_t version_min, version_max;
    uint64_t features, generation;
    enum tunnel_hello_role role;
    char sandbox[SANDBOX_ID_MAX + 1];
    char software[TUNNEL_SOFTWARE_MAX + 1];
    bool agent_ready, enrolling, has_proof;
    uint8_t proof[TUNNEL_PROOF_SIZE];
    size_t n_channels;
    struct tunnel_hello_channel channels[TUNNEL_CHANNELS_MAX]; /* ids ascend */
};

/* Appends the whole HELLO frame. */
int tunnel_add_hello(struct buf *out, const struct tunnel_hello *hello);
/* -EPROTO with the reason; unknown fields are fine. */
int tunnel_hello_decode(const uint8_t *in, size_t len, struct tunnel_hello *ret, struct err *err);

/* Proof of the enrolment secret by `role`, bound to this TLS connection and both keys. */
int tunnel_proof(const uint8_t *secret, size_t secret_len, enum tunnel_hello_role role,
                 const char *sandbox, const uint8_t exporter[32],
                 const uint8_t daemon_pin[TLS_PIN_SIZE], const uint8_t forwarder_pin[TLS_PIN_SIZE],
                 uint8_t ret[TUNNEL_PROOF_SIZE], struct err *err);
