/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the benchmark's client and its agent say to each other: a few of the agent's calls, with
 * bytes that both sides can foretell, so that a lost, repeated or moved byte is noticed.
 */
#pragma once

#include "base/macros.h"

#define TRAFFIC_READ (32U << 10) /* bytes of one ReadStdout, as the Go shim asks for */
#define TRAFFIC_COPY (1U << 20)  /* of one CopyFile, the shim's grpcMaxDataSize */
#define TRAFFIC_CREATE (100U << 10)
#define TRAFFIC_STREAMS 64         /* numbered streams of each kind */
#define TRAFFIC_CREATES (1U << 20) /* containers that one agent can tell apart */
#define TRAFFIC_WAITS 64           /* WaitProcess calls that one connection may have under way */
#define TRAFFIC_FILLER 77          /* a field of CreateContainerRequest that nobody knows */

/* What the agent has seen, all since it started; answer to the method "Counters". */
struct traffic_counters {
    uint64_t checks, reads, copies, creates;
    uint64_t waits;      /* WaitProcess calls that were answered */
    uint64_t twice;      /* containers created, or waited for, again */
    uint64_t wrong;      /* requests whose bytes or place are not the expected ones */
    uint64_t copy_bytes; /* of correct CopyFile calls */
};

/* Bytes of stream `stream` from `offset`: contiguous for TRAFFIC_COPY bytes. The period is a prime,
 * so that no shift by whole blocks fits. */
const uint8_t *traffic_bytes(uint32_t stream, uint64_t offset);

/* -- protobuf, as much as is needed -- */

struct field {
    uint32_t number;
    uint64_t value; /* varint, or the length of data */
    const uint8_t *data;
};

/* Advances *at; false at the end or at what is no protobuf. */
bool field_next(const uint8_t **at, const uint8_t *end, struct field *ret);
/* Append to out, return what follows. */
uint8_t *put_varint(uint8_t *out, uint64_t value);
uint8_t *put_number(uint8_t *out, uint32_t number, uint64_t value);
uint8_t *put_length(uint8_t *out, uint32_t number, size_t len); /* the bytes come behind */
uint8_t *put_bytes(uint8_t *out, uint32_t number, const void *data, size_t len);
