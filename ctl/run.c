/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `run`: one pod from the shim's side of the sockets.
 *
 * Theory of operation. The main thread walks a table of steps upwards (network, CreateVM, ...,
 * StartContainer), runs the command, and then walks the teardown, which undoes whatever of it was
 * reached and goes on whatever fails. Beside it stand the threads that a shim has: GetOOMEvent,
 * WaitProcess of the pause container, Check every 5 s (a failure ends the connection, as the Go
 * shim does it), the streams of the command. All of them end when the agent's connection ends.
 *
 * The signal thread is the only one that gets signals. What ^C means depends on `phase`:
 *   VM        StopVM at once, on a connection of its own: the call in flight fails
 *   AGENT     the steps end after the one under way; the second time the connection is cut
 *   COMMAND   SIGTERM to the command (the agent makes that SIGKILL where it is not handled), then
 *             SIGKILL, then the connection is cut
 *   STOPPING  patience; the third time the program ends and says what is left
 *
 * With --keep the whole runs in a child, which stays as the pod's shim: a pod whose shim goes away
 * is deleted by the daemon. The first process only waits for the command's exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "ctl/ctl.h"
#include "ctl/podnet.h"
#include "ctl/shim.h"
#include "ctl/stdio.h"
#include "ctl/terminal.h"
#include "ctl/timeline.h"

#define RESOLV_MAX (64U << 10)
#define INITDATA_MAX (1U << 20)
#define DIAL_TIMEOUT_MS 30000 /* the shim's dial_timeout */
#define DIAL_PAUSE_MS 100
#define CHECK_EVERY_MS 5000
#define TICK_MS 1000
#define ARGS_MAX 4096
#define BACKGROUND_MAX 4
#define SIGNAL_END SIGUSR1 /* to the signal thread: no more signals */

enum phase { PHASE_VM, PHASE_AGENT, PHASE_COMMAND, PHASE_STOPPING };

struct config {
    char *socket, *control, *name, *namespace, *image, *initdata, *output;
    char **annotations;
    int64_t timeout_ns;
    bool keep, interactive, tty, both, quiet, help;
};

struct run {
    struct config config;
    char *const *args;
    struct timeline timeline;
    char id[SANDBOX_ID_MAX + 1], container[SANDBOX_ID_MAX + 1], netns[64];
    char *agent_path, *initdata, *resolv, *agent_version;
    struct shim_vm vm;
    struct ttrpc_client *agent;
    bool has_netns, has_vm, has_sandbox, has_pause, has_container;
    int exit_status;

    pthread_mutex_t lock;
    enum phase phase; /* lock */
    unsigned signals; /* lock: INT, TERM, HUP so far in this phase */
    bool interrupted; /* lock */
    struct err lost;  /* lock: why the agent's connection was cut by us */
    int ending;       /* eventfd: the background threads shall end */
    pthread_t signal_thread, background[BACKGROUND_MAX];
    size_t n_background;
    int keep_fd; /* --keep: where the first process waits for the status; -1 */
};

static const char *const outputs[] = {"table", "json", NULL};
static const struct opt options[] = {
    {.flag = "keep",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, keep),
     .help = "leave the pod running in the background when the command has ended"},
    {.flag = "it",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, both),
     .help = "both -i and -t"},
    {.flag = "i",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, interactive),
     .help = "pass our standard input to the command"},
    {.flag = "t",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, tty),
     .help = "give the command a terminal"},
    {.flag = "name",
     .offset = offsetof(struct config, name),
     .def = "peerpodctl-run",
     .help = "the pod's name"},
    {.flag = "namespace",
     .offset = offsetof(struct config, namespace),
     .def = "default",
     .help = "the pod's Kubernetes namespace"},
    {.flag = "image",
     .offset = offsetof(struct config, image),
     .def = "docker.io/library/busybox:latest",
     .help = "container image (the local provider's agent knows one: this machine's root)"},
    {.flag = "annotation",
     .type = OPT_MAP,
     .offset = offsetof(struct config, annotations),
     .help = "annotations for CreateVM beside the usual nine, or instead of one of them"},
    {.flag = "initdata",
     .offset = offsetof(struct config, initdata),
     .help = "file with the pod's initdata (TOML)"},
    {.flag = "timeout",
     .type = OPT_DURATION,
     .flags = OPT_POSITIVE,
     .offset = offsetof(struct config, timeout_ns),
     .def = "10m",
     .help = "limit for StartVM"},
    {.flag = "o",
     .offset = offsetof(struct config, output),
     .def = "table",
     .choices = outputs,
     .help = "form of the timeline on standard error"},
    {.flag = "quiet",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, quiet),
     .help = "no progress lines and no timeline"},
    {.flag = "socket",
     .offset = offsetof(struct config, socket),
     .def = CTL_HYPERVISOR_SOCKET,
     .help = "the daemon's socket for shims"},
    {.flag = "control-socket",
     .offset = offsetof(struct config, control),
     .def = CTL_CONTROL_SOCKET,
     .help = "the daemon's control socket, for the hints of --keep"},
    {.flag = "help",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, help),
     .help = "this text"},
    OPT_END,
};

