/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Initdata from any text; any bytes as a gzip stream (wrapped in base64 here, so that mutations
 * reach the inflater); and the encoder, whose output must unpack to what went in.
 */
#include "guest/initdata.h"

#include <string.h>

#include "base/base64.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const char *text, size_t len)
{
    struct err err = ERR_INIT;
    struct initdata d = {0};

    if (initdata_parse(text, len, &d, &err) == 0) {
        if (d.toml_len > INITDATA_TOML_MAX || strlen(d.digest_hex) != 2 * d.digest_len ||
            strncmp(initdata_algorithm_name(d.algorithm), "sha", 3) != 0)
            abort();
        for (size_t i = 0; i < d.n_entries; i++)
            if (initdata_get(&d, d.entries[i].name) != &d.entries[i])
                abort(); /* a name stands there once */
    } else if (err.code >= 0 || d.toml) {
        abort();
    }
    initdata_done(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_free_ char *wrapped = base64_encode(data, size), *packed = NULL, *back = NULL;
    size_t len = 0;

    parse((const char *)data, size);
    parse(wrapped, strlen(wrapped));
    if (size == 0 || size > INITDATA_TOML_MAX)
        return 0;
    if (initdata_encode((const char *)data, size, &packed, &len, NULL) < 0 ||
        initdata_decode(packed, len, &back, &len, NULL) < 0 || len != size ||
        memcmp(back, data, size) != 0)
        abort();
    return 0;
}
