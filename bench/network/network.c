/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: bench_network     (root; BENCH_RUNS=9 rounds, BENCH_MTU=1500 of the underlay, BENCH_PODS=500)
 *
 * What the pod's network costs. Everything is in this program's own namespaces:
 *
 *     neighbour - cni0 on the node -+- (routed) ------- underlay - VM            direct
 *                                   +- pod ~ redirect ~ underlay - VM's podns    hand: ip and tc, typed
 *                                   +- pod ~ redirect ~ underlay - VM's podns    ours: the daemon's
 *                                                                      and the forwarder's own code
 *
 * Each way has a VM and an underlay of its own, so that nobody's queue is in another's way. The client is
 * always the neighbour, the server always in the VM; iperf3 on two processors, one each, as two machines
 * would be. The machine is never quiet: a round measures all three, for a second in each
 * direction, beginning with another one each time, and what counts are medians over the rounds.
 *
 * Set-up: of one pod, both sides after each other, many times; then of 100 and of 500 pods by eight
 * threads, the node's side (inspection and set-up), in namespaces that a CNI plugin had made before the
 * clock ran. Behind their teardown nothing may be left in any of them, nor in the node's.
 *
 * It ends by itself, in half an hour at most, and whatever ends it ends all that it started: it is PID 1
 * of a namespace of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "adaptor/podnet.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "bench/common/world.h"
#include "ctl/podnet.h"
#include "forwarder/podnet.h"
#include "net/netns.h"

#define ROUNDS_DEFAULT 9
#define ROUNDS_MAX 101
#define ROUNDS_JUDGED 5 /* fewer prove nothing: no goal is judged */
#define MTU_DEFAULT 1500
#define MTU_MIN 1280
#define MTU_MAX 9000
#define PODS_DEFAULT 500
#define PODS_FEW 100U
#define PODS_MAX 900 /* links of one namespace */
#define SETUPS 51
#define THREADS 8
#define VNI_OURS 555001U
#define VNI_MANY 600000U
#define PORT 4789
#define ANSWER_MAX (1U << 20)
#define RATIO_MIN 0.9
#define TRY_MS 20000
#define BOUND_S 1800

enum way { DIRECT, HAND, OURS, WAYS };
static const char *const way_names[WAYS] = {"direct", "hand", "ours"};
/* Where the client connects to. */
static const char *const servers[WAYS] = {"192.0.2.1", "10.244.1.6", "10.244.1.7"};

enum direction { TO, FROM, DIRECTIONS };

struct many {
    double up_s, down_s;
};

struct bench {
    struct world world;
    int rounds;
    unsigned mtu, pods;
    char processors[32]; /* iperf3's client, server; "": it may choose */
    double gbit[DIRECTIONS][WAYS][ROUNDS_MAX];
    double setup_ms[SETUPS];
    struct many few, all;
    int64_t left;
};

/* -- programs -- */

/* What a shell's words print; -EIO when they fail. */
static int ask(char *out, size_t size, const char *words, struct err *err)
{
    FILE *f = popen(words, "re");
    size_t n = f ? fread(out, 1, size - 1, f) : 0;
    out[n] = '\0';
    int status = f ? pclose(f) : -1;
    if (status != 0)
        return err_set(err, -EIO, "%.300s: exit status %d: %.300s", words,
                       WIFEXITED(status) ? WEXITSTATUS(status) : -1, out);
    return 0;
}

static int command(const char *words, struct err *err)
{
    char out[4096];
    _cleanup_free_ char *bounded = str_asprintf("exec 2>&1; set -e; %s", words);
    return ask(out, sizeof(out), bounded, err);
}

/* -- the three ways -- */

static int make_node(unsigned mtu, struct err *err)
{
    _cleanup_free_ char *words = str_asprintf(
        "sysctl -qw net.ipv4.ip_forward=1; ip link add cni0 mtu %u type bridge; "
        "ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up; "
        "attach() { ip netns add $1; ip -n $1 link set lo up; "
        "ip link add to-$1 mtu %u type veth peer name eth0 mtu %u netns $1; "
        "ip link set to-$1 master cni0 up; ip -n $1 link set eth0 up; "
        "ip -n $1 addr add 10.244.1.$2/24 dev eth0; ip -n $1 route add default via 10.244.1.1; }; "
        "attach neighbour 9; attach pod-hand 6; attach pod-ours 7",
        mtu, mtu, mtu);
    return command(words, err);
}

