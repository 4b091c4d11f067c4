/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Identities, pins and the shared TLS contexts.
 *
 * Model: an identity is an ECDSA P-256 key with a certificate that it signed itself. The
 * certificate is only an envelope: what counts is the SHA-256 of its SubjectPublicKeyInfo, the pin.
 * Nobody signs for anybody, nothing expires, so the handshake takes any certificate, and proves
 * (CertificateVerify) that the peer holds its key. The tunnel compares the pin afterwards, before
 * it believes a byte, and can then say in words what was wrong, which a TLS alert cannot.
 *
 * Invariants: TLS 1.3 only; no tickets, no cache, no early data, so every connection proves both
 * keys anew; a context is shared by all connections of one role and never changes after it was
 * made; key and certificate belong to the connection.
 *
 * A thousand tunnels that are up need no key: OpenSSL's objects of one take 4 KiB in a hundred
 * pieces, so an identity rests as DER (half a KiB) and is parsed again for each handshake.
 *
 * Failures: OpenSSL's queue of errors is per thread and would be blamed on the next caller, so
 * every failing path empties it into one sentence (tls_err).
 *
 * The cipher list prefers AES-128-GCM: the strength of P-256 and of the pins is 128 bits as well,
 * and it is a third faster than AES-256 on the path that carries every exec.
 */
#include "wire/tls.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include "base/str.h"

#define COMMON_NAME_MAX 64
#define CERT_DAYS 36500L
#define WIRE_OUT (2 * (16384 + 256))              /* two records and their overhead */
#define WIRE_IN (68U << 10)                       /* what one read may take */
#define EXPORTER_LABEL "EXPORTER-Channel-Binding" /* RFC 9266 */

struct der {
    uint8_t *data; /* owned */
    int len;
};

struct tls_identity {
    EVP_PKEY *key; /* NULL at rest: then key_der and cert_der hold both */
    X509 *cert;
    struct der key_der, cert_der;
    uint8_t pin[TLS_PIN_SIZE];
};

struct tls_ctx {
    SSL_CTX *ssl;
    BIO_METHOD *bio;
    bool server;
};

DEFINE_CLEANUP(X509, X509_free)
DEFINE_CLEANUP(EVP_PKEY, EVP_PKEY_free)
DEFINE_CLEANUP(BIO, BIO_free_all)
DEFINE_CLEANUP(SSL, SSL_free)

int tls_err(struct err *err, int code, const char *what)
{
    unsigned long e = ERR_peek_error(); /* the first is the cause, the later ones its echoes */
    const char *data = NULL;
    int flags = 0;
    ERR_peek_error_data(&data, &flags);
    const char *reason = e ? ERR_reason_error_string(e) : NULL;
    if (!(flags & ERR_TXT_STRING) || str_empty(data))
        data = NULL;
    int r = err_set(err, code, "%s: %s%s%s%s", what, reason ? reason : "unknown TLS error",
                    data ? " (" : "", data ? data : "", data ? ")" : "");
    ERR_clear_error();
    return r;
}

/* -- identities -- */

static int pin_of_cert(const X509 *cert, uint8_t ret[TLS_PIN_SIZE], struct err *err)
{
    uint8_t *der = NULL;
    int len = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &der);
    if (len <= 0)
        return tls_err(err, -EBADMSG, "encoding the public key");
    int ok = EVP_Digest(der, (size_t)len, ret, NULL, EVP_sha256(), NULL);
    OPENSSL_free(der);
    return ok == 1 ? 0 : tls_err(err, -EIO, "hashing the public key");
}

static int identity_wrap(EVP_PKEY **key, X509 **cert, struct tls_identity **ret, struct err *err)
{
    struct tls_identity *id = xcalloc(1, sizeof(*id));
    int r = pin_of_cert(*cert, id->pin, err);
    if (r < 0) {
        free(id);
        return r;
    }
    id->key = TAKE_PTR(*key);
    id->cert = TAKE_PTR(*cert);
    *ret = id;
    return 0;
}

