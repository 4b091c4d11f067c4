/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread, one poll: the child's messages, a signalfd (all signals that matter are blocked, so
 * nothing is interrupted and pid 1's special dispositions do not apply), and other keepers. Memory
 * is taken at the start and never after.
 *
 * A message is looked at in the queue, handed to the peers, and only then taken out: who holds the
 * queue too (handover.c) finds it there if we die in between. What is applied is what was taken out:
 * a peer that takes us for dead reads the queue as well, and each message must be with one of us at
 * least, until we meet again. Any process of root or of our user may send, not only the child: the
 * command may be a script that runs the real program.
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
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/harden.h"
#include "base/log.h"

#define MS 1000000 /* in ns */

/* Done; usage, EX_USAGE, EX_CONFIG; as a shell has it, not executable and not found. */
static bool is_final(int status)
{
    return status == 0 || status == 2 || status == 64 || status == 78 || status == 126 ||
           status == 127 || status == FDSTORE_EXIT_HANDED_OVER;
}

static void start(struct keeper *k)
{
    pid_t pid = fork();
    if (pid == 0)
        fdtable_exec(&k->store, k->config->argv, &k->old_mask);
    k->started_at = clock_mono_ms();
    k->pid = MAX(pid, 0);
    log_info("started %s as process %d with %zu descriptors%s%s", k->config->argv[0], (int)pid,
             k->store.n, pid < 0 ? ": " : "", pid < 0 ? strerror(errno) : "");
}

/* Short pauses: the shim gives a silent agent 30 s. Growing: who cannot start burns a processor. */
static void plan_restart(struct keeper *k, int status)
{
    int64_t now = clock_mono_ms(), lived = now - k->started_at;
    k->pause_ms = lived >= k->config->settled / MS ? 0 : k->pause_ms * 2;
    k->pause_ms = MAX(k->pause_ms, k->config->restart_min / MS);
    k->pause_ms = MAX(MIN(k->pause_ms, k->config->restart_max / MS), 1);
    k->due = now + k->pause_ms;
    log_warn("%s ended with status %d after %lld ms; %zu descriptors kept; again in %lld ms",
             k->config->argv[0], status, (long long)lived, k->store.n, (long long)k->pause_ms);
}

static void child_died(struct keeper *k, int wstatus)
{
    int status = WIFSIGNALED(wstatus) ? 128 + WTERMSIG(wstatus) : WEXITSTATUS(wstatus);
    keeper_drain(k, k->notify_fd, NULL);
    k->pid = 0;
    bool final = k->store.n == 0 && k->phase == PHASE_SERVING && is_final(status);
    if (k->asked_to_end || final) {
        log_info("%s ended with status %d", k->config->argv[0], status);
        k->ended = k->asked_to_end || status != FDSTORE_EXIT_HANDED_OVER;
        k->status = k->status ? k->status : status;
        if (!k->ended)
            keeper_retire(k);
    } else if (!handover_child_died(k)) {
        plan_restart(k, status);
    }
}

static void handle_signal(struct keeper *k, const struct signalfd_siginfo *info)
{
    int sig = (int)info->ssi_signo, wstatus;
    pid_t pid;
    while (sig == SIGCHLD && (pid = waitpid(-1, &wstatus, WNOHANG)) > 0)
        if (pid == k->pid)
            child_died(k, wstatus);
    k->asked_to_end |= sig == SIGTERM || sig == SIGINT;
    k->ended |= k->asked_to_end && k->pid == 0;
    /* From a terminal it went to the whole process group, the child included. */
    if (sig != SIGCHLD && k->pid > 0 && info->ssi_code != SI_KERNEL)
        kill(k->pid, sig);
}

void keeper_retire(struct keeper *k)
{
    k->phase = PHASE_RETIRED;
    k->ended = getpid() != 1;
    k->status = k->ended ? k->status : 0;
    for (size_t i = 0; i < ARRAY_SIZE(k->peers); i++)
        handover_forget(&k->peers[i]);
    close(TAKE_FD(k->listen_fd));
    fdtable_done(&k->store);
    log_info("the work goes on elsewhere%s", k->ended ? "" : "; waiting to be ended");
}

void keeper_drain(struct keeper *k, int queue, const struct peer *from)
{
    struct fdpass m;
    while (fdpass_receive(queue, MSG_PEEK | MSG_DONTWAIT, &m) >= 0) {
        struct err err = ERR_INIT;
        if (fdpass_check(&m, NULL) == 0)
            handover_relay(k, from, &m);
        fdpass_close(&m);
        if (fdpass_receive(queue, MSG_DONTWAIT, &m) >= 0 &&
            (fdpass_check(&m, &err) < 0 || fdtable_apply(&k->store, &m, &err) < 0))
            log_warn("message of process %d refused: %s", (int)m.sender.pid, err_text(&err));
        fdpass_close(&m);
    }
}

