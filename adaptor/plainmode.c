/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Who vouches for whom is as with the Go adaptor (compat.md):
 *
 *   -ca-cert-file absent   we issue: each sandbox gets a server certificate whose one DNS name is
 *                          the instance's name; it goes with its key into apf.json, and we trust
 *                          that very certificate. (The Go adaptor has an authority for this; one
 *                          certificate per VM that trusts nothing else needs none.)
 *   -ca-cert-file given    the image brings its own certificate, for the name podvm-server; apf.json
 *                          holds none, nor our client certificate: the image knows the authority.
 *   -cert-file, -cert-key  our client certificate; else the sandbox's own, self-signed, which
 *                          apf.json names as tls-client-ca.
 *
 * The server's key is kept until StartVM has succeeded, in case a successor of this process has to
 * send the same user data again; afterwards it exists in the VM alone. Its certificate stays. A TLS context belongs to a sandbox, because its anchors do.
 *
 * StartVM is answered when a TLS connection stands and the forwarder has taken our certificate.
 * That connection is kept as the `spare` for the first connection of the shim's, without a byte on
 * it: the stock forwarder dials its agent once in its life, on the first call, within that call's
 * deadline (kata-contract.md 3.4); a probing call that we gave up could leave it without agent for
 * ever. A spare that ends before it is wanted is only forgotten.
 *
 * Later connections of the shim's dial for CONNECT_BUDGET_MS and are closed when nothing answers.
 */
#include "adaptor/plainmode.h"

#include <errno.h>
#include <fcntl.h>

#include "adaptor/volumes.h"
#include "base/clock.h"
#include "base/log.h"
#include "wire/tls_plain.h"

#define SERVER_CERT_FILE "server.crt"
#define SERVER_KEY_FILE "server.key" /* until StartVM has succeeded */
#define CUSTOM_SERVER_NAME "podvm-server"
#define CONNECT_BUDGET_MS 5000

struct plainmode {
    struct sandbox *sandbox;
    const struct plainmode_ops *ops;
    struct tls_ctx *ctx;
    struct plain_target target;
    struct plain_link *spare;
    struct err last_err;
    struct splice_rules rules;
};

/* -- options -- */

static bool we_issue(const struct adaptor_config *c)
{
    return str_empty(c->ca_cert_file);
}

static bool has_own_cert(const struct adaptor_config *c)
{
    return !str_empty(c->cert_file);
}

static int read_pem(const char *flag, const char *path, char **ret, struct err *err)
{
    int r = fs_read(AT_FDCWD, path, TLS_BUNDLE_MAX, ret, NULL, err);
    return r < 0 ? err_wrap(err, r, "-%s", flag) : 0;
}

static void wipe(char *text)
{
    if (text)
        secret_wipe(text, strlen(text));
    free(text);
}

/* pems: what the options do not give. */
static int make_ctx(const struct adaptor_config *c, const char *server_cert, const char *own_cert,
                    const char *own_key, struct tls_ctx **ret, struct err *err)
{
    _cleanup_free_ char *ca = NULL;
    _cleanup_free_ char *cert = NULL;
    char *key = NULL;
    int r = 0;
    if (!we_issue(c))
        r = read_pem("ca-cert-file", c->ca_cert_file, &ca, err);
    if (r == 0 && has_own_cert(c))
        r = read_pem("cert-file", c->cert_file, &cert, err);
    if (r == 0 && has_own_cert(c))
        r = read_pem("cert-key", c->cert_key, &key, err);
    const struct tls_plain_config config = {
        .cert_pem = cert ? cert : own_cert,
        .key_pem = key ? key : own_key,
        .ca_pem = c->tls_skip_verify ? NULL
                  : ca               ? ca
                                     : server_cert,
        .min_version = c->tls_min_version,
        .cipher_suites = c->tls_cipher_suites,
    };
    if (r == 0)
        r = tls_plain_ctx_new(&config, ret, err);
    wipe(key);
    return r;
}

