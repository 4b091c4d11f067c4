/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of local VMs.
 *
 * Model. One directory for each instance, named by its id, which holds index and token:
 *
 *   lock                     held while names come and go: allocation and removal
 *   instances/ID/record.json written once, never changed
 *   instances/ID/lock        held while the VM is made or deleted, by the maker's helper as well
 *   instances/ID/user-data   what a NoCloud drive would hold
 *   instances/ID/init        boot id, pid and start time of the VM's PID 1 (written by the helper)
 *   instances/ID/ready       the VM was set up (written by the helper)
 *   instances/ID/deleting    a delete has begun
 *   instances/ID/root, log   mount point; the VM's console
 *   new/ID, old/ID           directories that are being filled or removed
 *
 * Invariants. A directory under instances/ is complete: it is filled under new/ and renamed. It
 * leaves by one rename to old/, so that a reader sees a whole instance or none; what lies under
 * new/ and old/ while the registry's lock is free is a dead process's, and the next holder of the
 * lock removes it. Index and token are part of the id, so that one readdir tells which are taken.
 * State is told by which files exist, and no file is written twice: there is nothing to tear.
 *
 * Crashes. Whoever dies holding a lock loses it, being flock. A helper inherits the instance's
 * lock from its maker and the VM's PID 1 keeps it until it is recorded in `init`: who gets the lock
 * finds either no process or a recorded one.
 *
 * Identity of processes: a pid alone may be recycled, so `init` has the start time (in ticks since
 * boot) and the boot id beside it, and the process is signalled through a pidfd that was opened
 * before its start time was compared.
 */
#include "providers/local/store.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"

#define RECORD_MAX (64U << 10)
#define RECORD_VERSION 1
#define INSTANCES_MAX LOCAL_INDEX_MAX
#define LOCK_POLL_MS 3

struct store {
    char *dir;
};

/* ---- names ---- */

static bool token_valid(const char *token)
{
    return strlen(token) == LOCAL_TOKEN_LEN && strspn(token, "0123456789abcdef") == LOCAL_TOKEN_LEN;
}

/* "local-INDEX-TOKEN"; a name that comes from outside and would leave the directory is refused
 * here, before it becomes a path. */
static int id_parse(const char *id, uint32_t *ret_index, const char **ret_token)
{
    static const char prefix[] = "local-";
    char number[8];
    uint64_t index;
    const char *dash;

    if (!str_starts(id, prefix) || !(dash = strchr(id + sizeof(prefix) - 1, '-')))
        return -EINVAL;
    size_t len = (size_t)(dash - id) - (sizeof(prefix) - 1);
    if (len == 0 || len >= sizeof(number) || !token_valid(dash + 1))
        return -EINVAL;
    memcpy(number, id + sizeof(prefix) - 1, len);
    number[len] = '\0';
    if (str_to_u64(number, LOCAL_INDEX_MAX, &index) < 0 || index == 0)
        return -EINVAL;
    *ret_index = (uint32_t)index;
    *ret_token = dash + 1;
    return 0;
}

int store_path(struct store *s, const char *id, const char *file, char *out, size_t size,
               struct err *err)
{
    uint32_t index;
    const char *token;

    if (id_parse(id, &index, &token) < 0)
        return err_set(err, -EINVAL, "'%.64s' is not the id of a local instance", id);
    if (str_format(out, size, "%s/instances/%s%s%s", s->dir, id, file[0] ? "/" : "", file) < 0)
        return err_set(err, -ENAMETOOLONG, "registry directory %.64s...: name too long", s->dir);
    return 0;
}

/* An error is not an answer: what cannot be looked at may well be there. */
static int store_has(struct store *s, const char *id, const char *file, bool *ret, struct err *err)
{
    char path[PATH_MAX];
    int r = store_path(s, id, file, path, sizeof(path), err);

    if (r < 0)
        return r;
    *ret = access(path, F_OK) == 0;
    return !*ret && errno != ENOENT ? err_errno(err, -errno, "examining %s", path) : 0;
}

