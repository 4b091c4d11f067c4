/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The side of step faults that lives in the program under test: counts its outside steps and, at
 * the chosen one, fails, kills or cancels.
 *
 * The control block is found once, before main: a helper that is started with an empty environment
 * finds it by its own path. All of it is lock-free atomics: steps come from any thread, from
 * children between fork and exec, from signal handlers.
 *
 * The replaced functions are one table each for the plain, the variadic and the void of failure:
 * "failing" close() would leak a descriptor that the kernel never keeps, so it is a step at which
 * one may be killed or cancelled, but not one that fails.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "stepfault/runtime.h"
#include "stepfault/stepfault.h"

#define CANCEL_WAIT_US 1000
#define CANCEL_WAITS 5000

static struct stepfault_control *control;
static bool muted;

int __real_open(const char *path, int flags, ...);
int __real_close(int fd);

struct stepfault_control *stepfault_map(const char *path)
{
    struct stat st;
    int fd = path ? __real_open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p;

    if (fd < 0)
        return NULL;
    p = fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof(*control)
            ? mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            : MAP_FAILED;
    __real_close(fd);
    return p == MAP_FAILED ? NULL : p;
}

static void find_control(void)
{
    static const char suffix[] = ".stepfault";
    char path[4096];

    control = stepfault_map(getenv("STEPFAULT_CONTROL"));
    if (control)
        return;
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof(suffix));
    if (n > 0) {
        memcpy(path + n, suffix, sizeof(suffix));
        control = stepfault_map(path);
    }
    if (!control) {
        void *p =
            mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        control = p == MAP_FAILED ? NULL : p;
    }
}

__attribute__((constructor(101))) static void begin(void)
{
    find_control();
}

struct stepfault_control *stepfault_control(void)
{
    return control;
}

void stepfault_use(struct stepfault_control *c)
{
    control = c;
}

/* The runner sees `hit`, cancels, and lets us go on. */
static void be_cancelled(struct stepfault_control *c)
{
    for (unsigned i = 0; i < CANCEL_WAITS && !atomic_load(&c->resume); i++)
        usleep(CANCEL_WAIT_US);
}

void stepfault_mute(void)
{
    muted = true;
}

/* true: the step is to fail. */
static bool step(const char *name, bool can_fail)
{
    struct stepfault_control *c = control;
    unsigned mode = c ? atomic_load(&c->mode) : STEPFAULT_OFF;
    int saved = errno;

    if (mode == STEPFAULT_OFF || muted)
        return false;
    unsigned n = atomic_fetch_add(&c->count, 1) + 1;
    if (mode == STEPFAULT_COUNT || n != atomic_load(&c->target))
        return false;
    size_t len = strnlen(c->step, sizeof(c->step) - 1);
    (void)snprintf(c->step + len, sizeof(c->step) - len, "%s%s in %s", len > 0 ? ", " : "", name,
                   program_invocation_short_name);
    unsigned second = atomic_exchange(&c->second, 0);
    if (second > 0) {
        atomic_store(&c->target, n + second);
        atomic_store(&c->mode, atomic_load(&c->second_mode));
    }
    atomic_fetch_add(&c->hit, 1);
    if (mode == STEPFAULT_KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
        _exit(137); /* PID 1 of a namespace cannot kill itself */
    }
    if (mode == STEPFAULT_CANCEL)
        be_cancelled(c);
    errno = saved;
    return mode == STEPFAULT_FAIL && can_fail;
}

