/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User data: the cloud-config document that carries files into a pod VM (compat.md "User data").
 *
 * The text is a function of its inputs alone, byte for byte. What cloudconfig_parse (and any YAML
 * reader) gets out of it is exactly what went in: text that a literal block cannot carry is written
 * as a quoted scalar; what YAML cannot carry at all (NUL, broken UTF-8) is refused.
 */
#pragma once

#include "base/err.h"

#define USERDATA_MAX (4U << 20) /* of any document, whatever the provider takes */
#define USERDATA_FILES_MAX 32
#define USERDATA_PATH_MAX 255

struct userdata_file {
    const char *path;    /* absolute, of [A-Za-z0-9/._-], no empty, "." or ".." component */
    const char *content; /* UTF-8 text; NULL: an entry without content (an empty file) */
    size_t len;
};

/*
 * max: what the provider takes, in bytes of the document before any base64 (provider.h:
 * user_data_max); 0: USERDATA_MAX. ret is owned by the caller and NUL-terminated; it may hold
 * secrets. -E2BIG: err names the limit, the size and the largest parts; -EINVAL: err names the file
 * and what is wrong with it.
 */
int userdata_build(const struct userdata_file *files, size_t n, size_t max, char **ret,
                   size_t *ret_len, struct err *err);
