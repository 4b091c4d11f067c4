/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: takeover [--short] [--pods N] [--older DIR] [--log FILE]      (root)
 *
 * Two versions of the daemon take each other's work over, again and again, under load.
 *
 * The one is built here, the other by older.sh (--older: where; without it ours takes both parts).
 * First the older one serves; then each is started beside the other, under a keeper of its own, and
 * takes over: an update, a rollback, an update, ...
 *
 * Meanwhile every pod has calls under way on one connection: ReadStdout of 32 KiB, Check and now and then
 * CopyFile of 1 MiB, PACE_US apart so that a silence is seen, and one WaitProcess that is held all the
 * time; others come and go (storm/lives.h). No call may fail or be executed twice, no byte be wrong, no
 * pod be silent for SILENCE_MAX_MS; every daemon that was taken over from, and its keeper, have ended
 * as they should.
 *
 * Long form: 100 pods, 6 take-overs; --short: 10 pods, 2. The last line is JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "bench/common/world.h"
#include "relay/fdstore.h"
#include "storm/lives.h"
#include "storm/pods.h"

#define VM_LOGS "/run/vm-logs"
#define PODS_MAX 1000
#define TAKEOVERS_MAX 16
#define PACE_US 30000
#define COPY_EVERY 40 /* calls */
#define CALL_TIMEOUT_MS 30000
#define SILENCE_MAX_MS 2000
#define END_TIMEOUT_MS 30000 /* of the one that was taken over from */
#define AFTER_US 1500000     /* between two take-overs, for what comes late */

struct sizes {
    unsigned pods, takeovers, lives;
};

static const struct sizes long_form = {100, 6, 2};
static const struct sizes short_form = {10, 2, 1};

struct paced {
    struct storm_pod *pod;
    pthread_t thread;
    const bool *stop; /* atomic */
    uint64_t calls, reads, copies, checks, read_at, copied;
    int64_t answered_ms; /* atomic */
    int64_t silence_ms;  /* atomic; since it was set to 0 */
    int r;
    struct err err;
};

struct test {
    struct sizes sizes;
    struct world here, older; /* older.bin "": ours takes both parts */
    struct storm_pod *pods;
    struct paced *paced;
    bool stop;
    struct lives lives;
    int64_t baseline_ms, silence_ms[TAKEOVERS_MAX];
    unsigned takeovers, lost;
    char commit[64];
};

/* -- load -- */

static int ask(struct paced *p, int64_t sent, struct reply *ret)
{
    int r = sent < 0 ? (int)sent : client_receive(&p->pod->load.client, ret);
    if (r == 0 && (ret->stream != (uint32_t)sent || ret->code != 0))
        r = -EPROTO;
    return r;
}

static int read_some(struct paced *p)
{
    struct reply reply;
    int r = ask(p, client_read(&p->pod->load.client, 0, TRAFFIC_READ), &reply);
    if (r == 0 && (reply.len != TRAFFIC_READ ||
                   memcmp(reply.data, traffic_bytes(0, p->read_at), TRAFFIC_READ) != 0))
        r = -EBADMSG;
    p->read_at += TRAFFIC_READ;
    p->reads++;
    return r;
}

static int one_call(struct paced *p)
{
    struct client *c = &p->pod->load.client;
    struct reply reply;
    if (p->calls % COPY_EVERY == 0) {
        int r = ask(p, client_copy(c, 0, p->copied, UINT64_MAX >> 1), &reply);
        p->copied += TRAFFIC_COPY;
        p->copies++;
        return r;
    }
    if (p->calls % 2)
        return read_some(p);
    p->checks++;
    return ask(p, client_check(c), &reply);
}

static void answered(struct paced *p)
{
    int64_t now = clock_mono_ms(), gap = now - p->answered_ms;
    __atomic_store_n(&p->answered_ms, now, __ATOMIC_RELAXED);
    if (gap > __atomic_load_n(&p->silence_ms, __ATOMIC_RELAXED))
        __atomic_store_n(&p->silence_ms, gap, __ATOMIC_RELAXED);
}

