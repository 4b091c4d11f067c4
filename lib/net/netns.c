/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network namespaces.
 *
 * Model: a namespace is a descriptor of an nsfs file. To work in one, a thread is made, enters,
 * works and ends. setns() back can fail (ENOMEM) and would leave a thread of the daemon in a pod's
 * namespace; a thread that ends cannot. It costs about 50 us, in operations of many milliseconds.
 *
 * netns_create: the new thread unshares and binds its own /proc/thread-self/ns/net to the path.
 * The file is made first and removed again when the bind fails. A file without a namespace on it
 * (a crash between the two steps) is used again. Unlike `ip netns add` no mount point is made of
 * the directory: where /run/netns must propagate between mount namespaces, that is set up already.
 */
#include "net/netns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include "base/fs.h"
#include "base/str.h"

int netns_open(const char *path, int *ret, struct err *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return err_errno(err, -errno, "opening network namespace %s", path);
    if (ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
        return err_set(err, -EINVAL, "%s is not a network namespace", path);
    *ret = TAKE_FD(fd);
    return 0;
}

int netns_open_pid(pid_t pid, int *ret, struct err *err)
{
    char path[64];
    int r = str_format(path, sizeof(path), "/proc/%d/ns/net", pid);

    return r < 0 ? r : netns_open(path, ret, err);
}

int netns_open_own(int *ret, struct err *err)
{
    return netns_open("/proc/thread-self/ns/net", ret, err);
}

int netns_exists(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    return fd >= 0 && ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET;
}

struct visit {
    int netns_fd; /* -1: a new one */
    netns_fn *fn;
    void *arg;
    struct err *err;
    int result;
};

static void *visit_thread(void *arg)
{
    struct visit *v = arg;

    if (v->netns_fd >= 0 && setns(v->netns_fd, CLONE_NEWNET) < 0)
        v->result = err_errno(v->err, -errno, "entering a network namespace");
    else if (v->netns_fd < 0 && unshare(CLONE_NEWNET) < 0)
        v->result = err_errno(v->err, -errno, "making a network namespace");
    else
        v->result = v->fn(v->arg, v->err);
    return NULL;
}

static int visit(struct visit *v)
{
    pthread_t thread;
    int r = pthread_create(&thread, NULL, visit_thread, v);

    if (r != 0)
        return err_errno(v->err, -r, "starting a thread for a network namespace");
    pthread_join(thread, NULL);
    return v->result;
}

int netns_run(int netns_fd, netns_fn *fn, void *arg, struct err *err)
{
    struct visit v = {.netns_fd = netns_fd, .fn = fn, .arg = arg, .err = err};

    return visit(&v);
}

static int loopback_up(struct err *err)
{
    struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
        return err_errno(err, -errno, "setting up loopback in a new network namespace");
    return 0;
}

static int bind_here(void *arg, struct err *err)
{
    const char *path = arg;
    int r = loopback_up(err);

    if (r < 0)
        return r;
    if (mount("/proc/thread-self/ns/net", path, NULL, MS_BIND, NULL) < 0)
        return err_errno(err, -errno, "binding a network namespace to %s", path);
    return 0;
}

int netns_create(const char *path, struct err *err)
{
    _cleanup_free_ char *dir = xstrdup(path);
    char *slash = strrchr(dir, '/');
    struct visit v = {.netns_fd = -1, .fn = bind_here, .arg = (void *)(uintptr_t)path, .err = err};

    if (netns_exists(path) == 1)
        return 0;
    if (!slash || slash == dir)
        return err_set(err, -EINVAL, "network namespace path %s: a directory is missing", path);
    *slash = '\0';
    int r = fs_mkdir_p(dir, 0755, err);
    if (r < 0)
        return r;
    int fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0444);
    if (fd < 0)
        return err_errno(err, -errno, "making %s", path);
    close(fd);
    r = visit(&v);
    if (r < 0)
        unlink(path);
    return r;
}

int netns_delete(const char *path, struct err *err)
{
    if (umount2(path, MNT_DETACH) < 0 && errno != EINVAL && errno != ENOENT)
        return err_errno(err, -errno, "unbinding network namespace %s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_errno(err, -errno, "removing %s", path);
    return 0;
}
