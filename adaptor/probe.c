/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP port: 127.0.0.1:8000, as the Go adaptor has it for kubelet's startup probe.
 *
 *   /live     200: the loop turns (what does not answer is dead)
 *   /startup  200 once hypervisor.sock is served and the tunnels of the sandboxes that were taken
 *             over are up again; 503 and what is missing until then. A VM that died with our
 *             predecessor must not hold an update up for ever: STARTUP_PATIENCE_MS, the shims' own.
 *   /ready    as /startup. An ending daemon does not answer at all: its loop stands still, and it
 *             waits for nothing
 *   /metrics  metrics_text.c
 *
 * libmicrohttpd parses HTTP. It runs on our loop: its epoll descriptor is polled, and a timer runs
 * while there are connections. Listening and accepting are ours, for two reasons. The socket has
 * SO_REUSEPORT, so that old and new daemon of an update share the port. And connections are bounded
 * by a rule that keeps honest ones served: at PROBE_CONNECTIONS_MAX the oldest goes, where a plain
 * limit would let 32 idle sockets lock kubelet out. A request that lies in the socket when it is
 * accepted is answered in the same turn, so no flood is fast enough to push it out.
 *
 * Every connection carries one request and ends PROBE_REQUEST_MS after it was accepted, however it
 * dribbles. Request line and headers have PROBE_HEADERS_MAX bytes, bodies are not read. So the port
 * costs at most some 32 * 16 KiB.
 *
 * A port that somebody else has is a warning and not the end of the pods of this node.
 */
#include "adaptor/probe.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <sys/socket.h>

#include "adaptor/metrics.h"
#include "adaptor/sandbox.h"
#include "base/clock.h"
#include "base/log.h"

#define BACKLOG 1024
#define ACCEPT_TURN 32
#define RUN_TURN 8
#define TICK_MS 250
#define BIND_AGAIN_MS 10000
#ifndef STARTUP_PATIENCE_MS
#define STARTUP_PATIENCE_MS 35000 /* a test's daemon has less */
#endif
#define TEXT_MAX (1U << 20)

struct client {
    struct client *next, **prev; /* oldest first */
    int fd;                      /* libmicrohttpd's */
    int64_t since_ms;
};

struct probe {
    struct adaptor *adaptor;
    struct MHD_Daemon *http;
    int fd; /* listening, or -1 */
    bool polled, started, warned;
    uv_poll_t listener, events;
    uv_timer_t tick, bind_again;
    struct client *clients, **last;
    unsigned n_clients;
    int64_t began_ms;
    unsigned handles;
};

/* -- answers -- */

/* Sandboxes from before our start whose tunnel is not up again. */
static unsigned recovering(const struct probe *p)
{
    const struct adaptor *a = p->adaptor;
    unsigned n = 0;
    for (const struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        n += sb->record.state == SANDBOX_RUNNING && sb->tunnel && !sb->tunnel_up &&
             sb->record.created_ms < a->started_ms;
    return n;
}

/* Once started it stays so: a tunnel that is lost later is not a start-up. */
static bool started(struct probe *p, struct buf *out)
{
    unsigned n = p->started ? 0 : recovering(p);
    if (n == 0 || clock_mono_ms() - p->began_ms >= STARTUP_PATIENCE_MS)
        p->started = true;
    if (p->started)
        buf_adds(out, "started\n");
    else
        buf_addf(out, "%u tunnels of pods from before this start are not up again\n", n);
    return p->started;
}

static unsigned answer_text(struct probe *p, const char *url, struct buf *out)
{
    if (str_eq(url, "/metrics")) {
        metrics_write(p->adaptor, out);
        return MHD_HTTP_OK;
    }
    if (str_eq(url, "/live")) {
        buf_adds(out, "live\n");
        return MHD_HTTP_OK;
    }
    if (str_eq(url, "/startup") || str_eq(url, "/ready"))
        return started(p, out) ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    buf_adds(out, "not found; there are /metrics, /startup, /live and /ready\n");
    return MHD_HTTP_NOT_FOUND;
}

static enum MHD_Result answer(void *arg, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *len, void **state)
{
    struct probe *p = arg;
    struct buf out = BUF_INIT(TEXT_MAX);
    unsigned status = MHD_HTTP_METHOD_NOT_ALLOWED;
    bool metrics = str_eq(url, "/metrics");
    (void)version, (void)data, (void)len, (void)state;
    if (str_eq(method, MHD_HTTP_METHOD_GET) || str_eq(method, MHD_HTTP_METHOD_HEAD))
        status = answer_text(p, url, &out);
    else
        buf_adds(&out, "GET and HEAD alone\n");
    size_t size = out.len;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(size, buf_steal(&out), MHD_RESPMEM_MUST_FREE);
    if (!r)
        return MHD_NO; /* it has freed the text */
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE,
                            metrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                    : "text/plain; charset=utf-8");
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    enum MHD_Result queued = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return queued;
}

