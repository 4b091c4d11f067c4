/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One local VM, seen from the daemon.
 *
 * Start. The helper program is spawned in a session of its own, with an empty environment and four
 * descriptors: null, a pipe for its one error text, the VM's log, the instance's lock. It makes the
 * namespaces, the VM's PID 1 (which outlives it and us) and the link, and ends; its exit status is
 * the answer. It is waited for without regard to the job's cancel: a call that changes the world is
 * finished, then undone. It limits itself by alarm(2); past twice that time it is killed.
 *
 * Why a program and not a fork: a fork of the daemon would hold every descriptor of it (locks that
 * no child may inherit, the shims' sockets) and all its memory, for the life of the VM.
 *
 * Stop. SIGKILL to the VM's PID 1: the kernel ends every process of the pid namespace before PID 1
 * itself becomes waitable, so its pidfd tells that all are gone. The link dies with the network
 * namespace, but in the kernel's own time: it is deleted by us, if its MAC says that it is ours.
 */
#include "providers/local/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "net/link.h"
#include "net/netns.h"
#include "providers/local/vm/proto.h"

/* ---- programs ---- */

static int own_directory(char *out, size_t size, struct err *err)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);

    if (n < 0)
        return err_errno(err, -errno, "reading /proc/self/exe");
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    if (!slash)
        return err_set(err, -EINVAL, "/proc/self/exe is %s", out);
    *slash = '\0';
    return 0;
}

static int check_program(const char *dir, const char *name, const char *option, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;

    if (str_format(path, sizeof(path), "%s/%s", dir, name) < 0)
        return err_set(err, -ENAMETOOLONG, "%s: name too long", dir);
    if (stat(path, &st) < 0)
        return err_errno(err, -errno, "the local provider needs the program %s (%s)", path, option);
    if (!S_ISREG(st.st_mode) || access(path, X_OK) < 0)
        return err_set(err, -EACCES, "%s is not an executable program (%s)", path, option);
    return 0;
}

/* Beside the daemon (build tree), or where it is installed. */
static int find_helper(const char *own, char *ret, size_t size, struct err *err)
{
    static const char *const places[] = {"%s/" VM_HELPER, "%s/../libexec/peerpod/" VM_HELPER};

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        int r = i == 0 ? str_format(ret, size, "%s/" VM_HELPER, own)
                       : str_format(ret, size, "%s/../libexec/peerpod/" VM_HELPER, own);
        if (r == 0 && access(ret, X_OK) == 0)
            return 0;
    }
    return err_set(err, -ENOENT,
                   "the local provider needs its helper " VM_HELPER
                   ", looked for in %s and %s/../libexec/peerpod",
                   own, own);
}

int vm_programs_find(const struct local_config *config, struct vm_programs *ret, struct err *err)
{
    static const char *const needed[] = {"process-user-data", "agent-protocol-forwarder"};
    static const char option[] = "set -local-guest-dir to where the guest programs are";
    char own[PATH_MAX];
    int r = own_directory(own, sizeof(own), err);

    if (r == 0)
        r = find_helper(own, ret->helper, sizeof(ret->helper), err);
    if (r < 0)
        return r;
    const char *dir = config->guest_dir[0] ? config->guest_dir : own;
    if (dir[0] != '/' || str_format(ret->guest_dir, sizeof(ret->guest_dir), "%s", dir) < 0)
        return err_set(err, -EINVAL, "-local-guest-dir '%.200s' is not an absolute path", dir);
    for (size_t i = 0; i < ARRAY_SIZE(needed) && r == 0; i++)
        r = check_program(dir, needed[i], option, err);
    if (r == 0 && !config->agent[0])
        r = check_program(dir, "test-agent", "or set -local-agent to the agent's command", err);
    if (r < 0)
        return r;
    r = str_format(ret->agent, sizeof(ret->agent), "%s", config->agent);
    return r < 0 ? err_set(err, r, "-local-agent: the command is too long") : 0;
}