/* -------- phases and signals -------- */

static void phase_set(struct run *r, enum phase phase)
{
    pthread_mutex_lock(&r->lock);
    r->phase = phase;
    r->signals = 0;
    pthread_mutex_unlock(&r->lock);
}

static bool is_interrupted(struct run *r)
{
    pthread_mutex_lock(&r->lock);
    bool ret = r->interrupted;
    pthread_mutex_unlock(&r->lock);
    return ret;
}

static void cut(struct run *r, const char *why)
{
    pthread_mutex_lock(&r->lock);
    if (r->lost.code == 0)
        err_set(&r->lost, -ECONNABORTED, "%s", why);
    pthread_mutex_unlock(&r->lock);
    if (r->agent)
        ttrpc_client_shutdown(r->agent);
}

static void give_up(const struct run *r)
{
    terminal_restore();
    fprintf(stderr, "peerpodctl: giving up; may be left: sandbox %s, network namespace %s\n", r->id,
            r->netns);
    _exit(130);
}

static void on_interrupt(struct run *r)
{
    struct err err = ERR_INIT;

    pthread_mutex_lock(&r->lock);
    enum phase phase = r->phase;
    unsigned nth = ++r->signals;
    r->interrupted = true;
    pthread_mutex_unlock(&r->lock);
    if (phase == PHASE_VM && nth == 1)
        (void)shim_stop_vm(&r->vm, &err);
    else if (phase == PHASE_VM || (phase == PHASE_STOPPING && nth >= 3))
        give_up(r);
    else if (phase == PHASE_COMMAND && nth <= 2)
        (void)shim_signal(r->agent, r->container, nth == 1 ? SIGTERM : SIGKILL, &err);
    else if (phase == PHASE_COMMAND || (phase == PHASE_AGENT && nth >= 2))
        cut(r, "interrupted");
    else
        fputs("peerpodctl: stopping\n", stderr);
}

static void on_resize(struct run *r)
{
    unsigned short rows, columns;
    struct err err = ERR_INIT;

    pthread_mutex_lock(&r->lock);
    bool running = r->phase == PHASE_COMMAND && r->config.tty;
    pthread_mutex_unlock(&r->lock);
    if (running && terminal_size(&rows, &columns))
        (void)shim_resize(r->agent, r->container, rows, columns, &err);
}

static void signals_of_interest(sigset_t *set)
{
    static const int wanted[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGNAL_END};

    sigemptyset(set);
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
        sigaddset(set, wanted[i]);
}

static void *signal_main(void *arg)
{
    const struct timespec tick = {.tv_sec = TICK_MS / 1000};
    struct run *r = arg;
    sigset_t set;

    signals_of_interest(&set);
    for (;;) {
        int signo = sigtimedwait(&set, NULL, &tick);

        if (signo == SIGNAL_END)
            return NULL;
        if (signo == SIGWINCH)
            on_resize(r);
        else if (signo > 0)
            on_interrupt(r);
        else
            timeline_tick(&r->timeline);
    }
}

/* -------- what a shim does all the time -------- */

