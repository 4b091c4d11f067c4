/* SPDX-License-Identifier: Apache-2.0 */
/* The two peers of the relays: they generate, receive and compare every byte. */
#pragma once

#include "base/macros.h"

struct traffic_shared { /* shared memory; the peers write all but stop */
    uint64_t bytes;     /* received and right */
    uint64_t wrong;     /* received and wrong, or missing at the end */
    uint32_t stop;      /* generate no more, shut down, wait for the end */
    char message[256];
};

struct traffic {
    int a, b; /* the peers' ends, non-blocking */
    uint64_t seed;
    uint64_t limit; /* of bytes in each direction */
    struct traffic_shared *shared;
};

/* Runs until both directions have ended; the process's exit status: 0 when all was right. */
int traffic_run(const struct traffic *t);
