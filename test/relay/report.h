/* SPDX-License-Identifier: Apache-2.0 */
/* The steps at which a worker can die, as the tracer finds them, and how often each was hit. */
#pragma once

#include "base/macros.h"

#define REPORT_STEPS_MAX 512
#define REPORT_NAME_MAX 64

struct step {
    char name[REPORT_NAME_MAX];
    uint64_t seen, killed;
};

struct report {
    struct step steps[REPORT_STEPS_MAX];
    size_t n_steps;
    uint64_t kills, rounds, bytes, wrong;
    int64_t told_at;   /* when the last line of progress was written */
    char message[512]; /* the first failure; "": none */
};

/* The step of that name, made when it is new; aborts when there are too many. */
struct step *report_step(struct report *r, const char *name);
void report_fail(struct report *r, const char *fmt, ...) _printf_(2, 3);
/* A line on stderr every few seconds. */
void report_progress(struct report *r);
/* The last line on stdout. */
void report_print(const struct report *r, double seconds);
