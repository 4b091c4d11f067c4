/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over: a daemon that finds another one serving asks it to hand over (design.md 5). To the pods
 * it is a crash with courtesy: the new process recovers from records, rings and descriptors as after
 * any death, only that the old one is still there and takes its work back if the new one fails.
 *
 *     new                                     old
 *     formats checked; lock or token busy
 *     ASK (how old is my keeper?)       -->   stops: its loop stands still in the answer to this
 *                                       <--   DESCRIPTORS (names; up to BATCH_MAX), ...
 *     HELD                              -->   one acknowledgement for each batch
 *                                       <--   ALL
 *     into my store, the token last
 *     STORED                            -->   leaves the pods' networks alone, unlocks
 *                                       <--   UNLOCKED
 *     locks, raises the generation, recovers, dials, serves
 *     SERVING                           -->   empties its store, the token first; exits with 79
 *
 * While the old one stands still it touches no ring, no record and no call, because all of them
 * belong to its loop, which is inside on_readable. Its jobs go on: what they make is found again by
 * its token (start.c), as after a crash, or they report to the loop if it goes on after all. Only
 * those that change a pod's network have to wait (podnet.c): the new one does the same at once.
 *
 * Whoever dies, one of them serves afterwards, and has every descriptor (tenure.c has the reasons):
 *
 *   the new one dies before UNLOCKED   the old one goes on where it was; it has never let go
 *   ... before it raised the generation the old one takes the lock back and goes on where it was
 *   ... after that                     it has written: the old one ends with 1, both keepers start
 *                                      theirs again, and the lock decides; both have everything
 *   the old one dies before STORED     the new one empties its store and ends with 1; its keeper
 *                                      starts it again, and so does the old one's keeper the old one
 *   ... after that                     the new one has everything and takes the lock
 *   both                               whoever has the token and is first
 *
 * An old one that its keeper starts again meanwhile finds the new one serving and asks in its turn.
 * Of two the one whose keeper is younger goes on (FDSTORE_BORN), so it is refused for good: it empties
 * its store and ends with 79. By age and not by version, so that a rollback is a take-over too.
 *
 * No wait is without end, and no timeout breaks the lock: an old one that waits in vain for an
 * acknowledgement goes on; one that has unlocked and hears nothing more ends with 1 and leaves the
 * rest to its keeper. A new one that waits in vain ends with 1 as well.
 *
 * One keeper for both (FDSTORE_BORN equal): the descriptors are in its store already; the new one
 * adds none, the old one removes none. No keeper: the new one has what it was given, and that ends
 * with it, as it says when it starts.
 *
 * What is not handed over: connections in plain mode, whose other half is a TLS session of this
 * process (docs/plain-mode.md), those of control.sock, and calls on connections that rpc.c has made
 * ordinary. A version of the daemon that knows no take-over has no socket here: then the new one
 * ends with 1 until the other is gone.
 *
 * The socket `.takeover` lies in the state directory, so that both find it whatever else they were
 * told; only who has the lock binds it. What keeps it from being bound or a successor from being
 * accepted (no descriptor left, a full disk) may pass, so it is tried again until it is done: with
 * growing pauses, and said once. Messages are structs: both ends are on one machine.
 */
#include "adaptor/takeover.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "adaptor/podnet.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "relay/fdpass.h"

#define SOCKET_FILE ".takeover"
#define BATCH_MAX 200          /* descriptors of one message; the kernel allows 253 */
#define DESCRIPTORS_MAX 100000 /* that a successor takes */
#ifndef HASTE
#define HASTE 1 /* a test's daemon has less patience */
#endif
#define ASK_MS 500             /* for what a successor sends with its connect */
#define STEP_MS (4000 / HASTE) /* for an acknowledgement; storing some thousands is the longest */
#define SERVING_MS (10000 / HASTE) /* for a recovery; the shim's patience is 30 s */
#define PAUSE_MS (2000 / HASTE)    /* for changes of pods' networks; less than STEP_MS */
#define RESUME_MS (2000 / HASTE)   /* for the kernel to take the lock from a dead successor */
#define AGAIN_MIN_MS 100           /* between tries to listen */
#define AGAIN_MAX_MS 10000
#define VERSION 1

