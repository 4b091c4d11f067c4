/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node full of pods costs: one release daemon under its keeper, and local VMs, each of which
 * came through CreateVM and StartVM and has a forwarder, an agent, a container and a WaitProcess that
 * blocks (fleet.h). Needs root.
 *
 * SCALE_PODS=1000: fewer are a trial. SCALE_IDLE=30: seconds. SCALE_LAUNCHER: a program that runs the
 * daemon's command line, for a look with a profiler.
 *
 *     0, 1, 100, 1000 pods   memory of daemon and keeper, from smaps_rollup, at rest
 *     idle                   nothing but the tunnels' own pings: CPU time and wake-ups
 *     watched                as under kubelet: each shim's Check every 5 s
 *     traffic                50 of the pods write through their containers, others are asked at once
 *     stop                   and what is left of descriptors, threads, namespaces, links, files
 *
 * The pods' network namespaces are made before the clock of a start runs: that is the CNI plugin's
 * work. The machine is the bound of the start rate, as it runs the VMs too; so the daemon's own share
 * is told beside it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/utsname.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "bench/common/census.h"
#include "bench/common/fleet.h"
#include "bench/common/traffic.h"

#define PODS_DEFAULT 1000
#define IDLE_DEFAULT 30
#define AT_ONCE 32U /* the daemon's default for creates under way */
#define SETTLE_MS 5000
#define WATCH_S 10
#define CHECK_EVERY_S 5
#define TALKERS 50U
#define TALK_BYTES (4U << 20)
#define TALK_PIECE (32U << 10)
#define OTHERS 20U /* pods that are asked while the talkers talk */
#define LEFT_MS 20000

/* What was decided for the daemon (the Go adaptor: 33 MB with one pod, 120 MB with 1000). */
#define RSS_ONE_MAX_KB (20 * 1024)
#define RSS_ALL_MAX_KB (52 * 1024)
#define ANON_BASE_MAX_KB (4 * 1024)
#define ANON_POD_MAX_KB 32
#define IDLE_MAX_PERCENT 1.0

static const unsigned sizes[] = {0, 1, 100, PODS_DEFAULT};
#define SIZES ARRAY_SIZE(sizes)

struct scale {
    unsigned pods;
    int64_t idle_s;
    struct world world;
    struct fleet fleet;
    pid_t daemon;
    size_t n_sizes; /* measured */
    unsigned size[SIZES];
    struct usage used[SIZES], keeper[SIZES];
    struct census before, during, after;
    double starts_per_s, busy_percent, daemon_ms_per_start, daemon_percent, start_p50_ms,
        start_p99_ms;
    double idle_percent, wakeups_per_s, forwarder_percent, forwarder_wakeups_per_s;
    double watched_percent;
    double talk_mb_s, check_p50_ms, check_p99_ms;
    double stops_per_s;
    int64_t vm_pss_kb, after_rss_kb, after_anon_kb;
    int64_t left_over;
    bool counted;
};

static double seconds_since(int64_t us)
{
    return (double)(clock_mono_us() - us) / 1e6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, unsigned n, double q)
{
    if (n == 0)
        return 0;
    qsort(values, n, sizeof(*values), by_value);
    return values[MIN((unsigned)(q * n), n - 1)];
}

/* -- start -- */

static int measure_size(struct scale *s, struct err *err)
{
    size_t i = s->n_sizes;
    usleep(SETTLE_MS * 1000);
    int r = usage_read(s->daemon, &s->used[i], err);
    if (r == 0)
        r = usage_read(s->world.keeper, &s->keeper[i], err);
    if (r < 0)
        return r;
    s->size[i] = s->fleet.n;
    s->n_sizes++;
    fprintf(stderr,
            "bench-scale: %4u pods: daemon %lld kB resident (%lld anonymous, %lld shared), "
            "%lld descriptors, %lld threads\n",
            s->fleet.n, (long long)s->used[i].rss_kb, (long long)s->used[i].anon_kb,
            (long long)s->used[i].shmem_kb, (long long)s->used[i].descriptors,
            (long long)s->used[i].threads);
    return 0;
}

