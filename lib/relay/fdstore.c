/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The store is another process: our parent (peerpod-keeper) or systemd. What it keeps comes to us
 * at exec as descriptors 3, 4, ... with their names in LISTEN_FDNAMES; what we want kept goes to it
 * as datagrams on the socket that NOTIFY_SOCKET names. There are no answers: a datagram is in the
 * store's queue when send returns, and the store reads its queue to the end before it starts our
 * successor. So a descriptor is safe from our death as soon as fdstore_add has returned, and that
 * is the order in which callers work: accept, add, only then read.
 *
 * The queue is short (net.unix.max_dgram_qlen) and send waits when it is full. The store only
 * moves descriptors about, so that wait is short; it is bounded all the same, because a store that
 * is stuck must become an error and not a daemon that hangs.
 *
 * Inherited descriptors are kept sorted by name: a recovery takes some thousands of them.
 *
 * Nobody tells how much the store holds, so the names that we gave and took back are counted: a set
 * of their hashes, because a name may be removed that was never there.
 */
#include "relay/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/str.h"

#define FIRST_FD 3
#define INHERITED_MAX 65536 /* more than any store of ours keeps */
#define SEND_TIMEOUT_S 5

struct inherited {
    const char *name; /* points into names */
    int fd;           /* -1: taken */
};

static struct {
    int socket; /* valid when address_len > 0 */
    struct sockaddr_un address;
    socklen_t address_len;
    char *names;
    struct inherited *fds; /* by name */
    size_t n;
    uint64_t *held;          /* hashes of names, an open table; 0: free */
    size_t n_held, cap_held; /* a power of two */
} store;

/* -- the set of names -- */

static uint64_t hash_name(const char *name)
{
    uint64_t h = 14695981039346656037ULL; /* FNV-1a */
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 1099511628211ULL;
    return h ? h : 1;
}

/* Where it is, or where it belongs. */
static size_t held_find(uint64_t h)
{
    size_t i = h & (store.cap_held - 1);
    while (store.held[i] && store.held[i] != h)
        i = (i + 1) & (store.cap_held - 1);
    return i;
}

static void held_insert(uint64_t h)
{
    size_t i = held_find(h);
    store.n_held += store.held[i] == 0;
    store.held[i] = h;
}

static void held_resize(size_t cap)
{
    uint64_t *old = store.held;
    size_t n = store.cap_held;
    store.held = xcalloc(cap, sizeof(*old));
    store.cap_held = cap;
    store.n_held = 0;
    for (size_t i = 0; i < n; i++)
        if (old[i])
            held_insert(old[i]);
    free(old);
}

static void held_add(const char *name)
{
    if ((store.n_held + 1) * 2 > store.cap_held)
        held_resize(MAX(store.cap_held * 2, (size_t)64));
    held_insert(hash_name(name));
}

/* What stands behind it in its run is put in again, so that no gap hides it. */
static void held_remove(const char *name)
{
    if (store.cap_held == 0)
        return;
    size_t i = held_find(hash_name(name));
    if (!store.held[i])
        return;
    do {
        uint64_t h = store.held[i];
        store.held[i] = 0;
        store.n_held--;
        if (h != hash_name(name))
            held_insert(h);
        i = (i + 1) & (store.cap_held - 1);
    } while (store.held[i]);
}

size_t fdstore_count(void)
{
    return store.n_held;
}

/* -- start -- */

static int parse_address(const char *path, struct err *err)
{
    size_t len = strlen(path);

    if (path[0] != '/' && path[0] != '@')
        return err_set(err, -EINVAL, "NOTIFY_SOCKET '%s': not an absolute path", path);
    if (len < 2 || len >= sizeof(store.address.sun_path))
        return err_set(err, -EINVAL, "NOTIFY_SOCKET: bad length %zu", len);
    store.address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(store.address.sun_path, path, len);
    if (path[0] == '@')
        store.address.sun_path[0] = '\0';
    store.address_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    return 0;
}

static int open_socket(struct err *err)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct timeval limit = {.tv_sec = SEND_TIMEOUT_S};

    if (str_empty(path))
        return 0;
    int r = parse_address(path, err);
    if (r < 0)
        return r;
    store.socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (store.socket < 0) {
        store.address_len = 0;
        return err_errno(err, -errno, "descriptor store: socket");
    }
    setsockopt(store.socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct inherited *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->fd > y->fd) - (x->fd < y->fd);
}

