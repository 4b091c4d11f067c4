/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All of it is read from /proc and from the folders that the daemon and the local provider keep,
 * by a process that lives in the same pid namespace and so sees every process of the VMs too.
 *
 * Namespaces are counted by the inode numbers of all processes' namespaces and of what is mounted
 * below /run/netns. Files: everything below the folders of the daemon, of the provider's registry
 * and of the pods' namespaces.
 */
#include "bench/common/census.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "base/fs.h"
#include "base/str.h"

#define PROC_FILE_MAX (64U << 10)
#define FTW_DESCRIPTORS 16

const char *const census_names[CENSUS_KINDS] = {
    "descriptors", "stored", "threads", "namespaces", "links", "files", "processes",
};

/* -- one process -- */

/* "KEY: 123 kB"; 0 when it is not there. */
static int64_t number_after(const char *text, const char *key)
{
    size_t len = strlen(key);
    long long n = 0;
    for (const char *at = text; at && *at; at = strchr(at, '\n'), at += at ? 1 : 0)
        if (strncmp(at, key, len) == 0 && at[len] == ':' && sscanf(at + len + 1, "%lld", &n) == 1)
            return n;
    return 0;
}

static int read_proc(pid_t pid, const char *file, char **ret, struct err *err)
{
    char path[64];
    (void)str_format(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    return fs_read(AT_FDCWD, path, PROC_FILE_MAX, ret, NULL, err);
}

static int64_t entries(const char *path)
{
    int64_t n = 0;
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));)
        n += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

static int64_t entries_of(pid_t pid, const char *what)
{
    char path[64];
    (void)str_format(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
    return entries(path);
}

static int64_t sleeps_of(pid_t pid)
{
    char path[64];
    int64_t n = 0;
    (void)str_format(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        _cleanup_free_ char *text = NULL, *file = str_asprintf("task/%s/status", e->d_name);
        if (e->d_name[0] != '.' && read_proc(pid, file, &text, NULL) == 0)
            n += number_after(text, "voluntary_ctxt_switches");
    }
    if (dir)
        closedir(dir);
    return n;
}

static double cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec t = {0};
    if (clock_getcpuclockid(pid, &clock) == 0)
        clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int usage_read(pid_t pid, struct usage *ret, struct err *err)
{
    _cleanup_free_ char *rollup = NULL, *status = NULL;
    int r = read_proc(pid, "smaps_rollup", &rollup, err);
    if (r == 0)
        r = read_proc(pid, "status", &status, err);
    if (r < 0)
        return r;
    *ret = (struct usage){
        .rss_kb = number_after(rollup, "Rss"),
        .pss_kb = number_after(rollup, "Pss"),
        .anon_kb = number_after(rollup, "Anonymous"),
        .shmem_kb = MAX(number_after(rollup, "Pss_Shmem"), number_after(status, "RssShmem")),
        .descriptors = entries_of(pid, "fd"),
        .threads = number_after(status, "Threads"),
        .sleeps = sleeps_of(pid),
        .cpu_s = cpu_of(pid),
    };
    return ret->rss_kb > 0 ? 0 : err_set(err, -ESRCH, "process %d has no memory", (int)pid);
}

/* -- all processes -- */

typedef void each_process(pid_t pid, void *arg);

static void for_processes(each_process *fn, void *arg)
{
    uint64_t pid;
    DIR *dir = opendir("/proc");
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (str_to_u64(e->d_name, INT32_MAX, &pid) == 0)
            fn((pid_t)pid, arg);
    if (dir)
        closedir(dir);
}

struct sum {
    const char *comm;
    struct usage *total;
    unsigned n;
};

static void add_usage(pid_t pid, void *arg)
{
    struct sum *s = arg;
    struct usage u;
    _cleanup_free_ char *comm = NULL;
    if (read_proc(pid, "comm", &comm, NULL) < 0)
        return;
    comm[strcspn(comm, "\n")] = '\0';
    if (strncmp(comm, s->comm, 15) != 0 || usage_read(pid, &u, NULL) < 0)
        return;
    s->total->rss_kb += u.rss_kb;
    s->total->pss_kb += u.pss_kb;
    s->total->anon_kb += u.anon_kb;
    s->total->shmem_kb += u.shmem_kb;
    s->total->descriptors += u.descriptors;
    s->total->threads += u.threads;
    s->total->sleeps += u.sleeps;
    s->total->cpu_s += u.cpu_s;
    s->n++;
}

unsigned usage_sum(const char *comm, struct usage *ret)
{
    struct sum s = {.comm = comm, .total = ret};
    *ret = (struct usage){.rss_kb = 0};
    for_processes(add_usage, &s);
    return s.n;
}

/* -- namespaces, links, files -- */

struct inodes {
    uint64_t *list; /* owned */
    size_t n, room;
    int64_t processes;
};

static void add_inode(struct inodes *all, const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return;
    if (all->n == all->room) {
        all->room = MAX(all->room * 2, (size_t)1024);
        all->list = xrealloc(all->list, all->room * sizeof(*all->list));
    }
    all->list[all->n++] = st.st_ino;
}

static void add_namespaces(pid_t pid, void *arg)
{
    static const char *const kinds[] = {"net", "mnt", "pid", "ipc", "uts"};
    struct inodes *all = arg;
    char path[64];
    all->processes++;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        (void)str_format(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, kinds[i]);
        add_inode(all, path);
    }
}

