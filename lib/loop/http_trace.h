/* SPDX-License-Identifier: Apache-2.0 */
/* What a debug log may show of an exchange: no body, no value of a header that is not known to be
 * harmless, no query. */
#pragma once

#include "base/buf.h"

/* Appends the lines of a piece of a head (request line, status line, headers) as they may be
 * logged, separated by "; ". */
void http_trace_head(const char *data, size_t len, struct buf *out);
