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
 * Inherited descriptors are kept sorted by name: a recovery takes some thousands of them. What was
 * taken of them and what was added, less what was removed, is what the store holds of ours ("held"):
 * at a take-over (adaptor/takeover.c) it goes to our successor, under the same names. So a
 * descriptor is removed from the store before it is closed.
 *
 * The successor "adopts": what it had inherited is of an earlier, failed attempt and goes; what it
 * was given is put into its own store, and is then as if it had been inherited. The one descriptor
 * that proves that the others are there is put in last: who dies before it has proved nothing.
 */
#include "relay/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "base/str.h"
#include "relay/fdpass.h"

#define FIRST_FD 3
#define INHERITED_MAX 65536 /* more than any store of ours keeps */
#define SEND_TIMEOUT_S 5

struct inherited {
    char name[FDSTORE_NAME_MAX + 1];
    int fd; /* -1: taken */
};

struct held {
    char name[FDSTORE_NAME_MAX + 1];
    int fd; /* its owner's */
};

static struct {
    int socket; /* valid when address_len > 0 */
    struct sockaddr_un address;
    socklen_t address_len;
    struct inherited *fds; /* by name */
    size_t n;
    struct held *held; /* in no order */
    size_t n_held, held_cap;
    int64_t born_ns;
    bool shared; /* our keeper is peerpod-keeper: it tells its age */
} store;

/* -- start -- */

static int open_socket(struct err *err)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct timeval limit = {.tv_sec = SEND_TIMEOUT_S};

    if (str_empty(path))
        return 0;
    int r = fdpass_address(path, &store.address, &store.address_len, err);
    if (r < 0)
        return err_wrap(err, r, "NOTIFY_SOCKET");
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
    const char *listed = getenv("LISTEN_FDNAMES");
    _cleanup_free_ char *names = xstrdup(listed ? listed : "");
    char *rest = names;

    store.fds = xcalloc(n, sizeof(*store.fds));
    for (size_t i = 0; i < n; i++) {
        int fd = FIRST_FD + (int)i;
        const char *name = strsep(&rest, ":");
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
            return err_errno(err, -errno, "LISTEN_FDS=%zu, but descriptor %d", n, fd);
        struct inherited *e = &store.fds[store.n++];
        e->fd = fd;
        snprintf(e->name, sizeof(e->name), "%.*s", FDSTORE_NAME_MAX, name ? name : "unknown");
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

static void note_age(void)
{
    const char *text = getenv(FDSTORE_BORN);
    struct timespec now;
    uint64_t born;

    store.shared = text && str_to_u64(text, INT64_MAX, &born) == 0;
    clock_gettime(CLOCK_BOOTTIME, &now);
    store.born_ns =
        store.shared ? (int64_t)born : (int64_t)now.tv_sec * 1000000000 + (int64_t)now.tv_nsec;
}

int fdstore_init(struct err *err)
{
    static const char *const variables[] = {"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS",
                                            "LISTEN_FDNAMES", FDSTORE_BORN};
    int r = open_socket(err);

    note_age();
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
    free(store.held);
    if (store.address_len > 0)
        close(store.socket);
    memset(&store, 0, sizeof(store));
}

bool fdstore_available(void)
{
    return store.address_len > 0;
}

int64_t fdstore_born(bool *ret_shared)
{
    *ret_shared = store.shared;
    return store.born_ns;
}

/* -- what the store holds of ours -- */

size_t fdstore_count(void)
{
    size_t n = store.n_held;
    for (size_t i = 0; i < store.n; i++)
        n += store.fds[i].fd >= 0;
    return n;
}

static void hold(const char *name, int fd)
{
    if (store.n_held == store.held_cap) {
        store.held_cap = MAX(2 * store.held_cap, (size_t)64);
        store.held = xrealloc(store.held, store.held_cap * sizeof(*store.held));
    }
    struct held *h = &store.held[store.n_held++];
    h->fd = fd;
    snprintf(h->name, sizeof(h->name), "%s", name);
}

static void let_go(const char *name)
{
    for (size_t i = store.n_held; i-- > 0;)
        if (str_eq(store.held[i].name, name))
            store.held[i] = store.held[--store.n_held];
}

void fdstore_each_held(void (*fn)(const char *name, int fd, void *arg), void *arg)
{
    for (size_t i = 0; i < store.n_held; i++)
        fn(store.held[i].name, store.held[i].fd, arg);
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
        if (store.fds[i].fd >= 0) {
            hold(name, store.fds[i].fd);
            return TAKE_FD(store.fds[i].fd);
        }
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
    if (!fdstore_available())
        return 0;
    int r =
        fdpass_send_to(store.socket, &store.address, store.address_len, text, &fd, fd >= 0 ? 1 : 0);
    return r < 0 ? err_errno(err, r, "descriptor store: sending") : 0;
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
    if (r == 0)
        hold(name, fd);
    return r;
}

int fdstore_remove(const char *name, struct err *err)
{
    char text[64];
    int r = check_name(name, err);

    if (r < 0)
        return r;
    let_go(name);
    snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s\n", name);
    return send_message(text, -1, err);
}

int fdstore_notify(const char *state, struct err *err)
{
    return send_message(state, -1, err);
}

/* -- take-over -- */

static void drop_inherited(bool forget)
{
    for (size_t i = 0; i < store.n; i++) {
        if (store.fds[i].fd < 0)
            continue;
        closep(&store.fds[i].fd);
        if (forget)
            fdstore_remove(store.fds[i].name, NULL);
    }
    free(TAKE_PTR(store.fds));
    store.n = 0;
}

void fdstore_disinherit(bool same_store)
{
    drop_inherited(!same_store);
}

int fdstore_adopt(const struct fdstore_entry *all, size_t n, const char *proof, bool same_store,
                  struct err *err)
{
    int r = 0;

    drop_inherited(!same_store);
    store.fds = xcalloc(n + 1, sizeof(*store.fds));
    for (size_t i = 0; i < n; i++) {
        struct inherited *e = &store.fds[store.n++];
        e->fd = all[i].fd;
        memcpy(e->name, all[i].name, sizeof(e->name));
    }
    for (int pass = 0; pass < 2 && !same_store; pass++)
        for (size_t i = 0; r == 0 && i < n; i++)
            if (str_starts(all[i].name, proof) == (pass == 1)) {
                r = fdstore_add(all[i].name, all[i].fd, err);
                let_go(all[i].name); /* held once somebody takes it */
            }
    qsort(store.fds, store.n, sizeof(*store.fds), by_name);
    if (r < 0)
        drop_inherited(true);
    return r;
}
