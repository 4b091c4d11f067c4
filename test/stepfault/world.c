/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The world of a test, and its snapshot.
 *
 * All that a test starts lives in namespaces whose first process is the test itself: SIGKILL to the
 * test (or to its waiting parent, by PR_SET_PDEATHSIG) ends it all, links and mounts included, and
 * its files lie in a tmpfs that nobody else sees. The machine's /sys is not remounted: nothing here
 * reads it.
 *
 * A snapshot is text, one thing a line, sorted, without what changes by itself (inode numbers of
 * sockets, pids): two of them are compared as text and the difference is readable.
 */
#include "stepfault/world.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "net/link.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WORLD_TSAN 1
#endif
#endif
#ifndef WORLD_TSAN
#define WORLD_TSAN 0
#endif

#define LINE_MAX_BYTES 4096

/* ---- entering ---- */

_noreturn_ static void refuse(const char *what)
{
    bool strict = str_eq(getenv("STRICT"), "1");

    fprintf(stderr, "%s: %s (%s): this test needs root\n", strict ? "FAIL" : "skipped", what,
            strerror(errno));
    exit(strict ? 1 : 77);
}

static char directory[] = "/tmp/pp-world-XXXXXX";

const char *world_dir(void)
{
    return directory;
}

_noreturn_ static void outlive(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    rmdir(directory);
    /* Not exit: a leak checker cannot fork here any more. */
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

void world_enter(void)
{
    if (!mkdtemp(directory))
        refuse("making a directory");
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC) < 0)
        refuse("making namespaces");
    pid_t pid = fork();
    if (pid < 0)
        refuse("forking");
    if (pid > 0)
        outlive(pid);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("proc", "/proc", "proc", 0, NULL) < 0 ||
        mount("tmpfs", directory, "tmpfs", 0, "mode=0700") < 0)
        refuse("mounting");
}

/* ---- lines ---- */

struct lines {
    char **v;
    size_t n;
};

static struct lines *walking; /* nftw has no argument */

static void add(struct lines *l, const char *fmt, ...) _printf_(2, 3);
static void add(struct lines *l, const char *fmt, ...)
{
    char text[LINE_MAX_BYTES];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    l->v = xrealloc(l->v, (l->n + 1) * sizeof(*l->v));
    l->v[l->n++] = xstrdup(text);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void each_entry(struct lines *l, const char *path,
                       void (*fn)(struct lines *l, const char *dir, const char *name))
{
    DIR *dir = opendir(path);
    struct dirent *e;
    char own[16];

    if (!dir)
        return;
    (void)snprintf(own, sizeof(own), "%d", dirfd(dir));
    while ((e = readdir(dir)))
        if (e->d_name[0] != '.' && !(strstr(path, "/fd") && str_eq(e->d_name, own)))
            fn(l, path, e->d_name);
    closedir(dir);
}

static void add_fd(struct lines *l, const char *dir, const char *name)
{
    char path[LINE_MAX_BYTES], target[1024];

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n < 0)
        return;
    target[n] = '\0';
    char *inode = strstr(target, ":[");
    if (inode)
        *inode = '\0';
    /* Without the number: which is free depends on the order of things. */
    add(l, "fd %s", target);
}

static void add_thread(struct lines *l, _unused_ const char *dir, _unused_ const char *name)
{
    add(l, "thread");
}

static void add_process(struct lines *l, _unused_ const char *dir, const char *name)
{
    _cleanup_free_ char *comm = NULL;
    char path[64];

    if (name[0] < '0' || name[0] > '9')
        return;
    (void)snprintf(path, sizeof(path), "/proc/%.16s/comm", name);
    if (fs_read(AT_FDCWD, path, 64, &comm, NULL, NULL) == 0) {
        comm[strcspn(comm, "\n")] = '\0';
        add(l, "process %s", comm);
    }
}

static int add_file(const char *path, const struct stat *st, _unused_ int type,
                    _unused_ struct FTW *ftw)
{
    add(walking, "file %s %o", path, st->st_mode);
    return 0;
}

static void add_links(struct lines *l)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    _cleanup_free_ struct link *links = NULL;
    size_t n = 0;

    if (rtnl_open(&nl, NULL) < 0 || link_list(nl, &links, &n, NULL) < 0)
        add(l, "links cannot be read");
    for (size_t i = 0; i < n; i++)
        add(l, "link %s", links[i].name);
}

static void add_mounts(struct lines *l)
{
    FILE *f = fopen("/proc/self/mounts", "re");
    char line[LINE_MAX_BYTES];

    while (f && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        add(l, "mount %s", line);
    }
    if (f)
        fclose(f);
}

static char *join(struct lines *l)
{
    struct buf b = BUF_INIT(0);

    qsort(l->v, l->n, sizeof(*l->v), compare);
    for (size_t i = 0; i < l->n; i++) {
        buf_addf(&b, "%s\n", l->v[i]);
        free(l->v[i]);
    }
    free(l->v);
    return b.len ? buf_steal(&b) : xstrdup("");
}

char *world_snapshot_of(pid_t pid, const char *const *dirs)
{
    struct lines l = {0};
    char path[64];

    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    (void)snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    each_entry(&l, path, add_fd);
    (void)snprintf(path, sizeof(path), "/proc/%d/task", pid);
    if (!WORLD_TSAN) /* which has a thread of its own from the first other one on */
        each_entry(&l, path, add_thread);
    each_entry(&l, "/proc", add_process);
    add_links(&l);
    add_mounts(&l);
    walking = &l;
    for (; dirs && *dirs; dirs++)
        nftw(*dirs, add_file, 16, FTW_PHYS | FTW_MOUNT);
    return join(&l);
}

char *world_snapshot(const char *const *dirs)
{
    return world_snapshot_of(getpid(), dirs);
}

/* ---- differences ---- */

/* Lines of a that are not in b, both sorted, repetitions counted. */
static unsigned missing(const char *a, const char *b, char sign)
{
    _cleanup_(strv_freep) char **x = str_split(a, '\n'), **y = str_split(b, '\n');
    unsigned n = 0;
    char **j = y;

    for (char **i = x; *i; i++) {
        while (*j && strcmp(*j, *i) < 0)
            j++;
        if (*j && str_eq(*j, *i)) {
            j++;
            continue;
        }
        fprintf(stderr, "  %c %s\n", sign, *i);
        n++;
    }
    return n;
}

unsigned world_diff(const char *before, const char *after)
{
    return missing(before, after, '-') + missing(after, before, '+');
}

unsigned world_settle(const char *before, const char *const *dirs, int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;

    for (;;) {
        _cleanup_free_ char *now = world_snapshot(dirs);
        if (str_eq(before, now))
            return 0;
        if (clock_mono_ms() >= until)
            return world_diff(before, now);
        (void)poll(NULL, 0, 5);
    }
}
