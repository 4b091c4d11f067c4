/* SPDX-License-Identifier: Apache-2.0 */
/* The provider with a meter: every call is timed and counted for /metrics. */
#pragma once

#include "adaptor/metrics.h"
#include "providers/provider.h"

/* Both are borrowed. Freed with meter_free; its type's `close` is for nobody. */
struct provider *meter_new(struct provider *inner, struct metrics *metrics);
void meter_free(struct provider *p);
