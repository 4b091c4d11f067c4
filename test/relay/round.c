/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * We are the keeper here: the relay's ends of the sockets are ours, and every worker
 * is a fork that inherits them, makes or recovers the files, copies, and is killed. (round_keeper
 * uses the real keeper instead, and the worker accepts and stores its connections itself.) The
 * peers are a process of their own (traffic.c), so that they run while a tracer waits. All children
 * die with us.
 */
#include "relay/round.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "relay/stream.h"

#define STALL_MS 30000 /* without a byte, without a kill */

static const char *const names[] = {"a", "b"};

struct round {
    struct rig *rig;
    int fds[2];
    size_t ring;
    pid_t peers;
    uint64_t goal;     /* of report->kills */
    uint64_t progress; /* bytes when last looked at */
    int64_t moved_at;
};

static pid_t fork_child(void)
{
    pid_t parent = getpid(), pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return pid;
}

static bool failed(const struct round *r)
{
    return r->rig->report->message[0] != '\0';
}

static void fail(struct round *r, const char *what, int error)
{
    report_fail(r->rig->report, "%s: %s", what, strerror(-error));
}

/* -- set-up -- */

static void start_peers(struct round *r, int a, int b, uint64_t limit)
{
    struct traffic t = {.a = a,
                        .b = b,
                        .seed = stream_random(&r->rig->random),
                        .limit = limit,
                        .shared = r->rig->shared};

    r->peers = fork_child();
    if (r->peers == 0) {
        for (int i = 0; i < 2; i++)
            closep(&r->fds[i]);
        _exit(traffic_run(&t));
    }
    close(a);
    close(b);
}

static void begin(struct round *r, uint64_t limit)
{
    static const size_t rings[] = {RELAY_BLOCK * 2, RELAY_BLOCK * 4, RELAY_RING_DEFAULT};
    int peer[2];

    r->ring = rings[stream_below(&r->rig->random, ARRAY_SIZE(rings))];
    for (int i = 0; i < 2; i++) {
        int s[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s) < 0) {
            fail(r, "socketpair", -errno);
            return;
        }
        peer[i] = s[0];
        r->fds[i] = s[1];
    }
    r->moved_at = clock_mono_ms();
    start_peers(r, peer[0], peer[1], limit);
}

/* -- the course -- */

/* Asked all the time. Nothing moves any more: a byte was lost in a way that makes both wait. */
static bool stalled(struct round *r)
{
    uint64_t bytes = __atomic_load_n(&r->rig->shared->bytes, __ATOMIC_RELAXED);
    int64_t now = clock_mono_ms();

    report_progress(r->rig->report);
    if (bytes != r->progress) {
        r->progress = bytes;
        r->moved_at = now;
    }
    if (now - r->moved_at < STALL_MS)
        return false;
    report_fail(r->rig->report, "no byte has moved for %d s", STALL_MS / 1000);
    return true;
}

static bool given_up(void *arg)
{
    return stalled(arg);
}

static bool enough(const struct round *r)
{
    return r->rig->report->kills >= r->goal || r->rig->shared->wrong > 0;
}

static void stop_traffic(const struct round *r)
{
    __atomic_store_n(&r->rig->shared->stop, 1, __ATOMIC_RELAXED);
}

/* The status of a worker that was not killed by us. true: the round is over. */
static bool ended(struct round *r, int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    usleep(20 * 1000); /* the peers may be about to say why */
    report_fail(r->rig->report, "a worker ended with wait status %#x; the peers: %s",
                (unsigned)status,
                r->rig->shared->message[0] ? r->rig->shared->message : "no complaint");
    return true;
}

static bool wait_to_end(struct round *r, pid_t pid)
{
    int status;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (stalled(r) || r->rig->shared->wrong > 0) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return true;
        }
        usleep(500);
    }
    return ended(r, status);
}

static bool random_life(struct round *r)
{
    pid_t pid = fork_child();
    int status;

    if (pid == 0)
        worker_open(r->rig->dirfd, r->fds, r->ring, stream_random(&r->rig->random));
    if (enough(r)) {
        stop_traffic(r);
        return wait_to_end(r, pid);
    }
    usleep((useconds_t)stream_below(&r->rig->random,
                                    (uint64_t)1 << stream_below(&r->rig->random, 14)));
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    if (!WIFSIGNALED(status))
        return ended(r, status);
    r->rig->report->kills++;
    return stalled(r);
}

static bool traced_life(struct round *r, struct tracer *t)
{
    pid_t pid = fork_child();
    int status;

    if (pid == 0) {
        tracer_join();
        worker_open(r->rig->dirfd, r->fds, r->ring, stream_random(&r->rig->random));
    }
    if (enough(r)) {
        t->spare = true;
        stop_traffic(r);
    }
    if (!tracer_run(t, pid, &status))
        return ended(r, status);
    r->rig->report->kills++;
    return stalled(r);
}