static void *oom_main(void *arg)
{
    struct run *r = arg;

    for (;;) {
        _cleanup_free_ char *container = NULL;
        struct err err = ERR_INIT;

        if (shim_oom_event(r->agent, &container, &err) < 0)
            return NULL;
        fprintf(stderr, "peerpodctl: container %.64s ran out of memory\n", container);
    }
}

static void *pause_main(void *arg)
{
    struct run *r = arg;
    struct err err = ERR_INIT;
    int status;

    (void)shim_wait(r->agent, r->id, &status, &err);
    return NULL;
}

static void *monitor_main(void *arg)
{
    struct run *r = arg;
    struct pollfd p = {.fd = r->ending, .events = POLLIN};

    while (poll(&p, 1, CHECK_EVERY_MS) == 0) {
        struct err err = ERR_INIT;

        if (shim_check(r->agent, &err) == 0)
            continue;
        err_wrap(&err, err.code, "the pod is dead");
        cut(r, err_text(&err));
        break;
    }
    return NULL;
}

static int background_start(struct run *r, void *(*main_fn)(void *), struct err *err)
{
    int e = pthread_create(&r->background[r->n_background], NULL, main_fn, r);

    if (e != 0)
        return err_errno(err, -e, "no thread");
    r->n_background++;
    return 0;
}

/* -------- the steps -------- */

static int step_netns(struct run *r, struct err *err)
{
    int e = podnet_create(r->netns, err);

    r->has_netns = e == 0;
    return e;
}

static int step_create_vm(struct run *r, struct err *err)
{
    phase_set(r, PHASE_VM);
    r->has_vm = true; /* from now on a StopVM does no harm */
    return shim_create_vm(&r->vm, &r->agent_path, err);
}

static int step_start_vm(struct run *r, struct err *err)
{
    return shim_start_vm(&r->vm, r->config.timeout_ns / 1000000, err);
}

static int step_dial(struct run *r, struct err *err)
{
    int64_t end = clock_mono_ms() + DIAL_TIMEOUT_MS;

    phase_set(r, PHASE_AGENT);
    for (;;) {
        struct err last = ERR_INIT;
        struct ttrpc_client *agent;

        if (ttrpc_client_connect(r->agent_path, DIAL_TIMEOUT_MS, &agent, &last) == 0) {
            pthread_mutex_lock(&r->lock);
            r->agent = agent;
            pthread_mutex_unlock(&r->lock);
            return 0;
        }
        if (clock_mono_ms() >= end || is_interrupted(r))
            return err_set(err, last.code, "%s", err_text(&last));
        nanosleep(&(struct timespec){.tv_nsec = DIAL_PAUSE_MS * 1000000}, NULL);
    }
}

static int step_check(struct run *r, struct err *err)
{
    return shim_check(r->agent, err);
}

static int step_create_sandbox(struct run *r, struct err *err)
{
    r->has_sandbox = true;
    return shim_create_sandbox(r->agent, r->id, r->config.name, r->resolv, err);
}

static int step_guest_details(struct run *r, struct err *err)
{
    return shim_guest_details(r->agent, &r->agent_version, err);
}

static int copy_resolv(struct run *r, const char *container, struct err *err)
{
    char path[SHIM_COPY_PATH_MAX];

    shim_copy_path(container, "resolv.conf", path);
    return shim_copy_file(r->agent, path, r->resolv, strlen(r->resolv), err);
}

static int step_copy_pause(struct run *r, struct err *err)
{
    return copy_resolv(r, r->id, err);
}

static int step_copy(struct run *r, struct err *err)
{
    return copy_resolv(r, r->container, err);
}

