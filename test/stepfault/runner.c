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
#define SETTLE_MS 10000 /* it costs only what fails; a busy machine needs more than one second */
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
static void aim(const struct stepfault_case *c, unsigned n, unsigned second)
{
    struct stepfault_control *k = stepfault_control();

    atomic_store(&k->second, second);
    atomic_store(&k->second_mode, (unsigned)c->pair);
    atomic_store(&k->count, 0);
    atomic_store(&k->hit, 0);
    atomic_store(&k->resume, 0);
    atomic_store(&k->target, n);
    k->step[0] = '\0';
}

static void arm(unsigned mode)
{
    atomic_store(&stepfault_control()->mode, mode);
}

/* Returns what is left: of a pair the second fault may be still to come. */
static unsigned disarm(void)
{
    return atomic_exchange(&stepfault_control()->mode, STEPFAULT_OFF);
}

/* The operation, or what its caller does about `result`. */
static int act(const struct stepfault_case *c, void *arg, const int *result, struct err *err)
{
    return result ? c->recover(arg, *result, err) : c->run(arg, err);
}

/* In a child, and armed there: making it is no step of the operation's. */
static int act_in_child(const struct stepfault_case *c, void *arg, const int *result, unsigned mode)
{
    int status = 0;
    pid_t pid = fork();

    if (pid < 0)
        return -errno;
    if (pid == 0) {
        struct err err = ERR_INIT;
        arm(mode);
        _exit(act(c, arg, result, &err) < 0 ? 1 : 0);
    }
    /* Not waitpid: it is a step, and where the child has armed before we come here it would be ours,
     * the runner's, that is killed. */
    while (wait4(pid, &status, 0, NULL) < 0 && errno == EINTR)
        continue;
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

/* Returns also what is left of the faults: of a pair the second may be still to come. */
static int run_once(const struct stepfault_case *c, void *arg, unsigned *ret_left, struct err *err)
{
    struct watcher w = {.c = c, .arg = arg};
    bool watching =
        c->mode == STEPFAULT_CANCEL && c->cancel && pthread_create(&w.thread, NULL, watch, &w) == 0;
    int r;

    if (c->fork_run) {
        r = act_in_child(c, arg, NULL, c->mode);
    } else {
        arm(c->mode);
        r = act(c, arg, NULL, err);
    }
    *ret_left = disarm();
    atomic_store(&w.stop, true);
    if (watching)
        pthread_join(w.thread, NULL);
    return r;
}

/* The clean-up behind a pair's first fault, in which the second strikes: how it fares is nobody's
 * business. The one behind it is a successor's, who knows nothing: as after a death. */
static int recover_pair(const struct stepfault_case *c, void *arg, int result, unsigned left,
                        struct err *err)
{
    struct err ignored = ERR_INIT;

    if (c->prepare && c->prepare(arg, err) < 0)
        return err->code;
    if (c->fork_run) {
        (void)act_in_child(c, arg, &result, left);
    } else {
        arm(left);
        (void)act(c, arg, &result, &ignored);
    }
    (void)disarm();
    return c->prepare ? c->prepare(arg, err) : 0;
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

/* One n, or one pair. Returns whether something was wrong. *known: the world as it is, owned; NULL:
 * look. *ret_hits: how many faults struck. */
static bool one(const struct stepfault_case *c, void *arg, unsigned n, unsigned second,
                char **known, unsigned *ret_hits)
{
    struct err err = ERR_INIT, recover_err = ERR_INIT;
    int64_t began = clock_mono_ms();
    unsigned left;
    bool wrong = false;

    if (c->prepare && c->prepare(arg, &err) < 0) {
        fprintf(stderr, "%s: preparing for step %u: %s\n", c->name, n, err.text);
        return true;
    }
    _cleanup_free_ char *before = *known ? TAKE_PTR(*known) : snapshot(c, arg);
    aim(c, n, second);
    int r = run_once(c, arg, &left, &err), q = 0;
    struct stepfault_control *k = stepfault_control();
    if (second > 0 && atomic_load(&k->hit) > 0) {
        q = recover_pair(c, arg, r, left, &recover_err);
        r = -EOWNERDEAD;
    } else if (c->prepare) {
        q = c->prepare(arg, &recover_err);
    }
    *ret_hits = atomic_load(&k->hit);
    q = q < 0 ? q : c->recover(arg, r, &recover_err);
    if (q < 0) {
        fprintf(stderr, "%s: recovering: %s\n", c->name, err_text(&recover_err));
        wrong = true;
    }
    if (compare(c, arg, before) > 0)
        wrong = true;
    if (*ret_hits == 0 && r < 0) {
        fprintf(stderr, "%s: failed without a fault\n", c->name);
        wrong = true;
    }
    if (getenv("STEPFAULT_VERBOSE"))
        fprintf(stderr, "%s: step %u+%u %s: %d, %lld ms\n", c->name, n, second, k->step, r,
                (long long)(clock_mono_ms() - began));
    if (wrong)
        fprintf(stderr, "%s: WRONG after step %u+%u (%s) was %s; the operation said %d: %s\n",
                c->name, n, second, k->step, mode_names[c->mode], r, err_text(&err));
    else if (!c->prepare)
        *known = TAKE_PTR(before); /* the next round begins with it */
    return wrong;
}

static bool enough(const struct stepfault_case *c, unsigned tries)
{
    return c->samples > 0 && tries >= c->samples;
}

/* The second faults behind step n: until one is not reached. */
static unsigned pairs(const struct stepfault_case *c, void *arg, unsigned n, char **known,
                      unsigned *ret_tried, bool *ret_hit)
{
    unsigned wrong = 0, hits = 2, second = MAX(c->pair_first, 1U);

    *ret_hit = false;
    for (unsigned tries = 0; hits == 2 && !enough(c, tries); tries++, second += c->pair_stride) {
        wrong += one(c, arg, n, second, known, &hits);
        *ret_hit = *ret_hit || hits > 0;
        *ret_tried += hits == 2;
    }
    return wrong;
}

unsigned stepfault_stride(unsigned sampled)
{
    const char *word = getenv("STEPFAULT_STRIDE");
    uint64_t n = 0;

    return word && str_to_u64(word, STEPS_MAX, &n) == 0 && n > 0 ? (unsigned)n : sampled;
}

unsigned stepfault_run(const struct stepfault_case *c, void *arg)
{
    unsigned stride = MAX(c->stride, 1U), max = c->max ? c->max : STEPS_MAX;
    unsigned wrong = 0, missed = 0, tried = 0, tries, n = MAX(c->first, 1U);
    _cleanup_free_ char *known = NULL;

    for (tries = 0; n <= max && missed < 2 && !enough(c, tries); tries++, n += stride) {
        unsigned hits = 0;
        bool hit = false;
        if (c->pair_stride > 0) {
            wrong += pairs(c, arg, n, &known, &tried, &hit);
        } else {
            wrong += one(c, arg, n, 0, &known, &hits);
            hit = hits > 0;
            tried += hit;
        }
        missed = hit ? 0 : missed + 1;
    }
    if (missed < 2 && !enough(c, tries)) {
        fprintf(stderr, "%s: still not through after %u steps\n", c->name, max);
        wrong++;
    }
    fprintf(stderr, "%s: %u %s of about %u steps %s, %u wrong\n", c->name, tried,
            c->pair_stride > 0 ? "pairs" : "steps", n > missed * stride ? n - missed * stride : 0,
            mode_names[c->mode], wrong);
    return wrong;
}
