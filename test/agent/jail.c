/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Two processes:
 *
 *   first   spawned by the agent. Joins the namespaces that have a path, makes the others, then
 *           clones the second with CLONE_PARENT, so that the agent is its parent and can wait for
 *           it, reports its pid and exits.
 *   second  process 1 of the container (or an exec'd process in it). Puts the root together,
 * mounts, pivots, takes the user, reports ready, waits for "go" (container: StartContainer) and
 *           execs. If the agent dies before, the socket ends and so does it; afterwards the parent
 *           death signal does the same.
 *
 * As with the real agent, everything that can be known at CreateContainer fails there: a namespace,
 * a mount's source or the program that does not exist. The text goes back whole.
 *
 * Pulling an image is the one thing without substance here: a root with an image_guest_pull storage
 * is this machine's own root, read-only in effect: a tmpfs with an overlay for each directory (so
 * that mount points can be made anywhere), or where overlays do not work a read-only bind mount.
 */
#include "jail.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent.pb-c.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

#define REQUEST_MAX (4U << 20)
#define OPTIONS_MAX 4096
#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int report(enum jail_message kind, const char *text)
{
    char message[JAIL_MESSAGE_MAX] = {(char)kind};
    size_t len = strnlen(text, sizeof message - 2);

    memcpy(message + 1, text, len);
    return send(JAIL_FD_SYNC, message, len + 1, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static _noreturn_ void die(const struct err *err)
{
    (void)report(JAIL_ERROR, err_text(err));
    _exit(1);
}

static ProtobufCMessage *request_read(const ProtobufCMessageDescriptor *type, struct err *err)
{
    struct stat st;

    if (fstat(JAIL_FD_REQUEST, &st) < 0 || st.st_size > REQUEST_MAX) {
        err_set(err, -EBADMSG, "the request is not readable");
        return NULL;
    }
    size_t len = (size_t)st.st_size;
    _cleanup_free_ uint8_t *data = xcalloc(1, len + 1);
    if (pread(JAIL_FD_REQUEST, data, len, 0) != (ssize_t)len) {
        err_set(err, -EBADMSG, "the request is cut short");
        return NULL;
    }
    return protobuf_c_message_unpack(type, NULL, len, data);
}

/* -------- namespaces -------- */

static const struct {
    const char *type;
    int flag;
} namespace_types[] = {
    {"network", CLONE_NEWNET}, {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS},
    {"mount", CLONE_NEWNS},    {"pid", CLONE_NEWPID}, {"cgroup", CLONE_NEWCGROUP},
    {"user", CLONE_NEWUSER},
};

static int namespace_flag(const char *type)
{
    for (size_t i = 0; i < ARRAY_SIZE(namespace_types); i++)
        if (str_eq(namespace_types[i].type, type))
            return namespace_types[i].flag;
    return 0;
}

static int namespace_join_path(const char *type, int flag, const char *path, struct err *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return err_errno(err, -errno, "%s namespace %s", type, path);
    if (setns(fd, flag) < 0)
        return err_errno(err, -errno, "joining %s namespace %s", type, path);
    return 0;
}

/* The agent shares ipc and uts among the containers of the sandbox, whatever the shim wrote. */
static int namespace_enter(const Grpc__Namespace *ns, struct err *err)
{
    int flag = namespace_flag(ns->type);

    if (flag == 0 || flag == CLONE_NEWUSER)
        return err_set(err, -EINVAL, "namespace type '%s' is not supported", ns->type);
    if (!str_empty(ns->path))
        return namespace_join_path(ns->type, flag, ns->path, err);
    if (flag == CLONE_NEWIPC || flag == CLONE_NEWUTS) {
        if (setns(flag == CLONE_NEWIPC ? JAIL_FD_A : JAIL_FD_B, flag) < 0)
            return err_errno(err, -errno, "joining the sandbox's %s namespace", ns->type);
        return 0;
    }
    if (flag == CLONE_NEWPID) /* made by the clone */
        return 0;
    if (unshare(flag) < 0)
        return err_errno(err, -errno, "a new %s namespace", ns->type);
    return 0;
}

static int namespaces_enter(const Grpc__CreateContainerRequest *q, struct err *err)
{
    const Grpc__Linux *l = q->oci->linux_;
    bool mount_seen = false;

    for (size_t i = 0; l && i < l->n_namespaces; i++) {
        int r = namespace_enter(l->namespaces[i], err);
        if (r < 0)
            return r;
        mount_seen |= namespace_flag(l->namespaces[i]->type) == CLONE_NEWNS;
    }
    if (!mount_seen && unshare(CLONE_NEWNS) < 0) /* never mount over the VM's own tree */
        return err_errno(err, -errno, "a new mount namespace");
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return err_errno(err, -errno, "making mounts private");
    return 0;
}

/* -------- mounts -------- */

static const struct {
    const char *name;
    unsigned long set, clear;
} mount_options[] = {
    {"ro", MS_RDONLY, 0},
    {"rw", 0, MS_RDONLY},
    {"nosuid", MS_NOSUID, 0},
    {"suid", 0, MS_NOSUID},
    {"nodev", MS_NODEV, 0},
    {"dev", 0, MS_NODEV},
    {"noexec", MS_NOEXEC, 0},
    {"exec", 0, MS_NOEXEC},
    {"bind", MS_BIND, 0},
    {"rbind", MS_BIND | MS_REC, 0},
    {"noatime", MS_NOATIME, 0},
    {"relatime", MS_RELATIME, 0},
    {"strictatime", MS_STRICTATIME, 0},
    {"nodiratime", MS_NODIRATIME, 0},
    {"sync", MS_SYNCHRONOUS, 0},
    {"private", 0, 0},
    {"rprivate", 0, 0},
    {"slave", 0, 0},
    {"rslave", 0, 0},
    {"shared", 0, 0},
    {"rshared", 0, 0},
};

static unsigned long options_parse(char *const *options, size_t n, char data[OPTIONS_MAX])
{
    unsigned long flags = 0;
    size_t used = 0;

    data[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;

        while (k < ARRAY_SIZE(mount_options) && !str_eq(mount_options[k].name, options[i]))
            k++;
        if (k < ARRAY_SIZE(mount_options)) {
            flags = (flags | mount_options[k].set) & ~mount_options[k].clear;
            continue;
        }
        int len = snprintf(data + used, OPTIONS_MAX - used, "%s%s", used ? "," : "", options[i]);
        if (len > 0 && used + (size_t)len < OPTIONS_MAX)
            used += (size_t)len;
        data[used] = '\0';
    }
    return flags;
}

static int open_within(int root, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};

    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* The mount point below root, made as a directory or a file if it is missing. Symbolic links of the
 * container's tree are resolved within it: each step goes through openat2. Returns an O_PATH
 * descriptor. */
static int target_open(int root, const char *path, bool directory, struct err *err)
{
    int fd = open_within(root, path);
    const char *slash = strrchr(path, '/');

    if (fd >= 0)
        return fd;
    if (errno != ENOENT || !slash)
        return err_errno(err, -errno, "mount point %s", path);
    _cleanup_free_ char *above = str_asprintf("%.*s", (int)(slash - path), path);
    _cleanup_close_ int parent = target_open(root, above[0] ? above : "/", true, err);
    if (parent < 0)
        return parent;
    if (directory && mkdirat(parent, slash + 1, 0755) < 0)
        return err_errno(err, -errno, "making %s in the container", path);
    if (!directory) {
        unlinkat(parent, slash + 1, 0); /* a link to nowhere, such as /etc/resolv.conf to /run */
        int made = openat(parent, slash + 1, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
        if (made < 0)
            return err_errno(err, -errno, "making %s in the container", path);
        close(made);
    }
    fd = open_within(root, path);
    return fd < 0 ? err_errno(err, -errno, "mount point %s", path) : fd;
}

static int mount_bind(const char *source, const char *target, unsigned long flags,
                      const char *destination, struct err *err)
{
    unsigned long rest = flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC);

    if (mount(source, target, NULL, MS_BIND | (flags & MS_REC), NULL) < 0)
        return err_errno(err, -errno, "binding %s to %s", source, destination);
    return rest == 0 ? 0 : 1; /* 1: options need a remount through a fresh path */
}

static int mount_remount(int root, const char *destination, unsigned long flags, struct err *err)
{
    char target[64];
    _cleanup_close_ int fd = target_open(root, destination, true, err);

    if (fd < 0)
        return fd;
    if (str_format(target, sizeof target, "/proc/self/fd/%d", fd) < 0)
        return -ENAMETOOLONG;
    if (mount(NULL, target, NULL,
              MS_REMOUNT | MS_BIND | (flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)),
              NULL) < 0)
        return err_errno(err, -errno, "options of %s", destination);
    return 0;
}

static bool is_bind(const Grpc__Mount *m, unsigned long flags)
{
    return str_eq(m->type, "bind") || (flags & MS_BIND);
}

/* In a user namespace: /sys may only be bound, and group 5 (tty) may not exist. */
static int mount_restricted(const Grpc__Mount *m, const char *target, unsigned long flags,
                            char *data, struct err *err)
{
    char *gid = strstr(data, ",gid=");

    if (str_eq(m->type, "sysfs") && errno == EPERM &&
        mount("/sys", target, NULL, MS_BIND | MS_REC, NULL) == 0)
        return 0;
    if (str_eq(m->type, "devpts") && errno == EINVAL && gid) {
        size_t len = strcspn(gid + 1, ",") + 1;
        memmove(gid, gid + len, strlen(gid + len) + 1);
        if (mount(m->source, target, m->type, flags, data) == 0)
            return 0;
    }
    return err_errno(err, -errno, "mounting %s (%s) on %s", m->source, m->type, m->destination);
}

static int mount_one(int root, const Grpc__Mount *m, struct err *err)
{
    char data[OPTIONS_MAX], target[64];
    unsigned long flags = options_parse(m->options, m->n_options, data);
    struct stat st = {.st_mode = S_IFDIR};

    if (is_bind(m, flags) && stat(m->source, &st) < 0)
        return err_errno(err, -errno, "mount source %s for %s", m->source, m->destination);
    _cleanup_close_ int fd = target_open(root, m->destination, S_ISDIR(st.st_mode), err);
    if (fd < 0)
        return fd;
    if (str_format(target, sizeof target, "/proc/self/fd/%d", fd) < 0)
        return -ENAMETOOLONG;
    if (is_bind(m, flags)) {
        int r = mount_bind(m->source, target, flags, m->destination, err);
        return r == 1 ? mount_remount(root, m->destination, flags, err) : r;
    }
    if (str_eq(m->type, "cgroup")) /* whichever version this kernel has; nothing here uses it */
        return mount("tmpfs", target, "tmpfs", flags & ~(unsigned long)MS_RELATIME, "size=64k") < 0
                   ? err_errno(err, -errno, "mounting %s", m->destination)
                   : 0;
    if (mount(m->source, target, m->type, flags, data) == 0)
        return 0;
    char *gid = strstr(data, ",gid=");
    if (errno == EINVAL && gid) { /* a group that the user namespace does not have */
        size_t rest = strcspn(gid + 1, ",");
        memmove(gid, gid + 1 + rest, strlen(gid + 1 + rest) + 1);
        if (mount(m->source, target, m->type, flags, data) == 0)
            return 0;
    }
    return mount_restricted(m, target, flags, data, err);
}

/* The usual nodes of a fresh /dev, bound from the VM's: mknod is refused in a user namespace. */
static int devices_make(int root, struct err *err)
{
    static const char *const nodes[] = {"/dev/null",   "/dev/zero",    "/dev/full",
                                        "/dev/random", "/dev/urandom", "/dev/tty"};
    static const char *const links[][2] = {{"/proc/self/fd", "dev/fd"},
                                           {"/proc/self/fd/0", "dev/stdin"},
                                           {"/proc/self/fd/1", "dev/stdout"},
                                           {"/proc/self/fd/2", "dev/stderr"},
                                           {"pts/ptmx", "dev/ptmx"}};

    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
        Grpc__Mount m = GRPC__MOUNT__INIT;

        m.source = m.destination = (char *)(uintptr_t)nodes[i];
        m.type = (char *)(uintptr_t) "bind";
        int r = mount_one(root, &m, err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < ARRAY_SIZE(links); i++)
        if (symlinkat(links[i][0], root, links[i][1]) < 0 && errno != EEXIST)
            return err_errno(err, -errno, "making /%s", links[i][1]);
    return 0;
}

static bool has_guest_pull(const Grpc__CreateContainerRequest *q)
{
    for (size_t i = 0; i < q->n_storages; i++)
        if (str_eq(q->storages[i]->driver, "image_guest_pull") &&
            str_eq(q->storages[i]->mount_point, q->oci->root->path))
            return true;
    return false;
}

/* One directory of this machine in the container's root: writable above it, or as it is. */
static int show_directory(const char *root, const char *base, const char *name, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX], upper[PATH_MAX], work[PATH_MAX], data[3 * PATH_MAX];

    if (str_format(from, sizeof from, "/%s", name) < 0 ||
        str_format(to, sizeof to, "%s/%s", root, name) < 0 ||
        str_format(upper, sizeof upper, "%s/%s.upper", base, name) < 0 ||
        str_format(work, sizeof work, "%s/%s.work", base, name) < 0 ||
        str_format(data, sizeof data, "lowerdir=%s,upperdir=%s,workdir=%s", from, upper, work) < 0)
        return err_set(err, -ENAMETOOLONG, "root path is too long");
    if (mkdir(to, 0755) < 0)
        return err_errno(err, -errno, "making %s", to);
    if (mkdir(upper, 0755) == 0 && mkdir(work, 0755) == 0 &&
        mount("overlay", to, "overlay", 0, data) == 0)
        return 0;
    if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0 ||
        mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
        return err_errno(err, -errno, "this machine's %s as the container's", from);
    return 0;
}

