/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. `registry` holds containers, a container its processes: the first one under
 * the container's own id, exec'd ones under theirs. All of it is guarded by registry.lock; nothing
 * blocks under it. A handler that blocks takes a reference to the process and polls descriptors:
 * the pidfd for the end, pipes or the terminal's master for data.
 *
 * The rules of the real agent that callers feel: the first WaitProcess that sees the end removes
 * the process (waiters at that moment all get the status; later calls get 13 InvalidExecId); a
 * stream's end is an OK answer without data, on a terminal it is 13 with EIO; SIGTERM to a process
 * that does not handle it becomes SIGKILL; signals to a process that has ended but was not waited
 * for are fine. A duplicate CreateContainer is refused here (the real agent destroys the first
 * container), and a second StartContainer is an error (the real one wedges): tests shall see a
 * repetition, and they do in the journal.
 */
#include "container.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "jail.h"

#define READ_MAX (1U << 20)
#define CONTAINERS_MAX 1024
#define FD_HIGH 16 /* descriptors for the helper are moved above its fixed ones first */
#define KILL_WAIT_MS 5000

struct process {
    struct process *next;
    char *id;
    pid_t pid;
    int pidfd, sync;
    int in, out, error; /* our ends; a terminal: out is the master, in and error -1 */
    bool terminal;
    unsigned refs, writers; /* lock */
    bool in_closed, reaped; /* lock */
    int status;             /* lock; valid once reaped */
};

struct container {
    struct container *next;
    char *id, *root;
    bool started, pulled;
    struct process *processes;
};

static struct {
    pthread_mutex_t lock;
    struct sandbox_config config;
    struct container *containers;
    unsigned count;
    bool created;
    int ipc, uts; /* the sandbox's namespaces */
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .ipc = -1, .uts = -1};

/* -------- references and look-up -------- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void process_free(struct process *p)
{
    close_fd(&p->pidfd);
    close_fd(&p->sync);
    close_fd(&p->in);
    close_fd(&p->out);
    close_fd(&p->error);
    free(p->id);
    free(p);
}

static void process_unref(struct process *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&registry.lock);
    bool last = --p->refs == 0;
    pthread_mutex_unlock(&registry.lock);
    if (last)
        process_free(p);
}
DEFINE_CLEANUP(struct process, process_unref)

/* lock */
static struct container *container_find(const char *id)
{
    for (struct container *c = registry.containers; c; c = c->next)
        if (str_eq(c->id, id))
            return c;
    return NULL;
}

/* lock */
static struct process *process_find(const struct container *c, const char *exec_id)
{
    for (struct process *p = c->processes; p; p = p->next)
        if (str_eq(p->id, str_empty(exec_id) ? c->id : exec_id))
            return p;
    return NULL;
}

/* With a reference; NULL: the call is answered with `code` as the agent words it. */
static struct process *process_get(struct call *call, const char *id, const char *exec_id,
                                   enum ttrpc_code code)
{
    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    struct process *p = c ? process_find(c, exec_id) : NULL;
    if (p)
        p->refs++;
    pthread_mutex_unlock(&registry.lock);
    if (!c)
        call_fail(call, code, "Invalid container id");
    else if (!p)
        call_fail(call, code, "rpc status: Status { code: NOT_FOUND, message: \"InvalidExecId\" }");
    return p;
}

/* Takes p out of its container and drops the registry's reference. */
static void process_remove(const char *id, struct process *gone)
{
    bool found = false;

    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    for (struct process **p = c ? &c->processes : NULL; p && *p; p = &(*p)->next)
        if (*p == gone) {
            *p = gone->next;
            found = true;
            break;
        }
    pthread_mutex_unlock(&registry.lock);
    if (found)
        process_unref(gone);
}

/* -------- the helper -------- */

struct spawn {
    const char *mode;
    const void *request;
    size_t len;
    int a, b;           /* JAIL_FD_A, JAIL_FD_B or -1 */
    int in, out, error; /* the process's ends, or -1 */
};

static int fd_high(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, FD_HIGH);

    close(fd);
    return high < 0 ? -errno : high;
}

