/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pod's load on one shim connection: ReadStdout, CopyFile, CreateContainer of 100 KiB and Check,
 * several of them always under way, every byte compared and every execution counted. On demand also
 * WaitProcess calls that are held for long, and CopyFile in bursts.
 */
#pragma once

#include "bench/common/client.h"

#define LOAD_SLOTS 8 /* that are always busy */
#define LOAD_WAITS 4
#define LOAD_SLOTS_MAX (LOAD_SLOTS + LOAD_WAITS)

struct load_slot {
    int kind;
    uint32_t number; /* of its stream or file */
    uint64_t offset; /* where the next call of this slot begins */
    int64_t stream;  /* the call under way; 0: none */
    int64_t ender;   /* the call that ends the one under way, a WaitProcess; 0: not sent */
    int64_t due_ms;  /* when that is due, or the next of a CopyFile's bursts */
};

struct load {
    struct client client;
    struct load_slot slots[LOAD_SLOTS_MAX];
    size_t n_slots;
    bool bursts; /* CopyFile calls come in bursts */
    bool go_on;  /* atomic: load_run goes on, whatever it has moved */
    uint64_t calls, read_bytes, copy_bytes, creates, checks, copies, reads, waits;
    uint64_t wrong;             /* answers whose bytes are not the expected ones */
    uint64_t failed;            /* calls that were answered with an error */
    int64_t answered_at;        /* last, clock_mono_ms */
    int64_t longest_silence_ms; /* without any answer; of this phase */
};

int load_open(struct load *l, const char *socket, struct err *err);
/* Before load_run: with blocking calls and bursts. */
void load_blocking(struct load *l);
void load_close(struct load *l);
/* Runs until so many bytes of each kind were moved and so much time has passed; all calls are
 * answered when it returns. */
int load_run(struct load *l, uint64_t bytes, int64_t min_ms, struct err *err);
/* Asks the agent what it has executed, and compares. */
int load_settle(struct load *l, struct traffic_counters *ret, struct err *err);
