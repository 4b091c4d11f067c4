/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each call on hypervisor.sock has a connection of its own, as a Go shim's. It is answered on that
 * connection, whatever happens to the daemon meanwhile, with one exception: a connection that was
 * accepted and not yet stored ends. Nothing has been read from it then, so the call is made again;
 * such ends are counted. A StartVM that is made again may find that the first one's end has taken
 * the sandbox back; then, and only then, it may fail. StopVM always succeeds.
 */
#include "storm/lives.h"

#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/str.h"
#include "bench/common/client.h"
#include "ctl/podnet.h"
#include "ctl/shim.h"

#define HYPERVISOR_SOCKET "/run/peerpod/hypervisor.sock"
#define TIMEOUT_MS 60000
#define CHECK_TIMEOUT_MS 30000

struct life {
    struct lives *lives;
    char id[65], netns[64];
    struct shim_vm vm;
    char *socket;
};

static bool cut_off(int r)
{
    return r == -ECONNRESET || r == -EPIPE || r == -ENOTCONN;
}

enum call { CREATE, START, STOP };

static int call_once(struct life *f, enum call call, struct err *err)
{
    switch (call) {
    case CREATE:
        return shim_create_vm(&f->vm, &f->socket, err);
    case START:
        return shim_start_vm(&f->vm, TIMEOUT_MS, err);
    case STOP:
        return shim_stop_vm(&f->vm, err);
    }
    return -EINVAL;
}

/* ret_cut: the call was made more than once. */
static int call(struct life *f, enum call call, bool *ret_cut, struct err *err)
{
    int64_t end = clock_mono_ms() + TIMEOUT_MS;
    int r;
    *ret_cut = false;
    for (;;) {
        atomic_fetch_add(&f->lives->under_way, 1);
        r = call_once(f, call, err);
        atomic_fetch_sub(&f->lives->under_way, 1);
        if (!cut_off(r) || clock_mono_ms() > end)
            break;
        *ret_cut = true;
        atomic_fetch_add(&f->lives->excepted, 1);
        err_clear(err);
    }
    atomic_fetch_add(&f->lives->calls, 1);
    return r;
}

static int check_once(struct life *f, struct err *err)
{
    struct client c;
    struct reply reply;
    int r = client_open(&c, f->socket, err);
    if (r < 0)
        return r;
    client_timeout(&c, CHECK_TIMEOUT_MS);
    int64_t sent = client_check(&c);
    r = sent < 0 ? (int)sent : client_receive(&c, &reply);
    client_close(&c);
    return r < 0 ? err_errno(err, r, "a call to the agent of %.8s", f->id) : 0;
}

static int check(struct life *f, struct err *err)
{
    for (;;) {
        int r = check_once(f, err);
        if (!cut_off(r)) {
            atomic_fetch_add(&f->lives->checked, r == 0);
            return r;
        }
        atomic_fetch_add(&f->lives->excepted, 1);
        err_clear(err);
    }
}

static int live(struct life *f, struct err *err)
{
    struct err start = ERR_INIT;
    bool cut, start_cut = false;
    int r = call(f, CREATE, &cut, err);
    if (r < 0)
        return err_wrap(err, r, "CreateVM %.8s", f->id);
    int started = call(f, START, &start_cut, &start);
    if (started == 0) {
        atomic_fetch_add(&f->lives->started, 1);
        r = check(f, err);
    } else if (!start_cut) {
        r = err_set(err, started, "StartVM %.8s: %s", f->id, err_text(&start));
    }
    if (r < 0)
        return r;
    r = call(f, STOP, &cut, err);
    return r < 0 ? err_wrap(err, r, "StopVM %.8s", f->id) : 0;
}

static int live_once(struct lives *l, struct err *err)
{
    struct life f = {.lives = l};
    unsigned number = atomic_fetch_add(&l->numbers, 1);
    (void)str_format(f.id, sizeof(f.id), "%08x%056x", number, 0);
    (void)str_format(f.netns, sizeof(f.netns), "/run/netns/life%u", number);
    f.vm = (struct shim_vm){.socket = HYPERVISOR_SOCKET,
                            .id = f.id,
                            .pod = "life",
                            .namespace = "storm",
                            .netns = f.netns};
    int r = podnet_create(f.netns, err);
    if (r == 0)
        r = live(&f, err);
    if (r == 0)
        r = podnet_delete(f.netns, err);
    free(f.socket);
    return r;
}

struct start {
    struct lives *lives;
    struct err *err;
};

static void *live_thread(void *arg)
{
    struct start start = *(struct start *)arg;
    free(arg);
    while (!atomic_load(&start.lives->stop))
        if (live_once(start.lives, start.err) < 0)
            break;
    return NULL;
}

void lives_begin(struct lives *l, unsigned n)
{
    l->n = MIN(n, (unsigned)LIVES_MAX);
    atomic_store(&l->numbers, 0xf0000000U);
    for (unsigned i = 0; i < l->n; i++) {
        struct start *start = xcalloc(1, sizeof(*start));
        *start = (struct start){l, &l->errs[i]};
        l->errs[i] = ERR_INIT;
        pthread_create(&l->threads[i], NULL, live_thread, start);
    }
}

int lives_end(struct lives *l, struct err *err)
{
    int r = 0;
    atomic_store(&l->stop, true);
    for (unsigned i = 0; i < l->n; i++)
        pthread_join(l->threads[i], NULL);
    for (unsigned i = 0; i < l->n && r == 0; i++)
        if (l->errs[i].code)
            r = err_set(err, l->errs[i].code, "%s", err_text(&l->errs[i]));
    return r;
}