enum message_type { ASK = 1, REFUSED, DESCRIPTORS, HELD, ALL, STORED, UNLOCKED, SERVING };

static const char *const message_names[] = {"",    "ask",    "refused",  "descriptors", "held",
                                            "all", "stored", "unlocked", "serving"};

struct message {
    char magic[8];
    uint32_t type;
    uint32_t n;       /* DESCRIPTORS: of names; ALL: of all descriptors */
    uint32_t version; /* ASK: highest that the sender knows; what follows is version 1 */
    uint32_t shared;  /* ASK: born is its keeper's; DESCRIPTORS, ALL: one keeper for both */
    uint32_t final;   /* REFUSED: for good */
    uint32_t pid;     /* of the sender, as it sees itself: for logs */
    int64_t born_ns;  /* ASK */
    char build[32];   /* of the sender, for logs */
    uint64_t reserved[4];
    union {
        char text[ERR_TEXT_MAX]; /* REFUSED */
        char names[BATCH_MAX][FDSTORE_NAME_MAX + 1];
    };
};

#define MAGIC "PPTAKE"
#define HEADER offsetof(struct message, text)

struct takeover {
    uv_loop_t *loop;
    struct tenure *tenure;
    struct job_pool *jobs; /* of the daemon, to be left alone at the end */
    int listen_fd, predecessor;
    uv_poll_t *listener, *waiting;
    uv_timer_t *again;
    uint64_t again_ms; /* the next pause; 0: nothing is wrong */
};

/* -- messages -- */

static struct message *message_new(enum message_type type)
{
    struct message *m = xcalloc(1, sizeof(*m));
    *m = (struct message){
        .magic = MAGIC, .type = type, .version = VERSION, .pid = (uint32_t)getpid()};
    snprintf(m->build, sizeof(m->build), "%s", PP_VERSION);
    return m;
}

static int send_message(int fd, const struct message *m, const int *fds, size_t n, struct err *err)
{
    int r = fdpass_send(fd, (const char *)m, sizeof(*m), fds, n);
    return r < 0 ? err_errno(err, r, "take-over: sending '%s'", message_names[m->type]) : 0;
}

static int say(int fd, enum message_type type, struct err *err)
{
    _cleanup_free_ struct message *m = message_new(type);
    return send_message(fd, m, NULL, 0, err);
}

static void close_all(const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
}

static size_t received_fds(struct msghdr *msg, int fds[BATCH_MAX])
{
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
        return 0;
    size_t n = MIN((c->cmsg_len - CMSG_LEN(0)) / sizeof(int), (size_t)BATCH_MAX);
    memcpy(fds, CMSG_DATA(c), n * sizeof(int));
    return n;
}

static int set_patience(int fd, int64_t ms)
{
    struct timeval limit = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
                   setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0
               ? -errno
               : 0;
}

static int check_message(const struct message *m, ssize_t len, int flags, size_t n_fds,
                         struct err *err)
{
    size_t want = m->type == DESCRIPTORS ? m->n : 0;
    if (flags & MSG_CTRUNC)
        return err_set(err, -EMFILE,
                       "take-over: no room for the descriptors: raise the limit of "
                       "open files (RLIMIT_NOFILE)");
    if (len < (ssize_t)HEADER || memcmp(m->magic, MAGIC, sizeof(MAGIC)) != 0 || m->type < ASK ||
        m->type > SERVING || n_fds != want)
        return err_set(err, -EPROTO, "take-over: a malformed message of %zd bytes", len);
    return 0;
}

/* The next message within ms; fds: those that came with it, the caller's to close. -ECONNRESET: the
 * other one is gone. -EAGAIN: it says nothing. */
