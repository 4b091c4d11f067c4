/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: storm [--short] [--pods N] [--kills N] [--seed N] [--log FILE]      (root)
 *
 * The real daemon under the real keeper dies, again and again, at any instant, and no pod notices.
 *
 *     storm    20 pods under full load, each with calls that block, ReadStdout and CopyFile both ways
 *              and CreateContainer whose executions are counted; others come and go (lives.h). 500
 *              SIGKILLs, each a log-uniform 0.1 ms to 1 s after the exec before it
 *     loop     20 deaths in a row, each at once
 *     resume   100 idle pods (--pods): how long from exec until all tunnels are up again, 11 times
 *
 * Every call completes once, on the connection that it was made on and with the right bytes; no pod
 * ends; after StopVM nothing is left. --short: 6 pods, 60 kills. The last line is JSON.
 */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "bench/common/world.h"
#include "storm/deaths.h"
#include "storm/lives.h"
#include "storm/pods.h"

#define PODS_DIR "/run/peerpod/pods"
#define INSTANCES "/run/peerpod-local/instances"
#define VM_LOGS "/run/vm-logs"
#define PODS_MAX 4096
#define ROUNDS_MAX 16
#define DELAY_MIN_US 100
#define DELAY_DECADES 4        /* 0.1 ms to 1 s */
#define SILENCE_MAX_MS 29000   /* the shim's limit is 30 s */
#define SETTLE_US 300000       /* between two rounds of resume */
#define GONE_TIMEOUT_MS 120000 /* for deletions in the background */

struct sizes {
    unsigned loaded, lives, kills, loop, idle, rounds;
};

static const struct sizes long_form = {20, 3, 500, 20, 100, 11};
static const struct sizes short_form = {6, 2, 60, 20, 6, 3};

struct storm {
    struct sizes sizes;
    struct world world;
    unsigned seed;
    struct storm_pod *pods;
    unsigned n_pods;
    struct lives lives;
    struct deaths deaths;
    uint64_t loop_deaths;
    unsigned lost;
    int64_t silence_ms, resume_us[ROUNDS_MAX], cpu_us, wait_us[ROUNDS_MAX];
    unsigned rounds;
};

/* -- the phases -- */

static int64_t log_uniform_us(unsigned *seed)
{
    return (int64_t)(DELAY_MIN_US * pow(10, DELAY_DECADES * (rand_r(seed) / (double)RAND_MAX)));
}

static int kills(struct storm *s, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < s->sizes.kills; i++) {
        r = deaths_kill(&s->deaths, log_uniform_us(&s->seed), err);
        if (i % 50 == 49)
            fprintf(stderr, "storm: %u kills, %llu before all tunnels were up, %llu VM calls\n",
                    i + 1, (unsigned long long)s->deaths.early,
                    (unsigned long long)atomic_load(&s->lives.calls));
    }
    const struct deaths all = s->deaths;
    for (unsigned i = 0; r == 0 && i < s->sizes.loop; i++)
        r = deaths_kill(&s->deaths, 0, err);
    s->loop_deaths = s->deaths.kills - all.kills;
    s->deaths.kills = all.kills;
    s->deaths.early = all.early;
    memcpy(s->deaths.kinds, all.kinds, sizeof(all.kinds));
    return r;
}

/* Its instants are worth nothing when it has to wait for a processor. */
static void be_punctual(void)
{
    const struct sched_param first = {.sched_priority = 1};
    prctl(PR_SET_TIMERSLACK, 1);
    sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first);
}

struct killing {
    struct storm *storm;
    struct err err;
    int r;
};

static void *kill_thread(void *arg)
{
    struct killing *k = arg;
    be_punctual();
    k->r = kills(k->storm, &k->err);
    return NULL;
}

static int phase_storm(struct storm *s, struct err *err)
{
    struct killing k = {.storm = s, .err = ERR_INIT};
    struct err rest = ERR_INIT, lives = ERR_INIT;
    pthread_t killer;
    int64_t start = clock_mono_ms();
    pods_load(s->pods, s->n_pods);
    lives_begin(&s->lives, s->sizes.lives);
    pthread_create(&killer, NULL, kill_thread, &k);
    pthread_join(killer, NULL);
    int lived = lives_end(&s->lives, &lives);
    s->lost = pods_rest(s->pods, s->n_pods, &rest);
    for (unsigned i = 0; i < s->n_pods; i++)
        s->silence_ms = MAX(s->silence_ms, s->pods[i].load.longest_silence_ms);
    fprintf(stderr, "storm: %.1f s, %llu deaths, longest silence %lld ms\n",
            (double)(clock_mono_ms() - start) / 1e3,
            (unsigned long long)(s->deaths.kills + s->loop_deaths), (long long)s->silence_ms);
    if (rest.code)
        return err_set(err, rest.code, "%u pods lost, %s", s->lost, rest.text);
    if (k.r < 0)
        return err_set(err, k.r, "%s", k.err.text);
    if (lived < 0)
        return err_set(err, lived, "%s", lives.text);
    if (s->silence_ms > SILENCE_MAX_MS)
        return err_set(err, -ETIMEDOUT, "the shim's limit of silence, 30 s, was touched");
    if (s->deaths.early * 3 < s->deaths.kills)
        return err_set(err, -EINVAL, "only %llu of %llu kills came before all tunnels were up",
                       (unsigned long long)s->deaths.early, (unsigned long long)s->deaths.kills);
    return 0;
}

