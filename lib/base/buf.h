/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A growing byte buffer with a named maximum. `data` is always NUL-terminated one past `len`, so a
 * text buffer can be handed on as a string. Exceeding `max` (0: BUF_MAX_DEFAULT) makes the buffer
 * fail: appends return -E2BIG from then on and `failed` stays set, so that a builder can append
 * many pieces and check once.
 */
#pragma once

#include "base/macros.h"

#define BUF_MAX_DEFAULT (64U << 20)

struct buf {
    char *data;
    size_t len, cap, max;
    bool failed;
};

#define BUF_INIT(limit) ((struct buf){.max = (limit)})

void buf_done(struct buf *b);
/* Overwrites before freeing: for buffers that held secrets. */
void buf_done_secret(struct buf *b);
int buf_add(struct buf *b, const void *data, size_t len);
int buf_adds(struct buf *b, const char *text);
int buf_addf(struct buf *b, const char *fmt, ...) _printf_(2, 3);
/* Room for n more bytes at data + len; the caller then adds to len itself (buf_grown). */
int buf_reserve(struct buf *b, size_t n);
void buf_grown(struct buf *b, size_t n);
/* Drops n bytes at the front. */
void buf_consume(struct buf *b, size_t n);
/* Returns the data, owned by the caller (never NULL unless failed), and empties b. */
char *buf_steal(struct buf *b);
