/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of sandboxes.
 *
 * One sandbox is one directory `<pods-dir>/<id>/` (0700) with
 *   sandbox.json   the record (record.c)
 *   client.key, client.crt   our identity towards its forwarder
 *   secret         the one-time enrolment secret, until it has been used
 *   initdata       raw TOML, when the pod brought some
 *   apf.json       what the VM was told, without key and secret: for people
 *   agent.ttrpc    the socket that the shim dials
 *   server.crt     plain mode: the certificate that was issued to its forwarder
 *   c<N>.relay     one mapped file for each of the shim's connections (shimconn.c)
 * and one struct here. The struct can always be made again from the directory, the descriptor store
 * and the provider: that is what makes a restart harmless.
 *
 *   CreateVM: sandbox_create      -> CREATED
 *   StartVM:  sandbox_start       -> STARTING -> (create, wait, dial, hello, agent) -> RUNNING
 *   StopVM and every other end:   sandbox_stop -> DELETING -> directory and struct are gone
 *
 * Order in creation: directory, secrets, listener, record last. A directory without a record is
 * what a crash in CreateVM left (its caller saw an error): recovery removes it.
 */
#include "adaptor/sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adaptor/plainmode.h"
#include "adaptor/rpc.h"
#include "base/clock.h"
#include "base/log.h"
#include "guest/initdata.h"
#include "relay/fdstore.h"
#include "relay/relay.h"

#define KEY_FILE "client.key"
#define CERT_FILE "client.crt"
#define SECRET_FILE "secret"
#define INITDATA_FILE "initdata"
#define SOCKET_FILE "agent.ttrpc"
#define SECRET_HEX (2 * SANDBOX_SECRET_SIZE)

struct sandbox *sandbox_find(struct adaptor *a, const char *id)
{
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        if (str_eq(sb->record.id, id))
            return sb;
    return NULL;
}

struct sandbox *sandbox_find_token(struct adaptor *a, const char *token)
{
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        if (str_eq(sb->record.token, token))
            return sb;
    return NULL;
}

int sandbox_save(struct sandbox *sb, struct err *err)
{
    return record_write(sb->dir, &sb->record, err);
}

void sandbox_note_error(struct sandbox *sb, const char *step, const struct err *err)
{
    free(sb->record.last_error);
    sb->record.last_error = xstrdup(err->text);
    metrics_error(sb->adaptor->metrics, step);
    log_entry(LOG_LEVEL_ERROR, sb->record.id, step, "%s", err_text(err));
}

void sandbox_arm(struct sandbox *sb, int64_t ms, uv_timer_cb fn)
{
    uv_timer_start(&sb->timer, fn, (uint64_t)MAX(ms, (int64_t)0), 0);
}

void sandbox_disarm(struct sandbox *sb)
{
    uv_timer_stop(&sb->timer);
}

/* -- waiters -- */

void waiter_add(struct waiter **list, struct waiter *w)
{
    w->next = *list;
    *list = w;
}

bool waiter_remove(struct waiter **list, struct waiter *w)
{
    for (; *list; list = &(*list)->next)
        if (*list == w) {
            *list = w->next;
            return true;
        }
    return false;
}

void waiters_done(struct waiter **list, const struct err *err)
{
    struct waiter *all = TAKE_PTR(*list);
    while (all) {
        struct waiter *w = all;
        all = w->next;
        w->done(w, err);
    }
}

/* -- struct and handles -- */

static struct sandbox *sandbox_new(struct adaptor *a, int dir)
{
    struct sandbox *sb = xcalloc(1, sizeof(*sb));
    sb->adaptor = a;
    sb->dir = dir;
    sb->listen_fd = -1;
    sb->timer.data = sb;
    sb->watch.data = sb;
    sb->start_clock.step = START_STEPS;
    sb->accept_again.data = sb;
    uv_timer_init(a->loop, &sb->timer);
    uv_timer_init(a->loop, &sb->watch);
    uv_timer_init(a->loop, &sb->accept_again);
    sb->handles = 3;
    sb->next = a->sandboxes;
    a->sandboxes = sb;
    a->n_sandboxes++;
    return sb;
}