/* -- connections -- */

static void client_add(struct probe *p, struct MHD_Connection *c, void **ret)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct client *client = xcalloc(1, sizeof(*client));
    client->fd = info ? info->connect_fd : -1;
    client->since_ms = clock_mono_ms();
    client->prev = p->last;
    *p->last = client;
    p->last = &client->next;
    p->n_clients++;
    *ret = client;
}

static void client_remove(struct probe *p, struct client *client)
{
    *client->prev = client->next;
    if (client->next)
        client->next->prev = client->prev;
    else
        p->last = client->prev;
    p->n_clients--;
    free(client);
}

static void on_client(void *arg, struct MHD_Connection *c, void **state,
                      enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        client_add(arg, c, state);
    else if (*state)
        client_remove(arg, TAKE_PTR(*state));
}

/* libmicrohttpd sees the end of it when it runs next. */
static void client_end(const struct client *client)
{
    shutdown(client->fd, SHUT_RDWR);
}

static void http_run(struct probe *p)
{
    unsigned long long wait = 0;
    for (int i = 0; i < RUN_TURN; i++) {
        MHD_run(p->http);
        if (MHD_get_timeout(p->http, &wait) != MHD_YES || wait > 0)
            return;
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct probe *p = timer->data;
    int64_t limit = clock_mono_ms() - PROBE_REQUEST_MS;
    for (const struct client *c = p->clients; c && c->since_ms <= limit; c = c->next)
        client_end(c);
    http_run(p);
    if (p->n_clients == 0)
        uv_timer_stop(timer);
}

static void on_events(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    http_run(poll->data);
}

/* Takes fd. */
static void serve(struct probe *p, int fd, const struct sockaddr_storage *peer, socklen_t len)
{
    if (p->n_clients >= PROBE_CONNECTIONS_MAX) {
        client_end(p->clients);
        http_run(p);
    }
    MHD_add_connection(p->http, fd, (const struct sockaddr *)peer, len);
    http_run(p);
    if (p->n_clients > 0 && !uv_is_active((uv_handle_t *)&p->tick))
        uv_timer_start(&p->tick, on_tick, TICK_MS, TICK_MS);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct probe *p = poll->data;
    (void)status, (void)events;
    for (int i = 0; i < ACCEPT_TURN; i++) {
        struct sockaddr_storage peer = {0};
        socklen_t len = sizeof(peer);
        int fd = accept4(p->fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return; /* nothing there, or gone already; out of descriptors: the next event */
        serve(p, fd, &peer, len);
    }
}

/* -- listening -- */

static int open_listener(const struct adaptor_config *config, int *ret, struct err *err)
{
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    struct addrinfo *a = NULL;
    char port[8];
    int on = 1, r = 0;
    snprintf(port, sizeof(port), "%u", (unsigned)config->probe_port);
    if (getaddrinfo(config->probe_address, port, &hints, &a) != 0)
        return err_set(err, -EINVAL, "a numeric address is expected");
    _cleanup_close_ int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
        r = err_errno(err, -errno, "listening");
    freeaddrinfo(a);
    if (r == 0)
        *ret = TAKE_FD(fd);
    return r;
}

static void on_bind_again(uv_timer_t *timer);

static void listen_or_warn(struct probe *p)
{
    const struct adaptor_config *config = p->adaptor->config;
    struct err err = ERR_INIT;
    int r = open_listener(config, &p->fd, &err);
    if (r == 0) {
        r = uv_poll_init(p->adaptor->loop, &p->listener, p->fd);
        p->listener.data = p;
        p->polled = r == 0;
        p->handles += p->polled;
    }
    if (r == 0)
        r = uv_poll_start(&p->listener, UV_READABLE, on_connection);
    if (r == 0) {
        log_info("probes and metrics on %s port %u", config->probe_address,
                 (unsigned)config->probe_port);
        return;
    }
    if (!p->warned)
        log_warn("no probes and no metrics: %s port %u (-probe-address, -probe-port): %s; trying "
                 "again every %d s",
                 config->probe_address, (unsigned)config->probe_port,
                 err.code ? err_text(&err) : strerror(-r), BIND_AGAIN_MS / 1000);
    p->warned = true;
    uv_timer_start(&p->bind_again, on_bind_again, BIND_AGAIN_MS, 0);
}

static void on_bind_again(uv_timer_t *timer)
{
    listen_or_warn(timer->data);
}

/* -- life -- */

static struct MHD_Daemon *http_new(struct probe *p)
{
    return MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET, 0, NULL, NULL, answer, p,
                            MHD_OPTION_CONNECTION_LIMIT, PROBE_CONNECTIONS_MAX + 1U,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)PROBE_HEADERS_MAX,
                            MHD_OPTION_CONNECTION_MEMORY_INCREMENT, (size_t)1024,
                            MHD_OPTION_CONNECTION_TIMEOUT, PROBE_REQUEST_MS / 1000U,
                            MHD_OPTION_NOTIFY_CONNECTION, on_client, p, MHD_OPTION_END);
}

