/* SPDX-License-Identifier: Apache-2.0 */
/* Killing the daemon at chosen instants after its exec, and what it was doing then. */
#pragma once

#include <stdatomic.h>

#include "base/err.h"

struct json_object;

#define DEATHS_STAMP "/run/storm.stamp"
#define DEATHS_KINDS 8

struct deaths {
    struct deaths_stamp *stamp;     /* what the launcher tells */
    const struct phase_page *phase; /* what the daemon tells */
    const atomic_uint *vm_calls;    /* under way, of the caller */
    uint32_t seen;                  /* processes launched that we know */
    pid_t pid;                      /* the last of them */
    int64_t exec_us;
    uint64_t kills, early;        /* early: before all tunnels were up again */
    uint64_t kinds[DEATHS_KINDS]; /* by what was going on */
};

/* The storm's own program as the daemon's launcher, `ARGV[0] --launch PROGRAM [ARGUMENTS]`: notes
 * the instant and becomes the program. argv from PROGRAM on. */
_noreturn_ void deaths_launch(char **argv);
/* Before the world is started; vm_calls is borrowed. */
int deaths_open(struct deaths *d, const atomic_uint *vm_calls, struct err *err);
/* Waits for the daemon's next process; SIGKILL delay_us after its exec. */
int deaths_kill(struct deaths *d, int64_t delay_us, struct err *err);
/* SIGKILL to the process that is known already; counts as nothing. */
int deaths_kill_now(struct deaths *d, struct err *err);
/* How long until all tunnels were up again, in microseconds: from exec, of processor time, and (by
 * the scheduler) of waiting for a processor. */
struct resume {
    int64_t us, cpu_us, wait_us;
};
/* Waits for the next process, and until it has all tunnels up again. */
int deaths_resume(struct deaths *d, struct resume *ret, struct err *err);
/* The histogram, owned. */
struct json_object *deaths_json(const struct deaths *d);
