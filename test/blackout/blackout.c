/* SPDX-License-Identifier: Apache-2.0 */
/*
 * usage: blackout [--short] [--log FILE]      (root)
 *
 * The real daemon, a pod of the `local` provider with the real forwarder, and everything that may
 * happen to the path between them, under load (load.h). Whatever happens, the shim must see
 * nothing: all bytes identical, no call failed, none executed twice.
 *
 *     enrolment   pods are started while most of the tunnel's connections are reset at once
 *     resets      a TCP reset every 200 ms, the instants unrelated to frames
 *     hello       two of three connections within their first 12 ms: in handshake, hello, resume
 *     blackhole   every packet dropped for 20 s
 *     kills       SIGKILL to the forwarder every 300 ms; its keeper in the VM starts it again
 *     both        resets and kills together
 *     reader      a second connection whose reader has stopped, beside the load
 *
 * Long form: 1 GiB of ReadStdout and of CopyFile in `resets` and in `kills`; --short: 64 MiB. The
 * last line is JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "bench/common/world.h"
#include "blackout/faults.h"
#include "blackout/load.h"
#include "control.pb-c.h"
#include "wire/ttrpc_client.h"

#define CONTROL_SOCKET "/run/peerpod/control.sock"
#define VM_LOGS "/run/vm-logs"
#define MIB ((uint64_t)1 << 20)
#define STOPPED_READS 64     /* of a reader that does not read: more than rings and sockets hold */
#define PHASE_MIN_MS 2500    /* some of each fault, however fast the machine */
#define SILENCE_MAX_MS 29000 /* the shim's limit is 30 s */

struct sizes {
    uint64_t bulk, some; /* bytes of each kind */
    int64_t blackhole_ms, hello_ms, reader_ms;
    int pods;
};

static const struct sizes long_form = {1024 * MIB, 256 * MIB, 20000, 20000, 16000, 20};
static const struct sizes short_form = {64 * MIB, 16 * MIB, 3000, 2000, 1000, 3};

struct blackout {
    const struct sizes *sizes;
    struct world world;
    struct pod pod;
    struct load load;
    struct faults faults;
    unsigned seed;
    uint64_t redials;
    int64_t longest_ms;
    struct traffic_counters agent;
};

static int redials(uint64_t *ret, struct err *err)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = NULL;
    Peerpod__StatusRequest q = PEERPOD__STATUS_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    int r = ttrpc_client_connect(CONTROL_SOCKET, 5000, &c, err);
    if (r == 0)
        r = ttrpc_client_call(c, "peerpod.Control", "Status", &q.base,
                              &peerpod__status_response__descriptor, 5000, &m, NULL, err);
    if (r < 0)
        return r;
    const Peerpod__StatusResponse *s = (const Peerpod__StatusResponse *)m;
    *ret = s->n_sandboxes == 1 ? s->sandboxes[0]->reconnects : 0;
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

/* Load while faults happen. */
static int phase(struct blackout *b, const char *name, const struct faults_plan *plan,
                 uint64_t bytes, int64_t min_ms, struct err *err)
{
    struct faults done = {0};
    int64_t start = clock_mono_ms();
    uint64_t calls = b->load.calls, before = 0, after = 0;
    int r = redials(&before, err);
    if (r < 0)
        return r;
    faults_start(plan, b->seed++);
    r = load_run(&b->load, bytes, min_ms, err);
    faults_stop(&done);
    if (r == 0)
        r = redials(&after, err);
    fprintf(stderr,
            "blackout: %-10s %6.1f s, %llu calls, %llu resets, %llu kills, %llu redials, longest "
            "silence %lld ms\n",
            name, (double)(clock_mono_ms() - start) / 1e3,
            (unsigned long long)(b->load.calls - calls), (unsigned long long)done.resets,
            (unsigned long long)done.kills, (unsigned long long)(after - before),
            (long long)b->load.longest_silence_ms);
    b->faults.resets += done.resets;
    b->faults.kills += done.kills;
    b->longest_ms = MAX(b->longest_ms, b->load.longest_silence_ms);
    if (r < 0)
        return err_wrap(err, r, "%s", name);
    if (((plan->reset_max_ms || plan->young_ms) && !done.resets) ||
        (plan->kill_max_ms && !done.kills))
        return err_set(err, -EINVAL, "%s: nothing happened that could be survived", name);
    return load_settle(&b->load, &b->agent, err);
}

