/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS as the Go adaptor and the Go forwarder use it: certificates that a verifier checks, no ALPN
 * (docs/plain-mode.md, design.md 7). Beside it the few bytes of a ClientHello that tell a daemon in
 * native mode from one in plain mode.
 */
#pragma once

#include "wire/tls.h"

#define TLS_BUNDLE_MAX (1U << 20) /* of certificates, PEM */

struct tls_plain_config {
    bool server;
    const char *cert_pem, *key_pem; /* ours, with the chain behind it; both */
    const char *ca_pem;             /* whom we trust; NULL: the other side is not checked */
    const char *min_version;        /* "VersionTLS12", "VersionTLS13"; NULL or "": 1.2 */
    char *const *cipher_suites;     /* of TLS 1.2, IANA names; NULL or none: Go's usual ones */
};

/* Everything is copied. Errors are written for the person who chose the options. */
int tls_plain_ctx_new(const struct tls_plain_config *config, struct tls_ctx **ret, struct err *err);
/* The names and their combination, without certificates: what the command line can be told. */
int tls_plain_check(const char *min_version, char *const *cipher_suites, struct err *err);
/* A connection. server_name: whom the client expects (a DNS name of the certificate, never its
 * common name) and says so in SNI; NULL for a server. The caller attaches a descriptor. */
int tls_plain_connection_new(struct tls_ctx *ctx, const char *server_name, SSL **ret,
                             struct err *err);
/* Client: the server has surely taken our certificate. In TLS 1.3 a client is done before the
 * server has looked at it; the first ticket says that it has. */
bool tls_plain_confirmed(const SSL *ssl);
/* Why a handshake or a read failed, from the verifier or OpenSSL's queue (emptied). */
int tls_plain_failure(SSL *ssl, const char *what, struct err *err);

/* Does a TCP stream that begins with these bytes offer the ALPN protocol? 1, 0 (no, or no TLS);
 * -EAGAIN: it takes more bytes to tell, at most TLS_HELLO_MAX. */
#define TLS_HELLO_MAX (5U + (16U << 10))
int tls_hello_offers(const uint8_t *data, size_t len, const char *protocol);
