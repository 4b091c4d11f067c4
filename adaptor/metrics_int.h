/* SPDX-License-Identifier: Apache-2.0 */
/* What the two writers of /metrics share (metrics_text.c, metrics_http.c). */
#pragma once

#include "base/buf.h"

/* The head of a family; unit "": none. */
void metrics_head(struct buf *out, const char *name, const char *type, const char *unit,
                  const char *help);
/* A label's value with its quotes. */
void metrics_quote(struct buf *out, const char *text);
/* A bucket's bound in canonical form: "0.25", "1.0". */
void metrics_bound(struct buf *out, double bound);

void metrics_write_requests(struct buf *out);
