/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS towards and as the Go programs.
 *
 * Verification is what Go's crypto/x509 does, because users' certificates pass there today:
 *   - any certificate of the bundle is an anchor, also one that is no root, also the very
 *     certificate that is presented (the Go adaptor's own is both client and its own authority):
 *     X509_V_FLAG_PARTIAL_CHAIN and TRUSTED_FIRST;
 *   - the name is looked for among the DNS names, never in the common name;
 *   - extended key usage is checked in each certificate of the chain, absent means any; key usage
 *     of the leaf is not looked at (OpenSSL's own purpose check would: it is set to "any", and
 *     the usage is checked here);
 *   - validity of every certificate, no revocation lists, no X509_V_FLAG_X509_STRICT (the Go
 *     adaptor's certificates would fail it: certSign without being an authority).
 * Authorities must be authorities, and signatures hold, in both.
 *
 * The server sends no list of acceptable authorities: a Go client that finds none of its own in it
 * sends no certificate at all.
 *
 * Tickets: our server sends one and never takes one back. It tells the client that its certificate
 * has been accepted (RFC 8446 4.6.1: after the client's Finished); Go's server does the same.
 *
 * Cipher suites are named as IANA does, and are those of TLS 1.2 alone, as in Go: those of 1.3 may
 * be in the list (some platforms write them all) and mean nothing there. A list that has none of
 * 1.2 leaves 1.3 only.
 */
#include "wire/tls_plain.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "base/buf.h"
#include "base/str.h"

#define SUITES_DEFAULT "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"
#define SUITES_MAX 64
#define CERTS_MAX 1000
#define SESSION_ID_CONTEXT "peerpod-plain"

/* -- options -- */

static bool is_13(const char *min_version)
{
    return str_eq(min_version, "VersionTLS13");
}

/* Looks a suite up in what this OpenSSL can do. */
static const SSL_CIPHER *suite_find(SSL *ssl, const char *iana)
{
    STACK_OF(SSL_CIPHER) *all = SSL_get_ciphers(ssl);
    for (int i = 0; i < sk_SSL_CIPHER_num(all); i++) {
        const SSL_CIPHER *c = sk_SSL_CIPHER_value(all, i);
        const char *name = SSL_CIPHER_standard_name(c);
        if (name && str_eq(name, iana))
            return c;
    }
    return NULL;
}

static int suites_join(SSL *ssl, char *const *names, struct buf *out, struct err *err)
{
    if (strv_len(names) > SUITES_MAX)
        return err_set(err, -EINVAL, "more than %d cipher suites", SUITES_MAX);
    for (; *names; names++) {
        const SSL_CIPHER *c = suite_find(ssl, *names);
        if (!c)
            return err_set(err, -EINVAL,
                           "cipher suite '%.64s' is unknown; expected are IANA names such as "
                           "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                           *names);
        if (str_eq(SSL_CIPHER_get_version(c), "TLSv1.3"))
            continue;
        buf_addf(out, "%s%s", out->len ? ":" : "", SSL_CIPHER_get_name(c));
    }
    return 0;
}

/* ret: OpenSSL's list, "" when only suites of 1.3 were named; owned. */
static int suites_translate(char *const *names, char **ret, struct err *err)
{
    struct buf list = BUF_INIT(8192);
    SSL_CTX *c = SSL_CTX_new(TLS_client_method());
    SSL *ssl = NULL;
    if (c && SSL_CTX_set_cipher_list(c, "ALL:!aNULL:!eNULL:!PSK:!SRP") == 1)
        ssl = SSL_new(c);
    int r =
        ssl ? suites_join(ssl, names, &list, err) : tls_err(err, -EIO, "listing the cipher suites");
    SSL_free(ssl);
    SSL_CTX_free(c);
    if (r == 0)
        *ret = list.len ? buf_steal(&list) : xstrdup("");
    buf_done(&list);
    return r;
}

int tls_plain_check(const char *min_version, char *const *cipher_suites, struct err *err)
{
    _cleanup_free_ char *list = NULL;
    if (!str_empty(min_version) && !is_13(min_version) && !str_eq(min_version, "VersionTLS12"))
        return err_set(err, -EINVAL,
                       "TLS version '%.32s' is unknown: VersionTLS12 and VersionTLS13 are allowed",
                       min_version);
    if (!cipher_suites || !*cipher_suites)
        return 0;
    if (is_13(min_version))
        return err_set(err, -EINVAL,
                       "cipher suites cannot be chosen with TLS 1.3 as the lowest version: leave "
                       "one of the two options out");
    return suites_translate(cipher_suites, &list, err);
}

/* -- verification -- */

static int verify_chain(X509_STORE_CTX *store, void *arg)
{
    uint32_t want = XKU_ANYEKU | (uint32_t)(uintptr_t)arg;
    if (X509_verify_cert(store) <= 0)
        return 0;
    STACK_OF(X509) *chain = X509_STORE_CTX_get0_chain(store);
    for (int i = 0; i < sk_X509_num(chain); i++) {
        uint32_t has = X509_get_extended_key_usage(sk_X509_value(chain, i));
        if (has != UINT32_MAX && !(has & want)) {
            X509_STORE_CTX_set_error(store, X509_V_ERR_INVALID_PURPOSE);
            return 0;
        }
    }
    return 1;
}

static int no_passphrase(char *buf _unused_, int size _unused_, int rw _unused_, void *arg _unused_)
{
    return -1;
}

static int bundle_open(const char *pem, const char *what, BIO **ret, struct err *err)
{
    size_t len = pem ? strlen(pem) : 0;
    if (len == 0 || len > TLS_BUNDLE_MAX)
        return err_set(err, -EINVAL, "%s: %zu bytes of PEM; allowed are 1 to %u", what, len,
                       TLS_BUNDLE_MAX);
    *ret = BIO_new_mem_buf(pem, (int)len);
    return *ret ? 0 : tls_err(err, -ENOMEM, what);
}

/* The number of certificates added: 1 or 0. */
static int add_anchor(SSL_CTX *c, const char *block, size_t len)
{
    BIO *bio = BIO_new_mem_buf(block, (int)len);
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, no_passphrase, NULL) : NULL;
    int ok = cert && X509_STORE_add_cert(SSL_CTX_get_cert_store(c), cert) == 1;
    X509_free(cert);
    BIO_free(bio);
    return ok;
}

/* Each certificate in the text; what cannot be read is left out, as Go does: bundles hold headings,
 * and a certificate that one library cannot read must not hide those behind it. */
static int add_anchors(SSL_CTX *c, const char *pem, struct err *err)
{
    static const char what[] = "the CA certificates", begin[] = "-----BEGIN CERTIFICATE-----";
    size_t len = pem ? strlen(pem) : 0;
    int blocks = 0, n = 0;
    if (len > TLS_BUNDLE_MAX)
        return err_set(err, -EINVAL, "%s: %zu bytes of PEM; allowed are 1 to %u", what, len,
                       TLS_BUNDLE_MAX);
    for (const char *at = pem; at && (at = strstr(at, begin)); at += sizeof(begin) - 1) {
        if (at > pem && at[-1] != '\n')
            continue;
        if (++blocks > CERTS_MAX)
            return err_set(err, -EINVAL, "%s: more than %d of them", what, CERTS_MAX);
        n += add_anchor(c, at, len - (size_t)(at - pem));
    }
    ERR_clear_error(); /* of those left out */
    return n > 0 ? 0 : err_set(err, -EINVAL, "%s: no PEM certificate is in there", what);
}

static int set_verify(SSL_CTX *c, const struct tls_plain_config *config, struct err *err)
{
    X509_VERIFY_PARAM *param = SSL_CTX_get0_param(c);
    uintptr_t usage = config->server ? XKU_SSL_CLIENT : XKU_SSL_SERVER;
    if (!config->ca_pem) {
        SSL_CTX_set_verify(c, SSL_VERIFY_NONE, NULL);
        return 0;
    }
    SSL_CTX_set_verify(c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(c, verify_chain, (void *)usage);
    if (X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_TRUSTED_FIRST) !=
            1 ||
        X509_VERIFY_PARAM_set_purpose(param, X509_PURPOSE_ANY) != 1)
        return tls_err(err, -EIO, "setting up the verifier");
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT |
                                               X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return add_anchors(c, config->ca_pem, err);
}

/* -- our own certificate -- */

static int use_chain(SSL_CTX *c, BIO *bio, struct err *err)
{
    X509 *cert = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
    if (!cert)
        return tls_err(err, -EINVAL, "reading our PEM certificate");
    bool ok = SSL_CTX_use_certificate(c, cert) == 1;
    X509_free(cert);
    while (ok && (cert = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL)) != NULL) {
        ok = SSL_CTX_add1_chain_cert(c, cert) == 1;
        X509_free(cert);
    }
    if (!ok)
        return tls_err(err, -EINVAL, "our certificate");
    ERR_clear_error();
    return 0;
}

static int use_key(SSL_CTX *c, const char *pem, struct err *err)
{
    BIO *bio = NULL;
    int r = bundle_open(pem, "our private key", &bio, err);
    if (r < 0)
        return r;
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    if (!key)
        return tls_err(err, -EINVAL, "reading our PEM private key");
    bool ok = SSL_CTX_use_PrivateKey(c, key) == 1 && SSL_CTX_check_private_key(c) == 1;
    EVP_PKEY_free(key);
    return ok ? 0 : tls_err(err, -EINVAL, "matching our private key and certificate");
}

static int use_own(SSL_CTX *c, const struct tls_plain_config *config, struct err *err)
{
    BIO *bio = NULL;
    int r = bundle_open(config->cert_pem, "our certificate", &bio, err);
    if (r == 0)
        r = use_chain(c, bio, err);
    BIO_free(bio);
    return r < 0 ? r : use_key(c, config->key_pem, err);
}

/* -- contexts -- */

static int seen_ticket_index(void)
{
    static int index = -1; /* the loop thread makes all contexts */
    if (index < 0)
        index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    return index;
}

static int on_ticket(SSL *ssl, SSL_SESSION *session _unused_)
{
    SSL_set_ex_data(ssl, seen_ticket_index(), ssl);
    return 0; /* not kept */
}

static SSL_TICKET_RETURN refuse_ticket(SSL *ssl _unused_, SSL_SESSION *session _unused_,
                                       const unsigned char *name _unused_, size_t len _unused_,
                                       SSL_TICKET_STATUS status _unused_, void *arg _unused_)
{
    return SSL_TICKET_RETURN_IGNORE;
}

static bool set_sessions(SSL_CTX *c, bool server)
{
    if (!server) {
        SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(c, on_ticket);
        return seen_ticket_index() >= 0;
    }
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    return SSL_CTX_set_session_id_context(c, (const uint8_t *)SESSION_ID_CONTEXT,
                                          sizeof(SESSION_ID_CONTEXT) - 1) == 1 &&
           SSL_CTX_set_num_tickets(c, 1) == 1 &&
           SSL_CTX_set_session_ticket_cb(c, NULL, refuse_ticket, NULL) == 1 &&
           SSL_CTX_set_max_early_data(c, 0) == 1;
}

static int set_versions(SSL_CTX *c, const struct tls_plain_config *config, struct err *err)
{
    _cleanup_free_ char *list = NULL;
    bool only_13 = is_13(config->min_version);
    int r = tls_plain_check(config->min_version, config->cipher_suites, err);
    if (r == 0 && config->cipher_suites && *config->cipher_suites)
        r = suites_translate(config->cipher_suites, &list, err);
    if (r < 0)
        return r;
    if (list && !*list)
        only_13 = true;
    SSL_CTX_set_security_level(c, 1); /* what Go takes: RSA from 1024 bits on, no SHA-1 */
    if (SSL_CTX_set_min_proto_version(c, only_13 ? TLS1_3_VERSION : TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(c, list && *list ? list : SUITES_DEFAULT) != 1)
        return tls_err(err, -EINVAL, "TLS version and cipher suites");
    return 0;
}

static int configure(SSL_CTX *c, const struct tls_plain_config *config, struct err *err)
{
    SSL_CTX_set_options(c, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                            SSL_MODE_RELEASE_BUFFERS);
    int r = set_sessions(c, config->server) ? 0 : tls_err(err, -EIO, "setting up TLS");
    if (r == 0)
        r = set_versions(c, config, err);
    if (r == 0)
        r = use_own(c, config, err);
    return r < 0 ? r : set_verify(c, config, err);
}

int tls_plain_ctx_new(const struct tls_plain_config *config, struct tls_ctx **ret, struct err *err)
{
    SSL_CTX *c = SSL_CTX_new(config->server ? TLS_server_method() : TLS_client_method());
    int r = c ? configure(c, config, err) : tls_err(err, -EIO, "making a TLS context");
    if (r < 0) {
        SSL_CTX_free(c);
        return r;
    }
    return tls_ctx_wrap(c, config->server, ret, err);
}

/* -- connections -- */

int tls_plain_connection_new(struct tls_ctx *ctx, const char *server_name, SSL **ret,
                             struct err *err)
{
    SSL *ssl = NULL;
    int r = tls_connection_new(ctx, NULL, &ssl, err);
    if (r < 0 || !server_name) {
        *ret = ssl;
        return r;
    }
    if (SSL_set1_host(ssl, server_name) != 1 || SSL_set_tlsext_host_name(ssl, server_name) != 1) {
        SSL_free(ssl);
        return tls_err(err, -EINVAL, "the server's name");
    }
    *ret = ssl;
    return 0;
}

bool tls_plain_confirmed(const SSL *ssl)
{
    return SSL_version(ssl) < TLS1_3_VERSION || SSL_get_ex_data(ssl, seen_ticket_index()) != NULL;
}

/* The last error is an alert of the other side's that is about our certificate. */
static bool blames_our_certificate(void)
{
    switch (ERR_GET_REASON(ERR_peek_last_error())) {
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return true;
    default:
        return false;
    }
}

int tls_plain_failure(SSL *ssl, const char *what, struct err *err)
{
    long verdict = SSL_get_verify_result(ssl);
    bool blamed = blames_our_certificate();
    if (verdict == X509_V_OK || SSL_get_verify_mode(ssl) == SSL_VERIFY_NONE) {
        int r = tls_err(err, -EPROTO, what);
        return blamed ? err_wrap(err, r, "the other side refuses our certificate") : r;
    }
    ERR_clear_error();
    const char *name = X509_VERIFY_PARAM_get0_host(SSL_get0_param(ssl), 0);
    if (verdict == X509_V_ERR_HOSTNAME_MISMATCH)
        return err_set(err, -EACCES, "%s: the certificate is not for the name '%s'", what,
                       name ? name : "");
    return err_set(err, -EACCES, "%s: the other side's certificate is refused: %s", what,
                   X509_verify_cert_error_string(verdict));
}

/* -- the ClientHello -- */

#define RECORD_HEADER 5U
#define RECORD_HANDSHAKE 22
#define CLIENT_HELLO 1
#define EXTENSION_ALPN 16

struct cursor { /* never reads beyond end; failed once, failed for good */
    const uint8_t *at, *end;
    bool failed;
};

static struct cursor take(struct cursor *c, size_t n)
{
    if (c->failed || n > (size_t)(c->end - c->at)) {
        c->failed = true;
        return (struct cursor){.failed = true};
    }
    c->at += n;
    return (struct cursor){c->at - n, c->at, false};
}

static size_t number(struct cursor *c, unsigned bytes)
{
    size_t value = 0;
    struct cursor part = take(c, bytes);
    if (!part.failed)
        for (; part.at < part.end; part.at++)
            value = value << 8 | *part.at;
    return value;
}

/* What a length of so many bytes stands before. */
static struct cursor vector(struct cursor *c, unsigned bytes)
{
    size_t n = number(c, bytes);
    return take(c, n);
}

static bool alpn_has(struct cursor extension, const char *protocol)
{
    struct cursor list = vector(&extension, 2);
    while (!list.failed && list.at < list.end) {
        struct cursor name = vector(&list, 1);
        size_t len = (size_t)(name.end - name.at);
        if (!name.failed && len == strlen(protocol) && memcmp(name.at, protocol, len) == 0)
            return true;
    }
    return false;
}

static bool hello_offers(struct cursor record, const char *protocol)
{
    if (number(&record, 1) != CLIENT_HELLO)
        return false;
    struct cursor hello = vector(&record, 3);
    take(&hello, 2 + 32); /* version, random */
    vector(&hello, 1);    /* session id */
    vector(&hello, 2);    /* cipher suites */
    vector(&hello, 1);    /* compression */
    struct cursor extensions = vector(&hello, 2);
    while (!extensions.failed && extensions.at < extensions.end) {
        size_t type = number(&extensions, 2);
        struct cursor extension = vector(&extensions, 2);
        if (type == EXTENSION_ALPN && !extension.failed && alpn_has(extension, protocol))
            return true;
    }
    return false;
}

int tls_hello_offers(const uint8_t *data, size_t len, const char *protocol)
{
    if (len > 0 && data[0] != RECORD_HANDSHAKE)
        return 0;
    if (len < RECORD_HEADER)
        return -EAGAIN;
    size_t record = (size_t)data[3] << 8 | data[4];
    if (record > TLS_HELLO_MAX - RECORD_HEADER)
        return 0;
    if (len < RECORD_HEADER + record)
        return -EAGAIN;
    struct cursor body = {data + RECORD_HEADER, data + RECORD_HEADER + record, false};
    return hello_offers(body, protocol) ? 1 : 0;
}
