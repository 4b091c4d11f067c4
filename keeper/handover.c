/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keepers meet at a socket: whoever comes first listens, the next connects. Each gives the other all
 * it keeps, in acknowledged batches. From then on they are peers: each change that one's child makes
 * goes to the other before it leaves the child's queue, and each holds the other's queue itself, to
 * read what is left in it when the other dies. So, whoever dies, the other has all descriptors.
 *
 * Successor and predecessor: the new one has all, says STOP, the old one ends its child and says
 * STOPPED; the new one starts its own, whose READY releases the old one. Until then the old one
 * stands by: when the new one dies, as it also does when its child does, it goes on as before.
 *
 * A store (a keeper without a command) gives all to the keeper that comes and remains its peer. When
 * a second one comes, it passes on what the two say, and tells who is left that he is (START). A
 * store that comes to a keeper, or to a store, which then ends, takes its place at the socket.
 *
 * What one side alone has when two meet, both keep: too much, which the command drops, is better than
 * too little. A peer that does not take or say what it must within TIMEOUT_MS is as good as dead.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "keeper/keeper.h"

#define TIMEOUT_MS 5000
#define STOP_MS 10000 /* for a child's own end; then it is killed */
#define PRECEDENCE_US 300000
#define RETRY_MS 200

static void say(const struct peer *p, const char *text)
{
    if (p->fd >= 0 && fdpass_say(p->fd, text) < 0)
        shutdown(p->fd, SHUT_RDWR); /* the loop finds it gone */
}

void handover_relay(struct keeper *k, const struct peer *from, const struct fdpass *m)
{
    for (struct peer *p = k->peers; p < k->peers + ARRAY_SIZE(k->peers); p++)
        if (p != from && p->fd >= 0 && fdpass_send(p->fd, m->text, m->len, m->fds, m->n_fds) < 0)
            shutdown(p->fd, SHUT_RDWR);
}

void handover_forget(struct peer *p)
{
    closep(&p->fd);
    closep(&p->queue);
    *p = NO_PEER;
}

static void become(struct keeper *k, enum phase phase, int64_t ms)
{
    k->phase = phase;
    k->deadline = ms ? clock_mono_ms() + ms : 0;
    k->restart_at = 0;
}

static int greet(const struct keeper *k, struct peer *p, struct err *err)
{
    const char *text = k->config->argv ? "HELLO=1" : "HELLO=1\nKEEPS=1";
    struct fdpass m;
    int r = fdpass_send(p->fd, text, strlen(text), &k->notify_fd, k->config->argv ? 1 : 0);
    r = r < 0 ? err_errno(err, r, "greeting") : fdpass_hear(p->fd, &m, "HELLO", err);
    if (r < 0)
        return r;
    p->keeps = fdpass_has(&m, "KEEPS");
    if (!fdpass_has(&m, "HELLO") || m.n_fds != (p->keeps ? 0 : 1))
        r = err_set(err, -EPROTO, "it does not speak version 1 of the protocol");
    else if (!p->keeps)
        p->queue = keeper_lift(k, TAKE_FD(m.fds[0]));
    fdpass_close(&m);
    return r;
}

/* Gives and takes; who has come begins. */
static int join(struct keeper *k, struct peer *p, int fd, bool comes, struct err *err)
{
    p->fd = keeper_lift(k, fd);
    int r = greet(k, p, err);
    for (int turn = 0; r == 0 && turn < 2; turn++)
        r = comes == (turn == 0) ? fdtable_give(&k->store, p->fd, TIMEOUT_MS, err)
                                 : fdtable_take(&k->store, p->fd, err);
    if (r < 0)
        handover_forget(p);
    return r < 0 ? err_wrap(err, r, "another keeper at %s", k->config->socket) : 0;
}

/* Listens, or becomes the peer of who does. */
static int meet(struct keeper *k, struct err *err)
{
    bool listens = false;
    int fd = -1, r = fdpass_meet(k->config->socket, TIMEOUT_MS, &fd, &listens, err);
    if (r == 0 && listens)
        k->listen_fd = keeper_lift(k, fd);
    return r < 0 || listens ? r : join(k, &k->peers[0], fd, true, err);
}

void handover_accept(struct keeper *k)
{
    struct peer *p = &k->peers[k->peers[0].fd < 0 ? 0 : 1];
    struct err err = ERR_INIT;
    int fd = -1, r = fdpass_accept(k->listen_fd, TIMEOUT_MS, &fd, &err);
    if (r < 0 || join(k, p, fd, false, &err) < 0)
        log_warn("%s", err_text(&err));
    else
        log_info("a %s has come; %zu descriptors", p->keeps ? "store" : "keeper", k->store.n);
    if (k->config->argv && p->keeps)
        close(TAKE_FD(k->listen_fd));
}

static void listen_now(struct keeper *k)
{
    struct err err = ERR_INIT;
    int fd = -1;
    if (k->listen_fd < 0 && fdpass_listen(k->config->socket, &fd, &err) < 0)
        log_error("no keeper can take over from this one: %s", err_text(&err));
    else if (k->listen_fd < 0)
        k->listen_fd = keeper_lift(k, fd);
}

