/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes through the relays, as a function of offset: so that the sender, the checker and a
 * worker that has just been born agree without talking.
 *
 * The sender's stream is pseudo-random, keyed by seed and direction. The worker inserts
 * STREAM_INJECT bytes at every multiple of STREAM_EVERY (above 0) of the received offsets, so that
 * relay_in_inject is under test as well.
 */
#pragma once

#include "base/macros.h"

#define STREAM_EVERY 100000U
#define STREAM_INJECT 16U

uint64_t stream_mix(uint64_t x);
/* A number generator: *state is its state. */
uint64_t stream_random(uint64_t *state);
uint64_t stream_below(uint64_t *state, uint64_t limit);

/* n bytes of the sender's stream at offset. */
void stream_source(uint64_t key, uint64_t offset, uint8_t *out, size_t n);
/* n bytes at offset of what the far end must receive. */
void stream_expected(uint64_t key, uint64_t offset, uint8_t *out, size_t n);
/* How many of the first `offset` received bytes are the sender's. */
uint64_t stream_source_offset(uint64_t offset);
/* Is a head of exactly `offset` the place for an injection that has not been made? */
bool stream_inject_due(uint64_t offset);
void stream_injected(uint64_t offset, uint8_t out[STREAM_INJECT]);
