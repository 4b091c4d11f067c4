/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One connection of a stock adaptor is one connection to the agent, with the same edits as in
 * native mode. Certificate and key, and whom to believe, come from the options or, where they do
 * not say, from apf.json: that is the Go forwarder's rule. Its other rule, to take any client when
 * nobody says whom to believe, is not ours: without -ca-cert-file and tls-client-ca plain mode is
 * refused, unless -tls-skip-verify asks for it.
 *
 * The adaptor connects as soon as we listen, the agent may come later: a client is held, unread,
 * until the agent is there, for at most AGENT_PATIENCE_MS (the Go forwarder's patience).
 *
 * What a client loses with its connection (ours or its own death) it loses for good.
 */
#include "forwarder/plainmode.h"

#include <errno.h>
#include <fcntl.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "relay/plain.h"
#include "wire/tls_plain.h"

#define CLIENTS_MAX 64 /* that have no connection to the agent yet */
#define AGENT_PATIENCE_MS 150000
#define TICK_MS 1000

struct client {
    struct client *next;
    struct plainmode *mode;
    struct plain_link *link;
    bool up;
    int64_t since_ms;
};

struct plainmode {
    uv_loop_t *loop;
    struct tls_ctx *ctx; /* NULL: -disable-tls */
    struct channel_set *channels;
    struct client *clients; /* newest first */
    unsigned n;
    bool agent_ready;
    uv_timer_t tick;
};

/* -- configuration -- */

static bool flags_have_cert(const struct forwarder_options *o)
{
    return !str_empty(o->cert_file) || !str_empty(o->key_file);
}

bool plainmode_wanted(const struct forwarder_options *o, const struct apf *apf)
{
    return o->disable_tls || flags_have_cert(o) || apf->tls_server_cert || apf->tls_server_key;
}

static int read_pem(const char *flag, const char *path, char **ret, struct err *err)
{
    int r = fs_read(AT_FDCWD, path, TLS_BUNDLE_MAX, ret, NULL, err);
    return r < 0 ? err_wrap(err, r, "-%s", flag) : 0;
}

static int check(const struct forwarder_options *o, const struct apf *apf, struct err *err)
{
    bool ca = !str_empty(o->ca_file) || !str_empty(apf->tls_client_ca);
    if (flags_have_cert(o) && (str_empty(o->cert_file) || str_empty(o->key_file)))
        return err_set(err, -EINVAL, "-cert-file and -cert-key: give both or none");
    if (!flags_have_cert(o) && (!apf->tls_server_cert || !apf->tls_server_key))
        return err_set(err, -EINVAL, "%s: tls-server-cert and tls-server-key: both or none",
                       o->config);
    if (o->tls_skip_verify && !str_empty(o->ca_file))
        return err_set(err, -EINVAL,
                       "-ca-cert-file and -tls-skip-verify contradict each other: give one");
    if (!ca && !o->tls_skip_verify)
        return err_set(err, -EINVAL,
                       "nobody says which adaptor to believe: neither -ca-cert-file nor "
                       "tls-client-ca in %s (-tls-skip-verify takes any)",
                       o->config);
    return 0;
}

static int make_ctx(const struct forwarder_options *o, const struct apf *apf, struct tls_ctx **ret,
                    struct err *err)
{
    _cleanup_free_ char *ca = NULL;
    _cleanup_free_ char *cert = NULL;
    char *key = NULL;
    int r = check(o, apf, err);
    if (r == 0 && !str_empty(o->ca_file))
        r = read_pem("ca-cert-file", o->ca_file, &ca, err);
    if (r == 0 && flags_have_cert(o))
        r = read_pem("cert-file", o->cert_file, &cert, err);
    if (r == 0 && flags_have_cert(o))
        r = read_pem("cert-key", o->key_file, &key, err);
    const struct tls_plain_config config = {
        .server = true,
        .cert_pem = cert ? cert : apf->tls_server_cert,
        .key_pem = key ? key : apf->tls_server_key,
        .ca_pem = o->tls_skip_verify ? NULL
                  : ca               ? ca
                                     : apf->tls_client_ca,
        .min_version = apf->tls_min_version,
        .cipher_suites = apf->tls_cipher_suites,
    };
    if (r == 0)
        r = tls_plain_ctx_new(&config, ret, err);
    if (key)
        secret_wipe(key, strlen(key));
    free(key);
    return r < 0 ? err_wrap(err, r, "plain mode") : 0;
}

/* -- clients -- */

static void forget(struct client *c)
{
    struct client **at = &c->mode->clients;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    c->mode->n--;
    free(c);
}

static void give_up(struct client *c, const char *why)
{
    log_warn("a stock adaptor's connection was closed: %s", why);
    plain_close(c->link);
    forget(c);
}

static void join_agent(struct client *c)
{
    struct err err = ERR_INIT;
    if (channel_set_open_plain(c->mode->channels, c->link, &err) < 0)
        give_up(c, err_text(&err));
    else
        forget(c);
}

static void on_up(void *owner)
{
    struct client *c = owner;
    c->up = true;
    if (c->mode->agent_ready)
        join_agent(c);
}

static void on_ended(void *owner, const struct err *why)
{
    struct client *c = owner;
    log_warn("a connection without the tunnel's protocol ended: %s", err_text(why));
    forget(c);
}

static const struct plain_ops client_ops = {.up = on_up, .ended = on_ended};

/* The oldest of those that have not proved who they are, else the oldest: whoever only connects must
 * not push out an adaptor that waits for the agent. */
static struct client *worst_client(const struct plainmode *p)
{
    struct client *worst = p->clients;
    for (struct client *c = p->clients; c; c = c->next)
        if (!c->up || worst->up)
            worst = c;
    return worst;
}

void plainmode_accept(struct plainmode *p, int fd)
{
    struct err err = ERR_INIT;
    if (p->n >= CLIENTS_MAX)
        give_up(worst_client(p), "too many at once");
    struct client *c = xcalloc(1, sizeof(*c));
    *c = (struct client){.next = p->clients, .mode = p, .since_ms = clock_mono_ms()};
    p->clients = c;
    p->n++;
    if (plain_accept(p->loop, fd, p->ctx, &client_ops, c, &c->link, &err) < 0) {
        log_warn("accepting a connection: %s", err_text(&err));
        forget(c);
    }
}

void plainmode_agent_ready(struct plainmode *p, bool ready)
{
    struct client *next;
    p->agent_ready = ready;
    for (struct client *c = p->clients; c && ready; c = next) {
        next = c->next;
        if (c->up)
            join_agent(c);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct plainmode *p = timer->data;
    struct client *next;
    for (struct client *c = p->clients; c; c = next) {
        next = c->next;
        if (c->up && clock_mono_ms() - c->since_ms > AGENT_PATIENCE_MS)
            give_up(c, "the agent has not come");
    }
}

/* -- life -- */

int plainmode_new(uv_loop_t *loop, const struct forwarder_options *o, const struct apf *apf,
                  struct channel_set *channels, struct plainmode **ret, struct err *err)
{
    struct tls_ctx *ctx = NULL;
    int r = o->disable_tls ? 0 : make_ctx(o, apf, &ctx, err);
    if (r < 0)
        return r;
    struct plainmode *p = xcalloc(1, sizeof(*p));
    *p = (struct plainmode){.loop = loop, .ctx = ctx, .channels = channels};
    uv_timer_init(loop, &p->tick);
    p->tick.data = p;
    uv_timer_start(&p->tick, on_tick, TICK_MS, TICK_MS);
    if (o->disable_tls)
        log_warn("-disable-tls: whoever reaches the port controls the pod; for tests only");
    *ret = p;
    return 0;
}

static void on_tick_closed(uv_handle_t *handle)
{
    struct plainmode *p = handle->data;
    tls_ctx_free(p->ctx);
    free(p);
}

void plainmode_free(struct plainmode *p)
{
    if (!p)
        return;
    while (p->clients) {
        plain_close(p->clients->link);
        forget(p->clients);
    }
    uv_close((uv_handle_t *)&p->tick, on_tick_closed);
}
