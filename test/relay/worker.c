/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * a.in -> b.out and b.in -> a.out, each by offsets alone: what b.out has accepted (its head) is
 * the offset held of a's stream, so a new process goes on from there and tells a.in only then that
 * it may forget. That is the daemon and the forwarder with the tunnel left out.
 *
 * Everything the relay can do takes part: reads that stop at a limit (the points of injection), takes,
 * injections, commits with and without a state of the owner's, trims at any time, half-closes. The
 * owner's state repeats the head that it was committed with, for the heads that has_user names, so
 * that recovery can tell that both were seen or neither.
 */
#include "relay/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/fs.h"
#include "base/log.h"
#include "relay/fdstore.h"
#include "relay/stream.h"

struct user {
    uint64_t head, check;
};

static _noreturn_ void die(const char *what, int error, const struct err *err)
{
    fprintf(stderr, "worker %d: %s: %s\n", (int)getpid(), what,
            err && err->code ? err_text(err) : strerror(-error));
    _exit(1);
}

static bool has_user(uint64_t head)
{
    return stream_mix(head) & 1;
}

static void check_user(const struct relay *r)
{
    const struct user *u = relay_user(r);
    uint64_t head = relay_out_head(r);
    bool right = has_user(head) ? u->head == head : u->head < head || head == 0;

    if (!right || (u->head != 0 && u->check != stream_mix(~u->head)))
        die("the owner's state does not belong to the head", -EBADMSG, NULL);
}

static bool read_some(struct relay *r)
{
    uint64_t head = relay_in_head(r);

    if (stream_inject_due(head)) {
        uint8_t data[STREAM_INJECT];
        stream_injected(head, data);
        int done = relay_in_inject(r, data, sizeof(data));
        if (done == -ENOBUFS)
            return false;
        if (done < 0)
            die("relay_in_inject", done, NULL);
        return true;
    }
    if (relay_in_eof(r))
        return false;
    ssize_t n = relay_in_read(r, STREAM_EVERY - head % STREAM_EVERY);
    if (n < 0 && n != -EAGAIN && n != -ENOBUFS)
        die("relay_in_read", (int)n, NULL);
    return n >= 0;
}

static void take(struct relay *r)
{
    int done = relay_in_take(r);

    if (done < 0)
        die("relay_in_take", done, NULL);
}

static bool copy_some(struct relay *from, struct relay *to)
{
    uint64_t held = relay_out_head(to);
    const uint8_t *data;
    uint8_t *space;
    size_t n = relay_in_peek(from, held, &data);

    /* Before anything else: our predecessor may have died between commit and this. */
    if (relay_in_ack(from, held) < 0)
        die("relay_in_ack", -ERANGE, NULL);
    if (n == 0)
        return false;
    ssize_t room = relay_out_space(to, &space);
    if (room == -ENOBUFS)
        return false;
    if (room < 0)
        die("relay_out_space", (int)room, NULL);
    n = MIN(n, (size_t)room);
    memcpy(space, data, n);
    uint64_t head = held + n;
    struct user u = {.head = head, .check = stream_mix(~head)};
    relay_out_commit(to, n, has_user(head) ? &u : NULL, sizeof(u));
    relay_in_ack(from, head);
    return true;
}

/* true: something moved; *ret_full: the socket takes no more for now. */
static bool flush(struct relay *from, struct relay *to, bool *ret_full)
{
    uint64_t before = relay_out_done(to);

    if (relay_in_eof(from) && !stream_inject_due(relay_in_head(from)) &&
        relay_out_head(to) == relay_in_head(from))
        relay_out_fin(to);
    int r = relay_out_flush(to);
    if (r < 0 && r != -EAGAIN)
        die("relay_out_flush", r, NULL);
    *ret_full = r == -EAGAIN;
    return relay_out_done(to) != before;
}

static void wait_for(struct relay *r[2], const bool full[2])
{
    struct pollfd fds[2];

    for (int i = 0; i < 2; i++) {
        bool room = relay_in_head(r[i]) - relay_in_tail(r[i]) == 0 || !full[1 - i];
        int events = (!relay_in_eof(r[i]) && room ? POLLIN : 0) | (full[i] ? POLLOUT : 0);
        fds[i] = (struct pollfd){.fd = events ? relay_socket(r[i]) : -1, .events = (short)events};
    }
    poll(fds, 2, 20);
}

