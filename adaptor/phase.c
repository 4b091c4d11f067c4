/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process's phase as plain stores to a mapped file: no system call, and what was stored before
 * a SIGKILL is in the file after it.
 *
 * The page is the lock holder's: who reads another pid in it than that of the process he looks for
 * knows that this one had not got the lock. Blocks are allocated before they are mapped, because a full tmpfs would answer a store
 * with SIGBUS; without room, and without a file for any other reason, the page is memory of our own.
 */
#include "adaptor/phase.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "base/macros.h"

static void *map(int dirfd)
{
    _cleanup_close_ int fd =
        openat(dirfd, PHASE_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, sizeof(struct phase_page)) != 0)
        return MAP_FAILED;
    return mmap(NULL, sizeof(struct phase_page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

struct phase_page *phase_new(int dirfd)
{
    struct phase_page *page = map(dirfd);
    if (page == MAP_FAILED)
        page =
            mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        abort();
    *page = (struct phase_page){.magic = PHASE_MAGIC, .phase = PHASE_LOCK, .pid = getpid()};
    return page;
}

void phase_free(struct phase_page *page)
{
    if (page)
        munmap(page, sizeof(*page));
}

void phase_set(struct phase_page *page, enum phase phase)
{
    __atomic_store_n(&page->phase, phase, __ATOMIC_RELAXED);
}

void phase_await(struct phase_page *page)
{
    page->tunnels++;
}

static int64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static bool all_there(struct phase_page *page)
{
    if (page->phase != PHASE_HELLO || page->resumed < page->tunnels)
        return false;
    page->resumed_cpu_us = cpu_us();
    page->resumed_us = clock_mono_us();
    phase_set(page, PHASE_SERVING);
    return true;
}

bool phase_resumed(struct phase_page *page)
{
    page->resumed++;
    return all_there(page);
}

bool phase_serve(struct phase_page *page)
{
    phase_set(page, PHASE_HELLO);
    return all_there(page);
}
