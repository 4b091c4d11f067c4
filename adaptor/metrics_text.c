/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /metrics: the daemon's counts and state as OpenMetrics text (docs/metrics.md).
 *
 * A family is a head (TYPE, UNIT, HELP) and its samples in one run, as the format demands. A sample
 * of a counter ends in _total, and a unit is part of the name. All series of a family are always
 * there, also at zero: an alert on a series that is missing never fires.
 *
 * It runs on the loop and touches nothing but memory and, for the process's own figures, two files
 * of /proc: about 100 us, and 1 ms more for each thousand descriptors.
 */
#include <dirent.h>
#include <sys/resource.h>
#include <time.h>

#include "adaptor/metrics.h"
#include "adaptor/metrics_int.h"
#include "adaptor/reconcile.h"
#include "adaptor/rpc.h"
#include "adaptor/sandbox.h"
#include "relay/fdstore.h"

static const char *const step_words[START_STEPS] = {"inspect", "create",    "address",
                                                    "network", "forwarder", "agent"};
static const char *const result_words[START_RESULTS] = {"ok", "failed", "cancelled"};
static const char *const call_words[PROVIDER_CALLS] = {"verify", "create",         "find",
                                                       "list",   "wait_addresses", "delete"};

void metrics_head(struct buf *out, const char *name, const char *type, const char *unit,
                  const char *help)
{
    buf_addf(out, "# TYPE %s %s\n", name, type);
    if (*unit)
        buf_addf(out, "# UNIT %s %s\n", name, unit);
    buf_addf(out, "# HELP %s %s\n", name, help);
}

void metrics_quote(struct buf *out, const char *text)
{
    buf_adds(out, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            buf_adds(out, "\\");
        if (*text == '\n')
            buf_adds(out, "\\n");
        else
            buf_add(out, text, 1);
    }
    buf_adds(out, "\"");
}

void metrics_bound(struct buf *out, double bound)
{
    char text[32];
    snprintf(text, sizeof(text), "%g", bound);
    buf_addf(out, "%s%s", text, strchr(text, '.') ? "" : ".0");
}

static void number(struct buf *out, const char *name, uint64_t value)
{
    buf_addf(out, "%s %llu\n", name, (unsigned long long)value);
}

static void labelled(struct buf *out, const char *name, const char *label, const char *word,
                     uint64_t value)
{
    buf_addf(out, "%s{%s=\"%s\"} %llu\n", name, label, word, (unsigned long long)value);
}

static void counter(struct buf *out, const char *name, const char *unit, const char *help,
                    uint64_t value)
{
    metrics_head(out, name, "counter", unit, help);
    buf_addf(out, "%s_total %llu\n", name, (unsigned long long)value);
}

static void gauge(struct buf *out, const char *name, const char *unit, const char *help,
                  uint64_t value)
{
    metrics_head(out, name, "gauge", unit, help);
    number(out, name, value);
}

/* label "": none. */
static void histogram(struct buf *out, const char *name, const char *label, const char *word,
                      const struct histogram *h)
{
    const char *comma = *label ? "," : "";
    char pair[64] = "", braces[66] = "";
    uint64_t n = 0;
    if (*label) {
        snprintf(pair, sizeof(pair), "%s=\"%s\"", label, word);
        snprintf(braces, sizeof(braces), "{%s}", pair);
    }
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        n += h->counts[i];
        buf_addf(out, "%s_bucket{%s%sle=\"", name, pair, comma);
        metrics_bound(out, histogram_bounds[i]);
        buf_addf(out, "\"} %llu\n", (unsigned long long)n);
    }
    n += h->counts[HISTOGRAM_BUCKETS];
    buf_addf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, pair, comma, (unsigned long long)n);
    buf_addf(out, "%s_count%s %llu\n", name, braces, (unsigned long long)n);
    buf_addf(out, "%s_sum%s %.6f\n", name, braces, h->sum);
}

/* -- what is there now -- */

struct view {
    uint64_t states[SANDBOX_DELETING + 1];
    uint64_t tunnels_up, tunnels_down, shim_connections;
    uint64_t bytes_tx, bytes_rx, redials, resumes;
};

