/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strings from outside: checked numbers, durations as Go writes them, lists, hex, character sets.
 * All parsers accept the whole string or nothing: 0, or -EINVAL / -ERANGE without touching *ret.
 */
#pragma once

#include "base/macros.h"

bool str_eq(const char *a, const char *b); /* NULL equals NULL only */
bool str_starts(const char *s, const char *prefix);
bool str_empty(const char *s); /* NULL or "" */

int str_to_u64(const char *s, uint64_t max, uint64_t *ret);
int str_to_i64(const char *s, int64_t min, int64_t max, int64_t *ret);
int str_to_double(const char *s, double *ret); /* finite decimal; no hex, inf, nan */
/* Go's time.ParseDuration ("1h15m30.5s", "-1.5h", "0"); nanoseconds. */
int str_to_duration(const char *s, int64_t *ret_ns);
/* Writes as Go's Duration.String: "5m0s". out needs 32 bytes. */
void str_from_duration(int64_t ns, char *out, size_t size);
/* Go's strconv.ParseBool: 1 t T TRUE true True 0 f F FALSE false False. */
int str_to_bool(const char *s, bool *ret);

/* Comma-separated list; blanks around items dropped, empty items dropped. NULL-terminated, owned:
 * strv_free. Never NULL. */
char **str_split(const char *s, char sep);
void strv_free(char **v);
size_t strv_len(char *const *v);
DEFINE_CLEANUP(char *, strv_free)

/* Lower-case hex; out needs 2 * len + 1. */
void str_hex(const void *data, size_t len, char *out);
/* len bytes exactly; -EINVAL otherwise. */
int str_unhex(const char *hex, void *out, size_t len);

/* snprintf that reports truncation: 0 or -ENAMETOOLONG. */
int str_format(char *out, size_t size, const char *fmt, ...) _printf_(3, 4);
/* Owned, never NULL. */
char *str_asprintf(const char *fmt, ...) _printf_(1, 2);

/* A sandbox id as the shim may send it: 1..64 of [A-Za-z0-9_.-], not beginning with a dot.
 * Returns 0, or -EINVAL with a sentence in ret_why (static storage). */
#define SANDBOX_ID_MAX 64
int str_check_sandbox_id(const char *id, const char **ret_why);

/* Overwrites memory in a way that the compiler keeps. */
void secret_wipe(void *p, size_t len);