static void timer_closed(uv_handle_t *handle)
{
    struct sandbox *sb = handle->data;
    if (--sb->handles > 0)
        return;
    record_done(&sb->record);
    free(sb);
}

void sandbox_all_resumed(const struct adaptor *a)
{
    log_info("all %u tunnels are up again, %lld ms after this process's start", a->phase->tunnels,
             (long long)(clock_real_ms() - a->started_ms));
}

void sandbox_resumed(struct sandbox *sb)
{
    if (!sb->resuming)
        return;
    sb->resuming = false;
    if (phase_resumed(sb->adaptor->phase))
        sandbox_all_resumed(sb->adaptor);
}

void sandbox_close_streams(struct sandbox *sb)
{
    sandbox_resumed(sb);
    shimconn_unlisten(sb);
    uv_timer_stop(&sb->watch);
    if (sb->tunnel) {
        struct tunnel_stats stats;
        tunnel_get_stats(sb->tunnel, &stats);
        sb->bytes_tx += stats.bytes_tx;
        sb->bytes_rx += stats.bytes_rx;
        metrics_keep_tunnel(sb);
    }
    tunnel_free(TAKE_PTR(sb->tunnel));
    sb->tunnel_up = sb->agent_ready = false;
    shimconn_close_all(sb);
    plainmode_close(sb);
}

void sandbox_free(struct sandbox *sb)
{
    struct adaptor *a = sb->adaptor;
    struct sandbox **at = &a->sandboxes;
    while (*at != sb)
        at = &(*at)->next;
    *at = sb->next;
    a->n_sandboxes--;
    adaptor_trim_soon(a);
    tunnel_free(TAKE_PTR(sb->tunnel));
    plainmode_close(sb);
    tls_identity_free(TAKE_PTR(sb->identity));
    secret_wipe(sb->secret, sizeof(sb->secret));
    if (sb->dir >= 0)
        close(TAKE_FD(sb->dir));
    uv_close((uv_handle_t *)&sb->timer, timer_closed);
    uv_close((uv_handle_t *)&sb->watch, timer_closed);
    uv_close((uv_handle_t *)&sb->accept_again, timer_closed);
}

/* -- secrets on disk -- */

static int identity_create(struct sandbox *sb, struct err *err)
{
    _cleanup_free_ char *key = NULL;
    _cleanup_free_ char *cert = NULL;
    int r = tls_identity_new("cloud-api-adaptor", &sb->identity, err);
    if (r == 0)
        r = tls_identity_pem(sb->identity, &key, &cert, err);
    if (r == 0)
        r = fs_write_atomic(sb->dir, KEY_FILE, key, strlen(key), 0600, err);
    if (r == 0)
        r = fs_write_atomic(sb->dir, CERT_FILE, cert, strlen(cert), 0600, err);
    if (key)
        secret_wipe(key, strlen(key));
    return r;
}

static int identity_load(struct sandbox *sb, struct err *err)
{
    _cleanup_free_ char *key = NULL;
    _cleanup_free_ char *cert = NULL;
    int r = fs_read(sb->dir, KEY_FILE, TLS_PEM_MAX, &key, NULL, err);
    if (r == 0)
        r = fs_read(sb->dir, CERT_FILE, TLS_PEM_MAX, &cert, NULL, err);
    if (r == 0)
        r = tls_identity_parse(key, cert, &sb->identity, err);
    if (key)
        secret_wipe(key, strlen(key));
    return r;
}

static int secret_create(struct sandbox *sb, struct err *err)
{
    char hex[SECRET_HEX + 1];
    if (RAND_priv_bytes(sb->secret, sizeof(sb->secret)) != 1)
        return tls_err(err, -EIO, "making the enrolment secret");
    str_hex(sb->secret, sizeof(sb->secret), hex);
    int r = fs_write_atomic(sb->dir, SECRET_FILE, hex, SECRET_HEX, 0600, err);
    secret_wipe(hex, sizeof(hex));
    return r;
}

static int secret_load(struct sandbox *sb, struct err *err)
{
    _cleanup_free_ char *hex = NULL;
    int r = fs_read(sb->dir, SECRET_FILE, SECRET_HEX, &hex, NULL, err);
    if (r == 0 && str_unhex(hex, sb->secret, sizeof(sb->secret)) < 0)
        r = err_set(err, -EBADMSG, "file %s is malformed", SECRET_FILE);
    if (hex)
        secret_wipe(hex, strlen(hex));
    return r;
}

