/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strict reader of the cloud-config documents that adaptors make (compat.md "User data"): first
 * line "#cloud-config", one mapping with the one key write_files, each entry with `path` and
 * optionally `content`, nothing else. Anchors, aliases, tags, duplicate keys and paths, further
 * documents and unknown keys are errors that name line and key.
 */
#pragma once

#include "base/err.h"

#define CLOUDCONFIG_MAX (4U << 20)
#define CLOUDCONFIG_FILES_MAX 32
#define CLOUDCONFIG_PATH_MAX 255

struct cloudconfig_file {
    char *path;    /* as written: not checked against any list */
    char *content; /* NUL-terminated, without NUL inside; NULL: the entry had none */
    size_t len;
};

struct cloudconfig {
    struct cloudconfig_file *files;
    size_t n;
};

/* ret is written on success only; cloudconfig_done. Errors never quote contents. */
int cloudconfig_parse(const char *text, size_t len, struct cloudconfig *ret, struct err *err);
/* Overwrites the contents (they hold secrets) and frees; fine on a zeroed struct. */
void cloudconfig_done(struct cloudconfig *c);
