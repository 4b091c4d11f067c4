/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Entry i is descriptor first + i, always: where first is 3 a child inherits the numbers that it is
 * to have, and nothing is moved between fork and exec. The owner keeps its own descriptors above
 * first + max. What arrives mostly has the right number already, the lowest free one. When one goes,
 * the last takes its place. The table is made at the start and never grows.
 *
 * The protocol has no answers, so a descriptor that is refused is lost for the child's successor
 * without the child's knowledge; the caller logs why. The limits: the number (from RLIMIT_NOFILE,
 * since the child gets them all and needs some of its own) and the length of all names together.
 * A descriptor that is there under the same name is not stored again (a message may come twice
 * where a keeper dies); others of that name stand beside it, as with systemd. They are never
 * polled: FDPOLL=0 is the only way, asked for or not.
 *
 * Hand-over: batches, each acknowledged, then END with the number, acknowledged too. Only then may
 * the receiver count on having them all. The giver keeps its own.
 */
#include "relay/fdtable.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/clock.h"

#define BATCH 64

size_t fdtable_room(void)
{
    struct rlimit limit = {.rlim_cur = 256};

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = MIN(limit.rlim_max, 1U << 20),
                                .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    return MIN((size_t)limit.rlim_cur / 4 * 3, FDTABLE_MAX);
}

void fdtable_init(struct fdtable *t, int first, size_t max)
{
    *t = (struct fdtable){.first = first, .max = max, .names = xcalloc(max, sizeof(*t->names))};
}

static void drop(struct fdtable *t, size_t i)
{
    int last = t->first + (int)--t->n;

    if (i < t->n) {
        dup3(last, t->first + (int)i, O_CLOEXEC);
        memcpy(t->names[i], t->names[t->n], sizeof(t->names[i]));
    }
    close(last);
}

void fdtable_done(struct fdtable *t)
{
    while (t->n > 0)
        drop(t, t->n - 1);
    free(t->names);
    *t = (struct fdtable){0};
}

void fdtable_names(const struct fdtable *t, size_t i, size_t n, char *out)
{
    for (size_t end = i + n; i < end; i++)
        out = stpcpy(stpcpy(out, t->names[i]), i + 1 < end ? ":" : "");
}

static bool is(const struct fdtable *t, size_t i, const char *name, size_t len)
{
    return strlen(t->names[i]) == len && memcmp(t->names[i], name, len) == 0;
}

static void remove_all(struct fdtable *t, const char *name, size_t len)
{
    for (size_t i = t->n; i > 0; i--)
        if (is(t, i - 1, name, len))
            drop(t, i - 1);
}

/* systemd takes longer names and more characters; 20 bytes are what LISTEN_FDNAMES has room for
 * when there are thousands. */
static int check_name(const char *name, size_t len, struct err *err)
{
    if (len == 0 || len > FDTABLE_NAME_MAX)
        return err_set(err, -EINVAL, "a name of %zu bytes; allowed: 1 to %d", len,
                       FDTABLE_NAME_MAX);
    for (size_t i = 0; i < len; i++)
        if (name[i] <= ' ' || name[i] >= 127 || name[i] == ':')
            return err_set(err, -EINVAL, "a name with byte %d", (unsigned char)name[i]);
    return 0;
}

/* Leaves fd alone, but where it has the right number already. */
static int add(struct fdtable *t, const char *name, size_t len, int fd, struct err *err)
{
    int target = t->first + (int)t->n;
    size_t bytes = len + 1;
    pid_t self = getpid();

    for (size_t i = 0; i < t->n; i++) {
        bytes += strlen(t->names[i]) + 1;
        if (is(t, i, name, len) &&
            syscall(SYS_kcmp, self, self, KCMP_FILE, t->first + (int)i, fd) == 0)
            return 0;
    }
    if (t->n >= t->max)
        return err_set(err, -ENOSPC,
                       "'%.*s': %zu are kept already, the limit that follows from "
                       "RLIMIT_NOFILE",
                       (int)len, name, t->n);
    if (bytes > FDTABLE_NAMES_MAX)
        return err_set(err, -ENOSPC, "'%.*s': the names of %zu fill %u bytes", (int)len, name, t->n,
                       FDTABLE_NAMES_MAX);
    if (fd != target && dup3(fd, target, O_CLOEXEC) < 0)
        return err_errno(err, -errno, "'%.*s'", (int)len, name);
    memcpy(t->names[t->n], name, len);
    t->names[t->n++][len] = '\0';
    return 0;
}

