/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Step faults: an operation is repeated with its n-th outside step failing, cancelled or killed,
 * for n = 1, 2, 3, ... until it runs through without reaching n; after each the world must be as
 * before.
 *
 * An outside step is a call of a libc wrapper (open, mkdir, mount, fork, sendto, ...) from project
 * code: programs linked by pp_stepfault() have these calls replaced at link time, so production
 * code knows nothing of it. Steps are counted in a control block that several processes may share.
 */
#pragma once

#include <stdatomic.h>
#include <sys/types.h>

#include "base/err.h"

enum stepfault_mode {
    STEPFAULT_OFF,
    STEPFAULT_COUNT,  /* nothing happens, steps are counted */
    STEPFAULT_FAIL,   /* the step is not done and reports a plausible error */
    STEPFAULT_KILL,   /* SIGKILL to the process, before the step */
    STEPFAULT_CANCEL, /* the operation is cancelled before the step, which is then done */
};

struct stepfault_control {
    atomic_uint mode, target, count;
    atomic_uint second, second_mode; /* so many steps behind the target the next fault; 0: none */
    atomic_uint hit;                 /* faults that have struck */
    atomic_uint resume;              /* cancel: the runner has cancelled, go on */
    char step[128];                  /* its name, and the process it was in; of a pair both */
};

/* ---- in the program under test (linked by the replaced calls; no need to call it) ---- */

/* This process's block: from the file that STEPFAULT_CONTROL names or that lies beside the program
 * as PROGRAM.stepfault, else one of its own, shared with the children it forks. */
struct stepfault_control *stepfault_control(void);

/* ---- in the runner ---- */

/* This process's own steps do not count: the operation is another's. */
void stepfault_mute(void);

/* Makes a control block in a file for other processes, and uses it here too. */
struct stepfault_control *stepfault_share(const char *path);

struct stepfault_case {
    const char *name;
    enum stepfault_mode mode;
    const char *const *dirs; /* files that belong to the world; NULL-terminated */
    /* Puts the world into the state in which run begins, before the snapshot, and in which recover
     * does, before its steps count. May be NULL. */
    int (*prepare)(void *arg, struct err *err);
    /* The operation under fault. In mode KILL it runs in a forked child if fork_run is set. */
    int (*run)(void *arg, struct err *err);
    /* What the operation's caller does about its failure (or its success), without faults, so that
     * the world is as before. result: of run; -EOWNERDEAD when it was killed. */
    int (*recover)(void *arg, int result, struct err *err);
    /* Mode CANCEL: cancels the operation, on a thread of the runner's, while the step waits. */
    void (*cancel)(void *arg);
    bool fork_run;
    /* Pairs: behind each n a second fault, FAIL or KILL, pair_first (0: 1) steps later and then each
     * pair_stride more, while
     * the operation undoes itself or recover runs (in a child too where fork_run is set); then
     * recover once more, without faults, as after a death. pair_stride 0: single faults. */
    enum stepfault_mode pair;
    unsigned pair_stride, pair_first;
    unsigned stride; /* 0 and 1: every n; else n = first, first + stride, ... */
    unsigned first;  /* 0 and 1: from the first */
    unsigned
        samples;  /* so many n, and behind each so many second faults; 0: all that are reached */
    unsigned max; /* gives up (as a failure) beyond this many steps; 0: 20000 */
    int64_t settle_ms; /* for what the kernel removes in its own time; 0: 10 s */
    /* The world as text, owned; NULL: world_snapshot(dirs) */
    char *(*snapshot)(void *arg);
};

/* STEPFAULT_STRIDE=n: each n-th step, 1 all; without it what the test samples. */
unsigned stepfault_stride(unsigned sampled);

/* Returns the number of n at which something was wrong, each printed with the step's name. */
unsigned stepfault_run(const struct stepfault_case *c, void *arg);