static int show_entry(const char *root, const char *base, const struct dirent *e, struct err *err)
{
    /* The spec mounts these, or the container has its own. */
    static const char *const own[] = {".",   "..",  "proc", "sys",  "dev",
                                      "run", "tmp", "mnt",  "media"};
    char from[PATH_MAX], to[PATH_MAX], target[PATH_MAX];
    struct stat st;

    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        if (str_eq(e->d_name, own[i]))
            return 0;
    if (str_format(from, sizeof from, "/%s", e->d_name) < 0 ||
        str_format(to, sizeof to, "%s/%s", root, e->d_name) < 0 || lstat(from, &st) < 0)
        return 0;
    if (S_ISDIR(st.st_mode))
        return show_directory(root, base, e->d_name, err);
    ssize_t n = S_ISLNK(st.st_mode) ? readlink(from, target, sizeof target - 1) : 0;
    if (n <= 0)
        return 0;
    target[n] = '\0';
    return symlink(target, to) < 0 ? err_errno(err, -errno, "linking %s", to) : 0;
}

/*
 * The container's root where no image can be pulled: this machine's directories. Each is mounted by
 * itself, because in a local VM (and in many containers) they are mounts below an empty root, and
 * neither an overlay nor a plain bind of "/" would show what is in them.
 */
