/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The forwarder ends the daemon's tunnel in the pod VM (design.md 4, 5, 7). It is crash-only: its
 * state lies in the state directory (state.c), its descriptors in the descriptor store, and
 * starting means taking up what is there:
 *
 *     lock, key, generation -> channels of a predecessor -> pod network -> tunnel -> listener -> READY=1 -> agent
 *
 * The listening socket is bound once in the life of the VM; a successor inherits it, so a daemon
 * that dials while we are away waits in its backlog. The agent's socket likewise (agent.c).
 *
 * Native mode: apf.json must name the sandbox, the daemon's certificate and the enrolment
 * secret. The secret is given to the tunnel until it was retired; which one that was is remembered
 * by its digest. A daemon of a lower generation than the highest seen is refused by the tunnel.
 *
 * Plain mode, for a stock adaptor, when there is a certificate for it (plainmode.c). Where both are
 * possible the first bytes of a connection decide (greet.c).
 */
#include "forwarder/forwarder.h"

#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "forwarder/agent.h"
#include "forwarder/channel.h"
#include "forwarder/greet.h"
#include "forwarder/metaproxy.h"
#include "forwarder/mounts.h"
#include "forwarder/plainmode.h"
#include "forwarder/podnet.h"
#include "forwarder/state.h"
#include "guest/apf.h"
#include "relay/fdstore.h"
#include "relay/tunnel.h"

#define LISTEN_NAME "listen"
#define BACKLOG 1024 /* many at once must not shut the daemon out: a connect of its waits 500 ms */
#define HOST_MAX 256
#define ACCEPTS_AT_ONCE 8 /* fewer than may be pending: what they have said is heard in between */
#define ACCEPT_AGAIN_MS 200
#define GREETING_MS 10000
#define SILENT_GREETING_MS 3600000 /* without TLS an adaptor says nothing until its first call */

struct forwarder {
    uv_loop_t *loop;
    const struct forwarder_options *options;
    struct apf apf;
    struct state *state;
    struct tls_identity *self;
    struct tls_ctx *ctx;
    struct splice_rules rules;
    struct channel_set *channels;
    struct tunnel *tunnel;   /* native mode */
    struct plainmode *plain; /* plain mode */
    struct greeter *greeter; /* both: tells them apart */
    struct agent *agent;
    struct metaproxy *metaproxy; /* NULL: containers do not reach the metadata service */
    int listener;
    uv_poll_t poll;
    uv_timer_t accept_again;
    unsigned handles; /* of these two */
    bool accept_waits;
    bool goes_on; /* connections of a predecessor do */
};

/* -- configuration -- */

static int check_mode(const struct forwarder_options *o, const struct apf *apf, struct err *err)
{
    if (apf->tunnel != APF_TUNNEL_NATIVE && plainmode_wanted(o, apf))
        return 0;
    if (apf->tunnel != APF_TUNNEL_NATIVE)
        return err_set(err, -ENOTSUP,
                       "%s has neither the keys of the native tunnel (tunnel, sandbox-id, "
                       "enrolment-secret) nor those of plain mode (tls-server-cert, "
                       "tls-server-key), and no certificate was given (-cert-file, -cert-key)",
                       o->config);
    if (str_empty(apf->tls_client_ca))
        return err_set(err, -EINVAL,
                       "%s has no tls-client-ca: the daemon cannot be told from others", o->config);
    return 0;
}

static int read_apf(struct forwarder *f, struct err *err)
{
    const char *path = f->options->config;
    char *text = NULL;
    size_t len = 0;
    int r = fs_read(AT_FDCWD, path, APF_JSON_MAX, &text, &len, err);
    if (r < 0)
        return err_wrap(err, r,
                        "the daemon's configuration (-config; process-user-data writes it)");
    r = apf_parse(text, len, &f->apf, err);
    secret_wipe(text, len);
    free(text);
    if (r < 0)
        return err_wrap(err, r, "%s", path);
    r = check_mode(f->options, &f->apf, err);
    if (r == 0 && access(f->options->pod_namespace, F_OK) < 0)
        log_warn("the pod's network namespace %s (-pod-namespace) is not there yet: containers "
                 "cannot start without it",
                 f->options->pod_namespace);
    if (r == 0 && !f->apf.has_network)
        log_warn("%s has no pod-network: the pod gets no network of its own", path);
    return r;
}

