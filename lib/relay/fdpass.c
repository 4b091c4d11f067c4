/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One sendmsg is one message, on a datagram or a seqpacket socket: text and descriptors arrive
 * together or not at all. What the kernel had to cut (a text beyond the maximum, descriptors for
 * which the receiver has no number left) arrives marked as such; half a message could keep the
 * wrong thing, so the receiver drops it whole.
 *
 * Who listens at a path is settled under a lock (flock of PATH.lock), which is held for the moment of
 * connecting or binding only. A listener is bound beside the path and renamed over it: so a
 * successor takes the place of its predecessor without a gap, and the socket file of a dead one is
 * in nobody's way.
 *
 * Nothing here takes memory from the heap: the keeper has none after its start.
 */
#include "relay/fdpass.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>

#include "base/str.h"

#define PATH_MAX_ 100 /* with a suffix it still fits an address */
#define BACKLOG 8

int fdpass_address(const char *path, struct sockaddr_un *ret, socklen_t *ret_len, struct err *err)
{
    size_t len = strlen(path);

    if (path[0] != '/' && path[0] != '@')
        return err_set(err, -EINVAL, "socket '%s': not an absolute path", path);
    if (len < 2 || len >= sizeof(ret->sun_path))
        return err_set(err, -EINVAL, "socket '%.20s...': %zu bytes; allowed: 2 to %zu", path, len,
                       sizeof(ret->sun_path) - 1);
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret->sun_path, path, len);
    if (path[0] == '@')
        ret->sun_path[0] = '\0';
    *ret_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    return 0;
}

static int send_to(int fd, const struct sockaddr_un *to, socklen_t to_len, const char *text,
                   size_t len, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char data[CMSG_SPACE(FDPASS_FDS_MAX * sizeof(int))];
    } control = {.data = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = len};
    struct msghdr msg = {
        .msg_name = (void *)(uintptr_t)to, .msg_namelen = to_len, .msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (n_fds > FDPASS_FDS_MAX)
        return -EINVAL;
    if (n_fds > 0) {
        msg.msg_control = control.data;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    do
        n = sendmsg(fd, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

int fdpass_send(int fd, const char *text, size_t len, const int *fds, size_t n_fds)
{
    return send_to(fd, NULL, 0, text, len, fds, n_fds);
}

int fdpass_send_to(int fd, const struct sockaddr_un *to, socklen_t to_len, const char *text,
                   const int *fds, size_t n_fds)
{
    return send_to(fd, to, to_len, text, strlen(text), fds, n_fds);
}

static void read_control(struct msghdr *msg, struct fdpass *m)
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

int fdpass_receive(int fd, int flags, struct fdpass *m)
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

    m->len = m->n_fds = 0;
    m->sender = (struct ucred){.uid = (uid_t)-1};
    do
        n = recvmsg(fd, &msg, flags | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    m->len = (size_t)n;
    m->cut = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    read_control(&msg, m);
    return n > 0 || m->n_fds > 0;
}

void fdpass_close(struct fdpass *m)
{
    for (size_t i = 0; i < m->n_fds; i++)
        close(m->fds[i]);
    m->n_fds = 0;
}

const char *fdpass_value(const struct fdpass *m, const char *key, size_t *ret_len)
{
    size_t key_len = strlen(key);

    for (const char *at = m->text, *stop = m->text + m->len; at < stop;) {
        const char *end = memchr(at, '\n', (size_t)(stop - at)) ?: stop;
        if ((size_t)(end - at) > key_len && memcmp(at, key, key_len) == 0 && at[key_len] == '=') {
            *ret_len = (size_t)(end - at) - key_len - 1;
            return at + key_len + 1;
        }
        at = end + 1;
    }
    return NULL;
}

bool fdpass_has(const struct fdpass *m, const char *key)
{
    size_t len;
    const char *value = fdpass_value(m, key, &len);

    return value && len == 1 && value[0] == '1';
}

int fdpass_hear(int fd, struct fdpass *m, struct err *err)
{
    int r = fdpass_receive(fd, 0, m);

    if (r < 0)
        return err_errno(err, r, "waiting for the other end");
    if (r > 0 && !m->cut)
        return 0;
    fdpass_close(m);
    return r == 0 ? err_set(err, -ECONNRESET, "the other end is gone")
                  : err_set(err, -EMSGSIZE, "a message was cut");
}

/* ---- sockets ---- */

/* A name in a directory that only our user can enter, not an abstract one: abstract names belong to
 * the network namespace, and a daemon may share the host's with others. */
int fdpass_open_queue(char ret_dir[FDPASS_QUEUE_PATH_MAX], char ret_path[FDPASS_QUEUE_PATH_MAX],
                      int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int on = 1;

    snprintf(ret_dir, FDPASS_QUEUE_PATH_MAX, "/run/peerpod-keeper.XXXXXX");
    if (!mkdtemp(ret_dir)) {
        snprintf(ret_dir, FDPASS_QUEUE_PATH_MAX, "/tmp/peerpod-keeper.XXXXXX");
        if (!mkdtemp(ret_dir))
            return err_errno(err, -errno, "making a directory in /run or /tmp");
    }
    snprintf(ret_path, FDPASS_QUEUE_PATH_MAX, "%.50s/notify", ret_dir);
    memcpy(address.sun_path, ret_path, strlen(ret_path));
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
        int r = -errno;
        unlink(ret_path);
        rmdir(ret_dir);
        return err_errno(err, r, "binding %s", ret_path);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

bool fdpass_trusted(const struct ucred *who)
{
    return who->uid == 0 || who->uid == geteuid();
}

int fdpass_check(const struct fdpass *m, struct err *err)
{
    if (!fdpass_trusted(&m->sender))
        return err_set(err, -EPERM, "user %d", (int)m->sender.uid);
    return m->cut ? err_set(err, -EMSGSIZE, "longer than %d bytes, or no descriptor left",
                            FDPASS_TEXT_MAX)
                  : 0;
}

static int set_limits(int fd, int64_t timeout_ms, struct err *err)
{
    struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};

    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
        return err_errno(err, -errno, "setting time-outs");
    return 0;
}

static int check_peer(int fd, struct err *err)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || !fdpass_trusted(&peer))
        return err_set(err, -EPERM,
                       "process %d of user %d is at the other end; allowed: root and "
                       "our own user",
                       (int)peer.pid, (int)peer.uid);
    return 0;
}

static int lock(const char *path, int *ret, struct err *err)
{
    char name[PATH_MAX_ + 8];

    if (str_format(name, sizeof(name), "%s.lock", path) < 0 || strlen(path) > PATH_MAX_)
        return err_set(err, -EINVAL, "socket '%.20s...': longer than %d bytes", path, PATH_MAX_);
    *ret = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*ret < 0 || flock(*ret, LOCK_EX) < 0)
        return err_errno(err, -errno, "locking %s", name);
    return 0;
}