static int root_of_host(const char *root, struct err *err)
{
    char base[PATH_MAX];
    int r = str_format(base, sizeof base, "%s.overlay", root);

    if (r < 0)
        return err_set(err, r, "root path is too long");
    r = fs_mkdir_p(root, 0755, err);
    r = r < 0 ? r : fs_mkdir_p(base, 0755, err);
    if (r < 0)
        return r;
    if (mount("tmpfs", base, "tmpfs", 0, "mode=755,size=64m") < 0 ||
        mount("tmpfs", root, "tmpfs", 0, "mode=755,size=64m") < 0)
        return err_errno(err, -errno, "a tmpfs for the root");
    static const char *const empty[] = {"proc", "sys", "dev", "run", "tmp"};
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(empty); i++)
        if (str_format(path, sizeof path, "%s/%s", root, empty[i]) == 0)
            (void)mkdir(path, str_eq(empty[i], "tmp") ? 01777 : 0755);
    DIR *dir = opendir("/");
    struct dirent *e;
    if (!dir)
        return err_errno(err, -errno, "reading /");
    while (r == 0 && (e = readdir(dir)))
        r = show_entry(root, base, e, err);
    closedir(dir);
    return r;
}

static int root_prepare(const Grpc__CreateContainerRequest *q, struct err *err)
{
    const char *root = q->oci->root ? q->oci->root->path : "";

    if (root[0] != '/')
        return err_set(err, -EINVAL, "the spec names no absolute root path");
    if (has_guest_pull(q))
        return root_of_host(root, err);
    if (mount(root, root, NULL, MS_BIND | MS_REC, NULL) < 0)
        return err_errno(err, -errno, "rootfs %s", root);
    return 0;
}

