/* SPDX-License-Identifier: Apache-2.0 */
/* A message for the descriptor store. Numbers far beyond any limit stand for descriptors: closing
 * them fails and harms nobody. */
#include "keeper/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int fds[] = {INT32_MAX - 1, INT32_MAX};
    struct store s;

    if (size > STORE_MESSAGE_MAX)
        return 0;
    store_init(&s, 3);
    for (size_t i = 0; i < 3; i++) {
        struct err err = ERR_INIT;
        int r = store_apply(&s, (const char *)data, size, fds, i, &err);
        if ((r < 0) != (err.code != 0))
            abort();
    }
    _cleanup_free_ char *names = store_names(&s);
    size_t len = strlen(names), entries = len > 0;
    for (size_t i = 0; i < len; i++)
        entries += names[i] == ':';
    if (entries != s.n)
        abort();
    store_done(&s);
    return 0;
}
