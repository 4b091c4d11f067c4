/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill_loop: kills relays at any instant and compares every byte that went through them.
 *
 * usage: kill_loop [--kills N] [--mode all|random|steps|keeper] [--seed S] [--keeper PROGRAM]
 *
 * Ends with one line of JSON on stdout and 0, 1 (a byte was wrong, or anything else failed) or 77
 * (nothing was run, because this machine does not let us trace; 1 with STRICT=1).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "relay/round.h"

#define SKIPPED 77
#define LIVELY 300 /* kills that lead everywhere */

struct options {
    uint64_t kills, seed;
    const char *mode;
    char keeper[512];
};

static int usage(void)
{
    fputs("usage: kill_loop [--kills N] [--mode all|random|steps|keeper] [--seed S] "
          "[--keeper PROGRAM]\n",
          stderr);
    return 2;
}

/* A worker of the keeper's: --worker DIR. */
static bool parse(int argc, char **argv, struct options *o, const char **worker)
{
    static const struct option longs[] = {
        {"kills", required_argument, NULL, 'k'},  {"mode", required_argument, NULL, 'm'},
        {"seed", required_argument, NULL, 's'},   {"keeper", required_argument, NULL, 'p'},
        {"worker", required_argument, NULL, 'w'}, {0}};
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        bool right = true;
        if (c == 'k')
            right = str_to_u64(optarg, 1000000000, &o->kills) == 0 && o->kills > 0;
        else if (c == 's')
            right = str_to_u64(optarg, UINT64_MAX, &o->seed) == 0;
        else if (c == 'm')
            o->mode = optarg;
        else if (c == 'p')
            snprintf(o->keeper, sizeof(o->keeper), "%s", optarg);
        else if (c == 'w')
            *worker = optarg;
        else
            right = false;
        if (!right)
            return false;
    }
    return optind == argc && (str_eq(o->mode, "all") || str_eq(o->mode, "random") ||
                              str_eq(o->mode, "steps") || str_eq(o->mode, "keeper"));
}

/* The keeper is built beside us. */
static void find_keeper(struct options *o)
{
    char self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[MAX(n, 0)] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    snprintf(o->keeper, sizeof(o->keeper), "%s/peerpod-keeper", self);
}

/* Removes the directory when we are gone, however we went. */
static void start_janitor(const char *dir)
{
    int p[2];
    char c;

    if (pipe2(p, O_CLOEXEC) < 0 || fork() != 0)
        return;
    close(p[1]);
    setsid();
    while (read(p[0], &c, 1) < 0 && errno == EINTR)
        ;
    fs_remove_tree(AT_FDCWD, dir, NULL);
    _exit(0);
}

/* What was seen was hit; and the streams were lively enough to show what a relay can do. */
static void check_steps(struct report *r)
{
    static const char *const stores[] = {"magic",
                                         "in_base",
                                         "in_taking",
                                         "in_tail",
                                         "in_eof",
                                         "out_fin",
                                         "out_slot",
                                         "slot[0].head",
                                         "slot[1].head",
                                         "slot[0].user",
                                         "slot[1].user",
                                         "out_call",
                                         "call[0].base",
                                         "call[1].base",
                                         "call[0].msg.msg_len",
                                         "call[1].msg.msg_len"};
    char name[REPORT_NAME_MAX];

    for (size_t i = 0; i < r->n_steps; i++) {
        fprintf(stderr, "%8llu killed of %8llu  %s\n", (unsigned long long)r->steps[i].killed,
                (unsigned long long)r->steps[i].seen, r->steps[i].name);
        if (r->steps[i].killed == 0)
            report_fail(r, "step '%s' was seen and never killed at", r->steps[i].name);
    }
    for (size_t i = 0; r->kills >= LIVELY && i < ARRAY_SIZE(stores); i++) {
        snprintf(name, sizeof(name), "store %s after", stores[i]);
        if (report_step(r, name)->seen == 0)
            report_fail(r, "the run never came to '%s'", name);
    }
}

static bool run_steps(struct rig *rig, uint64_t kills, bool alone)
{
    int r = tracer_check();

    if (r < 0) {
        fprintf(stderr, "kill_loop: cannot trace (%s): the steps are skipped\n", strerror(-r));
        if (getenv("STRICT"))
            report_fail(rig->report, "STRICT=1, and tracing is not possible");
        return !alone;
    }
    round_steps(rig, kills);
    check_steps(rig->report);
    return true;
}

static bool run_modes(struct rig *rig, const struct options *o)
{
    bool all = str_eq(o->mode, "all");

    if (all || str_eq(o->mode, "random"))
        round_random(rig, all ? o->kills * 6 / 10 + 1 : o->kills);
    if (!rig->report->message[0] && (all || str_eq(o->mode, "keeper")))
        round_keeper(rig, all ? (o->kills + 9) / 10 : o->kills);
    if (!rig->report->message[0] && (all || str_eq(o->mode, "steps")))
        return run_steps(rig, all ? o->kills * 3 / 10 + 1 : o->kills, !all);
    return true;
}

int main(int argc, char **argv)
{
    static struct report report;
    struct options o = {.kills = 1000, .seed = (uint64_t)clock_real_ms(), .mode = "all"};
    const char *worker = NULL, *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    char dir[64];

    signal(SIGPIPE, SIG_IGN);
    find_keeper(&o);
    if (!parse(argc, argv, &o, &worker))
        return usage();
    if (worker)
        return worker_kept(worker);
    fprintf(stderr, "kill_loop: seed %llu\n", (unsigned long long)o.seed);
    snprintf(dir, sizeof(dir), "%s/kill-loop.XXXXXX", parent);
    if (!mkdtemp(dir)) {
        perror(dir);
        return 1;
    }
    start_janitor(dir);
    struct rig rig = {.dir = dir, .random = o.seed, .report = &report, .keeper = o.keeper};
    rig.dirfd = open(dir, O_DIRECTORY | O_CLOEXEC);
    rig.shared =
        mmap(NULL, sizeof(*rig.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int64_t start = clock_mono_ms();
    bool ran = run_modes(&rig, &o);
    report_print(&report, (double)(clock_mono_ms() - start) / 1000);
    if (report.message[0])
        return 1;
    return ran ? 0 : SKIPPED;
}
