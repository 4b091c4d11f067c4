/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: what all its parts share. One loop thread owns everything here; jobs get copies.
 */
#pragma once

#include <uv.h>

#include "adaptor/config.h"
#include "adaptor/phase.h"
#include "adaptor/takeover.h"
#include "adaptor/tenure.h"
#include "base/fs.h"
#include "loop/job.h"
#include "providers/provider.h"
#include "wire/tls.h"

struct sandbox;
struct adaptor;
struct rpc_server;
struct info_waiter;
struct reconcile;
struct metrics;
struct probe;

struct adaptor {
    uv_loop_t *loop;
    const struct adaptor_config *config;
    struct provider *provider; /* with a meter */
    struct metrics *metrics;
    struct job_pool *jobs;
    struct tls_ctx *tls;
    int pods_fd; /* the state directory */
    struct tenure tenure;
    struct takeover *takeover;
    struct phase_page *phase;
    char pods_dir[96]; /* absolute */
    char boot[FS_BOOT_ID_LEN + 1];
    uint16_t forwarder_port;
    int64_t started_ms;
    bool ending;               /* nothing new is begun; the next process goes on */
    struct sandbox *sandboxes; /* list, newest first */
    unsigned n_sandboxes;
    unsigned deletions;  /* finished since start */
    uint32_t next_vxlan; /* goes round */
    struct info_waiter *info_waiters;
    struct rpc_server *hypervisor, *control;
    struct reconcile *reconcile;
    struct probe *probe;
    uv_timer_t trim;
};

/*
 * Takes the lock, or takes over from who has it, opens the state, recovers, listens. provider is
 * borrowed. On failure nothing is left but what was there before; -EALREADY: takeover.h. Frees:
 * adaptor_free, which leaves every sandbox as it is.
 */
int adaptor_new(uv_loop_t *loop, const struct adaptor_config *config, struct provider *provider,
                struct adaptor **ret, struct err *err);
void adaptor_free(struct adaptor *a);
/* true: there are jobs, for whose end adaptor_free would wait; they were let go of, and the caller
 * is to _exit at once. */
bool adaptor_abandon(struct adaptor *a);
/* Much memory has become free, or is about to: the kernel gets it back in some seconds. */
void adaptor_trim_soon(struct adaptor *a);
