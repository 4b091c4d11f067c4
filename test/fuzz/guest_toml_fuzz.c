/* SPDX-License-Identifier: Apache-2.0 */
/* The TOML reader on any text: what it accepts is well formed and has no key twice. */
#include "guest/toml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_table(const struct toml *t, int depth)
{
    for (size_t i = 0; i < t->n; i++) {
        const struct toml_entry *e = &t->entries[i];

        if (toml_get(t, e->key) != e || e->line == 0 || depth > 1 ||
            (e->type == TOML_TABLE) != (e->table != NULL) ||
            (e->type == TOML_STRING) != (e->string != NULL))
            abort();
        if (e->type == TOML_STRING && e->string[e->len] != 0)
            abort();
        if (e->table)
            check_table(e->table, depth + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = ERR_INIT;
    struct toml *t = NULL;

    if (toml_parse((const char *)data, size, &t, &err) == 0)
        check_table(t, 0);
    else if (err.code >= 0 || t)
        abort();
    toml_free(t);
    return 0;
}
