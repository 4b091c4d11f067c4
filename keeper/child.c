/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The child gets entry i of the store as descriptor 3 + i. In the parent those have whatever
 * numbers they got, so the child permutes its own copies in place: whoever sits on the number
 * that is needed moves to a free one first. That takes one spare number, where moving all of them
 * out of the way would take as many as there are and halve what a limit allows. Descriptors of the
 * keeper itself (all close-on-exec) are overwritten where they are in the way: the child has no
 * use for them.
 *
 * The keeper has one thread, so the child may allocate between fork and exec.
 */
#include "keeper/child.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"

#define FIRST_FD 3

/* now[i]: the number of entry i at present; holder[fd]: the entry there, or -1. */
static int place(int *now, int *holder, int n)
{
    for (int i = 0; i < n; i++) {
        int target = FIRST_FD + i;
        if (now[i] != target) {
            int other = holder[target];
            if (other >= 0) {
                int moved = fcntl(target, F_DUPFD_CLOEXEC, FIRST_FD);
                if (moved < 0)
                    return -errno;
                now[other] = moved;
                holder[moved] = other;
            }
            if (dup2(now[i], target) < 0)
                return -errno;
            close(now[i]);
            holder[now[i]] = -1;
            holder[target] = i;
            now[i] = target;
        }
        if (fcntl(target, F_SETFD, 0) < 0)
            return -errno;
    }
    return 0;
}

static int place_all(const struct store *store)
{
    int n = (int)store->n, highest = FIRST_FD + n;

    for (int i = 0; i < n; i++)
        highest = MAX(highest, store->entries[i].fd);
    /* Any number a spare one can get: below the first free one above all that are in use. */
    size_t numbers = (size_t)highest + 64;
    int *now = xcalloc(store->n + 1, sizeof(*now));
    int *holder = xcalloc(numbers, sizeof(*holder));
    for (size_t fd = 0; fd < numbers; fd++)
        holder[fd] = -1;
    for (int i = 0; i < n; i++) {
        now[i] = store->entries[i].fd;
        holder[now[i]] = i;
    }
    int r = place(now, holder, n);
    free(now);
    free(holder);
    return r;
}

static void set_environment(const struct store *store, const char *notify_path)
{
    char text[32];

    setenv("NOTIFY_SOCKET", notify_path, 1);
    if (store->n == 0)
        return;
    _cleanup_free_ char *names = store_names(store);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(text, sizeof(text), "%zu", store->n);
    setenv("LISTEN_FDS", text, 1);
    snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
}

static _noreturn_ void run(char *const *argv, const sigset_t *mask, const char *notify_path,
                           const struct store *store)
{
    int r = place_all(store);

    if (r < 0) {
        log_error("passing %zu descriptors on: %s", store->n, strerror(-r));
        _exit(EXIT_FAILURE);
    }
    set_environment(store, notify_path);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(argv[0], argv);
    log_error("%s: %s", argv[0], strerror(errno));
    _exit(errno == ENOENT ? CHILD_NOT_FOUND : CHILD_NOT_EXECUTABLE);
}

pid_t child_start(char *const *argv, const sigset_t *mask, const char *notify_path,
                  const struct store *store, struct err *err)
{
    pid_t pid = fork();

    if (pid < 0)
        return err_errno(err, -errno, "fork");
    if (pid == 0)
        run(argv, mask, notify_path, store);
    return pid;
}