static void start_quantiles(struct scale *s, unsigned from)
{
    double ms[FLEET_MAX];
    for (unsigned i = from; i < s->fleet.n; i++)
        ms[i - from] = (double)s->fleet.members[i].start_us / 1e3;
    s->start_p50_ms = quantile(ms, s->fleet.n - from, 0.5);
    s->start_p99_ms = quantile(ms, s->fleet.n - from, 0.99);
}

/* The last growth, the largest, is the one that is told. */
static int grow(struct scale *s, unsigned n, struct err *err)
{
    struct usage before, now;
    double busy[2], all[2];
    unsigned from = s->fleet.n;
    int r = fleet_prepare(&s->fleet, n, AT_ONCE, err);
    if (r == 0)
        r = usage_read(s->daemon, &before, err);
    if (r < 0)
        return r;
    int64_t began = clock_mono_us();
    machine_time(&busy[0], &all[0]);
    r = fleet_start(&s->fleet, n, AT_ONCE, err);
    double took = seconds_since(began);
    machine_time(&busy[1], &all[1]);
    if (r == 0)
        r = usage_read(s->daemon, &now, err);
    if (r < 0)
        return r;
    s->starts_per_s = (double)(n - from) / took;
    s->busy_percent = 100 * (busy[1] - busy[0]) / (all[1] - all[0]);
    s->daemon_ms_per_start = 1e3 * (now.cpu_s - before.cpu_s) / (double)(n - from);
    s->daemon_percent = 100 * (now.cpu_s - before.cpu_s) / (busy[1] - busy[0]);
    start_quantiles(s, from);
    return 0;
}

static int start_all(struct scale *s, struct err *err)
{
    int r = measure_size(s, err); /* first: the daemon has settled behind it */
    if (r == 0)
        r = census_take(s->daemon, s->world.keeper, &s->before, err);
    for (size_t i = 1; r == 0 && i < SIZES && s->fleet.n < s->pods; i++) {
        r = grow(s, MIN(sizes[i], s->pods), err);
        if (r == 0)
            r = measure_size(s, err);
    }
    return r < 0 ? r : census_take(s->daemon, s->world.keeper, &s->during, err);
}

/* -- idle -- */

static int check_one(struct fleet *f, unsigned i, _unused_ void *arg, struct err *err)
{
    struct member *m = &f->members[i];
    int r = member_waits(m, err);
    return r < 0 ? r : member_check(m, err);
}

static int check_all(struct scale *s, struct err *err)
{
    return fleet_each(&s->fleet, 0, s->fleet.n, 1, AT_ONCE, check_one, NULL, err);
}

static int measure_idle(struct scale *s, struct err *err)
{
    struct usage d[2], f[2];
    int r = check_all(s, err);
    if (r < 0)
        return r;
    usleep(SETTLE_MS * 1000);
    r = usage_read(s->daemon, &d[0], err);
    unsigned forwarders = usage_sum("agent-protocol-forwarder", &f[0]);
    int64_t began = clock_mono_us();
    usleep((useconds_t)(s->idle_s * 1000000));
    double took = seconds_since(began);
    if (r == 0)
        r = usage_read(s->daemon, &d[1], err);
    unsigned forwarders_now = usage_sum("agent-protocol-forwarder", &f[1]);
    if (r == 0 && (forwarders != s->fleet.n || forwarders_now != s->fleet.n))
        r = err_set(err, -ECHILD, "%u forwarders for %u pods", forwarders_now, s->fleet.n);
    if (r < 0)
        return r;
    s->idle_percent = 100 * (d[1].cpu_s - d[0].cpu_s) / took;
    s->wakeups_per_s = (double)(d[1].sleeps - d[0].sleeps) / took;
    s->forwarder_percent = 100 * (f[1].cpu_s - f[0].cpu_s) / took / forwarders;
    s->forwarder_wakeups_per_s = (double)(f[1].sleeps - f[0].sleeps) / took / forwarders;
    fprintf(stderr, "bench-scale: idle for %.0f s: %.2f %% of a core, %.1f wake-ups per second\n",
            took, s->idle_percent, s->wakeups_per_s);
    return check_all(s, err);
}

