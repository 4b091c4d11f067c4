/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and stopping pods is done by a few threads at once, each pod by one of them; a loaded pod
 * has a thread of its own. A pod is lost when its connection ends, whatever the reason: a runtime
 * never connects again.
 */
#include "storm/pods.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/str.h"
#include "ctl/podnet.h"
#include "ctl/shim.h"

#define HYPERVISOR_SOCKET "/run/peerpod/hypervisor.sock"
#define AT_ONCE 8
#define TIMEOUT_MS 120000
#define HELD (TRAFFIC_CREATES - 1) /* a process that no load waits for */

/* -- some at once -- */

struct crew {
    struct storm_pod *pods;
    unsigned n;
    atomic_uint next;
    int (*work)(struct storm_pod *p, struct err *err);
};

static void *crew_thread(void *arg)
{
    struct crew *c = arg;
    for (unsigned i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
        c->pods[i].err = ERR_INIT;
        c->pods[i].r = c->work(&c->pods[i], &c->pods[i].err);
    }
    return NULL;
}

/* The first failure. */
static int each(struct storm_pod *pods, unsigned n,
                int (*work)(struct storm_pod *p, struct err *err), struct err *err)
{
    struct crew crew = {.pods = pods, .n = n, .work = work};
    pthread_t threads[AT_ONCE];
    for (size_t i = 0; i < AT_ONCE; i++)
        pthread_create(&threads[i], NULL, crew_thread, &crew);
    for (size_t i = 0; i < AT_ONCE; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < n; i++)
        if (pods[i].r < 0)
            return err_set(err, pods[i].r, "pod %.8s: %s", pods[i].id, err_text(&pods[i].err));
    return 0;
}

/* -- from CreateVM to StopVM -- */

/* A connection that has never sent a byte is not yet the pod's: without one in -grace-shim-gone it
 * ends. */
static int first_call(struct load *l, struct err *err)
{
    struct reply reply;
    int64_t sent = client_check(&l->client);
    int r = sent < 0 ? (int)sent : client_receive(&l->client, &reply);
    l->checks++;
    l->calls++;
    return r < 0 ? err_errno(err, r, "the first call") : 0;
}

static int start_one(struct storm_pod *p, struct err *err)
{
    const struct shim_vm vm = {.socket = HYPERVISOR_SOCKET,
                               .id = p->id,
                               .pod = p->id + sizeof(p->id) - 9,
                               .namespace = "storm",
                               .netns = p->netns};
    int r = podnet_create(p->netns, err);
    if (r == 0)
        r = shim_create_vm(&vm, &p->socket, err);
    if (r == 0)
        r = shim_start_vm(&vm, TIMEOUT_MS, err);
    if (r == 0)
        r = load_open(&p->load, p->socket, err);
    return r < 0 ? r : first_call(&p->load, err);
}

int pods_start(struct storm_pod *pods, unsigned n, unsigned first, struct err *err)
{
    for (unsigned i = 0; i < n; i++) {
        pods[i] = (struct storm_pod){.err = ERR_INIT, .load.client.fd = -1};
        for (int at = 0; at < 8; at++)
            (void)str_format(pods[i].id + 8 * at, 9, "%08x", first + i);
        (void)str_format(pods[i].netns, sizeof(pods[i].netns), "/run/netns/pod%u", first + i);
    }
    return each(pods, n, start_one, err);
}

static int stop_one(struct storm_pod *p, struct err *err)
{
    const struct shim_vm vm = {.socket = HYPERVISOR_SOCKET, .id = p->id};
    int r = shim_stop_vm(&vm, err);
    load_close(&p->load);
    free(TAKE_PTR(p->socket));
    return r;
}

static int remove_netns(struct storm_pod *p, struct err *err)
{
    return podnet_delete(p->netns, err);
}

int pods_stop(struct storm_pod *pods, unsigned n, struct err *err)
{
    int r = each(pods, n, stop_one, err);
    return r < 0 ? r : each(pods, n, remove_netns, err);
}

/* -- loaded -- */

static void *load_thread(void *arg)
{
    struct storm_pod *p = arg;
    p->r = load_run(&p->load, 0, 0, &p->err);
    if (p->r == 0)
        p->r = load_settle(&p->load, &p->agent, &p->err);
    return NULL;
}

void pods_load(struct storm_pod *pods, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        load_blocking(&pods[i].load);
        pods[i].load.go_on = true;
        pthread_create(&pods[i].thread, NULL, load_thread, &pods[i]);
    }
}

static unsigned count_lost(const struct storm_pod *pods, unsigned n, struct err *err)
{
    unsigned lost = 0;
    for (unsigned i = 0; i < n; i++) {
        if (pods[i].r < 0 && !err->code)
            err_set(err, pods[i].r, "pod %.8s: %s", pods[i].id, err_text(&pods[i].err));
        lost += pods[i].r < 0;
    }
    return lost;
}

unsigned pods_rest(struct storm_pod *pods, unsigned n, struct err *err)
{
    for (unsigned i = 0; i < n; i++)
        __atomic_store_n(&pods[i].load.go_on, false, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < n; i++)
        pthread_join(pods[i].thread, NULL);
    return count_lost(pods, n, err);
}

/* -- idle -- */

int pods_hold(struct storm_pod *pods, unsigned n, struct err *err)
{
    for (unsigned i = 0; i < n; i++)
        if (client_wait(&pods[i].load.client, HELD) < 0)
            return err_set(err, -EPIPE, "pod %.8s: the shim's connection has ended", pods[i].id);
    return 0;
}

static int check_one(struct storm_pod *p, struct err *err)
{
    struct client *c = &p->load.client;
    int64_t end = client_end(c, HELD);
    struct reply held, ended;
    int r = end < 0 ? (int)end : client_receive(c, &held);
    if (r == 0 && held.len != sizeof(uint64_t))
        r = -EPROTO;
    if (r == 0)
        r = client_receive(c, &ended);
    if (r == 0 && ended.stream != (uint32_t)end)
        r = -EPROTO;
    return r < 0 ? err_errno(err, r, "the answer to a call that was held") : 0;
}

unsigned pods_check(struct storm_pod *pods, unsigned n, struct err *err)
{
    struct err first = ERR_INIT;
    each(pods, n, check_one, &first);
    return count_lost(pods, n, err);
}
