/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything lives in a pid namespace whose PID 1 is the benchmark itself, so that whatever it
 * started ends with it, also when it is killed. Where the VM's PID 1 is stands in the local
 * provider's registry, the one thing that is read beside the sockets that a shim has.
 */
#include "bench/common/world.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "ctl/podnet.h"
#include "ctl/shim.h"
#include "net/netns.h"

#define HYPERVISOR_SOCKET "/run/peerpod/hypervisor.sock"
#define INSTANCES "/run/peerpod-local/instances"
#define PODS "/run/peerpod/pods"
#define PORT 15150
#define TCP_LISTEN_STATE 0x0a
#define START_TIMEOUT_MS 120000
#define STOP_TIMEOUT_MS 120000
#define STEP_US 1000
#define ARGV_MAX 32
#define LOG_MAX (256U << 20)

int world_here(struct world *w, struct err *err)
{
    ssize_t n = readlink("/proc/self/exe", w->bin, sizeof(w->bin) - 1);
    if (n < 0)
        return err_errno(err, -errno, "finding this program's folder");
    w->bin[n] = '\0';
    *strrchr(w->bin, '/') = '\0';
    return 0;
}

/* -- namespaces -- */

static int loopback_up(void)
{
    struct ifreq q = {.ifr_flags = IFF_UP | IFF_RUNNING, .ifr_name = "lo"};
    _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return fd < 0 || ioctl(fd, SIOCSIFFLAGS, &q) < 0 ? -errno : 0;
}

static int inside(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("proc", "/proc", "proc", 0, NULL) < 0 ||
        mount("bench", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755") < 0 ||
        mkdir("/run/netns", 0755) < 0 || sethostname("bench-worker", 12) < 0)
        return -errno;
    return loopback_up();
}

int world_run(int (*run)(void *arg), void *arg, struct err *err)
{
    int status;
    if (unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS) < 0)
        return err_errno(err, -errno, "needs root, to make namespaces");
    pid_t pid = fork();
    if (pid < 0)
        return err_errno(err, -errno, "fork");
    if (pid == 0) {
        int r = inside();
        if (r < 0) {
            fprintf(stderr, "setting up the namespaces: %s\n", strerror(-r));
            _exit(1);
        }
        r = run(arg);
        fflush(NULL);
        _exit(r);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    /* Not exit: a leak checker would start a process, and our pid namespace has ended. */
    fflush(NULL);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

/* -- processes -- */

static bool comm_is(const char *pid, const char *comm)
{
    char path[64];
    _cleanup_free_ char *text = NULL;
    if (str_format(path, sizeof(path), "/proc/%s/comm", pid) < 0 ||
        fs_read(AT_FDCWD, path, 64, &text, NULL, NULL) < 0)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return strncmp(text, comm, 15) == 0;
}

pid_t world_pid(const char *comm)
{
    uint64_t pid, best = 0;
    DIR *dir = opendir("/proc");
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));)
        if (str_to_u64(e->d_name, INT_MAX, &pid) == 0 && pid > best && comm_is(e->d_name, comm))
            best = pid;
    closedir(dir);
    return (pid_t)best;
}

static int join_netns(pid_t of)
{
    char path[64];
    if (of == 0)
        return 0;
    (void)str_format(path, sizeof(path), "/proc/%d/ns/net", (int)of);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 || setns(fd, CLONE_NEWNET) < 0 ? -errno : 0;
}

