/* SPDX-License-Identifier: Apache-2.0 */
/* Identities, pins, contexts: two connections over a socket pair. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
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

static size_t in_socket(int fd)
{
    int n = 0;
    assert_int_equal(ioctl(fd, FIONREAD, &n), 0);
    return (size_t)n;
}

/* Corked records leave together, and only then. */
static void test_cork(void **state)
{
    struct pair p = {0};
    char in[8] = "";
    pair_open(&p);
    shake(&p);
    SSL_read(p.ssl[1], in, sizeof(in)); /* what the handshake has left */
    assert_false(tls_connection_unsent(p.ssl[0]));
    tls_connection_cork(p.ssl[0]);
    for (int i = 0; i < 3; i++)
        assert_int_equal(SSL_write(p.ssl[0], &"abc"[i], 1), 1);
    assert_true(tls_connection_unsent(p.ssl[0]));
    assert_int_equal(in_socket(p.fd[1]), 0);
    assert_int_equal(tls_connection_flush(p.ssl[0]), 0);
    assert_false(tls_connection_unsent(p.ssl[0]));
    tls_connection_trim(p.ssl[0]);
    assert_int_equal(SSL_write(p.ssl[0], "d", 1), 1); /* not corked: at once */
    for (int i = 0; i < 4; i++)
        assert_int_equal(SSL_read(p.ssl[1], in + i, 1), 1);
    assert_string_equal(in, "abcd");
    shutdown(p.fd[1], SHUT_RDWR);
    tls_connection_cork(p.ssl[0]);
    assert_int_equal(SSL_write(p.ssl[0], "x", 1), 1);
    assert_int_equal(tls_connection_flush(p.ssl[0]), -EPIPE);
    pair_close(&p);
}

/* A socket that takes no more: nothing is lost, repeated or reordered, whatever was corked. */
static void test_full_socket(void **state)
{
    static uint8_t record[2][16384];
    struct pair p = {0};
    uint32_t sent = 0, got = 0;
    bool full = false;
    pair_open(&p);
    shake(&p);
    for (int turn = 0; turn < 400 || got < sent; turn++) {
        if (turn < 400 && turn % 3)
            tls_connection_cork(p.ssl[0]);
        for (int i = 0; turn < 400 && i < turn % 11; i++) {
            memset(record[0], (int)(sent % 251), sizeof(record[0]));
            if (SSL_write(p.ssl[0], record[0], sizeof(record[0])) <= 0)
                break;
            sent++;
        }
        int r = tls_connection_flush(p.ssl[0]);
        assert_true(r == 0 || r == -EAGAIN);
        full |= r == -EAGAIN;
        for (int i = 0; i < 4 && got < sent; i++) {
            int n = SSL_read(p.ssl[1], record[1], sizeof(record[1]));
            if (n <= 0)
                break;
            assert_int_equal(n, sizeof(record[1]));
            assert_int_equal(record[1][0], got % 251);
            assert_int_equal(record[1][n - 1], got % 251);
            got++;
        }
    }
    assert_true(full && sent > 100);
    assert_int_equal(in_socket(p.fd[1]), 0);
    pair_close(&p);
}

/* A read that has emptied the socket is not repeated before the poll has told of more. */
static void test_readable(void **state)
{
    struct pair p = {0};
    char in[8];
    pair_open(&p);
    shake(&p);
    tls_connection_readable(p.ssl[1]);
    assert_int_equal(SSL_write(p.ssl[0], "a", 1), 1);
    assert_int_equal(SSL_read(p.ssl[1], in, sizeof(in)), 1);
    assert_int_equal(SSL_write(p.ssl[0], "b", 1), 1);
    int n = SSL_read(p.ssl[1], in, sizeof(in));
    assert_int_equal(SSL_get_error(p.ssl[1], n), SSL_ERROR_WANT_READ);
    assert_true(in_socket(p.fd[1]) > 0);
    tls_connection_readable(p.ssl[1]);
    assert_int_equal(SSL_read(p.ssl[1], in, sizeof(in)), 1);
    assert_int_equal(in[0], 'b');
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
        cmocka_unit_test(test_handshake), cmocka_unit_test(test_no_sigpipe),
        cmocka_unit_test(test_cork),      cmocka_unit_test(test_full_socket),
        cmocka_unit_test(test_readable),  cmocka_unit_test(test_pem),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
