/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile or torn sandbox.json: read or refused, never a crash; what is read can be written. */
#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>

#include "adaptor/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[] = "/tmp/record-fuzz.XXXXXX";
    static int dir = -1;
    struct err err = ERR_INIT;
    struct record r;
    if (dir < 0 && (!mkdtemp(path) || (dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0))
        abort();
    if (fs_write_atomic(dir, RECORD_FILE, data, size, 0600, NULL) < 0)
        abort();
    if (record_read(dir, &r, &err) == 0) {
        free(record_text(&r));
        record_done(&r);
    } else {
        assert(err.code < 0 && *err.text);
    }
    unlinkat(dir, RECORD_FILE, 0);
    return 0;
}