/* Retired: it is worth nothing, and lies nowhere any more but in apf.json. */
static void forget_secret(struct forwarder *f)
{
    secret_wipe(f->apf.enrolment_secret, sizeof(f->apf.enrolment_secret));
    f->apf.enrolment_secret_len = 0;
}

/* -- the tunnel's reports -- */

static void on_up(void *owner, bool first)
{
    const struct forwarder *f = owner;
    struct tunnel_stats stats;
    tunnel_get_stats(f->tunnel, &stats);
    log_info("tunnel with %s is up%s", stats.peer, first ? "" : " again");
}

static void on_down(void *owner, const struct err *why)
{
    (void)owner;
    log_info("tunnel is down, waiting for the daemon: %s", err_text(why));
}

static void on_refused(void *owner, const struct err *why)
{
    (void)owner;
    log_warn("%s", err_text(why));
}

static int on_enrolled(void *owner, const uint8_t pin[TLS_PIN_SIZE])
{
    struct forwarder *f = owner;
    struct err err = ERR_INIT;
    (void)pin;
    if (f->apf.enrolment_secret_len == 0)
        return 0; /* has been */
    int r = state_retire(f->state, f->apf.enrolment_secret, f->apf.enrolment_secret_len, &err);
    if (r < 0)
        log_error("retiring the enrolment secret: %s", err_text(&err));
    if (r < 0)
        return r;
    log_info("enrolled; the enrolment secret is retired");
    forget_secret(f);
    return 0;
}

static int on_generation(void *owner, uint64_t generation)
{
    struct forwarder *f = owner;
    struct err err = ERR_INIT;
    int r = state_store_generation(f->state, generation, &err);
    if (r < 0)
        log_error("storing the daemon's generation: %s", err_text(&err));
    return r;
}

static int on_open(void *owner, uint32_t id, const struct channel_ops **ret_ops, void **ret_ep)
{
    struct forwarder *f = owner;
    struct err err = ERR_INIT;
    int r = channel_set_open(f->channels, id, ret_ops, ret_ep, &err);
    if (r < 0)
        log_error("channel %u: %s", id, err_text(&err));
    return r;
}

static const struct tunnel_ops tunnel_ops = {
    .up = on_up,
    .down = on_down,
    .refused = on_refused,
    .enrolled = on_enrolled,
    .generation = on_generation,
    .open = on_open,
};

static int make_tunnel(struct forwarder *f, struct err *err)
{
    struct tunnel_config config = {
        .role = TUNNEL_FORWARDER,
        .sandbox_id = f->apf.sandbox_id,
        .self = f->self,
        .ctx = f->ctx,
        .feature_mask = (uint64_t)f->options->feature_mask,
    };
    bool retired = true;
    int r = tls_pin_of_pem(f->apf.tls_client_ca, config.peer_pin, err);
    if (r < 0)
        return err_wrap(err, r, "%s: tls-client-ca", f->options->config);
    r = state_generation(f->state, &config.generation, err);
    if (r == 0)
        r = state_retired(f->state, f->apf.enrolment_secret, f->apf.enrolment_secret_len, &retired,
                          err);
    if (r == 0 && !retired) {
        config.secret_len = MIN(f->apf.enrolment_secret_len, sizeof(config.secret));
        memcpy(config.secret, f->apf.enrolment_secret, config.secret_len);
    }
    if (r == 0)
        r = tunnel_new(f->loop, &config, &tunnel_ops, f, &f->tunnel, err);
    secret_wipe(config.secret, sizeof(config.secret));
    if (r == 0 && retired)
        forget_secret(f);
    return r;
}

/* -- the agent -- */

static int connect_agent(void *owner, int *ret, struct err *err)
{
    struct forwarder *f = owner;
    return agent_connect(f->agent, ret, err);
}

static void on_agent_ready(void *owner, bool ready)
{
    struct forwarder *f = owner;
    if (f->tunnel)
        tunnel_set_agent_ready(f->tunnel, ready);
    if (f->plain)
        plainmode_agent_ready(f->plain, ready);
}

/* -- the listener -- */

