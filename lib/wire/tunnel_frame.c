/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codec of the tunnel's frames.
 *
 * Model: a frame is a header of 12 bytes, big-endian (length of the payload, channel, type, flags,
 * two bytes zero), and its payload. One table says for each type how long the payload may be and
 * whether it belongs to channel 0 or to a stream; tunnel_header_decode applies it, so that nobody
 * behind it sees a length or channel that the table does not allow.
 *
 * Growth: payloads of the small frames may become longer, readers ignore what they do not know;
 * unknown types are skipped unless must-understand; hello is a protobuf message whose unknown
 * fields are ignored. What a new frame type needs from its reader is agreed by a feature bit.
 *
 * Everything here reads bytes of a peer that may be hostile: every length is checked against a
 * named maximum before it is used, sums cannot overflow, texts are made printable.
 */
#include "wire/tunnel_frame.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "tunnel.pb-c.h"

static const struct {
    const char *name;
    uint32_t min, max;
    bool stream; /* on a channel above 0 */
} types[] = {
    [TUNNEL_HELLO] = {"HELLO", 0, TUNNEL_HELLO_MAX, false},
    [TUNNEL_REFUSE] = {"REFUSE", 2, 2 + TUNNEL_REASON_MAX, false},
    [TUNNEL_ENROLLED] = {"ENROLLED", 0, TUNNEL_CONTROL_MAX, false},
    [TUNNEL_PING] = {"PING", 8, TUNNEL_CONTROL_MAX, false},
    [TUNNEL_PONG] = {"PONG", 8, TUNNEL_CONTROL_MAX, false},
    [TUNNEL_AGENT_READY] = {"AGENT_READY", 1, TUNNEL_CONTROL_MAX, false},
    [TUNNEL_OPEN] = {"OPEN", 8, TUNNEL_CONTROL_MAX, true},
    [TUNNEL_DATA] = {"DATA", TUNNEL_DATA_PREFIX, TUNNEL_PAYLOAD_MAX, true},
    [TUNNEL_ACK] = {"ACK", 16, TUNNEL_CONTROL_MAX, true},
    [TUNNEL_CLOSE] = {"CLOSE", 0, TUNNEL_REASON_MAX, true},
};