static int add_all(struct fdtable *t, struct fdpass *m, const char *name, size_t len,
                   struct err *err)
{
    bool list = memchr(name, ':', len);
    int r = m->n_fds == 0 ? err_set(err, -EINVAL, "FDSTORE without a descriptor") : 0;

    for (size_t i = 0; r == 0 && i < m->n_fds; i++) {
        const char *end = list ? memchr(name, ':', len) ?: name + len : name + len;
        size_t n = (size_t)(end - name);
        r = check_name(name, n, err);
        if (r == 0 && list && (n == len) != (i + 1 == m->n_fds))
            r = err_set(err, -EINVAL, "more names than descriptors, or fewer");
        if (r == 0)
            r = add(t, name, n, m->fds[i], err);
        if (r == 0 && m->fds[i] == t->first + (int)t->n - 1)
            m->fds[i] = -1;
        if (list) {
            name += MIN(n + 1, len);
            len -= MIN(n + 1, len);
        }
    }
    return r;
}

int fdtable_apply(struct fdtable *t, struct fdpass *m, struct err *err)
{
    bool adds = fdpass_has(m, "FDSTORE"), removes = fdpass_has(m, "FDSTOREREMOVE");
    size_t len = sizeof(FDTABLE_NAME_DEFAULT) - 1;
    const char *name = fdpass_value(m, "FDNAME", &len) ?: FDTABLE_NAME_DEFAULT;
    int r = 0;

    if (adds && removes)
        r = err_set(err, -EINVAL, "FDSTORE and FDSTOREREMOVE in one message");
    else if (removes)
        r = check_name(name, len, err);
    else if (adds)
        r = add_all(t, m, name, len, err);
    if (r == 0 && removes)
        remove_all(t, name, len);
    fdpass_close(m);
    return r;
}

/* ---- to another process ---- */

int fdtable_give(const struct fdtable *t, int fd, int64_t timeout_ms, struct err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    struct fdpass m;
    int fds[BATCH], r = 0;

    for (size_t i = 0, n; r == 0 && i < t->n; i += n) {
        n = MIN(t->n - i, BATCH);
        for (size_t j = 0; j < n; j++)
            fds[j] = t->first + (int)(i + j);
        fdtable_names(t, i, n, stpcpy(m.text, "FDSTORE=1\nFDNAME="));
        r = fdpass_send(fd, m.text, strlen(m.text), fds, n);
        r = r < 0 ? err_errno(err, r, "giving") : fdpass_hear(fd, &m, "ACK", err);
        if (r == 0)
            fdpass_close(&m);
        if (r == 0 && clock_mono_ms() > deadline)
            r = err_set(err, -ETIMEDOUT, "%zu of %zu given in %lld ms", i + n, t->n,
                        (long long)timeout_ms);
    }
    if (r < 0)
        return r;
    int len = snprintf(m.text, sizeof(m.text), "END=%zu", t->n);
    r = fdpass_send(fd, m.text, (size_t)len, NULL, 0);
    r = r < 0 ? err_errno(err, r, "ending") : fdpass_hear(fd, &m, "ACK", err);
    if (r == 0)
        fdpass_close(&m);
    return r;
}

int fdtable_take(struct fdtable *t, int fd, struct err *err)
{
    char expected[32];
    struct fdpass m;
    size_t came = 0, len = 0;
    int r;

    while ((r = fdpass_receive(fd, 0, &m)) > 0 && !m.cut && fdpass_has(&m, "FDSTORE")) {
        came += m.n_fds;
        r = fdtable_apply(t, &m, err);
        if (r < 0)
            return r;
        fdpass_say(fd, "ACK=1");
    }
    if (r <= 0)
        return err_set(err, r == 0 ? -ECONNRESET : r, "the rest of its descriptors does not come");
    const char *value = fdpass_value(&m, "END", &len);
    size_t n = (size_t)snprintf(expected, sizeof(expected), "%zu", came);
    if (m.cut || !value || len != n || memcmp(value, expected, n) != 0)
        r = err_set(err, -EPROTO, "%s descriptors have come, and then no fitting end", expected);
    fdpass_close(&m);
    return r < 0 ? r : fdpass_say(fd, "ACK=1");
}