_noreturn_ static void become(const struct world *w, pid_t netns_of, const char *const *argv)
{
    char path[PATH_MAX];
    int log = open(w->log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    int null = open("/dev/null", O_RDONLY);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (dup2(log, 1) < 0 || dup2(log, 2) < 0 || dup2(null, 0) < 0 || join_netns(netns_of) < 0)
        _exit(126);
    if (strchr(argv[0], '/') || str_format(path, sizeof(path), "%s/%s", w->bin, argv[0]) < 0)
        (void)str_format(path, sizeof(path), "%s", argv[0]);
    execv(path, (char *const *)(uintptr_t)argv);
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    _exit(127);
}

int world_spawn(const struct world *w, pid_t netns_of, const char *const *argv, pid_t *ret,
                struct err *err)
{
    pid_t pid = fork();
    if (pid < 0)
        return err_errno(err, -errno, "fork");
    if (pid == 0)
        become(w, netns_of, argv);
    *ret = pid;
    return 0;
}

void world_kill(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

int wait_socket(const char *path, int64_t ms, struct err *err)
{
    int64_t end = clock_mono_ms() + ms;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (str_format(a.sun_path, sizeof(a.sun_path), "%s", path) < 0)
        return err_set(err, -ENAMETOOLONG, "%s", path);
    for (;;) {
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
            return 0;
        if (clock_mono_ms() > end)
            return err_errno(err, -errno, "connecting to %s", path);
        usleep(10 * STEP_US);
    }
}

static void add_words(const char **argv, size_t *n, const char *const *words)
{
    for (; words && *words && *n < ARGV_MAX - 2; words++)
        argv[(*n)++] = *words;
}

int world_start(struct world *w, const char *agent, const char *const *more, struct err *err)
{
    char command[PATH_MAX + 64] = "", daemon[PATH_MAX];
    const char *const fixed[] = {daemon,  "local", "-forwarder-compat", "native", "-local-agent",
                                 command, NULL};
    const char *argv[ARGV_MAX] = {"peerpod-keeper"};
    size_t n = 1;
    if (str_format(daemon, sizeof(daemon), "%s/cloud-api-adaptor", w->bin) < 0 ||
        (agent && str_format(command, sizeof(command), "%s/%s", w->bin, agent) < 0))
        return err_set(err, -ENAMETOOLONG, "%s", w->bin);
    add_words(argv, &n, w->keeper_flags);
    argv[n++] = "--";
    add_words(argv, &n, w->launcher);
    add_words(argv, &n, fixed);
    add_words(argv, &n, more);
    int r = world_spawn(w, 0, argv, &w->keeper, err);
    return r < 0 ? r : wait_socket(HYPERVISOR_SOCKET, 10000, err);
}

/* -- pods -- */

/* The PID 1 of the instance that is there: one pod at a time. */
static pid_t find_init(void)
{
    pid_t found = 0;
    DIR *dir = opendir(INSTANCES);
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        char path[PATH_MAX];
        _cleanup_free_ char *text = NULL;
        int pid;
        if (e->d_name[0] != '.' &&
            str_format(path, sizeof(path), INSTANCES "/%s/init", e->d_name) == 0 &&
            fs_read(AT_FDCWD, path, 256, &text, NULL, NULL) == 0 &&
            sscanf(text, "%*s %d", &pid) == 1)
            found = pid;
    }
    closedir(dir);
    return found;
}

static bool listens(pid_t init, const char *table)
{
    char path[64], line[256];
    bool found = false;
    (void)str_format(path, sizeof(path), "/proc/%d/net/%s", (int)init, table);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    while (!found && fgets(line, sizeof(line), f)) {
        unsigned port, state;
        found = sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &port, &state) == 2 &&
                port == PORT && state == TCP_LISTEN_STATE;
    }
    fclose(f);
    return found;
}

struct start {
    struct pod *pod;
    struct err err;
    int r;
    bool done;
};

static void find_address(struct pod *p)
{
    char path[64], line[256];
    (void)str_format(path, sizeof(path), "/proc/%d/net/fib_trie", (int)p->init);
    FILE *f = fopen(path, "re");
    while (f && !p->address[0] && fgets(line, sizeof(line), f)) {
        const char *at = strstr(line, "198.1") /* 198.18.0.0/15 */;
        char *end = at ? line + (at - line) + strcspn(at, " /\n") : NULL;
        char next[256];
        if (!at || !fgets(next, sizeof(next), f) || !strstr(next, "host LOCAL"))
            continue;
        *end = '\0';
        (void)str_format(p->address, sizeof(p->address), "%s", at);
    }
    if (f)
        fclose(f);
}

