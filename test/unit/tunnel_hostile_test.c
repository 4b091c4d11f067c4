/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers that break the rules, on a thread of their own: each session ends with the sentence that
 * says why, and the tunnel lives on (the sanitizers say whether anything leaked).
 */
#include <openssl/pem.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#include "tunnel_world.h"

struct raw { /* a blocking peer */
    struct world *w;
    bool server, no_hello, garbage, quiet;
    const char *alpn;         /* NULL: none is offered */
    struct buf before, after; /* sent before hello, and behind both hellos */
    struct tunnel_hello hello;
    struct sockaddr_in address;
    int listener;
    int done;    /* atomic */
    bool shaken; /* the handshake was completed */
    char refused[TUNNEL_REASON_MAX + 1];
    unsigned frames[256]; /* received, by type */
};

static bool raw_read(SSL *ssl, void *out, size_t len)
{
    for (size_t done = 0; done < len;) {
        int n = SSL_read(ssl, (char *)out + done, (int)(len - done));
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* One frame, noted. */
static bool raw_frame(struct raw *raw, SSL *ssl)
{
    uint8_t in[TUNNEL_HEADER_SIZE], payload[TUNNEL_PAYLOAD_MAX];
    struct tunnel_header h;
    if (!raw_read(ssl, in, sizeof(in)) || tunnel_header_decode(in, &h, NULL) < 0 ||
        !raw_read(ssl, payload, h.length))
        return false;
    raw->frames[h.type]++;
    if (h.type == TUNNEL_REFUSE)
        tunnel_reason_decode(payload + 2, h.length - 2, raw->refused);
    return true;
}

static SSL_CTX *raw_ctx(struct raw *raw, const struct tls_identity *id)
{
    _cleanup_free_ char *key = NULL, *cert = NULL;
    struct err err = ERR_INIT;
    SSL_CTX *ctx = SSL_CTX_new(raw->server ? TLS_server_method() : TLS_client_method());
    assert_int_equal(tls_identity_pem(id, &key, &cert, &err), 0);
    BIO *k = BIO_new_mem_buf(key, -1), *c = BIO_new_mem_buf(cert, -1);
    EVP_PKEY *pkey = PEM_read_bio_PrivateKey(k, NULL, NULL, NULL);
    X509 *x509 = PEM_read_bio_X509(c, NULL, NULL, NULL);
    SSL_CTX_use_certificate(ctx, x509);
    SSL_CTX_use_PrivateKey(ctx, pkey);
    EVP_PKEY_free(pkey);
    X509_free(x509);
    BIO_free_all(k);
    BIO_free_all(c);
    return ctx;
}

static int raw_alpn(SSL *ssl, const uint8_t **out, uint8_t *out_len, const uint8_t *in,
                    unsigned in_len, void *arg)
{
    struct raw *raw = arg;
    if (!raw->alpn)
        return SSL_TLSEXT_ERR_NOACK;
    *out = in + 1;
    *out_len = in[0];
    return SSL_TLSEXT_ERR_OK;
}

static void raw_talk(struct raw *raw, SSL *ssl)
{
    struct buf hello = BUF_INIT(TUNNEL_HELLO_MAX + 100);
    if ((raw->server ? SSL_accept(ssl) : SSL_connect(ssl)) != 1)
        return;
    raw->shaken = true;
    if (raw->before.len)
        SSL_write(ssl, raw->before.data, (int)raw->before.len);
    if (raw->server && !raw->quiet)
        raw_frame(raw, ssl); /* the daemon speaks first */
    tunnel_add_hello(&hello, &raw->hello);
    if (!raw->no_hello)
        SSL_write(ssl, hello.data, (int)hello.len);
    buf_done(&hello);
    if (!raw->server && !raw->no_hello)
        raw_frame(raw, ssl);
    if (raw->after.len)
        SSL_write(ssl, raw->after.data, (int)raw->after.len);
    while (raw_frame(raw, ssl))
        ;
}

static void *raw_main(void *arg)
{
    struct raw *raw = arg;
    struct timeval limit = {.tv_sec = 10};
    struct side *side = raw->server ? &raw->w->forwarder : &raw->w->daemon;
    int fd = raw->server ? accept(raw->listener, NULL, NULL) : socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (!raw->server)
        (void)connect(fd, (struct sockaddr *)&raw->w->address, sizeof(raw->w->address));
    SSL_CTX *ctx = raw_ctx(raw, side->id);
    SSL *ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    uint8_t alpn[64];
    if (raw->server) {
        SSL_CTX_set_alpn_select_cb(ctx, raw_alpn, raw);
        SSL_set_verify(ssl, SSL_VERIFY_NONE, NULL);
    } else if (raw->alpn) {
        alpn[0] = (uint8_t)strlen(raw->alpn);
        memcpy(alpn + 1, raw->alpn, alpn[0]);
        SSL_set_alpn_protos(ssl, alpn, alpn[0] + 1U);
    }
    if (raw->garbage) {
        char junk[512];
        memset(junk, 'G', sizeof(junk));
        (void)!write(fd, junk, sizeof(junk));
        while (read(fd, junk, sizeof(junk)) > 0)
            ;
    } else {
        raw_talk(raw, ssl);
    }
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
    __atomic_store_n(&raw->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static struct raw *now; /* of the present test */

static bool raw_done(struct world *w)
{
    return __atomic_load_n(&now->done, __ATOMIC_ACQUIRE);
}

static struct raw *raw_new(struct world *w, bool server)
{
    struct raw *raw = xcalloc(1, sizeof(*raw));
    w->no_duplicates = true; /* they would keep the peer's socket open */
    raw->w = w;
    raw->server = server;
    raw->alpn = TLS_ALPN_TUNNEL;
    raw->listener = -1;
    raw->before = raw->after = BUF_INIT(1 << 20);
    raw->hello =
        (struct tunnel_hello){.version_min = 1,
                              .version_max = 1,
                              .features = TUNNEL_FEATURES,
                              .role = server ? TUNNEL_HELLO_FORWARDER : TUNNEL_HELLO_DAEMON,
                              .generation = 1,
                              .sandbox = "sandbox-1"};
    if (server) {
        socklen_t len = sizeof(raw->address);
        raw->address =
            (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        raw->listener = socket(AF_INET, SOCK_STREAM, 0);
        (void)bind(raw->listener, (struct sockaddr *)&raw->address, sizeof(raw->address));
        listen(raw->listener, 8);
        getsockname(raw->listener, (struct sockaddr *)&raw->address, &len);
        w->address = raw->address;
    }
    return now = raw;
}

/* Runs the peer to its end; the tunnel's own loop goes on meanwhile. */
static void raw_run(struct raw *raw)
{
    pthread_t thread;
    pthread_create(&thread, NULL, raw_main, raw);
    bool ok = run(raw->w, raw_done, 15000);
    pthread_join(thread, NULL);
    assert_true(ok);
    run(raw->w, NULL, 20);
}

static void raw_free(struct raw *raw)
{
    if (raw->listener >= 0)
        close(raw->listener);
    buf_done(&raw->before);
    buf_done(&raw->after);
    free(raw);
}

static void add_data(struct buf *out, uint32_t id, uint8_t flags, uint64_t offset, uint64_t ack,
                     uint64_t limit, uint32_t len)
{
    uint8_t head[TUNNEL_HEADER_SIZE + TUNNEL_DATA_PREFIX];
    struct tunnel_position p = {.offset = offset, .ack = ack, .limit = limit};
    uint32_t seed = id * 7919 + 1;
    tunnel_data_encode(id, flags, &p, len, head);
    buf_add(out, head, sizeof(head));
    for (uint32_t i = 0; i < len; i++)
        buf_add(out, &pattern[(seed + offset + i) % PATTERN], 1);
}

static void add_ack(struct buf *out, uint32_t id, uint8_t flags, uint64_t ack, uint64_t limit)
{
    uint8_t frame[TUNNEL_ACK_SIZE];
    struct tunnel_position p = {.ack = ack, .limit = limit};
    tunnel_ack_encode(id, flags, &p, frame);
    buf_add(out, frame, sizeof(frame));
}

static void add_header(struct buf *out, uint8_t type, uint8_t flags, uint32_t id, uint32_t length)
{
    uint8_t frame[TUNNEL_HEADER_SIZE];
    struct tunnel_header h = {.type = type, .flags = flags, .channel = id, .length = length};
    tunnel_header_encode(&h, frame);
    buf_add(out, frame, sizeof(frame));
}

#define OPEN1(out) tunnel_add_u64(out, TUNNEL_OPEN, 1, RING)

/* -- a hostile daemon: right key, wrong frames -- */

static void far_offset(struct buf *b)
{
    OPEN1(b);
    add_data(b, 1, 0, 100, 0, RING, 10);
}

static void beyond_window(struct buf *b)
{
    OPEN1(b);
    for (uint32_t i = 0; i < 40; i++)
        add_data(b, 1, 0, i * 8192, 0, RING, 8192);
    add_data(b, 1, 0, RING * 4, 0, RING, 8192);
}

static void huge_offset(struct buf *b)
{
    OPEN1(b);
    add_data(b, 1, 0, 0, 0, RING, 0);
    add_data(b, 1, 0, 0, 0, RING, 1);
    add_header(b, TUNNEL_DATA, 0, 1, TUNNEL_DATA_PREFIX);
    uint8_t ones[TUNNEL_DATA_PREFIX];
    memset(ones, 0xff, sizeof(ones));
    buf_add(b, ones, sizeof(ones));
}

static void ack_beyond_head(struct buf *b)
{
    OPEN1(b);
    add_ack(b, 1, 0, 1, RING);
}

static void ack_of_no_fin(struct buf *b)
{
    OPEN1(b);
    add_ack(b, 1, TUNNEL_FLAG_FIN_HELD, 0, RING);
}

static void limit_below_ack(struct buf *b)
{
    OPEN1(b);
    add_ack(b, 1, 0, 10, 5);
}

static void behind_fin(struct buf *b)
{
    OPEN1(b);
    add_data(b, 1, TUNNEL_FLAG_FIN, 0, 0, RING, 10);
    add_data(b, 1, 0, 10, 0, RING, 10);
}

static void unknown_channel(struct buf *b)
{
    add_data(b, 77, 0, 0, 0, RING, 10);
}

static void unknown_channel_ack(struct buf *b)
{
    add_ack(b, 77, 0, 0, RING);
}

static void giant_length(struct buf *b)
{
    add_header(b, 200, 0, 0, UINT32_MAX);
}

static void giant_data(struct buf *b)
{
    OPEN1(b);
    add_header(b, TUNNEL_DATA, 0, 1, TUNNEL_PAYLOAD_MAX + 1);
}

static void must_understand(struct buf *b)
{
    add_header(b, 99, TUNNEL_FLAG_MUST, 0, 0);
}

static void second_hello(struct buf *b)
{
    add_header(b, TUNNEL_HELLO, 0, 0, 0);
}

static void data_on_control(struct buf *b)
{
    add_data(b, 0, 0, 0, 0, RING, 10);
}

static void ping_on_channel(struct buf *b)
{
    tunnel_add_u64(b, TUNNEL_PING, 3, 1);
}

static void agent_ready_by_daemon(struct buf *b)
{
    tunnel_add_bytes(b, TUNNEL_AGENT_READY, 0, "\1", 1);
}

static const struct {
    void (*fill)(struct buf *b);
    const char *says;
} daemon_cases[] = {
    {far_offset, "channel 1: bytes at 100, expected at 0"},
    {beyond_window, "the window ends at"},
    {huge_offset, "an offset beyond 2^63"},
    {ack_beyond_head, "channel 1: 1 acknowledged, 0 sent"},
    {ack_of_no_fin, "an end acknowledged that was not sent"},
    {limit_below_ack, "a window that ends at 5, before the acknowledged 10"},
    {behind_fin, "bytes behind its end"},
    {unknown_channel, "data for channel 77, which was never opened"},
    {unknown_channel_ack, "a frame for channel 77, which was never opened"},
    {giant_length, "a frame of type 200 with 4294967295 bytes"},
    {giant_data, "a frame of type 17 with"},
    {must_understand, "a frame of type 99 that must be understood"},
    {second_hello, "a frame of type 1 behind hello"},
    {data_on_control, "a DATA frame on channel 0"},
    {ping_on_channel, "a PING frame on channel 3"},
    {agent_ready_by_daemon, "AGENT_READY is for the forwarder"},
};

static void expect_text(const char *got, const char *want)
{
    if (!strstr(got, want))
        fail_msg("'%s' does not say '%s'", got, want);
}

static void test_hostile_daemon(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(daemon_cases); i++) {
        struct world *w = world_new();
        side_start(&w->forwarder);
        struct raw *raw = raw_new(w, false);
        daemon_cases[i].fill(&raw->after);
        raw_run(raw);
        assert_int_equal(w->forwarder.ups, 1);
        assert_int_equal(w->forwarder.downs, 1);
        expect_text(w->forwarder.why, daemon_cases[i].says);
        raw_free(raw);
        side_start(&w->daemon); /* and the tunnel still works */
        assert_true(run(w, both_up, 3000));
        world_free(w);
    }
}

/* What a later version may send: skipped, and the session lives. */
static void test_unknown_is_skipped(void **state)
{
    struct world *w = world_new();
    side_start(&w->forwarder);
    struct raw *raw = raw_new(w, false);
    struct buf *b = &raw->after;
    OPEN1(b);
    add_header(b, TUNNEL_STATS, 0, 0, 5);
    buf_add(b, "abcde", 5);
    add_header(b, 99, 0, 1234, 70);
    buf_add(b, pattern, 70);
    add_header(b, TUNNEL_GUEST_LOG, 0, 0, 0);
    add_data(b, 1, TUNNEL_FLAG_FIN, 0, 0, RING, 10);
    add_data(b, 1, TUNNEL_FLAG_FIN, 0, 0, RING, 10); /* again: held already */
    tunnel_add_u64(b, TUNNEL_PING, 0, 42);
    tunnel_add_close(b, 1, "done");
    add_data(b, 1, 0, 10, 0, RING, 10); /* late: the channel is closed */
    add_header(b, 99, TUNNEL_FLAG_MUST, 0, 0);
    raw_run(raw);
    expect_text(w->forwarder.why, "type 99 that must be understood");
    assert_int_equal(w->forwarder.eps[1]->held, 10);
    assert_true(w->forwarder.eps[1]->fin);
    assert_string_equal(w->forwarder.eps[1]->reason, "done");
    raw_free(raw);
    world_free(w);
}

/* A later peer that still speaks version 1 and has features that we never heard of. */
static void test_newer_hello(void **state)
{
    struct world *w = world_new();
    side_start(&w->forwarder);
    struct raw *raw = raw_new(w, false);
    raw->hello.version_max = 7;
    raw->hello.features = UINT64_MAX;
    OPEN1(&raw->after);
    add_data(&raw->after, 1, TUNNEL_FLAG_FIN, 0, 0, RING, 10);
    tunnel_add_close(&raw->after, 1, "done");
    raw_run(raw);
    assert_int_equal(w->forwarder.ups, 1);
    assert_int_equal(w->forwarder.eps[1]->held, 10);
    raw_free(raw);
    world_free(w);
}

static void test_bad_hello(void **state)
{
    static const struct {
        uint32_t min, max, role;
        const char *sandbox, *says;
    } cases[] = {
        {2, 3, 1, "sandbox-1", "tunnel versions 2 to 3 are offered"},
        {1, 1, 2, "sandbox-1", "hello came with role 2"},
        {1, 1, 1, "../x", "bad sandbox id"},
        {3, 2, 1, "sandbox-1", "hello with versions 3 to 2"},
        {1, 1, 9, "sandbox-1", "hello with role 9"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct world *w = world_new();
        side_start(&w->forwarder);
        struct raw *raw = raw_new(w, false);
        raw->hello.version_min = cases[i].min;
        raw->hello.version_max = cases[i].max;
        raw->hello.role = cases[i].role;
        snprintf(raw->hello.sandbox, sizeof(raw->hello.sandbox), "%s", cases[i].sandbox);
        raw_run(raw);
        expect_text(w->forwarder.refused, cases[i].says);
        expect_text(raw->refused, cases[i].says);
        assert_int_equal(w->forwarder.ups, 0);
        raw_free(raw);
        world_free(w);
    }
}

static void test_before_hello(void **state)
{
    struct world *w = world_new();
    struct err err = ERR_INIT;
    side_start(&w->forwarder);
    struct raw *raw = raw_new(w, false);
    raw->no_hello = true;
    tunnel_add_u64(&raw->before, TUNNEL_PING, 0, 1);
    raw_run(raw);
    tunnel_last_error(w->forwarder.t, &err);
    expect_text(err.text, "a frame of type 4 before hello");
    raw_free(raw);

    raw = raw_new(w, false); /* a hello that is no protobuf */
    raw->no_hello = true;
    add_header(&raw->before, TUNNEL_HELLO, 0, 0, 4);
    buf_add(&raw->before, "\xff\xff\xff\xff", 4);
    raw_run(raw);
    expect_text(raw->refused, "hello is not a message of that kind");
    raw_free(raw);
    world_free(w);
}

static void test_no_alpn(void **state)
{
    struct world *w = world_new();
    struct err err = ERR_INIT;
    side_start(&w->forwarder);
    struct raw *raw = raw_new(w, false);
    raw->alpn = NULL;
    raw->no_hello = true;
    raw_run(raw);
    expect_text(w->forwarder.refused, "did not agree on peerpod-tunnel/1: a stock adaptor");
    assert_int_equal(raw->frames[TUNNEL_HELLO], 0);
    raw_free(raw);
    raw = raw_new(w, false); /* another protocol: no handshake at all */
    raw->alpn = "h2";
    raw_run(raw);
    assert_false(raw->shaken);
    tunnel_last_error(w->forwarder.t, &err);
    expect_text(err.text, "TLS handshake");
    raw_free(raw);
    raw = raw_new(w, false);
    raw->garbage = true;
    raw_run(raw);
    tunnel_last_error(w->forwarder.t, &err);
    expect_text(err.text, "TLS handshake");
    raw_free(raw);
    world_free(w);
}

/* Sixteen at most, the oldest goes; the daemon gets through all the same. */
static void test_slow_loris(void **state)
{
    struct world *w = world_new();
    int fds[40];
    side_start(&w->forwarder);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        (void)connect(fds[i], (struct sockaddr *)&w->address, sizeof(w->address));
        (void)!write(fds[i], "\x16\x03\x01", 3);
        run(w, NULL, 2);
    }
    run(w, NULL, 50);
    side_start(&w->daemon);
    assert_true(run(w, both_up, 1000));
    struct tunnel_stats stats;
    tunnel_get_stats(w->forwarder.t, &stats);
    assert_true(stats.evicted >= 24);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    world_free(w);
}

/* -- a hostile forwarder -- */

static void ep_one(struct raw *raw, uint64_t held)
{
    raw->hello.n_channels = 1;
    raw->hello.channels[0] =
        (struct tunnel_hello_channel){.id = 1, .held = held, .limit = held + RING};
}

static void f_open(struct buf *b)
{
    tunnel_add_u64(b, TUNNEL_PONG, 0, (uint64_t)1 << 63); /* to a ping that never was */
    tunnel_add_u64(b, TUNNEL_OPEN, 9, RING);
}

static void f_enrolled(struct buf *b)
{
    tunnel_add_bytes(b, TUNNEL_ENROLLED, 0, NULL, 0);
}

static void f_ack(struct buf *b)
{
    add_ack(b, 1, 0, 1 << 30, 1 << 30);
}

static void f_data(struct buf *b)
{
    add_data(b, 2, 0, 0, 0, RING, 10);
}

static const struct {
    void (*fill)(struct buf *b);
    const char *says;
} forwarder_cases[] = {
    {f_open, "OPEN is for the daemon to say"},
    {f_enrolled, "ENROLLED is for the daemon to say"},
    {f_ack, "1073741824 acknowledged"},
    {f_data, "data for channel 2, which was never opened"},
    {giant_length, "a frame of type 200 with"},
};

static void test_hostile_forwarder(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(forwarder_cases); i++) {
        struct world *w = world_new();
        struct raw *raw = raw_new(w, true);
        side_start(&w->daemon);
        open_channel(w, 1, 1000, 0, false);
        forwarder_cases[i].fill(&raw->after);
        raw_run(raw);
        assert_int_equal(w->daemon.ups, 1);
        expect_text(w->daemon.why, forwarder_cases[i].says);
        raw_free(raw);
        world_free(w);
    }
}

/* Offsets that do not meet: the channel is gone, the session stays. */
static void test_offsets_do_not_meet(void **state)
{
    struct world *w = world_new();
    struct raw *raw = raw_new(w, true);
    side_start(&w->daemon);
    open_channel(w, 1, 1000, 0, false);
    ep_one(raw, 5000);
    add_header(&raw->after, 99, TUNNEL_FLAG_MUST, 0, 0); /* ends it */
    raw_run(raw);
    assert_int_equal(w->daemon.ups, 1);
    assert_true(w->daemon.eps[1]->gone);
    expect_text(w->daemon.eps[1]->reason, "offsets do not meet");
    raw_free(raw);
    world_free(w);
}

static void test_forwarder_without_proof(void **state)
{
    struct world *w = world_new();
    struct raw *raw = raw_new(w, true);
    memset(w->daemon.config.peer_pin, 0, TLS_PIN_SIZE);
    w->daemon.config.secret_len = 32;
    side_start(&w->daemon);
    raw_run(raw);
    expect_text(raw->refused, "did not prove the enrolment secret");
    expect_text(w->daemon.refused, "did not prove the enrolment secret");
    assert_int_equal(w->daemon.enrolled, 0);
    raw_free(raw);
    raw = raw_new(w, true);
    raw->hello.has_proof = true;
    tunnel_dial(w->daemon.t, (struct sockaddr *)&raw->address, sizeof(raw->address));
    raw_run(raw);
    expect_text(raw->refused, "the pod VM's enrolment secret is wrong");
    assert_int_equal(w->daemon.enrolled, 0);
    raw_free(raw);
    world_free(w);
}

static void test_forwarder_without_alpn(void **state)
{
    struct world *w = world_new();
    struct raw *raw = raw_new(w, true);
    raw->alpn = NULL;
    raw->no_hello = raw->quiet = true;
    side_start(&w->daemon);
    raw_run(raw);
    expect_text(w->daemon.refused, "a stock forwarder answers there");
    raw_free(raw);
    raw = raw_new(w, true);
    raw->garbage = true;
    tunnel_dial(w->daemon.t, (struct sockaddr *)&raw->address, sizeof(raw->address));
    raw_run(raw);
    expect_text(w->daemon.refused, "TLS handshake");
    raw_free(raw);
    world_free(w);
}

/* It reads, and never acknowledges nor answers: dead 8 s after the first byte. */
static void test_silent_forwarder(void **state)
{
    struct world *w = world_new();
    struct raw *raw = raw_new(w, true);
    side_start(&w->daemon);
    open_channel(w, 1, 1000, 0, false);
    int64_t start = clock_mono_ms();
    raw_run(raw);
    int64_t took = clock_mono_ms() - start;
    assert_true(raw->frames[TUNNEL_PING] == 1);
    expect_text(w->daemon.why, "nor an answer to a ping");
    assert_in_range((uint64_t)took, 7900, 9900);
    raw_free(raw);
    world_free(w);
}

int main(void)
{
    pattern_init();
    signal(SIGPIPE, SIG_IGN); /* of the raw peers; the tunnel raises none */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_daemon),
        cmocka_unit_test(test_unknown_is_skipped),
        cmocka_unit_test(test_newer_hello),
        cmocka_unit_test(test_bad_hello),
        cmocka_unit_test(test_before_hello),
        cmocka_unit_test(test_no_alpn),
        cmocka_unit_test(test_slow_loris),
        cmocka_unit_test(test_hostile_forwarder),
        cmocka_unit_test(test_offsets_do_not_meet),
        cmocka_unit_test(test_forwarder_without_proof),
        cmocka_unit_test(test_forwarder_without_alpn),
        cmocka_unit_test(test_silent_forwarder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
