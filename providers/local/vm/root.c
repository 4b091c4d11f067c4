/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's file system: a tmpfs that shows the machine's own directories read-only, with /run,
 * /tmp, /media, /proc, /sys and /dev of its own.
 *
 * Everything is mounted inside the VM's mount namespace, below the instance's `root` directory,
 * which then becomes the root and loses sight of the old one. Nothing of it exists outside, so
 * nothing needs to be undone: the mounts end with the last process.
 *
 * The guest programs and the agent keep their paths: where these lie in a directory that is the
 * VM's own (/tmp and /run: build trees), their directories are shown through.
 *
 * In a user namespace the same calls work: mount_setattr adds "read-only" to locked mounts without
 * touching their other flags, devices are bound instead of made, devpts gets no gid.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/fs.h"
#include "base/str.h"
#include "net/netns.h"
#include "providers/local/vm/vm.h"

#define USER_DATA_MAX (8U << 20)
#define TMPFS_OPTIONS "mode=0755,size=50%"

/* The VM has its own of these. */
static const char *const own_dirs[] = {"proc", "sys", "dev", "run", "tmp", "media", "mnt"};

static int mount_tmpfs(const char *path, const char *options, struct err *err)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_errno(err, -errno, "making %s", path);
    if (mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
        return err_errno(err, -errno, "mounting a tmpfs on %s", path);
    return 0;
}

static int bind_mount(const char *from, const char *to, bool read_only, struct err *err)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};

    if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0)
        return err_errno(err, -errno, "showing %s in the VM", from);
    if (read_only &&
        syscall(SYS_mount_setattr, AT_FDCWD, to, AT_RECURSIVE, &attr, sizeof(attr)) < 0)
        return err_errno(err, -errno, "making %s read-only in the VM", from);
    return 0;
}

/* ---- the machine's directories ---- */

static bool own(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(own_dirs); i++)
        if (str_eq(own_dirs[i], name))
            return true;
    return false;
}

static int show_entry(const char *root, const char *name, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX], target[PATH_MAX];
    struct stat st;

    if (str_format(from, sizeof(from), "/%s", name) < 0 ||
        str_format(to, sizeof(to), "%s/%s", root, name) < 0)
        return err_set(err, -ENAMETOOLONG, "/%.100s", name);
    if (lstat(from, &st) < 0)
        return 0;
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlink(from, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        return n > 0 && symlink(target, to) < 0 ? err_errno(err, -errno, "linking %s", to) : 0;
    }
    if (!S_ISDIR(st.st_mode))
        return 0;
    if (mkdir(to, 0755) < 0)
        return err_errno(err, -errno, "making %s", to);
    return bind_mount(from, to, true, err);
}

static int show_machine(const char *root, struct err *err)
{
    DIR *dir = opendir("/");
    struct dirent *e;
    int r = 0;

    if (!dir)
        return err_errno(err, -errno, "reading /");
    while (r == 0 && (e = readdir(dir)))
        if (!str_eq(e->d_name, ".") && !str_eq(e->d_name, "..") && !own(e->d_name))
            r = show_entry(root, e->d_name, err);
    closedir(dir);
    return r;
}

/* ---- /dev ---- */

static int make_dev(const char *root, struct err *err)
{
    static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"},
                                           {"pts/ptmx", "ptmx"}};
    char from[64], to[PATH_MAX];

    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
        (void)str_format(from, sizeof(from), "/dev/%s", nodes[i]);
        (void)str_format(to, sizeof(to), "%s/dev/%s", root, nodes[i]);
        int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0)
            return err_errno(err, -errno, "making %s", to);
        close(fd);
        int r = bind_mount(from, to, false, err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
        (void)str_format(to, sizeof(to), "%s/dev/%s", root, links[i][1]);
        if (symlink(links[i][0], to) < 0)
            return err_errno(err, -errno, "linking %s", to);
    }
    (void)str_format(to, sizeof(to), "%s/dev/pts", root);
    if (mkdir(to, 0755) < 0 || mount("devpts", to, "devpts", MS_NOSUID | MS_NOEXEC,
                                     "newinstance,ptmxmode=0666,mode=0620") < 0)
        return err_errno(err, -errno, "mounting %s", to);
    (void)str_format(to, sizeof(to), "%s/dev/shm", root);
    return mount_tmpfs(to, "mode=1777", err);
}

/* ---- the VM's own ---- */

/* A fresh proc or sysfs is refused where the machine's own is partly covered (containers). */
static int mount_kernel(const char *root, const char *name, const char *type, unsigned long flags,
                        struct err *err)
{
    char to[PATH_MAX];

    (void)str_format(to, sizeof(to), "%s/%s", root, name);
    if (mkdir(to, 0555) < 0)
        return err_errno(err, -errno, "making %s", to);
    if (mount(type, to, type, MS_NOSUID | MS_NODEV | MS_NOEXEC | flags, NULL) < 0)
        return err_errno(err, -errno,
                         "mounting %s for the VM (where /%s is partly covered, as in "
                         "containers, a user namespace may not)",
                         type, name);
    return 0;
}