static void *pace(void *arg)
{
    struct paced *p = arg;
    client_timeout(&p->pod->load.client, CALL_TIMEOUT_MS);
    while (p->r == 0 && !__atomic_load_n(p->stop, __ATOMIC_RELAXED)) {
        p->r = one_call(p);
        p->calls++;
        answered(p);
        usleep(PACE_US);
    }
    if (p->r < 0)
        err_errno(&p->err, p->r, "pod %.8s, call %llu", p->pod->id, (unsigned long long)p->calls);
    return NULL;
}

static void load_begin(struct test *t)
{
    for (unsigned i = 0; i < t->sizes.pods; i++) {
        t->paced[i] = (struct paced){
            .pod = &t->pods[i], .stop = &t->stop, .answered_ms = clock_mono_ms(), .err = ERR_INIT};
        pthread_create(&t->paced[i].thread, NULL, pace, &t->paced[i]);
    }
    lives_begin(&t->lives, t->sizes.lives);
}

/* What the agent has executed is what was answered. */
static int settle(struct paced *p, struct err *err)
{
    struct traffic_counters *k = &p->pod->agent;
    struct reply reply;
    uint64_t checks = p->checks + p->pod->load.checks; /* with the pod's first call */
    int r = ask(p, client_counters(&p->pod->load.client), &reply);
    if (r == 0 && reply.len != sizeof(*k))
        r = -EPROTO;
    if (r < 0)
        return err_errno(err, r, "pod %.8s: asking the agent", p->pod->id);
    memcpy(k, reply.data, sizeof(*k));
    if (k->reads != p->reads || k->copies != p->copies || k->checks != checks || k->twice ||
        k->wrong)
        return err_set(err, -EPROTO,
                       "pod %.8s: answered / executed: reads %llu/%llu, copies %llu/%llu, checks "
                       "%llu/%llu; %llu wrong",
                       p->pod->id, (unsigned long long)p->reads, (unsigned long long)k->reads,
                       (unsigned long long)p->copies, (unsigned long long)k->copies,
                       (unsigned long long)checks, (unsigned long long)k->checks,
                       (unsigned long long)k->wrong);
    return 0;
}

static int load_end(struct test *t, struct err *err)
{
    struct err lives = ERR_INIT;
    int lived = lives_end(&t->lives, &lives), r = 0;
    __atomic_store_n(&t->stop, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < t->sizes.pods; i++) {
        struct paced *p = &t->paced[i];
        pthread_join(p->thread, NULL);
        if (p->r == 0)
            p->r = settle(p, &p->err);
        t->lost += p->r < 0;
        if (p->r < 0 && r == 0)
            r = err_set(err, p->r, "%s", err_text(&p->err));
    }
    if (r == 0 && lived < 0)
        r = err_set(err, lived, "%s", lives.text);
    return r;
}

/* The longest since the last time, those that last included. */
static int64_t take_silence(struct test *t)
{
    int64_t longest = 0;
    for (unsigned i = 0; i < t->sizes.pods; i++) {
        struct paced *p = &t->paced[i];
        int64_t ended = __atomic_exchange_n(&p->silence_ms, 0, __ATOMIC_RELAXED);
        int64_t lasts = clock_mono_ms() - __atomic_load_n(&p->answered_ms, __ATOMIC_RELAXED);
        longest = MAX(longest, MAX(ended, lasts));
    }
    return longest;
}

/* -- daemons -- */

static int start(struct test *t, struct world *w, struct err *err)
{
    char agent[PATH_MAX + 32];
    const char *const flags[] = {
        "-local-agent", agent, "-local-guest-dir", t->here.bin, "-vm-log-dir", VM_LOGS, NULL};
    if (str_format(agent, sizeof(agent), "%s/bench-agent --verify", t->here.bin) < 0)
        return err_set(err, -ENAMETOOLONG, "%s", t->here.bin);
    return world_start(w, NULL, flags, err);
}

