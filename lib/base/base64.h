/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Base64 with padding (RFC 4648, the standard alphabet), no line breaks; owned results. Decoding is
 * strict, but for white space between characters; -EINVAL names the offset, max bounds the decoded
 * size (-E2BIG).
 */
#pragma once

#include "base/err.h"

char *base64_encode(const void *data, size_t len);
/* ret is NUL-terminated for callers that expect text. */
int base64_decode(const char *text, size_t len, size_t max, uint8_t **ret, size_t *ret_len,
                  struct err *err);
