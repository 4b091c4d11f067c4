/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's beginning and end.
 *
 * Start (crash-only: there is no other): look at all formats, take the lock (tenure.c), or have who
 * has it hand over (takeover.c), raise the generation, read the records and take over their
 * descriptors, redial the tunnels, and only then serve hypervisor.sock. The order matters: nothing
 * touches a ring without the lock, and a shim that is answered must not meet a half-known state. The
 * listening sockets themselves are in the store, so callers only wait.
 *
 * Formats: what a newer daemon wrote with a raised major version is not for us. We end with a message
 * before we have touched, or asked for, anything; our keeper holds the descriptors until a newer
 * daemon is there. A raised minor version has added what we keep and do not understand.
 *
 * End: adaptor_free releases memory and leaves every sandbox as it is.
 */
#include "adaptor/adaptor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>

#include "adaptor/control.h"
#include "adaptor/meter.h"
#include "adaptor/podvminfo.h"
#include "adaptor/probe.h"
#include "adaptor/reconcile.h"
#include "adaptor/rpc.h"
#include "adaptor/sandbox.h"
#include "adaptor/service.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/link.h"
#include "relay/fdstore.h"
#include "relay/relay.h"

#define TRIM_MS 3000 /* behind the first of many starts or ends: one trim for all of them */

static int check_pods_dir(struct adaptor *a, struct err *err)
{
    const char *path = a->config->pods_dir;
    char real[PATH_MAX];
    /* The agent socket's path goes through the shim's URL parser (kata-contract.md 2.1). */
    if (*path != '/' || strpbrk(path, ":%?#"))
        return err_set(err, -EINVAL,
                       "-pods-dir %s: must be an absolute path without ':', '%%', '?' and '#'",
                       path);
    int r = fs_private_dir(path, err);
    if (r < 0)
        return err_wrap(err, r, "-pods-dir");
    if (!realpath(path, real) || str_format(a->pods_dir, sizeof(a->pods_dir), "%s", real) < 0)
        return err_set(err, -ENAMETOOLONG, "-pods-dir %s is longer than %zu characters", path,
                       sizeof(a->pods_dir) - 1);
    a->pods_fd = open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return a->pods_fd < 0 ? err_errno(err, -errno, "opening %s", real) : 0;
}