/* clang-format off */
#define STEP(type, name, params, args, result, code)                                               \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params                                                                      \
    {                                                                                              \
        if (step(#name, true)) {                                                                   \
            errno = code;                                                                          \
            return result;                                                                         \
        }                                                                                          \
        return __real_##name args;                                                                 \
    }
#define STEP_SURE(type, name, params, args)                                                        \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params                                                                      \
    {                                                                                              \
        (void)step(#name, false);                                                                  \
        return __real_##name args;                                                                 \
    }

STEP(int, mkdir, (const char *p, mode_t m), (p, m), -1, ENOSPC)
STEP(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), -1, ENOSPC)
STEP(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), -1, ENOSPC)
STEP(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), -1, EIO)
STEP(ssize_t, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), -1, EIO)
STEP(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), -1, ENOSPC)
STEP(ssize_t, recv, (int fd, void *b, size_t n, int f), (fd, b, n, f), -1, ECONNRESET)
STEP(ssize_t, recvmsg, (int fd, struct msghdr *m, int f), (fd, m, f), -1, ENOBUFS)
STEP(ssize_t, send, (int fd, const void *b, size_t n, int f), (fd, b, n, f), -1, EPIPE)
STEP(ssize_t, sendto, (int fd, const void *b, size_t n, int f, const struct sockaddr *a,
     socklen_t l), (fd, b, n, f, a, l), -1, ENOBUFS)
STEP(ssize_t, sendmsg, (int fd, const struct msghdr *m, int f), (fd, m, f), -1, ENOBUFS)
STEP(int, socket, (int d, int t, int p), (d, t, p), -1, EMFILE)
STEP(int, socketpair, (int d, int t, int p, int v[2]), (d, t, p, v), -1, EMFILE)
STEP(int, bind, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l), -1, EADDRINUSE)
STEP(int, listen, (int fd, int n), (fd, n), -1, EADDRINUSE)
STEP(int, accept4, (int fd, struct sockaddr *a, socklen_t *l, int f), (fd, a, l, f), -1, EMFILE)
STEP(int, connect, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l), -1, ENOBUFS)
STEP(int, setsockopt, (int fd, int l, int o, const void *v, socklen_t n), (fd, l, o, v, n), -1,
     ENOBUFS)
STEP(int, getsockopt, (int fd, int l, int o, void *v, socklen_t *n), (fd, l, o, v, n), -1, ENOBUFS)
STEP(int, rename, (const char *a, const char *b), (a, b), -1, EIO)
STEP(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), -1, EIO)
STEP(int, unlink, (const char *p), (p), -1, EIO)
STEP(int, unlinkat, (int d, const char *p, int f), (d, p, f), -1, EIO)
STEP(int, rmdir, (const char *p), (p), -1, EIO)
STEP(char *, mkdtemp, (char *p), (p), NULL, ENOSPC)
STEP(int, symlink, (const char *a, const char *b), (a, b), -1, ENOSPC)
STEP(ssize_t, readlink, (const char *p, char *b, size_t n), (p, b, n), -1, EIO)
STEP(int, stat, (const char *p, struct stat *s), (p, s), -1, EIO)
STEP(int, lstat, (const char *p, struct stat *s), (p, s), -1, EIO)
STEP(int, fstat, (int fd, struct stat *s), (fd, s), -1, EIO)
STEP(int, access, (const char *p, int m), (p, m), -1, EIO)
STEP(char *, realpath, (const char *p, char *r), (p, r), NULL, EIO)
STEP(int, chdir, (const char *p), (p), -1, EIO)
STEP(int, chmod, (const char *p, mode_t m), (p, m), -1, EPERM)
STEP(int, fchmod, (int fd, mode_t m), (fd, m), -1, EPERM)
STEP(int, ftruncate, (int fd, off_t n), (fd, n), -1, EIO)
STEP(int, fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n), -1, ENOSPC)
STEP(int, flock, (int fd, int op), (fd, op), -1, ENOLCK)
STEP(int, pipe2, (int v[2], int f), (v, f), -1, EMFILE)
STEP(int, signalfd, (int fd, const sigset_t *m, int f), (fd, m, f), -1, EMFILE)
STEP(int, close_range, (unsigned a, unsigned b, int f), (a, b, f), -1, ENOSYS)
STEP(int, eventfd, (unsigned n, int f), (n, f), -1, EMFILE)
STEP(int, dup2, (int a, int b), (a, b), -1, EMFILE)
STEP(int, dup3, (int a, int b, int f), (a, b, f), -1, EMFILE)
STEP(pid_t, fork, (void), (), -1, EAGAIN)
STEP(int, execvp, (const char *p, char *const *a), (p, a), -1, EACCES)
STEP(int, execve, (const char *p, char *const *a, char *const *e), (p, a, e), -1, EACCES)
STEP(int, pidfd_open, (pid_t p, unsigned f), (p, f), -1, EMFILE)
STEP(int, pidfd_send_signal, (int fd, int s, siginfo_t *i, unsigned f), (fd, s, i, f), -1, EPERM)
STEP(int, mount, (const char *s, const char *t, const char *y, unsigned long f, const void *d),
     (s, t, y, f, d), -1, EPERM)
