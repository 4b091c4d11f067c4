/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of killing: each has new connections, and goes on until both directions have ended. */
#pragma once

#include "relay/report.h"
#include "relay/tracer.h"
#include "relay/traffic.h"

struct rig {
    const char *dir; /* for the relays' files */
    int dirfd;
    uint64_t random;
    struct traffic_shared *shared;
    struct report *report;
    const char *keeper; /* program */
};

/* Each returns when `kills` more workers were killed and the last round has ended cleanly, or the
 * report has failed. */
void round_random(struct rig *rig, uint64_t kills);
void round_steps(struct rig *rig, uint64_t kills);
void round_keeper(struct rig *rig, uint64_t kills);