static int make_own(const char *root, struct err *err)
{
    static const struct {
        const char *name, *options;
    } dirs[] = {{"run", "mode=0755"},
                {"tmp", "mode=1777"},
                {"media", "mode=0755"},
                {"mnt", "mode=0755"},
                {"dev", "mode=0755"}};
    char path[PATH_MAX];
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(dirs) && r == 0; i++) {
        (void)str_format(path, sizeof(path), "%s/%s", root, dirs[i].name);
        r = mount_tmpfs(path, dirs[i].options, err);
    }
    if (r == 0)
        r = mount_kernel(root, "proc", "proc", 0, err);
    if (r == 0)
        r = mount_kernel(root, "sys", "sysfs", MS_RDONLY, err);
    return r == 0 ? make_dev(root, err) : r;
}

/* What the NoCloud drive of a real VM would hold. */
static int put_user_data(const struct guest *g, struct err *err)
{
    _cleanup_free_ char *data = NULL;
    char path[PATH_MAX];
    size_t len;
    int r = str_format(path, sizeof(path), "%s/user-data", g->dir);

    if (r == 0)
        r = fs_read(AT_FDCWD, path, USER_DATA_MAX, &data, &len, err);
    if (r < 0)
        return r;
    (void)str_format(path, sizeof(path), "%s/root/media/cidata", g->dir);
    r = fs_mkdir_p(path, 0755, err);
    if (r < 0)
        return r;
    (void)str_format(path, sizeof(path), "%s/root/media/cidata/user-data", g->dir);
    return fs_write_atomic(AT_FDCWD, path, data, len, 0600, err);
}

/* Over the machine's file, where there is one: /etc itself is read-only. */
static int put_hostname(const struct guest *g, const char *root, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX];

    if (sethostname(g->name, strlen(g->name)) < 0)
        return err_errno(err, -errno, "setting the VM's host name to %s", g->name);
    (void)str_format(from, sizeof(from), "%s/run/hostname", root);
    (void)str_format(to, sizeof(to), "%s/etc/hostname", root);
    _cleanup_free_ char *line = str_asprintf("%s\n", g->name);
    int r = fs_write_atomic(AT_FDCWD, from, line, strlen(line), 0644, err);
    if (r < 0 || access(to, F_OK) < 0)
        return r;
    return bind_mount(from, to, true, err);
}

/* Shows a directory at its own path when the VM's view has something else there. */
static int show_through(const char *root, const char *dir, struct err *err)
{
    char real[PATH_MAX], to[PATH_MAX];
    struct stat here, there;

    if (!realpath(dir, real))
        return err_errno(err, -errno, "looking for %s", dir);
    if (str_format(to, sizeof(to), "%s%s", root, real) < 0)
        return err_set(err, -ENAMETOOLONG, "%.200s", real);
    if (stat(real, &here) == 0 && stat(to, &there) == 0 && here.st_ino == there.st_ino &&
        here.st_dev == there.st_dev)
        return 0;
    int r = fs_mkdir_p(to, 0755, err);
    return r < 0 ? r : bind_mount(real, to, true, err);
}

/* The directory of the agent's program, when its command begins with a path. */
static int show_agent(const char *root, const char *command, struct err *err)
{
    char dir[PATH_MAX];

    if (command[0] != '/' ||
        str_format(dir, sizeof(dir), "%.*s", (int)strcspn(command, " \t"), command) < 0)
        return 0;
    char *slash = strrchr(dir, '/');
    *slash = '\0';
    return dir[0] ? show_through(root, dir, err) : 0;
}

static int enter(const char *root, struct err *err)
{
    if (chdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
        chdir("/") < 0)
        return err_errno(err, -errno, "changing the VM's root");
    return 0;
}

int guest_root_make(const struct guest *g, struct err *err)
{
    char root[PATH_MAX];
    int r = str_format(root, sizeof(root), "%s/root", g->dir);

    if (r == 0)
        r = mount_tmpfs(root, TMPFS_OPTIONS, err);
    if (r == 0)
        r = show_machine(root, err);
    if (r == 0)
        r = make_own(root, err);
    if (r == 0)
        r = put_user_data(g, err);
    if (r == 0)
        r = put_hostname(g, root, err);
    if (r == 0)
        r = show_through(root, g->guest_dir, err);
    if (r == 0)
        r = show_agent(root, g->agent, err);
    if (r == 0)
        r = enter(root, err);
    /* In the image a unit makes it before the forwarder starts. */
    if (r == 0)
        r = netns_create("/run/netns/podns", err);
    return r < 0 ? err_wrap(err, r, "the VM's set-up") : 0;
}