static int watch_http(struct probe *p)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(p->http, MHD_DAEMON_INFO_EPOLL_FD);
    int r = info ? uv_poll_init(p->adaptor->loop, &p->events, info->epoll_fd) : -EIO;
    if (r < 0)
        return r;
    p->events.data = p;
    p->handles++;
    return uv_poll_start(&p->events, UV_READABLE, on_events);
}

struct probe *probe_begin(struct adaptor *a)
{
    struct probe *p;
    if (a->config->probe_port == 0)
        return NULL;
    p = xcalloc(1, sizeof(*p));
    p->adaptor = a;
    p->fd = -1;
    p->last = &p->clients;
    p->began_ms = clock_mono_ms();
    uv_timer_init(a->loop, &p->tick);
    uv_timer_init(a->loop, &p->bind_again);
    p->tick.data = p->bind_again.data = p;
    p->handles = 2;
    p->http = http_new(p);
    if (p->http && watch_http(p) == 0)
        listen_or_warn(p);
    else
        log_warn("no probes and no metrics: the HTTP server cannot start");
    return p;
}

static void on_closed(uv_handle_t *handle)
{
    struct probe *p = handle->data;
    if (--p->handles > 0)
        return;
    if (p->http)
        MHD_stop_daemon(p->http); /* closes what polls were for */
    closep(&p->fd);
    free(p);
}

void probe_free(struct probe *p)
{
    if (!p)
        return;
    uv_close((uv_handle_t *)&p->tick, on_closed);
    uv_close((uv_handle_t *)&p->bind_again, on_closed);
    if (p->events.data)
        uv_close((uv_handle_t *)&p->events, on_closed);
    if (p->polled)
        uv_close((uv_handle_t *)&p->listener, on_closed);
}
