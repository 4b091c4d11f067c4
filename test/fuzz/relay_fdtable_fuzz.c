/* SPDX-License-Identifier: Apache-2.0 */
/* A message for the table of descriptors, with none, one and three of them: each is kept or closed,
 * and entry i is always descriptor first + i. */
#include <fcntl.h>

#include "relay/fdtable.h"

#define FIRST 500

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fdpass m;
    static char names[FDTABLE_NAMES_MAX];
    struct fdtable t;
    int free_before = open("/dev/null", O_RDONLY | O_CLOEXEC);

    close(free_before);
    if (size > sizeof(m.text))
        return 0;
    fdtable_init(&t, FIRST, 5);
    for (size_t n = 0; n < 7; n += 3) {
        struct err err = ERR_INIT;
        memcpy(m.text, data, m.len = size);
        for (m.n_fds = 0; m.n_fds < n % 5; m.n_fds++)
            m.fds[m.n_fds] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        int r = fdtable_apply(&t, &m, &err);
        check((r < 0) == (err.code != 0) && m.n_fds == 0 && t.n <= t.max);
        for (size_t i = 0; i <= t.max; i++)
            check((fcntl(FIRST + (int)i, F_GETFD) == FD_CLOEXEC) == (i < t.n));
    }
    fdtable_names(&t, 0, t.n, names);
    size_t entries = t.n > 0;
    for (const char *c = names; t.n > 0 && *c; c++)
        entries += *c == ':';
    check(entries == t.n);
    fdtable_done(&t);
    int free_after = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(free_after);
    check(free_after == free_before);
    return 0;
}