/* VM n has 192.0.2.(2n + 1), the node 192.0.2.(2n). */
static int make_vm(enum way way, unsigned mtu, struct err *err)
{
    const char *name = way_names[way];
    unsigned node = 2 * way, vm = node + 1;
    _cleanup_free_ char *words = str_asprintf(
        "ip netns add vm-%s; ip -n vm-%s link set lo up; ip netns add podns-%s; "
        "ip -n podns-%s link set lo up; "
        "ip link add under-%s mtu %u type veth peer name eth0 mtu %u netns vm-%s; "
        "ip addr add 192.0.2.%u/31 dev under-%s; ip link set under-%s up; "
        "ip -n vm-%s addr add 192.0.2.%u/31 dev eth0; ip -n vm-%s link set eth0 up; "
        "ip -n vm-%s route add default via 192.0.2.%u",
        name, name, name, name, name, mtu, mtu, name, node, name, name, name, vm, name, name, node);
    return command(words, err);
}

/* The wire as the Go programs make it, in ip and tc. */
static int make_by_hand(unsigned mtu, struct err *err)
{
    _cleanup_free_ char *words = str_asprintf(
        "wire() { tc -n pod-hand qdisc add dev $1 ingress; tc -n pod-hand filter add dev $1 "
        "parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev $2; }; "
        "ip link add by-hand type vxlan id 555000 remote 192.0.2.3 dstport 4789 nolearning "
        "noudpcsum; "
        "ip link set by-hand netns pod-hand name vxlan1; ip -n pod-hand link set vxlan1 mtu %u up; "
        "wire eth0 vxlan1; wire vxlan1 eth0; "
        "mac=$(ip netns exec pod-hand cat /sys/class/net/eth0/address); "
        "ip -n vm-hand link add vxlan0 type vxlan id 555000 remote 192.0.2.2 dstport 4789 "
        "nolearning "
        "noudpcsum; ip -n vm-hand link set vxlan0 netns podns-hand name eth0; "
        "ip -n podns-hand link set eth0 address $mac mtu %u; "
        "ip -n podns-hand addr add 10.244.1.6/24 dev eth0; ip -n podns-hand link set eth0 up; "
        "ip -n podns-hand route add default via 10.244.1.1",
        mtu - link_vxlan_overhead(AF_INET), mtu - link_vxlan_overhead(AF_INET));
    return command(words, err);
}

struct guest {
    const struct apf_network *net;
    bool down;
};

static int in_vm(void *arg, struct err *err)
{
    const struct guest *g = arg;
    const struct podnet_guest guest = {
        .netns = "/run/netns/podns-ours", .host_interface = "", .metadata = "", .wait_ms = 5000};
    return g->down ? podnet_guest_teardown(g->net, &guest, err)
                   : podnet_guest_setup(g->net, &guest, err);
}

static int run_in_vm(const struct apf_network *net, bool down, struct err *err)
{
    struct guest g = {.net = net, .down = down};
    _cleanup_close_ int fd = -1;
    int r = netns_open("/run/netns/vm-ours", &fd, err);
    return r < 0 ? r : netns_run(fd, in_vm, &g, err);
}

static int node_side(const char *netns, uint32_t vni, const char *vm, struct apf *apf,
                     struct err *err)
{
    const struct podnet_config config = {.netns = netns,
                                         .host_interface = "under-ours",
                                         .metadata_address = "",
                                         .index = vni - VNI_OURS,
                                         .vni = vni,
                                         .port = PORT};
    struct net_address remote;
    int r = podnet_inspect(&config, &apf->network, err);
    apf->has_network = r == 0;
    r = r < 0 ? r : podnet_remote(&apf->network, &vm, 1, &remote, err);
    return r < 0 ? r : podnet_setup(netns, &apf->network, &remote, err);
}