/* Takes fd. */
static void serve(void *owner, int fd, bool native)
{
    struct forwarder *f = owner;
    struct err err = ERR_INIT;
    if (!native)
        plainmode_accept(f->plain, fd);
    else if (tunnel_accept(f->tunnel, fd, &err) < 0)
        log_warn("accepting a connection: %s", err_text(&err));
}

static void on_connection(uv_poll_t *poll, int status, int events);

static void on_accept_again(uv_timer_t *timer)
{
    struct forwarder *f = timer->data;
    uv_poll_start(&f->poll, UV_READABLE, on_connection);
}

/* A socket with a connection in its backlog is ready all the time: what cannot be accepted now must
 * not be polled for. */
static void accept_later(struct forwarder *f, int error)
{
    if (!f->accept_waits)
        log_warn("connections have to wait: %s", strerror(error));
    f->accept_waits = true;
    uv_poll_stop(&f->poll);
    uv_timer_start(&f->accept_again, on_accept_again, ACCEPT_AGAIN_MS, 0);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct forwarder *f = poll->data;
    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_AT_ONCE; i++) {
        int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            accept_later(f, errno);
        if (fd < 0)
            return;
        f->accept_waits = false;
        if (f->greeter)
            greeter_add(f->greeter, fd, f->options->disable_tls ? SILENT_GREETING_MS : GREETING_MS);
        else
            serve(f, fd, f->tunnel != NULL);
    }
}

/* "0.0.0.0:15150", "[::]:15150", ":15150" (every address). */
static int resolve_listen(const char *text, struct addrinfo **ret, struct err *err)
{
    char host[HOST_MAX];
    const char *colon = strrchr(text, ':');
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    if (!colon || (size_t)(colon - text) >= sizeof(host))
        return err_set(err, -EINVAL, "-listen %s: HOST:PORT is expected", text);
    size_t len = (size_t)(colon - text);
    const char *from = text;
    if (len >= 2 && from[0] == '[' && from[len - 1] == ']') {
        from++;
        len -= 2;
    }
    memcpy(host, from, len);
    host[len] = '\0';
    int r = getaddrinfo(len > 0 ? host : "::", colon + 1, &hints, ret);
    if (r != 0)
        return err_set(err, -EINVAL, "-listen %s: %s; a numeric address and port are expected",
                       text, gai_strerror(r));
    return 0;
}

static int bind_listener(const struct addrinfo *a, const char *text, int *ret, struct err *err)
{
    int on = 1, off = 0;
    _cleanup_close_ int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, -errno, "listening on %s", text);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
        return err_errno(err, -errno, "listening on %s (-listen)", text);
    *ret = TAKE_FD(fd);
    return 0;
}

static int make_listener(const char *text, int *ret, struct err *err)
{
    struct addrinfo *a = NULL;
    int r = resolve_listen(text, &a, err);
    if (!a)
        return r;
    r = bind_listener(a, text, ret, err);
    freeaddrinfo(a);
    return r < 0 ? r : fdstore_add(LISTEN_NAME, *ret, err);
}

static int start_listener(struct forwarder *f, struct err *err)
{
    int r = 0;
    f->listener = fdstore_take(LISTEN_NAME);
    if (f->listener < 0)
        r = make_listener(f->options->listen, &f->listener, err);
    if (r < 0)
        return r;
    r = uv_poll_init(f->loop, &f->poll, f->listener);
    if (r < 0)
        return err_errno(err, r, "polling the listening socket");
    uv_timer_init(f->loop, &f->accept_again);
    f->poll.data = f->accept_again.data = f;
    f->handles = 2;
    return uv_poll_start(&f->poll, UV_READABLE, on_connection);
}

/* -- life -- */

static int take_up_state(struct forwarder *f, struct err *err)
{
    int r = state_open(f->options->state_dir, &f->state, err);
    if (r == 0)
        r = state_identity(f->state, "agent-protocol-forwarder", &f->self, err);
    if (r == 0)
        r = tls_ctx_new(true, &f->ctx, err);
    if (r < 0)
        return r;
    const struct channel_set_config config = {
        .loop = f->loop,
        .dirfd = state_dirfd(f->state),
        .rules = &f->rules,
        .connect = connect_agent,
        .owner = f,
    };
    r = channel_set_new(&config, &f->channels, err);
    if (r == 0)
        r = channel_set_recover(f->channels, err);
    if (r > 0)
        log_info("%d connections of a predecessor go on", r);
    f->goes_on = r > 0;
    return r < 0 ? r : 0;
}

