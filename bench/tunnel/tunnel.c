/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: bench_tunnel        (root; BENCH_RUNS=9: a median of so many; 1: a trial of some seconds)
 * For profilers: BENCH_VARIANT=ours, BENCH_PHASE=check_p50_us measures that alone.
 *
 * What a tunnel costs: the same client, the same agent in the same pod VM, and between them
 *
 *     bare      nothing: the agent's own unix socket
 *     plain     plain_relay.c, a relay pair without TLS
 *     stunnel   a pair of stunnel, TLS 1.3, our cipher, TCP_NODELAY on both sides
 *     ours      daemon and forwarder, release, default options, after CreateVM and StartVM
 *
 * The three pairs cross the same veth into the VM's network namespace. The machine is never quiet,
 * so nothing is compared across time: a run consists of slices of some ms, each measures each phase on
 * all four, one right behind the other and starting with another one each time. A run's throughput
 * is the median of its slices, its latencies are those of all its calls; what counts are medians
 * over the runs.
 *
 * Worker and VM are two machines: the client and the near ends run on the first processor, the agent
 * and the far ends on the second (BENCH_PIN=0: wherever the scheduler likes). Otherwise what is
 * measured is which of them happen to sit together: waking a sleeping processor costs as much as a
 * relay, and the scheduler's choice lasts for minutes.
 *
 * CPU time is that of client, agent and all processes between them (their CLOCK_PROCESS_CPUTIME,
 * which counts in nanoseconds and includes the packets that they push through the veth);
 * relay_cpu_... of those between them alone. Nothing is subtracted anywhere. The goals are about
 * added latency, so the table on stderr says both.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "bench/common/client.h"
#include "bench/common/world.h"
#include "wire/tls.h"

#define RUNS_DEFAULT 9
#define RUNS_MAX 101
#define RUNS_JUDGED 5 /* fewer prove nothing: no goal is judged */
#define SLICES 16     /* of a run; of each slice: */
#define SLICE_CALLS 150
#define WARM_CALLS 10
#define READ_BYTES ((uint64_t)3 << 20)
#define COPY_BYTES ((uint64_t)4 << 20)
#define READERS 8
#define PORT_PLAIN "15161"
#define PORT_STUNNEL "15162"
#define DIR "/run/bench"

enum variant { BARE, PLAIN, STUNNEL, OURS, VARIANTS };
static const char *const variant_names[VARIANTS] = {"bare", "plain", "stunnel", "ours"};

enum figure { P50, P99, READ, READ8, COPY, CPU_CALL, CPU_MIB, RELAY_CALL, RELAY_MIB, FIGURES };
static const char *const figure_names[FIGURES] = {
    "check_p50_us",   "check_p99_us",          "read_mb_s",
    "read8_mb_s",     "copyfile_mb_s",         "cpu_us_per_call",
    "cpu_ms_per_mib", "relay_cpu_us_per_call", "relay_cpu_ms_per_mib",
};

struct cpu {
    double all, relays; /* seconds */
};

struct slices {
    double took[SLICES * SLICE_CALLS]; /* us */
    double mb_s[COPY - READ + 1][SLICES];
    struct cpu calls, bulk;
};

struct bench {
    int runs;
    struct world world;
    struct pod pod;
    struct client client[VARIANTS];
    pid_t relays[VARIANTS][2], agent;
    double figures[VARIANTS][FIGURES][RUNS_MAX];
    struct slices slices[VARIANTS]; /* of this run */
    double notice[RUNS_MAX];
};

/* -- measuring -- */

static double cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec t = {0};
    if (pid > 0 && clock_getcpuclockid(pid, &clock) == 0)
        clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct cpu cpu_now(const struct bench *b, enum variant v)
{
    struct cpu c = {.relays = cpu_of(b->relays[v][0]) + cpu_of(b->relays[v][1])};
    c.all = c.relays + cpu_of(b->agent) + cpu_of(getpid());
    return c;
}

static struct cpu cpu_since(const struct bench *b, enum variant v, struct cpu before)
{
    struct cpu now = cpu_now(b, v);
    return (struct cpu){.all = now.all - before.all, .relays = now.relays - before.relays};
}

