/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One thread, one poll: the notify socket, and a signalfd (all signals that matter are blocked, so
 * nothing is ever interrupted and pid 1's special dispositions do not apply).
 *
 * The child is in one of two states: running (pid > 0), or dead with a time at which it starts
 * again (restart_at). When it dies the notify socket is drained before anything else: a descriptor
 * that it sent just before its death is then in the store, and its successor gets it.
 *
 * Pauses: restart_min, doubled by each death up to restart_max; a child that lived for settled
 * starts from restart_min again. They are short because the shim gives a silent agent 30 s, and
 * grow because a child that cannot start should not burn a processor.
 *
 * The end. Asked to end (SIGTERM, SIGINT): with the child, with its status (128 + n for a signal).
 * Not asked: only while the store is empty, when the child exits with 0 (its work is finished, and
 * so is ours) or with a status that says "this will not get better" (usage, configuration, not
 * executable), so that the mistake is seen and not retried for ever. Descriptors in the store are
 * pods that live on them, and then we hold on and go on trying: whoever stops the daemon alone gets
 * a restarted daemon, not dead pods.
 *
 * Handed over: a command that ends with FDSTORE_EXIT_HANDED_OVER has given its work to a successor
 * under another keeper (adaptor/takeover.c) and has emptied its store. Then we end too. As the first
 * process of a container we wait to be asked: whoever runs the container would start it again, and
 * there the old version would take the work back from the new one.
 *
 * Pid 1 reaps what is not its child too. Elsewhere we become a subreaper, so that it is the same.
 */
#include "keeper/keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "keeper/child.h"
#include "keeper/notify.h"
#include "relay/fdstore.h"

#define NUMBERS_MAX 1048576 /* of descriptors, however large RLIMIT_NOFILE is */

struct keeper {
    const struct keeper_config *config;
    sigset_t old_mask;
    int signal_fd;
    struct notify notify;
    struct store store;
    pid_t pid; /* 0: dead */
    int64_t started_at, restart_at, pause_ms;
    bool asked_to_end, ended;
    bool rests; /* the work is done elsewhere; nothing is started any more */
    int status;
};

/* Statuses after which there is no second try: done, usage (2, EX_USAGE), EX_CONFIG, not
 * executable, not found. */
static bool is_final(int status)
{
    return status == 0 || status == 2 || status == 64 || status == 78 ||
           status == CHILD_NOT_EXECUTABLE || status == CHILD_NOT_FOUND ||
           status == FDSTORE_EXIT_HANDED_OVER;
}

static int exit_status(int wstatus)
{
    return WIFSIGNALED(wstatus) ? 128 + WTERMSIG(wstatus) : WEXITSTATUS(wstatus);
}

static void start(struct keeper *k)
{
    struct err err = ERR_INIT;

    k->started_at = clock_mono_ms();
    k->pid = child_start(k->config->argv, &k->old_mask, k->notify.path, &k->store, &err);
    if (k->pid < 0) {
        log_error("starting %s: %s", k->config->argv[0], err_text(&err));
        k->pid = 0;
        k->restart_at = k->started_at + k->config->restart_max_ms;
        return;
    }
    log_info("started %s as process %d with %zu descriptors", k->config->argv[0], (int)k->pid,
             k->store.n);
}

static void plan_restart(struct keeper *k, int wstatus)
{
    int64_t now = clock_mono_ms();

    if (now - k->started_at >= k->config->settled_ms)
        k->pause_ms = k->config->restart_min_ms;
    k->restart_at = now + k->pause_ms;
    log_warn("%s (process %d) %s %d after %lld ms; %zu descriptors kept; starting it again in "
             "%lld ms",
             k->config->argv[0], (int)k->pid,
             WIFSIGNALED(wstatus) ? "was killed by signal" : "exited with status",
             WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) : WEXITSTATUS(wstatus),
             (long long)(now - k->started_at), k->store.n, (long long)k->pause_ms);
    k->pause_ms = MIN(k->pause_ms * 2, k->config->restart_max_ms);
}