static void add_mounted(struct inodes *all)
{
    DIR *dir = opendir("/run/netns");
    for (struct dirent *e; dir && (e = readdir(dir));) {
        _cleanup_free_ char *path = str_asprintf("/run/netns/%s", e->d_name);
        if (e->d_name[0] != '.')
            add_inode(all, path);
    }
    if (dir)
        closedir(dir);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void count_namespaces(struct census *c)
{
    struct inodes all = {.n = 0};
    for_processes(add_namespaces, &all);
    add_mounted(&all);
    if (all.n > 0)
        qsort(all.list, all.n, sizeof(*all.list), by_value);
    c->of[CENSUS_NAMESPACES] = 0;
    for (size_t i = 0; i < all.n; i++)
        c->of[CENSUS_NAMESPACES] += i == 0 || all.list[i] != all.list[i - 1];
    c->of[CENSUS_PROCESSES] = all.processes;
    free(all.list);
}

static int64_t files;

static int count_file(const char *path _unused_, const struct stat *st _unused_, int type _unused_,
                      struct FTW *w _unused_)
{
    files++;
    return 0;
}

static int64_t count_files(void)
{
    static const char *const places[] = {"/run/peerpod", "/run/peerpod-local", "/run/netns"};
    files = 0;
    for (size_t i = 0; i < ARRAY_SIZE(places); i++)
        (void)nftw(places[i], count_file, FTW_DESCRIPTORS, FTW_PHYS | FTW_MOUNT);
    return files;
}

static int64_t count_links(void)
{
    struct if_nameindex *list = if_nameindex();
    int64_t n = 0;
    while (list && list[n].if_index != 0)
        n++;
    if_freenameindex(list);
    return n;
}

int census_take(pid_t daemon, pid_t keeper, struct census *ret, struct err *err)
{
    struct usage d, k;
    int r = usage_read(daemon, &d, err);
    if (r == 0)
        r = usage_read(keeper, &k, err);
    if (r < 0)
        return r;
    count_namespaces(ret);
    ret->of[CENSUS_DESCRIPTORS] = d.descriptors;
    ret->of[CENSUS_STORED] = k.descriptors;
    ret->of[CENSUS_THREADS] = d.threads;
    ret->of[CENSUS_LINKS] = count_links();
    ret->of[CENSUS_FILES] = count_files();
    return 0;
}

int64_t census_left(const struct census *before, const struct census *now)
{
    int64_t more = 0;
    for (int i = 0; i < CENSUS_KINDS; i++)
        more += MAX(now->of[i] - before->of[i], (int64_t)0);
    return more;
}

void machine_time(double *ret_busy, double *ret_all)
{
    _cleanup_free_ char *text = NULL;
    unsigned long long t[8] = {0};
    *ret_busy = *ret_all = 0;
    if (fs_read(AT_FDCWD, "/proc/stat", PROC_FILE_MAX, &text, NULL, NULL) < 0 ||
        sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
               &t[4], &t[5], &t[6], &t[7]) != 8)
        return;
    for (int i = 0; i < 8; i++) {
        *ret_all += (double)t[i] / (double)sysconf(_SC_CLK_TCK);
        *ret_busy += i == 3 || i == 4 ? 0 : (double)t[i] / (double)sysconf(_SC_CLK_TCK);
    }
}