static int wait_end(struct world *w, struct err *err)
{
    int64_t end = clock_mono_ms() + END_TIMEOUT_MS;
    int status;
    while (waitpid(w->keeper, &status, WNOHANG) == 0) {
        if (clock_mono_ms() > end)
            return err_set(err, -ETIMEDOUT, "the predecessor does not hand over");
        usleep(1000);
    }
    w->keeper = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != FDSTORE_EXIT_HANDED_OVER)
        return err_set(err, -EPROTO, "the predecessor's keeper ended with wait status %#x", status);
    return 0;
}

/* What serves now is the program that we mean. */
static int check_program(const struct world *w, struct err *err)
{
    char link[64], path[PATH_MAX] = "";
    (void)str_format(link, sizeof(link), "/proc/%d/exe", (int)world_pid("cloud-api-adaptor"));
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    size_t bin = strlen(w->bin);
    if (n > (ssize_t)bin && memcmp(path, w->bin, bin) == 0 && path[bin] == '/')
        return 0;
    return err_set(err, -ENOENT, "%s serves instead of one in %s", path, w->bin);
}

static int take_over(struct test *t, struct world *from, struct world *to, struct err *err)
{
    int64_t began = clock_mono_ms();
    int r = start(t, to, err);
    if (r == 0)
        r = wait_end(from, err);
    if (r == 0)
        r = check_program(to, err);
    int64_t took = clock_mono_ms() - began;
    usleep(AFTER_US);
    int64_t silence = take_silence(t);
    fprintf(stderr, "takeover: to %s in %lld ms, longest silence %lld ms\n",
            to == &t->here ? "ours" : "the older one", (long long)took, (long long)silence);
    t->silence_ms[t->takeovers++] = silence;
    if (r == 0 && silence > SILENCE_MAX_MS)
        r = err_set(err, -ETIMEDOUT, "a pod was silent for %lld ms", (long long)silence);
    return r;
}

static int takeovers(struct test *t, struct err *err)
{
    int r = 0;
    usleep(AFTER_US);
    take_silence(t);
    usleep(AFTER_US);
    t->baseline_ms = take_silence(t);
    for (unsigned i = 0; r == 0 && i < t->sizes.takeovers; i++)
        r = i % 2 ? take_over(t, &t->here, &t->older, err) : take_over(t, &t->older, &t->here, err);
    return r;
}

static int run(struct test *t, struct err *err)
{
    struct err load = ERR_INIT;
    unsigned n = t->sizes.pods;
    int r = start(t, &t->older, err);
    if (r == 0)
        r = pods_start(t->pods, n, 1, err);
    if (r == 0)
        r = pods_hold(t->pods, n, err);
    if (r < 0)
        return r;
    load_begin(t);
    r = takeovers(t, err);
    int loaded = load_end(t, &load);
    if (loaded < 0) { /* the better reason */
        err_clear(err);
        return err_set(err, loaded, "%s", load.text);
    }
    if (r == 0 && (t->lost = pods_check(t->pods, n, err)) > 0)
        return err->code;
    if (r == 0)
        r = pods_stop(t->pods, n, err);
    return r < 0 ? r : world_check_logs(&t->here, VM_LOGS, err);
}

/* -- the report -- */

