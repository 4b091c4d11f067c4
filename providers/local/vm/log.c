/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's console: one process copies what the VM's programs write to a file, and keeps the file
 * bounded by dropping its older half. It lives in the VM's pid namespace and ends with it; it holds
 * the only descriptor of the file, so nothing in the VM can reach the registry.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "providers/local/vm/vm.h"

#define LOG_MAX (1U << 20)
#define LOG_KEEP (LOG_MAX / 2)

static char kept[LOG_KEEP];

/* Keeps the newer half. The file is open for appending, so writing begins at its new end. */
static void halve(int fd, off_t size)
{
    ssize_t n = pread(fd, kept, sizeof(kept), size - (off_t)sizeof(kept));

    if (ftruncate(fd, 0) == 0 && n > 0 && write(fd, kept, (size_t)n) < 0)
        return; /* a full file system: the log begins anew */
}

_noreturn_ static void copy(int from, int to)
{
    static char buffer[65536];
    struct stat st;
    ssize_t n;

    prctl(PR_SET_NAME, "console");
    while ((n = read(from, buffer, sizeof(buffer))) != 0) {
        if (n < 0 && errno != EINTR)
            break;
        /* A full disk loses log lines, nothing else. */
        if (n > 0 && write(to, buffer, (size_t)n) > 0 && fstat(to, &st) == 0 &&
            st.st_size > (off_t)LOG_MAX)
            halve(to, st.st_size);
    }
    _exit(0);
}

int guest_log_start(int log_fd, int *ret, struct err *err)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_errno(err, -errno, "making the VM's console");
    pid_t pid = fork();
    if (pid == 0) {
        /* Nothing else stays open here: an end of a pipe would keep somebody waiting. */
        if (dup2(0, 1) < 0 || dup2(ends[0], 3) < 0 || dup2(log_fd, 4) < 0 || dup2(0, 2) < 0 ||
            close_range(5, ~0U, 0) < 0)
            _exit(1);
        copy(3, 4);
    }
    int r = pid < 0 ? err_errno(err, -errno, "forking the VM's console") : 0;
    close(ends[0]);
    if (r < 0)
        close(ends[1]);
    else
        *ret = ends[1];
    return r;
}