/* -- as under kubelet: Checks -- */

static int measure_watched(struct scale *s, struct err *err)
{
    struct usage d[2];
    int64_t began = clock_mono_us(), step = CHECK_EVERY_S * 1000000LL / s->fleet.n;
    int r = usage_read(s->daemon, &d[0], err);
    for (unsigned n = 0; r == 0 && n < s->fleet.n * (WATCH_S / CHECK_EVERY_S); n++) {
        int64_t due = began + n * step, now = clock_mono_us();
        if (due > now)
            usleep((useconds_t)(due - now));
        r = member_check(&s->fleet.members[n % s->fleet.n], err);
    }
    double took = seconds_since(began);
    if (r == 0)
        r = usage_read(s->daemon, &d[1], err);
    if (r == 0)
        s->watched_percent = 100 * (d[1].cpu_s - d[0].cpu_s) / took;
    return r;
}

/* -- traffic -- */

struct asking {
    struct scale *s;
    bool stop;
    int r;
    struct err err;
    double ms[1U << 16];
    unsigned n;
};

static int talk_one(struct fleet *f, unsigned i, _unused_ void *arg, struct err *err)
{
    int r = 0;
    for (uint64_t done = 0; r == 0 && done < TALK_BYTES; done += TALK_PIECE)
        r = member_echo(&f->members[i], traffic_bytes(i, done), TALK_PIECE, err);
    return r;
}

/* Those that do not talk. */
static void *ask_main(void *arg)
{
    struct asking *a = arg;
    struct fleet *f = &a->s->fleet;
    unsigned step = MAX(f->n / OTHERS, 1U);
    for (unsigned i = 1; a->r == 0 && !__atomic_load_n(&a->stop, __ATOMIC_ACQUIRE); i += step) {
        int64_t began = clock_mono_us();
        a->r = member_check(&f->members[i % f->n], &a->err);
        a->ms[a->n] = (double)(clock_mono_us() - began) / 1e3;
        a->n += a->n < ARRAY_SIZE(a->ms) - 1;
        usleep(1000);
    }
    return NULL;
}

static int measure_traffic(struct scale *s, struct err *err)
{
    static struct asking a = {.err = ERR_INIT};
    unsigned step = MAX(s->fleet.n / TALKERS, 1U), talkers = (s->fleet.n + step - 1) / step;
    pthread_t thread;
    a.s = s;
    if (pthread_create(&thread, NULL, ask_main, &a) != 0)
        return err_set(err, -EAGAIN, "no thread");
    int64_t began = clock_mono_us();
    int r = fleet_each(&s->fleet, 0, s->fleet.n, step, TALKERS, talk_one, NULL, err);
    s->talk_mb_s = 2.0 * talkers * TALK_BYTES / 1e6 / seconds_since(began);
    __atomic_store_n(&a.stop, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    if (r == 0 && a.r < 0)
        r = err_set(err, a.r, "a pod beside the talkers: %s", a.err.text);
    s->check_p50_ms = quantile(a.ms, a.n, 0.5);
    s->check_p99_ms = quantile(a.ms, a.n, 0.99);
    fprintf(stderr, "bench-scale: %u pods wrote: %.0f MB/s; the others' Check: %.1f ms, p99 %.1f\n",
            talkers, s->talk_mb_s, s->check_p50_ms, s->check_p99_ms);
    return r < 0 ? r : check_all(s, err);
}

/* -- stop -- */

static int stop_all(struct scale *s, struct err *err)
{
    struct usage u;
    unsigned n = s->fleet.n;
    int64_t began = clock_mono_us();
    int r = fleet_stop(&s->fleet, AT_ONCE, err);
    s->stops_per_s = n / seconds_since(began);
    for (int64_t end = clock_mono_ms() + LEFT_MS; r == 0;) {
        r = census_take(s->daemon, s->world.keeper, &s->after, err);
        s->left_over = census_left(&s->before, &s->after);
        s->counted = r == 0;
        if (s->left_over == 0 || clock_mono_ms() > end)
            break;
        usleep(200000);
    }
    if (r == 0)
        r = usage_read(s->daemon, &u, err);
    if (r == 0) {
        s->after_rss_kb = u.rss_kb;
        s->after_anon_kb = u.anon_kb + u.shmem_kb;
    }
    return r;
}

/* -- the run -- */

/* All that belongs to one VM: keeper, console, agent, forwarder, container. */
static void measure_vms(struct scale *s)
{
    static const char *const names[] = {"agent-protocol-forwarder", "peerpod-keeper", "console",
                                        "test-agent", "cat"};
    struct usage u;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        usage_sum(names[i], &u);
        s->vm_pss_kb += u.pss_kb;
    }
    s->vm_pss_kb /= s->fleet.n;
}

