/* SPDX-License-Identifier: Apache-2.0 */
/* The shared files of AWS's programs, from any bytes: first as the credentials file, then as the
 * config file, which must not change what the first one says. */
#include "base/str.h"
#include "providers/aws/profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct profiles *p = profiles_new();
    struct err err = ERR_INIT;
    const char *value;
    char *before = NULL;

    if (profiles_add(p, (const char *)data, size, false, &err) < 0 && err.code >= 0)
        abort();
    value = profiles_get(p, "default", "aws_access_key_id");
    if (value) {
        if (!profiles_has(p, "default") || strpbrk(value, "\n") || !*value)
            abort();
        before = xstrdup(value);
    }
    err_clear(&err);
    if (profiles_add(p, (const char *)data, size, true, &err) < 0 && err.code >= 0)
        abort();
    if (before && !str_eq(before, profiles_get(p, "default", "aws_access_key_id")))
        abort();
    free(before);
    profiles_free(p);
    return 0;
}