static void worker_run(struct relay *a, struct relay *b, uint64_t seed)
{
    struct relay *r[2] = {a, b};
    bool full[2] = {false, false};

    check_user(a);
    check_user(b);
    for (;;) {
        bool moved = false;
        for (int i = 0; i < 2; i++) {
            moved |= read_some(r[i]);
            moved |= copy_some(r[i], r[1 - i]);
            moved |= flush(r[i], r[1 - i], &full[1 - i]);
        }
        if (stream_below(&seed, 64) == 0)
            relay_trim(r[stream_below(&seed, 2)]);
        bool over = relay_out_finished(a) && relay_out_finished(b);
        for (int i = 0; i < 2; i++) /* behind one read, or behind several */
            if (over || !moved || stream_below(&seed, 4) == 0)
                take(r[i]);
        if (over)
            return;
        if (!moved)
            wait_for(r, full);
    }
}

/* No file, or an unfinished one: nothing was read before our predecessor died. */
static struct relay *open_one(int dirfd, const char *name, int fd, size_t ring)
{
    struct err err = ERR_INIT;
    struct relay *r = NULL;
    int result = relay_recover(dirfd, name, fd, &r, &err);

    if (result == -ENOENT || result == -ENODATA) {
        err_clear(&err);
        unlinkat(dirfd, name, 0);
        result = relay_create(dirfd, name, fd, ring, &r, &err);
    }
    if (result < 0)
        die("opening a relay", result, &err);
    return r;
}

_noreturn_ void worker_open(int dirfd, const int fds[2], size_t ring, uint64_t seed)
{
    struct relay *a = open_one(dirfd, "a", fds[0], ring);
    struct relay *b = open_one(dirfd, "b", fds[1], ring);

    worker_run(a, b, seed);
    _exit(0);
}

/* -- under the keeper -- */

static int open_listener(const char *dir, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = fdstore_take("listen");

    if (fd >= 0)
        return fd;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", dir);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 2) < 0)
        die("listening", -errno, NULL);
    if (fdstore_add("listen", fd, err) < 0)
        die("storing the listener", err->code, err);
    return fd;
}

/* Accept, store, only then read. */
static int accept_one(int listener, const char *stored, struct err *err)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        die("accept", -errno, NULL);
    if (fdstore_add(stored, fd, err) < 0)
        die("storing a connection", err->code, err);
    return fd;
}

static struct relay *open_kept(int dirfd, int listener, const char *name)
{
    struct err err = ERR_INIT;
    char stored[FDSTORE_NAME_MAX + 1];

    snprintf(stored, sizeof(stored), "%s.s", name);
    int fd = fdstore_take(stored);
    if (fd < 0)
        fd = accept_one(listener, stored, &err);
    return open_one(dirfd, name, fd, RELAY_RING_DEFAULT);
}

/* The keeper starts us again as long as it holds something. */
static void remove_kept(struct err *err)
{
    static const char *const all[] = {"a.s", "b.s", "listen"};

    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        if (fdstore_remove(all[i], err) < 0)
            die("emptying the store", err->code, err);
}

int worker_kept(const char *dir)
{
    struct err err = ERR_INIT;
    char path[256];

    /* The keeper does not take us along when the test dies. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    log_init("worker", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (fdstore_init(&err) < 0)
        die("fdstore_init", err.code, &err);
    int dirfd = open(dir, O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        die(dir, -errno, NULL);
    int listener = open_listener(dir, &err);
    struct relay *a = open_kept(dirfd, listener, "a");
    struct relay *b = open_kept(dirfd, listener, "b");
    /* Both are stored; the test kills from here on, whoever has this number. */
    snprintf(path, sizeof(path), "%d\n", (int)getpid());
    if (fs_write_atomic(dirfd, "pid", path, strlen(path), 0600, &err) < 0)
        die("pid", err.code, &err);
    worker_run(a, b, (uint64_t)getpid());
    remove_kept(&err);
    _exit(0);
}
