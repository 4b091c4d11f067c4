/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim names bind sources that exist on the worker and not in the VM (it copies files and
 * directories it knows, no others). The agent fails CreateContainer then; so what is missing
 * becomes an empty directory, as the Go forwarder does. The path comes from outside: absolute,
 * without "..", no longer than the kernel takes.
 */
#include "forwarder/mounts.h"

#include <errno.h>
#include <limits.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/log.h"

static bool path_ok(const char *path, size_t len)
{
    if (len == 0 || len >= PATH_MAX || path[0] != '/' || memchr(path, '\0', len))
        return false;
    for (size_t i = 0; i + 2 < len; i++) {
        if (memcmp(path + i, "/..", 3) == 0 && (i + 3 == len || path[i + 3] == '/'))
            return false;
    }
    return true;
}

void mounts_make_source(void *arg, const struct splice_mount *m)
{
    char path[PATH_MAX];
    struct stat st;
    struct err err = ERR_INIT;
    (void)arg;
    if (m->type_len != 4 || memcmp(m->type, "bind", 4) != 0)
        return;
    if (!path_ok(m->source, m->source_len)) {
        log_warn("bind mount: its source of %zu bytes is no plain absolute path, left alone",
                 m->source_len);
        return;
    }
    memcpy(path, m->source, m->source_len);
    path[m->source_len] = '\0';
    if (stat(path, &st) == 0 || errno != ENOENT)
        return;
    if (fs_mkdir_p(path, 0755, &err) < 0)
        log_warn("missing source of a bind mount: %s", err_text(&err));
    else
        log_info("made the missing source of a bind mount: %s", path);
}