static void cpu_add(struct cpu *sum, struct cpu more)
{
    sum->all += more.all;
    sum->relays += more.relays;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n)
{
    double sorted[RUNS_MAX];
    memcpy(sorted, values, (size_t)n * sizeof(*values));
    qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* One answer, of that size. */
static int receive(struct client *c, size_t len, struct err *err)
{
    struct reply reply;
    int r = client_receive(c, &reply);
    if (r < 0)
        return err_errno(err, r, "waiting for an answer");
    if (reply.code != 0 || reply.len != len)
        return err_set(err, -EPROTO, "an answer with code %d and %zu bytes instead of %zu",
                       reply.code, reply.len, len);
    return 0;
}

static double now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int slice_calls(struct bench *b, enum variant v, int slice, struct err *err)
{
    struct client *c = &b->client[v];
    struct slices *s = &b->slices[v];
    struct cpu before = {0};
    int r = 0;
    for (int i = -WARM_CALLS; r == 0 && i < SLICE_CALLS; i++) {
        if (i == 0)
            before = cpu_now(b, v);
        double start = now_us();
        r = client_check(c) < 0 ? -EPIPE : receive(c, 0, err);
        if (i >= 0)
            s->took[slice * SLICE_CALLS + i] = now_us() - start;
    }
    cpu_add(&s->calls, cpu_since(b, v, before));
    return r;
}

/* n calls of the kind, `at_once` of them under way. */
static int stream_calls(struct bench *b, enum variant v, int n, int at_once, bool copy,
                        struct err *err)
{
    struct client *c = &b->client[v];
    for (int sent = 0, got = 0; got < n;) {
        while (sent < n && sent - got < at_once) {
            uint32_t stream = (uint32_t)(sent % at_once);
            int64_t r = copy ? client_copy(c, stream, (uint64_t)sent * TRAFFIC_COPY, COPY_BYTES)
                             : client_read(c, stream, TRAFFIC_READ);
            if (r < 0)
                return err_errno(err, (int)r, "sending");
            sent++;
        }
        int r = receive(c, copy ? 0 : TRAFFIC_READ, err);
        if (r < 0)
            return r;
        got++;
    }
    return 0;
}

static int slice_bulk(struct bench *b, enum variant v, int slice, enum figure figure,
                      struct err *err)
{
    bool copy = figure == COPY;
    uint64_t bytes = copy ? COPY_BYTES : READ_BYTES;
    int n = (int)(bytes / (copy ? TRAFFIC_COPY : TRAFFIC_READ));
    struct slices *s = &b->slices[v];
    struct cpu before = cpu_now(b, v);
    int64_t start = clock_mono_us();
    int r = stream_calls(b, v, n, figure == READ8 ? READERS : 1, copy, err);
    int64_t took = clock_mono_us() - start;
    cpu_add(&s->bulk, cpu_since(b, v, before));
    s->mb_s[figure - READ][slice] = (double)bytes / (double)MAX(took, (int64_t)1);
    return r;
}

/* For a look with a profiler. */
static bool wanted(enum variant v, enum figure phase)
{
    const char *variant = getenv("BENCH_VARIANT"), *figure = getenv("BENCH_PHASE");
    return (!variant || str_eq(variant, variant_names[v])) &&
           (!figure || str_eq(figure, figure_names[phase]));
}

/* Each variant in turn, the first another one each time. */
static int measure_slice(struct bench *b, int slice, enum figure phase, struct err *err)
{
    for (int i = 0; i < VARIANTS; i++) {
        enum variant v = (enum variant)((i + slice) % VARIANTS);
        if (!wanted(v, phase))
            continue;
        int r = phase == P50 ? slice_calls(b, v, slice, err) : slice_bulk(b, v, slice, phase, err);
        if (r < 0)
            return err_wrap(err, r, "%s, %s", variant_names[v], figure_names[phase]);
    }
    return 0;
}

static void run_figures(struct bench *b, enum variant v, int run)
{
    const double calls = SLICES * SLICE_CALLS;
    const double mib = (double)(SLICES * ((2 * READ_BYTES + COPY_BYTES) >> 20));
    struct slices *s = &b->slices[v];
    double(*f)[RUNS_MAX] = b->figures[v];
    qsort(s->took, ARRAY_SIZE(s->took), sizeof(s->took[0]), by_value);
    f[P50][run] = s->took[ARRAY_SIZE(s->took) / 2];
    f[P99][run] = s->took[ARRAY_SIZE(s->took) * 99 / 100];
    for (int i = READ; i <= COPY; i++)
        f[i][run] = median(s->mb_s[i - READ], SLICES);
    f[CPU_CALL][run] = s->calls.all * 1e6 / calls;
    f[RELAY_CALL][run] = s->calls.relays * 1e6 / calls;
    f[CPU_MIB][run] = s->bulk.all * 1e3 / mib;
    f[RELAY_MIB][run] = s->bulk.relays * 1e3 / mib;
}

static int measure_run(struct bench *b, int run, struct err *err)
{
    static const enum figure phases[] = {P50, READ, READ8, COPY};
    memset(b->slices, 0, sizeof(b->slices));
    for (int slice = 0; slice < SLICES; slice++) {
        for (size_t p = 0; p < ARRAY_SIZE(phases); p++) {
            int r = measure_slice(b, slice, phases[p], err);
            if (r < 0)
                return r;
        }
    }
    for (int v = 0; v < VARIANTS; v++)
        run_figures(b, (enum variant)v, run);
    return 0;
}

/* -- setting up -- */

static int write_file(const char *name, const char *text, struct err *err)
{
    return fs_write_atomic(AT_FDCWD, name, text, strlen(text), 0600, err);
}

static int stunnel_identity(struct err *err)
{
    struct buf both = BUF_INIT(TLS_PEM_MAX);
    _cleanup_(tls_identity_freep) struct tls_identity *id = NULL;
    _cleanup_free_ char *key = NULL, *cert = NULL;
    int r = tls_identity_new("bench", &id, err);
    if (r == 0)
        r = tls_identity_pem(id, &key, &cert, err);
    if (r == 0) {
        buf_adds(&both, key);
        buf_adds(&both, cert);
        r = write_file(DIR "/stunnel.pem", both.data, err);
    }
    buf_done(&both);
    return r;
}

static int stunnel_config(const struct bench *b, bool near, const char *path, struct err *err)
{
    struct buf text = BUF_INIT(4096);
    buf_addf(&text, "foreground = yes\npid =\ndebug = err\nsocket = l:TCP_NODELAY=1\n"
                    "socket = r:TCP_NODELAY=1\n[tunnel]\nsslVersionMin = TLSv1.3\n"
                    "ciphersuites = TLS_AES_128_GCM_SHA256\nTIMEOUTidle = 86400\n");
    if (near)
        buf_addf(&text, "client = yes\naccept = %s\nconnect = %s:%s\n", DIR "/stunnel.sock",
                 b->pod.address, PORT_STUNNEL);
    else
        buf_addf(&text, "cert = %s\naccept = 0.0.0.0:%s\nconnect = %s\n", DIR "/stunnel.pem",
                 PORT_STUNNEL, b->pod.agent);
    int r = write_file(path, text.data, err);
    buf_done(&text);
    return r;
}

static int start_pairs(struct bench *b, struct err *err)
{
    const char *plain_far[] = {"bench-relay", "far", PORT_PLAIN, b->pod.agent, NULL};
    const char *plain_near[] = {"bench-relay",  "near",     DIR "/plain.sock",
                                b->pod.address, PORT_PLAIN, NULL};
    const char *stunnel_far[] = {"/usr/bin/stunnel4", DIR "/far.conf", NULL};
    const char *stunnel_near[] = {"/usr/bin/stunnel4", DIR "/near.conf", NULL};
    pid_t vm = b->pod.init;
    if (access(stunnel_far[0], X_OK) < 0)
        return err_set(err, -ENOENT, "stunnel is not installed (Debian: stunnel4)");
    int r = stunnel_identity(err);
    if (r == 0)
        r = stunnel_config(b, true, DIR "/near.conf", err);
    if (r == 0)
        r = stunnel_config(b, false, DIR "/far.conf", err);
    if (r == 0)
        r = world_spawn(&b->world, vm, plain_far, &b->relays[PLAIN][1], err);
    if (r == 0)
        r = world_spawn(&b->world, vm, stunnel_far, &b->relays[STUNNEL][1], err);
    if (r == 0)
        r = world_spawn(&b->world, 0, plain_near, &b->relays[PLAIN][0], err);
    if (r == 0)
        r = world_spawn(&b->world, 0, stunnel_near, &b->relays[STUNNEL][0], err);
    if (r == 0)
        r = wait_socket(DIR "/plain.sock", 5000, err);
    return r < 0 ? r : wait_socket(DIR "/stunnel.sock", 5000, err);
}

/* The far ends may not listen yet. */
static int open_client(struct bench *b, enum variant v, struct err *err)
{
    const char *const paths[VARIANTS] = {b->pod.agent, DIR "/plain.sock", DIR "/stunnel.sock",
                                         b->pod.socket};
    int r = -ECONNREFUSED;
    for (int tries = 0; r < 0 && tries < 50; tries++) {
        err_clear(err);
        r = client_open(&b->client[v], paths[v], err);
        if (r == 0)
            client_timeout(&b->client[v], 30000);
        if (r == 0 && client_check(&b->client[v]) < 0)
            r = err_set(err, -EPIPE, "sending");
        if (r == 0)
            r = receive(&b->client[v], 0, err);
        if (r < 0) {
            client_close(&b->client[v]);
            usleep(100000);
        }
    }
    return r < 0 ? err_wrap(err, r, "%s", variant_names[v]) : 0;
}

/* The threads that serve connections are made later, and inherit this. */
static void pin(pid_t pid, int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    sched_setaffinity(pid, sizeof(set), &set);
}

static void pin_all(const struct bench *b)
{
    const char *how = getenv("BENCH_PIN");
    if ((how && str_eq(how, "0")) || sysconf(_SC_NPROCESSORS_ONLN) < 2)
        return;
    pin(getpid(), 0);
    pin(b->agent, 1);
    for (int v = PLAIN; v < VARIANTS; v++)
        for (int end = 0; end < 2; end++)
            pin(b->relays[v][end], end);
}

static int open_clients(struct bench *b, struct err *err)
{
    int r = 0;
    b->agent = world_pid("bench-agent");
    b->relays[OURS][0] = world_pid("cloud-api-adaptor");
    b->relays[OURS][1] = world_pid("agent-protocol-forwarder");
    if (!b->agent || !b->relays[OURS][0] || !b->relays[OURS][1])
        return err_set(err, -ESRCH, "daemon, forwarder or agent is not running");
    pin_all(b);
    for (int v = 0; r == 0 && v < VARIANTS; v++)
        r = open_client(b, (enum variant)v, err);
    return r;
}

/* A pod for each run; the last one stays. */
static int start_pods(struct bench *b, struct err *err)
{
    for (int run = 0; run < b->runs; run++) {
        int r = run > 0 ? pod_stop(&b->pod, err) : 0;
        if (r == 0)
            r = pod_start(&b->pod, (unsigned)run + 1, err);
        if (r < 0)
            return r;
        b->notice[run] = (double)(b->pod.answered_us - b->pod.listened_us) / 1e3;
    }
    return b->pod.address[0] ? 0 : err_set(err, -ENODATA, "the VM's address is not known");
}

/* -- reporting -- */

struct goal {
    const char *what;
    double is, bound;
    bool at_least;
};

static double mid(const struct bench *b, enum variant v, enum figure f)
{
    return median(b->figures[v][f], b->runs);
}

static bool met(const struct goal *g)
{
    return g->at_least ? g->is >= g->bound : g->is <= g->bound;
}

static size_t goals(const struct bench *b, struct goal ret[])
{
    double base = mid(b, BARE, P50);
    double added = mid(b, OURS, P50) - base;
    size_t n = 0;
    ret[n++] = (struct goal){"added p50, ours / stunnel", added / (mid(b, STUNNEL, P50) - base),
                             0.9, false};
    ret[n++] = (struct goal){"ReadStdout, ours / stunnel",
                             mid(b, OURS, READ) / mid(b, STUNNEL, READ), 1.1, true};
    ret[n++] = (struct goal){"CopyFile, ours / stunnel", mid(b, OURS, COPY) / mid(b, STUNNEL, COPY),
                             1.1, true};
    ret[n++] = (struct goal){"CPU per MiB, ours / stunnel",
                             mid(b, OURS, CPU_MIB) / mid(b, STUNNEL, CPU_MIB), 1.0, false};
    return n;
}

static void print_table(const struct bench *b)
{
    struct goal list[8];
    struct utsname u;
    double base = mid(b, BARE, P50), plain = mid(b, PLAIN, P50) - base;
    uname(&u);
    fprintf(stderr, "\n%s %s, %ld processors, medians of %d runs\n%-22s", u.sysname, u.release,
            sysconf(_SC_NPROCESSORS_ONLN), b->runs, "");
    for (int v = 0; v < VARIANTS; v++)
        fprintf(stderr, "%12s", variant_names[v]);
    fprintf(stderr, "%14s%14s\n", "ours/stunnel", "ours/plain");
    for (int f = 0; f < FIGURES; f++) {
        fprintf(stderr, "%-22s", figure_names[f]);
        for (int v = 0; v < VARIANTS; v++)
            fprintf(stderr, "%12.2f", mid(b, (enum variant)v, (enum figure)f));
        fprintf(stderr, "%14.2f%14.2f\n",
                mid(b, OURS, (enum figure)f) / mid(b, STUNNEL, (enum figure)f),
                mid(b, OURS, (enum figure)f) / mid(b, PLAIN, (enum figure)f));
    }
    fprintf(stderr, "%-22s%12s%12.2f%12.2f%12.2f%14.2f%14.2f   (aim: 1.25 of plain)\n",
            "added p50 us", "", plain, mid(b, STUNNEL, P50) - base, mid(b, OURS, P50) - base,
            (mid(b, OURS, P50) - base) / (mid(b, STUNNEL, P50) - base),
            (mid(b, OURS, P50) - base) / plain);
    size_t n = goals(b, list);
    for (size_t i = 0; i < n; i++)
        fprintf(stderr, "goal: %-28s %5.2f, %s %.2f: %s\n", list[i].what, list[i].is,
                list[i].at_least ? "at least" : "at most", list[i].bound,
                met(&list[i]) ? "met" : "MISSED");
}

static void add_figure(struct json_object *o, const char *key, double value)
{
    char text[32];
    (void)str_format(text, sizeof(text), "%.2f", value);
    json_object_object_add(o, key, json_object_new_double_s(value, text));
}

static bool print_json(const struct bench *b, const struct err *err)
{
    struct json_object *o = json_object_new_object();
    struct goal list[8];
    bool pass = err->code == 0;
    if (pass && b->runs >= RUNS_JUDGED)
        for (size_t i = goals(b, list); i-- > 0;)
            pass = pass && met(&list[i]);
    json_add_string(o, "name", "bench-tunnel");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_i64(o, "runs", b->runs);
    for (int v = 0; err->code == 0 && v < VARIANTS; v++) {
        struct json_object *figures = json_object_new_object();
        for (int f = 0; f < FIGURES; f++)
            add_figure(figures, figure_names[f], mid(b, (enum variant)v, (enum figure)f));
        if (v == OURS)
            add_figure(figures, "notice_ms", median(b->notice, b->runs));
        json_object_object_add(o, variant_names[v], figures);
    }
    if (err->code == 0)
        add_figure(o, "notice_ms", median(b->notice, b->runs));
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

/* -- the run -- */

static int measure_all(struct bench *b, struct err *err)
{
    if (mkdir(DIR, 0700) < 0)
        return err_errno(err, -errno, "making " DIR);
    int r = world_start(&b->world, "bench-agent", NULL, err);
    if (r == 0)
        r = start_pods(b, err);
    if (r == 0)
        r = start_pairs(b, err);
    if (r == 0)
        r = open_clients(b, err);
    for (int run = 0; r == 0 && run < b->runs; run++) {
        int64_t start = clock_mono_ms();
        r = measure_run(b, run, err);
        fprintf(stderr, "bench-tunnel: run %d of %d: %.1f s\n", run + 1, b->runs,
                (double)(clock_mono_ms() - start) / 1e3);
    }
    return r;
}

static int run_inside(void *arg)
{
    struct bench *b = arg;
    struct err err = ERR_INIT;
    int r = measure_all(b, &err);
    if (r < 0)
        fprintf(stderr, "bench-tunnel: %s (programs' output: %s)\n", err_text(&err), b->world.log);
    else
        print_table(b);
    return print_json(b, &err) ? 0 : 1;
}

int main(void)
{
    static struct bench b = {.runs = RUNS_DEFAULT};
    const char *runs = getenv("BENCH_RUNS"), *log = getenv("BENCH_LOG");
    struct err err = ERR_INIT;
    int64_t n;
    if (runs && str_to_i64(runs, 1, RUNS_MAX, &n) == 0)
        b.runs = (int)n;
    b.world.log = log ? log : "/dev/null";
    int r = world_here(&b.world, &err);
    if (r == 0)
        world_run(run_inside, &b, &err);
    fprintf(stderr, "bench-tunnel: %s\n", err_text(&err));
    return print_json(&b, &err) ? 0 : 1;
}
