/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peerpod-local-vm: makes one VM of the local provider, and becomes its PID 1.
 *
 * Two processes. The helper unshares namespaces and forks: the child is PID 1 of the new pid
 * namespace, and in the others too. Between them go two pipes:
 *
 *   helper                                     PID 1
 *   writes `init` (boot id, pid, start time)   waits for "go", holding the instance's lock
 *   makes the link, both ends
 *   "go"                                   ->  closes the lock, makes its root
 *   waits                                  <-  "ok", or an error text
 *   writes `ready`, exits 0                    boots
 *
 * Whoever gets the instance's lock therefore finds either no PID 1 or one that is recorded: if the
 * helper dies before "go", PID 1 reads the end of the pipe and exits, and the lock falls with it.
 * From then on PID 1 is on its own: it outlives the helper and the daemon, and with it ends
 * everything in the VM. The helper cannot hang: alarm(2).
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fs.h"
#include "base/str.h"
#include "net/netns.h"
#include "providers/local/config.h"
#include "providers/local/vm/proto.h"
#include "providers/local/vm/vm.h"

/* The mount namespace is PID 1's alone: a change of root would take the helper along. */
#define NAMESPACES (CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)

struct pipes {
    int go[2], answer[2];
};

static int parse(char **argv, int argc, struct guest *g, struct err *err)
{
    uint64_t index, delay;

    if (argc != VM_ARGS)
        return err_set(err, -EINVAL,
                       "started with %d arguments instead of %d: it is run by the "
                       "local provider only, of the same version",
                       argc, VM_ARGS);
    if (str_to_u64(argv[VM_ARG_INDEX], LOCAL_INDEX_MAX, &index) < 0 || index == 0 ||
        str_to_u64(argv[VM_ARG_BOOT_DELAY_MS], INT32_MAX, &delay) < 0)
        return err_set(err, -EINVAL, "bad index or boot delay");
    *g = (struct guest){.dir = argv[VM_ARG_DIR],
                        .token = argv[VM_ARG_TOKEN],
                        .name = argv[VM_ARG_NAME],
                        .guest_dir = argv[VM_ARG_GUEST_DIR],
                        .agent = argv[VM_ARG_AGENT],
                        .fault = argv[VM_ARG_FAULT],
                        .index = (uint32_t)index,
                        .outer = str_eq(argv[VM_ARG_OUTER], "1"),
                        .address = argv[VM_ARG_ADDRESS],
                        .boot_delay_ms = (int64_t)delay};
    return 0;
}

/* ---- PID 1 ---- */

static int be_guest(const struct guest *g, const struct pipes *p, struct err *err)
{
    char go;
    int console = -1;

    prctl(PR_SET_NAME, "local-vm");
    close(p->go[1]);
    close(p->answer[0]);
    if (read(p->go[0], &go, 1) != 1)
        _exit(1); /* the helper died: nothing was begun */
    close(p->go[0]);
    close(VM_FD_LOCK);
    alarm(0);
    int r = guest_log_start(VM_FD_LOG, &console, err);
    if (r < 0)
        return r;
    if (dup3(console, VM_FD_LOG, 0) < 0 || dup3(console, VM_FD_REPORT, 0) < 0)
        return err_errno(err, -errno, "redirecting the VM's output");
    close(console);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return err_errno(err, -errno, "making a mount namespace");
    return guest_root_make(g, err);
}

_noreturn_ static void guest_main(const struct guest *g, const struct pipes *p)
{
    struct err err = ERR_INIT;
    char ok[] = "ok";
    bool failed = be_guest(g, p, &err) < 0;
    const char *text = failed ? err.text : ok;

    ssize_t n = write(p->answer[1], text, strlen(text));
    close(p->answer[1]);
    if (failed || n < 0)
        _exit(1);
    guest_boot(g);
}

/* ---- the helper ---- */

static int record_init(const struct guest *g, pid_t pid, struct err *err)
{
    _cleanup_free_ char *stat = NULL, *boot = NULL;
    char path[PATH_MAX], text[128];
    uint64_t start;
    int r = str_format(path, sizeof(path), "/proc/%d/stat", pid);

    if (r == 0)
        r = fs_read(AT_FDCWD, path, 4096, &stat, NULL, err);
    if (r == 0)
        r = fs_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, NULL, err);
    if (r < 0)
        return r;
    if (local_start_time(stat, &start) < 0)
        return err_set(err, -EBADMSG, "%s is not as expected", path);
    (void)str_format(text, sizeof(text), "%.36s %d %llu\n", boot, pid, (unsigned long long)start);
    (void)str_format(path, sizeof(path), "%s/init", g->dir);
    return fs_write_atomic(AT_FDCWD, path, text, strlen(text), 0600, err);
}

/* Lets PID 1 go on, and passes on what it says. */
static int let_boot(const struct pipes *p, struct err *err)
{
    char text[ERR_TEXT_MAX];
    size_t len = 0;
    ssize_t n;

    if (write(p->go[1], "g", 1) != 1)
        return err_errno(err, -errno, "talking to the VM's PID 1");
    do {
        n = read(p->answer[0], text + len, sizeof(text) - 1 - len);
        len += n > 0 ? (size_t)n : 0;
    } while (n > 0 && len < sizeof(text) - 1);
    text[len] = '\0';
    if (str_eq(text, "ok"))
        return 0;
    return err_set(err, -EIO, "%s", len ? text : "the VM's PID 1 died while it was set up");
}

static int write_ready(const struct guest *g, struct err *err)
{
    char path[PATH_MAX];

    if (str_format(path, sizeof(path), "%s/ready", g->dir) < 0)
        return err_set(err, -ENAMETOOLONG, "registry directory: name too long");
    return fs_write_atomic(AT_FDCWD, path, "", 0, 0600, err);
}

static int make(const struct guest *g, struct pipes *p, struct rtnl *host, struct err *err)
{
    _cleanup_close_ int netns = -1;
    pid_t pid = fork();

    if (pid < 0)
        return err_errno(err, -errno, "forking the VM's PID 1");
    if (pid == 0)
        guest_main(g, p);
    close(p->go[0]);
    close(p->answer[1]);
    int r = record_init(g, pid, err);
    if (r == 0)
        r = netns_open_own(&netns, err);
    if (r == 0)
        r = guest_link_make(g, host, netns, err);
    if (r == 0)
        r = let_boot(p, err);
    if (r == 0)
        r = write_ready(g, err);
    if (r < 0) {
        /* Not our answer to give that all is gone: the provider's undo makes sure. */
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return r;
}

static int run(int argc, char **argv, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *host = NULL;
    struct pipes p;
    struct guest g;
    int r = parse(argv, argc, &g, err);

    if (r == 0)
        r = rtnl_open(&host, err); /* before the unshare: it stays with the worker's namespace */
    if (r < 0)
        return r;
    if (unshare(NAMESPACES) < 0)
        return err_errno(err, -errno, "making namespaces");
    if (pipe2(p.go, O_CLOEXEC) < 0 || pipe2(p.answer, O_CLOEXEC) < 0)
        return err_errno(err, -errno, "making pipes");
    return make(&g, &p, host, err);
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;

    signal(SIGPIPE, SIG_IGN);
    alarm(VM_HELPER_SECONDS);
    umask(022);
    if (run(argc, argv, &err) == 0)
        _exit(0); /* not by return: a leak checker would fork into the VM's pid namespace */
    ssize_t n = write(VM_FD_REPORT, err.text, strlen(err.text));
    _exit(n < 0 ? 2 : 1);
}