static int request_memfd(const void *data, size_t len)
{
    int fd = memfd_create("request", MFD_CLOEXEC);

    if (fd < 0)
        return -errno;
    if (write(fd, data, len) != (ssize_t)len) {
        close(fd);
        return -EIO;
    }
    return fd_high(fd);
}

static int spawn_now(const struct spawn *s, int request, int sync, pid_t *ret)
{
    char *const argv[] = {(char *)(uintptr_t) "test-agent", (char *)(uintptr_t) "--jail",
                          (char *)(uintptr_t)s->mode, NULL};
    const int moves[][2] = {
        {s->in, 0},           {s->out, 1},       {s->error, 2},    {request, JAIL_FD_REQUEST},
        {sync, JAIL_FD_SYNC}, {s->a, JAIL_FD_A}, {s->b, JAIL_FD_B}};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, defaults;

    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    for (size_t i = 0; i < ARRAY_SIZE(moves); i++)
        if (moves[i][0] >= 0)
            posix_spawn_file_actions_adddup2(&actions, moves[i][0], moves[i][1]);
    int r = -posix_spawn(ret, "/proc/self/exe", &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return r;
}

/* ret_sync: our end; ret_first: the helper, to be reaped by the caller. */
static int spawn_begin(const struct spawn *s, pid_t *ret_first, int *ret_sync)
{
    int pair[2];

    int request = request_memfd(s->request, s->len);
    if (request < 0)
        return request;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        int r = -errno;
        close(request);
        return r;
    }
    int theirs = fd_high(pair[1]);
    int r = theirs < 0 ? theirs : spawn_now(s, request, theirs, ret_first);
    close(request);
    if (theirs >= 0)
        close(theirs);
    if (r < 0)
        close(pair[0]);
    else
        *ret_sync = pair[0];
    return r;
}

/* One message: its kind, or a negative errno; text is NUL-terminated. */
static int spawn_message(struct call *call, int sync, char text[JAIL_MESSAGE_MAX])
{
    int r = call_wait(call, sync, POLLIN);

    if (r < 0)
        return r;
    ssize_t n = recv(sync, text, JAIL_MESSAGE_MAX - 1, 0);
    if (n <= 0)
        return -EPIPE;
    char kind = text[0];
    memmove(text, text + 1, (size_t)n - 1);
    text[n - 1] = '\0';
    return kind;
}

static void pid_take(const char *text, pid_t *ret)
{
    int64_t pid;

    if (str_to_i64(text, 1, INT32_MAX, &pid) == 0)
        *ret = (pid_t)pid;
}

/* The second process may have said its word before the first one named it. */
static void pid_find(int sync, pid_t *ret)
{
    char text[JAIL_MESSAGE_MAX + 1];
    ssize_t n;

    while (*ret == 0 && (n = recv(sync, text, JAIL_MESSAGE_MAX, MSG_DONTWAIT)) > 0) {
        text[n] = '\0';
        if (text[0] == JAIL_PID)
            pid_take(text + 1, ret);
    }
}

/*
 * Runs the helper up to "ready": 0, or negative with the reason in err. The second process's pid is
 * in *ret even after a failure, 0 if there is none.
 */
static int spawn_wait(struct call *call, pid_t first, int sync, pid_t *ret, struct err *err)
{
    char text[JAIL_MESSAGE_MAX];
    int r;

    *ret = 0;
    while ((r = spawn_message(call, sync, text)) == JAIL_PID)
        pid_take(text, ret);
    if (r < 0)
        kill(first, SIGKILL);
    waitpid(first, NULL, 0);
    pid_find(sync, ret);
    if (r == JAIL_READY && *ret > 0)
        return 0;
    if (r == JAIL_ERROR)
        return err_set(err, -EIO, "%s", text);
    if (r == -ECANCELED || r == -ETIMEDOUT)
        return r;
    return err_set(err, -EIO, "the container's process ended before it was ready");
}

/* -------- stdio -------- */

static int pipe_pair(int *ret_ours, int *ret_theirs, bool we_write)
{
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    *ret_ours = p[we_write ? 1 : 0];
    *ret_theirs = fd_high(p[we_write ? 0 : 1]);
    fcntl(*ret_ours, F_SETFL, O_NONBLOCK);
    return *ret_theirs < 0 ? *ret_theirs : 0;
}

