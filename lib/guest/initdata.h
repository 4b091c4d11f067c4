/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Initdata: a TOML document that the user binds to a pod VM's launch by its digest. It arrives as
 * raw TOML (what a current shim hands over) or as base64 of gzip of it (older shims, the -initdata
 * option, the file initdata in user data), travels as the latter, and is read in the VM.
 *
 *     version = "0.1.0"
 *     algorithm = "sha256"          # or sha384, sha512
 *     [data]
 *     "aa.toml" = '''...'''         # any names; strings
 */
#pragma once

#include "base/err.h"

#define INITDATA_TOML_MAX (4U << 20)    /* also what a gzip stream may unpack to */
#define INITDATA_ENCODED_MAX (6U << 20) /* base64 text, white space included */
#define INITDATA_ENTRIES_MAX 64
#define INITDATA_VERSION "0.1.0"
#define INITDATA_DIGEST_MAX 64

/* The document that stands for an absent one (compat.md). */
extern const char initdata_empty[];

enum initdata_algorithm { INITDATA_SHA256, INITDATA_SHA384, INITDATA_SHA512 };

struct initdata_entry {
    char *name;  /* of [data], for instance "aa.toml"; [A-Za-z0-9._-] is not guaranteed */
    char *value; /* NUL-terminated, may hold NULs within len */
    size_t len;
};

struct initdata {
    char *toml; /* the raw text, over which the digest is taken */
    size_t toml_len;
    enum initdata_algorithm algorithm;
    uint8_t digest[INITDATA_DIGEST_MAX];
    size_t digest_len;
    char digest_hex[2 * INITDATA_DIGEST_MAX + 1];
    struct initdata_entry *entries;
    size_t n_entries;
};

/* "sha256", ... */
const char *initdata_algorithm_name(enum initdata_algorithm algorithm);
/* Raw TOML or base64(gzip(TOML)), told apart by the characters, to raw TOML: owned, NUL-terminated.
 * -E2BIG beyond INITDATA_TOML_MAX, -EINVAL with the reason. Does not look into the TOML. */
int initdata_decode(const char *text, size_t len, char **ret, size_t *ret_len, struct err *err);
/* Decodes, reads and checks. ret is written on success only; initdata_done. */
int initdata_parse(const char *text, size_t len, struct initdata *ret, struct err *err);
/* Overwrites and frees; fine on a zeroed struct. */
void initdata_done(struct initdata *d);
/* base64(gzip(toml)), the same bytes every time: owned, NUL-terminated, without line breaks. */
int initdata_encode(const char *toml, size_t len, char **ret, size_t *ret_len, struct err *err);
/* Borrowed; NULL when [data] has no such entry. */
const struct initdata_entry *initdata_get(const struct initdata *d, const char *name);