static int network_make(struct forwarder *f, struct err *err)
{
    const char *metadata = *f->options->metadata ? f->options->metadata
                           : f->apf.has_network  ? f->apf.network.metadata_address
                                                 : "";
    const struct podnet_guest guest = {.netns = f->options->pod_namespace,
                                       .host_interface = f->options->host_interface,
                                       .metadata = metadata,
                                       .wait_ms = PODNET_WAIT_MS};
    int r = f->apf.has_network ? podnet_guest_setup(&f->apf.network, &guest, err) : 0;

    if (r == 0 && f->apf.has_network && *metadata)
        r = metaproxy_new(f->loop, guest.netns, metadata, &f->metaproxy, err);
    return r;
}

/* Before the daemon is listened to: when it hears us, the pod has its network. A pod that runs
 * already is not given up for it. */
static int network_up(struct forwarder *f, struct err *err)
{
    struct err e = ERR_INIT;
    int r = network_make(f, &e);
    if (r < 0 && !f->goes_on)
        return err_set(err, r, "%s", e.text);
    if (r < 0)
        log_error("%s", err_text(&e));
    return 0;
}

static int start_modes(struct forwarder *f, struct err *err)
{
    int r = 0;
    if (f->apf.tunnel == APF_TUNNEL_NATIVE) {
        r = make_tunnel(f, err);
        if (r == 0)
            r = channel_set_attach(f->channels, f->tunnel, err);
    }
    if (r == 0 && plainmode_wanted(f->options, &f->apf))
        r = plainmode_new(f->loop, f->options, &f->apf, f->channels, &f->plain, err);
    if (f->apf.tls_server_key) /* OpenSSL has it now, where plain mode is wanted */
        secret_wipe(f->apf.tls_server_key, strlen(f->apf.tls_server_key));
    if (r == 0 && f->tunnel && f->plain)
        f->greeter = greeter_new(f->loop, serve, f);
    return r;
}

static int start(struct forwarder *f, struct err *err)
{
    int r = read_apf(f, err);
    if (r == 0)
        r = take_up_state(f, err);
    if (r == 0)
        r = network_up(f, err);
    if (r == 0)
        r = start_modes(f, err);
    if (r == 0)
        r = start_listener(f, err);
    if (r == 0)
        r = agent_start(f->loop, f->options->agent_socket, on_agent_ready, f, &f->agent, err);
    return r < 0 ? r : fdstore_notify("READY=1", err);
}

int forwarder_new(uv_loop_t *loop, const struct forwarder_options *options, struct forwarder **ret,
                  struct err *err)
{
    struct forwarder *f = xcalloc(1, sizeof(*f));
    f->loop = loop;
    f->options = options;
    f->listener = -1;
    f->rules = (struct splice_rules){
        .netns_path = options->pod_namespace,
        .clear_dns = true,
        .mount = mounts_make_source,
    };
    int r = start(f, err);
    if (r < 0) {
        forwarder_free(f);
        return r;
    }
    log_info("sandbox %s: listening on %s%s", f->apf.sandbox_id, options->listen,
             !f->plain   ? ""
             : f->tunnel ? ", for stock adaptors as well"
                         : ", for a stock adaptor");
    *ret = f;
    return 0;
}

static void forwarder_done(struct forwarder *f)
{
    tls_ctx_free(f->ctx);
    tls_identity_free(f->self);
    state_close(f->state);
    apf_done(&f->apf);
    free(f);
}

static void on_closed(uv_handle_t *handle)
{
    struct forwarder *f = handle->data;
    if (--f->handles > 0)
        return;
    close(f->listener);
    forwarder_done(f);
}

void forwarder_free(struct forwarder *f)
{
    if (!f)
        return;
    agent_stop(f->agent);
    metaproxy_free(f->metaproxy);
    greeter_free(f->greeter);
    plainmode_free(f->plain);
    channel_set_free(f->channels);
    tunnel_free(f->tunnel);
    if (f->handles > 0) {
        uv_close((uv_handle_t *)&f->poll, on_closed);
        uv_close((uv_handle_t *)&f->accept_again, on_closed);
        return;
    }
    closep(&f->listener);
    forwarder_done(f);
}