static int more_pods(struct storm *s, unsigned n, struct err *err)
{
    int64_t start = clock_mono_ms();
    unsigned had = s->n_pods;
    if (n <= had)
        return 0;
    s->n_pods = n;
    int r = pods_start(s->pods + had, n - had, had + 1, err);
    fprintf(stderr, "storm: %u more pods after %.1f s\n", n - had,
            (double)(clock_mono_ms() - start) / 1e3);
    return r;
}

static int resume_round(struct storm *s, struct err *err)
{
    struct resume took = {0};
    struct err check = ERR_INIT;
    int r = pods_hold(s->pods, s->n_pods, err);
    if (r == 0)
        r = deaths_kill_now(&s->deaths, err);
    if (r == 0)
        r = deaths_resume(&s->deaths, &took, err);
    if (r < 0)
        return r;
    s->wait_us[s->rounds] = took.wait_us;
    s->resume_us[s->rounds++] = took.us;
    unsigned lost = pods_check(s->pods, s->n_pods, &check);
    s->lost += lost;
    s->cpu_us = MAX(s->cpu_us, took.cpu_us);
    fprintf(stderr,
            "storm: %u tunnels up again %.1f ms after exec: %.1f ms of processor time, %.1f ms of "
            "waiting for it\n",
            s->n_pods, (double)took.us / 1e3, (double)took.cpu_us / 1e3,
            (double)took.wait_us / 1e3);
    return lost ? err_set(err, check.code, "%u pods lost, %s", lost, check.text) : 0;
}

/* A death at rest: the daemon has been serving for a while, and only then its successor counts. */
static int phase_resume(struct storm *s, struct err *err)
{
    struct resume took;
    int r = more_pods(s, s->sizes.idle, err);
    if (r == 0)
        r = deaths_resume(&s->deaths, &took, err);
    for (unsigned i = 0; r == 0 && i < s->sizes.rounds; i++) {
        usleep(SETTLE_US);
        r = resume_round(s, err);
    }
    return r;
}

/* Names that begin with a dot are the daemon's own. */
static bool is_empty(const char *path)
{
    bool empty = true;
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && empty && (e = readdir(dir));)
        empty = e->d_name[0] == '.';
    if (dir)
        closedir(dir);
    return empty;
}

static int phase_end(struct storm *s, struct err *err)
{
    int64_t end = clock_mono_ms() + GONE_TIMEOUT_MS;
    int r = pods_stop(s->pods, s->n_pods, err);
    while (r == 0 && !(is_empty(PODS_DIR) && is_empty(INSTANCES))) {
        if (clock_mono_ms() > end)
            return err_set(err, -ETIMEDOUT, "after StopVM something is left in %s or %s", PODS_DIR,
                           INSTANCES);
        usleep(10000);
    }
    return r;
}

static int run(struct storm *s, struct err *err)
{
    const char *const keeper[] = {"-restart-min", "1ms", "-restart-max", "1ms", NULL};
    const char *const flags[] = {"-vm-log-dir", VM_LOGS, NULL};
    char self[PATH_MAX];
    const char *const launcher[] = {self, "--launch", NULL};
    if (str_format(self, sizeof(self), "%s/storm", s->world.bin) < 0)
        return err_set(err, -ENAMETOOLONG, "%s", s->world.bin);
    s->world.keeper_flags = keeper;
    s->world.launcher = launcher;
    int r = deaths_open(&s->deaths, &s->lives.under_way, err);
    if (r == 0)
        r = world_start(&s->world, "bench-agent --verify", flags, err);
    if (r == 0)
        r = more_pods(s, s->sizes.loaded, err);
    if (r == 0)
        r = phase_storm(s, err);
    if (r == 0)
        r = phase_resume(s, err);
    if (r == 0)
        r = phase_end(s, err);
    return r < 0 ? r : world_check_logs(&s->world, VM_LOGS, err);
}

/* -- the report -- */

