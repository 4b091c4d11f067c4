/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local provider: the provider interface over a registry (store.c) and namespaces (vm.c).
 *
 * create: store_add (record first, under the registry's lock), then vm_start. What fails after the
 * record is undone at once; only when that fails too does the caller get an id to delete. A process
 * that dies in between leaves a record without a running VM: the same token makes the VM again in
 * the same place, a delete by tag removes it.
 *
 * delete: mark, lock (so: wait for a creation under way), stop, remove. Every step may be repeated;
 * nothing is forgotten before all of it is gone.
 *
 * An instance that has ended (its PID 1 died) stays in the registry, as `gone`, until it is
 * deleted, as in a cloud.
 *
 * The failure options imitate a cloud's failures for tests. They are part of the table, with help
 * that says so, because the daemon under test is the real one.
 */
#include "providers/local/local.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdatomic.h>

#include "base/str.h"
#include "net/link.h"
#include "providers/local/config.h"
#include "providers/local/store.h"
#include "providers/local/vm.h"

#define USER_DATA_MAX (4U << 20)
#define POLL_MS 20

struct local_provider {
    struct provider base;
    const struct local_config *config;
    struct store *store;
    atomic_llong deletes_to_fail;
};

static const char *const create_faults[] = {"", "before", "after", NULL};
static const char *const guest_faults[] = {"", "no-boot", "no-forwarder", "no-tls", NULL};

#define FIELD(name) offsetof(struct local_config, name)

static const struct opt local_opts[] = {
    {.flag = "local-registry-dir",
     .env = "LOCAL_REGISTRY_DIR",
     .type = OPT_STRING,
     .offset = FIELD(registry_dir),
     .def = "/run/peerpod-local",
     .help = "where the local VMs are registered: the provider's \"cloud\""},
    {.flag = "local-guest-dir",
     .env = "LOCAL_GUEST_DIR",
     .type = OPT_STRING,
     .offset = FIELD(guest_dir),
     .def = "",
     .help = "where the guest programs are; empty: beside this program"},
    {.flag = "local-agent",
     .env = "LOCAL_AGENT",
     .type = OPT_STRING,
     .offset = FIELD(agent),
     .def = "",
     .help = "command that is started as kata-agent in the VM; empty: test-agent beside "
             "the guest programs"},
    {.flag = "vm-log-dir",
     .env = "LOCAL_VM_LOG_DIR",
     .type = OPT_STRING,
     .offset = FIELD(vm_log_dir),
     .def = "",
     .help = "where VMs' logs are kept; empty: in the registry, gone with the VM"},
    {.flag = "boot-delay",
     .env = "LOCAL_BOOT_DELAY",
     .type = OPT_DURATION,
     .offset = FIELD(boot_delay_ns),
     .def = "0s",
     .help = "for tests: how long a VM takes before its programs start"},
    {.flag = "guest-fault",
     .env = "LOCAL_GUEST_FAULT",
     .type = OPT_STRING,
     .offset = FIELD(guest_fault),
     .def = "",
     .choices = guest_faults,
     .help = "for tests: no-boot (nothing starts in the VM), no-forwarder, no-tls (port 15150 "
             "answers without TLS)"},
    {.flag = "fail-create",
     .env = "LOCAL_FAIL_CREATE",
     .type = OPT_STRING,
     .offset = FIELD(fail_create),
     .def = "",
     .choices = create_faults,
     .help = "for tests: creating fails before or after the VM is made"},
    {.flag = "fail-addresses",
     .env = "LOCAL_FAIL_ADDRESSES",
     .type = OPT_BOOL,
     .offset = FIELD(fail_addresses),
     .def = "false",
     .help = "for tests: addresses never become known"},
    {.flag = "fail-list",
     .env = "LOCAL_FAIL_LIST",
     .type = OPT_BOOL,
     .offset = FIELD(fail_list),
     .def = "false",
     .help = "for tests: finding and listing fail"},
    {.flag = "fail-deletes",
     .env = "LOCAL_FAIL_DELETES",
     .type = OPT_INT,
     .offset = FIELD(fail_deletes),
     .def = "0",
     .min = 0,
     .max = 1000000,
     .help = "for tests: how many deletes fail before one succeeds"},
    {.flag = "delete-delay",
     .env = "LOCAL_DELETE_DELAY",
     .type = OPT_DURATION,
     .offset = FIELD(delete_delay_ns),
     .def = "0s",
     .help = "for tests: how long a delete takes"},
    OPT_END,
};

static struct local_provider *local(struct provider *p)
{
    return (struct local_provider *)p;
}

static int local_open(const void *config, struct provider **ret, struct err *err)
{
    struct local_provider *l = xcalloc(1, sizeof(*l));
    int r;

    l->base.type = &local_provider_type;
    l->config = config;
    atomic_init(&l->deletes_to_fail, l->config->fail_deletes);
    r = l->config->registry_dir[0] == '/'
            ? store_open(l->config->registry_dir, &l->store, err)
            : err_set(err, -EINVAL, "-local-registry-dir '%.200s' is not an absolute path",
                      l->config->registry_dir);
    if (r < 0) {
        free(l);
        return r;
    }
    *ret = &l->base;
    return 0;
}

static void local_close(struct provider *p)
{
    if (!p)
        return;
    store_close(local(p)->store);
    free(local(p));
}

static int local_verify(struct provider *p, _unused_ struct job *job, struct err *err)
{
    struct vm_programs programs;
    int r = vm_programs_find(local(p)->config, &programs, err);

    return r < 0 ? r : vm_check_rights(err);
}

/* ---- results ---- */

static const char *record_tag(const struct store_record *rec, const char *key)
{
    for (size_t i = 0; i < rec->n_tags; i++)
        if (str_eq(rec->tags[i][0], key))
            return rec->tags[i][1];
    return "";
}

static void fill_address(uint32_t index, struct instance *ret)
{
    struct in_addr a = {.s_addr = htonl(local_vm_address(index))};

    (void)inet_ntop(AF_INET, &a, ret->addresses[0], sizeof(ret->addresses[0]));
    ret->n_addresses = 1;
}

/* Without addresses: like a cloud, it tells them only to wait_addresses. */
static void fill_instance(const struct store_record *rec, enum store_state state,
                          struct instance *ret)
{
    *ret = (struct instance){.gone = state == STORE_ENDED || state == STORE_DELETING};
    (void)str_format(ret->id, sizeof(ret->id), "%s", rec->id);
    (void)str_format(ret->name, sizeof(ret->name), "%s", rec->name);
    (void)str_format(ret->sandbox, sizeof(ret->sandbox), "%s", record_tag(rec, TAG_SANDBOX));
    (void)str_format(ret->boot, sizeof(ret->boot), "%s", record_tag(rec, TAG_BOOT));
    if (state == STORE_RUNNING)
        fill_address(rec->index, ret);
}

/* ---- create ---- */

static int check_request(const struct local_config *config, const struct instance_request *request,
                         struct err *err)
{
    size_t n = 0;

    for (const struct tag *t = request->tags; t && t->key; t++)
        n++;
    if (str_eq(config->fail_create, "before"))
        return err_set(err, -EIO, "-fail-create=before: the local provider was told to fail");
    if (strlen(request->name) > INSTANCE_NAME_MAX || n > INSTANCE_TAGS_MAX)
        return err_set(err, -EINVAL, "instance name over %d characters or over %d tags",
                       INSTANCE_NAME_MAX, INSTANCE_TAGS_MAX);
    if (request->user_data_len > USER_DATA_MAX)
        return err_set(err, -E2BIG, "user data of %zu bytes, the local provider takes %u",
                       request->user_data_len, USER_DATA_MAX);
    return 0;
}

/* Ends and forgets an instance whose lock is held. */
static int remove_locked(struct local_provider *l, struct job *job, const struct store_record *rec,
                         struct err *err)
{
    int r = vm_stop(l->store, job, rec, err);

    return r < 0 ? r : store_remove(l->store, job, rec->id, err);
}

/* Not by the job, which may be over its deadline or cancelled. */
static bool undo(struct local_provider *l, const struct store_record *rec)
{
    return store_mark_deleting(l->store, rec->id, NULL) == 0 &&
           remove_locked(l, NULL, rec, NULL) == 0;
}

static int make_vm(struct local_provider *l, struct job *job, const struct store_record *rec,
                   bool new, int lock, struct instance *ret, struct err *err)
{
    /* An earlier maker died: what it started may still run. */
    int r = new ? 0 : vm_stop(l->store, job, rec, err);

    if (r == 0)
        r = vm_start(l->store, l->config, rec, lock, err);
    if (r < 0 && !undo(l, rec))
        fill_instance(rec, STORE_HALF, ret);
    return r;
}

/* 1: the instance was on its way out and has gone, begin again. */
static int create_locked(struct local_provider *l, struct job *job, const struct store_record *rec,
                         bool new, int lock, struct instance *ret, struct err *err)
{
    enum store_state state;
    int r = store_state(l->store, rec->id, &state, err);

    if (r < 0) {
        fill_instance(rec, STORE_HALF, ret);
        return r;
    }
    if (state == STORE_DELETING) {
        /* Its deleter died: we hold the lock. */
        r = remove_locked(l, job, rec, err);
        return r < 0 ? r : 1;
    }
    if (state == STORE_HALF) {
        r = make_vm(l, job, rec, new, lock, ret, err);
        if (r < 0)
            return r;
        state = STORE_RUNNING;
    }
    fill_instance(rec, state, ret);
    if (str_eq(l->config->fail_create, "after"))
        return err_set(err, -EIO, "-fail-create=after: the local provider was told to fail");
    return 0;
}

static int create_once(struct local_provider *l, struct job *job,
                       const struct instance_request *request, struct instance *ret,
                       struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    struct store_record rec = {0};
    bool new;
    int lock, r = rtnl_open(&nl, err);

    if (r < 0)
        return r;
    r = store_add(l->store, job, request, vm_index_taken, nl, &rec, &lock, &new, err);
    if (r < 0) {
        (void)str_format(ret->id, sizeof(ret->id), "%s", rec.id);
        return r;
    }
    rec.external_network = request->external_network;
    r = create_locked(l, job, &rec, new, lock, ret, err);
    close(lock);
    store_record_done(&rec);
    return r;
}

static int local_create(struct provider *p, struct job *job, const struct instance_request *request,
                        struct instance *ret, struct err *err)
{
    struct local_provider *l = local(p);
    int r = check_request(l->config, request, err);

    *ret = (struct instance){0};
    if (r == 0)
        r = vm_check_rights(err);
    if (r < 0)
        return r;
    do
        r = create_once(l, job, request, ret, err);
    while (r == 1);
    return r;
}

/* ---- find, list ---- */

static bool has_tags(const struct store_record *rec, const struct tag *tags)
{
    for (const struct tag *t = tags; t && t->key; t++)
        if (!str_eq(record_tag(rec, t->key), t->value))
            return false;
    return true;
}

static int local_list(struct provider *p, struct job *job, const struct tag *tags,
                      struct instance **ret, size_t *ret_n, struct err *err)
{
    struct local_provider *l = local(p);
    _cleanup_(strv_freep) char **ids = NULL;
    _cleanup_free_ struct instance *list = NULL;
    size_t n = 0;

    if (l->config->fail_list)
        return err_set(err, -EIO, "-fail-list: the local provider was told to fail");
    /* After a crash the daemon looks by tag, and may never create again. */
    store_tidy(l->store);
    int r = store_ids(l->store, &ids, err);
    if (r < 0)
        return r;
    list = xcalloc(strv_len(ids) + 1, sizeof(*list));
    for (char **id = ids; *id; id++) {
        struct store_record rec = {0};
        r = job_check(job);
        if (r < 0)
            return err_errno(err, r, "listing local instances");
        r = store_get(l->store, *id, &rec, err);
        if (r == -ENOENT)
            continue;
        if (r < 0)
            return r;
        enum store_state state = STORE_HALF;
        if (has_tags(&rec, tags) && (r = store_state(l->store, *id, &state, err)) == 0)
            fill_instance(&rec, state, &list[n++]);
        store_record_done(&rec);
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(list);
    *ret_n = n;
    return 0;
}

static int local_find(struct provider *p, struct job *job, const char *sandbox,
                      struct instance *ret, struct err *err)
{
    const struct tag tags[] = {{TAG_SANDBOX, sandbox}, {0}};
    _cleanup_free_ struct instance *list = NULL;
    size_t n, best = 0;
    int r = local_list(p, job, tags, &list, &n, err);

    if (r < 0)
        return r;
    if (n == 0)
        return err_set(err, -ENOENT, "no local instance of sandbox %s", sandbox);
    /* A living one before one that is on its way out. */
    for (size_t i = 0; i < n; i++)
        if (!list[i].gone)
            best = i;
    *ret = list[best];
    return 0;
}

/* ---- wait ---- */

static int local_wait_addresses(struct provider *p, struct job *job, struct instance *instance,
                                struct err *err)
{
    struct local_provider *l = local(p);
    int r;

    do {
        struct store_record rec = {0};
        r = store_get(l->store, instance->id, &rec, err);
        if (r < 0)
            return r == -ENOENT ? err_set(err, -EHOSTDOWN, "instance %s is gone", instance->id) : r;
        enum store_state state = STORE_HALF;
        uint32_t index = rec.index;
        store_record_done(&rec);
        r = store_state(l->store, instance->id, &state, err);
        if (r < 0)
            return r;
        if (state == STORE_ENDED || state == STORE_DELETING) {
            instance->gone = true;
            return err_set(err, -EHOSTDOWN, "instance %s has ended", instance->id);
        }
        if (state == STORE_RUNNING && !l->config->fail_addresses) {
            fill_address(index, instance);
            return 0;
        }
        r = job_sleep(job, POLL_MS);
    } while (r == 0);
    return err_errno(err, r, "waiting for the address of %s", instance->id);
}

/* ---- delete ---- */

static int told_to_fail(struct local_provider *l, struct job *job, struct err *err)
{
    int r = job_sleep(job, l->config->delete_delay_ns / 1000000);

    if (r < 0)
        return err_errno(err, r, "-delete-delay");
    if (atomic_load(&l->deletes_to_fail) > 0 && atomic_fetch_sub(&l->deletes_to_fail, 1) > 0)
        return err_set(err, -EIO, "-fail-deletes: the local provider was told to fail");
    return 0;
}

static int local_delete(struct provider *p, struct job *job, const struct instance *instance,
                        struct err *err)
{
    struct local_provider *l = local(p);
    struct store_record rec = {0};
    int r = told_to_fail(l, job, err);

    if (r < 0)
        return r;
    _cleanup_close_ int lock = -1;
    r = store_lock(l->store, job, instance->id, &lock, err);
    if (r == 0)
        r = store_get(l->store, instance->id, &rec, err);
    if (r == -ENOENT)
        return store_finish_removals(l->store, job, err);
    if (r == 0)
        r = store_mark_deleting(l->store, instance->id, err);
    if (r == 0)
        r = remove_locked(l, job, &rec, err);
    store_record_done(&rec);
    return r;
}

const struct provider_type local_provider_type = {
    .name = "local",
    .summary = "no cloud: a pod VM is a set of namespaces on this machine (demo, tests)",
    .opts = local_opts,
    .config_size = sizeof(struct local_config),
    .user_data_max = USER_DATA_MAX,
    .runs_machines_here = true,
    .point_to_point = true,
    .warning = "the provider 'local' isolates pods with namespaces only: not for production",
    .open = local_open,
    .close = local_close,
    .verify = local_verify,
    .create = local_create,
    .find = local_find,
    .list = local_list,
    .wait_addresses = local_wait_addresses,
    .delete = local_delete,
};
