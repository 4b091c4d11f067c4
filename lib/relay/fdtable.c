/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Entries are in no order, and descriptors have whatever numbers they came with: a child, between
 * fork and exec, moves its own to the numbers that the command is to find.
 *
 * The protocol has no answers, so a descriptor that is refused is lost for the child's successor
 * without the child's knowledge; the caller logs why. The limits: the number (from RLIMIT_NOFILE,
 * since the child gets them all and needs some of its own) and the length of all names together.
 * A descriptor that is there under the same name is not stored again (a message may come twice
 * where a keeper dies); others of that name stand beside it, as with systemd. They are never
 * polled: FDPOLL=0 is the only way, asked for or not.
 *
 * Exchange, in turns: each side sends a batch of the messages that a child would send, MORE or END
 * behind it, and takes one. Whose batch comes has applied the one before, so each acknowledges the
 * other's. END comes alone, and both have said it at last. Who began ends last: he may act on it, for
 * the other one has everything, and knows it. Both keep what they gave.
 *
 * The environment of commands is laid out once; what changes from child to child are the contents of
 * three of its strings, which the child writes. So nothing here needs memory but the table itself.
 */
#include "relay/fdtable.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/log.h"
#include "base/str.h"

#define BATCH 64

void fdtable_init(struct fdtable *t)
{
    struct rlimit limit = {.rlim_cur = 256, .rlim_max = 256};

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = MAX(limit.rlim_cur, MIN(limit.rlim_max, 1U << 20));
    setrlimit(RLIMIT_NOFILE, &limit);
    t->max = MIN((size_t)limit.rlim_cur / 4 * 3, FDTABLE_MAX);
}

void fdtable_done(struct fdtable *t)
{
    while (t->n > 0)
        close(t->entries[--t->n].fd);
    t->max = 0;
}

/* systemd takes longer names and more characters; 20 bytes are what LISTEN_FDNAMES has room for
 * when there are thousands. */
static int read_name(const struct fdpass *m, char ret[FDSTORE_NAME_MAX + 1], struct err *err)
{
    size_t len = strlen("stored"); /* systemd's word for what has none */
    const char *name = fdpass_value(m, "FDNAME", &len) ?: "stored";
    bool good = len > 0 && len <= FDSTORE_NAME_MAX;

    for (size_t i = 0; good && i < len; i++)
        good = name[i] > ' ' && name[i] < 127 && name[i] != ':';
    if (!good)
        return err_set(err, -EINVAL, "a name of %zu bytes; allowed: 1 to %d, no blanks, no colon",
                       len, FDSTORE_NAME_MAX);
    snprintf(ret, FDSTORE_NAME_MAX + 1, "%.*s", (int)len, name);
    return 0;
}

/* Takes *fd, or leaves it. */
static int add(struct fdtable *t, const char *name, int *fd, struct err *err)
{
    size_t bytes = strlen(name) + 1;

    for (const struct fdtable_entry *e = t->entries; e < t->entries + t->n; e++) {
        bytes += strlen(e->name) + 1;
        if (str_eq(e->name, name) &&
            syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, e->fd, *fd) == 0)
            return 0;
    }
    if (t->n >= t->max || bytes > FDTABLE_NAMES_MAX)
        return err_set(err, -ENOSPC, "'%s': %zu are kept; allowed: %zu (RLIMIT_NOFILE), %u bytes",
                       name, t->n, t->max, FDTABLE_NAMES_MAX);
    memcpy(t->entries[t->n].name, name, strlen(name) + 1);
    t->entries[t->n++].fd = TAKE_FD(*fd);
    return 0;
}

int fdtable_apply(struct fdtable *t, struct fdpass *m, struct err *err)
{
    bool adds = fdpass_has(m, "FDSTORE"), removes = fdpass_has(m, "FDSTOREREMOVE");
    char name[FDSTORE_NAME_MAX + 1];
    int r = adds || removes ? read_name(m, name, err) : 0;

    if (r == 0 && adds && (removes || m->n_fds == 0))
        r = err_set(err, -EINVAL, "FDSTORE and FDSTOREREMOVE in one, or no descriptor to store");
    for (size_t i = 0; r == 0 && adds && i < m->n_fds; i++)
        r = add(t, name, &m->fds[i], err);
    for (size_t i = t->n; r == 0 && removes && i > 0; i--)
        if (str_eq(t->entries[i - 1].name, name)) {
            close(t->entries[i - 1].fd);
            t->entries[i - 1] = t->entries[--t->n];
        }
    fdpass_close(m);
    return r;
}

