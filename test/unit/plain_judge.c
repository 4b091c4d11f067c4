/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: plain_judge CA NAME CERT...
 *
 * A handshake of plain mode over a socket pair for each CERT (its key: the same name, .key), for
 * tests that compare the verdicts with Go's: one end presents it, the other believes CA alone. NAME:
 * whom the verifying client expects; empty: the verifier is the server. A line for each: "taken",
 * or "refused: " and why.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/str.h"
#include "wire/tls_plain.h"

#define ROUNDS 100

struct end {
    struct tls_ctx *ctx;
    SSL *ssl;
    int result;
};

static char *slurp(const char *path)
{
    struct err err = ERR_INIT;
    char *text = NULL;
    if (fs_read(AT_FDCWD, path, TLS_BUNDLE_MAX, &text, NULL, &err) < 0) {
        fprintf(stderr, "%s\n", err_text(&err));
        exit(2);
    }
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

static void judge(struct end *verifier, struct end *other)
{
    struct err err = ERR_INIT;
    for (int i = 0; i < ROUNDS && verifier->result == 0; i++) {
        step(other);
        step(verifier);
    }
    if (verifier->result != 1)
        tls_plain_failure(verifier->ssl, "refused", &err);
    puts(verifier->result == 1 ? "taken" : err_text(&err));
}

static void judge_file(const struct tls_plain_config *verifies, const char *name, const char *file)
{
    struct end verifier = {0}, other = {0};
    int fds[2];
    size_t stem = strlen(file) - strlen(".crt");
    _cleanup_free_ char *key_file = str_asprintf("%.*s.key", (int)stem, file);
    _cleanup_free_ char *cert = slurp(file);
    _cleanup_free_ char *key = slurp(key_file);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) < 0)
        exit(2);
    struct tls_plain_config presents = {.server = name != NULL, .cert_pem = cert, .key_pem = key};
    end_init(&verifier, verifies, name, fds[0]);
    end_init(&other, &presents, NULL, fds[1]);
    judge(&verifier, &other);
    end_done(&verifier);
    end_done(&other);
    close(fds[0]);
    close(fds[1]);
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    struct tls_identity *id = NULL;
    _cleanup_free_ char *key = NULL;
    _cleanup_free_ char *cert = NULL;
    if (argc < 4 || tls_identity_new("verifier", &id, &err) < 0 ||
        tls_identity_pem(id, &key, &cert, &err) < 0)
        return 2;
    _cleanup_free_ char *ca = slurp(argv[1]);
    const char *name = *argv[2] ? argv[2] : NULL;
    struct tls_plain_config verifies = {
        .server = !name, .cert_pem = cert, .key_pem = key, .ca_pem = ca};
    for (int i = 3; i < argc; i++)
        judge_file(&verifies, name, argv[i]);
    tls_identity_free(id);
    return 0;
}
