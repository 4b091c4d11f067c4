/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper runs our launcher, which stores its pid and the time in a mapped file, wakes us by a
 * futex there, and becomes the daemon: so the instant of exec is known to the microsecond, and the
 * process to kill without a search. What the daemon was doing is in its own page (adaptor/phase.h),
 * which is read when it is dead; another pid in it means that it did not get to the lock. That calls
 * were under way on hypervisor.sock is known to who makes them.
 */
#include "storm/deaths.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "adaptor/phase.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"

#define PHASE_PATH "/run/peerpod/pods/" PHASE_FILE
#define LAUNCH_TIMEOUT_MS 20000
#define RESUME_TIMEOUT_MS 60000
#define STEP_US 200

/* PHASE_LOCK and what follows are kinds 1 and so on. */
static const char *const kind_names[DEATHS_KINDS] = {
    "exec", "lock", "records", "descriptors", "dialling", "hello", "serving", "serving_vm_calls"};

struct deaths_stamp {
    uint32_t launched; /* futex */
    int32_t pid;
    int64_t exec_us;
};

static void *map(const char *path, int flags, size_t size)
{
    _cleanup_close_ int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0 || (flags & O_CREAT && ftruncate(fd, (off_t)size) < 0))
        return NULL;
    int protection = PROT_READ | (flags & O_RDWR ? PROT_WRITE : 0);
    void *p = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

_noreturn_ void deaths_launch(char **argv)
{
    struct deaths_stamp *stamp = map(DEATHS_STAMP, O_RDWR, sizeof(*stamp));
    if (stamp) {
        stamp->pid = getpid();
        stamp->exec_us = clock_mono_us();
        __atomic_add_fetch(&stamp->launched, 1, __ATOMIC_RELEASE);
        syscall(SYS_futex, &stamp->launched, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        execv(argv[0], argv);
    }
    fprintf(stderr, "storm: launching %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

int deaths_open(struct deaths *d, const atomic_uint *vm_calls, struct err *err)
{
    *d = (struct deaths){.vm_calls = vm_calls};
    d->stamp = map(DEATHS_STAMP, O_RDWR | O_CREAT, sizeof(*d->stamp));
    return d->stamp ? 0 : err_errno(err, -errno, "mapping %s", DEATHS_STAMP);
}

static int await_launch(struct deaths *d, struct err *err)
{
    int64_t end = clock_mono_ms() + LAUNCH_TIMEOUT_MS;
    const struct timespec turn = {.tv_nsec = 100000000};
    uint32_t now;
    while ((now = __atomic_load_n(&d->stamp->launched, __ATOMIC_ACQUIRE)) == d->seen) {
        if (clock_mono_ms() > end)
            return err_set(err, -ETIMEDOUT, "the keeper does not start the daemon again");
        syscall(SYS_futex, &d->stamp->launched, FUTEX_WAIT, now, &turn, NULL, 0);
    }
    d->seen = now;
    d->pid = d->stamp->pid;
    d->exec_us = d->stamp->exec_us;
    return 0;
}

static void sleep_until_us(int64_t us)
{
    const struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static bool has_phase(struct deaths *d)
{
    if (!d->phase)
        d->phase = map(PHASE_PATH, O_RDONLY, sizeof(*d->phase));
    return d->phase && d->phase->magic == PHASE_MAGIC && d->phase->pid == d->pid;
}

static void classify(struct deaths *d, unsigned vm_calls)
{
    unsigned kind = has_phase(d) ? MIN(d->phase->phase, (uint32_t)PHASE_SERVING) + 1 : 0;
    d->early += kind <= PHASE_SERVING;
    if (kind == PHASE_SERVING + 1 && vm_calls > 0)
        kind++;
    d->kinds[kind]++;
    d->kills++;
}

int deaths_kill(struct deaths *d, int64_t delay_us, struct err *err)
{
    int r = await_launch(d, err);
    if (r < 0)
        return r;
    sleep_until_us(d->exec_us + delay_us);
    unsigned vm_calls = atomic_load(d->vm_calls);
    r = deaths_kill_now(d, err);
    if (r < 0)
        return r;
    /* It is dead, or has stored its last, when the next one is launched: look before that. */
    classify(d, vm_calls);
    return 0;
}

int deaths_kill_now(struct deaths *d, struct err *err)
{
    return kill(d->pid, SIGKILL) < 0
               ? err_errno(err, -errno, "killing process %d: it has ended by itself", d->pid)
               : 0;
}

/* Of the loop's thread, which does nearly all; 0 where the kernel does not count. */
static int64_t waited_us(pid_t pid)
{
    char path[64];
    uint64_t ran, waited = 0;
    (void)str_format(path, sizeof(path), "/proc/%d/schedstat", pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%" SCNu64 " %" SCNu64, &ran, &waited) != 2)
        waited = 0;
    if (f)
        fclose(f);
    return (int64_t)(waited / 1000);
}

int deaths_resume(struct deaths *d, struct resume *ret, struct err *err)
{
    int64_t end = clock_mono_ms() + RESUME_TIMEOUT_MS;
    int r = await_launch(d, err);
    while (r == 0 && !(has_phase(d) && d->phase->resumed_us)) {
        if (clock_mono_ms() > end)
            return err_set(err, -ETIMEDOUT, "after %d s %u of %u tunnels are up again",
                           RESUME_TIMEOUT_MS / 1000, has_phase(d) ? d->phase->resumed : 0,
                           has_phase(d) ? d->phase->tunnels : 0);
        usleep(STEP_US);
    }
    if (r < 0)
        return r;
    *ret = (struct resume){.us = d->phase->resumed_us - d->exec_us,
                           .cpu_us = d->phase->resumed_cpu_us,
                           .wait_us = waited_us(d->pid)};
    return 0;
}

struct json_object *deaths_json(const struct deaths *d)
{
    struct json_object *o = json_object_new_object();
    for (size_t i = 0; i < DEATHS_KINDS; i++)
        json_add_i64(o, kind_names[i], (int64_t)d->kinds[i]);
    return o;
}
