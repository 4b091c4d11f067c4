/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way to the metadata service, for containers that may use it (-pod-metadata-address).
 *
 * The address is one of podns itself (podnet.c puts it on its loopback), a socket of ours listens
 * there, and each connection is carried to the same address and port in the VM's namespace. No packet
 * of a container ever enters the VM's network: nothing is forwarded or translated, so nothing but this
 * one port of this one address is reached, the cloud sees its own VM asking, and answers that must not
 * travel further than the VM (AWS: hop limit 1) arrive as well.
 *
 * A connection is two ends, each with one buffer: what is read at one is written at the other, and
 * read on only then. The end of one direction is passed on; the relay goes when both have ended, when
 * anything fails, or after a minute of silence. At most RELAYS_MAX at once: more are closed at once.
 * A restart of the forwarder ends them; they are short questions, and clients ask again.
 */
#include "forwarder/metaproxy.h"

#include <errno.h>
#include <sys/socket.h>

#include "base/log.h"
#include "net/link.h"
#include "net/netns.h"

#define PORT 80
#define BACKLOG 32
#define RELAYS_MAX 64U
#define SILENCE_MS 60000U
#define BUFFER_SIZE 8192U

struct relay;

struct end {
    uv_tcp_t tcp;
    uv_write_t write;
    uv_shutdown_t shutdown;
    struct relay *relay;
    struct end *other;
    bool ended; /* has said its last */
    char buffer[BUFFER_SIZE];
};

struct relay {
    struct metaproxy *proxy;
    struct end client, server;
    uv_connect_t connect;
    uv_timer_t silence;
    unsigned handles; /* not yet closed */
    bool closing;
    struct relay *next, **link;
};

struct metaproxy {
    uv_loop_t *loop;
    uv_tcp_t listener;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    struct relay *relays;
    unsigned n_relays;
    bool closed; /* the listener is */
};

/* ---- the end ---- */

static void proxy_release(struct metaproxy *p)
{
    if (p->closed && !p->relays)
        free(p);
}

static void on_closed(uv_handle_t *handle)
{
    struct relay *r = handle->data;

    if (--r->handles > 0)
        return;
    struct metaproxy *p = r->proxy;
    *r->link = r->next;
    if (r->next)
        r->next->link = r->link;
    p->n_relays--;
    free(r);
    proxy_release(p);
}

static void relay_close(struct relay *r)
{
    if (r->closing)
        return;
    r->closing = true;
    uv_close((uv_handle_t *)&r->client.tcp, on_closed);
    uv_close((uv_handle_t *)&r->server.tcp, on_closed);
    uv_close((uv_handle_t *)&r->silence, on_closed);
}

static void on_silence(uv_timer_t *timer)
{
    relay_close(timer->data);
}