static int receive(int fd, int64_t ms, struct message *m, int fds[BATCH_MAX], struct err *err)
{
    union {
        struct cmsghdr align;
        char data[CMSG_SPACE(BATCH_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.data,
                         .msg_controllen = sizeof(control)};
    ssize_t n;

    memset(m, 0, sizeof(*m));
    set_patience(fd, ms);
    do
        n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return err_set(err, -ECONNRESET, "take-over: the other daemon is gone");
    if (n < 0)
        return err_errno(err, -errno, "take-over: waiting for the other daemon");
    size_t n_fds = received_fds(&msg, fds);
    int r = check_message(m, n, msg.msg_flags, n_fds, err);
    m->text[sizeof(m->text) - 1] = '\0';
    m->build[sizeof(m->build) - 1] = '\0';
    if (r < 0)
        close_all(fds, n_fds);
    return r;
}

/* -REMOTE: anything but this message. */
static int expect(int fd, enum message_type type, int64_t ms, struct err *err)
{
    _cleanup_free_ struct message *m = xcalloc(1, sizeof(*m));
    int fds[BATCH_MAX];
    int r = receive(fd, ms, m, fds, err);
    if (r < 0)
        return r;
    if (m->type == DESCRIPTORS)
        close_all(fds, m->n);
    return m->type == type ? 0
                           : err_set(err, -EPROTO, "take-over: '%s' instead of '%s'",
                                     message_names[m->type], message_names[type]);
}

/* -- the new one -- */

struct offer {
    struct fdstore_entry *all;
    size_t n;
    bool same_store;
    bool stored; /* all of it is in our store */
};

static void offer_done(struct offer *o)
{
    for (size_t i = 0; i < o->n; i++)
        closep(&o->all[i].fd);
    free(o->all);
    *o = (struct offer){.same_store = o->same_store, .stored = o->stored};
}

static int add_batch(struct offer *o, const struct message *m, const int *fds, struct err *err)
{
    if (o->n + m->n > DESCRIPTORS_MAX) {
        close_all(fds, m->n);
        return err_set(err, -EMFILE, "take-over: more than %d descriptors", DESCRIPTORS_MAX);
    }
    o->all = xrealloc(o->all, (o->n + m->n) * sizeof(*o->all));
    for (size_t i = 0; i < m->n; i++) {
        struct fdstore_entry *e = &o->all[o->n++];
        e->fd = fds[i];
        snprintf(e->name, sizeof(e->name), "%.*s", FDSTORE_NAME_MAX, m->names[i]);
    }
    return 0;
}

/* All are there: into our store. */
static int keep_offer(struct offer *o, const struct message *m, struct err *err)
{
    if (m->n != o->n)
        return err_set(err, -EPROTO, "take-over: %zu descriptors instead of %u", o->n, m->n);
    o->same_store = m->shared;
    size_t n = o->n;
    o->n = 0; /* the store's now, whatever comes of it */
    int r = fdstore_adopt(o->all, n, TENURE_TOKEN, o->same_store, err);
    o->stored = r == 0;
    return r;
}

static int refused(const struct message *m, struct err *err)
{
    return err_set(err, m->final ? -EALREADY : -EBUSY, "take-over: process %u (version %s): %s",
                   m->pid, m->build, m->text);
}

/* Until the old one has unlocked. -ECONNRESET with o->stored: it has died, and that is as good. */
static int take_offer(int fd, struct offer *o, struct err *err)
{
    _cleanup_free_ struct message *m = xcalloc(1, sizeof(*m));
    for (;;) {
        int fds[BATCH_MAX];
        int r = receive(fd, STEP_MS, m, fds, err);
        if (r < 0)
            return r;
        switch ((enum message_type)m->type) {
        case DESCRIPTORS:
            r = add_batch(o, m, fds, err);
            if (r == 0)
                r = say(fd, HELD, err);
            break;
        case ALL:
            r = keep_offer(o, m, err);
            if (r == 0)
                r = say(fd, STORED, err);
            break;
        case UNLOCKED:
            return 0;
        case REFUSED:
            return refused(m, err);
        default:
            return err_set(err, -EPROTO, "take-over: an unexpected '%s'", message_names[m->type]);
        }
        if (r < 0)
            return r;
    }
}

static int address_of(const struct tenure *t, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (str_format(ret->sun_path, sizeof(ret->sun_path), "%s/" SOCKET_FILE, t->path) < 0)
        return err_set(err, -ENAMETOOLONG, "-pods-dir %s is too long for a socket", t->path);
    return 0;
}

/* busy: why we ask; the answer of who cannot. */
static int ask(const struct tenure *t, const struct err *busy, int *ret, struct err *err)
{
    _cleanup_free_ struct message *m = message_new(ASK);
    struct sockaddr_un address;
    bool shared;
    m->born_ns = fdstore_born(&shared);
    m->shared = shared;
    int r = address_of(t, &address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || set_patience(fd, STEP_MS) < 0)
        return err_errno(err, -errno, "take-over: making a socket");
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        return err_set(err, busy->code, "%s", busy->text);
    r = send_message(fd, m, NULL, 0, err);
    if (r == 0)
        *ret = TAKE_FD(fd);
    return r;
}

static int take_over(struct takeover *o, const struct err *busy, struct err *err)
{
    struct offer offer = {.n = 0};
    struct err local = ERR_INIT;
    bool shared;
    fdstore_born(&shared);
    int r = ask(o->tenure, busy, &o->predecessor, &local);
    if (r == 0) {
        log_info("another daemon serves %s: asking it to hand over", o->tenure->path);
        r = take_offer(o->predecessor, &offer, &local);
    }
    if (r == 0 || (r == -ECONNRESET && offer.stored)) {
        err_clear(&local);
        r = tenure_begin(o->tenure, &local);
    }
    offer_done(&offer);
    if (r < 0 && (offer.stored || r == -EALREADY))
        fdstore_disinherit(offer.same_store);
    return r < 0 ? err_set(err, r, "%s", local.text) : 0;
}

int takeover_begin(uv_loop_t *loop, struct job_pool *jobs, struct tenure *t, struct takeover **ret,
                   struct err *err)
{
    struct takeover *o = xcalloc(1, sizeof(*o));
    struct err busy = ERR_INIT;
    *o = (struct takeover){
        .loop = loop, .tenure = t, .jobs = jobs, .listen_fd = -1, .predecessor = -1};
    o->again = xcalloc(1, sizeof(*o->again));
    uv_timer_init(loop, o->again);
    o->again->data = o;
    int r = tenure_begin(t, &busy);
    if (r == -EBUSY)
        r = take_over(o, &busy, err);
    else if (r < 0)
        err_set(err, r, "%s", busy.text);
    if (r < 0) {
        takeover_free(o);
        return r;
    }
    *ret = o;
    return 0;
}

/* -- the old one -- */

struct everything {
    struct fdstore_entry *all;
    size_t n;
};

static void note_held(const char *name, int fd, void *arg)
{
    struct everything *e = arg;
    e->all = xrealloc(e->all, (e->n + 1) * sizeof(*e->all));
    e->all[e->n] = (struct fdstore_entry){.fd = fd};
    snprintf(e->all[e->n++].name, sizeof(e->all->name), "%s", name);
}

static int send_batch(int fd, const struct fdstore_entry *from, size_t n, struct err *err)
{
    _cleanup_free_ struct message *m = message_new(DESCRIPTORS);
    int fds[BATCH_MAX];
    m->n = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        fds[i] = from[i].fd;
        memcpy(m->names[i], from[i].name, sizeof(m->names[i]));
    }
    int r = send_message(fd, m, fds, n, err);
    return r < 0 ? r : expect(fd, HELD, STEP_MS, err);
}

static int send_all(int fd, const struct everything *e, bool same_store, struct err *err)
{
    _cleanup_free_ struct message *m = message_new(ALL);
    int r = 0;
    for (size_t at = 0, n; r == 0 && at < e->n; at += n) {
        n = MIN(e->n - at, (size_t)BATCH_MAX);
        r = send_batch(fd, e->all + at, n, err);
    }
    m->n = (uint32_t)e->n;
    m->shared = same_store;
    if (r == 0)
        r = send_message(fd, m, NULL, 0, err);
    return r < 0 ? r : expect(fd, STORED, STEP_MS, err);
}

static void listen_begin(struct takeover *o);

/* The successor has failed when it had the lock, or might have had it. */
static void take_back(struct takeover *o, const struct err *why)
{
    struct err err = ERR_INIT;
    if (tenure_resume(o->tenure, RESUME_MS, &err) < 0) {
        log_error("%s; %s: ending, to recover as after a crash", why->text, err.text);
        _exit(EXIT_FAILURE);
    }
    listen_begin(o);
}

/* The token first: without it the rest proves nothing. */
_noreturn_ static void end(struct takeover *o, const struct everything *e, bool same_store)
{
    if (!same_store) {
        fdstore_remove(o->tenure->token, NULL);
        for (size_t i = 0; i < e->n; i++)
            fdstore_remove(e->all[i].name, NULL);
    }
    log_info("handed %zu descriptors over; the successor serves: ending", e->n);
    job_pool_abandon(o->jobs);
    _exit(FDSTORE_EXIT_HANDED_OVER);
}

/* The loop stands still meanwhile. Returns when the successor has failed. */
static int hand_over(struct takeover *o, int fd, bool same_store, struct err *err)
{
    struct everything e = {.n = 0};
    struct err local = ERR_INIT;
    bool paused = false, unlocked = false;
    fdstore_each_held(note_held, &e);
    int r = send_all(fd, &e, same_store, &local);
    if (r == 0) {
        r = podnet_pause(PAUSE_MS, &local);
        paused = r == 0;
    }
    if (r == 0) {
        unlocked = true;
        tenure_pause(o->tenure);
        r = say(fd, UNLOCKED, &local);
    }
    if (r == 0)
        r = expect(fd, SERVING, SERVING_MS, &local);
    if (r == 0)
        end(o, &e, same_store);
    free(e.all);
    if (unlocked)
        take_back(o, &local);
    if (paused)
        podnet_resume();
    err_set(err, r, "%s", local.text);
    /* What its keeper was given is not the whole any more. */
    local = ERR_INIT;
    if (!same_store && tenure_renew(o->tenure, &local) < 0)
        log_error("%s", local.text);
    return r;
}

static void refuse(int fd, bool final, const char *why)
{
    _cleanup_free_ struct message *m = message_new(REFUSED);
    m->final = final;
    snprintf(m->text, sizeof(m->text), "%s", why);
    send_message(fd, m, NULL, 0, NULL);
    log_warn("take-over refused: %s", why);
}

static void answer(struct takeover *o, int fd)
{
    _cleanup_free_ struct message *m = xcalloc(1, sizeof(*m));
    struct err err = ERR_INIT;
    int fds[BATCH_MAX];
    bool shared;
    int64_t born = fdstore_born(&shared);
    int r = receive(fd, ASK_MS, m, fds, &err);
    if (r == 0 && m->type != ASK) {
        close_all(fds, m->type == DESCRIPTORS ? m->n : 0);
        r = err_set(&err, -EPROTO, "take-over: '%s' instead of 'ask'", message_names[m->type]);
    }
    if (r < 0) {
        log_warn("%s", err_text(&err));
    } else if (m->born_ns < born) {
        refuse(fd, true, "a younger keeper's daemon serves these pods");
    } else if (o->predecessor >= 0) {
        refuse(fd, false, "it is itself taking over");
    } else {
        int64_t start = clock_mono_ms();
        log_info("process %u (version %s) asks to take over: standing still", m->pid, m->build);
        r = hand_over(o, fd, shared && m->shared && m->born_ns == born, &err);
        log_error("the take-over has failed after %lld ms, going on: %s",
                  (long long)(clock_mono_ms() - start), err_text(&err));
    }
}

static bool peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

/* -- socket and handles -- */

static void handle_closed(uv_handle_t *handle)
{
    free(handle);
}

static void poll_end(uv_poll_t **poll, int *fd)
{
    if (*poll)
        uv_close((uv_handle_t *)TAKE_PTR(*poll), handle_closed);
    closep(fd);
    *fd = -1;
}

static int poll_begin(struct takeover *o, int fd, uv_poll_cb fn, uv_poll_t **ret, struct err *err)
{
    uv_poll_t *poll = xcalloc(1, sizeof(*poll));
    int r = uv_poll_init(o->loop, poll, fd);
    if (r < 0) {
        free(poll);
        return err_set(err, r, "take-over: watching a socket: %s", uv_strerror(r));
    }
    poll->data = o;
    uv_poll_start(poll, UV_READABLE, fn);
    *ret = poll;
    return 0;
}

static void on_readable(uv_poll_t *poll, int status, int events);

static void on_again(uv_timer_t *timer)
{
    struct takeover *o = timer->data;
    if (o->listener)
        uv_poll_start(o->listener, UV_READABLE, on_readable);
    else
        listen_begin(o);
}

/* Meanwhile the socket is not polled: a successor in its backlog makes it ready all the time. */
static void listen_later(struct takeover *o, const struct err *why)
{
    if (o->again_ms == 0)
        log_warn("no successor can take over from this process for now: %s", why->text);
    o->again_ms = MIN(MAX(2 * o->again_ms, AGAIN_MIN_MS), AGAIN_MAX_MS);
    if (o->listener)
        uv_poll_stop(o->listener);
    uv_timer_start(o->again, on_again, o->again_ms, 0);
}

static void nothing_wrong(struct takeover *o)
{
    if (o->again_ms > 0)
        log_info("successors can take over again");
    o->again_ms = 0;
    uv_timer_stop(o->again);
}

static void on_readable(uv_poll_t *poll, int status _unused_, int events _unused_)
{
    struct takeover *o = poll->data;
    struct err err = ERR_INIT;
    _cleanup_close_ int fd = accept4(o->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) {
        nothing_wrong(o);
        if (peer_allowed(fd))
            answer(o, fd);
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        err_errno(&err, -errno, "take-over: accepting a successor");
        listen_later(o, &err);
    }
}

/* Under the lock: what has the name was another's, who is gone. */
static int bind_socket(struct takeover *o, struct err *err)
{
    struct sockaddr_un address;
    int r = address_of(o->tenure, &address, err);
    if (r < 0)
        return r;
    poll_end(&o->listener, &o->listen_fd);
    o->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(address.sun_path);
    if (o->listen_fd < 0 || fchmod(o->listen_fd, 0600) < 0 ||
        bind(o->listen_fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(o->listen_fd, 4) < 0)
        return err_errno(err, -errno, "take-over: binding %s", address.sun_path);
    return poll_begin(o, o->listen_fd, on_readable, &o->listener, err);
}

static void listen_begin(struct takeover *o)
{
    struct err err = ERR_INIT;
    if (bind_socket(o, &err) < 0)
        listen_later(o, &err);
    else
        nothing_wrong(o);
}

static void on_predecessor(uv_poll_t *poll, int status _unused_, int events _unused_)
{
    struct takeover *o = poll->data;
    log_info("the predecessor is gone");
    poll_end(&o->waiting, &o->predecessor);
}

void takeover_serve(struct takeover *o)
{
    listen_begin(o);
    if (o->predecessor < 0)
        return;
    /* Not to be told: dead or impatient, and either way it has let go. */
    say(o->predecessor, SERVING, NULL);
    if (poll_begin(o, o->predecessor, on_predecessor, &o->waiting, NULL) < 0)
        poll_end(&o->waiting, &o->predecessor);
}

void takeover_free(struct takeover *o)
{
    if (!o)
        return;
    poll_end(&o->listener, &o->listen_fd);
    poll_end(&o->waiting, &o->predecessor);
    uv_close((uv_handle_t *)o->again, handle_closed);
    free(o);
}
