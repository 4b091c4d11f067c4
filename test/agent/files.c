/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file arrives in pieces: each is written at its offset into PATH.tmp, and the piece that makes
 * it file_size long renames it over PATH. Directories and links come whole. Parents are made as
 * needed. No component is "." or "..", and no symbolic link is followed on the way (openat2).
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/fs.h"
#include "base/str.h"

static bool is_clean(const char *path)
{
    for (const char *p = path; *p;) {
        size_t n = strcspn(p, "/");

        if (n == 0 || n > NAME_MAX || (n == 1 && p[0] == '.') || (n == 2 && !strncmp(p, "..", 2)))
            return false;
        p += n + (p[n] == '/');
    }
    return *path != '\0' && path[strlen(path) - 1] != '/';
}

/* The directory that holds `below`, made as needed; *ret_name is its last component. */
static int parent_open(const char *base, const char *below, mode_t mode, const char **ret_name,
                       struct err *err)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
    char name[NAME_MAX + 1];

    int r = fs_mkdir_p(base, 0755, err);
    if (r < 0)
        return r;
    int at = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (at < 0)
        return err_errno(err, -errno, "opening %s", base);
    for (const char *slash; (slash = strchr(below, '/')); below = slash + 1) {
        if (str_format(name, sizeof name, "%.*s", (int)(slash - below), below) < 0)
            name[0] = '\0';
        if (mkdirat(at, name, mode & 0777) < 0 && errno != EEXIST)
            r = -errno;
        int next = r < 0 ? -1 : (int)syscall(SYS_openat2, at, name, &how, sizeof how);
        if (next < 0) {
            r = r < 0 ? r : -errno;
            close(at);
            return err_errno(err, r, "making %s", name);
        }
        close(at);
        at = next;
    }
    *ret_name = below;
    return at;
}

static int own(int at, const char *name, const Grpc__CopyFileRequest *q, struct err *err)
{
    if (fchownat(at, name, (uid_t)q->uid, (gid_t)q->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return err_errno(err, -errno, "owner of %s", name);
    if (!S_ISLNK(q->file_mode) && fchmodat(at, name, q->file_mode & 07777, 0) < 0)
        return err_errno(err, -errno, "mode of %s", name);
    return 0;
}

static int copy_link(int at, const char *name, const Grpc__CopyFileRequest *q, struct err *err)
{
    _cleanup_free_ char *target =
        str_asprintf("%.*s", (int)MIN(q->data.len, PATH_MAX), (const char *)q->data.data);

    unlinkat(at, name, 0);
    if (symlinkat(target, at, name) < 0)
        return err_errno(err, -errno, "linking %s", name);
    return own(at, name, q, err);
}

static int copy_directory(int at, const char *name, const Grpc__CopyFileRequest *q, struct err *err)
{
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
        return err_errno(err, -errno, "making %s", name);
    return own(at, name, q, err);
}

static int copy_piece(int at, const char *name, const Grpc__CopyFileRequest *q, struct err *err)
{
    _cleanup_free_ char *temp = str_asprintf("%s.tmp", name);
    _cleanup_close_ int fd = openat(at, temp, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat st;

    if (fd < 0)
        return err_errno(err, -errno, "opening %s", temp);
    for (size_t done = 0; done < q->data.len;) {
        ssize_t n =
            pwrite(fd, q->data.data + done, q->data.len - done, (off_t)(q->offset + (int64_t)done));
        if (n < 0 && errno != EINTR)
            return err_errno(err, -errno, "writing %s", temp);
        done += n > 0 ? (size_t)n : 0;
    }
    if (fstat(fd, &st) < 0 || st.st_size != q->file_size)
        return 0; /* more is to come */
    int r = own(at, temp, q, err);
    if (r == 0 && renameat(at, temp, at, name) < 0)
        return err_errno(err, -errno, "renaming %s", temp);
    return r;
}

int files_copy(const char *base, const Grpc__CopyFileRequest *q, struct err *err)
{
    size_t n = strlen(base);
    const char *name;

    if (!str_starts(q->path, base) || q->path[n] != '/' || !is_clean(q->path + n + 1))
        return err_set(err, -EPERM, "Path \"%s\" does not start with %s", q->path, base);
    if (q->offset < 0 || q->file_size < 0 || q->offset > q->file_size)
        return err_set(err, -EINVAL, "offset %lld of %lld", (long long)q->offset,
                       (long long)q->file_size);
    _cleanup_close_ int at = parent_open(base, q->path + n + 1, q->dir_mode, &name, err);
    if (at < 0)
        return at;
    if (S_ISLNK(q->file_mode))
        return copy_link(at, name, q, err);
    if (S_ISDIR(q->file_mode))
        return copy_directory(at, name, q, err);
    return copy_piece(at, name, q, err);
}
