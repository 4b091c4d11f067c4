/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reset is what `ss -K` does: the kernel's SOCK_DESTROY on the daemon's end, which fails with
 * ECONNABORTED, while the forwarder's gets a RST. It counts when there was a connection to reset. A
 * kill counts when there was a forwarder, other than the last one that was killed.
 */
#include "blackout/faults.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"

#define PORT 15150
#define FOUND_MAX 16
#define GROWN_MS 300
#define LIVE_STATES ((1U << TCP_ESTABLISHED) | (1U << TCP_SYN_SENT) | (1U << TCP_CLOSE_WAIT))

static struct {
    struct faults_plan plan;
    struct faults done;
    unsigned seed;
    bool stop;
    pthread_t thread;
} now;

struct diag_request {
    struct nlmsghdr h;
    struct inet_diag_req_v2 r;
};

static int diag_send(int fd, uint16_t type, uint16_t flags, const struct inet_diag_sockid *id)
{
    struct diag_request q = {
        .h = {.nlmsg_len = sizeof(q),
              .nlmsg_type = type,
              .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)},
        .r = {.sdiag_family = AF_INET, .sdiag_protocol = IPPROTO_TCP, .idiag_states = LIVE_STATES},
    };
    if (id)
        q.r.id = *id;
    return send(fd, &q, sizeof(q), 0) < 0 ? -errno : 0;
}

/* The sockets towards a forwarder's port. */
static size_t find_sockets(int fd, struct inet_diag_sockid ret[FOUND_MAX])
{
    static char reply[32768];
    size_t n = 0;
    if (diag_send(fd, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, NULL) < 0)
        return 0;
    for (;;) {
        ssize_t got = recv(fd, reply, sizeof(reply), 0);
        unsigned left = got > 0 ? (unsigned)got : 0;
        if (left == 0)
            return n;
        for (struct nlmsghdr *h = (struct nlmsghdr *)(void *)reply; NLMSG_OK(h, left);
             h = NLMSG_NEXT(h, left)) {
            const struct inet_diag_msg *m = NLMSG_DATA(h);
            if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR)
                return n;
            if (ntohs(m->id.idiag_dport) == PORT && n < FOUND_MAX)
                ret[n++] = m->id;
        }
    }
}

static uint64_t reset_all(void)
{
    struct inet_diag_sockid ids[FOUND_MAX];
    uint64_t done = 0;
    _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0)
        return 0;
    for (size_t i = find_sockets(fd, ids); i-- > 0;) {
        struct {
            struct nlmsghdr h;
            struct nlmsgerr e;
            char more[256];
        } ack = {.e.error = -1};
        if (diag_send(fd, SOCK_DESTROY, NLM_F_ACK, &ids[i]) == 0 &&
            recv(fd, &ack, sizeof(ack), 0) > 0 && ack.e.error == 0)
            done++;
    }
    return done;
}

/* A connection that was not there before: when is its reset? So handshakes, hellos and
 * resumes are hit at each of their steps. */
static int64_t watch_young(void)
{
    static uint16_t last;
    struct inet_diag_sockid ids[FOUND_MAX];
    _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0 || find_sockets(fd, ids) == 0 || ids[0].idiag_sport == last)
        return INT64_MAX;
    last = ids[0].idiag_sport;
    int limit_ms = rand_r(&now.seed) % 3 == 0 ? GROWN_MS : now.plan.young_ms;
    return clock_mono_us() + (int64_t)rand_r(&now.seed) % (1000 * limit_ms);
}

static int64_t next_at(int min_ms, int max_ms)
{
    if (max_ms == 0)
        return INT64_MAX;
    return clock_mono_us() + 1000 * min_ms +
           (int64_t)rand_r(&now.seed) % (1000 * (max_ms - min_ms) + 1);
}

static void *run(void *arg _unused_)
{
    int64_t reset_at = next_at(now.plan.reset_min_ms, now.plan.reset_max_ms);
    int64_t kill_at = next_at(now.plan.kill_min_ms, now.plan.kill_max_ms);
    pid_t killed = 0;
    while (!__atomic_load_n(&now.stop, __ATOMIC_RELAXED)) {
        usleep(now.plan.young_ms ? 100 : 500);
        if (now.plan.young_ms && reset_at == INT64_MAX)
            reset_at = watch_young();
        if (clock_mono_us() >= reset_at) {
            now.done.resets += reset_all();
            reset_at = next_at(now.plan.reset_min_ms, now.plan.reset_max_ms);
        }
        if (clock_mono_us() >= kill_at) {
            pid_t pid = world_pid("agent-protocol-forwarder");
            if (pid > 0 && pid != killed && kill(pid, SIGKILL) == 0) {
                now.done.kills++;
                killed = pid;
            }
            kill_at = next_at(now.plan.kill_min_ms, now.plan.kill_max_ms);
        }
    }
    return NULL;
}

void faults_start(const struct faults_plan *plan, unsigned seed)
{
    now.plan = *plan;
    now.seed = seed;
    now.done = (struct faults){0};
    now.stop = false;
    pthread_create(&now.thread, NULL, run, NULL);
}

void faults_stop(struct faults *ret)
{
    __atomic_store_n(&now.stop, true, __ATOMIC_RELAXED);
    pthread_join(now.thread, NULL);
    ret->resets += now.done.resets;
    ret->kills += now.done.kills;
}

int faults_blackhole(const struct world *w, bool on, struct err *err)
{
    static const char drop[] =
        "add table inet blackhole; "
        "add chain inet blackhole in { type filter hook input priority 0; }; "
        "add chain inet blackhole out { type filter hook output priority 0; }; "
        "add rule inet blackhole in tcp sport 15150 drop; "
        "add rule inet blackhole out tcp dport 15150 drop";
    const char *argv[] = {"/usr/sbin/nft", on ? drop : "delete table inet blackhole", NULL};
    pid_t pid;
    int status = 0, r = world_spawn(w, 0, argv, &pid, err);
    if (r < 0)
        return r;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0 ? 0 : err_set(err, -EIO, "nft failed (Debian: nftables)");
}