static void look(const struct adaptor *a, struct view *v)
{
    const struct metrics *m = a->metrics;
    *v = (struct view){.bytes_tx = m->bytes_tx,
                       .bytes_rx = m->bytes_rx,
                       .redials = m->redials,
                       .resumes = m->resumes};
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next) {
        struct tunnel_stats stats = {0};
        if (sb->tunnel)
            tunnel_get_stats(sb->tunnel, &stats);
        v->states[sb->record.state]++;
        v->tunnels_up += sb->tunnel_up;
        v->tunnels_down += sb->record.state == SANDBOX_RUNNING && !sb->tunnel_up;
        v->shim_connections += shimconn_count(sb);
        v->bytes_tx += stats.bytes_tx;
        v->bytes_rx += stats.bytes_rx;
        v->redials += stats.redials;
        v->resumes += stats.resumes;
    }
}

static void write_daemon(const struct adaptor *a, struct buf *out)
{
    metrics_head(out, "peerpod_build", "info", "", "Version, provider and mode of this daemon.");
    buf_addf(out, "peerpod_build_info{version=\"%s\",provider=\"%s\",forwarder_compat=\"%s\"} 1\n",
             PP_VERSION, a->provider->type->name, a->config->forwarder_compat);
    gauge(out, "peerpod_generation", "",
          "Number of this daemon on this node since boot: one more with each start.",
          a->tenure.generation);
    gauge(out, "peerpod_keeper_available", "",
          "1 when a descriptor store holds the connections while the daemon restarts.",
          fdstore_available());
    gauge(out, "peerpod_keeper_descriptors", "", "Descriptors that the store holds for us.",
          fdstore_count());
    metrics_head(out, "peerpod_rpc_connections", "gauge", "", "Open connections, by socket.");
    labelled(out, "peerpod_rpc_connections", "socket", "hypervisor",
             rpc_server_connections(a->hypervisor));
    labelled(out, "peerpod_rpc_connections", "socket", "control",
             rpc_server_connections(a->control));
    gauge(out, "peerpod_jobs_running", "", "Operations under way on threads of their own.",
          job_pool_running(a->jobs));
}

static void write_sandboxes(const struct adaptor *a, const struct view *v, struct buf *out)
{
    uint64_t orphans = 0;
    for (const struct orphan *o = reconcile_orphans(a->reconcile); o; o = o->next)
        orphans++;
    metrics_head(out, "peerpod_sandboxes", "gauge", "", "Sandboxes by state.");
    for (enum sandbox_state s = SANDBOX_CREATED; s <= SANDBOX_DELETING; s++)
        labelled(out, "peerpod_sandboxes", "state", sandbox_state_name(s), v->states[s]);
    gauge(out, "peerpod_sandboxes_limit", "", "CreateVM is refused beyond so many.",
          (uint64_t)a->config->max_sandboxes);
    gauge(out, "peerpod_orphans", "",
          "Instances with this node's tags that belong to no sandbox (peerpodctl orphans).",
          orphans);
    gauge(out, "peerpod_shim_connections", "", "Open connections of shims to their agents.",
          v->shim_connections);
}

static void write_starts(const struct metrics *m, struct buf *out)
{
    metrics_head(out, "peerpod_starts", "counter", "",
                 "StartVM operations that have ended, by result.");
    for (size_t i = 0; i < START_RESULTS; i++)
        labelled(out, "peerpod_starts_total", "result", result_words[i], m->results[i]);
    metrics_head(out, "peerpod_start_duration_seconds", "histogram", "seconds",
                 "Time from StartVM to a pod VM whose agent answers.");
    histogram(out, "peerpod_start_duration_seconds", "", "", &m->starts);
    metrics_head(out, "peerpod_start_step_duration_seconds", "histogram", "seconds",
                 "Time that each step of StartVM took, when it succeeded.");
    for (size_t i = 0; i < START_STEPS; i++)
        histogram(out, "peerpod_start_step_duration_seconds", "step", step_words[i],
                  &m->start_steps[i]);
    metrics_head(out, "peerpod_errors", "counter", "",
                 "Errors of sandboxes, by the step that failed.");
    for (size_t i = 0; i < ERROR_STEPS; i++)
        labelled(out, "peerpod_errors_total", "step", metrics_error_steps[i], m->errors[i]);
}