static struct shim_vm vm_of(const struct pod *p)
{
    return (struct shim_vm){.socket = HYPERVISOR_SOCKET,
                            .id = p->id,
                            .pod = "bench",
                            .namespace = "bench",
                            .netns = p->netns};
}

int pod_prepare(struct pod *p, unsigned number, struct err *err)
{
    *p = (struct pod){.init = 0};
    for (int i = 0; i < 8; i++)
        (void)str_format(p->id + 8 * i, 9, "%08x", number);
    (void)str_format(p->netns, sizeof(p->netns), "/run/netns/bench%u", number);
    return podnet_create(p->netns, err);
}

int pod_create(struct pod *p, struct err *err)
{
    struct shim_vm vm = vm_of(p);
    return shim_create_vm(&vm, &p->socket, err);
}

int pod_run(struct pod *p, struct err *err)
{
    struct shim_vm vm = vm_of(p);
    return shim_start_vm(&vm, START_TIMEOUT_MS, err);
}

static void *run_thread(void *arg)
{
    struct start *s = arg;
    s->r = pod_run(s->pod, &s->err);
    s->pod->answered_us = clock_mono_us();
    __atomic_store_n(&s->done, true, __ATOMIC_RELEASE);
    return NULL;
}

int pod_start(struct pod *p, unsigned number, struct err *err)
{
    struct start s = {.pod = p, .err = ERR_INIT};
    pthread_t thread;
    int r = pod_prepare(p, number, err);
    if (r == 0)
        r = pod_create(p, err);
    if (r < 0)
        return r;
    pthread_create(&thread, NULL, run_thread, &s);
    while (!__atomic_load_n(&s.done, __ATOMIC_ACQUIRE)) {
        if (!p->init)
            p->init = find_init();
        if (p->init && !p->listened_us && (listens(p->init, "tcp6") || listens(p->init, "tcp")))
            p->listened_us = clock_mono_us();
        usleep(STEP_US);
    }
    pthread_join(thread, NULL);
    if (s.r < 0)
        return err_set(err, s.r, "StartVM: %s", err_text(&s.err));
    (void)str_format(p->agent, sizeof(p->agent), "/proc/%d/root/run/kata-containers/agent.sock",
                     (int)p->init);
    find_address(p);
    return 0;
}

int pod_stop(struct pod *p, struct err *err)
{
    struct shim_vm vm = vm_of(p);
    int64_t end = clock_mono_ms() + STOP_TIMEOUT_MS;
    char dir[PATH_MAX];
    int r = shim_stop_vm(&vm, err);
    (void)str_format(dir, sizeof(dir), PODS "/%s", p->id);
    while (r == 0 && access(dir, F_OK) == 0) {
        if (clock_mono_ms() > end)
            return err_set(err, -ETIMEDOUT, "the VM does not go away");
        usleep(10 * STEP_US);
    }
    free(TAKE_PTR(p->socket));
    int d = podnet_delete(p->netns, r < 0 ? NULL : err);
    return r < 0 ? r : d;
}

/* -- what the programs have said -- */

static int check_log(const char *path, struct err *err)
{
    static const char *const words[] = {"Sanitizer", "runtime error:"};
    _cleanup_free_ char *text = NULL;
    if (fs_read(AT_FDCWD, path, LOG_MAX, &text, NULL, NULL) < 0)
        return 0; /* none is kept */
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strstr(text, words[i]))
            return err_set(err, -EFAULT, "%s: %.600s", path, strstr(text, words[i]));
    return 0;
}

int world_check_logs(const struct world *w, const char *vm_logs, struct err *err)
{
    int r = check_log(w->log, err);
    DIR *dir = opendir(vm_logs);
    for (struct dirent *e; r == 0 && dir && (e = readdir(dir));) {
        char path[512];
        if (e->d_name[0] != '.' && str_format(path, sizeof(path), "%s/%s", vm_logs, e->d_name) == 0)
            r = check_log(path, err);
    }
    if (dir)
        closedir(dir);
    return r;
}
