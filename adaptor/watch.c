/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watching a sandbox.
 *
 * STARTING, every WATCH_START_MS: while the forwarder has not been heard of the provider is asked
 * whether the VM lives, so that nobody waits for -proxy-timeout for a VM that has ended. A start
 * that was taken over from a dead process and whose callers have not come back is taken back.
 *
 * RUNNING: the four ways in which it may end without StopVM.
 *
 * Shim gone: no connection of the shim has sent a byte, or the last such one has ended, and StopVM
 * has not come within -grace-shim-gone (a killed shim sends nothing, kata-contract.md 2.1).
 *
 * Network namespace gone: at each look of reconcile.c. It is the runtime that removes it, when the pod
 * is over; where a shim is left that has not called StopVM, nobody will. A path that this process has
 * never seen means nothing: a daemon whose container lacks the host's directory must end nobody.
 *
 * VM gone: while the tunnel is down the provider is asked, first after WATCH_FIRST_MS, then every
 * WATCH_EVERY_MS. An instance that does not exist or has ended ends its sandbox at once, so that the
 * pod fails fast instead of hanging in a call.
 *
 * Tunnel lost: a tunnel that has been down for -tunnel-hold ends its sandbox as well; the shims have
 * given up before (35 s, 120 s). Until then their connections are held and nobody notices.
 */
#include <errno.h>
#include <unistd.h>

#include "adaptor/sandbox.h"
#include "base/clock.h"
#include "base/log.h"

#define WATCH_START_MS 5000
#define WATCH_FIRST_MS 2000
#define WATCH_EVERY_MS 10000

/* -- the shim -- */

static void shim_gone(uv_timer_t *timer)
{
    sandbox_stop(timer->data, "the shim has closed its connection (or never made one) and has not "
                              "called StopVM");
}

void sandbox_watch_shim(struct sandbox *sb)
{
    if (sb->record.state != SANDBOX_RUNNING)
        return;
    if (shimconn_has_control(sb))
        sandbox_disarm(sb);
    else if (!uv_is_active((uv_handle_t *)&sb->timer))
        sandbox_arm(sb, sb->adaptor->config->grace_shim_gone_ns / 1000000, shim_gone);
}

/* -- the pod's network namespace -- */

static bool netns_is_gone(struct sandbox *sb)
{
    if (str_empty(sb->record.netns) || access(sb->record.netns, F_OK) == 0) {
        sb->netns_seen = true;
        return false;
    }
    return errno == ENOENT && sb->netns_seen;
}

void sandbox_watch_netns(struct adaptor *a)
{
    int64_t now = clock_mono_ms();
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next) {
        bool watched = sb->record.state == SANDBOX_CREATED || sb->record.state == SANDBOX_RUNNING;
        if (!watched || !netns_is_gone(sb))
            sb->netns_gone_ms = 0;
        else if (!sb->netns_gone_ms)
            sb->netns_gone_ms = now;
        else if (now - sb->netns_gone_ms >= a->config->grace_netns_gone_ns / 1000000)
            sandbox_stop(sb, "its network namespace was removed, and StopVM was not called");
    }
}

/* -- the VM -- */

struct check_job {
    struct adaptor *adaptor; /* loop only */
    char token[RECORD_TOKEN_LEN + 1];
    struct provider *provider;
    struct instance instance;
    int result;
    struct err err;
};

static void check_run(struct job *job, void *arg)
{
    struct check_job *j = arg;
    j->result =
        j->provider->type->find(j->provider, job, j->instance.sandbox, &j->instance, &j->err);
}

static void vm_ended(struct sandbox *sb, struct err *err)
{
    if (sb->record.state == SANDBOX_STARTING) {
        err_wrap(err, err->code, "StartVM failed while %s", sb->step);
        sandbox_start_fail(sb, "watch", err);
        return;
    }
    sandbox_note_error(sb, "watch", err);
    sandbox_stop(sb, "its VM has ended");
}

static void check_done(void *arg, bool ran)
{
    struct check_job *j = arg;
    struct sandbox *sb = sandbox_find_token(j->adaptor, j->token);
    sb->job = NULL;
    if (sb->record.state == SANDBOX_DELETING) {
        sandbox_delete_continue(sb);
    } else if (sb->tunnel_up || !ran || sb->adaptor->ending) {
        /* it lives, or nothing is known */
    } else if (j->result == -ENOENT || (j->result == 0 && j->instance.gone)) {
        struct err err = ERR_INIT;
        err_set(&err, -EHOSTDOWN, "pod VM %s has ended: the provider says %s",
                sb->record.instance.name, j->result ? err_text(&j->err) : "that it is not running");
        vm_ended(sb, &err);
    } else if (j->result < 0) {
        log_entry(LOG_LEVEL_WARN, sb->record.id, "watch",
                  "the tunnel is down, and the provider does not say whether the VM lives: %s",
                  err_text(&j->err));
    }
    free(j);
}

static void check_begin(struct sandbox *sb)
{
    struct err err = ERR_INIT;
    struct check_job *j = xcalloc(1, sizeof(*j));
    j->adaptor = sb->adaptor;
    j->provider = sb->adaptor->provider;
    memcpy(j->token, sb->record.token, sizeof(j->token));
    memcpy(j->instance.sandbox, sb->record.id, sizeof(j->instance.sandbox));
    if (job_start(sb->adaptor->jobs, JOB_OTHER, "check", WATCH_EVERY_MS, check_run, check_done, j,
                  &sb->job, &err) < 0) {
        log_entry(LOG_LEVEL_WARN, sb->record.id, "watch", "%s", err_text(&err));
        free(j);
    }
}

/* -- a start -- */

static void still_starting(uv_timer_t *timer)
{
    struct sandbox *sb = timer->data;
    if (!sb->starters) {
        sandbox_stop(sb, "StartVM was under way when the daemon ended, and its caller is gone");
        return;
    }
    if ((sb->tunnel || sb->plain) && !sb->tunnel_up && !sb->job)
        check_begin(sb);
    sandbox_watch_start(sb);
}

void sandbox_watch_start(struct sandbox *sb)
{
    uv_timer_start(&sb->watch, still_starting, WATCH_START_MS, 0);
}

/* -- the tunnel -- */

static void still_down(uv_timer_t *timer)
{
    struct sandbox *sb = timer->data;
    int64_t hold = sb->adaptor->config->tunnel_hold_ns / 1000000;
    int64_t left = sb->tunnel_down_ms + hold - clock_mono_ms();
    if (left <= 0) {
        struct err err = ERR_INIT, last = ERR_INIT;
        tunnel_last_error(sb->tunnel, &last);
        err_set(&err, -EHOSTUNREACH, "pod VM %s could not be reached for %lld s: %s",
                sb->record.instance.name, (long long)hold / 1000, err_text(&last));
        sandbox_note_error(sb, "watch", &err);
        sandbox_stop(sb, "the tunnel was down for too long");
        return;
    }
    if (!sb->job)
        check_begin(sb);
    uv_timer_start(timer, still_down, (uint64_t)MIN(left, (int64_t)WATCH_EVERY_MS), 0);
}

void sandbox_watch_tunnel(struct sandbox *sb)
{
    if (sb->record.state == SANDBOX_STARTING)
        return;
    if (sb->record.state != SANDBOX_RUNNING || sb->tunnel_up) {
        uv_timer_stop(&sb->watch);
    } else if (!uv_is_active((uv_handle_t *)&sb->watch)) {
        sb->tunnel_down_ms = clock_mono_ms();
        uv_timer_start(&sb->watch, still_down, WATCH_FIRST_MS, 0);
    }
}