static int initdata_store(struct sandbox *sb, const struct podspec *spec, struct err *err)
{
    const char *text = spec->initdata;
    struct initdata parsed = {0};
    if (!text && !str_empty(sb->adaptor->config->initdata))
        text = sb->adaptor->config->initdata;
    if (!text)
        return 0;
    int r = initdata_parse(text, strlen(text), &parsed, err);
    if (r < 0)
        return err_wrap(err, r, "CreateVM: initdata (%s)",
                        spec->initdata ? "the pod's annotation cc_init_data" : "-initdata");
    r = fs_write_atomic(sb->dir, INITDATA_FILE, parsed.toml, parsed.toml_len, 0600, err);
    initdata_done(&parsed);
    return r;
}

/* -- creation -- */

static int socket_path(struct adaptor *a, const char *id, char *out, size_t size, struct err *err)
{
    if (str_format(out, size, "%s/%s/" SOCKET_FILE, a->pods_dir, id) < 0)
        return err_set(err, -ENAMETOOLONG,
                       "the agent socket's path would be longer than %zu bytes: choose a shorter "
                       "-pods-dir than %s",
                       size - 1, a->pods_dir);
    return 0;
}

static void random_hex(char *out, size_t digits)
{
    uint8_t bytes[32];
    if (RAND_bytes(bytes, (int)(digits / 2)) != 1)
        abort();
    str_hex(bytes, digits / 2, out);
}

static bool key_taken(const struct sandbox *sb)
{
    for (const struct sandbox *o = sb->adaptor->sandboxes; o; o = o->next)
        if (o != sb && str_eq(o->record.key, sb->record.key))
            return true;
    return false;
}

static void record_begin(struct sandbox *sb, const struct podspec *spec)
{
    struct record *r = &sb->record;
    memcpy(r->id, spec->id, sizeof(r->id));
    memcpy(r->pod, spec->pod, sizeof(r->pod));
    memcpy(r->namespace, spec->namespace, sizeof(r->namespace));
    memcpy(r->netns, spec->netns, sizeof(r->netns));
    sb->netns_seen = access(r->netns, F_OK) == 0;
    memcpy(r->boot, sb->adaptor->boot, sizeof(r->boot));
    (void)str_format(r->node, sizeof(r->node), "%s", sb->adaptor->config->node_name);
    memcpy(r->instance.sandbox, spec->id, sizeof(r->id));
    r->state = SANDBOX_CREATED;
    r->created_ms = clock_real_ms();
    r->spec = spec->spec;
    r->next_channel = 1;
    r->plain = str_eq(sb->adaptor->config->forwarder_compat, "upstream");
    podspec_instance_name(spec->pod, spec->id, r->instance.name);
    random_hex(r->token, RECORD_TOKEN_LEN);
    do
        random_hex(r->key, RECORD_KEY_LEN);
    while (key_taken(sb)); /* 32 bits: two sandboxes must not share names in the store */
}

static int make_dir(struct adaptor *a, const char *id, int *ret, struct err *err)
{
    if (mkdirat(a->pods_fd, id, 0700) < 0)
        return err_errno(err, -errno, "creating the sandbox's directory %s/%s", a->pods_dir, id);
    *ret = openat(a->pods_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*ret < 0) {
        int r = -errno;
        unlinkat(a->pods_fd, id, AT_REMOVEDIR);
        return err_errno(err, r, "opening the sandbox's directory %s/%s", a->pods_dir, id);
    }
    return 0;
}

static void unstarted(uv_timer_t *timer)
{
    sandbox_stop(timer->data, "it was created and never started");
}

