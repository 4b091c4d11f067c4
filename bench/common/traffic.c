/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One table of random bytes; a stream is the table, read round and round from a place of its own.
 * The table is longer than its period by the longest piece, so that a piece is always contiguous.
 */
#include "bench/common/traffic.h"

#include <pthread.h>

#define PERIOD 1048573U /* prime */
#define STRIDE 7919U

static uint8_t table[PERIOD + TRAFFIC_COPY];

static void table_fill(void)
{
    uint64_t x = 0x9e3779b97f4a7c15U;
    for (size_t i = 0; i < PERIOD; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        table[i] = (uint8_t)(x >> 32);
    }
    for (size_t i = PERIOD; i < sizeof(table); i++)
        table[i] = table[i - PERIOD];
}

const uint8_t *traffic_bytes(uint32_t stream, uint64_t offset)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, table_fill);
    return table + (offset + (uint64_t)stream * STRIDE) % PERIOD;
}

static bool varint_next(const uint8_t **at, const uint8_t *end, uint64_t *ret)
{
    *ret = 0;
    for (unsigned shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        *ret |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

bool field_next(const uint8_t **at, const uint8_t *end, struct field *ret)
{
    uint64_t key;
    if (*at >= end || !varint_next(at, end, &key) || !varint_next(at, end, &ret->value))
        return false;
    ret->number = (uint32_t)(key >> 3);
    ret->data = *at;
    if ((key & 7) == 0)
        return true;
    if ((key & 7) != 2 || ret->value > (uint64_t)(end - *at))
        return false;
    *at += ret->value;
    return true;
}

uint8_t *put_varint(uint8_t *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        *out++ = (uint8_t)(value | 0x80);
    *out++ = (uint8_t)value;
    return out;
}

uint8_t *put_number(uint8_t *out, uint32_t number, uint64_t value)
{
    return put_varint(put_varint(out, (uint64_t)number << 3), value);
}

uint8_t *put_length(uint8_t *out, uint32_t number, size_t len)
{
    return put_varint(put_varint(out, (uint64_t)number << 3 | 2), len);
}

uint8_t *put_bytes(uint8_t *out, uint32_t number, const void *data, size_t len)
{
    out = put_length(out, number, len);
    memcpy(out, data, len);
    return out + len;
}
