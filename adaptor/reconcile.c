/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reconciling, at start and every few minutes: a job lists what carries our creator, node (and
 * cluster) tags; the loop compares with its sandboxes.
 *
 *   known, and there             nothing to do
 *   RUNNING, and missing         asked for again by its own tag, in the same job; still missing:
 *                                the pod fails (its VM has ended)
 *   unknown, of an earlier boot  deleted after -orphan-boot-grace: a reboot ends every sandbox
 *   unknown, of this boot        reported; deleted after -orphan-grace (long) or by the operator
 *
 * The last line is the careful one: an empty or wrong state directory beside running pods looks
 * just like it. And without a cluster uid nothing unknown is ever deleted: two clusters may share
 * an account, and node names repeat.
 *
 * The same look sees to sandboxes whose network namespace is gone (watch.c), which needs no list.
 *
 * A list that fails changes nothing, is told to who asks, and is asked for again in seconds, then
 * ever later. Grace begins when this process first
 * sees the orphan, and is measured by a clock that nobody sets: a node that boots with a wrong time
 * must not find that all graces are over.
 * Deletions go through the pool's own allowance and are tried again at the next look.
 */
#include "adaptor/reconcile.h"

#include <errno.h>

#include "adaptor/sandbox.h"
#include "base/clock.h"
#include "base/log.h"

#define LIST_DEADLINE_MS 120000
#define AGAIN_MIN_MS 2000U

struct reconcile {
    struct adaptor *adaptor;
    uv_timer_t timer;
    struct job *job;   /* the list in flight */
    uint64_t again_ms; /* the last pause behind a look that failed; 0: it has not */
    struct orphan *orphans;
    unsigned n_orphans;
    int64_t looked_ms;  /* real time of the last list; 0: none yet */
    struct err trouble; /* why a later one has failed */
    unsigned jobs;      /* of ours in flight, whatever they do */
    bool freed;         /* the last job's end frees */
};

/* -- the list -- */

struct list_job {
    struct reconcile *r;
    struct provider *provider;
    struct tag tags[4];
    char *values[4];
    char (*running)[SANDBOX_ID_MAX + 1]; /* sandboxes that must have an instance */
    size_t n_running;
    struct instance *found;
    size_t n_found;
    bool *missing;      /* of running */
    unsigned deletions; /* when the list was asked for */
    int result;
    struct err err;
};

static void list_job_free(struct list_job *j)
{
    for (size_t i = 0; i < ARRAY_SIZE(j->values); i++)
        free(j->values[i]);
    free(j->running);
    free(j->missing);
    free(j->found);
    free(j);
}

static bool listed(const struct list_job *j, const char *sandbox)
{
    for (size_t i = 0; i < j->n_found; i++)
        if (str_eq(j->found[i].sandbox, sandbox) && !j->found[i].gone)
            return true;
    return false;
}

/* A list may lag behind; the question for one instance does not, or says that it does. */
static bool really_gone(struct list_job *j, struct job *job, const char *sandbox)
{
    struct err err = ERR_INIT;
    struct instance instance = {0};
    int r = j->provider->type->find(j->provider, job, sandbox, &instance, &err);
    return r == -ENOENT || (r == 0 && instance.gone);
}

static void list_run(struct job *job, void *arg)
{
    struct list_job *j = arg;
    j->result = j->provider->type->list(j->provider, job, j->tags, &j->found, &j->n_found, &j->err);
    for (size_t i = 0; j->result == 0 && i < j->n_running; i++)
        j->missing[i] = !listed(j, j->running[i]) && really_gone(j, job, j->running[i]);
}

static void add_tag(struct list_job *j, size_t *n, const char *key, const char *value)
{
    if (str_empty(value))
        return;
    j->values[*n] = xstrdup(value);
    j->tags[*n] = (struct tag){key, j->values[*n]};
    ++*n;
}

static struct list_job *list_job_new(struct reconcile *r)
{
    struct list_job *j = xcalloc(1, sizeof(*j));
    struct adaptor *a = r->adaptor;
    size_t n = 0;
    j->r = r;
    j->provider = a->provider;
    j->deletions = a->deletions;
    j->running = xcalloc(a->n_sandboxes + 1, sizeof(*j->running));
    j->missing = xcalloc(a->n_sandboxes + 1, sizeof(*j->missing));
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        if (sb->record.state == SANDBOX_RUNNING)
            memcpy(j->running[j->n_running++], sb->record.id, sizeof(sb->record.id));
    add_tag(j, &n, TAG_CREATOR, "cloud-api-adaptor");
    add_tag(j, &n, TAG_NODE, a->config->node_name);
    add_tag(j, &n, TAG_CLUSTER, a->config->cluster_uid);
    return j;
}

