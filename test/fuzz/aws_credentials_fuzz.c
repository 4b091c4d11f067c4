/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON of a credentials endpoint from any bytes: a key that can stand in a header, or a
 * refusal with a reason. */
#include "providers/aws/credentials.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_part(const char *part)
{
    if (part && (!*part || strpbrk(part, "\r\n")))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aws_key key = {0};
    struct err err = ERR_INIT;

    if (credentials_parse_json((const char *)data, size, &key, &err) == 0) {
        if (!key.id || !key.secret)
            abort();
        check_part(key.id);
        check_part(key.secret);
        check_part(key.token);
    } else if (err.code >= 0 || key.id || key.secret || key.token) {
        abort();
    }
    aws_key_done(&key);
    return 0;
}
