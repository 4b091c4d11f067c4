/* SPDX-License-Identifier: Apache-2.0 */
/*
 * StopVM and every other end of a sandbox.
 *
 * sandbox_stop is the one way into DELETING. It closes what the shim sees, writes the record, and
 * returns at once, whatever the provider does; a caller with a 1 s timeout (runtime-rs) is answered
 * in time. Behind it a job deletes the instance, again and again with growing pauses, until the
 * provider confirms that nothing is left. Only then the directory and the struct go. A failed
 * delete is never forgotten: the record says DELETING, and a new daemon goes on with it.
 *
 * An instance whose id is not known (we died, or failed, between the call and its answer) is looked
 * up by our tag first. Where it was our predecessor's call, the provider may still be at it: that there
 * is nothing is believed only after the provider's settle_ms, else a StopVM right after a death would
 * leave a VM that nobody knows.
 */
#include <errno.h>

#include "adaptor/podnet.h"
#include "adaptor/sandbox.h"
#include "base/clock.h"
#include "base/log.h"

#define DELETE_RETRY_MIN_MS 1000
#define DELETE_RETRY_MAX_MS 60000
#define FIND_EVERY_MS 1000

struct delete_job {
    struct adaptor *adaptor; /* loop only */
    char token[RECORD_TOKEN_LEN + 1];
    struct provider *provider;
    struct instance instance;
    bool unsure;       /* sandbox.create_unsure */
    uint32_t vxlan_id; /* 0: there is no network of it */
    char netns[sizeof(((struct record *)0)->netns)], pod_interface[IFNAMSIZ];
    int result;
    struct err err;
};

static int find_instance(struct job *job, struct delete_job *j)
{
    const struct provider_type *type = j->provider->type;
    int64_t settle = j->unsure && type->settle_ms ? type->settle_ms(j->provider) : 0;
    int64_t end = clock_mono_ms() + settle;
    int r;
    for (;;) {
        r = type->find(j->provider, job, j->instance.sandbox, &j->instance, &j->err);
        if (r != -ENOENT || clock_mono_ms() >= end)
            return r;
        err_clear(&j->err);
        job_say(job, "what a daemon that died may have asked the provider for");
        r = job_sleep(job, FIND_EVERY_MS);
        job_say(job, NULL);
        if (r < 0)
            return err_errno(&j->err, r, "waiting for what our predecessor may have made");
    }
}

static int delete_instance(struct job *job, struct delete_job *j)
{
    const struct provider_type *type = j->provider->type;
    if (!*j->instance.id) {
        int r = find_instance(job, j);
        if (r == -ENOENT)
            return 0; /* nothing was made */
        if (r < 0)
            return r;
    }
    return type->delete (j->provider, job, &j->instance, &j->err);
}

/* Neither waits for the other's success. */
static void delete_run(struct job *job, void *arg)
{
    struct delete_job *j = arg;
    struct err network = ERR_INIT;
    int r = 0;
    job_about(job, j->instance.sandbox);
    if (j->vxlan_id)
        r = podnet_teardown(j->netns, j->pod_interface, j->vxlan_id, &network);
    j->result = delete_instance(job, j);
    if (r < 0 && j->result == 0)
        j->result = err_set(&j->err, r, "%s", network.text);
}

static void delete_failed(struct sandbox *sb, struct err *err);

static void delete_finished(struct sandbox *sb)
{
    struct adaptor *a = sb->adaptor;
    struct err err = ERR_INIT;
    if (fs_remove_tree(a->pods_fd, sb->record.id, &err) < 0) {
        delete_failed(sb, &err);
        return;
    }
    log_entry(LOG_LEVEL_INFO, sb->record.id, "delete", "sandbox of pod %s/%s is gone%s%s",
              sb->record.namespace, sb->record.pod, *sb->record.instance.id ? ", instance " : "",
              sb->record.instance.id);
    a->deletions++;
    struct waiter *enders = TAKE_PTR(sb->enders);
    bool ending = a->ending;
    sandbox_free(sb);
    if (ending)
        err_set(&err, -ESHUTDOWN, "the daemon is ending");
    waiters_done(&enders, ending ? &err : NULL);
}