static void write_provider(struct metrics *m, struct buf *out)
{
    pthread_mutex_lock(&m->lock);
    metrics_head(out, "peerpod_provider_call_duration_seconds", "histogram", "seconds",
                 "Calls of the provider by operation, failed ones included.");
    for (size_t i = 0; i < PROVIDER_CALLS; i++)
        histogram(out, "peerpod_provider_call_duration_seconds", "operation", call_words[i],
                  &m->provider[i].time);
    metrics_head(out, "peerpod_provider_errors", "counter", "",
                 "Calls of the provider that failed, cancelled ones excluded.");
    for (size_t i = 0; i < PROVIDER_CALLS; i++)
        labelled(out, "peerpod_provider_errors_total", "operation", call_words[i],
                 m->provider[i].errors);
    pthread_mutex_unlock(&m->lock);
}

static void write_tunnels(const struct metrics *m, const struct view *v, struct buf *out)
{
    metrics_head(out, "peerpod_tunnels", "gauge", "", "Tunnels to pod VMs that have been up once.");
    labelled(out, "peerpod_tunnels", "state", "up", v->tunnels_up);
    labelled(out, "peerpod_tunnels", "state", "down", v->tunnels_down);
    counter(out, "peerpod_tunnel_redials", "", "Attempts to connect again after a tunnel was lost.",
            v->redials);
    counter(out, "peerpod_tunnel_resumes", "",
            "Tunnels that were lost and went on at the byte where they stopped.", v->resumes);
    counter(out, "peerpod_tunnel_sent_bytes", "bytes", "Agent traffic towards pod VMs.",
            v->bytes_tx);
    counter(out, "peerpod_tunnel_received_bytes", "bytes", "Agent traffic from pod VMs.",
            v->bytes_rx);
    metrics_head(out, "peerpod_resume_gap_seconds", "histogram", "seconds",
                 "Silence of a tunnel from its last byte until it was up again.");
    histogram(out, "peerpod_resume_gap_seconds", "", "", &m->gaps);
}

/* -- the process, by the names that every client library uses -- */

static uint64_t open_descriptors(void)
{
    uint64_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n >= 3 ? n - 3 : 0; /* ".", ".." and the directory itself */
}

static uint64_t resident_pages(void)
{
    unsigned long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident;
}

static void write_process(const struct adaptor *a, struct buf *out)
{
    struct timespec cpu = {0};
    struct rlimit files = {0};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    getrlimit(RLIMIT_NOFILE, &files);
    metrics_head(out, "process_cpu_seconds", "counter", "seconds",
                 "Processor time, user and system.");
    buf_addf(out, "process_cpu_seconds_total %lld.%06ld\n", (long long)cpu.tv_sec,
             cpu.tv_nsec / 1000);
    gauge(out, "process_resident_memory_bytes", "bytes", "Resident memory.",
          resident_pages() * (uint64_t)sysconf(_SC_PAGESIZE));
    gauge(out, "process_open_fds", "", "Open descriptors.", open_descriptors());
    gauge(out, "process_max_fds", "", "Limit of open descriptors.", files.rlim_cur);
    metrics_head(out, "process_start_time_seconds", "gauge", "seconds", "Unix time of the start.");
    buf_addf(out, "process_start_time_seconds %lld.%03lld\n", (long long)(a->started_ms / 1000),
             (long long)(a->started_ms % 1000));
}

void metrics_write(struct adaptor *a, struct buf *out)
{
    struct view v;
    look(a, &v);
    write_daemon(a, out);
    write_sandboxes(a, &v, out);
    write_starts(a->metrics, out);
    write_provider(a->metrics, out);
    metrics_write_requests(out);
    write_tunnels(a->metrics, &v, out);
    write_process(a, out);
    buf_adds(out, "# EOF\n");
}
