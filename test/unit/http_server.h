/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small HTTP server in the test's process: one thread per connection, so that keep-alive shows;
 * the test's own function answers, as badly as it likes.
 */
#pragma once

#include "unit/check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>

#include "base/buf.h"
#include "base/str.h"

struct client;

struct server {
    /* False: close the connection. path: the word behind the method. */
    bool (*serve)(struct client *c, const char *path, const struct buf *request);
    int fd, port;
    pthread_t thread;
    SSL_CTX *tls;
    atomic_int connections, open, requests, connects;
    atomic_bool stop;
};

struct client {
    struct server *server;
    int fd;
    SSL *ssl;
};

static inline ssize_t take(struct client *c, void *data, size_t size)
{
    return c->ssl ? SSL_read(c->ssl, data, (int)size) : recv(c->fd, data, size, 0);
}

static inline bool give(struct client *c, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n =
            c->ssl ? SSL_write(c->ssl, data, (int)len) : send(c->fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

static inline bool gives(struct client *c, const char *text)
{
    return give(c, text, strlen(text));
}

static inline void pause_ms(struct client *c, int ms)
{
    for (; ms > 0 && !c->server->stop; ms -= 10)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* One request with its body into b; false at the end of the connection. */
static inline bool read_request(struct client *c, struct buf *b)
{
    const char *end = NULL, *length;
    uint64_t body = 0;
    for (;;) {
        char part[4096];
        ssize_t n;
        if (!end && b->len > 0 && (end = strstr(b->data, "\r\n\r\n"))) {
            char number[24] = "";
            length = strcasestr(b->data, "\r\ncontent-length: ");
            if (length && length < end)
                sscanf(length + 18, "%20[0-9]", number);
            if (number[0])
                assert_int_equal(str_to_u64(number, 1 << 24, &body), 0);
        }
        if (end && b->len >= (size_t)(strstr(b->data, "\r\n\r\n") - b->data) + 4 + body)
            return true;
        n = take(c, part, sizeof(part));
        if (n <= 0)
            return false;
        buf_add(b, part, (size_t)n);
    }
}

static inline bool reply(struct client *c, const char *status, const char *headers,
                         const char *body, size_t len)
{
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    buf_addf(&b, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n%s\r\n", status, len, headers);
    buf_add(&b, body, len);
    return give(c, b.data, b.len);
}

static inline void *client_main(void *arg)
{
    struct client *c = arg;
    bool more = true;
    if (c->server->tls) {
        c->ssl = SSL_new(c->server->tls);
        SSL_set_fd(c->ssl, c->fd);
        more = SSL_accept(c->ssl) == 1;
    }
    while (more) {
        _cleanup_(buf_done) struct buf request = BUF_INIT(0);
        char path[200] = "";
        more = read_request(c, &request);
        c->server->requests += more;
        if (more)
            sscanf(request.data, "%*s %199s", path);
        more = more && c->server->serve(c, path, &request);
    }
    SSL_free(c->ssl);
    close(c->fd);
    c->server->open--;
    free(c);
    return NULL;
}

static inline void *server_main(void *arg)
{
    struct server *s = arg;
    for (;;) {
        struct client *c;
        pthread_t thread;
        int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL;
        c = xcalloc(1, sizeof(*c));
        c->server = s;
        c->fd = fd;
        s->connections++;
        s->open++;
        assert_int_equal(pthread_create(&thread, NULL, client_main, c), 0);
        pthread_detach(thread);
    }
}

/* The server's threads block SIGPIPE; the caller's thread need not: it is job_http's own business. */
static inline void server_start(struct server *s, SSL_CTX *tls,
                                bool (*serve)(struct client *, const char *, const struct buf *))
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    sigset_t set, old;
    *s = (struct server){.serve = serve, .tls = tls};
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(s->fd, 64), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&a, &len), 0);
    s->port = ntohs(a.sin_port);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static inline void server_stop(struct server *s)
{
    s->stop = true;
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
    for (int i = 0; i < 500 && s->open > 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(s->open, 0);
    SSL_CTX_free(s->tls);
}

/* A self-signed certificate for 127.0.0.1; it is its own authority, written to ca_file (of
 * mkstemp's form). */
static inline SSL_CTX *tls_make(char *ca_file)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_EXTENSION *san = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    FILE *out = fdopen(mkstemp(ca_file), "w");
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_set_pubkey(cert, key);
    X509_add_ext(cert, san, -1);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    assert_true(SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1);
    PEM_write_X509(out, cert);
    fclose(out);
    X509_EXTENSION_free(san);
    X509_free(cert);
    EVP_PKEY_free(key);
    return ctx;
}