static int create(struct run *r, const char *id, const char *image, char *const *args,
                  bool terminal, struct err *err)
{
    static char *const env[] = {
        (char *)(uintptr_t) "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        (char *)(uintptr_t) "HOME=/root", (char *)(uintptr_t) "TERM=xterm", NULL};
    struct shim_container c = {.id = id,
                               .sandbox = r->id,
                               .pod = r->config.name,
                               .namespace = r->config.namespace,
                               .image = image,
                               .args = args,
                               .env = env,
                               .terminal = terminal};

    if (terminal)
        (void)terminal_size(&c.rows, &c.columns);
    return shim_create_container(r->agent, &c, err);
}

static int step_create_pause(struct run *r, struct err *err)
{
    static char *const args[] = {(char *)(uintptr_t) "/pause", NULL};
    int e = create(r, r->id, "pause", args, false, err);

    r->has_pause = e == 0;
    return e;
}

static int step_start_pause(struct run *r, struct err *err)
{
    int e = shim_start_container(r->agent, r->id, err);

    e = e < 0 ? e : background_start(r, oom_main, err);
    e = e < 0 ? e : background_start(r, pause_main, err);
    return e < 0 ? e : background_start(r, monitor_main, err);
}

static int step_create(struct run *r, struct err *err)
{
    int e = create(r, r->container, r->config.image, r->args, r->config.tty, err);

    r->has_container = e == 0;
    return e;
}

static int step_start(struct run *r, struct err *err)
{
    return shim_start_container(r->agent, r->container, err);
}

/* The shim waits for the streams' ends first, then for the process: the agent forgets a process
 * that was waited for, and its unread output with it. */
static int step_command(struct run *r, struct err *err)
{
    struct stdio s;

    phase_set(r, PHASE_COMMAND);
    on_resize(r);
    int e = r->config.tty && r->config.interactive ? terminal_raw(err) : 0;
    e = e < 0 ? e
              : stdio_start(&s, r->agent, r->container, r->config.tty, r->config.interactive, err);
    if (e == 0) {
        stdio_output_end(&s);
        e = shim_wait(r->agent, r->container, &r->exit_status, err);
        if (e < 0)
            ttrpc_client_shutdown(r->agent); /* the stdin thread may be inside a call */
        stdio_done(&s);
    }
    terminal_restore();
    if (e == 0 && s.err.code < 0)
        e = err_set(err, s.err.code, "%s", err_text(&s.err));
    return e;
}

static const struct step {
    const char *name;
    int (*run)(struct run *r, struct err *err);
} steps_up[] = {
    {"pod network", step_netns},
    {"CreateVM", step_create_vm},
    {"StartVM", step_start_vm},
    {"connect", step_dial},
    {"Check", step_check},
    {"CreateSandbox", step_create_sandbox},
    {"GetGuestDetails", step_guest_details},
    {"CopyFile (pause)", step_copy_pause},
    {"CreateContainer (pause)", step_create_pause},
    {"StartContainer (pause)", step_start_pause},
    {"CopyFile", step_copy},
    {"CreateContainer", step_create},
    {"StartContainer", step_start},
    {"command", step_command},
};

static int go_up(struct run *r, struct err *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(steps_up); i++) {
        if (is_interrupted(r))
            return err_set(err, -ECANCELED, "interrupted");
        timeline_begin(&r->timeline, steps_up[i].name);
        int e = timeline_end(&r->timeline, steps_up[i].run(r, err));
        if (e < 0) {
            pthread_mutex_lock(&r->lock);
            if (r->lost.code < 0 && !r->interrupted) {
                err_clear(err);
                err_set(err, r->lost.code, "%s", err_text(&r->lost));
            }
            pthread_mutex_unlock(&r->lock);
            /* Errors of calls begin with the call's name already. */
            return str_starts(err_text(err), steps_up[i].name)
                       ? e
                       : err_wrap(err, e, "%s", steps_up[i].name);
        }
    }
    return 0;
}

/* -------- the way down -------- */

static void down_container(struct run *r, const char *id, const char *step, bool *has)
{
    struct err err = ERR_INIT;
    int status;

    if (!*has)
        return;
    *has = false;
    timeline_begin(&r->timeline, step);
    (void)shim_signal(r->agent, id, SIGKILL, &err); /* it may have ended and been waited for */
    err_clear(&err);
    (void)shim_wait(r->agent, id, &status, &err);
    err_clear(&err);
    if (timeline_end(&r->timeline, shim_remove_container(r->agent, id, &err)) < 0)
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
}

static int down_sandbox(struct run *r, struct err *err)
{
    return shim_destroy_sandbox(r->agent, err);
}

static int down_vm(struct run *r, struct err *err)
{
    return shim_stop_vm(&r->vm, err);
}

static int down_netns(struct run *r, struct err *err)
{
    return podnet_delete(r->netns, err);
}

