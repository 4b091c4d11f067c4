/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys, certificates, pins and the shared TLS contexts (OpenSSL; design.md 7).
 *
 * Each sandbox has an identity of its own: an ECDSA P-256 key with a self-signed certificate.
 * Nothing is signed by anyone and nothing is checked but the SHA-256 of the SubjectPublicKeyInfo.
 */
#pragma once

#include <openssl/ssl.h>

#include "base/base64.h"
#include "base/err.h"

#define TLS_PIN_SIZE 32
#define TLS_PEM_MAX (64U << 10)
#define TLS_ALPN_TUNNEL "peerpod-tunnel/1"

struct tls_identity; /* key and certificate */
struct tls_ctx;      /* one SSL_CTX for all native-mode connections of a process */

/* common_name: at most 64 bytes; the certificate is valid from yesterday for 100 years. */
int tls_identity_new(const char *common_name, struct tls_identity **ret, struct err *err);
int tls_identity_parse(const char *key_pem, const char *cert_pem, struct tls_identity **ret,
                       struct err *err);
void tls_identity_free(struct tls_identity *id);
DEFINE_CLEANUP(struct tls_identity, tls_identity_free)
/* Gives back what only handshakes need; it stays as useful as before. */
void tls_identity_rest(struct tls_identity *id);
/* The same for a server of plain mode: server_name is its one DNS name (SAN) as well. */
int tls_identity_new_server(const char *server_name, struct tls_identity **ret, struct err *err);
/* PEM texts, owned; free the key with secret care (str.h: secret_wipe). */
int tls_identity_pem(const struct tls_identity *id, char **ret_key, char **ret_cert,
                     struct err *err);
void tls_identity_pin(const struct tls_identity *id, uint8_t ret[TLS_PIN_SIZE]);
/* The pin of a certificate that travelled as PEM (apf.json's tls-client-ca). */
int tls_pin_of_pem(const char *cert_pem, uint8_t ret[TLS_PIN_SIZE], struct err *err);

/* TLS 1.3 only, tickets, session cache and early data off, ALPN required, both sides authenticated
 * (any certificate is taken by the handshake; the pin is checked by the tunnel). */
int tls_ctx_new(bool server, struct tls_ctx **ret, struct err *err);
void tls_ctx_free(struct tls_ctx *ctx);
DEFINE_CLEANUP(struct tls_ctx, tls_ctx_free)
/* Makes one of a context that is configured already (tls_plain.c). Takes it, also on failure. */
int tls_ctx_wrap(SSL_CTX *ssl, bool server, struct tls_ctx **ret, struct err *err);
/* A connection with our identity (NULL: what the context has); the caller attaches a descriptor and
 * owns it (SSL_free). */
int tls_connection_new(struct tls_ctx *ctx, const struct tls_identity *self, SSL **ret,
                       struct err *err);
/* Attaches a non-blocking stream socket (borrowed). Unlike SSL_set_fd it writes with MSG_NOSIGNAL:
 * a library must not depend on what its program does about SIGPIPE. */
int tls_connection_attach(struct tls_ctx *ctx, SSL *ssl, int fd, struct err *err);

/*
 * For an owner that polls, level-triggered. A read that got less than it had room for has emptied
 * the socket: no more is asked for until the owner says that the poll has found it readable.
 */
void tls_connection_readable(SSL *ssl);
/* Nothing is left to read before the next poll, neither in the socket nor in OpenSSL: spares a call
 * that only allocates, fails, and frees again. */
bool tls_connection_drained(const SSL *ssl);
/* Between cork and flush, records are collected and leave in one write: 64 KiB at a time. flush: 0,
 * -EAGAIN while the socket takes no more (what is left goes first next time), or its error. */
void tls_connection_cork(SSL *ssl);
int tls_connection_flush(SSL *ssl);
bool tls_connection_unsent(const SSL *ssl);
/* Gives back the memory that collecting took, if it is empty. */
void tls_connection_trim(SSL *ssl);
/* Behind the handshake: lets go of key and certificate. */
void tls_connection_settle(SSL *ssl);
/* The ALPN protocol that was agreed on is TLS_ALPN_TUNNEL. */
bool tls_connection_is_tunnel(const SSL *ssl);
/* After the handshake: the peer's pin. -ENOENT: it sent no certificate. */
int tls_peer_pin(SSL *ssl, uint8_t ret[TLS_PIN_SIZE], struct err *err);
/* RFC 9266 tls-exporter channel binding, 32 bytes. */
int tls_exporter(SSL *ssl, uint8_t ret[32], struct err *err);
/* "subject: reason" from OpenSSL's error queue, emptied; never key material. */
int tls_err(struct err *err, int code, const char *what);
