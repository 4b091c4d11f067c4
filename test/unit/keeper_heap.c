/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into the keeper by its tests: it ends with SIGABRT when it takes memory after its start.
 *
 * The start is over with the first poll. From then on no function of malloc's family may be called, by
 * the keeper or in the child that it forks until exec, and at each poll the address space must not be
 * larger than at the one before: that shows what comes without malloc. KEEPER_HEAP_TRIAL=malloc or
 * =mmap does what is forbidden once, so that a test sees that this is noticed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/macros.h"

/* The names under which the C library has its own. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t size);
void *memalign(size_t alignment, size_t size);
void *aligned_alloc(size_t alignment, size_t size);
int posix_memalign(void **ret, size_t alignment, size_t size);
int poll(struct pollfd *fds, nfds_t n, int timeout);
int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size);

static bool started;

static void forbidden(const char *what)
{
    if (write(STDERR_FILENO, what, strlen(what)) >= 0)
        abort();
    _exit(1);
}

static void taken(void)
{
    if (started)
        forbidden("the keeper takes memory from the heap\n");
}

void *malloc(size_t size)
{
    taken();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    taken();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    taken();
    return __libc_realloc(p, size);
}

void *memalign(size_t alignment, size_t size)
{
    taken();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

int posix_memalign(void **ret, size_t alignment, size_t size)
{
    *ret = memalign(alignment, size);
    return *ret ? 0 : ENOMEM;
}

/* In pages. */
static long address_space(void)
{
    char text[64] = "";
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);

    if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
        forbidden("no /proc/self/statm\n");
    close(fd);
    return strtol(text, NULL, 10);
}

static void try_forbidden(const char *trial)
{
    static void *volatile kept;

    if (trial && strcmp(trial, "malloc") == 0)
        kept = malloc(100);
    if (trial && strcmp(trial, "mmap") == 0)
        kept = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)kept;
}

static void check(void)
{
    static long at_start;

    if (strcmp(program_invocation_short_name, "peerpod-keeper") != 0)
        return;
    if (!started) {
        started = true;
        at_start = address_space();
        try_forbidden(getenv("KEEPER_HEAP_TRIAL"));
    }
    long now = address_space();
    if (now > at_start)
        forbidden("the keeper's address space has grown\n");
    at_start = now;
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
    check();
    return (int)syscall(SYS_poll, fds, n, timeout);
}

int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size)
{
    return size / sizeof(*fds) < n ? -1 : poll(fds, n, timeout);
}