static int down_step(struct run *r, const char *name, bool has,
                     int (*run)(struct run *r, struct err *err))
{
    struct err err = ERR_INIT;
    int e = 0;

    if (!has)
        return 0;
    timeline_begin(&r->timeline, name);
    e = timeline_end(&r->timeline, run(r, &err));
    if (e < 0)
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
    return e;
}

static void background_end(struct run *r)
{
    static const uint64_t one = 1;

    if (write(r->ending, &one, sizeof one) < 0)
        abort();
    if (r->agent)
        ttrpc_client_shutdown(r->agent);
    while (r->n_background > 0)
        pthread_join(r->background[--r->n_background], NULL);
}

/* The agent's part is tried only while its connection is whole. */
static int go_down(struct run *r)
{
    phase_set(r, PHASE_STOPPING);
    pthread_mutex_lock(&r->lock);
    bool lost = r->lost.code < 0 || !r->agent;
    pthread_mutex_unlock(&r->lock);
    if (!lost) {
        down_container(r, r->container, "RemoveContainer", &r->has_container);
        down_container(r, r->id, "RemoveContainer (pause)", &r->has_pause);
        (void)down_step(r, "DestroySandbox", r->has_sandbox, down_sandbox);
    }
    int e = down_step(r, "StopVM", r->has_vm, down_vm);
    background_end(r);
    int f = down_step(r, "pod network removed", r->has_netns, down_netns);
    return e < 0 ? e : f;
}

/* -------- --keep -------- */

/* In the child: hands the status over, lets go of the terminal, and is the pod's shim until a
 * signal comes or the pod dies. */
static void keep(struct run *r)
{
    unsigned char status = (unsigned char)r->exit_status;
    bool usual = str_eq(r->config.control, CTL_CONTROL_SOCKET);

    fprintf(stderr,
            "\npeerpodctl: the pod is kept: sandbox %s, network namespace %s\n"
            "  look:  peerpodctl inspect %s%s%s%.12s\n"
            "  stop:  kill %d\n",
            r->id, r->netns, usual ? "" : "-control-socket ", usual ? "" : r->config.control,
            usual ? "" : " ", r->id, (int)getpid());
    if (!r->config.quiet)
        timeline_show(&r->timeline, str_eq(r->config.output, "json"), r->exit_status);
    fflush(stdout);
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd <= STDERR_FILENO; fd++)
        dup2(null, fd);
    if (null >= 0)
        close(null);
    if (write(r->keep_fd, &status, 1) < 0)
        cut(r, "the first process is gone");
    close(TAKE_FD(r->keep_fd));
    phase_set(r, PHASE_AGENT);
    while (!is_interrupted(r)) {
        pthread_mutex_lock(&r->lock);
        bool lost = r->lost.code < 0;
        pthread_mutex_unlock(&r->lock);
        if (lost)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
}

/* Returns in the child with *ret_fd, and in the parent with the exit status in *ret_status. */
static pid_t keep_fork(int *ret_fd, int *ret_status)
{
    unsigned char status = CTL_RUN_FAILED;
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(p[0]);
        *ret_fd = p[1];
        return 0;
    }
    close(p[1]);
    signal(SIGINT, SIG_IGN); /* the child's business */
    signal(SIGQUIT, SIG_IGN);
    ssize_t n;
    do
        n = read(p[0], &status, 1);
    while (n < 0 && errno == EINTR);
    close(p[0]);
    int wait_status;
    if (n <= 0 && child > 0 && waitpid(child, &wait_status, 0) == child && WIFEXITED(wait_status))
        status = (unsigned char)WEXITSTATUS(wait_status);
    *ret_status = status;
    return child;
}

/* -------- the whole -------- */

static int random_id(char out[SANDBOX_ID_MAX + 1])
{
    uint8_t bytes[SANDBOX_ID_MAX / 2];

    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return -EIO;
    str_hex(bytes, sizeof bytes, out);
    return 0;
}