int vm_check_rights(struct err *err)
{
    static const char way_out[] = "run the daemon as root, or under "
                                  "'unshare --user --map-root-user --net --mount'";
    _cleanup_free_ char *status = NULL;
    _cleanup_close_ int netns = -1;
    uint64_t needed = 1ULL << CAP_SYS_ADMIN | 1ULL << CAP_NET_ADMIN;
    unsigned long long effective = 0;
    int r = fs_read(AT_FDCWD, "/proc/self/status", 65536, &status, NULL, err);

    if (r < 0)
        return r;
    const char *line = strstr(status, "\nCapEff:");
    if (!line || sscanf(line, "\nCapEff: %llx", &effective) != 1 || (effective & needed) != needed)
        return err_set(err, -EPERM, "the local provider needs CAP_SYS_ADMIN and CAP_NET_ADMIN: %s",
                       way_out);
    /* Capabilities of a user namespace are worth nothing in a network namespace of its parent. */
    r = netns_open_own(&netns, err);
    if (r < 0)
        return r;
    _cleanup_close_ int owner = ioctl(netns, NS_GET_USERNS);
    if (owner < 0)
        return err_set(err, -EPERM,
                       "the local provider may not make links in this network "
                       "namespace, it belongs to another user namespace: %s",
                       way_out);
    return 0;
}

/* ---- start ---- */

static int log_path(struct store *s, const struct local_config *config,
                    const struct store_record *rec, char *out, size_t size, struct err *err)
{
    if (!config->vm_log_dir[0])
        return store_path(s, rec->id, "log", out, size, err);
    int r = fs_mkdir_p(config->vm_log_dir, 0700, err);
    if (r == 0 && str_format(out, size, "%s/%s.log", config->vm_log_dir, rec->id) < 0)
        r = err_set(err, -ENAMETOOLONG, "-vm-log-dir: name too long");
    return r;
}