/* -- orphans -- */

static struct orphan *find_orphan(struct reconcile *r, const char *id)
{
    for (struct orphan *o = r->orphans; o; o = o->next)
        if (str_eq(o->instance.id, id))
            return o;
    return NULL;
}

struct delete_job {
    struct reconcile *r;
    struct provider *provider;
    struct instance instance;
    int result;
    struct err err;
};

static void delete_run(struct job *job, void *arg)
{
    struct delete_job *j = arg;
    j->result = j->provider->type->delete (j->provider, job, &j->instance, &j->err);
}

static void forget(struct reconcile *r, struct orphan *gone)
{
    struct orphan **at = &r->orphans;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    r->n_orphans--;
    free(gone);
}

static void job_ended(struct reconcile *r)
{
    if (--r->jobs == 0 && r->freed)
        free(r);
}

static void delete_done(void *arg, bool ran)
{
    struct delete_job *j = arg;
    struct orphan *o = j->r->freed ? NULL : find_orphan(j->r, j->instance.id);
    if (o && ran && j->result == 0) {
        log_info("orphan %s (%s) is deleted", o->instance.name, o->instance.id);
        forget(j->r, o);
    } else if (o) {
        o->deleting = false;
        snprintf(o->verdict, sizeof(o->verdict),
                 "deleting it failed, tried again at the next look: %s", err_text(&j->err));
        log_error("deleting orphan %s (%s): %s; tried again at the next look", o->instance.name,
                  o->instance.id, err_text(&j->err));
    }
    job_ended(j->r);
    free(j);
}

static bool delete_begin(struct reconcile *r, struct orphan *o)
{
    struct err err = ERR_INIT;
    struct job *job;
    if (o->deleting || sandbox_find(r->adaptor, o->instance.sandbox))
        return false; /* somebody owns it now */
    struct delete_job *j = xcalloc(1, sizeof(*j));
    *j = (struct delete_job){.r = r, .provider = r->adaptor->provider, .instance = o->instance};
    if (job_start(r->adaptor->jobs, JOB_DELETE, "orphan", 0, delete_run, delete_done, j, &job,
                  &err) < 0) {
        log_error("deleting orphan %s: %s", o->instance.name, err_text(&err));
        free(j);
        return false;
    }
    r->jobs++;
    o->deleting = true;
    return true;
}

unsigned reconcile_delete(struct reconcile *r, const char *id)
{
    unsigned n = 0;
    for (struct orphan *o = r->orphans; o; o = o->next)
        if (str_empty(id) || str_eq(o->instance.id, id)) {
            o->condemned = true;
            n += delete_begin(r, o);
        }
    return n;
}

const struct orphan *reconcile_orphans(const struct reconcile *r)
{
    return r->orphans;
}

int64_t reconcile_looked(const struct reconcile *r, const char **ret_trouble)
{
    *ret_trouble = r->trouble.code ? r->trouble.text : "";
    return r->looked_ms;
}

/* What is to be done about it; true: delete it now. */
static bool judge(struct reconcile *r, struct orphan *o)
{
    const struct adaptor_config *config = r->adaptor->config;
    int64_t grace = o->earlier_boot ? config->orphan_boot_grace_ns : config->orphan_grace_ns;
    int64_t left = grace / 1000000 - (clock_mono_ms() - o->since_ms);
    const char *what = o->earlier_boot ? "made before the node was booted"
                                       : "of this boot, and no sandbox here knows it";
    if (str_empty(config->cluster_uid)) {
        snprintf(o->verdict, sizeof(o->verdict),
                 "%s; left alone: without -cluster-uid nothing unknown is deleted", what);
        return false;
    }
    if (left > 0)
        snprintf(o->verdict, sizeof(o->verdict), "%s; to be deleted in %lld s", what,
                 (long long)left / 1000);
    else
        snprintf(o->verdict, sizeof(o->verdict), "%s; being deleted", what);
    return left <= 0;
}

