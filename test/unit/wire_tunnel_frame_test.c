/* SPDX-License-Identifier: Apache-2.0 */
/* The codec of the tunnel: what is written is read again, limits hold, hello grows. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tunnel.pb-c.h"
#include "wire/tunnel_frame.h"

static int decode(uint8_t type, uint8_t flags, uint32_t channel, uint32_t length,
                  struct tunnel_header *ret)
{
    uint8_t bytes[TUNNEL_HEADER_SIZE];
    struct tunnel_header h = {.type = type, .flags = flags, .channel = channel, .length = length};
    struct err err = ERR_INIT;
    tunnel_header_encode(&h, bytes);
    int r = tunnel_header_decode(bytes, ret, &err);
    assert_int_equal(r < 0, err.code != 0);
    return r;
}

static void test_header(void **state)
{
    struct tunnel_header h;
    assert_int_equal(decode(TUNNEL_ACK, 5, 0x01020304, 16, &h), 0);
    assert_true(h.known && h.type == TUNNEL_ACK && h.flags == 5);
    assert_int_equal(h.channel, 0x01020304);
    assert_int_equal(h.length, 16);
    static const uint8_t wire[TUNNEL_HEADER_SIZE] = {0, 0, 0, 16, 1, 2, 3, 4, 18, 5, 0, 0};
    uint8_t bytes[TUNNEL_HEADER_SIZE];
    tunnel_header_encode(&h, bytes);
    assert_memory_equal(bytes, wire, sizeof(wire));
}

static void test_limits(void **state)
{
    static const struct {
        uint8_t type, flags;
        uint32_t channel, length;
        int result;
    } cases[] = {
        {TUNNEL_DATA, 0, 1, 24, 0},
        {TUNNEL_DATA, 0, 1, 23, -EPROTO},
        {TUNNEL_DATA, 0, 1, TUNNEL_PAYLOAD_MAX, 0},
        {TUNNEL_DATA, 0, 1, TUNNEL_PAYLOAD_MAX + 1, -EPROTO},
        {TUNNEL_DATA, 0, 0, 24, -EPROTO},
        {TUNNEL_HELLO, 0, 0, TUNNEL_HELLO_MAX, 0},
        {TUNNEL_HELLO, 0, 0, TUNNEL_HELLO_MAX + 1, -EPROTO},
        {TUNNEL_HELLO, 0, 1, 10, -EPROTO},
        {TUNNEL_PING, 0, 0, 8, 0},
        {TUNNEL_PING, 0, 0, 7, -EPROTO},
        {TUNNEL_PING, 0, 0, TUNNEL_CONTROL_MAX, 0},
        {TUNNEL_PING, 0, 0, TUNNEL_CONTROL_MAX + 1, -EPROTO},
        {TUNNEL_CLOSE, 0, 3, 256, 0},
        {TUNNEL_CLOSE, 0, 3, 257, -EPROTO},
        {TUNNEL_REFUSE, 0, 0, 1, -EPROTO},
        {TUNNEL_REFUSE, 0, 0, 258, 0},
        {0, 0, 9, 0, 0},
        {255, 0, 9, TUNNEL_PAYLOAD_MAX, 0},
        {255, 0, 0, TUNNEL_PAYLOAD_MAX + 1, -EPROTO},
        {255, TUNNEL_FLAG_MUST, 0, 0, -EPROTO},
        {TUNNEL_STATS, TUNNEL_FLAG_MUST, 0, 0, -EPROTO},
        {TUNNEL_PING, TUNNEL_FLAG_MUST, 0, 8, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct tunnel_header h = {0};
        int r = decode(cases[i].type, cases[i].flags, cases[i].channel, cases[i].length, &h);
        if (r != cases[i].result)
            fail_msg("case %zu: %d", i, r);
    }
}

static void test_positions(void **state)
{
    uint8_t bytes[TUNNEL_HEADER_SIZE + TUNNEL_DATA_PREFIX];
    struct tunnel_position p = {.offset = 1ULL << 40, .ack = 77, .limit = 1ULL << 41}, q;
    struct err err = ERR_INIT;
    tunnel_data_encode(5, TUNNEL_FLAG_FIN, &p, 100, bytes);
    assert_int_equal(tunnel_data_decode(bytes + TUNNEL_HEADER_SIZE, 100, &q, &err), 0);
    assert_memory_equal(&p, &q, sizeof(p));
    p.offset = INT64_MAX - 99;
    tunnel_data_encode(5, 0, &p, 100, bytes);
    assert_int_equal(tunnel_data_decode(bytes + TUNNEL_HEADER_SIZE, 100, &q, &err), -EPROTO);
    err_clear(&err);
    assert_int_equal(tunnel_data_decode(bytes + TUNNEL_HEADER_SIZE, 99, &q, &err), 0);
    p = (struct tunnel_position){.ack = 10, .limit = 9};
    tunnel_ack_encode(5, 0, &p, bytes);
    assert_int_equal(tunnel_ack_decode(bytes + TUNNEL_HEADER_SIZE, &q, &err), -EPROTO);
}

static void hello_make(struct tunnel_hello *h)
{
    *h = (struct tunnel_hello){.version_min = 1,
                               .version_max = 3,
                               .features = 1ULL << 63 | 5,
                               .generation = 1ULL << 50,
                               .role = TUNNEL_HELLO_FORWARDER,
                               .sandbox = "abc",
                               .software = "peerpod 1",
                               .agent_ready = true,
                               .has_proof = true,
                               .n_channels = TUNNEL_CHANNELS_MAX};
    memset(h->proof, 0xa5, sizeof(h->proof));
    for (uint32_t i = 0; i < TUNNEL_CHANNELS_MAX; i++)
        h->channels[i] = (struct tunnel_hello_channel){
            .id = i * 3 + 1, .fin = i % 2, .held = 1ULL << 40, .limit = (1ULL << 40) + i};
}

static void test_hello(void **state)
{
    struct tunnel_hello a, b;
    struct buf out = BUF_INIT(1 << 20);
    struct tunnel_header h;
    struct err err = ERR_INIT;
    hello_make(&a);
    assert_int_equal(tunnel_add_hello(&out, &a), 0);
    assert_int_equal(tunnel_header_decode((uint8_t *)out.data, &h, &err), 0);
    assert_int_equal(h.length + TUNNEL_HEADER_SIZE, out.len);
    /* A later version's fields: number 99, bytes. */
    assert_int_equal(buf_add(&out, "\x9a\x06\x03xyz", 6), 0);
    assert_int_equal(tunnel_hello_decode((uint8_t *)out.data + TUNNEL_HEADER_SIZE,
                                         out.len - TUNNEL_HEADER_SIZE, &b, &err),
                     0);
    assert_memory_equal(a.proof, b.proof, sizeof(a.proof));
    assert_true(a.features == b.features && a.generation == b.generation && a.role == b.role);
    assert_string_equal(a.sandbox, b.sandbox);
    assert_int_equal(b.n_channels, TUNNEL_CHANNELS_MAX);
    for (size_t i = 0; i < b.n_channels; i++)
        assert_true(
            a.channels[i].id == b.channels[i].id && a.channels[i].held == b.channels[i].held &&
            a.channels[i].limit == b.channels[i].limit && a.channels[i].fin == b.channels[i].fin);
    buf_done(&out);
}