/* Sets the pod up again and again; the last one stays. */
static int measure_setup(struct bench *b, struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && i < SETUPS; i++) {
        struct apf apf = {0};
        int64_t start = clock_mono_us();
        r = node_side("/run/netns/pod-ours", VNI_OURS, "192.0.2.5", &apf, err);
        r = r < 0 ? r : run_in_vm(&apf.network, false, err);
        b->setup_ms[i] = (double)(clock_mono_us() - start) / 1e3;
        if (r == 0 && i < SETUPS - 1) {
            r = podnet_teardown("/run/netns/pod-ours", "eth0", VNI_OURS, err);
            r = r < 0 ? r : run_in_vm(&apf.network, true, err);
        }
        apf_done(&apf);
    }
    return r;
}

/* -- throughput -- */

static int start_servers(const struct bench *b, struct err *err)
{
    static const char *const places[WAYS] = {
        "--net=/run/netns/vm-direct", "--net=/run/netns/podns-hand", "--net=/run/netns/podns-ours"};
    int r = 0;
    for (int way = 0; r == 0 && way < WAYS; way++) {
        const char *const argv[] = {"/usr/bin/nsenter", places[way], "iperf3", "-s", NULL};
        pid_t pid;
        r = world_spawn(&b->world, 0, argv, &pid, err);
    }
    return r;
}

static int read_gbit(const char *text, double *ret, struct err *err)
{
    _cleanup_(json_putp) struct json_object *o = NULL;
    struct json_object *end, *sum, *bits;
    int r = json_parse(text, strlen(text), &o, err);
    if (r < 0)
        return r;
    if (!json_object_object_get_ex(o, "end", &end) ||
        !json_object_object_get_ex(end, "sum_received", &sum) ||
        !json_object_object_get_ex(sum, "bits_per_second", &bits))
        return err_set(err, -EBADMSG, "iperf3: %.300s", text);
    *ret = json_object_get_double(bits) / 1e9;
    return 0;
}

static int try_throughput(const char *words, double *ret, struct err *err)
{
    static char out[ANSWER_MAX];
    int r = ask(out, sizeof(out), words, err);
    return r < 0 ? r : read_gbit(out, ret, err);
}

/* The server closes its listener for a moment behind each test, and is not up yet at the first. */
static int throughput(const struct bench *b, enum way way, enum direction direction, double *ret,
                      struct err *err)
{
    _cleanup_free_ char *words = str_asprintf(
        "timeout 20 nsenter --net=/run/netns/neighbour iperf3 -c %s --connect-timeout 5000 "
        "-t 1 -J %s %s || :",
        servers[way], b->processors, direction == FROM ? "-R" : "");
    int64_t end = clock_mono_ms() + TRY_MS;
    for (;;) {
        struct err why = ERR_INIT;
        int r = try_throughput(words, ret, &why);
        if (r == 0)
            return 0;
        if (clock_mono_ms() > end)
            return err_set(err, r, "%s: %s", way_names[way], why.text);
        usleep(100000);
    }
}

static int measure_round(struct bench *b, int round, struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && i < WAYS; i++) {
        enum way way = (enum way)((i + round) % WAYS);
        for (int d = 0; r == 0 && d < DIRECTIONS; d++)
            r = throughput(b, way, (enum direction)d, &b->gbit[d][way][round], err);
    }
    if (r == 0)
        fprintf(stderr, "bench-network: round %d of %d: %.1f, %.1f, %.1f Gbit/s\n", round + 1,
                b->rounds, b->gbit[TO][DIRECT][round], b->gbit[TO][HAND][round],
                b->gbit[TO][OURS][round]);
    return r;
}

/* -- many pods -- */

struct crowd {
    unsigned n;
    atomic_uint next;
    bool down;
    pthread_mutex_t lock;
    struct err err; /* lock: the first one's */
};

static void netns_path(unsigned i, char out[64])
{
    (void)str_format(out, 64, "/run/netns/many%u", i);
}

