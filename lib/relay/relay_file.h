/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of a relay's file, for relay.c and the tests that look over its shoulder.
 *
 * A header, then at RELAY_BLOCK the in ring, behind it the out ring. Stores to the header are what
 * a crash leaves behind: each field says when it may change. Host byte order: the file never
 * leaves the machine. A raised minor adds fields behind the last: an older program leaves them alone,
 * and a newer one finds zeroes where an older one has made the file (header_size says what was
 * there). A raised major is refused by older programs.
 */
#pragma once

#include <sys/socket.h>

#include "relay/relay.h"

#define RELAY_FILE_MAGIC "PPRELAY" /* with its NUL, 8 bytes */
/* Tests raise them. Never released: format 1, with a pipe beside the socket, and format 2, whose reads
 * took the bytes out of the socket at once. */
#define RELAY_FILE_OLDEST 3 /* that is read */
#ifndef RELAY_FILE_MAJOR
#define RELAY_FILE_MAJOR 3
#endif
#ifndef RELAY_FILE_MINOR
#define RELAY_FILE_MINOR 0
#endif
#define RELAY_FILE_HEADER 4096U /* allocated for the header; the struct is smaller */

/* Offsets beyond this are refused: no sum of ours can wrap. */
#define RELAY_OFFSET_MAX ((uint64_t)1 << 62)

struct relay_slot {
    uint64_t head;
    uint8_t user[RELAY_USER_SIZE];
};

/* One sendmmsg of one message: the kernel adds to it. */
struct relay_call {
    uint64_t base;      /* sent before this call */
    struct mmsghdr msg; /* msg_len: 0 until the kernel says how much it took; the rest is scratch */
};

struct relay_file {
    char magic[8]; /* stored last at creation: without it nothing was ever read */
    uint32_t major, minor;
    uint32_t ring_size;   /* of both */
    uint32_t header_size; /* of this struct when the file was made */
    uint64_t in_base;     /* received (injected included) = in_base + SO_PEEK_OFF */
    uint64_t in_taking;   /* not 0: received is this; what SO_PEEK_OFF counts is being taken */
    uint64_t in_tail;     /* acknowledged */
    uint32_t in_eof;      /* the peer sends no more, and all of it was read */
    uint32_t out_fin;     /* nothing comes behind the out head */
    uint32_t out_slot;    /* which of the two counts */
    uint32_t out_call;    /* which of the two counts: sent = base + msg_len, the out ring's tail */
    struct relay_slot slot[2];
    struct relay_call call[2];
#if RELAY_FILE_MINOR > 0
    uint64_t added; /* of minor 1, which only tests have */
#endif
};

/* Of version 3.0: no file has a smaller one. */
#define RELAY_FILE_HEADER_MIN (offsetof(struct relay_file, call) + 2 * sizeof(struct relay_call))

static inline off_t relay_file_in(void)
{
    return RELAY_BLOCK;
}

static inline off_t relay_file_out(size_t ring_size)
{
    return RELAY_BLOCK + (off_t)ring_size;
}

static inline size_t relay_file_size(size_t ring_size)
{
    return RELAY_BLOCK + 2 * ring_size;
}