/* ---- opening ---- */

int store_open(const char *dir, struct store **ret, struct err *err)
{
    static const char *const subs[] = {"", "/instances", "/new", "/old"};
    _cleanup_(store_closep) struct store *s = xcalloc(1, sizeof(*s));

    s->dir = xstrdup(dir);
    for (size_t i = 0; i < ARRAY_SIZE(subs); i++) {
        char path[PATH_MAX];
        int r = str_format(path, sizeof(path), "%s%s", dir, subs[i]);
        if (r < 0)
            return err_set(err, r, "registry directory %.64s...: name too long", dir);
        r = fs_private_dir(path, err);
        if (r < 0)
            return err_wrap(err, r, "registry of the local provider");
    }
    *ret = TAKE_PTR(s);
    return 0;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    free(s->dir);
    free(s);
}

/* ---- locks ---- */

/* Without a job: an undoing, which nobody may cut short but which must end. */
static int wait_a_little(struct job *job, int64_t began)
{
    if (job)
        return job_sleep(job, LOCK_POLL_MS);
    usleep(LOCK_POLL_MS * 1000);
    return clock_mono_ms() - began < STORE_UNDO_MS ? 0 : -ETIMEDOUT;
}

/* Polls: a job must hear its cancel, and the holders are quick (the slowest makes a VM: 30 ms). */
static int lock_fd(struct job *job, int fd, const char *what, struct err *err)
{
    int64_t began = clock_mono_ms();

    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EWOULDBLOCK)
            return err_errno(err, -errno, "locking %s", what);
        int r = wait_a_little(job, began);
        if (r < 0)
            return err_errno(err, r, "waiting for the lock of %s", what);
    }
    return 0;
}

static int lock_registry(struct store *s, struct job *job, int *ret, struct err *err)
{
    char path[PATH_MAX];
    int r = str_format(path, sizeof(path), "%s/lock", s->dir);

    if (r < 0)
        return err_set(err, r, "registry directory: name too long");
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, -errno, "opening %s", path);
    r = lock_fd(job, fd, s->dir, err);
    if (r < 0)
        return r;
    *ret = TAKE_FD(fd);
    return 0;
}

int store_lock(struct store *s, struct job *job, const char *id, int *ret_lock, struct err *err)
{
    char path[PATH_MAX];
    int r = store_path(s, id, "lock", path, sizeof(path), err);

    while (r == 0) {
        struct stat here, there;
        _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            return errno == ENOENT ? -ENOENT : err_errno(err, -errno, "opening %s", path);
        r = lock_fd(job, fd, id, err);
        if (r < 0)
            return r;
        /* While we waited, the instance may have gone, or gone and come again. */
        if (stat(path, &there) < 0)
            return errno == ENOENT ? -ENOENT : err_errno(err, -errno, "examining %s", path);
        if (fstat(fd, &here) == 0 && here.st_ino == there.st_ino && here.st_dev == there.st_dev) {
            *ret_lock = TAKE_FD(fd);
            return 0;
        }
    }
    return r;
}

/* ---- records ---- */

void store_record_done(struct store_record *r)
{
    for (size_t i = 0; i < r->n_tags; i++) {
        free(r->tags[i][0]);
        free(r->tags[i][1]);
    }
    r->n_tags = 0;
}

static int record_write(const char *dir, const struct store_record *rec,
                        const struct instance_request *request, struct err *err)
{
    _cleanup_(json_putp) struct json_object *o = json_object_new_object();
    struct json_object *tags = json_object_new_object();
    char path[PATH_MAX];

    json_add_i64(o, "version", RECORD_VERSION);
    json_add_string(o, "id", rec->id);
    json_add_string(o, "name", request->name);
    for (const struct tag *t = request->tags; t && t->key; t++)
        json_add_string(tags, t->key, t->value);
    json_object_object_add(o, "tags", tags);
    const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
    int r = str_format(path, sizeof(path), "%s/record.json", dir);
    if (r < 0)
        return err_set(err, r, "registry directory: name too long");
    if (strlen(text) > RECORD_MAX)
        return err_set(err, -E2BIG, "the tags of %s are over %u bytes", request->name, RECORD_MAX);
    return fs_write_atomic(AT_FDCWD, path, text, strlen(text), 0600, err);
}