static int change_one(const struct crowd *c, unsigned i, struct err *err)
{
    char netns[64], vm[INET_ADDRSTRLEN];
    struct apf apf = {0};
    netns_path(i, netns);
    (void)str_format(vm, sizeof(vm), "198.18.%u.%u", i / 250, i % 250 + 1);
    int r = c->down ? podnet_teardown(netns, "eth0", VNI_MANY + i, err)
                    : node_side(netns, VNI_MANY + i, vm, &apf, err);
    apf_done(&apf);
    return r;
}

static void *crowd_thread(void *arg)
{
    struct crowd *c = arg;
    for (unsigned i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
        struct err err = ERR_INIT;
        if (change_one(c, i, &err) == 0)
            continue;
        pthread_mutex_lock(&c->lock);
        if (c->err.code == 0)
            c->err = err;
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

static int change_all(unsigned n, bool down, double *ret_s, struct err *err)
{
    struct crowd c = {.n = n, .down = down, .lock = PTHREAD_MUTEX_INITIALIZER, .err = ERR_INIT};
    pthread_t threads[THREADS];
    int64_t start = clock_mono_us();
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, crowd_thread, &c) != 0)
            abort();
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    *ret_s = (double)(clock_mono_us() - start) / 1e6;
    if (c.err.code)
        *err = c.err;
    return c.err.code;
}

/* Tunnels and qdiscs in the pods' namespaces, and rules on the node. */
static int count_left(const char *prefix, int64_t *ret, struct err *err)
{
    char out[64];
    _cleanup_free_ char *words = str_asprintf(
        "{ for n in /run/netns/%s*; do ip -o -n ${n##*/} link; tc -n ${n##*/} qdisc; done; "
        "nft list ruleset 2>/dev/null | grep '\"peerpod 6'; } | grep -c "
        "'vxlan\\|ingress\\|peerpod' || :",
        prefix);
    int r = ask(out, sizeof(out), words, err);
    out[strcspn(out, "\n")] = '\0';
    return r < 0 ? r : str_to_i64(out, 0, INT32_MAX, ret);
}

static int measure_many(struct bench *b, unsigned n, struct many *ret, struct err *err)
{
    char netns[64];
    int64_t there = 0, left = 0;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < n; i++) {
        netns_path(i, netns);
        r = podnet_create(netns, err);
    }
    r = r < 0 ? r : change_all(n, false, &ret->up_s, err);
    r = r < 0 ? r : count_left("many", &there, err);
    if (r == 0 && there < (int64_t)(3 * n)) /* or it would not see what is left either */
        r = err_set(err, -ENODATA, "%u pods have %lld links, qdiscs and rules", n,
                    (long long)there);
    r = r < 0 ? r : change_all(n, true, &ret->down_s, err);
    r = r < 0 ? r : count_left("many", &left, err);
    b->left += left;
    if (r == 0)
        fprintf(stderr, "bench-network: %u pods: up %.2f s, down %.2f s, left %lld\n", n, ret->up_s,
                ret->down_s, (long long)left);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        netns_path(i, netns);
        r = podnet_delete(netns, err);
    }
    return r;
}

/* -- reporting -- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, values, (size_t)n * sizeof(*values));
    qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* Of ours to the hand-made one. */
static double ratio(const struct bench *b, enum direction d)
{
    return median(b->gbit[d][OURS], b->rounds) / median(b->gbit[d][HAND], b->rounds);
}

static bool judge(const struct bench *b)
{
    bool fast =
        b->rounds < ROUNDS_JUDGED || (ratio(b, TO) >= RATIO_MIN && ratio(b, FROM) >= RATIO_MIN);
    fprintf(stderr, "goal: ours / hand-made, to the pod %.2f, from it %.2f, at least %.2f: %s\n",
            ratio(b, TO), ratio(b, FROM), RATIO_MIN,
            b->rounds < ROUNDS_JUDGED ? "not judged"
            : fast                    ? "met"
                                      : "MISSED");
    fprintf(stderr, "goal: left behind %lld, at most 0: %s\n", (long long)b->left,
            b->left == 0 ? "met" : "MISSED");
    return fast && b->left == 0;
}

static void add_figure(struct json_object *o, const char *key, double value)
{
    char text[32];
    (void)str_format(text, sizeof(text), "%.2f", value);
    json_object_object_add(o, key, json_object_new_double_s(value, text));
}

