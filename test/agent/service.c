/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From messages to the work behind them, and the two methods that need little: statistics from
 * /proc, and the out-of-memory event that never comes (the call waits until its client goes).
 */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>

#include "agent.pb-c.h"
#include "base/fs.h"
#include "base/str.h"
#include "container.h"
#include "files.h"
#include "health.pb-c.h"

#define PROC_FILE_MAX (64U << 10)
#define INTERFACES_MAX 16

static const char *run_dir_path;
static void (*end_fn)(void);

static int on_check(struct call *call, const ProtobufCMessage *request)
{
    Grpc__HealthCheckResponse reply = GRPC__HEALTH_CHECK_RESPONSE__INIT;

    (void)request;
    reply.status = GRPC__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    return call_reply(call, &reply.base);
}

static int on_version(struct call *call, const ProtobufCMessage *request)
{
    Grpc__VersionCheckResponse reply = GRPC__VERSION_CHECK_RESPONSE__INIT;

    (void)request;
    reply.grpc_version = (char *)(uintptr_t) "0.0.1";
    reply.agent_version = (char *)(uintptr_t) "4.1.0-test-agent";
    return call_reply(call, &reply.base);
}

static int on_create_sandbox(struct call *call, const ProtobufCMessage *request)
{
    return sandbox_create(call, (const Grpc__CreateSandboxRequest *)request);
}

static int on_destroy_sandbox(struct call *call, const ProtobufCMessage *request)
{
    (void)request;
    int r = call_reply(call, NULL);
    end_fn();
    return r;
}

static int on_guest_details(struct call *call, const ProtobufCMessage *request)
{
    static const char *const storages[] = {"ephemeral", "image_guest_pull"};
    Grpc__GuestDetailsResponse reply = GRPC__GUEST_DETAILS_RESPONSE__INIT;
    Grpc__AgentDetails details = GRPC__AGENT_DETAILS__INIT;

    (void)request;
    reply.mem_block_size_bytes = 128U << 20;
    reply.agent_details = &details;
    details.version = (char *)(uintptr_t) "4.1.0-test-agent";
    details.storage_handlers = (char **)(uintptr_t)storages;
    details.n_storage_handlers = ARRAY_SIZE(storages);
    return call_reply(call, &reply.base);
}

static int on_create_container(struct call *call, const ProtobufCMessage *request)
{
    return container_create(call, (const Grpc__CreateContainerRequest *)request);
}

static int on_start_container(struct call *call, const ProtobufCMessage *request)
{
    return container_start(call, ((const Grpc__StartContainerRequest *)request)->container_id);
}

static int on_remove_container(struct call *call, const ProtobufCMessage *request)
{
    return container_remove(call, ((const Grpc__RemoveContainerRequest *)request)->container_id);
}

static int on_exec(struct call *call, const ProtobufCMessage *request)
{
    return container_exec(call, (const Grpc__ExecProcessRequest *)request);
}

static int on_signal(struct call *call, const ProtobufCMessage *request)
{
    const Grpc__SignalProcessRequest *q = (const Grpc__SignalProcessRequest *)request;

    return process_signal(call, q->container_id, q->exec_id, (int)MIN(q->signal, 255U));
}

static int on_wait(struct call *call, const ProtobufCMessage *request)
{
    const Grpc__WaitProcessRequest *q = (const Grpc__WaitProcessRequest *)request;

    return process_wait(call, q->container_id, q->exec_id);
}

static int on_read_stdout(struct call *call, const ProtobufCMessage *request)
{
    return process_read(call, (const Grpc__ReadStreamRequest *)request, 1);
}

static int on_read_stderr(struct call *call, const ProtobufCMessage *request)
{
    return process_read(call, (const Grpc__ReadStreamRequest *)request, 2);
}

static int on_write_stdin(struct call *call, const ProtobufCMessage *request)
{
    return process_write(call, (const Grpc__WriteStreamRequest *)request);
}

static int on_close_stdin(struct call *call, const ProtobufCMessage *request)
{
    const Grpc__CloseStdinRequest *q = (const Grpc__CloseStdinRequest *)request;

    return process_close_stdin(call, q->container_id, q->exec_id);
}

static int on_resize(struct call *call, const ProtobufCMessage *request)
{
    return process_resize(call, (const Grpc__TtyWinResizeRequest *)request);
}

static int on_oom_event(struct call *call, const ProtobufCMessage *request)
{
    (void)request;
    return call_wait(call, -1, 0);
}

static int on_copy_file(struct call *call, const ProtobufCMessage *request)
{
    _cleanup_free_ char *base = str_asprintf("%s/shared/containers", run_dir_path);
    struct err err = ERR_INIT;

    if (files_copy(base, (const Grpc__CopyFileRequest *)request, &err) < 0)
        return call_fail(call, TTRPC_INTERNAL, "%s", err_text(&err));
    return call_reply(call, NULL);
}

static int on_nothing(struct call *call, const ProtobufCMessage *request)
{
    (void)request;
    return call_reply(call, NULL);
}

/* -------- statistics -------- */

/* The n-th number behind `from` in a line of blank-separated fields; 0 when there are fewer. */
static uint64_t field(const char *from, unsigned n)
{
    for (; from && n > 0; n--)
        from = strchr(from + 1, ' ');
    return from ? strtoull(from, NULL, 10) : 0;
}

static char *proc_read(pid_t pid, const char *name)
{
    char path[64], *text = NULL;

    if (str_format(path, sizeof path, "/proc/%d/%s", (int)pid, name) < 0 ||
        fs_read(AT_FDCWD, path, PROC_FILE_MAX, &text, NULL, NULL) < 0)
        return xstrdup("");
    return text;
}