static int hello_with(void (*change)(Tunnel__Hello *m))
{
    Tunnel__Channel channels[TUNNEL_CHANNELS_MAX + 1], *list[TUNNEL_CHANNELS_MAX + 1];
    Tunnel__Hello m = TUNNEL__HELLO__INIT;
    struct err err = ERR_INIT;
    struct tunnel_hello h;
    for (uint32_t i = 0; i < ARRAY_SIZE(list); i++) {
        tunnel__channel__init(&channels[i]);
        channels[i].id = i + 1;
        list[i] = &channels[i];
    }
    m.version_min = m.version_max = m.role = 1;
    m.sandbox = (char *)"abc";
    m.channels = list;
    change(&m);
    _cleanup_free_ uint8_t *bytes = xcalloc(1, TUNNEL_HELLO_MAX * 2);
    return tunnel_hello_decode(bytes, tunnel__hello__pack(&m, bytes), &h, &err);
}

static void change_nothing(Tunnel__Hello *m)
{
}

static void too_many(Tunnel__Hello *m)
{
    m->n_channels = TUNNEL_CHANNELS_MAX + 1;
}

static void twice(Tunnel__Hello *m)
{
    m->n_channels = 2;
    m->channels[1]->id = 1;
}

static void channel_zero(Tunnel__Hello *m)
{
    m->n_channels = 1;
    m->channels[0]->id = 0;
}