static int listen_at(const char *path, int *ret_fd, struct err *err)
{
    char beside[PATH_MAX_ + 8];
    struct sockaddr_un address;
    struct stat st;
    socklen_t len;

    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return err_set(err, -EEXIST, "%s exists and is not a socket: choose another path", path);
    snprintf(beside, sizeof(beside), "%s.new", path);
    int r = fdpass_address(beside, &address, &len, err);
    if (r < 0)
        return r;
    unlink(beside);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Linux gives the name the mode of the unbound socket: never a moment open. */
    if (fd < 0 || fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, len) < 0 ||
        listen(fd, BACKLOG) < 0 || rename(beside, path) < 0)
        return err_errno(err, -errno, "listening on %s", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int fdpass_listen(const char *path, int *ret_fd, struct err *err)
{
    _cleanup_close_ int guard = -1;
    int r = lock(path, &guard, err);

    return r < 0 ? r : listen_at(path, ret_fd, err);
}

int fdpass_meet(const char *path, int64_t timeout_ms, int *ret_fd, int *ret_listener,
                struct err *err)
{
    _cleanup_close_ int guard = -1, fd = -1;
    struct sockaddr_un address;
    socklen_t len;
    int r = fdpass_address(path, &address, &len, err);

    if (r == 0)
        r = lock(path, &guard, err);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    r = fd < 0 ? err_errno(err, -errno, "socket") : set_limits(fd, timeout_ms, err);
    if (r < 0)
        return r;
    if (connect(fd, (struct sockaddr *)&address, len) == 0) {
        r = check_peer(fd, err);
        if (r == 0)
            *ret_fd = TAKE_FD(fd);
        return r;
    }
    if (errno != ENOENT && errno != ECONNREFUSED)
        return err_errno(err, -errno, "connecting to %s", path);
    return listen_at(path, ret_listener, err);
}

int fdpass_accept(int listener, int64_t timeout_ms, int *ret_fd, struct err *err)
{
    _cleanup_close_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    int r = fd < 0 ? err_errno(err, -errno, "accept") : check_peer(fd, err);

    if (r == 0)
        r = set_limits(fd, timeout_ms, err);
    if (r == 0)
        *ret_fd = TAKE_FD(fd);
    return r;
}