static int record_parse(struct json_object *o, struct store_record *rec, struct err *err)
{
    struct json_object *tags = NULL;
    const char *name = NULL;
    int64_t version = 0;

    if (json_get_i64(o, "version", &version, NULL) < 0 || version != RECORD_VERSION)
        return err_set(err, -EPROTONOSUPPORT, "record of version %lld, this program reads %d",
                       (long long)version, RECORD_VERSION);
    if (json_get_string(o, "name", &name, NULL) < 0 || json_get_object(o, "tags", &tags, NULL) < 0)
        return err_set(err, -EBADMSG, "name or tags are missing");
    if (str_format(rec->name, sizeof(rec->name), "%s", name) < 0)
        return err_set(err, -EBADMSG, "the name is too long");
    json_object_object_foreach(tags, key, value)
    {
        if (rec->n_tags == INSTANCE_TAGS_MAX)
            return err_set(err, -E2BIG, "over %d tags", INSTANCE_TAGS_MAX);
        rec->tags[rec->n_tags][0] = xstrdup(key);
        rec->tags[rec->n_tags++][1] = xstrdup(json_object_get_string(value));
    }
    return 0;
}

int store_get(struct store *s, const char *id, struct store_record *ret, struct err *err)
{
    _cleanup_(json_putp) struct json_object *o = NULL;
    _cleanup_free_ char *text = NULL;
    struct store_record rec = {0};
    struct err e = ERR_INIT;
    const char *token;
    char path[PATH_MAX];
    size_t len;
    int r = store_path(s, id, "record.json", path, sizeof(path), err);

    if (r < 0)
        return r;
    r = fs_read(AT_FDCWD, path, RECORD_MAX, &text, &len, &e);
    if (r == -ENOENT)
        return r;
    if (r == 0)
        r = json_parse(text, len, &o, &e);
    if (r == 0)
        r = record_parse(o, &rec, &e);
    if (r < 0) {
        store_record_done(&rec);
        return err_set(err, r, "%s: %s", path, e.text);
    }
    (void)id_parse(id, &rec.index, &token);
    memcpy(rec.token, token, sizeof(rec.token));
    (void)str_format(rec.id, sizeof(rec.id), "%s", id);
    *ret = rec;
    return 0;
}

int store_ids(struct store *s, char ***ret, struct err *err)
{
    _cleanup_(strv_freep) char **ids = xcalloc(1, sizeof(*ids));
    char path[PATH_MAX];
    size_t n = 0;
    int r = str_format(path, sizeof(path), "%s/instances", s->dir);
    DIR *dir = r < 0 ? NULL : opendir(path);
    struct dirent *e;

    if (!dir)
        return err_errno(err, r < 0 ? r : -errno, "reading %s/instances", s->dir);
    while ((e = readdir(dir)) && n < INSTANCES_MAX) {
        uint32_t index;
        const char *token;
        if (id_parse(e->d_name, &index, &token) < 0)
            continue;
        ids = xrealloc(ids, (n + 2) * sizeof(*ids));
        ids[n++] = xstrdup(e->d_name);
        ids[n] = NULL;
    }
    closedir(dir);
    *ret = TAKE_PTR(ids);
    return 0;
}

/* ---- allocation ---- */

