/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: bench-relay near SOCKET ADDRESS PORT | bench-relay far PORT SOCKET
 *
 * The least that a relay pair can be: unix socket to TCP, TCP to unix socket, one epoll loop, no
 * TLS, no frames, no memory of what it carried. The yardstick beside which the tunnel is measured.
 *
 * Model: a connection is two directions; each has a buffer that is read into only when it is empty
 * and written until it is empty again. Level-triggered: a direction waits either for its source or
 * for its sink. An end of either side ends both; this relay never lives longer than a measurement.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/str.h"

#define BUFFER (64U << 10)
#define EVENTS 16

struct direction {
    int from, to;
    size_t at, have;
    uint8_t data[BUFFER];
};

struct side {
    struct pair *pair;
    int fd;
    uint32_t events;
};

struct pair {
    struct side side[2];
    struct direction way[2]; /* way[i]: from side i to the other */
    bool dead;
};

static int epoll;
static bool near_end;
static struct sockaddr_storage target;
static socklen_t target_len;

static int unix_address(const char *path)
{
    struct sockaddr_un *a = (struct sockaddr_un *)&target;
    a->sun_family = AF_UNIX;
    target_len = sizeof(*a);
    return str_format(a->sun_path, sizeof(a->sun_path), "%s", path);
}

static int watch(struct side *s, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = s};
    if (s->events == events)
        return 0;
    int r = epoll_ctl(epoll, s->events == UINT32_MAX ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, s->fd, &e);
    s->events = events;
    return r;
}

/* false: the connection is over. */
static bool move(struct direction *d)
{
    for (;;) {
        if (d->have == 0) {
            ssize_t n = recv(d->from, d->data, BUFFER, MSG_DONTWAIT);
            if (n <= 0)
                return n < 0 && errno == EAGAIN;
            d->have = (size_t)n;
            d->at = 0;
        }
        ssize_t n = send(d->to, d->data + d->at, d->have, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN;
        d->at += (size_t)n;
        d->have -= (size_t)n;
    }
}

static void pair_run(struct pair *p)
{
    bool alive = move(&p->way[0]) && move(&p->way[1]);
    if (!alive) {
        p->dead = true;
        close(p->side[0].fd);
        close(p->side[1].fd);
        return;
    }
    for (int i = 0; i < 2; i++)
        watch(&p->side[i], (p->way[i].have ? 0U : (uint32_t)EPOLLIN) |
                               (p->way[1 - i].have ? (uint32_t)EPOLLOUT : 0U));
}

static void nodelay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static void accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    int to = socket(target.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || to < 0 || connect(to, (struct sockaddr *)&target, target_len) < 0) {
        perror("bench-relay: connecting");
        closep(&fd);
        closep(&to);
        return;
    }
    nodelay(near_end ? to : fd);
    struct pair *p = xcalloc(1, sizeof(*p)); /* never freed: see above */
    for (int i = 0; i < 2; i++) {
        p->side[i] = (struct side){.pair = p, .fd = i ? to : fd, .events = UINT32_MAX};
        p->way[i].from = i ? to : fd;
        p->way[i].to = i ? fd : to;
        watch(&p->side[i], EPOLLIN);
    }
}

static int listen_near(char **argv)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&target;
    uint64_t port;
    if (str_to_u64(argv[4], 65535, &port) < 0 || unix_address(argv[2]) < 0)
        return -EINVAL;
    unlink(argv[2]);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&target, target_len) < 0)
        return -errno;
    memset(&target, 0, sizeof(target));
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)port);
    target_len = sizeof(*in);
    return inet_pton(AF_INET, argv[3], &in->sin_addr) == 1 ? fd : -EINVAL;
}

static int listen_far(char **argv)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    uint64_t port;
    int on = 1;
    if (str_to_u64(argv[2], 65535, &port) < 0 || unix_address(argv[3]) < 0)
        return -EINVAL;
    in.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    return bind(fd, (struct sockaddr *)&in, sizeof(in)) < 0 ? -errno : fd;
}

int main(int argc, char **argv)
{
    near_end = argc == 5 && str_eq(argv[1], "near");
    if (!near_end && !(argc == 4 && str_eq(argv[1], "far"))) {
        fprintf(stderr, "usage: bench-relay near SOCKET ADDRESS PORT | far PORT SOCKET\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = near_end ? listen_near(argv) : listen_far(argv);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct side on_listener = {.fd = listener, .events = UINT32_MAX};
    if (listener < 0 || epoll < 0 || listen(listener, 16) < 0 || watch(&on_listener, EPOLLIN) < 0) {
        fprintf(stderr, "bench-relay: listening: %s\n", strerror(listener < 0 ? -listener : errno));
        return 1;
    }
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct side *s = events[i].data.ptr;
            if (!s->pair)
                accept_one(listener);
            else if (!s->pair->dead)
                pair_run(s->pair);
        }
    }
}