/* ---- bytes ---- */

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *ret)
{
    struct relay *r = handle->data;
    struct end *e = handle == (uv_handle_t *)&r->client.tcp ? &r->client : &r->server;

    (void)suggested;
    *ret = uv_buf_init(e->buffer, sizeof(e->buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

static void on_written(uv_write_t *write, int status)
{
    struct end *from = write->data;

    if (status < 0 || uv_read_start((uv_stream_t *)&from->tcp, on_room, on_read) < 0)
        relay_close(from->relay);
}

static void on_shutdown(uv_shutdown_t *shutdown, int status)
{
    struct relay *r = shutdown->data;

    if (status < 0 || (r->client.ended && r->server.ended))
        relay_close(r);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct relay *r = stream->data;
    struct end *from = stream == (uv_stream_t *)&r->client.tcp ? &r->client : &r->server;
    uv_stream_t *to = (uv_stream_t *)&from->other->tcp;
    uv_buf_t piece = uv_buf_init(buf->base, n > 0 ? (unsigned)n : 0);
    int failed = 0;

    if (n == 0)
        return;
    uv_timer_again(&r->silence);
    uv_read_stop(stream);
    if (n == UV_EOF) {
        from->ended = true;
        from->shutdown.data = r;
        failed = uv_shutdown(&from->shutdown, to, on_shutdown);
    } else if (n > 0) {
        from->write.data = from;
        failed = uv_write(&from->write, to, &piece, 1, on_written);
    }
    if (n < 0 && n != UV_EOF)
        failed = (int)n;
    if (failed < 0)
        relay_close(r);
}

/* ---- connections ---- */

static void on_connected(uv_connect_t *connect, int status)
{
    struct relay *r = connect->data;

    if (status < 0 || uv_read_start((uv_stream_t *)&r->client.tcp, on_room, on_read) < 0 ||
        uv_read_start((uv_stream_t *)&r->server.tcp, on_room, on_read) < 0)
        relay_close(r);
}

static void end_init(struct relay *r, struct end *e, struct end *other)
{
    uv_tcp_init(r->proxy->loop, &e->tcp);
    e->tcp.data = r;
    e->relay = r;
    e->other = other;
    r->handles++;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct metaproxy *p = listener->data;
    struct relay *r;

    if (status < 0)
        return;
    r = xcalloc(1, sizeof(*r));
    r->proxy = p;
    end_init(r, &r->client, &r->server);
    end_init(r, &r->server, &r->client);
    uv_timer_init(p->loop, &r->silence);
    r->silence.data = r;
    r->handles++;
    r->next = p->relays;
    r->link = &p->relays;
    if (r->next)
        r->next->link = &r->next;
    p->relays = r;
    p->n_relays++;
    uv_timer_start(&r->silence, on_silence, SILENCE_MS, SILENCE_MS);
    r->connect.data = r;
    if (uv_accept(listener, (uv_stream_t *)&r->client.tcp) < 0 || p->n_relays > RELAYS_MAX ||
        uv_tcp_connect(&r->connect, &r->server.tcp, &p->address.any, on_connected) < 0)
        relay_close(r);
}

/* ---- the whole ---- */

struct binding {
    const struct metaproxy *proxy;
    int fd;
};

static int bind_there(void *arg, struct err *err)
{
    struct binding *b = arg;
    const struct sockaddr *a = &b->proxy->address.any;
    socklen_t len =
        a->sa_family == AF_INET6 ? sizeof(b->proxy->address.v6) : sizeof(b->proxy->address.v4);
    const int on = 1;
    _cleanup_close_ int fd = socket(a->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return err_errno(err, -errno, "making a socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a, len) < 0)
        return err_errno(err, -errno, "binding it");
    b->fd = TAKE_FD(fd);
    return 0;
}

static int listen_in(struct metaproxy *p, const char *netns, struct err *err)
{
    struct binding b = {.proxy = p, .fd = -1};
    _cleanup_close_ int ns = -1;
    int r = netns_open(netns, &ns, err);

    r = r < 0 ? r : netns_run(ns, bind_there, &b, err);
    if (r < 0)
        return r;
    r = uv_tcp_open(&p->listener, b.fd);
    if (r < 0)
        close(b.fd);
    if (r == 0)
        r = uv_listen((uv_stream_t *)&p->listener, BACKLOG, on_connection);
    return r < 0 ? err_errno(err, r, "listening") : 0;
}

int metaproxy_new(uv_loop_t *loop, const char *netns, const char *address, struct metaproxy **ret,
                  struct err *err)
{
    struct metaproxy *p = xcalloc(1, sizeof(*p));
    struct err why = ERR_INIT;
    int r;

    p->loop = loop;
    uv_tcp_init(loop, &p->listener);
    p->listener.data = p;
    r = strchr(address, ':') ? uv_ip6_addr(address, PORT, &p->address.v6)
                             : uv_ip4_addr(address, PORT, &p->address.v4);
    r = r < 0 ? err_set(&why, -EINVAL, "not a numeric address") : listen_in(p, netns, &why);
    if (r < 0) {
        metaproxy_free(p);
        return err_set(err, r,
                       "the metadata service for containers (%s, -pod-metadata-address): %s",
                       address, why.text);
    }
    log_warn("containers reach the metadata service of this VM at %s (-pod-metadata-address), and "
             "with it what the cloud tells the VM: user data, credentials of its role",
             address);
    *ret = p;
    return 0;
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct metaproxy *p = handle->data;

    p->closed = true;
    proxy_release(p);
}

void metaproxy_free(struct metaproxy *p)
{
    if (!p)
        return;
    for (struct relay *r = p->relays; r; r = r->next)
        relay_close(r);
    uv_close((uv_handle_t *)&p->listener, on_listener_closed);
}
