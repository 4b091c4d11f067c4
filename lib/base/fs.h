/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files: bounded reads, atomic writes, directories. dirfd may be AT_FDCWD.
 */
#pragma once

#include <sys/types.h>

#include "base/buf.h"
#include "base/err.h"

/* Reads the whole file; -EFBIG beyond max. ret is NUL-terminated and owned by the caller. */
int fs_read(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *err);
/* Writes beside the name and renames over it: a reader sees the old or the new, never half. No
 * fsync: all our state dies with the boot. */
#define FS_TEMP_SUFFIX ".new" /* of what a killed writer may leave beside the name */
int fs_write_atomic(int dirfd, const char *path, const void *data, size_t len, mode_t mode,
                    struct err *err);
/* mkdir -p for the last `path`; existing directories are fine, their mode is left. */
int fs_mkdir_p(const char *path, mode_t mode, struct err *err);
/* As fs_mkdir_p for one private directory: exists as 0700 and ours, or an error that says whose. */
int fs_private_dir(const char *path, struct err *err);
/* Removes a tree, never following symbolic links nor crossing mounts; a missing one is fine. */
int fs_remove_tree(int dirfd, const char *path, struct err *err);
/* The kernel's boot id (36 characters), or what PEERPOD_BOOT_ID says (tests). */
#define FS_BOOT_ID_LEN 36
int fs_boot_id(char ret[FS_BOOT_ID_LEN + 1], struct err *err);
