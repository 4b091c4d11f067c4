/* SPDX-License-Identifier: Apache-2.0 */
/* Any number of pods, each with a shim's connection, loaded or idle. */
#pragma once

#include <pthread.h>

#include "blackout/load.h"

struct storm_pod {
    char id[65], netns[64];
    char *socket;
    struct load load;
    pthread_t thread;
    struct traffic_counters agent;
    int r; /* of what was done last */
    struct err err;
};

/* Makes them and connects to each; numbers from first on. All that were begun are in pods, also
 * when one failed. */
int pods_start(struct storm_pod *pods, unsigned n, unsigned first, struct err *err);
/* Full load on each, until pods_rest. */
void pods_load(struct storm_pod *pods, unsigned n);
/* Ends the load, waits for all answers, compares with the agent's counts. The number of pods that
 * were lost; err: of the first. */
unsigned pods_rest(struct storm_pod *pods, unsigned n, struct err *err);
/* Idle pods: each holds a blocking call from pods_hold to pods_check, which sees it answered on the
 * connection that it was made on. The number of pods that were lost. */
int pods_hold(struct storm_pod *pods, unsigned n, struct err *err);
unsigned pods_check(struct storm_pod *pods, unsigned n, struct err *err);
/* StopVM for each. */
int pods_stop(struct storm_pod *pods, unsigned n, struct err *err);
