/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a receiver that replaces duplicate submessages (rust-protobuf) sees of a request, for the
 * splice tests: an independent little protobuf reader, by design of another make than splice.c (a
 * cursor that fails sticky, recursion for groups). Every field that is not on the way to the edit
 * is kept as raw bytes in `rest`, in order, with the tag alone of the one on the way as a marker;
 * so two views are equal only if all those bytes are.
 */
#pragma once

#include "base/buf.h"
#include "wire/ttrpc.h"

struct view_cursor {
    const uint8_t *p, *end;
    bool bad;
};

struct view_bytes {
    const uint8_t *data;
    size_t len;
};

struct view_level {
    struct buf rest;
    struct view_bytes content; /* of the last wanted field */
    bool present;
};

static inline struct view_cursor view_begin(struct view_bytes m)
{
    static const uint8_t none;
    const uint8_t *p = m.data ? m.data : &none;
    return (struct view_cursor){p, p + m.len, false};
}

static inline uint64_t view_varint(struct view_cursor *c)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (c->p == c->end || (shift == 63 && *c->p > 1)) {
            c->bad = true;
            return 0;
        }
        uint8_t byte = *c->p++;
        v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return v;
    }
    c->bad = true;
    return 0;
}

static inline void view_skip(struct view_cursor *c, uint64_t n)
{
    if (n > (uint64_t)(c->end - c->p))
        c->bad = true;
    else
        c->p += n;
}

/* Reads one field's value behind its tag; a LEN field's content goes to *ret. */
static inline void view_value(struct view_cursor *c, uint64_t tag, int depth,
                              struct view_bytes *ret)
{
    uint64_t n;
    switch (tag & 7) {
    case 0:
        view_varint(c);
        return;
    case 1:
        view_skip(c, 8);
        return;
    case 5:
        view_skip(c, 4);
        return;
    case 2:
        n = view_varint(c);
        *ret = (struct view_bytes){c->p, (size_t)n};
        view_skip(c, c->bad ? 0 : n);
        return;
    case 3:
        while (!c->bad && depth > 0) {
            uint64_t inner = view_varint(c);
            if (c->bad || inner > UINT32_MAX || inner < 8)
                break;
            if (inner == ((tag & ~(uint64_t)7) | 4))
                return;
            if ((inner & 7) == 4)
                break;
            struct view_bytes ignored;
            view_value(c, inner, depth - 1, &ignored);
        }
        c->bad = true;
        return;
    default:
        c->bad = true;
    }
}

/* One level; false: not protobuf. wanted's last occurrence is taken out. */
static inline bool view_read(struct view_bytes message, uint32_t wanted, struct view_level *ret)
{
    size_t last = SIZE_MAX, count = 0;
    *ret = (struct view_level){0};
    for (int pass = 0; pass < 2; pass++) {
        struct view_cursor c = view_begin(message);
        for (count = 0; c.p < c.end; count++) {
            const uint8_t *start = c.p;
            uint64_t tag = view_varint(&c);
            const uint8_t *behind_tag = c.p;
            struct view_bytes content = {0};
            if (c.bad || tag > UINT32_MAX || tag < 8)
                return false;
            view_value(&c, tag, 32, &content);
            if (c.bad)
                return false;
            bool mine = tag == ((uint64_t)wanted << 3 | 2);
            if (pass == 0 && mine)
                last = count;
            if (pass == 1) {
                if (mine && count == last) {
                    ret->content = content;
                    ret->present = true;
                    buf_add(&ret->rest, start, (size_t)(behind_tag - start));
                } else {
                    buf_add(&ret->rest, start, (size_t)(c.p - start));
                }
            }
        }
    }
    return true;
}

static inline bool view_level_same(const struct view_level *a, const struct view_level *b)
{
    return a->present == b->present && a->rest.len == b->rest.len &&
           (a->rest.len == 0 || memcmp(a->rest.data, b->rest.data, a->rest.len) == 0);
}

/* All bytes of a, then tail. */
static inline bool view_extends(struct view_bytes a, struct view_bytes b, struct view_bytes tail)
{
    return b.len == a.len + tail.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0) &&
           memcmp(b.data + a.len, tail.data, tail.len) == 0;
}

/*
 * True when `out` is `in` with `tail` appended to the message at the end of `path` (numbers of
 * fields from the body down; absent levels made at the end) and every other byte the same.
 */
static inline bool view_appended(struct view_bytes in, struct view_bytes out, const uint32_t *path,
                                 size_t depth, struct view_bytes tail)
{
    if (depth == 0)
        return view_extends(in, out, tail);
    struct view_level a = {0}, b = {0};
    bool ok = view_read(in, path[0], &a) && view_read(out, path[0], &b) && b.present;
    if (ok && a.present) {
        ok = view_level_same(&a, &b);
    } else if (ok) { /* the level was made: behind everything, by its tag in the shortest form */
        uint8_t tag = (uint8_t)(path[0] << 3 | 2);
        ok = b.rest.len == a.rest.len + 1 && (uint8_t)b.rest.data[a.rest.len] == tag &&
             (a.rest.len == 0 || memcmp(a.rest.data, b.rest.data, a.rest.len) == 0);
    }
    ok = ok && view_appended(a.content, b.content, path + 1, depth - 1, tail);
    buf_done(&a.rest);
    buf_done(&b.rest);
    return ok;
}

/* True when `out` is `in` without the length-delimited fields `number`. */
static inline bool view_removed(struct view_bytes in, struct view_bytes out, uint32_t number)
{
    struct buf expected = {0};
    struct view_cursor c = view_begin(in);
    while (c.p < c.end && !c.bad) {
        const uint8_t *start = c.p;
        uint64_t tag = view_varint(&c);
        struct view_bytes content;
        if (!c.bad)
            view_value(&c, tag, 32, &content);
        if (!c.bad && tag != ((uint64_t)number << 3 | 2))
            buf_add(&expected, start, (size_t)(c.p - start));
    }
    bool ok = !c.bad && expected.len == out.len &&
              (out.len == 0 || memcmp(expected.data, out.data, out.len) == 0);
    buf_done(&expected);
    return ok;
}
