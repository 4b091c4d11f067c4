/* SPDX-License-Identifier: Apache-2.0 */
/* Time: monotonic for intervals, real for people. */
#pragma once

#include "base/macros.h"

#define CLOCK_RFC3339_SIZE 32

int64_t clock_mono_ms(void); /* CLOCK_MONOTONIC */
int64_t clock_mono_us(void);
int64_t clock_real_ms(void);
/* "2026-11-23T14:35:17.123Z" */
void clock_rfc3339(int64_t real_ms, char out[CLOCK_RFC3339_SIZE]);
/* The other way, any RFC 3339 time ("2026-11-22T22:01:41.350360+01:00"); -EINVAL. */
int clock_parse_rfc3339(const char *text, int64_t *ret_real_ms);