static void delete_again(uv_timer_t *timer)
{
    sandbox_delete_continue(timer->data);
}

static void delete_failed(struct sandbox *sb, struct err *err)
{
    int64_t pause = DELETE_RETRY_MIN_MS << MIN(sb->delete_tries, 6U);
    pause = MIN(pause, (int64_t)DELETE_RETRY_MAX_MS);
    sb->delete_tries++;
    err_wrap(err, err->code, "deleting %s (try %u, next in %lld s)", sb->record.instance.name,
             sb->delete_tries, (long long)(pause / 1000));
    sandbox_note_error(sb, "delete", err);
    sandbox_arm(sb, pause, delete_again);
}

static void delete_done(void *arg, bool ran)
{
    struct delete_job *j = arg;
    struct sandbox *sb = sandbox_find_token(j->adaptor, j->token);
    sb->job = NULL;
    if (*j->instance.id)
        sb->record.instance = j->instance;
    if (ran && j->result == 0) {
        delete_finished(sb);
    } else if (!sb->adaptor->ending) {
        if (!j->err.code)
            err_errno(&j->err, ran ? j->result : -EAGAIN, "the job did not run");
        delete_failed(sb, &j->err);
    } /* else: the next process goes on */
    free(j);
}

static void delete_begin(struct sandbox *sb)
{
    struct err err = ERR_INIT;
    struct delete_job *j = xcalloc(1, sizeof(*j));
    j->adaptor = sb->adaptor;
    j->provider = sb->adaptor->provider;
    memcpy(j->token, sb->record.token, sizeof(j->token));
    j->instance = sb->record.instance;
    j->unsure = sb->create_unsure;
    if (*sb->record.pod_interface && str_eq(sb->record.boot, sb->adaptor->boot))
        j->vxlan_id = sb->record.vxlan_id;
    memcpy(j->netns, sb->record.netns, sizeof(j->netns));
    memcpy(j->pod_interface, sb->record.pod_interface, sizeof(j->pod_interface));
    if (job_start(sb->adaptor->jobs, JOB_DELETE, "delete", 0, delete_run, delete_done, j, &sb->job,
                  &err) < 0) {
        free(j);
        delete_failed(sb, &err);
    }
}

void sandbox_delete_continue(struct sandbox *sb)
{
    if (sb->job || sb->adaptor->ending)
        return;
    if (sb->record.started_ms)
        delete_begin(sb);
    else
        delete_finished(sb); /* the provider has never heard of it */
}

void sandbox_delete_soon(struct sandbox *sb)
{
    sandbox_arm(sb, 0, delete_again);
}

void sandbox_stop(struct sandbox *sb, const char *why)
{
    struct err err = ERR_INIT;
    if (sb->record.state == SANDBOX_DELETING)
        return;
    log_entry(LOG_LEVEL_INFO, sb->record.id, "stop", "deleting: %s", why);
    metrics_start_over(sb, START_CANCELLED); /* of a start, if one is under way */
    sb->record.state = SANDBOX_DELETING;
    int saved = sandbox_save(sb, NULL);
    sandbox_close_streams(sb);
    /* On a full disk the streams' files may just have made room. */
    if (saved < 0 && sandbox_save(sb, &err) < 0)
        log_entry(LOG_LEVEL_ERROR, sb->record.id, "stop", "%s", err_text(&err));
    if (sb->starters) {
        struct err stopped = ERR_INIT;
        err_set(&stopped, -ECANCELED, "StartVM: sandbox %s was stopped: %s", sb->record.id, why);
        waiters_done(&sb->starters, &stopped);
    }
    sandbox_disarm(sb);
    if (sb->job)
        job_cancel(sb->job); /* its end continues the deletion */
    else
        sandbox_delete_soon(sb); /* callers may still look at sb in this turn */
}