static void bad_window(Tunnel__Hello *m)
{
    m->n_channels = 1;
    m->channels[0]->held = 2;
}

static void short_proof(Tunnel__Hello *m)
{
    static uint8_t proof[31];
    m->proof = (ProtobufCBinaryData){.len = sizeof(proof), .data = proof};
}

static void big_evidence(Tunnel__Hello *m)
{
    static uint8_t evidence[TUNNEL_HELLO_MAX];
    m->evidence = (ProtobufCBinaryData){.len = sizeof(evidence), .data = evidence};
}

static void some_evidence(Tunnel__Hello *m)
{
    big_evidence(m);
    m->evidence.len = TUNNEL_HELLO_MAX - 100;
}

static void long_id(Tunnel__Hello *m)
{
    static char id[SANDBOX_ID_MAX + 2];
    memset(id, 'a', SANDBOX_ID_MAX + 1);
    m->sandbox = id;
}

static void test_hello_limits(void **state)
{
    static void (*const bad[])(Tunnel__Hello * m) = {
        too_many, twice, channel_zero, bad_window, short_proof, big_evidence, long_id};
    assert_int_equal(hello_with(change_nothing), 0);
    assert_int_equal(hello_with(some_evidence), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(hello_with(bad[i]), -EPROTO);
}

static void test_texts(void **state)
{
    struct buf out = BUF_INIT(0);
    char reason[TUNNEL_REASON_MAX + 1], longer[600];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(tunnel_add_close(&out, 4, longer), 0);
    assert_int_equal(out.len, TUNNEL_HEADER_SIZE + TUNNEL_REASON_MAX);
    buf_done(&out);
    assert_int_equal(tunnel_add_close(&out, 4, NULL), 0);
    assert_int_equal(out.len, TUNNEL_HEADER_SIZE);
    buf_done(&out);
    tunnel_reason_decode((const uint8_t *)"a\nb\xff\0c", 6, reason);
    assert_string_equal(reason, "a?b??c");
}

/* Fixed numbers, so that somebody else's other end can check theirs (docs/tunnel.md). */
static void test_proof(void **state)
{
    uint8_t secret[32], exporter[32], pins[2][TLS_PIN_SIZE], a[32], b[32];
    char hex[65];
    memset(secret, 1, 32);
    memset(exporter, 2, 32);
    memset(pins[0], 3, 32);
    memset(pins[1], 4, 32);
    struct err err = ERR_INIT;
    assert_int_equal(
        tunnel_proof(secret, 32, TUNNEL_HELLO_DAEMON, "abc", exporter, pins[0], pins[1], a, &err),
        0);
    str_hex(a, 32, hex);
    assert_string_equal(hex, "ce77e6393adbd2b50b0fd00be80ff01e1f2b7a7f70995a825b1acdb40fe275fb");
    assert_int_equal(tunnel_proof(secret, 32, TUNNEL_HELLO_FORWARDER, "abc", exporter, pins[0],
                                  pins[1], b, &err),
                     0);
    assert_memory_not_equal(a, b, 32); /* one side's proof is no proof of the other's */
    assert_int_equal(
        tunnel_proof(secret, 0, TUNNEL_HELLO_DAEMON, "abc", exporter, pins[0], pins[1], b, &err),
        -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),       cmocka_unit_test(test_limits),
        cmocka_unit_test(test_positions),    cmocka_unit_test(test_hello),
        cmocka_unit_test(test_hello_limits), cmocka_unit_test(test_texts),
        cmocka_unit_test(test_proof),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