static int inherit(size_t n, struct err *err)
{
    const char *names = getenv("LISTEN_FDNAMES");

    store.names = xstrdup(names ? names : "");
    store.fds = xcalloc(n, sizeof(*store.fds));
    char *rest = store.names;
    for (size_t i = 0; i < n; i++) {
        int fd = FIRST_FD + (int)i;
        char *name = strsep(&rest, ":");
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
            return err_errno(err, -errno, "LISTEN_FDS=%zu, but descriptor %d", n, fd);
        held_add(name ? name : "unknown");
        store.fds[store.n++] = (struct inherited){.name = name ? name : "unknown", .fd = fd};
    }
    qsort(store.fds, store.n, sizeof(*store.fds), by_name);
    return 0;
}

static int take_inherited(struct err *err)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    uint64_t value;

    if (str_empty(pid) || str_empty(count))
        return 0;
    if (str_to_u64(pid, INT32_MAX, &value) < 0)
        return err_set(err, -EINVAL, "LISTEN_PID '%s' is not a number", pid);
    if ((pid_t)value != getpid())
        return 0; /* meant for another process */
    if (str_to_u64(count, INHERITED_MAX, &value) < 0)
        return err_set(err, -EINVAL, "LISTEN_FDS '%s': allowed: 0 to %d", count, INHERITED_MAX);
    return value > 0 ? inherit((size_t)value, err) : 0;
}

int fdstore_init(struct err *err)
{
    static const char *const variables[] = {"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS",
                                            "LISTEN_FDNAMES"};
    int r = open_socket(err);

    if (r == 0)
        r = take_inherited(err);
    for (size_t i = 0; i < ARRAY_SIZE(variables); i++)
        unsetenv(variables[i]);
    return r;
}

void fdstore_done(void)
{
    for (size_t i = 0; i < store.n; i++)
        closep(&store.fds[i].fd);
    free(store.fds);
    free(store.names);
    free(store.held);
    if (store.address_len > 0)
        close(store.socket);
    memset(&store, 0, sizeof(store));
}

bool fdstore_available(void)
{
    return store.address_len > 0;
}

/* -- what we were given -- */

/* The first that is not before name in their order: what begins with it follows without a gap. */
static size_t first_at(const char *name)
{
    size_t low = 0, high = store.n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(store.fds[mid].name, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

int fdstore_take(const char *name)
{
    for (size_t i = first_at(name); i < store.n && str_eq(store.fds[i].name, name); i++)
        if (store.fds[i].fd >= 0)
            return TAKE_FD(store.fds[i].fd);
    return -1;
}

void fdstore_each(const char *prefix, void (*fn)(const char *name, int fd, void *arg), void *arg)
{
    for (size_t i = first_at(prefix); i < store.n && str_starts(store.fds[i].name, prefix); i++)
        if (store.fds[i].fd >= 0)
            fn(store.fds[i].name, store.fds[i].fd, arg);
}

/* -- what we give -- */

static int check_name(const char *name, struct err *err)
{
    size_t len = strlen(name);

    if (len == 0 || len > FDSTORE_NAME_MAX ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != len)
        return err_set(err, -EINVAL, "descriptor name '%.40s': allowed: 1 to %d of a-z 0-9 . -",
                       name, FDSTORE_NAME_MAX);
    return 0;
}

/* fd may be -1. */
static int send_message(const char *text, int fd, struct err *err)
{
    union {
        struct cmsghdr align;
        char data[CMSG_SPACE(sizeof(int))];
    } control = {.data = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr msg = {.msg_name = &store.address,
                         .msg_namelen = store.address_len,
                         .msg_iov = &iov,
                         .msg_iovlen = 1};
    ssize_t n;

    if (!fdstore_available())
        return 0;
    if (fd >= 0) {
        msg.msg_control = control.data;
        msg.msg_controllen = sizeof(control.data);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    do
        n = sendmsg(store.socket, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_errno(err, -errno, "descriptor store: sending");
    return 0;
}

int fdstore_add(const char *name, int fd, struct err *err)
{
    char text[64];
    int r = check_name(name, err);

    if (r < 0)
        return r;
    if (fd < 0)
        return err_set(err, -EBADF, "descriptor store: no descriptor for '%s'", name);
    snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0\n", name);
    r = send_message(text, fd, err);
    if (r == 0 && fdstore_available())
        held_add(name);
    return r;
}

int fdstore_remove(const char *name, struct err *err)
{
    char text[64];
    int r = check_name(name, err);

    if (r < 0)
        return r;
    snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s\n", name);
    r = send_message(text, -1, err);
    if (r == 0)
        held_remove(name);
    return r;
}

int fdstore_notify(const char *state, struct err *err)
{
    return send_message(state, -1, err);
}