static int stdio_pipes(struct process *p, struct spawn *s)
{
    int r = pipe_pair(&p->in, &s->in, true);

    r = r < 0 ? r : pipe_pair(&p->out, &s->out, false);
    return r < 0 ? r : pipe_pair(&p->error, &s->error, false);
}

static int stdio_terminal(struct process *p, struct spawn *s, const Grpc__Box *size)
{
    char name[64];

    p->terminal = true;
    p->out = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (p->out < 0 || unlockpt(p->out) < 0 || ptsname_r(p->out, name, sizeof name) != 0)
        return -errno;
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return -errno;
    struct winsize ws = {.ws_row = 24, .ws_col = 80};
    if (size && size->height > 0 && size->width > 0)
        ws = (struct winsize){.ws_row = (unsigned short)size->height,
                              .ws_col = (unsigned short)size->width};
    ioctl(p->out, TIOCSWINSZ, &ws);
    s->in = fd_high(slave);
    if (s->in < 0)
        return s->in;
    s->out = fcntl(s->in, F_DUPFD_CLOEXEC, FD_HIGH);
    s->error = fcntl(s->in, F_DUPFD_CLOEXEC, FD_HIGH);
    return s->out < 0 || s->error < 0 ? -EMFILE : 0;
}

static struct process *process_new(const char *id)
{
    struct process *p = xcalloc(1, sizeof *p);

    *p = (struct process){
        .id = xstrdup(id), .pidfd = -1, .sync = -1, .in = -1, .out = -1, .error = -1, .refs = 1};
    return p;
}

