/* SPDX-License-Identifier: Apache-2.0 */
/* Identities, pins, contexts: two connections over a socket pair. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/str.h"
#include "wire/tls.h"

struct pair {
    struct tls_identity *id[2];
    struct tls_ctx *ctx[2];
    SSL *ssl[2];
    int fd[2];
};

static void pair_open(struct pair *p)
{
    struct err err = ERR_INIT;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p->fd), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(tls_identity_new(i ? "server" : "client", &p->id[i], &err), 0);
        assert_int_equal(tls_ctx_new(i == 1, &p->ctx[i], &err), 0);
        assert_int_equal(tls_connection_new(p->ctx[i], p->id[i], &p->ssl[i], &err), 0);
        assert_int_equal(tls_connection_attach(p->ctx[i], p->ssl[i], p->fd[i], &err), 0);
    }
}

static void pair_close(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        SSL_free(p->ssl[i]);
        tls_ctx_free(p->ctx[i]);
        tls_identity_free(p->id[i]);
        close(p->fd[i]);
    }
}

static void shake(struct pair *p)
{
    for (int i = 0; i < 20; i++)
        SSL_do_handshake(p->ssl[i % 2]);
    assert_true(SSL_is_init_finished(p->ssl[0]) && SSL_is_init_finished(p->ssl[1]));
}

static void test_handshake(void **state)
{
    struct pair p = {0};
    struct err err = ERR_INIT;
    uint8_t pin[TLS_PIN_SIZE], own[TLS_PIN_SIZE], exporter[2][32];
    pair_open(&p);
    assert_int_equal(tls_peer_pin(p.ssl[0], pin, &err), -ENOENT);
    shake(&p);
    for (int i = 0; i < 2; i++) {
        err_clear(&err);
        assert_int_equal(tls_peer_pin(p.ssl[i], pin, &err), 0);
        tls_identity_pin(p.id[1 - i], own);
        assert_memory_equal(pin, own, sizeof(pin));
        assert_true(tls_connection_is_tunnel(p.ssl[i]));
        assert_string_equal(SSL_get_version(p.ssl[i]), "TLSv1.3");
        assert_int_equal(tls_exporter(p.ssl[i], exporter[i], &err), 0);
    }
    assert_memory_equal(exporter[0], exporter[1], 32);
    struct pair q = {0};
    pair_open(&q);
    shake(&q);
    assert_int_equal(tls_exporter(q.ssl[0], exporter[1], &err), 0);
    assert_memory_not_equal(exporter[0], exporter[1], 32); /* another connection */
    pair_close(&q);
    pair_close(&p);
}

/* A peer that is gone is an error, not a signal. */
static void test_no_sigpipe(void **state)
{
    struct pair p = {0};
    pair_open(&p);
    shake(&p);
    shutdown(p.fd[1], SHUT_RDWR);
    int n = 1;
    for (int i = 0; i < 3 && n > 0; i++)
        n = SSL_write(p.ssl[0], "x", 1);
    assert_true(n <= 0);
    assert_int_equal(errno, EPIPE);
    pair_close(&p);
}

static void test_pem(void **state)
{
    struct err err = ERR_INIT;
    struct tls_identity *a = NULL, *b = NULL, *c = NULL;
    _cleanup_free_ char *key = NULL, *cert = NULL, *key2 = NULL, *cert2 = NULL;
    uint8_t pin[3][TLS_PIN_SIZE];
    assert_int_equal(tls_identity_new("sandbox", &a, &err), 0);
    assert_int_equal(tls_identity_new("sandbox", &c, &err), 0);
    assert_int_equal(tls_identity_pem(a, &key, &cert, &err), 0);
    assert_int_equal(tls_identity_pem(c, &key2, &cert2, &err), 0);
    assert_int_equal(tls_identity_parse(key, cert, &b, &err), 0);
    tls_identity_pin(a, pin[0]);
    tls_identity_pin(b, pin[1]);
    assert_memory_equal(pin[0], pin[1], TLS_PIN_SIZE);
    assert_int_equal(tls_pin_of_pem(cert, pin[2], &err), 0);
    assert_memory_equal(pin[0], pin[2], TLS_PIN_SIZE);
    tls_identity_pin(c, pin[2]);
    assert_memory_not_equal(pin[0], pin[2], TLS_PIN_SIZE);
    struct tls_identity *bad = NULL;
    assert_int_equal(tls_identity_parse(key2, cert, &bad, &err), -EINVAL);
    assert_null(strstr(err.text, "BEGIN"));
    err_clear(&err);
    assert_int_equal(tls_identity_parse("nonsense", cert, &bad, &err), -EINVAL);
    err_clear(&err);
    assert_int_equal(tls_pin_of_pem(key, pin[0], &err), -EINVAL);
    err_clear(&err);
    assert_int_equal(tls_pin_of_pem("", pin[0], &err), -EINVAL);
    err_clear(&err);
    _cleanup_free_ char *huge = xcalloc(1, TLS_PEM_MAX + 2);
    memset(huge, 'a', TLS_PEM_MAX + 1);
    assert_int_equal(tls_pin_of_pem(huge, pin[0], &err), -EINVAL);
    err_clear(&err);
    assert_int_equal(tls_identity_new("", &bad, &err), -EINVAL);
    assert_null(bad);
    tls_identity_free(a);
    tls_identity_free(b);
    tls_identity_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handshake),
        cmocka_unit_test(test_no_sigpipe),
        cmocka_unit_test(test_pem),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
