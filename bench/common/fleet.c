/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each member is a pod as a real shim keeps it: one connection to agent.ttrpc for the pod's life, on
 * it a WaitProcess that is answered only when the container ends. A connection costs us two threads
 * (its reader, and the one that waits), which sleep.
 *
 * The container is `cat`: it sleeps until something is written to it, and what it writes back shows
 * that the whole way through the chain is right.
 *
 * What is done to many is done by a few threads that take one member after the other; each member
 * is touched by one of them at a time.
 */
#include "bench/common/fleet.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/str.h"
#include "ctl/shim.h"

#define DIAL_MS 30000
#define AT_ONCE_MAX 256
#define RESOLV "nameserver 10.0.0.10\n"

void fleet_init(struct fleet *f)
{
    *f = (struct fleet){.members = xcalloc(FLEET_MAX, sizeof(struct member))};
}

void fleet_done(struct fleet *f)
{
    free(f->members);
    *f = (struct fleet){.n = 0};
}

/* -- many at once -- */

struct work {
    struct fleet *fleet;
    fleet_fn *fn;
    void *arg;
    unsigned next, to, step;
    int failed;
    struct err err; /* of the first that failed */
    pthread_mutex_t lock;
};

static bool take(struct work *w, unsigned *ret)
{
    pthread_mutex_lock(&w->lock);
    bool more = !w->failed && w->next < w->to;
    *ret = w->next;
    w->next += w->step;
    pthread_mutex_unlock(&w->lock);
    return more;
}

