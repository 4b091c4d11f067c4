/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A datagram socket with a name in a directory that only our user can enter, not an abstract one:
 * abstract names belong to the network namespace, and the daemon's pod shares the host's with
 * others. The sender must be root or our own user all the same (SCM_CREDENTIALS). Any process of
 * theirs may send, not only the child: the command may be a script that runs the real program.
 *
 * A message that the kernel cut (too long, or descriptors for which we had no numbers left) is
 * refused whole; half a message could keep the wrong thing.
 */
#include "keeper/notify.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"

#define FDS_MAX 253 /* SCM_MAX_FD */

static int make_dir(struct notify *n, struct err *err)
{
    static const char *const parents[] = {"/run", "/tmp"};

    for (size_t i = 0; i < ARRAY_SIZE(parents); i++) {
        snprintf(n->dir, sizeof(n->dir), "%s/peerpod-keeper.XXXXXX", parents[i]);
        if (mkdtemp(n->dir))
            return 0;
    }
    int r = -errno;
    n->dir[0] = '\0';
    return err_errno(err, r, "making a directory in /run or /tmp");
}

int notify_init(struct notify *n, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int on = 1, r;

    *n = (struct notify){.fd = -1};
    r = make_dir(n, err);
    if (r < 0)
        return r;
    snprintf(n->path, sizeof(n->path), "%s/notify", n->dir);
    memcpy(address.sun_path, n->path, sizeof(n->path));
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (n->fd < 0 || bind(n->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(n->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
        r = -errno;
        notify_done(n);
        return err_errno(err, r, "binding %s", n->path);
    }
    return 0;
}

void notify_done(struct notify *n)
{
    closep(&n->fd);
    n->fd = -1;
    if (n->dir[0]) {
        unlink(n->path);
        rmdir(n->dir);
    }
}

struct received {
    char text[STORE_MESSAGE_MAX];
    size_t len;
    int fds[FDS_MAX];
    size_t n_fds;
    struct ucred sender;
    bool cut;
};

static void read_control(struct msghdr *msg, struct received *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        size_t len = c->cmsg_len - CMSG_LEN(0);
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_CREDENTIALS && len == sizeof(m->sender))
            memcpy(&m->sender, CMSG_DATA(c), len);
        if (c->cmsg_type == SCM_RIGHTS && len <= sizeof(m->fds)) {
            memcpy(m->fds, CMSG_DATA(c), len);
            m->n_fds = len / sizeof(int);
        }
    }
}

/* false: the queue is empty. */
static bool receive(int fd, struct received *m)
{
    union {
        struct cmsghdr align;
        char data[CMSG_SPACE(sizeof(m->fds)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct iovec iov = {.iov_base = m->text, .iov_len = sizeof(m->text)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.data,
                         .msg_controllen = sizeof(control.data)};
    ssize_t n;

    m->n_fds = 0;
    m->sender = (struct ucred){.uid = (uid_t)-1};
    do
        n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return false;
    m->len = (size_t)n;
    m->cut = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    read_control(&msg, m);
    return true;
}

static void apply(struct store *store, const struct received *m)
{
    struct err err = ERR_INIT;
    bool trusted = m->sender.uid == 0 || m->sender.uid == geteuid();

    if (trusted && !m->cut) {
        if (store_apply(store, m->text, m->len, m->fds, m->n_fds, &err) < 0)
            log_warn("message of process %d refused: %s", (int)m->sender.pid, err_text(&err));
        return;
    }
    for (size_t i = 0; i < m->n_fds; i++)
        close(m->fds[i]);
    if (!trusted)
        log_warn("message of process %d refused: user %d", (int)m->sender.pid, (int)m->sender.uid);
    else
        log_warn("message of process %d refused: longer than %d bytes, or no descriptor left",
                 (int)m->sender.pid, STORE_MESSAGE_MAX);
}

void notify_drain(struct notify *n, struct store *store)
{
    struct received m;

    while (receive(n->fd, &m))
        apply(store, &m);
}