static int measure_all(struct scale *s, struct err *err)
{
    const char *const launcher[] = {getenv("SCALE_LAUNCHER"), NULL};
    s->world.launcher = launcher;
    int r = world_start(&s->world, NULL, NULL, err);
    if (r < 0)
        return r;
    s->daemon = world_pid("cloud-api-adaptor");
    fleet_init(&s->fleet);
    r = start_all(s, err);
    if (r == 0)
        r = measure_idle(s, err);
    if (r == 0)
        measure_vms(s);
    if (r == 0)
        r = measure_watched(s, err);
    if (r == 0)
        r = measure_traffic(s, err);
    return r < 0 ? r : stop_all(s, err);
}

/* -- reporting -- */

static int64_t anon_shmem(const struct usage *u)
{
    return u->anon_kb + u->shmem_kb;
}

static bool goal(const char *what, double is, double bound)
{
    fprintf(stderr, "goal: %-44s %9.2f, at most %9.2f: %s\n", what, is, bound,
            is <= bound ? "met" : "MISSED");
    return is <= bound;
}

static bool judge(const struct scale *s)
{
    bool pass = goal("what is left after stop", (double)s->left_over, 0);
    for (size_t i = 0; i < s->n_sizes; i++) {
        char what[64];
        (void)str_format(what, sizeof(what), "anonymous + shared kB with %u", s->size[i]);
        pass &= goal(what, (double)anon_shmem(&s->used[i]),
                     ANON_BASE_MAX_KB + (double)ANON_POD_MAX_KB * s->size[i]);
        if (s->size[i] == 1)
            pass &= goal("RSS kB with 1", (double)s->used[i].rss_kb, RSS_ONE_MAX_KB);
        if (s->size[i] == PODS_DEFAULT)
            pass &= goal("RSS kB with 1000", (double)s->used[i].rss_kb, RSS_ALL_MAX_KB);
    }
    return goal("idle CPU, % of a core", s->idle_percent, IDLE_MAX_PERCENT) && pass;
}

static void add_figure(struct json_object *o, const char *key, double value)
{
    char text[32];
    (void)str_format(text, sizeof(text), "%.2f", value);
    json_object_object_add(o, key, json_object_new_double_s(value, text));
}

typedef int64_t figure_fn(const struct usage *u);

static int64_t rss(const struct usage *u)
{
    return u->rss_kb;
}

static int64_t pss(const struct usage *u)
{
    return u->pss_kb;
}

static void add_sizes(struct json_object *o, const char *key, const struct scale *s,
                      const struct usage used[SIZES], figure_fn *figure)
{
    struct json_object *list = json_object_new_object();
    for (size_t i = 0; i < s->n_sizes; i++) {
        char size[16];
        (void)str_format(size, sizeof(size), "%u", s->size[i]);
        json_add_i64(list, size, figure(&used[i]));
    }
    json_object_object_add(o, key, list);
}

static void add_census(struct json_object *o, const char *key, const struct census *c)
{
    struct json_object *list = json_object_new_object();
    for (int i = 0; i < CENSUS_KINDS; i++)
        json_add_i64(list, census_names[i], c->of[i]);
    json_object_object_add(o, key, list);
}

