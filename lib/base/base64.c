/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Base64, both ways. Decoding takes exactly what RFC 4648 calls canonical (padding present, unused
 * bits zero), so that one value has one spelling, white space apart: user data passes through YAML
 * and metadata services that wrap lines.
 */
#include "base/base64.h"

#include <errno.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t len)
{
    const uint8_t *in = data;
    char *out = xcalloc(1, (len + 2) / 3 * 4 + 1), *p = out;

    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = (uint32_t)in[i] << 16;

        if (i + 1 < len)
            v |= (uint32_t)in[i + 1] << 8;
        if (i + 2 < len)
            v |= in[i + 2];
        *p++ = alphabet[v >> 18];
        *p++ = alphabet[v >> 12 & 63];
        *p++ = i + 1 < len ? alphabet[v >> 6 & 63] : '=';
        *p++ = i + 2 < len ? alphabet[v & 63] : '=';
    }
    return out;
}

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Characters and padding seen so far; every fourth character completes a group. */
struct decoder {
    uint8_t *out;
    size_t len;
    uint32_t bits;
    unsigned chars, pads; /* of the group under way */
    bool ended;           /* a padded group has gone by */
};

/* A whole group of four: 3, 2 or 1 bytes. False: the bits that padding cuts off are not zero. */
static bool finish_group(struct decoder *d)
{
    unsigned n = 3 - d->pads;

    for (unsigned i = 0; i < n; i++)
        d->out[d->len++] = (uint8_t)(d->bits >> (16 - 8 * i));
    d->ended = d->pads > 0;
    if (d->bits & (d->pads == 2 ? 0xffffU : d->pads == 1 ? 0xffU : 0))
        return false;
    d->bits = 0;
    d->chars = d->pads = 0;
    return true;
}

static bool decode_char(struct decoder *d, char c)
{
    int v = value_of(c);

    if (d->ended)
        return false;
    if (c == '=' && d->chars >= 2) {
        d->pads++;
        v = 0;
    } else if (v < 0 || d->pads) {
        return false;
    }
    d->bits = d->bits << 6 | (uint32_t)v;
    return ++d->chars < 4 || finish_group(d);
}

int base64_decode(const char *text, size_t len, size_t max, uint8_t **ret, size_t *ret_len,
                  struct err *err)
{
    _cleanup_free_ uint8_t *out = NULL;
    struct decoder d = {0};

    /* The bound on the input keeps the allocation in proportion: half of it may be white space. */
    if (len / 8 > max / 3 + 8)
        return err_set(err, -E2BIG, "base64 text of %zu bytes; at most %zu bytes of data are taken",
                       len, max);
    out = d.out = xcalloc(1, len / 4 * 3 + 4);
    for (size_t i = 0; i < len; i++)
        if (!is_space(text[i]) && !decode_char(&d, text[i]))
            return err_set(err, -EINVAL, "not base64 at offset %zu", i);
    if (d.chars)
        return err_set(err, -EINVAL, "base64 ends at offset %zu in the middle of a group", len);
    if (d.len > max)
        return err_set(err, -E2BIG, "base64 of %zu bytes of data; at most %zu are taken", d.len,
                       max);
    out[d.len] = 0;
    *ret = TAKE_PTR(out);
    *ret_len = d.len;
    return 0;
}
