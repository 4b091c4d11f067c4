/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens to a tunnel from outside, on a thread of its own, at instants that have nothing to do
 * with frames.
 */
#pragma once

#include "bench/common/world.h"

struct faults_plan {
    int reset_min_ms, reset_max_ms; /* a TCP reset after each such pause; 0: none */
    int kill_min_ms, kill_max_ms;   /* a SIGKILL of the forwarder */
    int young_ms; /* two of three connections are reset before they are that old, the third later; 0: none */
};

struct faults {
    uint64_t resets, kills;
};

/* One at a time. seed: of the pauses. */
void faults_start(const struct faults_plan *plan, unsigned seed);
/* Adds to ret what was done. */
void faults_stop(struct faults *ret);

/* Every packet of every tunnel is dropped, both ways, until it is called with false. */
int faults_blackhole(const struct world *w, bool on, struct err *err);
