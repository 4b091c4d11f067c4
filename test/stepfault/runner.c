/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runner of step faults.
 *
 * For each n: prepare, snapshot, arm, run, disarm, recover, snapshot again, compare. It ends at the
 * first n that was not reached. The number of steps of an operation may vary a little from run to
 * run (threads, polling), so "not reached" must come twice in a row to count.
 *
 * A failed step may well leave the operation successful (an optional socket option): what counts is
 * the world afterwards, and that recover, which does what a caller would, succeeds.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/str.h"
#include "stepfault/runtime.h"
#include "stepfault/world.h"

#define STEPS_MAX 20000U
#define SETTLE_MS 1000
#define POLL_US 3000
#define WATCH_US 200

static const char *const mode_names[] = {"off", "count", "failing", "killed", "cancelled"};

struct stepfault_control *stepfault_share(const char *path)
{
    const struct stepfault_control empty = {0};

    /* In place: the file may be bound elsewhere already. */
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    bool made = fd >= 0 && write(fd, &empty, sizeof(empty)) == (ssize_t)sizeof(empty);
    if (fd >= 0)
        close(fd);
    struct stepfault_control *c = made ? stepfault_map(path) : NULL;
    if (c)
        stepfault_use(c);
    return c;
}

/* Before the watcher starts: the last round's `hit` is not this one's. */
static void aim(unsigned n)
{
    struct stepfault_control *k = stepfault_control();

    atomic_store(&k->count, 0);
    atomic_store(&k->hit, 0);
    atomic_store(&k->resume, 0);
    atomic_store(&k->target, n);
    k->step[0] = '\0';
}

static void arm(const struct stepfault_case *c)
{
    atomic_store(&stepfault_control()->mode, (unsigned)c->mode);
}

static void disarm(void)
{
    atomic_store(&stepfault_control()->mode, STEPFAULT_OFF);
}

static int run_forked(const struct stepfault_case *c, void *arg)
{
    int status = 0;
    pid_t pid = fork();

    if (pid < 0)
        return -errno;
    if (pid == 0) {
        struct err err = ERR_INIT;
        arm(c);
        int r = c->run(arg, &err);
        disarm();
        _exit(r < 0 ? 1 : 0);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    disarm();
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return -EOWNERDEAD;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

struct watcher {
    const struct stepfault_case *c;
    void *arg;
    pthread_t thread;
    atomic_bool stop;
};

/* Cancels when the step is reached, and lets it go on. */
static void *watch(void *arg)
{
    struct watcher *w = arg;
    struct stepfault_control *k = stepfault_control();

    while (!atomic_load(&w->stop)) {
        if (atomic_load(&k->hit)) {
            w->c->cancel(w->arg);
            atomic_store(&k->resume, 1);
            break;
        }
        usleep(WATCH_US);
    }
    return NULL;
}

static int run_once(const struct stepfault_case *c, void *arg, unsigned n, struct err *err)
{
    int r;

    aim(n);
    if (c->fork_run)
        return run_forked(c, arg);
    struct watcher w = {.c = c, .arg = arg};
    bool watching =
        c->mode == STEPFAULT_CANCEL && c->cancel && pthread_create(&w.thread, NULL, watch, &w) == 0;
    arm(c);
    r = c->run(arg, err);
    disarm();
    atomic_store(&w.stop, true);
    if (watching)
        pthread_join(w.thread, NULL);
    return r;
}

static char *snapshot(const struct stepfault_case *c, void *arg)
{
    return c->snapshot ? c->snapshot(arg) : world_snapshot(c->dirs);
}

static unsigned compare(const struct stepfault_case *c, void *arg, const char *before)
{
    int64_t left = (c->settle_ms ? c->settle_ms : SETTLE_MS) * 1000;

    for (;; left -= POLL_US) {
        _cleanup_free_ char *after = snapshot(c, arg);
        if (str_eq(before, after))
            return 0;
        if (left <= 0)
            return world_diff(before, after);
        usleep(POLL_US);
    }
}

/* One n. Returns whether something was wrong. *known: the world as it is, owned; NULL: look. */
static bool one(const struct stepfault_case *c, void *arg, unsigned n, char **known, bool *ret_hit)
{
    struct err err = ERR_INIT, recover_err = ERR_INIT;
    int64_t began = clock_mono_ms();
    bool wrong = false;

    if (c->prepare && c->prepare(arg, &err) < 0) {
        fprintf(stderr, "%s: preparing for step %u: %s\n", c->name, n, err.text);
        return true;
    }
    _cleanup_free_ char *before = *known ? TAKE_PTR(*known) : snapshot(c, arg);
    int r = run_once(c, arg, n, &err);
    struct stepfault_control *k = stepfault_control();
    *ret_hit = atomic_load(&k->hit);
    int q = c->recover(arg, r, &recover_err);
    if (q < 0) {
        fprintf(stderr, "%s: recovering: %s\n", c->name, err_text(&recover_err));
        wrong = true;
    }
    if (compare(c, arg, before) > 0)
        wrong = true;
    if (!*ret_hit && r < 0) {
        fprintf(stderr, "%s: failed without a fault\n", c->name);
        wrong = true;
    }
    if (getenv("STEPFAULT_VERBOSE"))
        fprintf(stderr, "%s: step %u %s: %d, %lld ms\n", c->name, n, k->step, r,
                (long long)(clock_mono_ms() - began));
    if (wrong)
        fprintf(stderr, "%s: WRONG after step %u (%s) was %s; the operation said %d: %s\n", c->name,
                n, k->step, mode_names[c->mode], r, err_text(&err));
    else if (!c->prepare)
        *known = TAKE_PTR(before); /* the next round begins with it */
    return wrong;
}

unsigned stepfault_run(const struct stepfault_case *c, void *arg)
{
    unsigned stride = MAX(c->stride, 1U), max = c->max ? c->max : STEPS_MAX;
    unsigned wrong = 0, missed = 0, tried = 0, n;
    _cleanup_free_ char *known = NULL;

    for (n = MAX(c->first, 1U); n <= max && missed < 2; n += stride) {
        bool hit = false;
        wrong += one(c, arg, n, &known, &hit);
        missed = hit ? 0 : missed + 1;
        tried += hit;
    }
    if (missed < 2) {
        fprintf(stderr, "%s: still not through after %u steps\n", c->name, max);
        wrong++;
    }
    fprintf(stderr, "%s: %u of about %u steps %s, %u wrong\n", c->name, tried,
            n > 2 * stride ? n - 2 * stride : 0, mode_names[c->mode], wrong);
    return wrong;
}