static int run_init(struct run *r, struct err *err)
{
    pthread_mutex_init(&r->lock, NULL);
    timeline_init(&r->timeline, r->config.quiet);
    r->ending = eventfd(0, EFD_CLOEXEC);
    if (r->ending < 0 || random_id(r->id) < 0 || random_id(r->container) < 0)
        return err_errno(err, -EIO, "preparing");
    if (str_format(r->netns, sizeof r->netns, "/run/netns/peerpod-run-%.8s", r->id) < 0)
        return -ENAMETOOLONG;
    if (!str_empty(r->config.initdata) &&
        fs_read(AT_FDCWD, r->config.initdata, INITDATA_MAX, &r->initdata, NULL, err) < 0)
        return err_wrap(err, -EINVAL, "the initdata");
    if (fs_read(AT_FDCWD, "/etc/resolv.conf", RESOLV_MAX, &r->resolv, NULL, NULL) < 0)
        r->resolv = xstrdup("");
    r->vm = (struct shim_vm){.socket = r->config.socket,
                             .id = r->id,
                             .pod = r->config.name,
                             .namespace = r->config.namespace,
                             .netns = r->netns,
                             .initdata = r->initdata,
                             .annotations = r->config.annotations};
    return 0;
}

static void run_done(struct run *r)
{
    ttrpc_client_free(r->agent);
    free(r->agent_path);
    free(r->initdata);
    free(r->resolv);
    free(r->agent_version);
    if (r->ending >= 0)
        close(r->ending);
    if (r->keep_fd >= 0)
        close(r->keep_fd);
    timeline_done(&r->timeline);
    pthread_mutex_destroy(&r->lock);
}

/* Everything with signals blocked but in the signal thread. */
static int run_pod(struct run *r)
{
    struct err err = ERR_INIT;
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    signals_of_interest(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (run_init(r, &err) < 0 || pthread_create(&r->signal_thread, NULL, signal_main, r) != 0) {
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
        return CTL_RUN_FAILED;
    }
    int e = go_up(r, &err);
    if (e < 0) {
        r->exit_status = is_interrupted(r) ? 130 : CTL_RUN_FAILED;
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
    } else if (r->config.keep && !is_interrupted(r)) {
        keep(r);
    }
    int f = go_down(r);
    if (f < 0 && r->exit_status == 0)
        r->exit_status = CTL_RUN_FAILED;
    pthread_kill(r->signal_thread, SIGNAL_END);
    pthread_join(r->signal_thread, NULL);
    if (!r->config.quiet)
        timeline_show(&r->timeline, str_eq(r->config.output, "json"), r->exit_status);
    return r->exit_status;
}

static int run_checked(struct run *r)
{
    int status = CTL_RUN_FAILED;

    if (r->config.keep) {
        pid_t child = keep_fork(&r->keep_fd, &status);

        if (child < 0)
            perror("peerpodctl: fork");
        if (child != 0)
            return status;
    }
    status = run_pod(r);
    run_done(r);
    return status;
}

int ctl_run(char *const *argv)
{
    static char *const usual_args[] = {
        (char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
        (char *)(uintptr_t) "echo \"A container in a pod VM: host $(uname -n), kernel $(uname -r), "
                            "process $$\"; ip addr 2>/dev/null || cat /proc/net/dev",
        NULL};
    struct run r = {.keep_fd = -1, .ending = -1};
    struct opt_set sets[] = {{.title = "run", .opts = options, .target = &r.config}, {0}};
    _cleanup_free_ char **rest = NULL;
    int status = 0;

    if (ctl_parse(
            sets, argv, "run [--keep] [-it] [OPTIONS] [-- COMMAND [ARGUMENT...]]",
            "Runs one pod with one container through the daemon's sockets, as the kata shim\n"
            "would: create, start, run COMMAND, stop. Its output is ours, its exit status is\n"
            "ours (125: the pod could not be run). A timeline follows on standard error.",
            &r.config.help, &rest, &status) == 0) {
        r.args = rest[0] ? rest : usual_args;
        r.config.interactive |= r.config.both;
        r.config.tty |= r.config.both;
        if (strv_len(r.args) > ARGS_MAX) {
            fputs("peerpodctl: the command has too many arguments\n", stderr);
            status = CTL_USAGE;
        } else {
            status = run_checked(&r);
        }
    }
    opt_done(sets);
    return status;
}
