/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A link of plain mode whose peer reads late: what the endpoint sends, and that it sends no more,
 * arrives whole wherever the socket was full. The peer is OpenSSL, blocking, on a thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "relay/plain.h"
#include "wire/tls_plain.h"

#define SEND_BUFFER 16384
#define STEP 6000
#define STEPS 14 /* as many as the socket takes, and more */

static uint8_t bytes[STEPS * STEP];

struct peer {
    int fd, go; /* go: atomic */
    size_t got;
    bool ended_well;
};

static void *peer_main(void *arg)
{
    struct peer *peer = arg;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);
    static uint8_t buffer[16384];
    SSL_set_fd(ssl, peer->fd);
    int n = SSL_connect(ssl);
    while (!__atomic_load_n(&peer->go, __ATOMIC_ACQUIRE))
        usleep(1000);
    while (n > 0 && (n = SSL_read(ssl, buffer, sizeof(buffer))) > 0)
        peer->got += (size_t)n;
    peer->ended_well = SSL_get_error(ssl, n) == SSL_ERROR_ZERO_RETURN;
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(peer->fd);
    return NULL;
}

/* -- the endpoint: `total` bytes, and their end -- */

struct ep {
    uint64_t total, tail;
    bool fin_acked, gone, up;
};

static uint64_t ep_tx_head(void *p)
{
    return ((struct ep *)p)->total;
}

static bool ep_tx_fin(void *p)
{
    return true;
}

static uint64_t ep_tx_tail(void *p)
{
    return ((struct ep *)p)->tail;
}

static size_t ep_tx_peek(void *p, uint64_t offset, const uint8_t **ret)
{
    *ret = bytes + offset;
    return (size_t)(((struct ep *)p)->total - offset);
}

static int ep_tx_acked(void *p, uint64_t offset)
{
    ((struct ep *)p)->tail = offset;
    return 0;
}

static ssize_t ep_rx_space(void *p, uint8_t **ret)
{
    static uint8_t nowhere[16];
    *ret = nowhere;
    return sizeof(nowhere);
}

static void ep_rx_commit(void *p, size_t n)
{
    fail_msg("%zu bytes came", n);
}

static void ep_rx_fin(void *p)
{
}

static void ep_tx_fin_acked(void *p)
{
    ((struct ep *)p)->fin_acked = true;
}

static void ep_gone(void *p, const char *reason)
{
    ((struct ep *)p)->gone = true;
}

static const struct channel_ops ep_ops = {
    .tx_head = ep_tx_head,
    .tx_fin = ep_tx_fin,
    .tx_tail = ep_tx_tail,
    .tx_peek = ep_tx_peek,
    .tx_acked = ep_tx_acked,
    .rx_space = ep_rx_space,
    .rx_commit = ep_rx_commit,
    .rx_fin = ep_rx_fin,
    .tx_fin_acked = ep_tx_fin_acked,
    .gone = ep_gone,
};

static void on_up(void *owner)
{
    ((struct ep *)owner)->up = true;
}

static void on_ended(void *owner, const struct err *why)
{
    fail_msg("%s", why->text);
}

static const struct plain_ops ops = {.up = on_up, .ended = on_ended};

static void on_limit(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static void run_for(uv_loop_t *loop, unsigned ms)
{
    uv_timer_t timer;
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, on_limit, ms, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static void run_until(uv_loop_t *loop, const bool *condition)
{
    for (int i = 0; i < 1000 && !*condition; i++)
        run_for(loop, 5);
    assert_true(*condition);
}

/* Whether the sender had to wait. */
static bool send_late(struct tls_ctx *ctx, size_t total)
{
    struct ep ep = {.total = total};
    struct peer peer = {0};
    struct plain_link *link = NULL;
    struct err err = ERR_INIT;
    int fds[2], size = SEND_BUFFER;
    pthread_t thread;
    uv_loop_t loop;
    uv_loop_init(&loop);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    peer.fd = fds[1];
    pthread_create(&thread, NULL, peer_main, &peer);
    assert_int_equal(plain_accept(&loop, fds[0], ctx, &ops, &ep, &link, &err), 0);
    run_until(&loop, &ep.up);
    plain_attach(link, &ep_ops, &ep);
    run_for(&loop, 20);
    bool waits = !ep.fin_acked;
    __atomic_store_n(&peer.go, 1, __ATOMIC_RELEASE);
    run_until(&loop, &ep.gone); /* the peer has closed */
    pthread_join(thread, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(peer.got, total);
    assert_true(ep.fin_acked);
    if (!peer.ended_well)
        fail_msg("%zu bytes: no close_notify behind them", total);
    return waits;
}

static void test_a_late_reader_gets_everything(void **state)
{
    struct tls_identity *id = NULL;
    struct tls_ctx *ctx = NULL;
    struct err err = ERR_INIT;
    char *key = NULL, *cert = NULL;
    unsigned waited = 0;
    assert_int_equal(tls_identity_new_server("podvm-server", &id, &err), 0);
    assert_int_equal(tls_identity_pem(id, &key, &cert, &err), 0);
    const struct tls_plain_config config = {.server = true, .cert_pem = cert, .key_pem = key};
    assert_int_equal(tls_plain_ctx_new(&config, &ctx, &err), 0);
    for (size_t n = 0; n <= STEPS; n++)
        waited += send_late(ctx, n * STEP);
    assert_true(waited > 0 && waited < STEPS); /* the points between are among them */
    tls_ctx_free(ctx);
    tls_identity_free(id);
    free(key);
    free(cert);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* the peer's */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_late_reader_gets_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
