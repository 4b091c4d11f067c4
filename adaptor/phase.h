/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far this process is: one small file in the state directory, mapped, so that who finds the
 * daemon dead (a test, a person) can tell what it was doing. Nothing depends on it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define PHASE_FILE ".phase"
#define PHASE_MAGIC 0x70686173U

enum phase {
    PHASE_LOCK,        /* the lock is ours; the generation is being raised */
    PHASE_RECORDS,     /* reading the records */
    PHASE_DESCRIPTORS, /* taking over the connections of one sandbox */
    PHASE_DIALLING,    /* making its tunnel */
    PHASE_HELLO,       /* calls are taken; not all tunnels are up again */
    PHASE_SERVING,     /* all that were found are up, or have ended */
};

struct phase_page {
    uint32_t magic, phase;
    uint32_t tunnels, resumed; /* of running sandboxes found at start, and up again of those */
    int64_t pid;               /* whose all this is */
    int64_t resumed_us;        /* clock_mono_us when the last of them was; 0: not yet */
    int64_t resumed_cpu_us;    /* of processor time that this process had used by then */
};

/* Never fails: where there is no room for the file nobody will read it. Held for life. */
struct phase_page *phase_new(int dirfd);
void phase_free(struct phase_page *page);
void phase_set(struct phase_page *page, enum phase phase);
/* A sandbox found at start wants its tunnel back. */
void phase_await(struct phase_page *page);
/* One of those has it, or has ended. True once: it was the last, and calls are taken already. */
bool phase_resumed(struct phase_page *page);
/* Calls are taken from now on. True: there is no tunnel to wait for any more. */
bool phase_serve(struct phase_page *page);
