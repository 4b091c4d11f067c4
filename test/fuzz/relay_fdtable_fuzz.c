/* SPDX-License-Identifier: Apache-2.0 */
/* A message for a table that has one descriptor, with none, three (two of them the same file) and one
 * more, which is too many: each is kept or closed, and what is kept is open and there once. */
#include <fcntl.h>

#include "relay/fdtable.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static int apply(struct fdtable *t, struct fdpass *m, const void *text, size_t len, size_t n,
                 struct err *err)
{
    memcpy(m->text, text, m->len = len);
    for (m->n_fds = 0; m->n_fds < n; m->n_fds++)
        m->fds[m->n_fds] = m->n_fds == 2 ? fcntl(m->fds[1], F_DUPFD_CLOEXEC, 0)
                                         : open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fdtable_apply(t, m, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char first[] = "FDSTORE=1\nFDNAME=conn-1.sock";
    static struct fdpass m;
    static struct fdtable t;
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);

    close(lowest);
    if (size > sizeof(m.text))
        return 0;
    fdtable_init(&t);
    t.max = 3;
    check(apply(&t, &m, first, strlen(first), 1, NULL) == 0 && t.n == 1);
    for (size_t n = 0; n < 7; n += 3) {
        struct err err = ERR_INIT;
        int r = apply(&t, &m, data, size, n % 5, &err);
        check((r < 0) == (err.code != 0) && m.n_fds == 0 && t.n <= t.max);
        bool seen[16] = {false};
        for (size_t i = 0; i < t.n; i++) {
            int at = t.entries[i].fd - lowest;
            check(at >= 0 && at < (int)ARRAY_SIZE(seen) && !seen[at]);
            seen[at] = true;
            check(strlen(t.entries[i].name) > 0);
        }
        for (int at = 0; at < (int)ARRAY_SIZE(seen); at++)
            check((fcntl(lowest + at, F_GETFD) == FD_CLOEXEC) == seen[at]);
    }
    fdtable_done(&t);
    int lowest_after = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(lowest_after);
    check(lowest_after == lowest);
    return 0;
}
