/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A strict TOML 1.0 reader, as far as initdata needs it: [tables] of one level, bare and quoted
 * keys, all four kinds of strings, integers, booleans, comments. Everything else (arrays, floats,
 * dates, inline tables, dotted keys, arrays of tables) is refused with the line and what is
 * allowed. What it accepts means the same to any TOML 1.0 reader, but for one thing that the
 * specification leaves open: CRLF inside a multi-line string becomes LF (as with Python's tomllib;
 * go-toml keeps it).
 */
#pragma once

#include "base/err.h"

#define TOML_TEXT_MAX (4U << 20)
#define TOML_KEY_MAX 255      /* bytes of one key */
#define TOML_ENTRIES_MAX 1024 /* keys and tables of a document */

enum toml_type { TOML_TABLE, TOML_STRING, TOML_INTEGER, TOML_BOOLEAN };

struct toml_entry {
    char *key; /* UTF-8, NUL-terminated; keys with a NUL inside are refused */
    enum toml_type type;
    char *string; /* TOML_STRING: owned by the document, NUL-terminated; may hold NULs within len */
    size_t len;
    int64_t integer;    /* TOML_INTEGER; TOML_BOOLEAN: 0 or 1 */
    unsigned line;      /* where the key stands, from 1 */
    struct toml *table; /* TOML_TABLE */
};

/* Entries in the order of the document. */
struct toml {
    struct toml_entry *entries;
    size_t n;
};

/* ret: owned, toml_free. -EINVAL, -E2BIG with the line; errors never quote values. */
int toml_parse(const char *text, size_t len, struct toml **ret, struct err *err);
void toml_free(struct toml *t);
DEFINE_CLEANUP(struct toml, toml_free)
/* Borrowed; NULL when absent. */
const struct toml_entry *toml_get(const struct toml *t, const char *key);