/* Leftovers of dead processes; the registry's lock is held. */
static int sweep(struct store *s, const char *sub, struct err *err)
{
    char path[PATH_MAX];
    int r = str_format(path, sizeof(path), "%s/%s", s->dir, sub);
    DIR *dir = r < 0 ? NULL : opendir(path);
    struct dirent *e;

    if (!dir)
        return err_errno(err, r < 0 ? r : -errno, "reading %s/%s", s->dir, sub);
    while (r == 0 && (e = readdir(dir)))
        if (!str_eq(e->d_name, ".") && !str_eq(e->d_name, ".."))
            r = fs_remove_tree(dirfd(dir), e->d_name, err);
    closedir(dir);
    return r;
}

void store_tidy(struct store *s)
{
    char path[PATH_MAX];

    if (str_format(path, sizeof(path), "%s/lock", s->dir) < 0)
        return;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return;
    (void)sweep(s, "new", NULL);
    (void)sweep(s, "old", NULL);
}

struct search {
    const char *token;
    unsigned char used[LOCAL_INDEX_MAX / 8 + 1];
    char found[LOCAL_ID_SIZE];
};

static int search_ids(struct store *s, struct search *q, struct err *err)
{
    _cleanup_(strv_freep) char **ids = NULL;
    int r = store_ids(s, &ids, err);

    for (char **id = ids; r == 0 && *id; id++) {
        uint32_t index;
        const char *token;
        if (id_parse(*id, &index, &token) < 0)
            continue;
        q->used[index / 8] = (unsigned char)(q->used[index / 8] | 1U << (index % 8));
        if (str_eq(token, q->token))
            (void)str_format(q->found, sizeof(q->found), "%s", *id);
    }
    return r;
}

/* Begins at a place that the token chooses: an address does not come back at once, and two
 * registries in one network namespace seldom meet. */
static int choose_index(const struct search *q, store_taken_fn *taken, void *arg, uint32_t *ret)
{
    unsigned char bytes[4];
    uint32_t start;

    if (sscanf(q->token, "%2hhx%2hhx%2hhx%2hhx", &bytes[0], &bytes[1], &bytes[2], &bytes[3]) != 4)
        return -EINVAL;
    memcpy(&start, bytes, sizeof(start));
    for (uint32_t i = 0; i < LOCAL_INDEX_MAX; i++) {
        uint32_t index = (start % LOCAL_INDEX_MAX + i) % LOCAL_INDEX_MAX + 1;
        if (!(q->used[index / 8] & 1U << (index % 8)) && !taken(index, arg)) {
            *ret = index;
            return 0;
        }
    }
    return -EADDRNOTAVAIL;
}

/* Fills new/ID and renames it: from then on the instance exists. */
static int add_new(struct store *s, const struct store_record *rec,
                   const struct instance_request *request, int *ret_lock, struct err *err)
{
    char dir[PATH_MAX], path[PATH_MAX], final[PATH_MAX];
    int r = store_path(s, rec->id, "", final, sizeof(final), err);

    if (r < 0)
        return r;
    if (str_format(dir, sizeof(dir), "%s/new/%s", s->dir, rec->id) < 0 ||
        str_format(path, sizeof(path), "%s/root", dir) < 0)
        return err_set(err, -ENAMETOOLONG, "registry directory: name too long");
    if (mkdir(dir, 0700) < 0 || mkdir(path, 0755) < 0)
        return err_errno(err, -errno, "making %s", dir);
    r = record_write(dir, rec, request, err);
    if (r < 0)
        return r;
    (void)str_format(path, sizeof(path), "%s/user-data", dir);
    r = fs_write_atomic(AT_FDCWD, path, request->user_data, request->user_data_len, 0600, err);
    if (r < 0)
        return r;
    (void)str_format(path, sizeof(path), "%s/lock", dir);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_errno(err, -errno, "making %s", path);
    if (rename(dir, final) < 0)
        return err_errno(err, -errno, "making %s", final);
    *ret_lock = TAKE_FD(fd);
    return 0;
}

