/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What plain mode does to streams in memory: edits of the shim's frames in pieces of any size, our
 * answers between the agent's frames, and the ClientHello that tells two daemons apart.
 */
#include "unit/check.h"

#include <errno.h>

#include "base/str.h"
#include "wire/splice_stream.h"
#include "wire/tls_plain.h"

#define NETNS "/run/netns/podns"

static const struct splice_rules rules = {.netns_path = NETNS, .clear_dns = true};

static void add_frame(struct buf *out, uint32_t stream, const char *method, const char *payload,
                      size_t len)
{
    struct err err = ERR_INIT;
    assert_int_equal(
        ttrpc_add_request(out, stream, "grpc.AgentService", method, payload, len, 0, &err), 0);
}

/* Takes all that waits. */
static void drain(struct splice_stream *s, struct buf *out)
{
    const uint8_t *p;
    size_t n;
    while ((n = splice_stream_peek(s, splice_stream_tail(s), &p)) > 0) {
        buf_add(out, p, n);
        assert_int_equal(splice_stream_ack(s, splice_stream_tail(s) + n), 0);
    }
    assert_int_equal(splice_stream_ack(s, splice_stream_head(s) + 1), -ERANGE);
}

static void feed(struct splice_stream *s, const struct buf *in, size_t piece, struct buf *out)
{
    for (size_t at = 0; at < in->len;) {
        size_t n = splice_stream_put(s, (const uint8_t *)in->data + at, MIN(piece, in->len - at));
        at += n;
        if (n == 0) {
            size_t before = out->len;
            drain(s, out);
            assert_true(out->len > before); /* it was the output that was in the way */
        }
    }
    drain(s, out);
}

static void test_pieces(void **state)
{
    static const size_t pieces[] = {1, 3, 9, 10, 11, 127, 128, 4096, 1 << 20};
    struct buf in = BUF_INIT(4 << 20), expected = BUF_INIT(4 << 20);
    struct err err = ERR_INIT;
    char *big = xcalloc(1, 300000);
    (void)state;
    add_frame(&in, 1, "Check", "", 0);
    add_frame(&in, 3, "CopyFile", big, 300000);
    buf_add(&expected, in.data, in.len);
    size_t at = in.len;
    add_frame(&in, 5, "CreateContainer",
              "\x0a\x01"
              "c",
              3);
    assert_int_equal(
        splice_frame((const uint8_t *)in.data + at, in.len - at, &rules, &expected, &err), 0);
    assert_true(expected.len > in.len);
    at = in.len;
    add_frame(&in, 7, "Check", "", 0);
    buf_add(&in, "\0\0\0\0\0\0\0\7\3\0", 10); /* an empty frame of another type */
    buf_add(&expected, in.data + at, in.len - at);
    for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
        struct splice_stream *s = splice_stream_new(&rules);
        struct buf out = BUF_INIT(4 << 20);
        feed(s, &in, pieces[i], &out);
        assert_int_equal(out.len, expected.len);
        assert_memory_equal(out.data, expected.data, out.len);
        assert_true(splice_stream_limit(s) == SIZE_MAX);
        buf_done(&out);
        splice_stream_free(s);
    }
    buf_done(&in);
    buf_done(&expected);
    free(big);
}

static void test_unfinished(void **state)
{
    struct buf in = BUF_INIT(1 << 20), out = BUF_INIT(1 << 20);
    (void)state;
    add_frame(&in, 1, "Check", "", 0);
    struct splice_stream *s = splice_stream_new(&rules);
    in.len -= 5;
    feed(s, &in, in.len, &out);
    splice_stream_end(s);
    drain(s, &out);
    assert_int_equal(out.len, in.len);
    splice_stream_free(s);
    in.len = out.len = 0;
    add_frame(&in, 1, "CreateContainer",
              "\x0a\x01"
              "c",
              3);
    in.len--;
    s = splice_stream_new(&rules);
    feed(s, &in, in.len, &out);
    splice_stream_end(s);
    drain(s, &out);
    assert_int_equal(out.len, 0); /* it was held */
    splice_stream_free(s);
    buf_done(&in);
    buf_done(&out);
}

/* Our whole answer is there; takes it in pieces of 5. */
static void take_answer(struct splice_stream *s, uint32_t stream)
{
    struct ttrpc_header h = {0};
    struct buf got = BUF_INIT(64 << 10);
    const uint8_t *p;
    size_t n;
    assert_int_equal(splice_stream_limit(s), 0);
    while ((n = splice_stream_answer(s, &p)) > 0) {
        buf_add(&got, p, MIN(n, (size_t)5));
        splice_stream_answered(s, MIN(n, (size_t)5));
        if (got.len >= TTRPC_HEADER_SIZE) {
            ttrpc_header_decode((const uint8_t *)got.data, &h);
            if (got.len == TTRPC_HEADER_SIZE + h.length)
                break;
        }
    }
    assert_int_equal(h.stream, stream);
    assert_int_equal(h.type, TTRPC_RESPONSE);
    buf_done(&got);
}