static void add_figures(struct json_object *o, const struct bench *b)
{
    char key[64];
    for (int d = 0; d < DIRECTIONS; d++)
        for (int way = 0; way < WAYS; way++) {
            (void)str_format(key, sizeof(key), d == TO ? "%s_gbit_s" : "%s_back_gbit_s",
                             way_names[way]);
            add_figure(o, key, median(b->gbit[d][way], b->rounds));
        }
    add_figure(o, "ratio", ratio(b, TO));
    add_figure(o, "back_ratio", ratio(b, FROM));
    add_figure(o, "setup_ms_p50", median(b->setup_ms, SETUPS));
    add_figure(o, "setup100_s", b->few.up_s);
    add_figure(o, "setup500_s", b->all.up_s);
    add_figure(o, "teardown500_s", b->all.down_s);
    json_add_i64(o, "left_over", b->left);
}

static bool report(const struct bench *b, const struct err *err)
{
    struct json_object *o = json_object_new_object();
    bool pass = err->code == 0 && judge(b);
    json_add_string(o, "name", "bench-network");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_i64(o, "rounds", b->rounds);
    json_add_i64(o, "mtu", b->mtu);
    json_add_i64(o, "pods", b->pods);
    if (err->code == 0)
        add_figures(o, b);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

/* -- the run -- */

static void choose_processors(struct bench *b)
{
    cpu_set_t set;
    size_t found[2], n = 0;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return;
    for (size_t i = 0; n < 2 && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set))
            found[n++] = i;
    if (n == 2)
        (void)str_format(b->processors, sizeof(b->processors), "-A %zu,%zu", found[0], found[1]);
}

static int measure_all(struct bench *b, struct err *err)
{
    int r = make_node(b->mtu, err);
    for (int way = 0; r == 0 && way < WAYS; way++)
        r = make_vm((enum way)way, b->mtu, err);
    r = r < 0 ? r : make_by_hand(b->mtu, err);
    r = r < 0 ? r : measure_setup(b, err);
    r = r < 0 ? r : start_servers(b, err);
    for (int round = 0; r == 0 && round < b->rounds; round++)
        r = measure_round(b, round, err);
    r = r < 0 ? r : measure_many(b, MIN(PODS_FEW, b->pods), &b->few, err);
    return r < 0 ? r : measure_many(b, b->pods, &b->all, err);
}

static int run_inside(void *arg)
{
    struct bench *b = arg;
    struct err err = ERR_INIT;
    struct utsname u;
    uname(&u);
    fprintf(stderr, "bench-network: underlay MTU %u, %s %s, %ld processors\n", b->mtu, u.sysname,
            u.release, sysconf(_SC_NPROCESSORS_ONLN));
    if (measure_all(b, &err) < 0)
        fprintf(stderr, "bench-network: %s (programs' output: %s)\n", err_text(&err), b->world.log);
    return report(b, &err) ? 0 : 1;
}

static unsigned from_environment(const char *name, int64_t min, int64_t max, unsigned otherwise)
{
    const char *value = getenv(name);
    int64_t n;
    return value && str_to_i64(value, min, max, &n) == 0 ? (unsigned)n : otherwise;
}

int main(void)
{
    static struct bench b;
    const char *log = getenv("BENCH_LOG");
    struct err err = ERR_INIT;
    log_init("bench_network", LOG_LEVEL_WARN, LOG_FORMAT_TEXT);
    b.rounds = (int)from_environment("BENCH_RUNS", 1, ROUNDS_MAX, ROUNDS_DEFAULT);
    b.mtu = from_environment("BENCH_MTU", MTU_MIN, MTU_MAX, MTU_DEFAULT);
    b.pods = from_environment("BENCH_PODS", 1, PODS_MAX, PODS_DEFAULT);
    b.world.log = log ? log : "/dev/null";
    choose_processors(&b);
    alarm(BOUND_S); /* the end of this process is that of PID 1 inside */
    int r = world_here(&b.world, &err);
    if (r == 0)
        world_run(run_inside, &b, &err);
    fprintf(stderr, "bench-network: %s\n", err_text(&err));
    return report(&b, &err) ? 0 : 1;
}