/* With the registry locked. */
static int add_locked(struct store *s, const struct instance_request *request,
                      store_taken_fn *taken, void *arg, struct store_record *rec, int *ret_lock,
                      struct err *err)
{
    struct search q = {.token = request->token};
    int r = sweep(s, "new", err);

    if (r == 0)
        r = sweep(s, "old", err);
    if (r == 0)
        r = search_ids(s, &q, err);
    if (r < 0)
        return r;
    if (q.found[0]) {
        memcpy(rec->id, q.found, sizeof(rec->id));
        return 0;
    }
    r = choose_index(&q, taken, arg, &rec->index);
    if (r < 0)
        return err_set(err, r, "all %u addresses of the local provider are in use",
                       LOCAL_INDEX_MAX);
    (void)str_format(rec->id, sizeof(rec->id), "local-%u-%s", rec->index, request->token);
    r = add_new(s, rec, request, ret_lock, err);
    if (r < 0)
        (void)sweep(s, "new", NULL);
    return r;
}

static void record_fill(struct store_record *rec, const struct instance_request *request)
{
    (void)str_format(rec->name, sizeof(rec->name), "%s", request->name);
    memcpy(rec->token, request->token, sizeof(rec->token));
    for (const struct tag *t = request->tags; t && t->key && rec->n_tags < INSTANCE_TAGS_MAX; t++) {
        rec->tags[rec->n_tags][0] = xstrdup(t->key);
        rec->tags[rec->n_tags++][1] = xstrdup(t->value);
    }
}

int store_add(struct store *s, struct job *job, const struct instance_request *request,
              store_taken_fn *taken, void *arg, struct store_record *ret, int *ret_lock,
              bool *ret_new, struct err *err)
{
    if (!token_valid(request->token))
        return err_set(err, -EINVAL, "the token is not %d hex digits", LOCAL_TOKEN_LEN);
    for (;;) {
        struct store_record rec = {0};
        int lock = -1;
        {
            _cleanup_close_ int registry = -1;
            int r = lock_registry(s, job, &registry, err);
            if (r == 0)
                r = add_locked(s, request, taken, arg, &rec, &lock, err);
            if (r < 0)
                return r;
        }
        memcpy(ret->id, rec.id, sizeof(ret->id)); /* it exists, whatever fails from here on */
        *ret_new = lock >= 0;
        if (*ret_new) {
            /* Not read back: that could fail, and there is nothing to learn. */
            record_fill(&rec, request);
            *ret = rec;
            *ret_lock = lock;
            return 0;
        }
        int r = store_lock(s, job, rec.id, &lock, err);
        if (r == -ENOENT)
            continue; /* deleted since we saw it */
        if (r == 0)
            r = store_get(s, rec.id, ret, err);
        if (r < 0) {
            if (lock >= 0)
                close(lock);
            return r == -ENOENT ? err_set(err, r, "%s vanished under its lock", rec.id) : r;
        }
        *ret_lock = lock;
        return 0;
    }
}

/* ---- the VM's PID 1 ---- */

static int process_start(pid_t pid, uint64_t *ret)
{
    _cleanup_free_ char *text = NULL;
    char path[64];
    int r = str_format(path, sizeof(path), "/proc/%d/stat", pid);

    if (r == 0)
        r = fs_read(AT_FDCWD, path, 4096, &text, NULL, NULL);
    if (r < 0)
        return r == -ENOENT ? -ESRCH : r;
    return local_start_time(text, ret);
}

