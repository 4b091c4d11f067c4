/* SPDX-License-Identifier: Apache-2.0 */
/* Kills a worker at the steps that it makes: system calls and stores to the mapped headers. */
#pragma once

#include <sys/types.h>

#include "relay/report.h"
#include "relay/worker.h"

#define TRACER_OBJECTS 8

struct tracer_object {
    char link[64]; /* what /proc/PID/fd/N points to */
    const char *name;
};

struct tracer {
    struct report *report;
    uint64_t random;
    bool spare;                 /* let it finish: no kills but at steps that were never killed at */
    bool (*give_up)(void *arg); /* asked now and then: nothing moves any more */
    void *give_up_arg;
    struct tracer_object objects[TRACER_OBJECTS];
    size_t n_objects;
};

/* 0 when this machine lets us trace; else a negative errno. */
int tracer_check(void);
/* Descriptor fd (of ours, the worker has it too, under any number) is called `name` in steps. */
void tracer_name(struct tracer *t, int fd, const char *name);
/* The same for a file that may not exist yet. */
void tracer_name_path(struct tracer *t, const char *path, const char *name);
/* In the child, before anything else. */
void tracer_join(void);
/* Runs the child to its end: true when it was killed at a step, false when it ended by itself
 * (*ret_status as from waitpid). */
bool tracer_run(struct tracer *t, pid_t pid, int *ret_status);