/* The peers have the last word. */
static void join_peers(struct round *r)
{
    int status;

    if (failed(r))
        kill(r->peers, SIGKILL);
    waitpid(r->peers, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        report_fail(r->rig->report, "the peers ended with wait status %#x: %s", (unsigned)status,
                    r->rig->shared->message);
    r->rig->report->rounds++;
    r->rig->report->bytes = r->rig->shared->bytes;
    r->rig->report->wrong = r->rig->shared->wrong;
}

static void end(struct round *r)
{
    if (r->peers > 0)
        join_peers(r);
    for (int i = 0; i < 2; i++) {
        unlinkat(r->rig->dirfd, names[i], 0);
        closep(&r->fds[i]);
    }
}

static void init(struct round *r, struct rig *rig, uint64_t goal)
{
    *r = (struct round){.rig = rig, .goal = goal, .fds = {-1, -1}};
    rig->shared->stop = 0;
}

/* Of 2^low to 2^(low + span) bytes, each magnitude as often. */
static uint64_t some_bytes(struct rig *rig, uint64_t low, uint64_t span)
{
    return (uint64_t)1 << (low + stream_below(&rig->random, span));
}

void round_random(struct rig *rig, uint64_t kills)
{
    uint64_t goal = rig->report->kills + kills;

    while (rig->report->kills < goal && !rig->report->message[0]) {
        struct round r;
        init(&r, rig, goal);
        begin(&r, some_bytes(rig, 14, 14));
        while (!failed(&r) && !random_life(&r))
            ;
        end(&r);
    }
}

static void name_objects(struct tracer *t, const struct round *r)
{
    t->n_objects = 0;
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof(path), "%s/%s", r->rig->dir, names[i]);
        tracer_name(t, r->fds[i], "socket");
        tracer_name_path(t, path, "file");
    }
}

void round_steps(struct rig *rig, uint64_t kills)
{
    uint64_t goal = rig->report->kills + kills;
    struct tracer t = {.report = rig->report, .random = rig->random};

    while (rig->report->kills < goal && !rig->report->message[0]) {
        struct round r;
        init(&r, rig, goal);
        begin(&r, some_bytes(rig, 12, 9));
        name_objects(&t, &r);
        t.give_up = given_up;
        t.give_up_arg = &r;
        while (!failed(&r) && !traced_life(&r, &t))
            ;
        end(&r);
    }
}

/* -- under the real keeper -- */

static pid_t start_keeper(struct round *r)
{
    static const char self[] = "/proc/self/exe";
    char real[512];
    ssize_t n = readlink(self, real, sizeof(real) - 1);

    real[MAX(n, 0)] = '\0';
    pid_t pid = fork_child();
    if (pid == 0) {
        execl(r->rig->keeper, r->rig->keeper, "-log-level", "error", "-restart-min", "1ms",
              "-restart-max", "1ms", "--", real, "--worker", r->rig->dir, (char *)NULL);
        fprintf(stderr, "%s: %s\n", r->rig->keeper, strerror(errno));
        _exit(127);
    }
    return pid;
}

static int connect_to(struct round *r)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t deadline = clock_mono_ms() + STALL_MS;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", r->rig->dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if (clock_mono_ms() > deadline) {
            fail(r, "connecting to the worker", -errno);
            break;
        }
        usleep(1000);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static pid_t read_pid(int dirfd, const char *path)
{
    _cleanup_free_ char *text = NULL;
    uint64_t pid;

    if (fs_read(dirfd, path, 4096, &text, NULL, NULL) < 0)
        return 0;
    text[strcspn(text, " \n")] = '\0';
    return str_to_u64(text, INT32_MAX, &pid) < 0 ? 0 : (pid_t)pid;
}

/* The keeper's child from its birth on where the kernel tells, else once it has recovered. */
static pid_t current_child(const struct round *r, pid_t keeper)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)keeper, (int)keeper);
    pid_t pid = read_pid(AT_FDCWD, path);
    return pid || access(path, R_OK) == 0 ? pid : read_pid(r->rig->dirfd, "pid");
}

static void kill_under_keeper(struct round *r, pid_t keeper)
{
    pid_t last = 0, pid;

    while (read_pid(r->rig->dirfd, "pid") == 0 && !stalled(r))
        usleep(1000);
    while (!enough(r) && !stalled(r)) {
        pid = current_child(r, keeper);
        if (pid == 0 || pid == last) {
            usleep(50);
            continue;
        }
        usleep((useconds_t)stream_below(&r->rig->random,
                                        (uint64_t)1 << stream_below(&r->rig->random, 16)));
        if (kill(pid, SIGKILL) == 0)
            r->rig->report->kills++;
        last = pid;
    }
}

void round_keeper(struct rig *rig, uint64_t kills)
{
    struct round r;

    init(&r, rig, rig->report->kills + kills);
    r.moved_at = clock_mono_ms();
    pid_t keeper = start_keeper(&r);
    int a = connect_to(&r);
    int b = connect_to(&r);
    start_peers(&r, a, b, (uint64_t)1 << 40);
    kill_under_keeper(&r, keeper);
    stop_traffic(&r);
    wait_to_end(&r, keeper);
    end(&r);
}