int store_read_init(struct store *s, const char *id, struct store_init *ret, struct err *err)
{
    _cleanup_free_ char *text = NULL, *boot = NULL;
    char path[PATH_MAX], written[FS_BOOT_ID_LEN + 1];
    unsigned long long start;
    struct err e = ERR_INIT;
    int pid, r = store_path(s, id, "init", path, sizeof(path), err);

    if (r < 0)
        return r;
    r = fs_read(AT_FDCWD, path, 256, &text, NULL, &e);
    if (r < 0)
        return r == -ENOENT ? r : err_set(err, r, "%s", e.text);
    if (sscanf(text, "%36s %d %llu", written, &pid, &start) != 3 || pid <= 1)
        return err_set(err, -EBADMSG, "%s holds no process", path);
    /* The machine's own boot id, never the one that tests set: it is about real processes. */
    r = fs_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, NULL, err);
    if (r < 0)
        return r;
    if (strncmp(boot, written, FS_BOOT_ID_LEN) != 0)
        return -ENOENT;
    *ret = (struct store_init){.pid = pid, .start = start};
    return 0;
}

int store_open_init(const struct store_init *init, int *ret)
{
    uint64_t start;
    _cleanup_close_ int fd = pidfd_open(init->pid, 0);

    if (fd < 0)
        return -errno;
    int r = process_start(init->pid, &start);
    if (r < 0)
        return r;
    if (start != init->start)
        return -ESRCH;
    *ret = TAKE_FD(fd);
    return 0;
}

/* A zombie has ended: its namespaces' processes went before it. */
static int init_alive(const struct store_init *init, bool *ret, struct err *err)
{
    _cleanup_close_ int fd = -1;
    int r = store_open_init(init, &fd);

    *ret = false;
    if (r < 0)
        return r == -ESRCH ? 0 : err_errno(err, r, "examining process %d", init->pid);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n = poll(&p, 1, 0);
    *ret = n == 0;
    return n < 0 ? err_errno(err, -errno, "examining process %d", init->pid) : 0;
}

int store_state(struct store *s, const char *id, enum store_state *ret, struct err *err)
{
    struct store_init init;
    bool deleting, ready, alive = false;
    int r = store_has(s, id, "deleting", &deleting, err);

    if (r == 0)
        r = store_has(s, id, "ready", &ready, err);
    if (r < 0)
        return r;
    *ret = deleting ? STORE_DELETING : ready ? STORE_ENDED : STORE_HALF;
    if (*ret != STORE_ENDED)
        return 0;
    r = store_read_init(s, id, &init, err);
    if (r == 0)
        r = init_alive(&init, &alive, err);
    if (alive)
        *ret = STORE_RUNNING;
    return r == -ENOENT ? 0 : r;
}

/* ---- leaving ---- */

int store_mark_deleting(struct store *s, const char *id, struct err *err)
{
    char path[PATH_MAX];
    int r = store_path(s, id, "deleting", path, sizeof(path), err);

    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? err_errno(err, -errno, "writing %s", path) : 0;
}

int store_reset(struct store *s, const char *id, struct err *err)
{
    static const char *const files[] = {"ready", "init", "init.new"};

    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char path[PATH_MAX];
        int r = store_path(s, id, files[i], path, sizeof(path), err);
        if (r < 0)
            return r;
        if (unlink(path) < 0 && errno != ENOENT)
            return err_errno(err, -errno, "removing %s", path);
    }
    return 0;
}

int store_remove(struct store *s, struct job *job, const char *id, struct err *err)
{
    char path[PATH_MAX], old[PATH_MAX];
    _cleanup_close_ int registry = -1;
    int r = store_path(s, id, "", path, sizeof(path), err);

    if (r == 0)
        r = str_format(old, sizeof(old), "%s/old/%s", s->dir, id);
    if (r == 0)
        r = lock_registry(s, job, &registry, err);
    if (r == 0)
        r = sweep(s, "old", err);
    if (r < 0)
        return r;
    if (rename(path, old) < 0 && errno != ENOENT)
        return err_errno(err, -errno, "taking %s out of the registry", id);
    return sweep(s, "old", err);
}

int store_finish_removals(struct store *s, struct job *job, struct err *err)
{
    _cleanup_close_ int registry = -1;
    int r = lock_registry(s, job, &registry, err);

    return r < 0 ? r : sweep(s, "old", err);
}