static bool cert_fill(X509 *cert, EVP_PKEY *key, const char *common_name)
{
    uint8_t serial[16];
    if (RAND_bytes(serial, sizeof(serial)) != 1)
        return false;
    serial[0] = (serial[0] & 0x7f) | 0x40; /* positive and of full length */
    BIGNUM *bn = BN_bin2bn(serial, sizeof(serial), NULL);
    bool ok = bn && BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(cert));
    BN_free(bn);
    X509_NAME *name = X509_get_subject_name(cert);
    return ok && X509_set_version(cert, X509_VERSION_3) == 1 &&
           X509_gmtime_adj(X509_getm_notBefore(cert), -86400L) &&
           X509_time_adj_ex(X509_getm_notAfter(cert), (int)CERT_DAYS, 0, NULL) &&
           X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const uint8_t *)common_name, -1,
                                      -1, 0) == 1 &&
           X509_set_issuer_name(cert, name) == 1 && X509_set_pubkey(cert, key) == 1 &&
           X509_sign(cert, key, EVP_sha256()) > 0;
}

/* What a verifier asks of a server: the name as SAN, and the usage (Go looks at nothing else). */
static bool cert_add_server(X509 *cert, const char *server_name)
{
    _cleanup_free_ char *san = str_asprintf("DNS:%s", server_name);
    const struct {
        int nid;
        const char *value;
    } extensions[] = {{NID_basic_constraints, "critical,CA:FALSE"},
                      {NID_key_usage, "critical,digitalSignature"},
                      {NID_ext_key_usage, "serverAuth"},
                      {NID_subject_alt_name, san}};
    for (size_t i = 0; i < ARRAY_SIZE(extensions); i++) {
        X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, extensions[i].nid, extensions[i].value);
        bool ok = e && X509_add_ext(cert, e, -1) == 1;
        X509_EXTENSION_free(e);
        if (!ok)
            return false;
    }
    return true;
}

static int identity_make(const char *common_name, bool server, struct tls_identity **ret,
                         struct err *err)
{
    if (str_empty(common_name) || strlen(common_name) > COMMON_NAME_MAX)
        return err_set(err, -EINVAL, "a certificate's name has 1 to %d bytes, not %zu",
                       COMMON_NAME_MAX, common_name ? strlen(common_name) : 0);
    _cleanup_(EVP_PKEY_freep) EVP_PKEY *key = EVP_EC_gen("P-256");
    _cleanup_(X509_freep) X509 *cert = X509_new();
    if (!key || !cert || (server && !cert_add_server(cert, common_name)) ||
        !cert_fill(cert, key, common_name))
        return tls_err(err, -EIO, "making a key and certificate");
    return identity_wrap(&key, &cert, ret, err);
}

int tls_identity_new(const char *common_name, struct tls_identity **ret, struct err *err)
{
    return identity_make(common_name, false, ret, err);
}

