/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The model: a window of `size` bytes that slides over an endless stream; byte `pos` lies at
 * pos mod size. What is in the window must survive our death, so it is a shared mapping of a file.
 *
 * The one danger of a mapped file is a page that the file system cannot provide: touching it, even
 * reading it, is SIGBUS. So no page is touched that was not allocated by fallocate(2) first, and a
 * full tmpfs is -ENOSPC from ring_room, which the caller answers by not reading any more; the
 * peer's bytes then wait in the socket. fallocate charges the memory cgroup as well.
 *
 * Invariant: every byte that the owner may touch lies in a block whose bit in `blocks` is set.
 * Bits are only ever cleared together with the hole punched for them. A new process does not know
 * what its predecessor allocated; it starts with no bits (asking for an allocated block again is
 * cheap and harmless) and `unsure`, which makes the first trim punch whatever is not in use.
 *
 * A block is 16 KiB because a quiet connection then costs 16 us and 16 KiB, not 190 us and the
 * whole ring; ring_room asks for one block ahead, so that a reader near the end of a block does
 * not get a room of a few bytes.
 */
#include "relay/ring.h"

#include <errno.h>
#include <fcntl.h>

#include "base/macros.h"

bool ring_size_ok(uint64_t size)
{
    return size >= RING_SIZE_MIN && size <= RING_SIZE_MAX && (size & (size - 1)) == 0;
}

void ring_init(struct ring *r, int fd, off_t offset, void *base, size_t size)
{
    *r = (struct ring){.base = base, .size = size, .fd = fd, .offset = offset, .unsure = true};
}

static bool has_block(const struct ring *r, size_t block)
{
    return r->blocks[block / 64] >> (block % 64) & 1;
}

static void set_blocks(struct ring *r, size_t first, size_t n, bool on)
{
    for (size_t b = first; b < first + n; b++) {
        uint64_t bit = (uint64_t)1 << (b % 64);
        if (on)
            r->blocks[b / 64] |= bit;
        else
            r->blocks[b / 64] &= ~bit;
    }
}

/* A signal may interrupt fallocate on tmpfs, which then undoes its work. */
static int change_blocks(struct ring *r, int mode, size_t first, size_t n)
{
    off_t at = r->offset + (off_t)(first * RING_BLOCK);
    int ret;

    do
        ret = fallocate(r->fd, mode, at, (off_t)(n * RING_BLOCK));
    while (ret < 0 && errno == EINTR);
    if (ret < 0)
        return -errno;
    set_blocks(r, first, n, mode == 0);
    return 0;
}

int ring_reserve(struct ring *r, uint64_t pos, size_t len)
{
    size_t total = r->size / RING_BLOCK;

    if (len == 0)
        return 0;
    size_t first = (size_t)(pos & (r->size - 1)) / RING_BLOCK;
    size_t n = ((size_t)(pos % RING_BLOCK) + len - 1) / RING_BLOCK + 1;
    n = MIN(n, total);
    for (size_t i = 0; i < n; i++) {
        size_t b = (first + i) % total, run = 0;
        while (i + run < n && b + run < total && !has_block(r, b + run))
            run++;
        if (run == 0)
            continue;
        int ret = change_blocks(r, 0, b, run);
        if (ret < 0)
            return ret;
        i += run - 1;
    }
    return 0;
}

ssize_t ring_room(struct ring *r, uint64_t pos, size_t max)
{
    size_t want = ring_span(r, pos, max), have;
    size_t at = (size_t)(pos & (r->size - 1));
    int ret = ring_reserve(r, pos, MIN(want, RING_BLOCK));

    /* What lies in blocks that are there already is room, whatever the allocation said. */
    have = 0;
    while (have < want && has_block(r, (at + have) / RING_BLOCK))
        have += RING_BLOCK - (at + have) % RING_BLOCK;
    have = MIN(have, want);
    return have > 0 ? (ssize_t)have : ret;
}

static bool block_in_use(const struct ring *r, size_t block, uint64_t tail, uint64_t head)
{
    size_t used = (size_t)(head - tail);
    size_t at = (size_t)(tail & (r->size - 1));
    size_t distance = (block * RING_BLOCK - at) & (r->size - 1);

    if (used == 0)
        return false;
    return distance < used || block == at / RING_BLOCK;
}

void ring_trim(struct ring *r, uint64_t tail, uint64_t head)
{
    size_t total = r->size / RING_BLOCK;

    for (size_t b = 0; b < total; b++) {
        size_t run = 0;
        while (b + run < total && (r->unsure || has_block(r, b + run)) &&
               !block_in_use(r, b + run, tail, head))
            run++;
        if (run == 0)
            continue;
        if (change_blocks(r, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, b, run) < 0)
            return;
        b += run - 1;
    }
    r->unsure = false;
}

void ring_put(struct ring *r, uint64_t pos, const void *data, size_t len)
{
    size_t first = ring_span(r, pos, len);

    memcpy(ring_at(r, pos), data, first);
    memcpy(r->base, (const uint8_t *)data + first, len - first);
}

void ring_get(const struct ring *r, uint64_t pos, void *data, size_t len)
{
    size_t first = ring_span(r, pos, len);

    memcpy(data, ring_at(r, pos), first);
    memcpy((uint8_t *)data + first, r->base, len - first);
}