static void note_orphan(struct reconcile *r, const struct instance *instance)
{
    struct orphan *o = find_orphan(r, instance->id);
    bool fresh = !o;
    if (!o) {
        if (r->n_orphans == ORPHANS_MAX)
            return;
        o = xcalloc(1, sizeof(*o));
        o->first_seen_ms = clock_real_ms();
        o->since_ms = clock_mono_ms();
        o->next = r->orphans;
        r->orphans = o;
        r->n_orphans++;
    }
    o->instance = *instance;
    o->earlier_boot = *instance->boot && !str_eq(instance->boot, r->adaptor->boot);
    o->seen = true;
    bool now = judge(r, o);
    if (fresh)
        log_warn("instance %s (%s) carries this node's tags: %s; peerpodctl orphans shows it",
                 o->instance.name, o->instance.id, o->verdict);
    if (now || o->condemned)
        delete_begin(r, o);
}

static void sweep(struct reconcile *r)
{
    for (struct orphan *o = r->orphans, *next; o; o = next) {
        next = o->next;
        if (!o->seen && !o->deleting)
            forget(r, o);
    }
}

/* -- the look -- */

static void fail_missing(struct reconcile *r, const struct list_job *j)
{
    for (size_t i = 0; i < j->n_running; i++) {
        struct sandbox *sb = j->missing[i] ? sandbox_find(r->adaptor, j->running[i]) : NULL;
        struct err err = ERR_INIT;
        if (!sb || sb->record.state != SANDBOX_RUNNING)
            continue;
        err_set(&err, -EHOSTDOWN, "pod VM %s has ended: the provider does not have it any more",
                sb->record.instance.name);
        sandbox_note_error(sb, "reconcile", &err);
        sandbox_stop(sb, "its VM has ended");
    }
}

static void apply(struct reconcile *r, const struct list_job *j)
{
    for (struct orphan *o = r->orphans; o; o = o->next)
        o->seen = false;
    /* A list that is older than a deletion may still show what has gone: no news from it. */
    bool stale = j->deletions != r->adaptor->deletions;
    for (size_t i = 0; i < j->n_found; i++)
        if (*j->found[i].id && !sandbox_find(r->adaptor, j->found[i].sandbox) &&
            (!stale || find_orphan(r, j->found[i].id)))
            note_orphan(r, &j->found[i]);
    sweep(r);
    fail_missing(r, j);
}

static void look(uv_timer_t *timer);

/* Behind one that failed sooner, but ever later: nobody waits for minutes to see what is lost. */
static void look_later(struct reconcile *r, bool good)
{
    uint64_t interval = (uint64_t)(r->adaptor->config->reconcile_interval_ns / 1000000);
    r->again_ms = good ? 0 : MIN(MAX(2 * r->again_ms, AGAIN_MIN_MS), interval);
    uv_timer_start(&r->timer, look, good ? interval : r->again_ms, 0);
}

static void list_done(void *arg, bool ran)
{
    struct list_job *j = arg;
    struct reconcile *r = j->r;
    if (!r->freed) {
        r->job = NULL;
        bool good = ran && j->result == 0;
        if (good) {
            apply(r, j);
            r->looked_ms = clock_real_ms();
            r->trouble = ERR_INIT;
        } else if (ran) {
            r->trouble = j->err;
            log_warn("reconciling with the provider: %s; trying again later", err_text(&j->err));
        }
        look_later(r, good);
    }
    job_ended(r);
    list_job_free(j);
}

static void look(uv_timer_t *timer)
{
    struct reconcile *r = timer->data;
    struct err err = ERR_INIT;
    sandbox_watch_netns(r->adaptor);
    struct list_job *j = list_job_new(r);
    if (job_start(r->adaptor->jobs, JOB_OTHER, "reconcile", LIST_DEADLINE_MS, list_run, list_done,
                  j, &r->job, &err) < 0) {
        log_warn("reconciling with the provider: %s; trying again later", err_text(&err));
        list_job_free(j);
        look_later(r, false);
        return;
    }
    r->jobs++;
}

struct reconcile *reconcile_begin(struct adaptor *a)
{
    struct reconcile *r = xcalloc(1, sizeof(*r));
    r->adaptor = a;
    r->jobs = 1; /* the timer's handle */
    r->timer.data = r;
    uv_timer_init(a->loop, &r->timer);
    uv_timer_start(&r->timer, look, 0, 0);
    if (str_empty(a->config->cluster_uid))
        log_info("no -cluster-uid: instances that nobody knows are reported, never deleted");
    return r;
}

static void timer_closed(uv_handle_t *handle)
{
    job_ended(handle->data);
}

void reconcile_free(struct reconcile *r)
{
    if (!r)
        return;
    while (r->orphans)
        forget(r, r->orphans);
    r->freed = true;
    uv_close((uv_handle_t *)&r->timer, timer_closed);
}