/* Two requests that are no protobuf, while the agent is in the middle of a frame of 20 bytes. */
static void test_answers(void **state)
{
    static const uint8_t agent[30] = {0, 0, 0, 20, 0, 0, 0, 1, 2, 0};
    struct buf in = BUF_INIT(1 << 20), out = BUF_INIT(1 << 20);
    struct splice_stream *s = splice_stream_new(&rules);
    (void)state;
    splice_stream_pass(s, agent, 4);
    add_frame(&in, 5, "CreateContainer", "\xff\xff", 2);
    add_frame(&in, 7, "CreateContainer", "\xff\xff", 2);
    feed(s, &in, in.len, &out);
    assert_int_equal(out.len, 0);
    assert_int_equal(splice_stream_limit(s), 6); /* the rest of the header */
    splice_stream_pass(s, agent + 4, 6);
    assert_int_equal(splice_stream_limit(s), 20);
    splice_stream_pass(s, agent + 10, 20);
    in.len = 0;
    add_frame(&in, 9, "Check", "", 0);
    assert_int_equal(splice_stream_put(s, (const uint8_t *)in.data, in.len), 0); /* 7 waits */
    take_answer(s, 5);
    take_answer(s, 7);
    assert_true(splice_stream_limit(s) == SIZE_MAX);
    feed(s, &in, in.len, &out);
    assert_int_equal(out.len, in.len);
    splice_stream_free(s);
    buf_done(&in);
    buf_done(&out);
}

/* -- annotations -- */

static void annotate(void *arg, struct splice_spec *spec)
{
    const char *value = NULL;
    size_t len = 0;
    (void)arg;
    assert_true(splice_spec_annotation(spec, "k", &value, &len));
    assert_int_equal(len, 2); /* the last of two */
    assert_memory_equal(value, "v2", 2);
    assert_false(splice_spec_annotation(spec, "none", &value, &len));
    splice_spec_annotate(spec, "new", "1");
}

static void test_annotate(void **state)
{
    static const char spec[] = "\x3a\x07\x0a\x01k\x12\x02v1\x3a\x07\x0a\x01k\x12\x02v2\x42\x00";
    static const char added[] = "\x3a\x08\x0a\x03new\x12\x01\x31";
    const struct splice_rules notes = {.annotate = annotate};
    struct buf in = BUF_INIT(4096), out = BUF_INIT(4096), payload = BUF_INIT(4096);
    struct err err = ERR_INIT;
    (void)state;
    buf_addf(&payload, "%c%c", 0x32, (int)sizeof(spec) - 1);
    buf_add(&payload, spec, sizeof(spec) - 1);
    add_frame(&in, 1, "CreateContainer", payload.data, payload.len);
    assert_int_equal(splice_frame((const uint8_t *)in.data, in.len, &notes, &out, &err), 0);
    assert_int_equal(out.len, in.len + sizeof(added) - 1);
    assert_memory_equal(out.data + out.len - (sizeof(added) - 1), added, sizeof(added) - 1);
    buf_done(&in);
    buf_done(&out);
    buf_done(&payload);
}

/* -- the ClientHello -- */

static size_t client_hello(struct tls_ctx *ctx, const struct tls_identity *id, uint8_t *out,
                           size_t size)
{
    struct err err = ERR_INIT;
    SSL *ssl = NULL;
    assert_int_equal(tls_connection_new(ctx, id, &ssl, &err), 0);
    BIO *in = BIO_new(BIO_s_mem()), *wire = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, in, wire);
    SSL_do_handshake(ssl);
    int n = BIO_read(wire, out, (int)size);
    assert_true(n > 0);
    SSL_free(ssl);
    return (size_t)n;
}

static void test_hello(void **state)
{
    uint8_t hello[4096];
    struct tls_identity *id = NULL;
    struct tls_ctx *native = NULL, *plain = NULL;
    struct err err = ERR_INIT;
    char *key = NULL, *cert = NULL;
    (void)state;
    assert_int_equal(tls_identity_new("x", &id, &err), 0);
    assert_int_equal(tls_identity_pem(id, &key, &cert, &err), 0);
    assert_int_equal(tls_ctx_new(false, &native, &err), 0);
    const struct tls_plain_config config = {.cert_pem = cert, .key_pem = key, .ca_pem = cert};
    assert_int_equal(tls_plain_ctx_new(&config, &plain, &err), 0);
    size_t n = client_hello(native, id, hello, sizeof(hello));
    for (size_t i = 0; i < n; i++)
        assert_int_equal(tls_hello_offers(hello, i, TLS_ALPN_TUNNEL), -EAGAIN);
    assert_int_equal(tls_hello_offers(hello, n, TLS_ALPN_TUNNEL), 1);
    assert_int_equal(tls_hello_offers(hello, n, "peerpod-tunnel/2"), 0);
    n = client_hello(plain, NULL, hello, sizeof(hello));
    assert_int_equal(tls_hello_offers(hello, n, TLS_ALPN_TUNNEL), 0);
    assert_int_equal(tls_hello_offers((const uint8_t *)"\0", 1, TLS_ALPN_TUNNEL), 0);
    tls_ctx_free(native);
    tls_ctx_free(plain);
    tls_identity_free(id);
    free(key);
    free(cert);
}

static void test_options(void **state)
{
    static const struct {
        const char *min, *suite, *words;
    } bad[] = {
        {"VersionTLS11", NULL, "VersionTLS12"},
        {"VersionTLS13", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS 1.3"},
        {"", "ECDHE-RSA-AES128-GCM-SHA256", "IANA"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_INIT;
        char *suites[] = {(char *)(uintptr_t)bad[i].suite, NULL};
        assert_int_equal(tls_plain_check(bad[i].min, suites, &err), -EINVAL);
        assert_text_has(err.text, bad[i].words);
    }
    struct err err = ERR_INIT;
    char *good[] = {(char *)(uintptr_t) "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
                    (char *)(uintptr_t) "TLS_AES_128_GCM_SHA256",
                    (char *)(uintptr_t) "TLS_RSA_WITH_AES_128_GCM_SHA256", NULL};
    assert_int_equal(tls_plain_check("VersionTLS12", good, &err), 0);
    assert_int_equal(tls_plain_check("VersionTLS13", NULL, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),  cmocka_unit_test(test_unfinished),
        cmocka_unit_test(test_answers), cmocka_unit_test(test_annotate),
        cmocka_unit_test(test_hello),   cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
