/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread, one poll: the child's messages, a signalfd (all signals that matter are blocked, so
 * nothing is interrupted and pid 1's special dispositions do not apply), and other keepers. Memory
 * is taken at the start and never after.
 *
 * A message is looked at in the queue, handed to the peers and applied, and only then taken out: who
 * holds the queue too (handover.c) finds it there if we die in between. Any process of root or of
 * our user may send, not only the child: the command may be a script that runs the real program.
 * When the child dies the queue is read before anything else: what it sent just before its death
 * is its successor's.
 *
 * The end. Asked to end (SIGTERM, SIGINT): with the child, with its status (128 + n for a signal).
 * Not asked: only while the store is empty, when the child exits with 0 (its work is finished, and
 * so is ours) or with a status that says "this will not get better" (usage, configuration, not
 * executable). Descriptors in the store are pods that live on them: then we go on trying. A command
 * that ends with FDSTORE_EXIT_HANDED_OVER has given its work to a successor under another keeper
 * (adaptor/takeover.c): then we end too, but as the first process of a container we wait to be asked:
 * else it would be started again, and the old version take the work back from the new one.
 */
#include "keeper/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "relay/fdstore.h"

#define FIRST_FD 3
#define MS 1000000 /* in ns */

int keeper_lift(const struct keeper *k, int fd)
{
    int lifted = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD + (int)k->store.max);
    closep(&fd);
    return lifted;
}

static bool is_final(int status)
{
    return status == 0 || status == 2 || status == 64 || status == 78 || /* done, usage, EX_... */
           status == FDTABLE_NOT_EXECUTABLE || status == FDTABLE_NOT_FOUND ||
           status == FDSTORE_EXIT_HANDED_OVER;
}

static void start(struct keeper *k)
{
    pid_t pid = fdtable_exec(&k->store, k->config->argv, &k->old_mask);
    k->started_at = clock_mono_ms();
    k->restart_at = k->started_at + k->config->restart_max / MS; /* for want of a process */
    k->pid = MAX(pid, 0);
    log_info("started %s as process %d with %zu descriptors%s%s", k->config->argv[0], (int)pid,
             k->store.n, pid < 0 ? ": " : "", pid < 0 ? strerror(-pid) : "");
}

/* Short pauses: the shim gives a silent agent 30 s. Growing: who cannot start burns a processor. */
static void plan_restart(struct keeper *k, pid_t pid, int wstatus)
{
    int64_t now = clock_mono_ms();
    if (now - k->started_at >= k->config->settled / MS)
        k->pause_ms = k->config->restart_min / MS;
    k->restart_at = now + k->pause_ms;
    log_warn("%s (process %d) %s %d after %lld ms; %zu descriptors kept; again in %lld ms",
             k->config->argv[0], (int)pid,
             WIFSIGNALED(wstatus) ? "was killed by signal" : "exited with status",
             WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) : WEXITSTATUS(wstatus),
             (long long)(now - k->started_at), k->store.n, (long long)k->pause_ms);
    k->pause_ms = MAX(MIN(k->pause_ms * 2, k->config->restart_max / MS), 1);
}

static void child_died(struct keeper *k, pid_t pid, int wstatus)
{
    int status = WIFSIGNALED(wstatus) ? 128 + WTERMSIG(wstatus) : WEXITSTATUS(wstatus);
    keeper_drain(k, k->notify_fd, NULL);
    k->pid = 0;
    if (k->asked_to_end ||
        (k->store.n == 0 && k->phase == PHASE_SERVING && WIFEXITED(wstatus) && is_final(status))) {
        log_info("%s ended with status %d", k->config->argv[0], status);
        k->ended = k->asked_to_end || status != FDSTORE_EXIT_HANDED_OVER;
        k->status = k->status ? k->status : status;
        if (!k->ended)
            keeper_retire(k);
    } else if (!handover_child_died(k)) {
        plan_restart(k, pid, wstatus);
    }
}

static void handle_signal(struct keeper *k, const struct signalfd_siginfo *info)
{
    int sig = (int)info->ssi_signo, wstatus;
    pid_t pid;
    while (sig == SIGCHLD && (pid = waitpid(-1, &wstatus, WNOHANG)) > 0)
        if (pid == k->pid)
            child_died(k, pid, wstatus);
    if (sig == SIGTERM || sig == SIGINT) {
        k->asked_to_end = true;
        k->ended = k->ended || k->pid == 0;
    }
    /* From a terminal it went to the whole process group, the child included. */
    if (sig != SIGCHLD && k->pid > 0 && info->ssi_code != SI_KERNEL)
        kill(k->pid, sig);
}

