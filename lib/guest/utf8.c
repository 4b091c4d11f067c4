/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 by table 3-7 of the Unicode standard.
 *
 * Model: a lead byte fixes the length and the allowed range of the second byte; that range is what
 * keeps out overlong forms, surrogates and values above U+10FFFF. All further bytes are 80..BF.
 * Everything that people hand us as text passes through here before another module looks at it, so
 * that later code may take characters for granted.
 */
#include "guest/utf8.h"

#include <errno.h>

static bool tail_ok(const unsigned char *s, int n)
{
    for (int i = 2; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return false;
    return true;
}

int utf8_next(const char *p, size_t len, uint32_t *ret)
{
    const unsigned char *s = (const unsigned char *)p;
    unsigned char low = 0x80, high = 0xbf;
    uint32_t c;
    int n;

    if (s[0] < 0x80) {
        *ret = s[0];
        return 1;
    }
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return -EILSEQ;
    n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0)
        low = 0xa0;
    else if (s[0] == 0xed)
        high = 0x9f;
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xf4)
        high = 0x8f;
    if (len < (size_t)n || s[1] < low || s[1] > high || !tail_ok(s, n))
        return -EILSEQ;
    c = s[0] & (0xffU >> (n + 1));
    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3fU);
    *ret = c;
    return n;
}

bool utf8_valid(const char *text, size_t len, size_t *ret_offset)
{
    uint32_t c;

    for (size_t i = 0; i < len;) {
        int n = utf8_next(text + i, len - i, &c);

        if (n < 0) {
            *ret_offset = i;
            return false;
        }
        i += (size_t)n;
    }
    return true;
}

size_t utf8_put(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}
