/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The table's entries have the numbers that the command is to find them under; they only have to
 * live through exec. The environment is laid out once, what was meant for us taken out; each child
 * fills in the few texts that differ. So neither needs memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "base/str.h"
#include "relay/fdstore.h"
#include "relay/fdtable.h"

extern char **environ;

static char listen_names[sizeof("LISTEN_FDNAMES=") + FDTABLE_NAMES_MAX] = "LISTEN_FDNAMES=";
static char listen_count[32], listen_pid[32], notify[128], born[64], **listen_slot;

void fdtable_exec_init(const char *notify_path)
{
    static const char *const ours[] = {
        "NOTIFY_SOCKET=", "LISTEN_PID=",    "LISTEN_FDS=",   "LISTEN_FDNAMES=",
        "WATCHDOG_PID=",  "WATCHDOG_USEC=", FDSTORE_BORN "="};
    char **env = xcalloc(strv_len(environ) + 6, sizeof(*env)), **end = env;
    struct timespec now;

    for (char **e = environ; *e; e++) {
        size_t i = 0;
        while (i < ARRAY_SIZE(ours) && !str_starts(*e, ours[i]))
            i++;
        if (i == ARRAY_SIZE(ours))
            *end++ = *e;
    }
    clock_gettime(CLOCK_BOOTTIME, &now);
    snprintf(born, sizeof(born), FDSTORE_BORN "=%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
    snprintf(notify, sizeof(notify), "NOTIFY_SOCKET=%s", notify_path);
    *end++ = born;
    *end++ = notify;
    listen_slot = end; /* NULL here leaves the three out */
    end[1] = listen_count;
    end[2] = listen_names;
    environ = env;
}

static _noreturn_ void run(char *const *argv, const sigset_t *mask, const struct fdtable *t)
{
    for (size_t i = 0; i < t->n; i++)
        fcntl(t->first + (int)i, F_SETFD, 0);
    snprintf(listen_pid, sizeof(listen_pid), "LISTEN_PID=%d", (int)getpid());
    snprintf(listen_count, sizeof(listen_count), "LISTEN_FDS=%zu", t->n);
    fdtable_names(t, 0, t->n, listen_names + strlen("LISTEN_FDNAMES="));
    *listen_slot = t->n > 0 ? listen_pid : NULL;
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(argv[0], argv);
    log_error("%s: %s", argv[0], strerror(errno));
    _exit(errno == ENOENT ? FDTABLE_NOT_FOUND : FDTABLE_NOT_EXECUTABLE);
}

pid_t fdtable_exec(const struct fdtable *t, char *const *argv, const sigset_t *mask)
{
    pid_t pid = fork();

    if (pid == 0)
        run(argv, mask, t);
    return pid < 0 ? -errno : pid;
}
