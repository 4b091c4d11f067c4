/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF. */
#pragma once

#include "base/macros.h"

/* Decodes the character at p: its length (1..4), or -EILSEQ. len > 0. */
int utf8_next(const char *p, size_t len, uint32_t *ret);
/* True when all of text is UTF-8; else *ret_offset is where it stops being so. */
bool utf8_valid(const char *text, size_t len, size_t *ret_offset);
/* Encodes a scalar value: its length (1..4), or 0 when it is none. */
size_t utf8_put(uint32_t c, char out[4]);
