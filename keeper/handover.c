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
 * When the store dies the keeper that serves takes its place, until another store comes. A successor
 * that is not ready starts over then, behind its predecessor; so does whoever comes to a keeper from
 * elsewhere: who comes is the successor. Two that serve must not be peers: each one's command would
 * take the other one's descriptors away (adaptor/takeover.c empties the store it leaves).
 *
 * What one side alone has when two meet, both keep: too much, which the command drops, is better than
 * too little; so is what has come when a peer dies in the middle of it. A peer that does not take or
 * say what it must within TIMEOUT_MS is as good as dead.
 */
#include <errno.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "keeper/keeper.h"

#define TIMEOUT_MS 5000
#define STOP_MS 10000   /* for a child's own end; then it is killed */
#define PAUSE_US 300000 /* before another try, and for others to go first */

/* Our child is ready, there is no way back. */
static void settle(struct keeper *k)
{
    struct err err = ERR_INIT;
    k->phase = PHASE_SERVING;
    if (!IS_STORE(&k->peers[0]) && fdpass_listen(k->config->socket, &k->listen_fd, &err) < 0)
        log_error("no keeper can take over while the predecessor is there: %s", err_text(&err));
}

void handover_relay(struct keeper *k, const struct peer *from, const struct fdpass *m)
{
    if (!from && k->phase == PHASE_TRYING && fdpass_has(m, "READY"))
        settle(k);
    for (struct peer *p = k->peers; p < k->peers + ARRAY_SIZE(k->peers); p++)
        if (p != from && p->fd >= 0 && fdpass_send(p->fd, m->text, m->len, m->fds, m->n_fds) < 0)
            shutdown(p->fd, SHUT_RDWR); /* the loop finds it gone */
}

static void say(struct keeper *k, const char *text)
{
    struct fdpass m = {.len = strlen(text)};
    memcpy(m.text, text, m.len);
    handover_relay(k, NULL, &m);
}

void handover_forget(struct peer *p)
{
    closep(&p->fd);
    closep(&p->queue);
    *p = NO_PEER;
}

/* As a successor once more. What the child has sent is in its queue still. */
static void start_over(struct keeper *k, useconds_t pause)
{
    k->phase = PHASE_WAITING;
    if (k->pid > 0 && kill(k->pid, SIGKILL) == 0)
        waitpid(k->pid, NULL, 0);
    k->due = k->pid = 0;
    usleep(pause);
}

/* Takes fd. Who comes begins. */
static int join(struct keeper *k, struct peer *p, int fd, bool comes, struct err *err)
{
    int queue = k->config->argv ? k->notify_fd : -1;
    *p = (struct peer){.fd = fd, .queue = -1};
    int r = fdtable_exchange(&k->store, fd, comes, queue, &p->queue, err);
    if (r == 0)
        log_info("with a %s; %zu descriptors", IS_STORE(p) ? "store" : "keeper", k->store.n);
    else
        handover_forget(p);
    return r < 0 ? err_wrap(err, r, "another keeper at %s", k->config->socket) : 0;
}

/* Listens, or becomes the peer of who does; a store also takes its place. Who has taken ours while we
 * stood by was ready. */
void handover_meet(struct keeper *k)
{
    struct err err = ERR_INIT;
    struct peer *p = &k->peers[0];
    bool stood_by = k->phase == PHASE_STANDING_BY;
    int fd = -1, r = fdpass_meet(k->config->socket, TIMEOUT_MS, &fd, &k->listen_fd, &err);
    k->phase = stood_by || k->listen_fd >= 0 ? PHASE_SERVING : k->phase;
    if (k->listen_fd >= 0)
        return;
    r = r < 0 ? r : join(k, p, fd, true, &err);
    if (r == 0 && !k->config->argv)
        r = fdpass_listen(k->config->socket, &k->listen_fd, &err);
    if (r < 0) {
        log_error("%s", err_text(&err));
        handover_forget(p);
        /* Who has just died may be connected to for another moment. */
        k->ended = r != -ECONNRESET && r != -EPIPE && k->phase == PHASE_WAITING && k->store.n == 0;
        k->status = k->ended ? EXIT_FAILURE : 0;
        usleep(k->ended ? 0 : PAUSE_US);
        return;
    }
    if (k->config->argv && !IS_STORE(p) && !stood_by)
        start_over(k, 0);
    if (!k->config->argv)
        say(k, "READY=1");
    else if (k->phase == PHASE_WAITING)
        say(k, "STOP=1");
    else if (!IS_STORE(p))
        keeper_retire(k);
}