/* fds: what the helper sees as 0, 1, 2 and 3. */
static int spawn_helper(const char *helper, char *const *argv, const int fds[4], pid_t *ret)
{
    static char *const no_environment[] = {NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t all, none;
    int r = posix_spawn_file_actions_init(&actions);

    if (r != 0)
        return -r;
    r = posix_spawnattr_init(&attr);
    if (r != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return -r;
    }
    sigfillset(&all);
    sigemptyset(&none);
    for (int i = 0; i < 4 && r == 0; i++)
        r = posix_spawn_file_actions_adddup2(&actions, fds[i], i);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(&actions, 4);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    if (r == 0)
        r = posix_spawn(ret, helper, &actions, &attr, argv, no_environment);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

/* Reads the helper's one text until it ends, and its status. */
static int await_helper(pid_t pid, int pipe_fd, struct err *err)
{
    char text[ERR_TEXT_MAX] = "";
    size_t len = 0;
    int status = 0;
    int64_t until = clock_mono_ms() + 2000LL * VM_HELPER_SECONDS;

    for (;;) {
        struct pollfd p = {.fd = pipe_fd, .events = POLLIN};
        int64_t left = until - clock_mono_ms();
        int n = left > 0 ? poll(&p, 1, (int)left) : 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            kill(pid, SIGKILL);
            break;
        }
        ssize_t got = read(pipe_fd, text + len, sizeof(text) - 1 - len);
        if (got <= 0)
            break;
        len += (size_t)got;
        if (len == sizeof(text) - 1)
            break;
    }
    text[len] = '\0';
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return err_errno(err, -errno, "waiting for " VM_HELPER);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        return err_set(err, -EIO, VM_HELPER " was killed by signal %d", WTERMSIG(status));
    return err_set(err, -EIO, VM_HELPER ": %s", text[0] ? text : "failed without a word");
}

static int run_helper(const struct vm_programs *programs, char *const *argv, const char *log,
                      int lock, struct err *err)
{
    int ends[2];
    pid_t pid;

    _cleanup_close_ int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    _cleanup_close_ int log_fd = open(log, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (null < 0 || log_fd < 0)
        return err_errno(err, -errno, "opening %s", null < 0 ? "/dev/null" : log);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_errno(err, -errno, "making a pipe");
    _cleanup_close_ int read_end = ends[0];
    const int fds[4] = {null, ends[1], log_fd, lock};
    int r = spawn_helper(programs->helper, argv, fds, &pid);
    close(ends[1]);
    if (r < 0)
        return err_errno(err, r, "starting %s", programs->helper);
    return await_helper(pid, read_end, err);
}

int vm_start(struct store *s, const struct local_config *config, const struct store_record *rec,
             int lock, struct err *err)
{
    struct vm_programs programs;
    char dir[PATH_MAX], log[PATH_MAX], index[16], delay[32];
    int r = vm_programs_find(config, &programs, err);

    if (r == 0)
        r = store_path(s, rec->id, "", dir, sizeof(dir), err);
    if (r == 0)
        r = log_path(s, config, rec, log, sizeof(log), err);
    if (r == 0)
        r = store_reset(s, rec->id, err);
    if (r < 0)
        return r;
    (void)str_format(index, sizeof(index), "%u", rec->index);
    (void)str_format(delay, sizeof(delay), "%lld", (long long)(config->boot_delay_ns / 1000000));
    const char *const argv[VM_ARGS + 1] = {
        [VM_ARG_PROGRAM] = VM_HELPER,
        [VM_ARG_DIR] = dir,
        [VM_ARG_INDEX] = index,
        [VM_ARG_TOKEN] = rec->token,
        [VM_ARG_NAME] = rec->name,
        [VM_ARG_GUEST_DIR] = programs.guest_dir,
        [VM_ARG_AGENT] = programs.agent,
        [VM_ARG_BOOT_DELAY_MS] = delay,
        [VM_ARG_OUTER] = rec->external_network ? "1" : "0",
        [VM_ARG_FAULT] = config->guest_fault,
        [VM_ARG_ADDRESS] = "",
    };
    return run_helper(&programs, (char *const *)(uintptr_t)argv, log, lock, err);
}

/* ---- stop ---- */

static int wait_end(struct job *job, int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int n;

    if (job)
        return job_poll(job, pidfd, POLLIN, -1, NULL);
    do
        n = poll(&p, 1, STORE_UNDO_MS);
    while (n < 0 && errno == EINTR);
    return n > 0 ? 0 : n < 0 ? -errno : -ETIMEDOUT;
}

static int end_processes(struct store *s, struct job *job, const char *id, struct err *err)
{
    struct store_init init;
    _cleanup_close_ int fd = -1;

    int r = store_read_init(s, id, &init, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = store_open_init(&init, &fd);
    if (r == -ESRCH)
        return 0;
    if (r < 0)
        return err_errno(err, r, "opening process %d, PID 1 of %s", init.pid, id);
    if (pidfd_send_signal(fd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
        return err_errno(err, -errno, "killing process %d, PID 1 of %s", init.pid, id);
    r = wait_end(job, fd);
    return r < 0 ? err_errno(err, r, "waiting for the end of process %d, PID 1 of %s", init.pid, id)
                 : 0;
}

static int end_link(struct rtnl *nl, const char *prefix, const struct store_record *rec,
                    struct err *err)
{
    unsigned char mac[NET_MAC_LEN];
    char name[IFNAMSIZ];
    struct link link;
    int r = str_format(name, sizeof(name), "%s%u", prefix, rec->index);

    if (r < 0)
        return err_errno(err, r, "link %s%u", prefix, rec->index);
    local_link_mac(rec->token, mac);
    r = link_find(nl, name, &link, err);
    if (r == -ENODEV || (r == 0 && memcmp(link.mac, mac, sizeof(mac)) != 0))
        return 0;
    return r < 0 ? r : link_delete(nl, link.index, err);
}

int vm_stop(struct store *s, struct job *job, const struct store_record *rec, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    int r = end_processes(s, job, rec->id, err);

    r = r < 0 ? r : rtnl_open(&nl, err);
    r = r < 0 ? r : end_link(nl, LOCAL_OUTER_PREFIX, rec, err);
    return r < 0 ? r : end_link(nl, LOCAL_LINK_PREFIX, rec, err);
}

bool vm_index_taken(uint32_t index, void *arg)
{
    struct link link;
    char inner[IFNAMSIZ], outer[IFNAMSIZ];

    (void)str_format(inner, sizeof(inner), LOCAL_LINK_PREFIX "%u", index);
    (void)str_format(outer, sizeof(outer), LOCAL_OUTER_PREFIX "%u", index);
    return link_find(arg, inner, &link, NULL) == 0 || link_find(arg, outer, &link, NULL) == 0;
}