int sandbox_create(struct adaptor *a, const struct podspec *spec, struct sandbox **ret,
                   struct err *err)
{
    char path[108];
    int dir = -1;
    if (a->n_sandboxes >= (unsigned)a->config->max_sandboxes)
        return err_set(err, -EUSERS, "CreateVM: %u sandboxes exist, -max-sandboxes is %lld",
                       a->n_sandboxes, (long long)a->config->max_sandboxes);
    int r = socket_path(a, spec->id, path, sizeof(path), err);
    if (r == 0)
        r = make_dir(a, spec->id, &dir, err);
    if (r < 0)
        return r;
    struct sandbox *sb = sandbox_new(a, dir);
    record_begin(sb, spec);
    memcpy(sb->socket_path, path, sizeof(path));
    r = identity_create(sb, err);
    if (r == 0)
        r = secret_create(sb, err);
    if (r == 0)
        r = initdata_store(sb, spec, err);
    if (r == 0)
        r = shimconn_listen(sb, err);
    if (r == 0)
        r = sandbox_save(sb, err);
    if (r < 0) {
        sandbox_close_streams(sb);
        fs_remove_tree(a->pods_fd, spec->id, NULL);
        sandbox_free(sb);
        if (r == -ENOSPC || r == -EDQUOT)
            err_wrap(err, r, "CreateVM: no room for the sandbox's state in %s; free some space",
                     a->pods_dir);
        return r;
    }
    sandbox_arm(sb, a->config->grace_unstarted_ns / 1000000, unstarted);
    log_entry(LOG_LEVEL_INFO, sb->record.id, "create", "sandbox of pod %s/%s created",
              sb->record.namespace, sb->record.pod);
    *ret = sb;
    return 0;
}

/* -- recovery -- */

bool sandbox_is_trouble(int r)
{
    return r == -ENOMEM || r == -ENOBUFS || r == -EMFILE || r == -ENFILE || r == -EIO ||
           r == -EINTR || r == -EAGAIN;
}

/* Dead, or not to be taken over: what remains is to delete it. */
static void recover_as_deleting(struct sandbox *sb, const char *why)
{
    log_entry(LOG_LEVEL_WARN, sb->record.id, "recover", "%s: deleting it", why);
    sandbox_stop(sb, why);
}

static bool is_relay_file(const char *name)
{
    size_t digits = strspn(name + (*name == 'c'), "0123456789");
    return *name == 'c' && digits > 0 && str_eq(name + 1 + digits, ".relay");
}

/* Does this directory, which has no record, hold only what a CreateVM or a removal that did not end
 * leaves? */
static bool is_unfinished(int dirfd)
{
    static const char *const names[] = {RECORD_FILE, KEY_FILE,      CERT_FILE,
                                        SECRET_FILE, INITDATA_FILE, SOCKET_FILE,
                                        "apf.json",  "server.crt",  "server.key"};
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    bool ours = dir;
    if (!dir)
        return false;
    for (struct dirent *e; ours && (e = readdir(dir));) {
        ours = str_eq(e->d_name, ".") || str_eq(e->d_name, "..") || is_relay_file(e->d_name);
        for (size_t i = 0; i < ARRAY_SIZE(names) && !ours; i++) {
            size_t len = strlen(names[i]);
            ours = strncmp(e->d_name, names[i], len) == 0 &&
                   (!e->d_name[len] || str_eq(e->d_name + len, FS_TEMP_SUFFIX));
        }
    }
    closedir(dir);
    return ours;
}

static int recover_live(struct sandbox *sb, struct err *err)
{
    int r = identity_load(sb, err);
    phase_set(sb->adaptor->phase, PHASE_DESCRIPTORS);
    if (r == 0 && !sb->record.enrolled)
        r = secret_load(sb, err);
    else if (r == 0)
        unlinkat(sb->dir, SECRET_FILE, 0); /* the predecessor may have died just before */
    if (r == 0)
        r = shimconn_listen(sb, err);
    if (r == 0)
        r = shimconn_recover_all(sb, err);
    if (r == 0 && sb->record.state == SANDBOX_RUNNING) {
        sb->tunnel_up = sb->record.plain; /* there is nothing to wait for */
        sb->resuming = !sb->record.plain;
        if (sb->resuming)
            phase_await(sb->adaptor->phase);
        phase_set(sb->adaptor->phase, PHASE_DIALLING);
        r = sb->record.plain ? plainmode_open(sb, err) : sandbox_tunnel_open(sb, err);
        if (r == 0) {
            sandbox_watch_shim(sb);
            sandbox_watch_tunnel(sb);
        }
    }
    phase_set(sb->adaptor->phase, PHASE_RECORDS);
    return r;
}