STEP(int, umount2, (const char *p, int f), (p, f), -1, EPERM)
STEP(int, unshare, (int f), (f), -1, ENOMEM)
STEP(int, setns, (int fd, int t), (fd, t), -1, ENOMEM)
STEP(int, sethostname, (const char *n, size_t l), (n, l), -1, EPERM)
STEP(void *, mmap, (void *a, size_t n, int p, int f, int fd, off_t o), (a, n, p, f, fd, o),
     MAP_FAILED, ENOMEM)
STEP(int, poll, (struct pollfd *p, nfds_t n, int t), (p, n, t), -1, ENOMEM)
STEP(DIR *, opendir, (const char *p), (p), NULL, EMFILE)
STEP(DIR *, fdopendir, (int fd), (fd), NULL, ENOMEM)
STEP(int, posix_spawn, (pid_t *r, const char *p, const posix_spawn_file_actions_t *a,
     const posix_spawnattr_t *t, char *const *v, char *const *e), (r, p, a, t, v, e), EAGAIN, EAGAIN)
STEP(int, pthread_create, (pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *g),
     (t, a, f, g), EAGAIN, EAGAIN)
STEP_SURE(int, close, (int fd), (fd))
STEP_SURE(int, closedir, (DIR *d), (d))
STEP_SURE(int, munmap, (void *a, size_t n), (a, n))
STEP_SURE(int, kill, (pid_t p, int s), (p, s))
STEP_SURE(pid_t, waitpid, (pid_t p, int *s, int f), (p, s, f))
STEP_SURE(int, shutdown, (int fd, int h), (fd, h))
/* clang-format on */

int __real_openat(int dir, const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_openat(int dir, const char *path, int flags, ...);
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...) __attribute__((no_sanitize("address")));

/* On the ABIs we run on a missing argument reads as a register's content: harmless. */
#define ONE_ARGUMENT(type, last)                                                                   \
    va_list ap;                                                                                    \
    va_start(ap, last);                                                                            \
    type arg = va_arg(ap, type);                                                                   \
    va_end(ap)

int __wrap_open(const char *path, int flags, ...)
{
    ONE_ARGUMENT(mode_t, flags);
    if (!step("open", true))
        return __real_open(path, flags, arg);
    errno = EMFILE;
    return -1;
}

int __wrap_openat(int dir, const char *path, int flags, ...)
{
    ONE_ARGUMENT(mode_t, flags);
    if (!step("openat", true))
        return __real_openat(dir, path, flags, arg);
    errno = EMFILE;
    return -1;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    ONE_ARGUMENT(void *, request);
    if (!step("ioctl", true))
        return __real_ioctl(fd, request, arg);
    errno = EIO;
    return -1;
}

int __wrap_fcntl(int fd, int command, ...)
{
    ONE_ARGUMENT(void *, command);
    if (!step("fcntl", true))
        return __real_fcntl(fd, command, arg);
    errno = EMFILE;
    return -1;
}

/* Six arguments are read whatever was passed, one of them from the stack. */
long __wrap_syscall(long number, ...)
{
    long a[6];
    va_list ap;

    va_start(ap, number);
    for (size_t i = 0; i < ARRAY_SIZE(a); i++)
        a[i] = va_arg(ap, long);
    va_end(ap);
    if (!step("syscall", true))
        return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    errno = EPERM;
    return -1;
}