/* Calls fn for each directory entry that may be a sandbox, until one fails. */
static int each_sandbox(struct adaptor *a,
                        int (*fn)(struct adaptor *a, const char *name, struct err *err),
                        struct err *err)
{
    int fd = openat(a->pods_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const char *why;
    int r = 0;
    if (!dir)
        return err_errno(err, -errno, "reading %s", a->pods_dir);
    for (struct dirent *e; errno = 0, r == 0 && (e = readdir(dir));)
        if (str_check_sandbox_id(e->d_name, &why) == 0)
            r = fn(a, e->d_name, err);
    if (r == 0 && errno) /* half a list would be pods forgotten */
        r = err_errno(err, -errno, "reading %s", a->pods_dir);
    closedir(dir);
    return r;
}

static int check_formats(struct adaptor *a, struct err *err)
{
    return each_sandbox(a, sandbox_check_format, err);
}

/* Formats again: the other daemon may have written since. */
static int recover(struct adaptor *a, struct err *err)
{
    phase_set(a->phase, PHASE_RECORDS);
    int r = check_formats(a, err);
    if (r == 0)
        r = each_sandbox(a, sandbox_recover, err);
    if (a->n_sandboxes)
        log_info("%u sandboxes found in %s", a->n_sandboxes, a->pods_dir);
    return r;
}

/* Ours is closed too: whoever is at the other end must see its end now, not when we die. */
static void drop_unknown(const char *name, int fd, void *arg)
{
    (void)fd;
    (void)arg;
    close(fdstore_take(name));
    log_debug("descriptor %s in the store belongs to nobody: dropped", name);
    fdstore_remove(name, NULL);
}

static int serve(struct adaptor *a, const char *store_name, const char *path, const char *store,
                 const struct rpc_method *methods, struct rpc_server **ret, struct err *err)
{
    int fd = fdstore_take(store_name);
    bool inherited = fd >= 0;
    int r = inherited ? 0 : rpc_listen(path, &fd, err);
    if (r == 0 && !inherited && fdstore_add(store_name, fd, err) < 0) {
        close(fd);
        r = -EIO;
    }
    if (r < 0)
        return err_wrap(err, r, "socket %s", path);
    return rpc_server_new(a->loop, fd, 0, store, methods, a, ret, err);
}

static int check_network(const struct adaptor_config *config, struct err *err)
{
    struct net_address a;
    uint8_t prefix;

    if (*config->pod_metadata_address && net_address_parse(config->pod_metadata_address, &a) < 0)
        return err_set(err, -EINVAL, "-pod-metadata-address %s is not a numeric address",
                       config->pod_metadata_address);
    for (char **s = config->pod_subnet_cidrs; s && *s; s++)
        if (net_prefix_parse(*s, &a, &prefix) < 0)
            return err_set(err, -EINVAL, "-pod-subnet-cidrs: '%s' is not a subnet (10.244.0.0/16)",
                           *s);
    return 0;
}

static int parse_port(struct adaptor *a, struct err *err)
{
    uint64_t port;
    if (str_to_u64(a->config->forwarder_port, 65535, &port) < 0 || port == 0)
        return err_set(err, -EINVAL, "-forwarder-port %s is not a port (1 to 65535)",
                       a->config->forwarder_port);
    a->forwarder_port = (uint16_t)port;
    return 0;
}

static int begin(struct adaptor *a, struct err *err)
{
    const unsigned limits[JOB_CLASSES] = {
        [JOB_CREATE] = (unsigned)a->config->max_creates,
        [JOB_DELETE] = (unsigned)a->config->max_deletes,
        [JOB_OTHER] = 8,
    };
    int r = check_network(a->config, err);
    if (r == 0)
        r = parse_port(a, err);
    if (r == 0)
        r = fs_boot_id(a->boot, err);
    if (r == 0)
        r = check_pods_dir(a, err);
    if (r == 0)
        r = job_pool_new(a->loop, limits, &a->jobs, err);
    if (r == 0)
        r = tls_ctx_new(false, &a->tls, err);
    if (r == 0)
        r = check_formats(a, err);
    if (r < 0)
        return r;
    tenure_init(&a->tenure, a->pods_fd, a->pods_dir);
    r = takeover_begin(a->loop, a->jobs, &a->tenure, &a->takeover, err);
    if (r == 0) {
        a->phase = phase_new(a->pods_fd);
        r = tenure_raise(&a->tenure, err);
    }
    if (r == 0)
        r = recover(a, err);
    if (r == 0)
        r = serve(a, "hypervisor", a->config->socket, "h", hypervisor_methods, &a->hypervisor, err);
    if (r == 0)
        r = serve(a, "control", a->config->control_socket, NULL, control_methods, &a->control, err);
    return r;
}

static void warn_about_restarts(void)
{
    struct err err = ERR_INIT;
    if (!fdstore_available())
        log_warn("no descriptor store (peerpod-keeper or systemd): a restart of this daemon ends "
                 "the pods of this node");
    if (relay_selftest(&err) < 0)
        log_warn("a restart of this daemon ends the pods of this node: %s", err_text(&err));
}

int adaptor_new(uv_loop_t *loop, const struct adaptor_config *config, struct provider *provider,
                struct adaptor **ret, struct err *err)
{
    struct adaptor *a = xcalloc(1, sizeof(*a));
    a->loop = loop;
    a->config = config;
    a->metrics = metrics_new();
    a->provider = meter_new(provider, a->metrics);
    a->pods_fd = a->tenure.lock_fd = a->tenure.token_fd = -1;
    a->started_ms = clock_real_ms();
    uv_timer_init(loop, &a->trim);
    int r = begin(a, err);
    if (r < 0) {
        adaptor_free(a);
        return r;
    }
    warn_about_restarts();
    fdstore_each("", drop_unknown, NULL);
    a->reconcile = reconcile_begin(a);
    a->probe = probe_begin(a);
    log_info("cloud-api-adaptor " PP_VERSION " serves %s with provider %s (generation %llu)",
             config->socket, provider->type->name, (unsigned long long)a->tenure.generation);
    takeover_serve(a->takeover);
    if (phase_serve(a->phase) && a->phase->tunnels > 0)
        sandbox_all_resumed(a);
    fdstore_notify("READY=1", NULL);
    *ret = a;
    return 0;
}

/* glibc gives memory back from a heap's end alone, and there is always something at the end: after a
 * thousand pods 30 MiB would stay with us. */
static void trim(_unused_ uv_timer_t *timer)
{
    malloc_trim(0);
}

void adaptor_trim_soon(struct adaptor *a)
{
    if (!uv_is_active((uv_handle_t *)&a->trim))
        uv_timer_start(&a->trim, trim, TRIM_MS, 0);
}

/* Lets go of a sandbox without touching its state: descriptors stay in the store, files on disk. */
static void release_sandbox(struct sandbox *sb)
{
    struct err err = ERR_INIT;
    err_set(&err, -ESHUTDOWN, "the daemon is ending");
    waiters_done(&sb->starters, &err);
    waiters_done(&sb->enders, &err);
    shimconn_release_all(sb);
    sandbox_free(sb);
}

bool adaptor_abandon(struct adaptor *a)
{
    if (job_pool_running(a->jobs) == 0)
        return false;
    job_pool_abandon(a->jobs);
    return true;
}

void adaptor_free(struct adaptor *a)
{
    if (!a)
        return;
    a->ending = true;
    takeover_free(a->takeover);
    probe_free(a->probe);
    rpc_server_free(a->hypervisor);
    rpc_server_free(a->control);
    reconcile_free(a->reconcile);
    job_pool_free(a->jobs);
    podvminfo_end(a);
    while (a->sandboxes)
        release_sandbox(a->sandboxes);
    tls_ctx_free(a->tls);
    uv_close((uv_handle_t *)&a->trim, NULL);
    closep(&a->pods_fd);
    tenure_done(&a->tenure);
    phase_free(a->phase);
    uv_run(a->loop, UV_RUN_NOWAIT); /* lets closed handles finish */
    meter_free(a->provider);
    metrics_free(a->metrics);
    free(a);
}