static bool print_json(const struct test *t, const struct err *err)
{
    struct json_object *o = json_object_new_object(), *all = json_object_new_array();
    int64_t longest = 0;
    uint64_t calls = atomic_load(&t->lives.calls), wrong = 0, twice = 0, bytes = 0;
    for (unsigned i = 0; i < t->sizes.pods; i++) {
        calls += t->paced[i].calls;
        bytes += t->paced[i].read_at + t->paced[i].copied;
        wrong += t->pods[i].agent.wrong;
        twice += t->pods[i].agent.twice;
    }
    for (unsigned i = 0; i < t->takeovers; i++) {
        longest = MAX(longest, t->silence_ms[i]);
        json_object_array_add(all, json_object_new_int64(t->silence_ms[i]));
    }
    uint64_t cut = atomic_load(&t->lives.excepted);
    bool pass = err->code == 0 && wrong + twice + t->lost + cut == 0;
    json_add_string(o, "name", "takeover");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_string(o, "older", *t->commit ? t->commit : NULL);
    json_add_i64(o, "pods", t->sizes.pods);
    json_add_i64(o, "takeovers", t->takeovers);
    json_add_i64(o, "calls", (int64_t)calls);
    json_add_i64(o, "bytes", (int64_t)bytes);
    json_add_i64(o, "wrong", (int64_t)wrong);
    json_add_i64(o, "twice", (int64_t)twice);
    json_add_i64(o, "cut_off", (int64_t)cut);
    json_add_i64(o, "lost_pods", t->lost);
    json_add_i64(o, "vms_started", (int64_t)atomic_load(&t->lives.started));
    json_add_i64(o, "silence_without_ms", t->baseline_ms);
    json_object_object_add(o, "silences_ms", all);
    json_add_i64(o, "longest_silence_ms", longest);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

static int run_inside(void *arg)
{
    struct test *t = arg;
    struct err err = ERR_INIT;
    if (run(t, &err) < 0)
        fprintf(stderr, "takeover: %s (programs' output: %s)\n", err_text(&err), t->here.log);
    return print_json(t, &err) ? 0 : 1;
}

static bool parse(struct test *t, char **argv, const char **older)
{
    bool ok = true;
    for (char **at = argv + 1; ok && *at; at++) {
        uint64_t n = 0;
        if (str_eq(*at, "--short"))
            t->sizes = short_form;
        else if (str_eq(*at, "--older"))
            ok = (*older = *++at);
        else if (str_eq(*at, "--pods"))
            ok = *++at && str_to_u64(*at, PODS_MAX, &n) == 0 && (t->sizes.pods = (unsigned)n) > 0;
        else
            ok = str_eq(*at, "--log") && (t->here.log = *++at);
    }
    return ok;
}

static int skip(const char *why)
{
    fprintf(stderr, "skipped: takeover: %s\n", why);
    return str_eq(getenv("STRICT"), "1") ? 1 : 77;
}

/* Where its programs lie, and what they are. */
static int find_older(struct test *t, const char *dir)
{
    char path[PATH_MAX];
    _cleanup_free_ char *commit = NULL, *whole = dir ? realpath(dir, NULL) : NULL;
    t->older = t->here;
    if (!dir)
        return 0;
    if (!whole || str_format(t->older.bin, sizeof(t->older.bin), "%s/bin", whole) < 0 ||
        str_format(path, sizeof(path), "%s/commit", whole) < 0 ||
        fs_read(AT_FDCWD, path, sizeof(t->commit) - 1, &commit, NULL, NULL) < 0)
        return -ENOENT;
    commit[strcspn(commit, "\n")] = '\0';
    return str_format(t->commit, sizeof(t->commit), "%s", commit);
}

int main(int argc _unused_, char **argv)
{
    static struct test t;
    const char *older = NULL;
    struct err err = ERR_INIT;
    t.sizes = long_form;
    t.here.log = "/dev/null";
    if (!parse(&t, argv, &older)) {
        fprintf(stderr, "usage: takeover [--short] [--pods N] [--older DIR] [--log FILE]\n");
        return 2;
    }
    if (geteuid() != 0)
        return skip("needs root, to make namespaces");
    t.pods = xcalloc(t.sizes.pods, sizeof(*t.pods));
    t.paced = xcalloc(t.sizes.pods, sizeof(*t.paced));
    int r = world_here(&t.here, &err);
    if (r == 0 && find_older(&t, older) < 0)
        return skip("the older version was not built (test chain.older)");
    if (r == 0)
        world_run(run_inside, &t, &err);
    fprintf(stderr, "takeover: %s\n", err_text(&err));
    return print_json(&t, &err) ? 0 : 1;
}