static void *work_main(void *arg)
{
    struct work *w = arg;
    unsigned i;
    while (take(w, &i)) {
        struct err err = ERR_INIT;
        int r = w->fn(w->fleet, i, w->arg, &err);
        if (r == 0)
            continue;
        pthread_mutex_lock(&w->lock);
        if (!w->failed)
            w->failed = err_set(&w->err, r, "pod %u: %s", i + 1, err_text(&err));
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

int fleet_each(struct fleet *f, unsigned from, unsigned to, unsigned step, unsigned at_once,
               fleet_fn *fn, void *arg, struct err *err)
{
    struct work w = {.fleet = f, .fn = fn, .arg = arg, .next = from, .to = to, .step = step};
    pthread_t threads[AT_ONCE_MAX];
    unsigned n = 0;
    pthread_mutex_init(&w.lock, NULL);
    while (n < MIN(at_once, (unsigned)AT_ONCE_MAX) &&
           pthread_create(&threads[n], NULL, work_main, &w) == 0)
        n++;
    if (n == 0)
        return err_set(err, -EAGAIN, "no thread");
    while (n > 0)
        pthread_join(threads[--n], NULL);
    return w.failed < 0 ? err_set(err, w.failed, "%s", w.err.text) : 0;
}

/* -- one pod's start -- */

static void *wait_main(void *arg)
{
    struct member *m = arg;
    struct err err = ERR_INIT;
    int status = -1;
    if (shim_wait(m->agent, m->container, &status, &err) < 0)
        m->lost = err;
    __atomic_store_n(&m->status, status, __ATOMIC_RELEASE);
    __atomic_store_n(&m->ended, true, __ATOMIC_RELEASE);
    return NULL;
}

static int start_waiter(struct member *m, struct err *err)
{
    pthread_attr_t small;
    m->status = -1;
    m->ended = false;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    int r = -pthread_create(&m->waiter, &small, wait_main, m);
    pthread_attr_destroy(&small);
    m->waiting = r == 0;
    return r < 0 ? err_errno(err, r, "no thread") : 0;
}

static int start_container(struct member *m, struct err *err)
{
    static char *const args[] = {(char *)(uintptr_t) "cat", NULL};
    static char *const env[] = {(char *)(uintptr_t) "PATH=/usr/bin:/bin", NULL};
    struct shim_container c = {.id = m->container,
                               .sandbox = m->pod.id,
                               .pod = "bench",
                               .namespace = "bench",
                               .image = "docker.io/library/busybox:latest",
                               .args = args,
                               .env = env};
    char path[SHIM_COPY_PATH_MAX];
    shim_copy_path(m->container, "resolv.conf", path);
    int r = shim_copy_file(m->agent, path, RESOLV, strlen(RESOLV), err);
    if (r == 0)
        r = shim_create_container(m->agent, &c, err);
    if (r == 0)
        r = shim_start_container(m->agent, m->container, err);
    return r < 0 ? r : start_waiter(m, err);
}

static int start_vm(struct member *m, struct err *err)
{
    int r = pod_create(&m->pod, err);
    int64_t began = clock_mono_us();
    if (r == 0)
        r = pod_run(&m->pod, err);
    m->start_us = clock_mono_us() - began;
    return r;
}

static int start_one(struct fleet *f, unsigned i, _unused_ void *arg, struct err *err)
{
    struct member *m = &f->members[i];
    (void)str_format(m->container, sizeof(m->container), "c%.63s", m->pod.id);
    int r = start_vm(m, err);
    if (r == 0)
        r = ttrpc_client_connect(m->pod.socket, DIAL_MS, &m->agent, err);
    if (r == 0)
        r = shim_check(m->agent, err);
    if (r == 0)
        r = shim_create_sandbox(m->agent, m->pod.id, "bench", RESOLV, err);
    return r < 0 ? r : start_container(m, err);
}

int fleet_start(struct fleet *f, unsigned n, unsigned at_once, struct err *err)
{
    int r = fleet_prepare(f, n, at_once, err);
    if (r == 0)
        r = fleet_each(f, f->n, n, 1, at_once, start_one, NULL, err);
    if (r == 0)
        f->n = n;
    return r;
}

static int prepare_one(struct fleet *f, unsigned i, _unused_ void *arg, struct err *err)
{
    return pod_prepare(&f->members[i].pod, i + 1, err);
}

int fleet_prepare(struct fleet *f, unsigned n, unsigned at_once, struct err *err)
{
    if (n > FLEET_MAX)
        return err_set(err, -E2BIG, "%u pods, at most %d are possible", n, FLEET_MAX);
    if (n <= f->prepared)
        return 0;
    int r = fleet_each(f, f->prepared, n, 1, at_once, prepare_one, NULL, err);
    if (r == 0)
        f->prepared = n;
    return r;
}

/* -- and its end -- */

static int stop_container(struct member *m, struct err *err)
{
    int r = shim_signal(m->agent, m->container, SIGKILL, err);
    if (r == 0) {
        pthread_join(m->waiter, NULL);
        m->waiting = false;
    }
    if (r == 0 && m->status != 128 + SIGKILL)
        r = err_set(err, -EPROTO, "WaitProcess: status %d %s", m->status, m->lost.text);
    if (r == 0)
        r = shim_remove_container(m->agent, m->container, err);
    return r < 0 ? r : shim_destroy_sandbox(m->agent, err);
}

static int stop_one(struct fleet *f, unsigned i, _unused_ void *arg, struct err *err)
{
    struct member *m = &f->members[i];
    int r = stop_container(m, err);
    if (r == 0)
        r = pod_stop(&m->pod, err);
    ttrpc_client_free(TAKE_PTR(m->agent));
    return r;
}

int fleet_stop(struct fleet *f, unsigned at_once, struct err *err)
{
    int r = fleet_each(f, 0, f->n, 1, at_once, stop_one, NULL, err);
    if (r == 0)
        f->n = f->prepared = 0;
    return r;
}

/* -- what runs -- */

int member_check(struct member *m, struct err *err)
{
    return shim_check(m->agent, err);
}

int member_waits(struct member *m, struct err *err)
{
    if (!__atomic_load_n(&m->ended, __ATOMIC_ACQUIRE))
        return 0;
    return err_set(err, -ECONNABORTED, "WaitProcess has returned: status %d, %s", m->status,
                   err_text(&m->lost));
}

int member_echo(struct member *m, const uint8_t *data, size_t len, struct err *err)
{
    int r = shim_write(m->agent, m->container, data, len, err);
    for (size_t done = 0; r == 0 && done < len;) {
        _cleanup_free_ uint8_t *got = NULL;
        size_t n = 0;
        r = shim_read(m->agent, m->container, "ReadStdout", &got, &n, err);
        if (r == 0 && (n == 0 || n > len - done || memcmp(got, data + done, n) != 0))
            r = err_set(err, -EPROTO, "the container's %zu bytes from %zu are wrong", n, done);
        done += n;
    }
    return r;
}