static const char *limiter(const struct scale *s)
{
    return s->busy_percent > 85 ? "the machine's processors, which run the VMs too"
                                : "waiting (locks of kernel or registry), not processors";
}

static void add_figures(struct json_object *o, const struct scale *s)
{
    add_sizes(o, "rss_kb", s, s->used, rss);
    add_sizes(o, "anon_shmem_kb", s, s->used, anon_shmem);
    add_sizes(o, "pss_kb", s, s->used, pss);
    add_sizes(o, "keeper_rss_kb", s, s->keeper, rss);
    add_figure(o, "idle_cpu_percent", s->idle_percent);
    add_figure(o, "idle_wakeups_per_s", s->wakeups_per_s);
    add_figure(o, "watched_cpu_percent", s->watched_percent);
    add_figure(o, "forwarder_idle_cpu_percent", s->forwarder_percent);
    add_figure(o, "forwarder_idle_wakeups_per_s", s->forwarder_wakeups_per_s);
    add_figure(o, "starts_per_s", s->starts_per_s);
    add_figure(o, "start_p50_ms", s->start_p50_ms);
    add_figure(o, "start_p99_ms", s->start_p99_ms);
    add_figure(o, "start_machine_busy_percent", s->busy_percent);
    add_figure(o, "start_daemon_cpu_ms", s->daemon_ms_per_start);
    add_figure(o, "start_daemon_share_percent", s->daemon_percent);
    json_add_string(o, "start_limiter", limiter(s));
    add_figure(o, "traffic_mb_s", s->talk_mb_s);
    add_figure(o, "check_p50_ms", s->check_p50_ms);
    add_figure(o, "check_p99_ms", s->check_p99_ms);
    add_figure(o, "stops_per_s", s->stops_per_s);
    json_add_i64(o, "vm_pss_kb", s->vm_pss_kb);
    json_add_i64(o, "after_rss_kb", s->after_rss_kb);
    json_add_i64(o, "after_anon_shmem_kb", s->after_anon_kb);
    add_census(o, "before", &s->before);
    add_census(o, "during", &s->during);
    add_census(o, "after", &s->after);
    json_add_i64(o, "left_over", s->left_over);
}

static bool report(const struct scale *s, const struct err *err)
{
    struct json_object *o = json_object_new_object();
    bool pass = err->code == 0 && judge(s);
    json_add_string(o, "name", "bench-scale");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_i64(o, "pods", s->pods);
    if (err->code == 0)
        add_figures(o, s);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

static int run_inside(void *arg)
{
    struct scale *s = arg;
    struct err err = ERR_INIT;
    struct utsname u;
    uname(&u);
    fprintf(stderr, "bench-scale: %u pods on %s %s, %ld processors\n", s->pods, u.sysname,
            u.release, sysconf(_SC_NPROCESSORS_ONLN));
    if (measure_all(s, &err) < 0)
        fprintf(stderr, "bench-scale: %s (programs' output: %s)\n", err_text(&err), s->world.log);
    return report(s, &err) ? 0 : 1;
}

static int64_t from_environment(const char *name, int64_t max, int64_t otherwise)
{
    const char *value = getenv(name);
    int64_t n;
    return value && str_to_i64(value, 1, max, &n) == 0 ? n : otherwise;
}

int main(void)
{
    static struct scale s;
    const char *log = getenv("BENCH_LOG");
    struct err err = ERR_INIT;
    s.pods = (unsigned)from_environment("SCALE_PODS", FLEET_MAX, PODS_DEFAULT);
    s.idle_s = from_environment("SCALE_IDLE", 3600, IDLE_DEFAULT);
    s.world.log = log ? log : "/dev/null";
    int r = world_here(&s.world, &err);
    if (r == 0)
        world_run(run_inside, &s, &err);
    fprintf(stderr, "bench-scale: %s\n", err_text(&err));
    return report(&s, &err) ? 0 : 1;
}
