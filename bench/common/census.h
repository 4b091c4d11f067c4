/* SPDX-License-Identifier: Apache-2.0 */
/* What a process uses, and what there is in the worker's world: before, during and after. */
#pragma once

#include <sys/types.h>

#include "base/err.h"

struct usage {
    int64_t rss_kb, pss_kb;    /* smaps_rollup */
    int64_t anon_kb, shmem_kb; /* anonymous; shared memory: tmpfs files that are mapped */
    int64_t descriptors, threads;
    int64_t sleeps; /* voluntary context switches of all threads that there are: each is
                                    followed by a wake-up */
    double cpu_s;
};

int usage_read(pid_t pid, struct usage *ret, struct err *err);
/* Of every process whose program has this name: sums, and how many there are. */
unsigned usage_sum(const char *comm, struct usage *ret);

enum kind {
    CENSUS_DESCRIPTORS, /* the daemon's */
    CENSUS_STORED,      /* the keeper's descriptors */
    CENSUS_THREADS,     /* the daemon's */
    CENSUS_NAMESPACES,
    CENSUS_LINKS,
    CENSUS_FILES,
    CENSUS_PROCESSES,
    CENSUS_KINDS
};

extern const char *const census_names[CENSUS_KINDS];

struct census {
    int64_t of[CENSUS_KINDS];
};

int census_take(pid_t daemon, pid_t keeper, struct census *ret, struct err *err);
/* How much more there is than before. */
int64_t census_left(const struct census *before, const struct census *now);

/* Seconds of all processors, idle ones and others, since boot. */
void machine_time(double *ret_busy, double *ret_all);