/* A state directory that came here by mistake: what it names may run, and only its own node can tell
 * whether that was booted since. */
static bool is_anothers(const struct adaptor *a, const struct record *r)
{
    return !str_eq(r->boot, a->boot) && *r->node && !str_eq(r->node, a->config->node_name);
}

/* Negative: it is not to be given up (sandbox_is_trouble). */
static int recover_record(struct sandbox *sb, struct err *err)
{
    struct err local = ERR_INIT;
    int r = 0;
    if (sb->record.state == SANDBOX_DELETING)
        sandbox_delete_soon(sb);
    else if (!str_eq(sb->record.boot, sb->adaptor->boot))
        recover_as_deleting(sb, "the node has been booted since it was created");
    else
        r = recover_live(sb, &local);
    if (sandbox_is_trouble(r))
        return err_set(err, r, "sandbox %s cannot be taken over now: %s", sb->record.id,
                       err_text(&local));
    if (r < 0) {
        sandbox_note_error(sb, "recover", &local);
        recover_as_deleting(sb, "it cannot be taken over");
    } else if (sb->record.state == SANDBOX_STARTING) {
        sandbox_start_resume(sb);
    } else if (sb->record.state == SANDBOX_CREATED) {
        sandbox_arm(sb, sb->adaptor->config->grace_unstarted_ns / 1000000, unstarted);
    }
    return 0;
}

static int check_relays(int dirfd, struct err *err)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int r = 0;
    if (!dir)
        return 0;
    for (struct dirent *e; r == 0 && (e = readdir(dir));)
        if (is_relay_file(e->d_name))
            r = relay_check_format(dirfd, e->d_name, err);
    closedir(dir);
    return r;
}

int sandbox_check_format(struct adaptor *a, const char *name, struct err *err)
{
    struct err local = ERR_INIT;
    struct record record;
    _cleanup_close_ int dir =
        openat(a->pods_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int r = dir < 0 ? -ENOENT : record_read(dir, &record, &local);
    if (r == 0) {
        record_done(&record);
        r = check_relays(dir, &local);
    }
    return r == -EPROTONOSUPPORT ? err_set(err, r, "sandbox %s: %s", name, local.text) : 0;
}

int sandbox_recover(struct adaptor *a, const char *name, struct err *err)
{
    struct err local = ERR_INIT;
    struct record record;
    _cleanup_close_ int dir =
        openat(a->pods_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0 && sandbox_is_trouble(-errno))
        return err_errno(err, -errno, "opening %s/%s", a->pods_dir, name);
    if (dir < 0)
        return 0; /* not a directory: not ours */
    int r = record_read(dir, &record, &local);
    if (sandbox_is_trouble(r))
        return err_set(err, r, "sandbox %s: %s", name, err_text(&local));
    if (r == -ENOENT && is_unfinished(dir)) {
        log_entry(LOG_LEVEL_INFO, name, "recover",
                  "a CreateVM or a removal that did not end: removed");
        fs_remove_tree(a->pods_fd, name, NULL);
        return 0;
    }
    if (r == -ENOENT) {
        log_warn("directory %s/%s is no sandbox's: left alone", a->pods_dir, name);
        return 0;
    }
    if (r == 0 && !str_eq(record.id, name)) {
        record_done(&record);
        r = err_set(&local, -EBADMSG, "its record is of sandbox %s", record.id);
    }
    if (r == 0 && is_anothers(a, &record)) {
        r = err_set(&local, -EXDEV, "its record is of node %s, this is %s (instance %s)",
                    record.node, a->config->node_name, record.instance.id);
        record_done(&record);
    }
    if (r < 0) {
        log_entry(LOG_LEVEL_ERROR, name, "recover",
                  "%s: left alone; remove %s/%s by hand when its VM is gone", err_text(&local),
                  a->pods_dir, name);
        return 0;
    }
    struct sandbox *sb = sandbox_new(a, TAKE_FD(dir));
    sb->record = record;
    sb->create_unsure = record.started_ms && !*record.instance.id;
    r = socket_path(a, record.id, sb->socket_path, sizeof(sb->socket_path), err);
    if (r < 0) {
        sandbox_free(sb);
        return r;
    }
    return recover_record(sb, err);
}
