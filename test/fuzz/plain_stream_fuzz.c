/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the shim's stream, in two ways at once: whole and in pieces. What comes out must be
 * the same, whatever the pieces; and any bytes as the beginning of a ClientHello, in a block of
 * their own size.
 */
#include <stdlib.h>

#include "wire/splice_stream.h"
#include "wire/tls_plain.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct splice_rules rules = {.netns_path = "/run/netns/podns", .clear_dns = true};

static void drain(struct splice_stream *s, struct buf *out, struct buf *answers)
{
    const uint8_t *p;
    size_t n;
    while (splice_stream_limit(s) == 0 && (n = splice_stream_answer(s, &p)) > 0) {
        buf_add(answers, p, n);
        splice_stream_answered(s, n);
    }
    while ((n = splice_stream_peek(s, splice_stream_tail(s), &p)) > 0) {
        buf_add(out, p, n);
        if (splice_stream_ack(s, splice_stream_tail(s) + n) < 0)
            abort();
    }
}

static void run(const uint8_t *data, size_t size, size_t piece, struct buf *out,
                struct buf *answers)
{
    struct splice_stream *s = splice_stream_new(&rules);
    for (size_t at = 0, stuck = 0; at < size;) {
        size_t n = splice_stream_put(s, data + at, MIN(piece, size - at));
        stuck = n > 0 ? 0 : stuck + 1;
        if (stuck > 2)
            abort();
        at += n;
        if (n == 0)
            drain(s, out, answers);
    }
    drain(s, out, answers);
    splice_stream_end(s);
    drain(s, out, answers);
    splice_stream_free(s);
}

static void check_same(const struct buf *a, const struct buf *b)
{
    if (a->len != b->len || (a->len > 0 && memcmp(a->data, b->data, a->len) != 0))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf out[2] = {BUF_INIT(8 << 20), BUF_INIT(8 << 20)};
    struct buf answers[2] = {BUF_INIT(8 << 20), BUF_INIT(8 << 20)};
    if (size == 0)
        return 0;
    run(data + 1, size - 1, SIZE_MAX, &out[0], &answers[0]);
    run(data + 1, size - 1, (size_t)data[0] + 1, &out[1], &answers[1]);
    check_same(&out[0], &out[1]);
    check_same(&answers[0], &answers[1]);
    for (int i = 0; i < 2; i++) {
        buf_done(&out[i]);
        buf_done(&answers[i]);
    }
    uint8_t *copy = malloc(size);
    memcpy(copy, data, size);
    tls_hello_offers(copy, size, TLS_ALPN_TUNNEL);
    free(copy);
    return 0;
}