int handover_init(struct keeper *k, struct err *err)
{
    int tries = 0, r;
    do { /* who has just died may be connected to for another moment */
        err_clear(err);
        usleep(tries ? RETRY_MS * 1000 : 0);
        r = meet(k, err);
    } while (r == -ECONNRESET && ++tries < 10);
    if (r < 0 || k->listen_fd >= 0)
        return r;
    log_info("%zu descriptors come from the keeper at %s", k->store.n, k->config->socket);
    if (k->config->argv) {
        become(k, PHASE_WAITING, 0);
        say(&k->peers[0], "STOP=1");
    } else {
        listen_now(k);
        say(&k->peers[0], "READY=1");
    }
    return 0;
}

/* Our store is gone. Of two keepers in a hand-over the one whose child runs, or ran last, goes on. */
static void meet_again(struct keeper *k)
{
    struct err err = ERR_INIT;
    int r = 0;
    if (k->phase == PHASE_STOPPED)
        usleep(PRECEDENCE_US);
    if (k->phase != PHASE_WAITING)
        r = meet(k, &err);
    if (r < 0)
        log_warn("no store, trying again: %s", err_text(&err));
    if (k->phase == PHASE_SERVING || k->listen_fd >= 0) {
        become(k, PHASE_SERVING, r < 0 ? RETRY_MS : 0);
        return;
    }
    k->asked_to_end = true;
    k->status = EXIT_FAILURE;
    k->ended = k->pid <= 0 || kill(k->pid, SIGKILL) < 0;
}

static void stopped(struct keeper *k)
{
    log_info("%s has ended; the successor starts its own", k->config->argv[0]);
    become(k, PHASE_STOPPED, 0);
    say(&k->peers[0], "STOPPED=1");
}

static void obey(struct keeper *k, const struct fdpass *m)
{
    if (fdpass_has(m, "STOP") && k->phase == PHASE_SERVING) {
        log_info("a successor has all %zu descriptors: ending %s", k->store.n, k->config->argv[0]);
        become(k, PHASE_STOPPING, STOP_MS);
        if (k->pid > 0)
            kill(k->pid, SIGTERM);
        else
            stopped(k);
    } else if (fdpass_has(m, "STOPPED") && k->phase == PHASE_WAITING) {
        become(k, PHASE_TRYING, 0);
    } else if (fdpass_has(m, "START") && k->phase != PHASE_SERVING) {
        become(k, PHASE_SERVING, 0);
    }
}

static void lost(struct keeper *k, struct peer *p)
{
    bool kept = p->keeps;
    log_info("the %s at the other end is gone", kept ? "store" : "keeper");
    if (p->queue >= 0)
        keeper_drain(k, p->queue, p);
    handover_forget(p);
    if (!k->config->argv) {
        if (k->peers[0].fd < 0) {
            k->peers[0] = k->peers[1];
            k->peers[1] = NO_PEER;
        }
        say(&k->peers[0], "START=1");
    } else if (kept) {
        meet_again(k);
    } else {
        listen_now(k);
        become(k, PHASE_SERVING, 0);
    }
}

void handover_receive(struct keeper *k, struct peer *p)
{
    struct err err = ERR_INIT;
    struct fdpass m;
    int r = fdpass_receive(p->fd, MSG_DONTWAIT, &m);
    if (r == -EAGAIN)
        return;
    if (r <= 0 || m.cut) {
        fdpass_close(&m);
        lost(k, p);
        return;
    }
    bool ready = fdpass_has(&m, "READY");
    handover_relay(k, p, &m);
    if (k->config->argv)
        obey(k, &m);
    else if (fdpass_has(&m, "STOP") && k->peers[1].fd < 0)
        say(p, "START=1");
    if (fdtable_apply(&k->store, &m, &err) < 0)
        log_warn("a change is refused: %s", err_text(&err));
    if (ready && (k->config->argv ? k->phase == PHASE_STOPPED : p->keeps))
        keeper_retire(k);
}

bool handover_child_died(struct keeper *k)
{
    if (k->phase == PHASE_STOPPING) {
        stopped(k);
    } else if (k->phase == PHASE_TRYING && fdpass_say(k->peers[0].fd, "START=1") == 0) {
        log_error("%s ended before it was ready: back to the predecessor", k->config->argv[0]);
        k->status = EXIT_FAILURE;
        k->ended = true;
    }
    return k->ended || k->phase == PHASE_STOPPED;
}

void handover_settled(struct keeper *k)
{
    if (k->phase == PHASE_TRYING && !k->peers[0].keeps)
        listen_now(k);
    if (k->phase == PHASE_TRYING)
        become(k, PHASE_SERVING, 0);
}

void handover_late(struct keeper *k)
{
    k->deadline = 0;
    if (k->phase == PHASE_SERVING)
        meet_again(k);
    else if (k->pid > 0)
        kill(k->pid, SIGKILL);
}