static int by_size(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void add_sorted(struct json_object *o, const char *key, int64_t *us, unsigned n)
{
    struct json_object *all = json_object_new_array();
    qsort(us, n, sizeof(*us), by_size);
    for (unsigned i = 0; i < n; i++)
        json_object_array_add(all, json_object_new_int64(us[i] / 1000));
    json_object_object_add(o, key, all);
}

static void add_resume(struct storm *s, struct json_object *o)
{
    add_sorted(o, "resume_ms", s->resume_us, s->rounds);
    add_sorted(o, "resume_waiting_for_cpu_ms", s->wait_us, s->rounds);
    json_add_i64(o, "resume_pods", s->n_pods);
    json_add_i64(o, "resume100_ms", s->rounds ? s->resume_us[s->rounds - 1] / 1000 : -1);
    json_add_i64(o, "resume_cpu_ms", s->cpu_us / 1000);
}

static bool print_json(struct storm *s, const struct err *err)
{
    struct json_object *o = json_object_new_object();
    uint64_t calls = atomic_load(&s->lives.calls) + atomic_load(&s->lives.checked);
    uint64_t bytes = 0, wrong = 0, failed = 0, twice = 0;
    for (unsigned i = 0; i < s->n_pods; i++) {
        const struct load *l = &s->pods[i].load;
        calls += l->calls;
        bytes += l->read_bytes + l->copy_bytes + l->creates * TRAFFIC_CREATE;
        wrong += l->wrong + s->pods[i].agent.wrong;
        failed += l->failed;
        twice += s->pods[i].agent.twice;
    }
    bool pass = err->code == 0 && wrong + failed + twice + s->lost == 0;
    json_add_string(o, "name", "storm");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_i64(o, "kills", (int64_t)s->deaths.kills);
    json_add_i64(o, "kills_before_recovery_ended", (int64_t)s->deaths.early);
    json_object_object_add(o, "deaths", deaths_json(&s->deaths));
    json_add_i64(o, "crash_loop", (int64_t)s->loop_deaths);
    json_add_i64(o, "calls", (int64_t)calls);
    json_add_i64(o, "bytes", (int64_t)bytes);
    json_add_i64(o, "wrong", (int64_t)wrong);
    json_add_i64(o, "failed", (int64_t)failed);
    json_add_i64(o, "twice", (int64_t)twice);
    json_add_i64(o, "lost_pods", s->lost);
    json_add_i64(o, "vms_started", (int64_t)atomic_load(&s->lives.started));
    json_add_i64(o, "accepted_and_not_stored", (int64_t)atomic_load(&s->lives.excepted));
    json_add_i64(o, "longest_silence_ms", s->silence_ms);
    add_resume(s, o);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

static int run_inside(void *arg)
{
    struct storm *s = arg;
    struct err err = ERR_INIT;
    unsigned seed = s->seed;
    if (run(s, &err) < 0)
        fprintf(stderr, "storm: %s (seed %u; programs' output: %s)\n", err_text(&err), seed,
                s->world.log);
    return print_json(s, &err) ? 0 : 1;
}

static int usage(void)
{
    fprintf(stderr, "usage: storm [--short] [--pods N] [--kills N] [--seed N] [--log FILE]\n");
    return 2;
}

static bool number(const char *word, uint64_t max, unsigned *ret)
{
    uint64_t n;
    if (!word || str_to_u64(word, max, &n) < 0)
        return false;
    *ret = (unsigned)n;
    return true;
}

static bool parse(struct storm *s, char **argv)
{
    bool ok = true;
    for (char **at = argv + 1; ok && *at; at++) {
        if (str_eq(*at, "--short"))
            s->sizes = short_form;
        else if (str_eq(*at, "--pods"))
            ok = number(*++at, PODS_MAX, &s->sizes.idle);
        else if (str_eq(*at, "--kills"))
            ok = number(*++at, 1000000, &s->sizes.kills);
        else if (str_eq(*at, "--seed"))
            ok = number(*++at, UINT32_MAX, &s->seed);
        else
            ok = str_eq(*at, "--log") && (s->world.log = *++at);
    }
    return ok;
}

int main(int argc, char **argv)
{
    static struct storm s;
    struct err err = ERR_INIT;
    if (argc > 2 && str_eq(argv[1], "--launch"))
        deaths_launch(argv + 2);
    s.sizes = long_form;
    s.world.log = "/dev/null";
    s.seed = (unsigned)clock_mono_us();
    if (!parse(&s, argv))
        return usage();
    if (geteuid() != 0) {
        fprintf(stderr, "storm: needs root, to make namespaces\n");
        return getenv("STRICT") && str_eq(getenv("STRICT"), "1") ? 1 : 77;
    }
    s.pods = xcalloc(MAX(s.sizes.idle, s.sizes.loaded), sizeof(*s.pods));
    int r = world_here(&s.world, &err);
    if (r == 0)
        world_run(run_inside, &s, &err);
    fprintf(stderr, "storm: %s\n", err_text(&err));
    return print_json(&s, &err) ? 0 : 1;
}
