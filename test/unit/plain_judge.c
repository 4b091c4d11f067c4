/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: plain_judge CA CERT KEY NAME
 *
 * A handshake of plain mode over a socket pair, for tests that compare its verdict with Go's: one
 * end presents CERT, the other believes CA alone. NAME: whom the verifying client expects; empty:
 * the verifier is the server. Exit status 0: taken; 1: refused, with the reason on stderr.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/fs.h"
#include "base/str.h"
#include "wire/tls_plain.h"

#define ROUNDS 100

struct end {
    struct tls_ctx *ctx;
    SSL *ssl;
    int result;
};

static char *texts[8]; /* to free at the end */
static size_t n_texts;

static char *slurp(const char *path)
{
    struct err err = ERR_INIT;
    char *text = NULL;
    if (fs_read(AT_FDCWD, path, TLS_BUNDLE_MAX, &text, NULL, &err) < 0) {
        fprintf(stderr, "%s\n", err_text(&err));
        exit(2);
    }
    texts[n_texts++] = text;
    return text;
}

static void end_done(struct end *e)
{
    SSL_free(e->ssl);
    tls_ctx_free(e->ctx);
}

static void end_init(struct end *e, const struct tls_plain_config *config, const char *name, int fd)
{
    struct err err = ERR_INIT;
    if (tls_plain_ctx_new(config, &e->ctx, &err) < 0 ||
        tls_plain_connection_new(e->ctx, name, &e->ssl, &err) < 0 ||
        tls_connection_attach(e->ctx, e->ssl, fd, &err) < 0) {
        fprintf(stderr, "%s\n", err_text(&err));
        exit(2);
    }
}

static void step(struct end *e)
{
    if (e->result == 1)
        return;
    int n = SSL_do_handshake(e->ssl);
    int why = SSL_get_error(e->ssl, n);
    if (n == 1 || (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE))
        e->result = n == 1 ? 1 : -1;
}

static int judge(struct end *verifier, struct end *other)
{
    struct err err = ERR_INIT;
    for (int i = 0; i < ROUNDS && verifier->result == 0; i++) {
        step(other);
        step(verifier);
    }
    if (verifier->result == 1)
        return 0;
    tls_plain_failure(verifier->ssl, "refused", &err);
    fprintf(stderr, "%s\n", err_text(&err));
    return 1;
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    struct tls_identity *id = NULL;
    char *key = NULL, *cert = NULL;
    int fds[2];
    if (argc != 5 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) < 0 ||
        tls_identity_new("verifier", &id, &err) < 0 || tls_identity_pem(id, &key, &cert, &err) < 0)
        return 2;
    const char *name = *argv[4] ? argv[4] : NULL;
    struct tls_plain_config presents = {
        .server = name != NULL, .cert_pem = slurp(argv[2]), .key_pem = slurp(argv[3])};
    struct tls_plain_config verifies = {
        .server = !name, .cert_pem = cert, .key_pem = key, .ca_pem = slurp(argv[1])};
    struct end verifier = {0}, other = {0};
    end_init(&verifier, &verifies, name, fds[0]);
    end_init(&other, &presents, NULL, fds[1]);
    int status = judge(&verifier, &other);
    end_done(&verifier);
    end_done(&other);
    tls_identity_free(id);
    free(key);
    free(cert);
    while (n_texts > 0)
        free(texts[--n_texts]);
    return status;
}
