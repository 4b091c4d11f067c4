/* SPDX-License-Identifier: Apache-2.0 */
/* Pure functions of offsets; see stream.h for the rules. */
#include "relay/stream.h"

uint64_t stream_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

uint64_t stream_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15;
    return stream_mix(*state);
}

uint64_t stream_below(uint64_t *state, uint64_t limit)
{
    return stream_random(state) % limit;
}

void stream_source(uint64_t key, uint64_t offset, uint8_t *out, size_t n)
{
    while (n > 0) {
        uint64_t word = stream_mix(key ^ (offset / 8));
        size_t skip = (size_t)(offset % 8), len = MIN(8 - skip, n);
        memcpy(out, (const uint8_t *)&word + skip, len);
        out += len;
        offset += len;
        n -= len;
    }
}

uint64_t stream_source_offset(uint64_t offset)
{
    uint64_t points = offset / STREAM_EVERY;
    if (points == 0)
        return offset;
    /* Inside an injection: as far as it goes. */
    uint64_t in_last = MIN(offset % STREAM_EVERY, STREAM_INJECT);
    return offset - (points - 1) * STREAM_INJECT - in_last;
}

bool stream_inject_due(uint64_t offset)
{
    return offset > 0 && offset % STREAM_EVERY == 0;
}

void stream_injected(uint64_t offset, uint8_t out[STREAM_INJECT])
{
    uint64_t word = stream_mix(~offset);

    for (size_t i = 0; i < STREAM_INJECT; i++)
        out[i] = (uint8_t)(word >> (i % 8 * 8));
}

void stream_expected(uint64_t key, uint64_t offset, uint8_t *out, size_t n)
{
    while (n > 0) {
        uint64_t in = offset % STREAM_EVERY;
        size_t len;
        if (offset >= STREAM_EVERY && in < STREAM_INJECT) {
            uint8_t all[STREAM_INJECT];
            stream_injected(offset - in, all);
            len = MIN((size_t)(STREAM_INJECT - in), n);
            memcpy(out, all + in, len);
        } else {
            len = MIN((size_t)(STREAM_EVERY - in), n);
            stream_source(key, stream_source_offset(offset), out, len);
        }
        out += len;
        offset += len;
        n -= len;
    }
}
