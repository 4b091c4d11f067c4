/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pod's load on one shim connection: ReadStdout, CopyFile, CreateContainer of 100 KiB and Check,
 * several of them always under way, every byte compared and every execution counted.
 */
#pragma once

#include "bench/common/client.h"

#define LOAD_SLOTS 8

struct load_slot {
    int kind;
    uint32_t number; /* of its stream or file */
    uint64_t offset; /* where the next call of this slot begins */
    int64_t stream;  /* the call under way; 0: none */
};

struct load {
    struct client client;
    struct load_slot slots[LOAD_SLOTS];
    uint64_t calls, read_bytes, copy_bytes, creates, checks, copies, reads;
    uint64_t wrong;             /* answers whose bytes are not the expected ones */
    uint64_t failed;            /* calls that were answered with an error */
    int64_t answered_at;        /* last, clock_mono_ms */
    int64_t longest_silence_ms; /* without any answer; of this phase */
};

int load_open(struct load *l, const char *socket, struct err *err);
void load_close(struct load *l);
/* Runs until so many bytes of each kind were moved and so much time has passed; all calls are
 * answered when it returns. */
int load_run(struct load *l, uint64_t bytes, int64_t min_ms, struct err *err);
/* Asks the agent what it has executed, and compares. */
int load_settle(struct load *l, struct traffic_counters *ret, struct err *err);