static int phase_enrolment(struct blackout *b, struct err *err)
{
    const struct faults_plan plan = {.young_ms = 4};
    /* A handshake that was faster than its reset proves nothing: more pods then. */
    for (int i = 0; i < b->sizes->pods || (!b->faults.resets && i < 10 * b->sizes->pods); i++) {
        uint64_t before = b->faults.resets;
        faults_start(&plan, b->seed++);
        int r = pod_start(&b->pod, 1000 + (unsigned)i, err);
        faults_stop(&b->faults);
        if (r == 0)
            r = pod_stop(&b->pod, err);
        fprintf(stderr, "blackout: enrolment  pod %d, %llu resets: %s\n", i + 1,
                (unsigned long long)(b->faults.resets - before), r == 0 ? "runs" : err_text(err));
        if (r < 0)
            return err_wrap(err, r, "enrolment");
    }
    return b->faults.resets ? 0 : err_set(err, -EINVAL, "enrolment: nothing was reset");
}

struct hole {
    const struct world *world;
    int64_t ms;
    struct err err;
};

static void *hole_thread(void *p)
{
    struct hole *h = p;
    usleep(300000);
    if (faults_blackhole(h->world, true, &h->err) == 0) {
        usleep((useconds_t)h->ms * 1000);
        faults_blackhole(h->world, false, &h->err);
    }
    return NULL;
}

static int phase_blackhole(struct blackout *b, struct err *err)
{
    const struct faults_plan none = {0};
    struct hole h = {.world = &b->world, .ms = b->sizes->blackhole_ms, .err = ERR_INIT};
    pthread_t thread;
    pthread_create(&thread, NULL, hole_thread, &h);
    int r = phase(b, "blackhole", &none, 0, h.ms + 1000, err);
    pthread_join(thread, NULL);
    if (r == 0 && h.err.code)
        return err_set(err, h.err.code, "%s", h.err.text);
    if (r == 0 && b->load.longest_silence_ms < h.ms / 2)
        return err_set(err, -EINVAL, "the blackhole let packets through");
    return r;
}

static int reader_drain(struct client *c, struct err *err)
{
    const uint32_t stream = TRAFFIC_STREAMS - 1;
    for (uint64_t i = 0; i < STOPPED_READS; i++) {
        struct reply reply;
        int r = client_receive(c, &reply);
        if (r < 0)
            return err_errno(err, r, "the stopped reader, answer %d", (int)i);
        if (reply.len != TRAFFIC_READ ||
            memcmp(reply.data, traffic_bytes(stream, i * TRAFFIC_READ), TRAFFIC_READ) != 0)
            return err_set(err, -EPROTO, "the stopped reader: wrong bytes in answer %d", (int)i);
    }
    return 0;
}

/* The load and its answers go on, and the session lasts: nothing delays its pings. */
static int phase_reader(struct blackout *b, struct err *err)
{
    struct client c;
    uint64_t before = 0, after = 0;
    int64_t sent = 0;
    int r = client_open(&c, b->pod.socket, err);
    if (r < 0)
        return r;
    client_timeout(&c, 10000);
    for (int i = 0; sent >= 0 && i < STOPPED_READS; i++)
        sent = client_read(&c, TRAFFIC_STREAMS - 1, TRAFFIC_READ);
    r = sent < 0 ? err_errno(err, (int)sent, "the stopped reader") : redials(&before, err);
    b->load.reads += STOPPED_READS;
    if (r == 0)
        r = load_run(&b->load, b->sizes->some, b->sizes->reader_ms, err);
    int64_t silence = b->load.longest_silence_ms;
    if (r == 0)
        r = redials(&after, err);
    if (r == 0)
        r = reader_drain(&c, err);
    client_close(&c);
    fprintf(stderr, "blackout: reader     stopped; beside it the longest silence was %lld ms\n",
            (long long)silence);
    if (r == 0 && (silence > 1000 || after != before))
        return err_set(err, -ETIMEDOUT, "a stopped reader delayed others by %lld ms, %llu redials",
                       (long long)silence, (unsigned long long)(after - before));
    return r < 0 ? r : load_settle(&b->load, &b->agent, err);
}