int tls_identity_new_server(const char *server_name, struct tls_identity **ret, struct err *err)
{
    for (const char *c = server_name; c && *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.", *c))
            return err_set(err, -EINVAL, "'%s' is no DNS name", server_name);
    return identity_make(server_name, true, ret, err);
}

/* Never asks a terminal for a passphrase. */
static int no_passphrase(char *buf _unused_, int size _unused_, int rw _unused_, void *arg _unused_)
{
    return -1;
}

static int bio_of_text(const char *text, BIO **ret, struct err *err)
{
    size_t len = text ? strlen(text) : 0;
    if (len == 0 || len > TLS_PEM_MAX)
        return err_set(err, -EINVAL, "a PEM text of %zu bytes; allowed are 1 to %u", len,
                       TLS_PEM_MAX);
    *ret = BIO_new_mem_buf(text, (int)len);
    return *ret ? 0 : tls_err(err, -ENOMEM, "reading PEM");
}

static int cert_parse(const char *pem, X509 **ret, struct err *err)
{
    _cleanup_(BIO_free_allp) BIO *bio = NULL;
    int r = bio_of_text(pem, &bio, err);
    if (r < 0)
        return err_wrap(err, r, "certificate");
    *ret = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
    if (!*ret)
        return tls_err(err, -EINVAL, "reading a PEM certificate");
    return 0;
}

int tls_identity_parse(const char *key_pem, const char *cert_pem, struct tls_identity **ret,
                       struct err *err)
{
    _cleanup_(X509_freep) X509 *cert = NULL;
    _cleanup_(BIO_free_allp) BIO *bio = NULL;
    int r = cert_parse(cert_pem, &cert, err);
    if (r < 0)
        return r;
    r = bio_of_text(key_pem, &bio, err);
    if (r < 0)
        return err_wrap(err, r, "private key");
    _cleanup_(EVP_PKEY_freep) EVP_PKEY *key =
        PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    if (!key)
        return tls_err(err, -EINVAL, "reading a PEM private key");
    if (X509_check_private_key(cert, key) != 1)
        return tls_err(err, -EINVAL, "matching private key and certificate");
    return identity_wrap(&key, &cert, ret, err);
}

void tls_identity_free(struct tls_identity *id)
{
    if (!id)
        return;
    EVP_PKEY_free(id->key);
    X509_free(id->cert);
    OPENSSL_clear_free(id->key_der.data, (size_t)id->key_der.len);
    OPENSSL_free(id->cert_der.data);
    free(id);
}

void tls_identity_rest(struct tls_identity *id)
{
    struct der key = {NULL, 0}, cert = {NULL, 0};
    if (!id->key)
        return;
    key.len = i2d_PrivateKey(id->key, &key.data);
    cert.len = i2d_X509(id->cert, &cert.data);
    if (key.len <= 0 || cert.len <= 0) { /* it stays awake */
        ERR_clear_error();
        OPENSSL_clear_free(key.data, (size_t)MAX(key.len, 0));
        OPENSSL_free(cert.data);
        return;
    }
    id->key_der = key;
    id->cert_der = cert;
    EVP_PKEY_free(TAKE_PTR(id->key));
    X509_free(TAKE_PTR(id->cert));
}

/* Both are the caller's. */
static int identity_objects(const struct tls_identity *id, EVP_PKEY **ret_key, X509 **ret_cert,
                            struct err *err)
{
    if (id->key) {
        EVP_PKEY_up_ref(id->key);
        X509_up_ref(id->cert);
        *ret_key = id->key;
        *ret_cert = id->cert;
        return 0;
    }
    const uint8_t *key = id->key_der.data, *cert = id->cert_der.data;
    *ret_key = d2i_AutoPrivateKey(NULL, &key, id->key_der.len);
    *ret_cert = d2i_X509(NULL, &cert, id->cert_der.len);
    return *ret_key && *ret_cert ? 0 : tls_err(err, -EIO, "reading key and certificate again");
}

static char *bio_steal_text(BIO *bio)
{
    char *data = NULL;
    long len = BIO_get_mem_data(bio, &data);
    char *text = xcalloc(1, (size_t)len + 1);
    if (len > 0)
        memcpy(text, data, (size_t)len);
    return text;
}

int tls_identity_pem(const struct tls_identity *id, char **ret_key, char **ret_cert,
                     struct err *err)
{
    _cleanup_(BIO_free_allp) BIO *key = BIO_new(BIO_s_secmem()); /* wiped when freed */
    _cleanup_(BIO_free_allp) BIO *cert = BIO_new(BIO_s_mem());
    _cleanup_(EVP_PKEY_freep) EVP_PKEY *pkey = NULL;
    _cleanup_(X509_freep) X509 *x509 = NULL;
    int r = identity_objects(id, &pkey, &x509, err);
    if (r < 0)
        return r;
    if (!key || !cert || PEM_write_bio_PrivateKey(key, pkey, NULL, NULL, 0, NULL, NULL) != 1 ||
        PEM_write_bio_X509(cert, x509) != 1)
        return tls_err(err, -EIO, "writing key and certificate");
    *ret_key = bio_steal_text(key);
    *ret_cert = bio_steal_text(cert);
    return 0;
}

void tls_identity_pin(const struct tls_identity *id, uint8_t ret[TLS_PIN_SIZE])
{
    memcpy(ret, id->pin, TLS_PIN_SIZE);
}

int tls_pin_of_pem(const char *cert_pem, uint8_t ret[TLS_PIN_SIZE], struct err *err)
{
    _cleanup_(X509_freep) X509 *cert = NULL;
    int r = cert_parse(cert_pem, &cert, err);
    return r < 0 ? r : pin_of_cert(cert, ret, err);
}

/* -- contexts -- */

static int any_certificate(X509_STORE_CTX *store _unused_, void *arg _unused_)
{
    return 1; /* the tunnel checks the pin */
}

static const uint8_t alpn_wire[] = "\x10" TLS_ALPN_TUNNEL;
_Static_assert(sizeof(TLS_ALPN_TUNNEL) - 1 == 0x10, "the length in alpn_wire");

static int alpn_select(SSL *ssl _unused_, const uint8_t **out, uint8_t *out_len, const uint8_t *in,
                       unsigned in_len, void *arg _unused_)
{
    uint8_t *chosen = NULL;
    if (SSL_select_next_proto(&chosen, out_len, alpn_wire, sizeof(alpn_wire) - 1, in, in_len) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static bool ctx_configure(SSL_CTX *c, bool server)
{
    SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
    /* Offsets make truncation harmless, so an end without close_notify is just an end. */
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    /* Buffers are given back when idle (tls_connection_trim), not behind each record. */
    SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(c, 1); /* header and body of a record in one recv, and more of them */
    SSL_CTX_set_default_read_buffer_len(c, WIRE_IN);
    SSL_CTX_set_verify(c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(c, any_certificate, NULL);
    bool ok = SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_ciphersuites(c, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                                          "TLS_CHACHA20_POLY1305_SHA256") == 1 &&
              SSL_CTX_set1_groups_list(c, "X25519:P-256") == 1 &&
              SSL_CTX_set_num_tickets(c, 0) == 1 && SSL_CTX_set_max_early_data(c, 0) == 1;
    if (server)
        SSL_CTX_set_alpn_select_cb(c, alpn_select, NULL);
    else
        ok = ok && SSL_CTX_set_alpn_protos(c, alpn_wire, sizeof(alpn_wire) - 1) == 0;
    return ok;
}

/*
 * -- a socket BIO that never raises SIGPIPE, and collects --
 *
 * A record a write would mean a packet, an interrupt and a wake-up of the far side each: a reply of
 * 32 KiB is three records, and cost three times what it costs in one piece. So a corked BIO copies
 * records behind each other (a microsecond each) and sends them together. What the socket did not
 * take stays in front, and no later byte passes it by.
 */

struct wire {
    int fd;
    bool polled;  /* by an owner that calls tls_connection_readable */
    bool drained; /* the last read has emptied the socket */
    bool corked;
    size_t at, len; /* of out: sent, collected */
    uint8_t *out;   /* WIRE_OUT bytes, or NULL */
};

static int wire_send(struct wire *w)
{
    while (w->at < w->len) {
        ssize_t n = send(w->fd, w->out + w->at, w->len - w->at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        w->at += (size_t)n;
    }
    w->at = w->len = 0;
    return 0;
}

static int sock_write_through(BIO *b, const struct wire *w, const char *data, int len)
{
    ssize_t n = send(w->fd, data, (size_t)len, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        BIO_set_retry_write(b);
    return (int)n;
}

static int sock_write(BIO *b, const char *data, int len)
{
    struct wire *w = BIO_get_data(b);
    int r = 0;
    BIO_clear_retry_flags(b);
    if (len <= 0 || (!w->corked && w->len == 0))
        return sock_write_through(b, w, data, len);
    if (!w->out)
        w->out = xrealloc(NULL, WIRE_OUT);
    if (WIRE_OUT - w->len < (size_t)len || !w->corked)
        r = wire_send(w);
    size_t n = MIN(WIRE_OUT - w->len, (size_t)len);
    if ((r < 0 && r != -EAGAIN) || n == 0) {
        if (r == -EAGAIN)
            BIO_set_retry_write(b);
        errno = -r;
        return -1;
    }
    memcpy(w->out + w->len, data, n);
    w->len += n;
    return (int)n;
}

static int sock_read(BIO *b, char *data, int len)
{
    struct wire *w = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (w->drained) {
        BIO_set_retry_read(b);
        errno = EAGAIN;
        return -1;
    }
    ssize_t n = recv(w->fd, data, (size_t)len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        BIO_set_retry_read(b);
    if (n == 0)
        BIO_set_flags(b, BIO_FLAGS_IN_EOF);
    w->drained = w->polled && n > 0 && n < len;
    return (int)n;
}

static long sock_ctrl(BIO *b, int cmd, long num _unused_, void *ptr _unused_)
{
    if (cmd == BIO_CTRL_EOF)
        return BIO_test_flags(b, BIO_FLAGS_IN_EOF) != 0;
    if (cmd != BIO_CTRL_FLUSH) /* above all: whether the kernel does TLS, ten times a record */
        return 0;
    BIO_clear_retry_flags(b);
    int r = wire_send(BIO_get_data(b));
    if (r == -EAGAIN)
        BIO_set_retry_write(b);
    return r < 0 ? -1 : 1;
}

static int sock_destroy(BIO *b)
{
    struct wire *w = BIO_get_data(b);
    if (w)
        free(w->out);
    free(w);
    BIO_set_data(b, NULL);
    return 1;
}

static BIO_METHOD *sock_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "stream socket");
    if (!m)
        return NULL;
    if (BIO_meth_set_write(m, sock_write) != 1 || BIO_meth_set_read(m, sock_read) != 1 ||
        BIO_meth_set_ctrl(m, sock_ctrl) != 1 || BIO_meth_set_destroy(m, sock_destroy) != 1) {
        BIO_meth_free(m);
        return NULL;
    }
    return m;
}

int tls_ctx_wrap(SSL_CTX *ssl, bool server, struct tls_ctx **ret, struct err *err)
{
    struct tls_ctx *ctx = xcalloc(1, sizeof(*ctx));
    ctx->server = server;
    ctx->ssl = ssl;
    ctx->bio = sock_method();
    if (!ctx->bio) {
        tls_ctx_free(ctx);
        return tls_err(err, -EIO, "making a TLS context");
    }
    *ret = ctx;
    return 0;
}

int tls_ctx_new(bool server, struct tls_ctx **ret, struct err *err)
{
    SSL_CTX *ssl = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (!ssl || !ctx_configure(ssl, server)) {
        SSL_CTX_free(ssl);
        return tls_err(err, -EIO, "making a TLS context");
    }
    return tls_ctx_wrap(ssl, server, ret, err);
}

void tls_ctx_free(struct tls_ctx *ctx)
{
    if (!ctx)
        return;
    SSL_CTX_free(ctx->ssl);
    BIO_meth_free(ctx->bio);
    free(ctx);
}

/* -- connections -- */

int tls_connection_new(struct tls_ctx *ctx, const struct tls_identity *self, SSL **ret,
                       struct err *err)
{
    _cleanup_(SSL_freep) SSL *ssl = SSL_new(ctx->ssl);
    _cleanup_(EVP_PKEY_freep) EVP_PKEY *key = NULL;
    _cleanup_(X509_freep) X509 *cert = NULL;
    int r = self ? identity_objects(self, &key, &cert, err) : 0;
    if (r < 0)
        return r;
    if (!ssl ||
        (self && (SSL_use_certificate(ssl, cert) != 1 || SSL_use_PrivateKey(ssl, key) != 1)))
        return tls_err(err, -EIO, "making a TLS connection");
    if (ctx->server)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    *ret = TAKE_PTR(ssl);
    return 0;
}

int tls_connection_attach(struct tls_ctx *ctx, SSL *ssl, int fd, struct err *err)
{
    BIO *bio = BIO_new(ctx->bio);
    if (!bio)
        return tls_err(err, -ENOMEM, "attaching a socket");
    struct wire *w = xcalloc(1, sizeof(*w));
    w->fd = fd;
    BIO_set_data(bio, w);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    return 0;
}

void tls_connection_settle(SSL *ssl)
{
    SSL_certs_clear(ssl);
}

static struct wire *wire_of(const SSL *ssl)
{
    return BIO_get_data(SSL_get_wbio(ssl));
}

void tls_connection_readable(SSL *ssl)
{
    struct wire *w = wire_of(ssl);
    w->polled = true;
    w->drained = false;
}

bool tls_connection_drained(const SSL *ssl)
{
    return wire_of(ssl)->drained && !SSL_has_pending(ssl);
}

void tls_connection_cork(SSL *ssl)
{
    wire_of(ssl)->corked = true;
}

int tls_connection_flush(SSL *ssl)
{
    struct wire *w = wire_of(ssl);
    w->corked = false;
    return wire_send(w);
}

bool tls_connection_unsent(const SSL *ssl)
{
    return wire_of(ssl)->len > 0;
}

void tls_connection_trim(SSL *ssl)
{
    struct wire *w = wire_of(ssl);
    if (w->len == 0)
        free(TAKE_PTR(w->out));
    SSL_free_buffers(ssl); /* those that hold nothing */
}

bool tls_connection_is_tunnel(const SSL *ssl)
{
    const uint8_t *name = NULL;
    unsigned len = 0;
    SSL_get0_alpn_selected(ssl, &name, &len);
    return len == sizeof(TLS_ALPN_TUNNEL) - 1 && memcmp(name, TLS_ALPN_TUNNEL, len) == 0;
}

int tls_peer_pin(SSL *ssl, uint8_t ret[TLS_PIN_SIZE], struct err *err)
{
    X509 *cert = SSL_get0_peer_certificate(ssl);
    if (!cert)
        return err_set(err, -ENOENT, "the other side sent no certificate");
    return pin_of_cert(cert, ret, err);
}

int tls_exporter(SSL *ssl, uint8_t ret[32], struct err *err)
{
    if (SSL_export_keying_material(ssl, ret, 32, EXPORTER_LABEL, sizeof(EXPORTER_LABEL) - 1, NULL,
                                   0, 0) != 1)
        return tls_err(err, -EIO, "exporting keying material");
    return 0;
}