void handover_accept(struct keeper *k)
{
    struct peer *p = &k->peers[k->peers[0].fd < 0 ? 0 : 1];
    struct err err = ERR_INIT;
    int fd = -1, r = fdpass_accept(k->listen_fd, TIMEOUT_MS, &fd, &err);
    if (r < 0 || join(k, p, fd, false, &err) < 0)
        log_warn("%s", err_text(&err));
    else if (k->config->argv && IS_STORE(p))
        close(TAKE_FD(k->listen_fd));
}

static void stopped(struct keeper *k)
{
    log_info("%s has ended; the successor starts its own", k->config->argv[0]);
    k->due = 0;
    say(k, "STOPPED=1");
}

static void obey(struct keeper *k, const struct peer *p, const struct fdpass *m)
{
    bool stands_by = k->phase == PHASE_STANDING_BY && k->pid == 0;
    if (fdpass_has(m, "READY") && (k->config->argv ? stands_by : IS_STORE(p))) {
        keeper_retire(k);
    } else if (!k->config->argv) {
        if (fdpass_has(m, "STOP") && (k->peers[0].fd < 0 || k->peers[1].fd < 0))
            say(k, "START=1");
    } else if (fdpass_has(m, "STOP") && k->phase == PHASE_SERVING) {
        log_info("a successor has all %zu descriptors: ending %s", k->store.n, k->config->argv[0]);
        k->phase = PHASE_STANDING_BY;
        k->due = clock_mono_ms() + STOP_MS;
        if (k->pid > 0)
            kill(k->pid, SIGTERM);
        else
            stopped(k);
    } else if (fdpass_has(m, "STOPPED") && k->phase == PHASE_WAITING) {
        k->phase = PHASE_TRYING;
    } else if (fdpass_has(m, "START")) {
        k->phase = PHASE_SERVING;
    }
}

static void lost(struct keeper *k, struct peer *p)
{
    bool kept = IS_STORE(p), succeeds = k->phase == PHASE_WAITING || k->phase == PHASE_TRYING;
    log_info("the %s at the other end is gone", kept ? "store" : "keeper");
    keeper_drain(k, p->queue, p);
    handover_forget(p);
    if (!k->config->argv)
        say(k, "START=1");
    else if (kept && succeeds)
        start_over(k, PAUSE_US);
    else if (k->phase == PHASE_STANDING_BY)
        close(TAKE_FD(k->listen_fd));
    else
        k->phase = PHASE_SERVING;
}

void handover_receive(struct keeper *k, struct peer *p)
{
    struct err err = ERR_INIT;
    struct fdpass m;
    int r = fdpass_receive(p->fd, MSG_DONTWAIT, &m);
    if (r < 0) /* not gone: again, when the kernel has room */
        return;
    if (r == 0 || m.cut) {
        fdpass_close(&m);
        lost(k, p);
        return;
    }
    handover_relay(k, p, &m);
    if (fdtable_apply(&k->store, &m, &err) < 0)
        log_warn("a change is refused: %s", err_text(&err));
    obey(k, p, &m);
}

bool handover_child_died(struct keeper *k)
{
    if (k->phase == PHASE_STANDING_BY) {
        stopped(k);
    } else if (k->phase == PHASE_TRYING &&
               fdpass_send(k->peers[0].fd, "START=1", strlen("START=1"), NULL, 0) == 0) {
        log_error("%s ended before it was ready: back to the predecessor", k->config->argv[0]);
        k->status = EXIT_FAILURE;
        k->ended = true;
    }
    return k->ended || k->phase == PHASE_STANDING_BY;
}
