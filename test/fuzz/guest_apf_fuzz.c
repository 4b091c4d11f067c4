/* SPDX-License-Identifier: Apache-2.0 */
/* apf.json from any text: what is accepted can be written, and is then read as the same. */
#include "guest/apf.h"

#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct apf apf = {0}, again = {0};
    struct err err = ERR_INIT;
    char *one = NULL, *two = NULL;
    size_t len;

    if (apf_parse((const char *)data, size, &apf, &err) < 0) {
        check(err.code < 0);
        return 0;
    }
    /* Spaces may be saved, names of keys added: only the size may refuse what was just read. */
    if (apf_build(&apf, &one, &len, &err) < 0) {
        check(err.code == -E2BIG);
    } else {
        check(apf_parse(one, len, &again, NULL) == 0);
        check(apf_build(&again, &two, &len, NULL) == 0 && strcmp(one, two) == 0);
    }
    free(one);
    free(two);
    apf_done(&apf);
    apf_done(&again);
    return 0;
}