static int phases(struct blackout *b, struct err *err)
{
    const struct sizes *s = b->sizes;
    const struct faults_plan resets = {.reset_min_ms = 150, .reset_max_ms = 250};
    const struct faults_plan hello = {.young_ms = 12};
    const struct faults_plan kills = {.kill_min_ms = 250, .kill_max_ms = 350};
    const struct faults_plan both = {
        .reset_min_ms = 100, .reset_max_ms = 400, .kill_min_ms = 200, .kill_max_ms = 900};
    int r = phase(b, "resets", &resets, s->bulk, PHASE_MIN_MS, err);
    if (r == 0)
        r = phase(b, "hello", &hello, 0, s->hello_ms, err);
    if (r == 0)
        r = phase_blackhole(b, err);
    if (r == 0)
        r = phase(b, "kills", &kills, s->bulk, PHASE_MIN_MS, err);
    if (r == 0)
        r = phase(b, "both", &both, s->some, PHASE_MIN_MS, err);
    if (r == 0)
        r = phase_reader(b, err);
    if (r == 0)
        r = redials(&b->redials, err);
    if (r == 0 && b->longest_ms > SILENCE_MAX_MS)
        r = err_set(err, -ETIMEDOUT, "the shim's limit of silence, 30 s, was touched");
    return r;
}

static int blackout_run(struct blackout *b, struct err *err)
{
    const char *const flags[] = {"-vm-log-dir", VM_LOGS, NULL};
    int r = world_start(&b->world, "bench-agent --verify", flags, err);
    if (r == 0)
        r = phase_enrolment(b, err);
    if (r == 0)
        r = pod_start(&b->pod, 1, err);
    if (r == 0)
        r = load_open(&b->load, b->pod.socket, err);
    if (r == 0)
        r = phases(b, err);
    return r < 0 ? r : world_check_logs(&b->world, VM_LOGS, err);
}

static bool print_json(const struct blackout *b, const struct err *err)
{
    struct json_object *o = json_object_new_object();
    uint64_t wrong = b->load.wrong + b->agent.wrong;
    bool pass = err->code == 0 && wrong == 0 && b->load.failed == 0 && b->agent.twice == 0;
    json_add_string(o, "name", "blackout");
    json_add_bool(o, "pass", pass);
    json_add_string(o, "error", err->code ? err->text : NULL);
    json_add_i64(o, "redials", (int64_t)b->redials);
    json_add_i64(o, "resets", (int64_t)b->faults.resets);
    json_add_i64(o, "kills", (int64_t)b->faults.kills);
    json_add_i64(
        o, "bytes",
        (int64_t)(b->load.read_bytes + b->load.copy_bytes + b->load.creates * TRAFFIC_CREATE));
    json_add_i64(o, "wrong", (int64_t)wrong);
    json_add_i64(o, "calls", (int64_t)b->load.calls);
    json_add_i64(o, "failed", (int64_t)b->load.failed);
    json_add_i64(o, "creates", (int64_t)b->load.creates);
    json_add_i64(o, "twice", (int64_t)b->agent.twice);
    json_add_i64(o, "longest_silence_ms", b->longest_ms);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
    return pass;
}

static int run_inside(void *arg)
{
    struct blackout *b = arg;
    struct err err = ERR_INIT;
    if (blackout_run(b, &err) < 0)
        fprintf(stderr, "blackout: %s (seed %u; programs' output: %s)\n", err_text(&err), b->seed,
                b->world.log);
    return print_json(b, &err) ? 0 : 1;
}

int main(int argc, char **argv)
{
    static struct blackout b = {.sizes = &long_form};
    struct err err = ERR_INIT;
    b.world.log = "/dev/null";
    b.seed = (unsigned)clock_mono_us();
    for (int i = 1; i < argc; i++) {
        if (str_eq(argv[i], "--short"))
            b.sizes = &short_form;
        else if (str_eq(argv[i], "--log") && i + 1 < argc)
            b.world.log = argv[++i];
    }
    if (geteuid() != 0) {
        fprintf(stderr, "blackout: needs root, to make namespaces\n");
        return getenv("STRICT") && str_eq(getenv("STRICT"), "1") ? 1 : 77;
    }
    int r = world_here(&b.world, &err);
    if (r == 0)
        world_run(run_inside, &b, &err);
    fprintf(stderr, "blackout: %s\n", err_text(&err));
    return print_json(&b, &err) ? 0 : 1;
}
