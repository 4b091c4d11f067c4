/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Three steps, and nothing is written before the last:
 *
 *     fetch    attempts until one gives a document that reads as cloud-config, or the time is over.
 *              A document that does not read is tried again like one that is not there: metadata
 *              services hand out old or partial ones for a while.
 *     plan     what to write: the document's files that are on the allow-list, then the initdata's
 *              digest and entries. An entry of initdata replaces a file of the document with the
 *              same name, because it is measured and the document is not.
 *     write    each file whole, by rename. Path units start services when a file appears, so the
 *              order matters: apf.json, which starts the forwarder, comes last, when everything
 *              that the agent behind it reads is there.
 *
 * A wrong initdata is final, not tried again: its digest is part of what the VM was launched with.
 * An absent one counts as initdata_empty, whose empty aa.toml gives way to one of the document.
 *
 * Without any source there are two cases. Where apf.json is there already, cloud-init has written
 * the files, and only initdata is left to do. Else the config drive may still be on its way: it is
 * looked for until the time is over, often, since looking costs nothing.
 */
#include "forwarder/provision.h"

#include <errno.h>
#include <fcntl.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "guest/cloudconfig.h"
#include "guest/initdata.h"

#define DIR_PATH "/run/peerpod"
#define LOOK_MS 200 /* between looks for a source */

/* What may be written. From the document, from initdata's [data], or both. */
struct allowed {
    const char *name; /* below DIR_PATH */
    mode_t mode;
    bool document, initdata;
};

/* In the order of writing. */
static const struct allowed allowed[] = {
    {"initdata", 0644, true, false},
    {"initdata.digest", 0644, false, false},
    {"policy.rego", 0644, false, true},
    {"aa.toml", 0644, true, true},
    {"cdh.toml", 0644, true, true},
    {"auth.json", 0600, true, false},
    {"scratch-space.marker", 0644, true, false},
    {"apf.json", 0600, true, false},
};

/* What will be written: for each row of `allowed`, the content (borrowed) or NULL. */
struct plan {
    const char *content[ARRAY_SIZE(allowed)];
    size_t len[ARRAY_SIZE(allowed)];
};

static ssize_t find_allowed(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
        if (str_eq(allowed[i].name, name))
            return (ssize_t)i;
    return -1;
}

static void plan_set(struct plan *plan, const char *name, const char *content, size_t len)
{
    size_t i = (size_t)find_allowed(name);

    plan->content[i] = content ? content : "";
    plan->len[i] = content ? len : 0;
}

static const char *plan_get(const struct plan *plan, const char *name, size_t *ret_len)
{
    size_t i = (size_t)find_allowed(name);

    *ret_len = plan->len[i];
    return plan->content[i];
}

/* ---- fetch ---- */

static int fetch_once(const struct provision_config *config, const char *source, struct job *job,
                      struct cloudconfig *ret, struct err *err)
{
    char *text = NULL;
    size_t len = 0;
    int r = metadata_fetch(&config->metadata, source, job, &text, &len, err);

    if (r < 0)
        return r;
    r = cloudconfig_parse(text, len, ret, err);
    if (r == 0)
        log_info("user data from %s: %zu bytes, %zu files", source, len, ret->n);
    secret_wipe(text, len);
    free(text);
    return r;
}

/* Sleeps before the next attempt. Says when the time is over. */
static int wait_next(struct job *job, int64_t ms, struct err *why, struct err *err)
{
    int r = job_remaining_ms(job) <= ms ? -ETIMEDOUT : job_sleep(job, ms);

    return r < 0 ? err_set(err, r, "no usable user data in the time given; last attempt: %s",
                           err_text(why))
                 : 0;
}

/* Waits for a source. ret stays NULL when cloud-init has done the work before us. */
static int wait_source(const struct provision_config *config, struct job *job, const char **ret,
                       struct err *err)
{
    _cleanup_free_ char *done = str_asprintf("%s" DIR_PATH "/apf.json", config->metadata.root);
    int64_t next_log = 0;
    int r = 0;

    while (r == 0) {
        struct err why = ERR_INIT;

        *ret = metadata_detect(&config->metadata, &why);
        if (*ret || access(done, F_OK) == 0)
            return 0;
        if (clock_mono_ms() >= next_log) {
            log_warn("%s; looking again, %lld s left", err_text(&why),
                     (long long)job_remaining_ms(job) / 1000);
            next_log = clock_mono_ms() + config->retry_ms;
        }
        r = wait_next(job, LOOK_MS, &why, err);
    }
    return r;
}

/* Attempts at one source after another: a config drive may appear while a service does not answer.
 */
static int fetch(const struct provision_config *config, struct job *job, bool *ret_found,
                 struct cloudconfig *ret, struct err *err)
{
    struct err before = ERR_INIT;