static int root_mounts(const Grpc__Spec *spec, struct err *err)
{
    _cleanup_close_ int root = open(spec->root->path, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (root < 0)
        return err_errno(err, -errno, "rootfs %s", spec->root->path);
    for (size_t i = 0; i < spec->n_mounts; i++) {
        int r = mount_one(root, spec->mounts[i], err);
        if (r == 0 && str_eq(spec->mounts[i]->destination, "/dev"))
            r = devices_make(root, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int root_enter(const Grpc__Root *root, struct err *err)
{
    if (chdir(root->path) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
        umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return err_errno(err, -errno, "changing to root %s", root->path);
    if (root->readonly && mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
        return err_errno(err, -errno, "making the root read-only");
    return 0;
}

/* Hides or freezes paths of /proc and /sys; those that do not exist are passed over. */
static int paths_protect(const Grpc__Linux *l, struct err *err)
{
    for (size_t i = 0; l && i < l->n_masked_paths; i++) {
        const char *p = l->masked_paths[i];
        struct stat st;

        if (stat(p, &st) < 0)
            continue;
        int r = S_ISDIR(st.st_mode) ? mount("tmpfs", p, "tmpfs", MS_RDONLY, "size=0k")
                                    : mount("/dev/null", p, NULL, MS_BIND, NULL);
        if (r < 0)
            return err_errno(err, -errno, "masking %s", p);
    }
    for (size_t i = 0; l && i < l->n_readonly_paths; i++) {
        const char *p = l->readonly_paths[i];

        if (access(p, F_OK) < 0)
            continue;
        if (mount(p, p, NULL, MS_BIND | MS_REC, NULL) < 0 ||
            mount(NULL, p, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
            return err_errno(err, -errno, "making %s read-only", p);
    }
    return 0;
}

/* -------- the process -------- */

static const struct {
    const char *name;
    __rlimit_resource_t resource;
} rlimit_names[] = {
    {"RLIMIT_AS", RLIMIT_AS},
    {"RLIMIT_CORE", RLIMIT_CORE},
    {"RLIMIT_CPU", RLIMIT_CPU},
    {"RLIMIT_DATA", RLIMIT_DATA},
    {"RLIMIT_FSIZE", RLIMIT_FSIZE},
    {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},
    {"RLIMIT_NOFILE", RLIMIT_NOFILE},
    {"RLIMIT_NPROC", RLIMIT_NPROC},
    {"RLIMIT_STACK", RLIMIT_STACK},
    {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
    {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
};

static int rlimit_apply(const Grpc__Rlimit *l, struct err *err)
{
    struct rlimit limit = {.rlim_cur = l->soft, .rlim_max = l->hard}, old;

    for (size_t i = 0; i < ARRAY_SIZE(rlimit_names); i++) {
        if (!str_eq(rlimit_names[i].name, l->type))
            continue;
        if (setrlimit(rlimit_names[i].resource, &limit) == 0)
            return 0;
        if (errno != EPERM || getrlimit(rlimit_names[i].resource, &old) < 0)
            return err_errno(err, -errno, "%s", l->type);
        log_warn("%s stays at %llu: no privilege to raise it", l->type,
                 (unsigned long long)old.rlim_max);
        return 0;
    }
    return err_set(err, -EINVAL, "unknown limit '%s'", l->type);
}

static int user_apply(const Grpc__User *u, struct err *err)
{
    _cleanup_free_ gid_t *groups = NULL;

    if (!u)
        return 0;
    groups = xcalloc(u->n_additional_gids + 1, sizeof *groups);
    for (size_t i = 0; i < u->n_additional_gids; i++)
        groups[i] = u->additional_gids[i];
    if (setgroups(u->n_additional_gids, groups) < 0 && u->n_additional_gids > 0)
        return err_errno(err, -errno, "setting groups");
    if (setresgid(u->gid, u->gid, u->gid) < 0)
        return err_errno(err, -errno, "setting group %u", u->gid);
    if (setresuid(u->uid, u->uid, u->uid) < 0)
        return err_errno(err, -errno, "setting user %u", u->uid);
    return 0;
}

static const char *env_path(char *const *env)
{
    for (; *env; env++)
        if (str_starts(*env, "PATH="))
            return *env + strlen("PATH=");
    return PATH_DEFAULT;
}

/* The program's path, owned; the real agent looks before it says that a process was made. */
static char *program_find(const char *name, char *const *env, struct err *err)
{
    if (strchr(name, '/')) {
        if (access(name, X_OK) == 0)
            return xstrdup(name);
        err_set(err, -errno, "the file %s was not found", name);
        return NULL;
    }
    char **dirs _cleanup_(strv_freep) = str_split(env_path(env), ':');
    for (char **d = dirs; *d; d++) {
        char *path = str_asprintf("%s/%s", *d, name);
        struct stat st;

        if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0)
            return path;
        free(path);
    }
    err_set(err, -ENOENT, "the file %s was not found", name);
    return NULL;
}

/* NULL-terminated shallow copy. */
static char **vector(char *const *v, size_t n)
{
    char **ret = xcalloc(n + 1, sizeof *ret);

    if (n > 0)
        memcpy(ret, v, n * sizeof *ret);
    return ret;
}

static int process_apply(const Grpc__Process *p, struct err *err)
{
    int r = 0;

    setsid();
    if (p->terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        return err_errno(err, -errno, "taking the terminal");
    for (size_t i = 0; r == 0 && i < p->n_rlimits; i++)
        r = rlimit_apply(p->rlimits[i], err);
    if (r < 0)
        return r;
    if (!str_empty(p->cwd) && chdir(p->cwd) < 0)
        return err_errno(err, -errno, "working directory %s", p->cwd);
    r = user_apply(p->user, err);
    if (r < 0)
        return r;
    if (p->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_errno(err, -errno, "no new privileges");
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return err_errno(err, -errno, "death signal");
    return 0;
}

static void wait_for_go(void)
{
    char message[JAIL_MESSAGE_MAX];
    ssize_t n = recv(JAIL_FD_SYNC, message, sizeof message, 0);

    if (n < 1 || message[0] != JAIL_GO)
        _exit(1);
}

static _noreturn_ void process_exec(const Grpc__Process *p, bool wait)
{
    struct err err = ERR_INIT;

    if (p->n_args == 0)
        err_set(&err, -EINVAL, "the process has no arguments");
    char **args = vector(p->args, p->n_args), **env = vector(p->env, p->n_env);
    if (err.code < 0 || process_apply(p, &err) < 0)
        die(&err);
    char *path = program_find(args[0], env, &err);
    if (!path || report(JAIL_READY, "") < 0)
        die(&err);
    if (wait)
        wait_for_go();
    execve(path, args, env);
    _exit(errno == ENOENT ? 127 : 126);
}

static void on_end(int signo)
{
    (void)signo;
    _exit(0);
}

/* What the pause image does: be there, and reap. */
static _noreturn_ void pause_run(void)
{
    struct sigaction end = {.sa_handler = on_end};
    struct err err = ERR_INIT;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || report(JAIL_READY, "") < 0) {
        err_errno(&err, -errno, "pause");
        die(&err);
    }
    wait_for_go();
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGINT, &end, NULL);
    for (;;)
        if (waitpid(-1, NULL, 0) < 0)
            pause();
}

/* A fork whose child is the agent's. */
static pid_t clone_sibling(unsigned long flags)
{
    return (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD | flags, 0, 0, 0, 0);
}

static _noreturn_ void first_ends(pid_t pid, struct err *err)
{
    char text[32];

    if (pid < 0) {
        err_errno(err, -errno, "cloning the container's process");
        die(err);
    }
    _exit(str_format(text, sizeof text, "%d", (int)pid) < 0 || report(JAIL_PID, text) < 0);
}

static bool wants_new_pidns(const Grpc__CreateContainerRequest *q)
{
    const Grpc__Linux *l = q->oci->linux_;

    for (size_t i = 0; l && i < l->n_namespaces; i++)
        if (str_eq(l->namespaces[i]->type, "pid") && !str_empty(l->namespaces[i]->path))
            return false;
    return true;
}

static _noreturn_ void container_main(bool paused)
{
    struct err err = ERR_INIT;
    Grpc__CreateContainerRequest *q = (Grpc__CreateContainerRequest *)request_read(
        &grpc__create_container_request__descriptor, &err);

    if (!q || !q->oci || !q->oci->process) {
        if (err.code == 0)
            err_set(&err, -EINVAL, "the request holds no spec with a process");
        die(&err);
    }
    /* Threads of a sanitizer's runtime would keep setns(CLONE_NEWNS) from working. */
    if (unshare(CLONE_FS) < 0 || namespaces_enter(q, &err) < 0) {
        if (err.code == 0)
            err_errno(&err, -errno, "unsharing");
        die(&err);
    }
    pid_t pid = clone_sibling(wants_new_pidns(q) ? CLONE_NEWPID : 0);
    if (pid != 0)
        first_ends(pid, &err);
    if (root_prepare(q, &err) < 0 || root_mounts(q->oci, &err) < 0 ||
        root_enter(q->oci->root, &err) < 0 || paths_protect(q->oci->linux_, &err) < 0)
        die(&err);
    if (paused)
        pause_run();
    process_exec(q->oci->process, true);
}

static _noreturn_ void exec_main(void)
{
    static const int joined =
        CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET;
    struct err err = ERR_INIT;
    Grpc__ExecProcessRequest *q =
        (Grpc__ExecProcessRequest *)request_read(&grpc__exec_process_request__descriptor, &err);

    if (!q || !q->process) {
        if (err.code == 0)
            err_set(&err, -EINVAL, "the request holds no process");
        die(&err);
    }
    if (unshare(CLONE_FS) < 0 || setns(JAIL_FD_A, joined) < 0) {
        err_errno(&err, -errno, "joining the container");
        die(&err);
    }
    pid_t pid = clone_sibling(0);
    if (pid != 0)
        first_ends(pid, &err);
    process_exec(q->process, false);
}

/* Holds the sandbox's ipc and uts namespaces until the agent has opened them. The request is its
 * CreateSandbox. */
static int sandbox_main(void)
{
    struct err err = ERR_INIT;
    Grpc__CreateSandboxRequest *q =
        (Grpc__CreateSandboxRequest *)request_read(&grpc__create_sandbox_request__descriptor, &err);

    if (!q)
        die(&err);
    if (unshare(CLONE_NEWIPC | CLONE_NEWUTS) < 0)
        err_errno(&err, -errno, "setup persistent IPC namespace");
    else if (!str_empty(q->hostname) && sethostname(q->hostname, strlen(q->hostname)) < 0)
        err_errno(&err, -errno, "setting hostname %s", q->hostname);
    if (err.code < 0)
        die(&err);
    (void)report(JAIL_READY, "");
    wait_for_go();
    protobuf_c_message_free_unpacked(&q->base, NULL);
    return 0;
}

int jail_main(const char *mode)
{
    log_init("test-agent", LOG_LEVEL_WARN, LOG_FORMAT_TEXT);
    for (int fd = JAIL_FD_REQUEST; fd <= JAIL_FD_B; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (str_eq(mode, "container"))
        container_main(false);
    if (str_eq(mode, "pause"))
        container_main(true);
    if (str_eq(mode, "exec"))
        exec_main();
    if (str_eq(mode, "sandbox"))
        return sandbox_main();
    return 2;
}
