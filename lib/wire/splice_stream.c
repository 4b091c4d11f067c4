/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The parser is in one of two modes. At the start of a frame its first bytes are collected in
 * `held` until splice_peek can tell: a frame that passes goes on at once, and its remaining `left`
 * bytes are copied through in pieces of any size; one that is held stays in `held` until it is
 * whole, is spliced, and goes on as one piece. At most TTRPC_BODY_MAX and a header are ever held.
 *
 * Output is bounded: put() takes nothing while OUT_MAX bytes wait, so a far side that does not read
 * stops the shim, not our memory. A frame being spliced may exceed that by itself, once.
 *
 * A frame that cannot be spliced is answered here (as forwarder/edit.c does): the answer waits for
 * the next end of a frame of the agent's, which ttrpc_walk finds, and meanwhile no second frame is
 * spliced. No answer is cut in two by the agent's bytes, nor the other way about.
 */
#include "wire/splice_stream.h"

#include <errno.h>

#define OUT_MAX (64U << 10)
#define FRAME_MAX ((size_t)TTRPC_HEADER_SIZE + TTRPC_BODY_MAX)
#define OUT_LIMIT (2 * OUT_MAX + FRAME_MAX) /* acknowledged and not yet moved, waiting, spliced */
#define ANSWER_MAX (32U << 10)

struct splice_stream {
    const struct splice_rules *rules;
    struct buf held;
    bool holding;  /* splice_peek has said so */
    uint64_t left; /* of a frame that passes */
    struct buf out;
    size_t out_start; /* bytes of out that are acknowledged */
    uint64_t tail;
    struct buf answer;
    size_t answer_at;
    uint64_t in_left; /* ttrpc_walk */
    uint32_t in_have;
    uint8_t in_header[TTRPC_HEADER_SIZE];
};

struct splice_stream *splice_stream_new(const struct splice_rules *rules)
{
    struct splice_stream *s = xcalloc(1, sizeof(*s));
    s->rules = rules;
    s->held = BUF_INIT(FRAME_MAX);
    s->out = BUF_INIT(OUT_LIMIT);
    s->answer = BUF_INIT(ANSWER_MAX);
    return s;
}

void splice_stream_free(struct splice_stream *s)
{
    if (!s)
        return;
    buf_done(&s->held);
    buf_done(&s->out);
    buf_done(&s->answer);
    free(s);
}

static void held_drop(struct splice_stream *s)
{
    buf_done(&s->held);
    s->held = BUF_INIT(FRAME_MAX);
    s->holding = false;
}

/* Bytes that `held` still wants before the next decision. */
static size_t held_wants(const struct splice_stream *s)
{
    struct ttrpc_header h;
    if (s->held.len < TTRPC_HEADER_SIZE)
        return TTRPC_HEADER_SIZE - s->held.len;
    ttrpc_header_decode((const uint8_t *)s->held.data, &h);
    size_t whole = TTRPC_HEADER_SIZE + h.length;
    if (s->holding)
        return whole - s->held.len;
    return MIN(whole, (size_t)SPLICE_PEEK_MAX) - s->held.len;
}

/* When it is whole. It may need an answer, so while one waits it waits as well. */
static void splice_held(struct splice_stream *s)
{
    struct err err = ERR_INIT;
    if (!s->holding || held_wants(s) > 0 || s->answer.len > 0)
        return;
    const uint8_t *frame = (const uint8_t *)s->held.data;
    if (splice_frame(frame, s->held.len, s->rules, &s->out, &err) < 0)
        splice_answer(frame, &err, &s->answer);
    held_drop(s);
}

/* More of a frame's beginning has come. */
static void decide(struct splice_stream *s)
{
    struct ttrpc_header h;
    enum splice_verdict v = splice_peek((const uint8_t *)s->held.data, s->held.len);
    if (v == SPLICE_HOLD)
        s->holding = true;
    if (v != SPLICE_PASS)
        return;
    ttrpc_header_decode((const uint8_t *)s->held.data, &h);
    s->left = TTRPC_HEADER_SIZE + (uint64_t)h.length - s->held.len;
    buf_add(&s->out, s->held.data, s->held.len);
    held_drop(s);
}

size_t splice_stream_put(struct splice_stream *s, const uint8_t *p, size_t len)
{
    size_t waiting = s->out.len - s->out_start;
    if (waiting >= OUT_MAX)
        return 0;
    if (s->left > 0) {
        len = MIN((size_t)MIN(s->left, len), OUT_MAX - waiting);
        buf_add(&s->out, p, len);
        s->left -= len;
        return len;
    }
    len = MIN(len, held_wants(s)); /* 0: the frame is whole and waits, see splice_held */
    if (len == 0)
        return 0;
    buf_add(&s->held, p, len);
    if (!s->holding)
        decide(s);
    splice_held(s);
    return len;
}

void splice_stream_end(struct splice_stream *s)
{
    if (!s->holding && s->held.len > 0)
        buf_add(&s->out, s->held.data, s->held.len);
    held_drop(s);
}

uint64_t splice_stream_head(const struct splice_stream *s)
{
    return s->tail + (s->out.len - s->out_start);
}

uint64_t splice_stream_tail(const struct splice_stream *s)
{
    return s->tail;
}

size_t splice_stream_peek(const struct splice_stream *s, uint64_t offset, const uint8_t **ret)
{
    size_t at = s->out_start + (size_t)(offset - s->tail);
    if (at >= s->out.len)
        return 0;
    *ret = (const uint8_t *)s->out.data + at;
    return s->out.len - at;
}

int splice_stream_ack(struct splice_stream *s, uint64_t offset)
{
    if (offset > splice_stream_head(s))
        return -ERANGE;
    if (offset <= s->tail)
        return 0;
    s->out_start += (size_t)(offset - s->tail);
    s->tail = offset;
    if (s->out_start == s->out.len) {
        if (s->out.cap > 4 * OUT_MAX) { /* a spliced frame's memory */
            buf_done(&s->out);
            s->out = BUF_INIT(OUT_LIMIT);
        }
        s->out.len = s->out_start = 0;
    } else if (s->out_start >= OUT_MAX) {
        buf_consume(&s->out, s->out_start);
        s->out_start = 0;
    }
    return 0;
}

size_t splice_stream_limit(const struct splice_stream *s)
{
    if (s->answer.len == 0)
        return SIZE_MAX;
    if (s->in_left > 0)
        return (size_t)s->in_left;
    return s->in_have > 0 ? TTRPC_HEADER_SIZE - s->in_have : 0;
}

void splice_stream_pass(struct splice_stream *s, const uint8_t *p, size_t n)
{
    while (n > 0) {
        size_t took = ttrpc_walk(&s->in_left, &s->in_have, s->in_header, p, n);
        p += took;
        n -= took;
    }
}

size_t splice_stream_answer(const struct splice_stream *s, const uint8_t **ret)
{
    if (s->answer.len == 0)
        return 0;
    *ret = (const uint8_t *)s->answer.data + s->answer_at;
    return s->answer.len - s->answer_at;
}

void splice_stream_answered(struct splice_stream *s, size_t n)
{
    s->answer_at += n;
    if (s->answer_at < s->answer.len)
        return;
    buf_done(&s->answer);
    s->answer = BUF_INIT(ANSWER_MAX);
    s->answer_at = 0;
    splice_held(s);
}