    for (unsigned attempt = 1;; attempt++) {
        const char *source = NULL;
        struct err why = ERR_INIT;
        int r = wait_source(config, job, &source, err);

        if (r < 0)
            return r;
        *ret_found = source != NULL;
        if (!source || fetch_once(config, source, job, ret, &why) == 0)
            return 0;
        log_warn("attempt %u to get user data from %s failed: %s; next in %lld ms, %lld s left",
                 attempt, source, err_text(&why), (long long)config->retry_ms,
                 (long long)job_remaining_ms(job) / 1000);
        /* An attempt that was cut short says nothing; the one before it does. */
        if (job_check(job) < 0 && before.code)
            why = before;
        r = wait_next(job, config->retry_ms, &why, err);
        if (r < 0)
            return r;
        before = why;
    }
}

/* ---- plan ---- */

static void plan_document(struct plan *plan, const struct cloudconfig *cc)
{
    for (size_t i = 0; i < cc->n; i++) {
        const struct cloudconfig_file *f = &cc->files[i];
        const char *name = str_starts(f->path, DIR_PATH "/") ? f->path + strlen(DIR_PATH "/") : "";
        ssize_t row = find_allowed(name);

        if (row >= 0 && allowed[row].document)
            plan_set(plan, name, f->content, f->len);
        else
            log_warn("user data has %s (%zu bytes), which may not be written; skipped", f->path,
                     f->len);
    }
}

static void plan_entries(struct plan *plan, const struct initdata *d, bool given)
{
    size_t len;

    for (size_t i = 0; i < d->n_entries; i++) {
        const struct initdata_entry *e = &d->entries[i];
        ssize_t row = find_allowed(e->name);

        if (row < 0 || !allowed[row].initdata)
            log_warn("initdata has entry \"%s\" (%zu bytes), which is not written; skipped",
                     e->name, e->len);
        else if (given || !plan_get(plan, e->name, &len))
            plan_set(plan, e->name, e->value, e->len);
    }
}

static bool is_blank(const char *text)
{
    return !text || text[strspn(text, " \t\r\n")] == 0;
}

/* d is what the plan borrows from; the caller ends it after writing. */
static int plan_initdata(struct plan *plan, const char *text, size_t len, struct initdata *d,
                         struct err *err)
{
    bool given = !is_blank(text);
    int r =
        initdata_parse(given ? text : initdata_empty, given ? len : strlen(initdata_empty), d, err);

    if (r < 0)
        return r;
    log_info("initdata: %s, %zu bytes, %s digest %s", given ? "given" : "none, taken as empty",
             d->toml_len, initdata_algorithm_name(d->algorithm), d->digest_hex);
    plan_set(plan, "initdata.digest", d->digest_hex, strlen(d->digest_hex));
    plan_entries(plan, d, given);
    return 0;
}

/* ---- write ---- */

static int write_planned(const char *dir, const struct plan *plan, struct err *err)
{
    int r = fs_mkdir_p(dir, 0755, err);

    for (size_t i = 0; i < ARRAY_SIZE(allowed) && r == 0; i++) {
        _cleanup_free_ char *path = str_asprintf("%s/%s", dir, allowed[i].name);

        if (!plan->content[i])
            continue;
        r = fs_write_atomic(AT_FDCWD, path, plan->content[i], plan->len[i], allowed[i].mode, err);
        if (r == 0)
            log_info("wrote %s (%zu bytes, mode %04o)", path, plan->len[i],
                     (unsigned)allowed[i].mode);
    }
    return r;
}

/* The initdata that cloud-init wrote, when no document brought one. Owned; NULL: none. */
static int initdata_on_disk(const char *dir, char **ret, size_t *ret_len, struct err *err)
{
    _cleanup_free_ char *path = str_asprintf("%s/initdata", dir);

    if (access(path, F_OK) < 0)
        return 0;
    return fs_read(AT_FDCWD, path, INITDATA_ENCODED_MAX, ret, ret_len, err);
}

static int provision(const char *dir, bool found, const struct cloudconfig *cc, struct err *err)
{
    _cleanup_free_ char *old = NULL;
    struct plan plan = {{0}, {0}};
    struct initdata d = {0};
    const char *text;
    size_t len = 0;
    int r = 0;

    plan_document(&plan, cc);
    text = plan_get(&plan, "initdata", &len);
    if (!found) {
        log_info("no source of user data, but %s/apf.json is there: doing initdata only", dir);
        r = initdata_on_disk(dir, &old, &len, err);
        text = old;
    }
    if (r == 0)
        r = plan_initdata(&plan, text, len, &d, err);
    if (r == 0)
        r = write_planned(dir, &plan, err);
    initdata_done(&d);
    return r;
}

int provision_files(const struct provision_config *config, struct err *err)
{
    _cleanup_free_ char *dir = str_asprintf("%s" DIR_PATH, config->metadata.root);
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(config->timeout_ms);
    struct cloudconfig cc = {0};
    bool found = false;
    int r;

    r = fetch(config, job, &found, &cc, err);
    if (r == 0)
        r = provision(dir, found, &cc, err);
    cloudconfig_done(&cc);
    return r;
}
