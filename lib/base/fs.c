/* SPDX-License-Identifier: Apache-2.0 */
/* Files: bounded reads, atomic writes, private directories, removal that never leaves the tree. */
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/str.h"

#define FS_DEPTH_MAX 16 /* of a tree that fs_remove_tree takes down */

int fs_read(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *err)
{
    _cleanup_close_ int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, -errno, "opening %s", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_errno(err, -errno, "looking at %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s is not a regular file", path);
    struct buf b = BUF_INIT(max + 1);
    for (;;) {
        int r = buf_reserve(&b, MIN((size_t)65536, max + 1 - b.len));
        ssize_t n = r < 0 ? 0 : read(fd, b.data + b.len, MIN((size_t)65536, max + 1 - b.len));
        if (n < 0 && errno == EINTR)
            continue;
        if (r < 0 || n < 0) {
            r = r < 0 ? r : -errno;
            buf_done_secret(&b);
            return err_errno(err, r, "reading %s", path);
        }
        buf_grown(&b, (size_t)n);
        if (b.len > max) {
            buf_done_secret(&b);
            return err_set(err, -EFBIG, "%s is larger than %zu bytes", path, max);
        }
        if (n == 0)
            break;
    }
    if (ret_len)
        *ret_len = b.len;
    *ret = buf_steal(&b);
    return 0;
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

int fs_write_atomic(int dirfd, const char *path, const void *data, size_t len, mode_t mode,
                    struct err *err)
{
    char temp[4096];
    /* A fixed name: what a killed writer left behind is overwritten, never gathered. Writers of one
     * file are serialised by their owner. */
    if (str_format(temp, sizeof(temp), "%s" FS_TEMP_SUFFIX, path) < 0)
        return err_set(err, -ENAMETOOLONG, "path %.64s... is too long", path);
    if (unlinkat(dirfd, temp, 0) < 0 && errno != ENOENT)
        return err_errno(err, -errno, "removing the old %s", temp);
    _cleanup_close_ int fd =
        openat(dirfd, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return err_errno(err, -errno, "creating %s", temp);
    int r = fchmod(fd, mode) < 0 ? -errno : write_all(fd, data, len);
    if (r == 0 && renameat(dirfd, temp, dirfd, path) < 0)
        r = -errno;
    if (r < 0) {
        unlinkat(dirfd, temp, 0);
        return err_errno(err, r, "writing %s", path);
    }
    return 0;
}

int fs_mkdir_p(const char *path, mode_t mode, struct err *err)
{
    char part[4096];
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof(part))
        return err_set(err, -EINVAL, "directory name of %zu bytes", len);
    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return err_errno(err, -errno, "creating directory %s", part);
    }
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "%s is not a directory", path);
    return 0;
}

int fs_private_dir(const char *path, struct err *err)
{
    int r = fs_mkdir_p(path, 0700, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_errno(err, -errno, "opening directory %s", path);
    if (st.st_uid != geteuid())
        return err_set(err, -EPERM, "directory %s belongs to uid %u, not to us (uid %u)", path,
                       st.st_uid, geteuid());
    if ((st.st_mode & 07777) != 0700 && fchmod(fd, 0700) < 0)
        return err_errno(err, -errno, "making %s private (0700)", path);
    return 0;
}

static int remove_entries(int fd, dev_t device, unsigned depth)
{
    DIR *dir = fdopendir(fd);
    struct dirent *e;
    int r = 0;
    if (!dir) {
        r = -errno;
        close(fd);
        return r;
    }
    while (r == 0 && (e = readdir(dir))) {
        if (str_eq(e->d_name, ".") || str_eq(e->d_name, ".."))
            continue;
        if (unlinkat(fd, e->d_name, 0) == 0 || errno == ENOENT)
            continue;
        if (errno != EISDIR && errno != EPERM) {
            r = -errno;
            break;
        }
        struct stat st;
        int sub = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub < 0 || fstat(sub, &st) < 0)
            r = -errno;
        else if (st.st_dev != device)
            r = -EXDEV;
        else if (depth == 0)
            r = -ELOOP;
        if (r < 0) {
            if (sub >= 0)
                close(sub);
            break;
        }
        r = remove_entries(sub, device, depth - 1);
        if (r == 0 && unlinkat(fd, e->d_name, AT_REMOVEDIR) < 0 && errno != ENOENT)
            r = -errno;
    }
    closedir(dir);
    return r;
}

int fs_remove_tree(int dirfd, const char *path, struct err *err)
{
    if (unlinkat(dirfd, path, 0) == 0 || errno == ENOENT)
        return 0;
    int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return errno == ENOENT ? 0 : err_errno(err, -errno, "removing %s", path);
    if (fstat(fd, &st) < 0) {
        int r = -errno;
        close(fd);
        return err_errno(err, r, "removing %s", path);
    }
    int r = remove_entries(fd, st.st_dev, FS_DEPTH_MAX);
    if (r == 0 && unlinkat(dirfd, path, AT_REMOVEDIR) < 0 && errno != ENOENT)
        r = -errno;
    return r < 0 ? err_errno(err, r, "removing %s", path) : 0;
}

int fs_boot_id(char ret[FS_BOOT_ID_LEN + 1], struct err *err)
{
    const char *override = getenv("PEERPOD_BOOT_ID");
    _cleanup_free_ char *text = NULL;
    if (override) {
        if (strlen(override) != FS_BOOT_ID_LEN)
            return err_set(err, -EINVAL, "PEERPOD_BOOT_ID is not a boot id (%d characters)",
                           FS_BOOT_ID_LEN);
        memcpy(ret, override, FS_BOOT_ID_LEN + 1);
        return 0;
    }
    int r = fs_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &text, NULL, err);
    if (r < 0)
        return r;
    if (strlen(text) < FS_BOOT_ID_LEN)
        return err_set(err, -EBADMSG, "/proc/sys/kernel/random/boot_id is too short");
    memcpy(ret, text, FS_BOOT_ID_LEN);
    ret[FS_BOOT_ID_LEN] = '\0';
    return 0;
}