void keeper_retire(struct keeper *k)
{
    bool rests = getpid() == 1;
    k->phase = PHASE_RETIRED;
    k->ended = !rests;
    k->status = rests ? 0 : k->status;
    for (size_t i = 0; i < ARRAY_SIZE(k->peers); i++)
        handover_forget(&k->peers[i]);
    close(TAKE_FD(k->listen_fd));
    fdtable_done(&k->store);
    log_info("the work goes on elsewhere%s", rests ? "; waiting to be ended" : "");
}

void keeper_drain(struct keeper *k, int queue, const struct peer *from)
{
    struct fdpass m;
    for (; fdpass_receive(queue, MSG_PEEK | MSG_DONTWAIT, &m) >= 0; fdpass_skip(queue)) {
        struct err err = ERR_INIT;
        int r = fdpass_check(&m, &err);
        if (r == 0 && !from && fdpass_has(&m, "READY"))
            handover_settled(k);
        if (r == 0) {
            handover_relay(k, from, &m);
            r = fdtable_apply(&k->store, &m, &err);
        }
        fdpass_close(&m);
        if (r < 0)
            log_warn("message of process %d refused: %s", (int)m.sender.pid, err_text(&err));
    }
}

static void step(struct keeper *k)
{
    bool room =
        k->config->argv ? k->phase == PHASE_SERVING && k->peers[0].fd < 0 : k->peers[1].fd < 0;
    bool idle = k->config->argv && k->pid == 0 && k->phase <= PHASE_TRYING;
    struct pollfd fds[] = {{.fd = k->signal_fd, .events = POLLIN},
                           {.fd = k->notify_fd, .events = POLLIN},
                           {.fd = k->peers[0].fd, .events = POLLIN},
                           {.fd = k->peers[1].fd, .events = POLLIN},
                           {.fd = room ? k->listen_fd : -1, .events = POLLIN}};
    struct signalfd_siginfo info;
    int64_t now = clock_mono_ms(), until = INT32_MAX + now;
    if (idle && k->restart_at <= now) {
        start(k);
        return;
    }
    until = MIN(until, idle ? k->restart_at : until);
    until = MIN(until, k->deadline ? k->deadline : until);
    poll(fds, ARRAY_SIZE(fds), (int)MAX(until - now, 0));
    keeper_drain(k, k->notify_fd, NULL);
    while (!k->ended && read(k->signal_fd, &info, sizeof(info)) == sizeof(info))
        handle_signal(k, &info);
    for (size_t i = 0; i < ARRAY_SIZE(k->peers) && !k->ended; i++)
        if (fds[2 + i].revents && k->peers[i].fd == fds[2 + i].fd)
            handover_receive(k, &k->peers[i]);
    if (fds[4].revents && !k->ended && k->listen_fd >= 0)
        handover_accept(k);
    if (k->deadline && k->deadline <= clock_mono_ms() && !k->ended)
        handover_late(k);
}

static int block_signals(struct keeper *k, struct err *err)
{
    static const int signals[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t set;
    sigemptyset(&set);
    for (const int *sig = signals; sig < signals + ARRAY_SIZE(signals); sig++)
        sigaddset(&set, *sig);
    sigprocmask(SIG_BLOCK, &set, &k->old_mask);
    /* Whoever started us may have ignored SIGCHLD; the kernel would then reap for us. */
    signal(SIGCHLD, SIG_DFL);
    k->signal_fd = keeper_lift(k, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    return k->signal_fd < 0 ? err_errno(err, -errno, "signalfd") : 0;
}

static int init(struct keeper *k, struct err *err)
{
    /* 0 to 2 are there from now on, nothing else is. */
    while (open("/dev/null", O_RDWR) >= 0 && fcntl(FIRST_FD, F_GETFD) < 0)
        ;
    close_range(FIRST_FD, ~0U, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* as pid 1, who reaps what is not its child too */
    fdtable_init(&k->store, FIRST_FD, fdtable_room());
    int fd = -1, r = fdpass_open_queue(k->dir, k->path, &fd, err);
    k->notify_fd = keeper_lift(k, fd);
    fdtable_exec_init(k->path);
    r = r < 0 ? r : block_signals(k, err);
    return r < 0 || !k->config->socket[0] ? r : handover_init(k, err);
}

int keeper_run(const struct keeper_config *config, int *ret_status, struct err *err)
{
    struct keeper k = {.config = config, .pause_ms = config->restart_min / MS};
    k.signal_fd = k.listen_fd = k.notify_fd = -1;
    k.peers[0] = k.peers[1] = NO_PEER;
    int r = init(&k, err);
    if (r == 0 && !config->argv)
        keeper_confine();
    while (r == 0 && !k.ended)
        step(&k);
    *ret_status = k.status;
    unlink(k.path);
    rmdir(k.dir);
    fdtable_done(&k.store);
    return r;
}