static void stats_cpu(pid_t pid, Grpc__CpuUsage *usage)
{
    _cleanup_free_ char *stat = proc_read(pid, "stat");
    const char *behind_name = strrchr(stat, ')');
    uint64_t tick = 1000000000ULL / (uint64_t)sysconf(_SC_CLK_TCK);

    usage->usage_in_usermode = field(behind_name, 12) * tick;
    usage->usage_in_kernelmode = field(behind_name, 13) * tick;
    usage->total_usage = usage->usage_in_usermode + usage->usage_in_kernelmode;
}

static void stats_memory(pid_t pid, Grpc__MemoryData *memory)
{
    _cleanup_free_ char *statm = proc_read(pid, "statm");

    memory->usage = field(statm, 1) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* "  eth0: rx_bytes rx_packets errs drop fifo frame compressed multicast tx_bytes ..." */
static bool stats_interface(char *line, Grpc__NetworkStats *ret)
{
    char *colon = strchr(line, ':'), *rest = colon;
    uint64_t v[16] = {0};

    if (!colon)
        return false;
    *colon = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(v); i++)
        v[i] = strtoull(rest + 1, &rest, 10), rest--;
    grpc__network_stats__init(ret);
    ret->name = line + strspn(line, " ");
    ret->rx_bytes = v[0];
    ret->rx_packets = v[1];
    ret->rx_errors = v[2];
    ret->rx_dropped = v[3];
    ret->tx_bytes = v[8];
    ret->tx_packets = v[9];
    ret->tx_errors = v[10];
    ret->tx_dropped = v[11];
    return true;
}

static int on_stats(struct call *call, const ProtobufCMessage *request)
{
    Grpc__StatsContainerResponse reply = GRPC__STATS_CONTAINER_RESPONSE__INIT;
    Grpc__CgroupStats cgroup = GRPC__CGROUP_STATS__INIT;
    Grpc__CpuStats cpu = GRPC__CPU_STATS__INIT;
    Grpc__CpuUsage cpu_usage = GRPC__CPU_USAGE__INIT;
    Grpc__MemoryStats memory = GRPC__MEMORY_STATS__INIT;
    Grpc__MemoryData memory_usage = GRPC__MEMORY_DATA__INIT;
    Grpc__PidsStats pids = GRPC__PIDS_STATS__INIT;
    Grpc__NetworkStats nets[INTERFACES_MAX], *list[INTERFACES_MAX];
    unsigned count;
    pid_t pid;

    if (container_pids(((const Grpc__StatsContainerRequest *)request)->container_id, &pid, &count) <
        0)
        return call_fail(call, TTRPC_INVALID_ARGUMENT, "\"invalid container id\"");
    stats_cpu(pid, &cpu_usage);
    stats_memory(pid, &memory_usage);
    _cleanup_free_ char *dev = proc_read(pid, "net/dev");
    char *save = NULL;
    for (char *line = strtok_r(dev, "\n", &save); line && reply.n_network_stats < INTERFACES_MAX;
         line = strtok_r(NULL, "\n", &save)) {
        list[reply.n_network_stats] = &nets[reply.n_network_stats];
        reply.n_network_stats += stats_interface(line, &nets[reply.n_network_stats]);
    }
    cpu.cpu_usage = &cpu_usage;
    memory.usage = &memory_usage;
    pids.current = count;
    cgroup.cpu_stats = &cpu;
    cgroup.memory_stats = &memory;
    cgroup.pids_stats = &pids;
    reply.cgroup_stats = &cgroup;
    reply.network_stats = list;
    return call_reply(call, &reply.base);
}

const struct method *service_methods(const char *run_dir, void (*on_end)(void))
{
#define AGENT(method, message, fn)                                                                 \
    {                                                                                              \
        "grpc.AgentService", method, &grpc__##message##__descriptor, fn                            \
    }
    static const struct method methods[] = {
        {"grpc.Health", "Check", &grpc__check_request__descriptor, on_check},
        {"grpc.Health", "Version", &grpc__check_request__descriptor, on_version},
        AGENT("CreateSandbox", create_sandbox_request, on_create_sandbox),
        AGENT("DestroySandbox", destroy_sandbox_request, on_destroy_sandbox),
        AGENT("GetGuestDetails", guest_details_request, on_guest_details),
        AGENT("CreateContainer", create_container_request, on_create_container),
        AGENT("StartContainer", start_container_request, on_start_container),
        AGENT("RemoveContainer", remove_container_request, on_remove_container),
        AGENT("ExecProcess", exec_process_request, on_exec),
        AGENT("SignalProcess", signal_process_request, on_signal),
        AGENT("WaitProcess", wait_process_request, on_wait),
        AGENT("ReadStdout", read_stream_request, on_read_stdout),
        AGENT("ReadStderr", read_stream_request, on_read_stderr),
        AGENT("WriteStdin", write_stream_request, on_write_stdin),
        AGENT("CloseStdin", close_stdin_request, on_close_stdin),
        AGENT("TtyWinResize", tty_win_resize_request, on_resize),
        AGENT("GetOOMEvent", get_oomevent_request, on_oom_event),
        AGENT("StatsContainer", stats_container_request, on_stats),
        AGENT("CopyFile", copy_file_request, on_copy_file),
        AGENT("RemoveStaleVirtiofsShareMounts", remove_stale_virtiofs_share_mounts_request,
              on_nothing),
        {0},
    };
#undef AGENT

    run_dir_path = run_dir;
    end_fn = on_end;
    return methods;
}