/* The files once, so that a typing error is not found by the first pod. */
static int check_files(const struct adaptor_config *c, struct err *err)
{
    struct tls_identity *id = NULL;
    struct tls_ctx *ctx = NULL;
    char *key = NULL, *cert = NULL;
    int r = tls_identity_new("cloud-api-adaptor", &id, err);
    if (r == 0)
        r = tls_identity_pem(id, &key, &cert, err);
    if (r == 0)
        r = make_ctx(c, cert, cert, key, &ctx, err);
    wipe(key);
    free(cert);
    tls_identity_free(id);
    tls_ctx_free(ctx);
    return r;
}

int plainmode_check(const struct adaptor_config *c, struct err *err)
{
    if (c->disable_tls)
        return 0;
    if (str_empty(c->cert_file) != str_empty(c->cert_key))
        return err_set(err, -EINVAL, "-cert-file and -cert-key: give both or none");
    if (c->tls_skip_verify && !we_issue(c))
        return err_set(err, -EINVAL,
                       "-ca-cert-file and -tls-skip-verify contradict each other: give one");
    int r = tls_plain_check(c->tls_min_version, c->tls_cipher_suites, err);
    if (r < 0)
        return err_wrap(err, r, "-tls-min-version, -tls-cipher-suites");
    return check_files(c, err);
}

void plainmode_tell_unused(const struct adaptor_config *c)
{
    const struct {
        const char *flag;
        bool given;
    } options[] = {
        {"-ca-cert-file", !str_empty(c->ca_cert_file)},
        {"-cert-file", !str_empty(c->cert_file)},
        {"-cert-key", !str_empty(c->cert_key)},
        {"-tls-min-version", !str_empty(c->tls_min_version)},
        {"-tls-cipher-suites", c->tls_cipher_suites && *c->tls_cipher_suites},
        {"-tls-skip-verify", c->tls_skip_verify},
        {"-disable-tls", c->disable_tls},
    };
    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        if (options[i].given)
            log_warn("%s has no effect with -forwarder-compat native: TLS 1.3 always, and each end "
                     "knows the other by its key",
                     options[i].flag);
}

/* -- apf.json -- */

static int issue_new(struct sandbox *sb, struct apf *apf, struct err *err)
{
    struct tls_identity *id = NULL;
    int r = tls_identity_new_server(sb->record.instance.name, &id, err);
    if (r == 0)
        r = tls_identity_pem(id, &apf->tls_server_key, &apf->tls_server_cert, err);
    if (r == 0)
        r = fs_write_atomic(sb->dir, SERVER_CERT_FILE, apf->tls_server_cert,
                            strlen(apf->tls_server_cert), 0600, err);
    if (r == 0)
        r = fs_write_atomic(sb->dir, SERVER_KEY_FILE, apf->tls_server_key,
                            strlen(apf->tls_server_key), 0600, err);
    tls_identity_free(id);
    return r;
}

/* The same again when a StartVM is taken up: the VM may exist, with user data that holds it. */
static int issue(struct sandbox *sb, struct apf *apf, struct err *err)
{
    struct err missing = ERR_INIT;
    int r = fs_read(sb->dir, SERVER_KEY_FILE, TLS_PEM_MAX, &apf->tls_server_key, NULL, &missing);
    if (r == -ENOENT)
        return issue_new(sb, apf, err);
    if (r < 0)
        return err_set(err, r, "%s", err_text(&missing));
    return fs_read(sb->dir, SERVER_CERT_FILE, TLS_PEM_MAX, &apf->tls_server_cert, NULL, err);
}

/* What the forwarder is to check us with. */
static int client_ca(struct sandbox *sb, struct apf *apf, struct err *err)
{
    const struct adaptor_config *c = sb->adaptor->config;
    char *key = NULL;
    if (!we_issue(c))
        return 0;
    if (has_own_cert(c))
        return read_pem("cert-file", c->cert_file, &apf->tls_client_ca, err);
    int r = tls_identity_pem(sb->identity, &key, &apf->tls_client_ca, err);
    wipe(key);
    return r;
}