static void put_u32(uint8_t *out, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put_u64(uint8_t *out, uint64_t v)
{
    put_u32(out, (uint32_t)(v >> 32));
    put_u32(out + 4, (uint32_t)v);
}

static uint32_t get_u32(const uint8_t *in)
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

uint64_t tunnel_u64_decode(const uint8_t in[8])
{
    return (uint64_t)get_u32(in) << 32 | get_u32(in + 4);
}

int tunnel_header_decode(const uint8_t in[TUNNEL_HEADER_SIZE], struct tunnel_header *ret,
                         struct err *err)
{
    struct tunnel_header h = {
        .length = get_u32(in), .channel = get_u32(in + 4), .type = in[8], .flags = in[9]};
    h.known = h.type < ARRAY_SIZE(types) && types[h.type].name;
    if (h.length > TUNNEL_PAYLOAD_MAX)
        return err_set(err, -EPROTO, "a frame of type %u with %u bytes; at most %u are allowed",
                       h.type, h.length, TUNNEL_PAYLOAD_MAX);
    if (!h.known && (h.flags & TUNNEL_FLAG_MUST))
        return err_set(err, -EPROTO, "a frame of type %u that must be understood and is not",
                       h.type);
    if (h.known && (h.length < types[h.type].min || h.length > types[h.type].max))
        return err_set(err, -EPROTO, "a %s frame with %u bytes; %u to %u are allowed",
                       types[h.type].name, h.length, types[h.type].min, types[h.type].max);
    if (h.known && types[h.type].stream != (h.channel != 0))
        return err_set(err, -EPROTO, "a %s frame on channel %u", types[h.type].name, h.channel);
    *ret = h;
    return 0;
}

void tunnel_header_encode(const struct tunnel_header *h, uint8_t out[TUNNEL_HEADER_SIZE])
{
    put_u32(out, h->length);
    put_u32(out + 4, h->channel);
    out[8] = h->type;
    out[9] = h->flags;
    out[10] = out[11] = 0;
}

static int position_check(const struct tunnel_position *p, uint64_t len, struct err *err)
{
    if (p->offset > INT64_MAX || p->offset + len > INT64_MAX || p->limit > INT64_MAX)
        return err_set(err, -EPROTO, "an offset beyond 2^63");
    if (p->limit < p->ack)
        return err_set(err, -EPROTO, "a window that ends at %llu, before the acknowledged %llu",
                       (unsigned long long)p->limit, (unsigned long long)p->ack);
    return 0;
}

int tunnel_data_decode(const uint8_t in[TUNNEL_DATA_PREFIX], uint32_t len,
                       struct tunnel_position *ret, struct err *err)
{
    ret->offset = tunnel_u64_decode(in);
    ret->ack = tunnel_u64_decode(in + 8);
    ret->limit = tunnel_u64_decode(in + 16);
    return position_check(ret, len, err);
}

int tunnel_ack_decode(const uint8_t *in, struct tunnel_position *ret, struct err *err)
{
    ret->offset = 0;
    ret->ack = tunnel_u64_decode(in);
    ret->limit = tunnel_u64_decode(in + 8);
    return position_check(ret, 0, err);
}

void tunnel_data_encode(uint32_t channel, uint8_t flags, const struct tunnel_position *p,
                        uint32_t len, uint8_t out[TUNNEL_HEADER_SIZE + TUNNEL_DATA_PREFIX])
{
    struct tunnel_header h = {.length = TUNNEL_DATA_PREFIX + len,
                              .channel = channel,
                              .type = TUNNEL_DATA,
                              .flags = flags};
    tunnel_header_encode(&h, out);
    put_u64(out + TUNNEL_HEADER_SIZE, p->offset);
    put_u64(out + TUNNEL_HEADER_SIZE + 8, p->ack);
    put_u64(out + TUNNEL_HEADER_SIZE + 16, p->limit);
}

void tunnel_ack_encode(uint32_t channel, uint8_t flags, const struct tunnel_position *p,
                       uint8_t out[TUNNEL_ACK_SIZE])
{
    struct tunnel_header h = {.length = 16, .channel = channel, .type = TUNNEL_ACK, .flags = flags};
    tunnel_header_encode(&h, out);
    put_u64(out + TUNNEL_HEADER_SIZE, p->ack);
    put_u64(out + TUNNEL_HEADER_SIZE + 8, p->limit);
}

int tunnel_add_bytes(struct buf *out, enum tunnel_type type, uint32_t channel, const void *data,
                     size_t len)
{
    uint8_t header[TUNNEL_HEADER_SIZE];
    struct tunnel_header h = {
        .length = (uint32_t)len, .channel = channel, .type = (uint8_t)type, .flags = 0};
    tunnel_header_encode(&h, header);
    int r = buf_add(out, header, sizeof(header));
    return r < 0 || len == 0 ? r : buf_add(out, data, len);
}

int tunnel_add_u64(struct buf *out, enum tunnel_type type, uint32_t channel, uint64_t value)
{
    uint8_t payload[8];
    put_u64(payload, value);
    return tunnel_add_bytes(out, type, channel, payload, sizeof(payload));
}

int tunnel_add_close(struct buf *out, uint32_t channel, const char *reason)
{
    size_t len = reason ? MIN(strlen(reason), (size_t)TUNNEL_REASON_MAX) : 0;
    return tunnel_add_bytes(out, TUNNEL_CLOSE, channel, reason, len);
}

int tunnel_add_refuse(struct buf *out, enum tunnel_refusal code, const char *reason)
{
    uint8_t payload[2 + TUNNEL_REASON_MAX];
    size_t len = MIN(strlen(reason), (size_t)TUNNEL_REASON_MAX);
    payload[0] = (uint8_t)(code >> 8);
    payload[1] = (uint8_t)code;
    memcpy(payload + 2, reason, len);
    return tunnel_add_bytes(out, TUNNEL_REFUSE, 0, payload, 2 + len);
}

void tunnel_reason_decode(const uint8_t *in, size_t len, char ret[TUNNEL_REASON_MAX + 1])
{
    len = MIN(len, (size_t)TUNNEL_REASON_MAX);
    for (size_t i = 0; i < len; i++)
        ret[i] = in[i] >= 0x20 && in[i] < 0x7f ? (char)in[i] : '?';
    ret[len] = '\0';
}

/* -- hello -- */

int tunnel_add_hello(struct buf *out, const struct tunnel_hello *hello)
{
    Tunnel__Channel channels[TUNNEL_CHANNELS_MAX], *pointers[TUNNEL_CHANNELS_MAX];
    for (size_t i = 0; i < hello->n_channels; i++) {
        tunnel__channel__init(&channels[i]);
        channels[i].id = hello->channels[i].id;
        channels[i].held = hello->channels[i].held;
        channels[i].limit = hello->channels[i].limit;
        channels[i].fin = hello->channels[i].fin;
        pointers[i] = &channels[i];
    }
    Tunnel__Hello m = TUNNEL__HELLO__INIT;
    m.version_min = hello->version_min;
    m.version_max = hello->version_max;
    m.features = hello->features;
    m.role = hello->role;
    m.sandbox = (char *)hello->sandbox;
    m.software = (char *)hello->software;
    m.generation = hello->generation;
    m.agent_ready = hello->agent_ready;
    m.enrolling = hello->enrolling;
    if (hello->has_proof)
        m.proof = (ProtobufCBinaryData){.len = TUNNEL_PROOF_SIZE, .data = (uint8_t *)hello->proof};
    m.n_channels = hello->n_channels;
    m.channels = pointers;
    size_t len = tunnel__hello__get_packed_size(&m);
    struct tunnel_header h = {
        .length = (uint32_t)len, .type = TUNNEL_HELLO, .flags = TUNNEL_FLAG_MUST};
    int r = buf_reserve(out, TUNNEL_HEADER_SIZE + len);
    if (r < 0)
        return r;
    tunnel_header_encode(&h, (uint8_t *)out->data + out->len);
    tunnel__hello__pack(&m, (uint8_t *)out->data + out->len + TUNNEL_HEADER_SIZE);
    buf_grown(out, TUNNEL_HEADER_SIZE + len);
    return 0;
}

static int hello_channels(const Tunnel__Hello *m, struct tunnel_hello *ret, struct err *err)
{
    if (m->n_channels > TUNNEL_CHANNELS_MAX)
        return err_set(err, -EPROTO, "hello with %zu channels; at most %d are allowed",
                       m->n_channels, TUNNEL_CHANNELS_MAX);
    ret->n_channels = m->n_channels;
    uint32_t last = 0;
    for (size_t i = 0; i < m->n_channels; i++) {
        const Tunnel__Channel *c = m->channels[i];
        if (c->id <= last)
            return err_set(err, -EPROTO, "hello with channel %u behind %u", c->id, last);
        if (c->limit < c->held || c->limit > INT64_MAX)
            return err_set(err, -EPROTO, "hello with an impossible window on channel %u", c->id);
        last = c->id;
        ret->channels[i] = (struct tunnel_hello_channel){
            .id = c->id, .fin = c->fin, .held = c->held, .limit = c->limit};
    }
    return 0;
}

static int hello_convert(const Tunnel__Hello *m, struct tunnel_hello *ret, struct err *err)
{
    if (m->version_min == 0 || m->version_max < m->version_min)
        return err_set(err, -EPROTO, "hello with versions %u to %u", m->version_min,
                       m->version_max);
    if (m->role != TUNNEL_HELLO_DAEMON && m->role != TUNNEL_HELLO_FORWARDER)
        return err_set(err, -EPROTO, "hello with role %u", m->role);
    const char *why = NULL;
    if (str_check_sandbox_id(m->sandbox, &why) < 0)
        return err_set(err, -EPROTO, "hello with a bad sandbox id: %s", why);
    if (m->proof.len != 0 && m->proof.len != TUNNEL_PROOF_SIZE)
        return err_set(err, -EPROTO, "hello with a proof of %zu bytes", m->proof.len);
    ret->version_min = m->version_min;
    ret->version_max = m->version_max;
    ret->features = m->features;
    ret->generation = m->generation;
    ret->role = m->role == TUNNEL_HELLO_DAEMON ? TUNNEL_HELLO_DAEMON : TUNNEL_HELLO_FORWARDER;
    ret->agent_ready = m->agent_ready;
    ret->enrolling = m->enrolling;
    memcpy(ret->sandbox, m->sandbox, strlen(m->sandbox) + 1);
    char software[TUNNEL_REASON_MAX + 1];
    size_t len = strnlen(m->software, TUNNEL_SOFTWARE_MAX);
    tunnel_reason_decode((const uint8_t *)m->software, len, software);
    memcpy(ret->software, software, len + 1);
    ret->has_proof = m->proof.len != 0;
    if (ret->has_proof)
        memcpy(ret->proof, m->proof.data, TUNNEL_PROOF_SIZE);
    return hello_channels(m, ret, err);
}

int tunnel_hello_decode(const uint8_t *in, size_t len, struct tunnel_hello *ret, struct err *err)
{
    if (len > TUNNEL_HELLO_MAX)
        return err_set(err, -EPROTO, "hello of %zu bytes", len);
    Tunnel__Hello *m = tunnel__hello__unpack(NULL, len, in);
    if (!m)
        return err_set(err, -EPROTO, "hello is not a message of that kind");
    *ret = (struct tunnel_hello){0};
    int r = hello_convert(m, ret, err);
    tunnel__hello__free_unpacked(m, NULL);
    return r;
}

#define PROOF_LABEL "peerpod tunnel enrolment 1" /* with its NUL */

int tunnel_proof(const uint8_t *secret, size_t secret_len, enum tunnel_hello_role role,
                 const char *sandbox, const uint8_t exporter[32],
                 const uint8_t daemon_pin[TLS_PIN_SIZE], const uint8_t forwarder_pin[TLS_PIN_SIZE],
                 uint8_t ret[TUNNEL_PROOF_SIZE], struct err *err)
{
    uint8_t text[sizeof(PROOF_LABEL) + 2 + SANDBOX_ID_MAX + 32 + 2 * TLS_PIN_SIZE];
    size_t id_len = strnlen(sandbox, SANDBOX_ID_MAX), n = sizeof(PROOF_LABEL);
    memcpy(text, PROOF_LABEL, sizeof(PROOF_LABEL));
    text[n++] = (uint8_t)role;
    text[n++] = (uint8_t)id_len;
    memcpy(text + n, sandbox, id_len);
    n += id_len;
    memcpy(text + n, exporter, 32);
    n += 32;
    memcpy(text + n, daemon_pin, TLS_PIN_SIZE);
    n += TLS_PIN_SIZE;
    memcpy(text + n, forwarder_pin, TLS_PIN_SIZE);
    n += TLS_PIN_SIZE;
    unsigned len = TUNNEL_PROOF_SIZE;
    if (secret_len == 0 || secret_len > TUNNEL_SECRET_MAX)
        return err_set(err, -EINVAL, "an enrolment secret of %zu bytes", secret_len);
    if (!HMAC(EVP_sha256(), secret, (int)secret_len, text, n, ret, &len))
        return tls_err(err, -EIO, "proving the enrolment secret");
    return 0;
}