/* Spawns the helper with the process's stdio; on failure nothing runs any more. */
static int process_spawn(struct call *call, struct process *p, struct spawn *s,
                         const Grpc__Process *spec, struct err *err)
{
    pid_t first = 0;

    s->in = s->out = s->error = -1;
    int r = spec->terminal ? stdio_terminal(p, s, spec->console_size) : stdio_pipes(p, s);
    if (r == 0)
        r = spawn_begin(s, &first, &p->sync);
    close_fd(&s->in);
    close_fd(&s->out);
    close_fd(&s->error);
    if (r < 0)
        return err_errno(err, r, "starting a process");
    r = spawn_wait(call, first, p->sync, &p->pid, err);
    if (p->pid > 0)
        p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
    if (r < 0 && p->pid > 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    return r;
}

/* -------- sandbox -------- */

/* New ipc and uts namespaces, held by descriptors. */
static int sandbox_namespaces(struct call *call, struct err *err)
{
    const ProtobufCBinaryData *q = call_payload(call);
    struct spawn s = {.mode = "sandbox",
                      .request = q->data,
                      .len = q->len,
                      .a = -1,
                      .b = -1,
                      .in = -1,
                      .out = -1,
                      .error = -1};
    char text[JAIL_MESSAGE_MAX], path[64];
    pid_t first;
    int sync;

    int r = spawn_begin(&s, &first, &sync);
    if (r < 0)
        return err_errno(err, r, "setup persistent IPC namespace");
    r = spawn_message(call, sync, text);
    if (r == JAIL_READY) {
        if (str_format(path, sizeof path, "/proc/%d/ns/ipc", (int)first) == 0)
            registry.ipc = fd_high(open(path, O_RDONLY | O_CLOEXEC));
        if (str_format(path, sizeof path, "/proc/%d/ns/uts", (int)first) == 0)
            registry.uts = fd_high(open(path, O_RDONLY | O_CLOEXEC));
    }
    (void)send(sync, "G", 1, MSG_NOSIGNAL);
    close(sync);
    waitpid(first, NULL, 0);
    if (r == JAIL_READY)
        return registry.ipc < 0 || registry.uts < 0
                   ? err_set(err, -EIO, "setup persistent IPC namespace")
                   : 0;
    return err_set(err, -EIO, "%s", r == JAIL_ERROR ? text : "setup persistent IPC namespace");
}

/* A storage of the sandbox: the shared /dev/shm. Others mean nothing to a test. */
static int sandbox_storage(const Grpc__Storage *st, struct err *err)
{
    if (!str_eq(st->driver, "ephemeral") || !str_eq(st->fstype, "tmpfs"))
        return 0;
    if (!str_starts(st->mount_point, registry.config.run_dir))
        return err_set(err, -EINVAL, "storage %s is outside %s", st->mount_point,
                       registry.config.run_dir);
    int r = fs_mkdir_p(st->mount_point, 0755, err);
    if (r < 0)
        return r;
    if (mount("shm", st->mount_point, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777") < 0)
        return err_errno(err, -errno, "mounting storage %s", st->mount_point);
    return 0;
}

static void shm_unmount(void)
{
    _cleanup_free_ char *shm = str_asprintf("%s/sandbox/shm", registry.config.run_dir);

    umount2(shm, MNT_DETACH | UMOUNT_NOFOLLOW);
}

/* The real agent removes the whole tree, its own socket included, and makes it anew. */
static int run_dir_empty(struct err *err)
{
    shm_unmount(); /* a killed predecessor's */
    int r = fs_remove_tree(AT_FDCWD, registry.config.run_dir, err);

    return r < 0 ? r : fs_mkdir_p(registry.config.run_dir, 0755, err);
}

int sandbox_create(struct call *call, const Grpc__CreateSandboxRequest *q)
{
    struct err err = ERR_INIT;

    pthread_mutex_lock(&registry.lock);
    bool again = registry.created;
    registry.created = true;
    pthread_mutex_unlock(&registry.lock);
    int r = run_dir_empty(&err);
    if (again)
        return call_fail(call, TTRPC_INTERNAL, "a sandbox exists already");
    if (r == 0)
        r = sandbox_namespaces(call, &err);
    for (size_t i = 0; r == 0 && i < q->n_storages; i++)
        r = sandbox_storage(q->storages[i], &err);
    if (r < 0)
        return call_fail(call, TTRPC_INTERNAL, "%s", err_text(&err));
    return call_reply(call, NULL);
}

void sandbox_init(const struct sandbox_config *config)
{
    registry.config = *config;
}

/* -------- containers -------- */

/* lock. Takes nothing that a call holds. */
static void container_unlink(struct container *gone)
{
    for (struct container **c = &registry.containers; *c; c = &(*c)->next)
        if (*c == gone) {
            *c = gone->next;
            registry.count--;
            return;
        }
}

static void container_free(struct container *c)
{
    while (c->processes) {
        struct process *p = c->processes;
        c->processes = p->next;
        process_unref(p);
    }
    if (c->pulled) { /* mount points; what was mounted there only the container saw */
        _cleanup_free_ char *base = str_asprintf("%s.overlay", c->root);
        char *slash = strrchr(c->root, '/');

        rmdir(base);
        rmdir(c->root);
        if (slash && slash > c->root) {
            *slash = '\0';
            rmdir(c->root);
        }
    }
    free(c->root);
    free(c->id);
    free(c);
}

static bool is_pause(const Grpc__CreateContainerRequest *q)
{
    for (size_t i = 0; i < q->n_storages; i++)
        if (str_eq(q->storages[i]->driver, "image_guest_pull"))
            return str_eq(q->storages[i]->source, "pause");
    return false;
}

/* Reserves the id, so that a concurrent duplicate fails. NULL: answered. */
static struct container *container_reserve(struct call *call, const Grpc__CreateContainerRequest *q)
{
    const char *why;

    if (str_check_sandbox_id(q->container_id, &why) < 0 || !q->oci || !q->oci->process ||
        !q->oci->root) {
        call_fail(call, TTRPC_INTERNAL, "invalid container request");
        return NULL;
    }
    struct container *c = xcalloc(1, sizeof *c);
    c->id = xstrdup(q->container_id);
    c->root = xstrdup(q->oci->root->path);
    c->pulled = q->n_storages > 0;
    pthread_mutex_lock(&registry.lock);
    const char *refusal = !registry.created                  ? "no sandbox"
                          : container_find(c->id)            ? "container exists already"
                          : registry.count >= CONTAINERS_MAX ? "too many containers"
                                                             : NULL;
    if (!refusal) {
        c->next = registry.containers;
        registry.containers = c;
        registry.count++;
    }
    pthread_mutex_unlock(&registry.lock);
    if (!refusal)
        return c;
    container_free(c);
    call_fail(call, TTRPC_INTERNAL, "%s", refusal);
    return NULL;
}

int container_create(struct call *call, const Grpc__CreateContainerRequest *q)
{
    const ProtobufCBinaryData *raw = call_payload(call);
    struct container *c = container_reserve(call, q);
    struct err err = ERR_INIT;

    if (!c)
        return 0;
    struct process *p = process_new(c->id);
    struct spawn s = {.mode = is_pause(q) ? "pause" : "container",
                      .request = raw->data,
                      .len = raw->len,
                      .a = registry.ipc,
                      .b = registry.uts};
    int r = process_spawn(call, p, &s, q->oci->process, &err);
    pthread_mutex_lock(&registry.lock);
    if (r == 0)
        c->processes = p;
    else
        container_unlink(c);
    pthread_mutex_unlock(&registry.lock);
    if (r == 0)
        return call_reply(call, NULL);
    process_free(p);
    container_free(c);
    return err.code < 0 ? call_fail(call, TTRPC_INTERNAL, "%s", err_text(&err)) : r;
}

int container_start(struct call *call, const char *id)
{
    _cleanup_(process_unrefp) struct process *p = process_get(call, id, NULL, TTRPC_INTERNAL);

    if (!p)
        return 0;
    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    bool again = !c || c->started;
    if (c)
        c->started = true;
    pthread_mutex_unlock(&registry.lock);
    if (again)
        return call_fail(call, TTRPC_INTERNAL, "container %s is running", id);
    if (send(p->sync, "G", 1, MSG_NOSIGNAL) < 0)
        return call_fail(call, TTRPC_INTERNAL, "container %s is dead", id);
    return call_reply(call, NULL);
}

/* Adds p to its container: the registry's reference. */
static bool process_add(const char *id, struct process *p)
{
    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    bool ok = c && !process_find(c, p->id);
    if (ok) {
        p->next = c->processes;
        c->processes = p;
    }
    pthread_mutex_unlock(&registry.lock);
    return ok;
}

int container_exec(struct call *call, const Grpc__ExecProcessRequest *q)
{
    _cleanup_(process_unrefp) struct process *init =
        process_get(call, q->container_id, NULL, TTRPC_INTERNAL);
    const ProtobufCBinaryData *raw = call_payload(call);
    struct err err = ERR_INIT;

    if (!init)
        return 0;
    if (!q->process || str_empty(q->exec_id))
        return call_fail(call, TTRPC_INTERNAL, "invalid exec request");
    struct process *p = process_new(q->exec_id);
    int high = fcntl(init->pidfd, F_DUPFD_CLOEXEC, FD_HIGH);
    struct spawn s = {.mode = "exec", .request = raw->data, .len = raw->len, .a = high, .b = -1};
    int r = process_spawn(call, p, &s, q->process, &err);
    close_fd(&high);
    if (r == 0 && !process_add(q->container_id, p)) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
        r = err_set(&err, -EEXIST, "exec id %s exists already", q->exec_id);
    }
    if (r == 0)
        return call_reply(call, NULL);
    process_free(p);
    return err.code < 0 ? call_fail(call, TTRPC_INTERNAL, "%s", err_text(&err)) : r;
}

/* lock */
static void process_try_reap(struct process *p, int options)
{
    int status = 0;

    if (p->reaped || waitpid(p->pid, &status, options) != p->pid)
        return;
    p->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    p->reaped = true;
}

/* Once the pidfd says that it has ended; any number of callers. */
static int process_reap(struct process *p)
{
    pthread_mutex_lock(&registry.lock);
    process_try_reap(p, 0);
    int status = p->status;
    pthread_mutex_unlock(&registry.lock);
    return status;
}

void sandbox_reap(void)
{
    pthread_mutex_lock(&registry.lock);
    for (struct container *c = registry.containers; c; c = c->next)
        for (struct process *p = c->processes; p; p = p->next)
            process_try_reap(p, WNOHANG);
    pthread_mutex_unlock(&registry.lock);
}

static void process_kill(struct process *p, int signo)
{
    pthread_mutex_lock(&registry.lock);
    if (!p->reaped)
        kill(p->pid, signo);
    pthread_mutex_unlock(&registry.lock);
}

int container_remove(struct call *call, const char *id)
{
    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    if (c)
        container_unlink(c);
    pthread_mutex_unlock(&registry.lock);
    if (!c)
        return call_fail(call, TTRPC_INTERNAL, "Invalid container id");
    /* Killing process 1 of the pid namespace ends all of them; nobody else finds them any more. */
    for (struct process *p = c->processes; p; p = p->next)
        process_kill(p, SIGKILL);
    for (struct process *p = c->processes; p; p = p->next) {
        struct pollfd poll_end = {.fd = p->pidfd, .events = POLLIN};

        if (poll(&poll_end, 1, KILL_WAIT_MS) == 1)
            process_reap(p);
        else
            log_error("process %d survives SIGKILL", (int)p->pid);
    }
    container_free(c);
    return call_reply(call, NULL);
}

void sandbox_done(void)
{
    for (;;) {
        pthread_mutex_lock(&registry.lock);
        struct container *c = registry.containers;
        if (c)
            container_unlink(c);
        pthread_mutex_unlock(&registry.lock);
        if (!c)
            break;
        for (struct process *p = c->processes; p; p = p->next) {
            process_kill(p, SIGKILL);
            process_reap(p);
        }
        container_free(c);
    }
    shm_unmount();
    close_fd(&registry.ipc);
    close_fd(&registry.uts);
}

int container_pids(const char *id, pid_t *ret_pid, unsigned *ret_count)
{
    int r = -ENOENT;

    pthread_mutex_lock(&registry.lock);
    struct container *c = container_find(id);
    struct process *p = c ? process_find(c, NULL) : NULL;
    if (p) {
        *ret_pid = p->pid;
        *ret_count = 0;
        for (p = c->processes; p; p = p->next)
            ++*ret_count;
        r = 0;
    }
    pthread_mutex_unlock(&registry.lock);
    return r;
}

/* -------- processes -------- */

static bool handles_signal(pid_t pid, int signo)
{
    char path[64];
    _cleanup_free_ char *text = NULL;

    if (str_format(path, sizeof path, "/proc/%d/status", (int)pid) < 0 ||
        fs_read(AT_FDCWD, path, 16384, &text, NULL, NULL) < 0)
        return true;
    const char *line = strstr(text, "\nSigCgt:");
    uint64_t mask = line ? strtoull(line + strlen("\nSigCgt:"), NULL, 16) : 0;
    return mask >> (signo - 1) & 1;
}

int process_signal(struct call *call, const char *id, const char *exec_id, int signo)
{
    _cleanup_(process_unrefp) struct process *p = process_get(call, id, exec_id, TTRPC_INTERNAL);

    if (!p)
        return 0;
    if (signo < 1 || signo > 64)
        return call_fail(call, TTRPC_INTERNAL, "invalid signal %d", signo);
    if (signo == SIGTERM && !handles_signal(p->pid, SIGTERM))
        signo = SIGKILL;
    process_kill(p, signo);
    return call_reply(call, NULL);
}

int process_wait(struct call *call, const char *id, const char *exec_id)
{
    Grpc__WaitProcessResponse reply = GRPC__WAIT_PROCESS_RESPONSE__INIT;
    _cleanup_(process_unrefp) struct process *p = process_get(call, id, exec_id, TTRPC_INTERNAL);

    if (!p)
        return 0;
    int r = call_wait(call, p->pidfd, POLLIN);
    if (r < 0)
        return r;
    reply.status = process_reap(p);
    process_remove(id, p);
    return call_reply(call, &reply.base);
}

int process_read(struct call *call, const Grpc__ReadStreamRequest *q, int stream)
{
    Grpc__ReadStreamResponse reply = GRPC__READ_STREAM_RESPONSE__INIT;
    _cleanup_(process_unrefp) struct process *p =
        process_get(call, q->container_id, q->exec_id, TTRPC_INTERNAL);
    size_t len = MIN(q->len, READ_MAX);
    ssize_t n;

    if (!p)
        return 0;
    int fd = stream == 1 ? p->out : p->error;
    if (fd < 0)
        return call_fail(call, TTRPC_INTERNAL, "Unable to determine stream reader, is None");
    _cleanup_free_ uint8_t *data = xcalloc(1, len + 1);
    do {
        int r = call_wait(call, fd, POLLIN);
        if (r < 0)
            return r;
        n = read(fd, data, len);
    } while (n < 0 && (errno == EAGAIN || errno == EINTR)); /* another reader was faster */
    if (n < 0)
        return call_fail(call, TTRPC_INTERNAL, "%s (os error %d)",
                         errno == EIO ? "Input/output error" : strerror(errno), errno);
    reply.data = (ProtobufCBinaryData){.len = (size_t)n, .data = data};
    return call_reply(call, &reply.base);
}

/* lock: the pipe goes when it is closed and nobody writes to it. */
static void stdin_settle(struct process *p)
{
    if (p->in_closed && p->writers == 0)
        close_fd(&p->in);
}

static int stdin_begin(struct process *p)
{
    pthread_mutex_lock(&registry.lock);
    int fd = p->in_closed ? -1 : p->terminal ? p->out : p->in;
    if (fd >= 0)
        p->writers++;
    pthread_mutex_unlock(&registry.lock);
    return fd;
}

static void stdin_end(struct process *p)
{
    pthread_mutex_lock(&registry.lock);
    p->writers--;
    stdin_settle(p);
    pthread_mutex_unlock(&registry.lock);
}

static int stdin_write(struct call *call, int fd, const ProtobufCBinaryData *data)
{
    for (size_t done = 0; done < data->len;) {
        int r = call_wait(call, fd, POLLOUT);

        if (r < 0)
            return r;
        ssize_t n = write(fd, data->data + done, data->len - done);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

int process_write(struct call *call, const Grpc__WriteStreamRequest *q)
{
    Grpc__WriteStreamResponse reply = GRPC__WRITE_STREAM_RESPONSE__INIT;
    _cleanup_(process_unrefp) struct process *p =
        process_get(call, q->container_id, q->exec_id, TTRPC_INTERNAL);

    if (!p)
        return 0;
    int fd = stdin_begin(p);
    if (fd < 0)
        return call_fail(call, TTRPC_INTERNAL, "Bad file descriptor (os error 9)");
    int r = stdin_write(call, fd, &q->data);
    stdin_end(p);
    if (r == -ECANCELED || r == -ETIMEDOUT)
        return r;
    if (r < 0)
        return call_fail(call, TTRPC_INTERNAL, "%s (os error %d)", strerror(-r), -r);
    reply.len = (uint32_t)q->data.len;
    return call_reply(call, &reply.base);
}

int process_close_stdin(struct call *call, const char *id, const char *exec_id)
{
    _cleanup_(process_unrefp) struct process *p =
        process_get(call, id, exec_id, TTRPC_INVALID_ARGUMENT);

    if (!p)
        return 0;
    pthread_mutex_lock(&registry.lock);
    p->in_closed = true;
    stdin_settle(p);
    pthread_mutex_unlock(&registry.lock);
    return call_reply(call, NULL);
}

int process_resize(struct call *call, const Grpc__TtyWinResizeRequest *q)
{
    _cleanup_(process_unrefp) struct process *p =
        process_get(call, q->container_id, q->exec_id, TTRPC_INVALID_ARGUMENT);
    struct winsize ws = {.ws_row = (unsigned short)q->row, .ws_col = (unsigned short)q->column};

    if (!p)
        return 0;
    if (!p->terminal)
        return call_fail(call, TTRPC_UNAVAILABLE, "no tty");
    if (ioctl(p->out, TIOCSWINSZ, &ws) < 0)
        return call_fail(call, TTRPC_INTERNAL, "TIOCSWINSZ: %s", strerror(errno));
    return call_reply(call, NULL);
}