int plainmode_fill_apf(struct sandbox *sb, struct apf *apf, struct err *err)
{
    const struct adaptor_config *c = sb->adaptor->config;
    int r = 0;
    if (c->disable_tls)
        return 0;
    if (we_issue(c))
        r = issue(sb, apf, err);
    if (r == 0)
        r = client_ca(sb, apf, err);
    if (!str_empty(c->tls_min_version))
        apf->tls_min_version = xstrdup(c->tls_min_version);
    size_t n = c->tls_cipher_suites ? strv_len(c->tls_cipher_suites) : 0;
    if (n > 0)
        apf->tls_cipher_suites = xcalloc(n + 1, sizeof(char *));
    for (size_t i = 0; i < n; i++)
        apf->tls_cipher_suites[i] = xstrdup(c->tls_cipher_suites[i]);
    return r;
}

/* -- life -- */

static int open_tls(struct sandbox *sb, struct plainmode *p, struct err *err)
{
    const struct adaptor_config *c = sb->adaptor->config;
    _cleanup_free_ char *server = NULL;
    _cleanup_free_ char *cert = NULL;
    char *key = NULL;
    int r = 0;
    if (c->disable_tls)
        return 0;
    if (we_issue(c))
        r = fs_read(sb->dir, SERVER_CERT_FILE, TLS_PEM_MAX, &server, NULL, err);
    if (r == 0)
        r = tls_identity_pem(sb->identity, &key, &cert, err);
    if (r == 0)
        r = make_ctx(c, server, cert, key, &p->ctx, err);
    wipe(key);
    p->target.ctx = p->ctx;
    snprintf(p->target.server_name, sizeof(p->target.server_name), "%s",
             we_issue(c) ? sb->record.instance.name : CUSTOM_SERVER_NAME);
    return r;
}

int plainmode_open(struct sandbox *sb, struct err *err)
{
    struct plainmode *p = xcalloc(1, sizeof(*p));
    p->sandbox = sb;
    p->rules = (struct splice_rules){
        .annotate = volumes_annotate,
        .arg = (void *)(uintptr_t)DIRECT_VOLUMES_DIR,
    };
    sb->plain = p;
    int r = sandbox_address(sb, &p->target.address, &p->target.address_len, err);
    return r < 0 ? r : open_tls(sb, p, err);
}

void plainmode_close(struct sandbox *sb)
{
    struct plainmode *p = TAKE_PTR(sb->plain);
    if (!p)
        return;
    plain_close(p->spare);
    tls_ctx_free(p->ctx);
    free(p);
}

/* -- StartVM -- */

static void on_up(void *owner)
{
    struct plainmode *p = owner;
    unlinkat(p->sandbox->dir, SERVER_KEY_FILE, 0);
    p->ops->up(p->sandbox);
}

static void on_refused(void *owner, const struct err *why)
{
    struct plainmode *p = owner;
    p->last_err = *why;
    p->ops->refused(p->sandbox, why);
}

static void on_ended(void *owner, const struct err *why)
{
    struct plainmode *p = owner;
    p->spare = NULL;
    p->last_err = *why;
    log_entry(LOG_LEVEL_INFO, p->sandbox->record.id, "forwarder",
              "the connection that waited for the shim has ended: %s", err_text(why));
}

static const struct plain_ops spare_ops = {.up = on_up, .refused = on_refused, .ended = on_ended};

int plainmode_dial(struct sandbox *sb, const struct plainmode_ops *ops, struct err *err)
{
    struct plainmode *p = sb->plain;
    p->ops = ops;
    return plain_dial(sb->adaptor->loop, &p->target, 0, &spare_ops, p, &p->spare, err);
}

int plainmode_connect(struct sandbox *sb, const struct plain_ops *ops, void *owner,
                      const struct splice_rules **ret_rules, struct plain_link **ret,
                      struct err *err)
{
    struct plainmode *p = sb->plain;
    if (!p)
        return err_set(err, -ENOTCONN, "the pod VM is not started");
    *ret_rules = &p->rules;
    if (p->spare && plain_is_up(p->spare)) {
        *ret = TAKE_PTR(p->spare);
        return 0;
    }
    return plain_dial(sb->adaptor->loop, &p->target, clock_mono_ms() + CONNECT_BUDGET_MS, ops,
                      owner, ret, err);
}

void plainmode_last_error(const struct sandbox *sb, struct err *ret)
{
    if (sb->plain && sb->plain->spare)
        plain_last_error(sb->plain->spare, ret);
    else if (sb->plain)
        *ret = sb->plain->last_err;
}
