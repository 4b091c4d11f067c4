/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of bytes in a mapped file, whose blocks are allocated before they are touched and given
 * back when they are not needed. See ring.c for the theory of operation.
 *
 * Positions are absolute stream offsets; the ring maps them to places, and knows nothing of heads
 * and tails: those are its owner's, who stores them where a crash needs them. The owner keeps
 * head - tail <= size, touches bytes at and behind head only after ring_room or ring_reserve said
 * so, and bytes between tail and head freely.
 */
#pragma once

#include <sys/types.h>

#include "base/macros.h"

#define RING_BLOCK (16U << 10) /* unit of allocation */
#define RING_SIZE_MIN (2 * RING_BLOCK)
#define RING_SIZE_MAX (16U << 20)

struct ring {
    uint8_t *base;
    size_t size; /* a power of two */
    int fd;      /* borrowed */
    off_t offset;
    bool unsure; /* a predecessor may have allocated blocks that `blocks` does not show */
    uint64_t blocks[RING_SIZE_MAX / RING_BLOCK / 64]; /* allocated for certain */
};

/* A power of two within the limits. */
bool ring_size_ok(uint64_t size);

/*
 * The ring lies in fd at [offset, offset + size), mapped shared and writable at base; offset is a
 * multiple of RING_BLOCK. Borrows both, makes no system call, needs no end.
 */
void ring_init(struct ring *r, int fd, off_t offset, void *base, size_t size);

/* Allocates what [pos, pos + len) needs, len <= size: 0, -ENOSPC (nothing is lost; try again
 * later), or what else fallocate(2) says. */
int ring_reserve(struct ring *r, uint64_t pos, size_t len);

/*
 * Contiguous room at pos, at most max (> 0), with blocks: > 0, or as ring_reserve. Allocates one
 * block ahead, so that a ring that is hardly used stays small; the room may be less than max
 * although the ring is free.
 */
ssize_t ring_room(struct ring *r, uint64_t pos, size_t max);

/* Gives back every block that holds no byte of [tail, head). Best effort. */
void ring_trim(struct ring *r, uint64_t tail, uint64_t head);

/* Copy in and out across the wrap. put: the bytes were reserved; len <= size. */
void ring_put(struct ring *r, uint64_t pos, const void *data, size_t len);
void ring_get(const struct ring *r, uint64_t pos, void *data, size_t len);

static inline uint8_t *ring_at(const struct ring *r, uint64_t pos)
{
    return r->base + (pos & (r->size - 1));
}

/* The part of [pos, pos + len) that lies in one piece at ring_at(pos). */
static inline size_t ring_span(const struct ring *r, uint64_t pos, size_t len)
{
    size_t to_end = r->size - (size_t)(pos & (r->size - 1));
    return MIN(len, to_end);
}