static void wait_and_handle(struct keeper *k, int64_t ms)
{
    bool room = k->peers[0].fd < 0 || (!k->config->argv && k->peers[1].fd < 0);
    struct pollfd fds[] = {{.fd = k->signal_fd, .events = POLLIN},
                           {.fd = k->notify_fd, .events = POLLIN},
                           {.fd = k->peers[0].fd, .events = POLLIN},
                           {.fd = k->peers[1].fd, .events = POLLIN},
                           {.fd = room ? k->listen_fd : -1, .events = POLLIN}};
    struct signalfd_siginfo info;
    poll(fds, ARRAY_SIZE(fds), (int)MIN(ms, INT32_MAX));
    keeper_drain(k, k->notify_fd, NULL);
    while (!k->ended && read(k->signal_fd, &info, sizeof(info)) == sizeof(info))
        handle_signal(k, &info);
    for (size_t i = 0; i < ARRAY_SIZE(k->peers); i++)
        if (!k->ended && fds[2 + i].revents && k->peers[i].fd == fds[2 + i].fd)
            handover_receive(k, &k->peers[i]);
    if (!k->ended && fds[4].revents && k->listen_fd >= 0)
        handover_accept(k);
}

static void step(struct keeper *k)
{
    bool may_start = k->config->argv && (k->phase == PHASE_TRYING || k->phase == PHASE_SERVING);
    bool timed = k->pid > 0 ? k->phase == PHASE_STANDING_BY : may_start;
    bool meets = k->config->socket[0] && k->phase != PHASE_RETIRED && k->listen_fd < 0;
    int64_t now = clock_mono_ms(), left = timed ? k->due - now : INT32_MAX;
    if (meets && k->peers[0].fd < 0 && k->peers[1].fd < 0) {
        handover_meet(k);
    } else if (left > 0) {
        wait_and_handle(k, left);
    } else {
        k->due = now + k->config->restart_max / MS; /* for want of a process */
        if (k->pid > 0)
            kill(k->pid, SIGKILL);
        else
            start(k);
    }
}

/* A store alone starts no program and needs no right: all it does is take descriptors, keep them and
 * give them. Not so a keeper with a command, who would inherit all of it but the loss of
 * capabilities: where it is root, exec gives them back. */
static void confine(bool alone)
{
    static const int calls[] = {SYS_wait4,      SYS_kcmp,     SYS_bind,    SYS_listen,
                                HARDEN_SOCKETS, HARDEN_FILES, HARDEN_OLDER};
    struct err caps = ERR_INIT, rest = ERR_INIT;
    if (geteuid() == 0 && harden_capabilities(0, !alone, &caps) < 0)
        log_warn("going on with more rights than are needed: %s", err_text(&caps));
    if (alone &&
        (harden_no_new_privs(&rest) < 0 || harden_syscalls(calls, ARRAY_SIZE(calls), &rest) < 0))
        log_warn("going on with more rights than are needed: %s", err_text(&rest));
}

static int init(struct keeper *k, struct err *err)
{
    static const int signals[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t set;
    /* 0 to 2 are there from now on, nothing else is. */
    while (open("/dev/null", O_RDWR) >= 0 && fcntl(FDTABLE_FIRST, F_GETFD) < 0)
        ;
    close_range(FDTABLE_FIRST, ~0U, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* as pid 1, who reaps what is not its child too */
    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaddset(&set, signals[i]);
    sigprocmask(SIG_BLOCK, &set, &k->old_mask);
    /* Whoever started us may have ignored SIGCHLD; the kernel would then reap for us. */
    signal(SIGCHLD, SIG_DFL);
    k->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (k->signal_fd < 0)
        return err_errno(err, -errno, "signalfd");
    fdtable_init(&k->store);
    int r = fdpass_open_queue(k->dir, k->path, &k->notify_fd, err);
    fdtable_exec_init(k->path);
    confine(!k->config->argv);
    return r;
}

int keeper_run(const struct keeper_config *config)
{
    static struct keeper k; /* a stack would grow for it */
    struct err err = ERR_INIT;
    k.config = config;
    k.listen_fd = -1;
    k.peers[0] = k.peers[1] = NO_PEER;
    k.phase = config->socket[0] ? PHASE_WAITING : PHASE_SERVING;
    int r = init(&k, &err);
    if (r < 0)
        log_error("%s", err_text(&err));
    while (r == 0 && !k.ended)
        step(&k);
    unlink(k.path);
    rmdir(k.dir);
    fdtable_done(&k.store);
    return r < 0 ? EXIT_FAILURE : k.status;
}