static void child_died(struct keeper *k, int wstatus)
{
    int status = exit_status(wstatus);
    bool exited = WIFEXITED(wstatus);

    notify_drain(&k->notify, &k->store);
    if (exited && status == FDSTORE_EXIT_HANDED_OVER && k->store.n == 0 && !k->asked_to_end &&
        getpid() == 1) {
        log_info("%s has handed over to its successor; waiting to be ended", k->config->argv[0]);
        k->rests = true;
        k->pid = 0;
        return;
    }
    if (k->asked_to_end || (exited && is_final(status) && k->store.n == 0)) {
        log_info("%s ended with status %d", k->config->argv[0], status);
        k->ended = true;
        k->status = status;
        return;
    }
    plan_restart(k, wstatus);
    k->pid = 0;
}

static void reap(struct keeper *k)
{
    int wstatus;
    pid_t pid;

    while ((pid = waitpid(-1, &wstatus, WNOHANG)) > 0)
        if (pid == k->pid)
            child_died(k, wstatus);
}

static void handle_signal(struct keeper *k, const struct signalfd_siginfo *info)
{
    int sig = (int)info->ssi_signo;

    if (sig == SIGCHLD) {
        reap(k);
        return;
    }
    if (sig == SIGTERM || sig == SIGINT) {
        k->asked_to_end = true;
        k->ended = k->ended || k->pid == 0;
    }
    /* From a terminal it went to the whole process group, the child included. */
    if (k->pid > 0 && info->ssi_code != SI_KERNEL)
        kill(k->pid, sig);
}

static int64_t pause_left(const struct keeper *k)
{
    return k->pid > 0 || k->rests ? -1 : MAX(k->restart_at - clock_mono_ms(), 0);
}

static void step(struct keeper *k)
{
    struct pollfd fds[] = {{.fd = k->signal_fd, .events = POLLIN},
                           {.fd = k->notify.fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    int64_t left = pause_left(k);

    if (left == 0) {
        start(k);
        return;
    }
    poll(fds, ARRAY_SIZE(fds), (int)left);
    notify_drain(&k->notify, &k->store);
    while (!k->ended && read(k->signal_fd, &info, sizeof(info)) == sizeof(info))
        handle_signal(k, &info);
}

/* The child gets the same limits: it must hold what we hold, and some more. */
static size_t descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 256;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = MIN(limit.rlim_max, NUMBERS_MAX),
                                .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    return (size_t)MIN(limit.rlim_cur, NUMBERS_MAX) / 4 * 3;
}

/* What was meant for us must not reach the child; which of two keepers is the younger must. */
static void set_environment(void)
{
    struct timespec now;
    char born[32];

    static const char *const variables[] = {"NOTIFY_SOCKET",  "LISTEN_PID",   "LISTEN_FDS",
                                            "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"};

    for (size_t i = 0; i < ARRAY_SIZE(variables); i++)
        unsetenv(variables[i]);
    clock_gettime(CLOCK_BOOTTIME, &now);
    snprintf(born, sizeof(born), "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
    setenv(FDSTORE_BORN, born, 1);
}

static int block_signals(struct keeper *k, struct err *err)
{
    static const int signals[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaddset(&set, signals[i]);
    sigprocmask(SIG_BLOCK, &set, &k->old_mask);
    /* Whoever started us may have ignored SIGCHLD; the kernel would then reap for us. */
    signal(SIGCHLD, SIG_DFL);
    k->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return k->signal_fd < 0 ? err_errno(err, -errno, "signalfd") : 0;
}

int keeper_run(const struct keeper_config *config, int *ret_status, struct err *err)
{
    struct keeper k = {
        .config = config, .signal_fd = -1, .pause_ms = config->restart_min_ms, .notify.fd = -1};

    set_environment();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    store_init(&k.store, descriptor_limit());
    int r = notify_init(&k.notify, err);
    if (r == 0)
        r = block_signals(&k, err);
    while (r == 0 && !k.ended)
        step(&k);
    *ret_status = k.status;
    notify_done(&k.notify);
    closep(&k.signal_fd);
    store_done(&k.store);
    return r;
}