/* n entries from i on, and the word behind them. */
static int give(const struct fdtable *t, size_t i, size_t n, int fd, int extra, struct err *err)
{
    const char *word = n > 0 ? "MORE=1" : "END=1";
    char text[64];
    int r = 0;

    for (const struct fdtable_entry *e = t->entries + i; r == 0 && e < t->entries + i + n; e++) {
        stpcpy(stpcpy(text, "FDSTORE=1\nFDNAME="), e->name);
        r = fdpass_send(fd, text, strlen(text), &e->fd, 1);
    }
    r = r < 0 ? r : fdpass_send(fd, word, strlen(word), &extra, extra >= 0 ? 1 : 0);
    return r < 0 ? err_errno(err, r, "giving") : 0;
}

int fdtable_exchange(struct fdtable *t, int fd, bool begins, int extra, int *ret_extra,
                     struct err *err)
{
    size_t ours = t->n, i = 0, n = 1;
    bool more = true;
    int r = 0;

    for (; r == 0 && (n > 0 || more); i += n) {
        struct fdpass m = {.n_fds = 0};
        n = MIN(ours - i, BATCH);
        r = begins ? give(t, i, n, fd, extra, err) : 0;
        r = r < 0 ? r : fdpass_hear(fd, &m, err);
        while (r == 0 && fdpass_has(&m, "FDSTORE"))
            r = fdtable_apply(t, &m, err) < 0 ? err->code : fdpass_hear(fd, &m, err);
        more = fdpass_has(&m, "MORE");
        if (r == 0 && !more && !fdpass_has(&m, "END"))
            r = err_set(err, -EPROTO, "neither descriptors nor their end");
        closep(ret_extra);
        *ret_extra = m.n_fds > 0 ? TAKE_FD(m.fds[0]) : -1;
        fdpass_close(&m);
        r = r < 0 || begins ? r : give(t, i, n, fd, extra, err);
    }
    return r;
}

/* ---- commands ---- */

static char listen_names[sizeof("LISTEN_FDNAMES=") + FDTABLE_NAMES_MAX] = "LISTEN_FDNAMES=";
static char listen_count[32] = "LISTEN_FDS=", listen_pid[32] = "LISTEN_PID=";

void fdtable_exec_init(const char *notify_path)
{
    struct timespec now;
    char born[32];

    clock_gettime(CLOCK_BOOTTIME, &now);
    snprintf(born, sizeof(born), "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
    setenv(FDSTORE_BORN, born, 1);
    setenv("NOTIFY_SOCKET", notify_path, 1);
    unsetenv("WATCHDOG_PID"); /* as all of them, it was meant for us */
    unsetenv("WATCHDOG_USEC");
    putenv(listen_count);
    putenv(listen_names);
    putenv(listen_pid);
}

_noreturn_ void fdtable_exec(struct fdtable *t, char *const *argv, const sigset_t *mask)
{
    char *names = listen_names + strlen("LISTEN_FDNAMES=");
    int r = 0;

    /* The lowest first: so none is moved to the number of one that is still to come. */
    for (size_t i = 0; r >= 0 && i < t->n; i++) {
        struct fdtable_entry *low = &t->entries[i], e;
        for (size_t j = i + 1; j < t->n; j++)
            low = t->entries[j].fd < low->fd ? &t->entries[j] : low;
        e = *low;
        *low = t->entries[i];
        names = stpcpy(stpcpy(names, i > 0 ? ":" : ""), e.name);
        r = e.fd == FDTABLE_FIRST + (int)i ? fcntl(e.fd, F_SETFD, 0)
                                           : dup2(e.fd, FDTABLE_FIRST + (int)i);
    }
    snprintf(listen_pid, sizeof(listen_pid), "LISTEN_PID=%d", (int)getpid());
    snprintf(listen_count, sizeof(listen_count), "LISTEN_FDS=%zu", t->n);
    if (t->n == 0)
        unsetenv("LISTEN_PID"); /* without it the others mean nothing */
    sigprocmask(SIG_SETMASK, mask, NULL);
    if (r >= 0) /* all or nothing */
        execvp(argv[0], argv);
    log_error("%s: %s", argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126); /* as a shell has it: not found, not executable */
}
