/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Step faults of the whole daemon on `local`, with the real programs in the VM: CreateVM, StartVM
 * and StopVM of one pod, an outside step of the daemon, the helper or the VM's PID 1 failing,
 * cancelled (the shim's connection ends) or killed. The keeper starts the daemon again. Pairs: the
 * second fault strikes while the first is cleaned up after, in the daemon's recovery above all. The
 * same for a restart with the pod running, for a second daemon that takes the running pod over (the
 * steps of both count), for peerpodctl's questions on the control socket, and for its `orphans
 * -delete` of a VM that no sandbox knows; and for a pod whose provider is in trouble, in each way
 * that `local` can simulate.
 *
 * A pod that ran before survives every one of them: its agent answers on the shim's connection. After
 * each the caller does what a shim does, StopVM until it is answered, or an operator, `orphans -delete`
 * until there are none; then files, processes, links, mounts and the daemon's descriptors and threads
 * must be as before.
 *
 * The steps are sampled so that the test takes a minute, others in each of CI's builds (PART of 4).
 * STEPFAULT_STRIDE=n tries each n-th, 1 all, of pairs each n-th second one behind each n-th first.
 *
 * usage: adaptor_step_faults [pod|restart|takeover|control|orphan|trouble [FAULTS [FIRST]]], FAULTS as
 * in the table
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "control.pb-c.h"
#include "health.pb-c.h"
#include "hypervisor.pb-c.h"
#include "net/netns.h"
#include "net/route.h"
#include "providers/local/config.h"
#include "providers/provider.h"
#include "stepfault/stepfault.h"
#include "stepfault/world.h"
#include "wire/ttrpc_client.h"

#define SERVICE "hypervisor.Hypervisor"
#define SANDBOX "317c7ae2f000000000000000000000000000000000000000000000000000001"
#define DELETED_MS 60000
#define PATIENCE_MS 60000 /* a machine may stand still for half a minute */
#define ORPHAN_MS 1000
#define SHIM_PATIENCE_MS 30000
#define IDLE_US 20000
#define STILL 3 /* snapshots in a row */
#define STILL_US 70000

static char bin[PATH_MAX], state[PATH_MAX], path_socket[PATH_MAX], path_control[PATH_MAX],
    pods[PATH_MAX], path_agent[PATH_MAX], cloud[PATH_MAX], instances[PATH_MAX], netns[PATH_MAX],
    node_log[PATH_MAX];
static const char *const watched[] = {pods, cloud, NULL};

/* What the local provider can be told to do wrong. */
static const struct trouble {
    const char *word;
    const char *flags[5];
    bool lasts; /* nothing is deleted before it is over */
} troubles[] = {
    {"create fails before", {"-fail-create", "before"}, false},
    {"create fails after", {"-fail-create", "after"}, false},
    {"no addresses", {"-fail-addresses", "-start-timeout", "1s"}, false},
    {"no list", {"-fail-list"}, true},
    {"a delete fails", {"-fail-deletes", "1"}, false},
    {"slow delete", {"-delete-delay", "300ms"}, false},
    {"slow boot", {"-boot-delay", "300ms"}, false},
    {"does not boot", {"-guest-fault", "no-boot", "-start-timeout", "1s"}, false},
    {"no forwarder", {"-guest-fault", "no-forwarder", "-start-timeout", "1s"}, false},
    {"no TLS", {"-guest-fault", "no-tls", "-start-timeout", "1s"}, false},
};

struct subject {
    pid_t keeper;
    const struct trouble *trouble; /* of operation "trouble" */
    bool killing;
    pthread_mutex_t mutex;
    struct ttrpc_client *client; /* lock: mutex */
    struct ttrpc_client *agent;  /* the shim's connection to its agent, while a pod runs */
    struct err lost;             /* what it said when it should have answered */
    struct provider *provider;   /* this process's own */
    struct local_config config;
    struct opt_set sets[2];
};

_noreturn_ static void die(const char *what)
{
    fprintf(stderr, "adaptor_step_faults: %s\n", what);
    exit(1);
}

/* ---- the shim ---- */

/* *ret: owned; NULL: only whether there is an answer matters. */
static int call_at(struct subject *s, const char *path, const char *service, const char *method,
                   const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply,
                   ProtobufCMessage **ret, struct err *err)
{
    struct ttrpc_client *c = NULL;
    ProtobufCMessage *answer = NULL;
    int r = ttrpc_client_connect(path, 5000, &c, err);

    if (r < 0)
        return r;
    pthread_mutex_lock(&s->mutex);
    s->client = c;
    pthread_mutex_unlock(&s->mutex);
    r = ttrpc_client_call(c, service, method, request, reply, 30000, &answer, NULL, err);
    pthread_mutex_lock(&s->mutex);
    s->client = NULL;
    pthread_mutex_unlock(&s->mutex);
    if (ret)
        *ret = answer;
    else if (answer)
        protobuf_c_message_free_unpacked(answer, NULL);
    ttrpc_client_free(c);
    return r;
}

static int call(struct subject *s, const char *method, const ProtobufCMessage *request,
                const ProtobufCMessageDescriptor *reply, struct err *err)
{
    return call_at(s, path_socket, SERVICE, method, request, reply, NULL, err);
}

static void cancel(void *arg)
{
    struct subject *s = arg;

    pthread_mutex_lock(&s->mutex);
    if (s->client)
        ttrpc_client_shutdown(s->client);
    pthread_mutex_unlock(&s->mutex);
}

static int create_vm(struct subject *s, struct err *err)
{
    static const char *const notes[][2] = {
        {"io.kubernetes.cri.sandbox-name", "web-0"},
        {"io.kubernetes.cri.sandbox-namespace", "ns1"},
        {"io.katacontainers.config.hypervisor.default_vcpus", "1"},
        {"io.katacontainers.config.hypervisor.default_memory", "256"},
    };
    Hypervisor__CreateVMRequest__AnnotationsEntry entries[ARRAY_SIZE(notes)];
    Hypervisor__CreateVMRequest__AnnotationsEntry *list[ARRAY_SIZE(notes)];
    Hypervisor__CreateVMRequest q;

    hypervisor__create_vmrequest__init(&q);
    for (size_t i = 0; i < ARRAY_SIZE(notes); i++) {
        hypervisor__create_vmrequest__annotations_entry__init(&entries[i]);
        entries[i].key = (char *)(uintptr_t)notes[i][0];
        entries[i].value = (char *)(uintptr_t)notes[i][1];
        list[i] = &entries[i];
    }
    q.id = (char *)(uintptr_t)SANDBOX;
    q.networknamespacepath = netns;
    q.annotations = list;
    q.n_annotations = ARRAY_SIZE(notes);
    return call(s, "CreateVM", &q.base, &hypervisor__create_vmresponse__descriptor, err);
}

static int start_vm(struct subject *s, struct err *err)
{
    Hypervisor__StartVMRequest q;

    hypervisor__start_vmrequest__init(&q);
    q.id = (char *)(uintptr_t)SANDBOX;
    return call(s, "StartVM", &q.base, &hypervisor__start_vmresponse__descriptor, err);
}

static int stop_vm(struct subject *s, struct err *err)
{
    Hypervisor__StopVMRequest q;

    hypervisor__stop_vmrequest__init(&q);
    q.id = (char *)(uintptr_t)SANDBOX;
    return call(s, "StopVM", &q.base, &hypervisor__stop_vmresponse__descriptor, err);
}

static pid_t daemon_pid(void)
{
    DIR *dir = opendir("/proc");
    struct dirent *e;
    pid_t found = 0;

    while (dir && (e = readdir(dir))) {
        _cleanup_free_ char *comm = NULL;
        char path[PATH_MAX];
        uint64_t pid;
        (void)str_format(path, sizeof(path), "/proc/%s/comm", e->d_name);
        if (str_to_u64(e->d_name, INT32_MAX, &pid) == 0 &&
            fs_read(AT_FDCWD, path, 64, &comm, NULL, NULL) == 0 &&
            str_starts(comm, "cloud-api-adapt"))
            found = (pid_t)pid;
    }
    if (dir)
        closedir(dir);
    return found;
}

static int pod(void *arg, struct err *err)
{
    int r = create_vm(arg, err);

    if (r == 0)
        r = start_vm(arg, err);
    return r < 0 ? r : stop_vm(arg, err);
}

/* ---- what comes before the steps that count ---- */

static unsigned hold_faults(void)
{
    return atomic_exchange(&stepfault_control()->mode, STEPFAULT_OFF);
}

static void let_faults(unsigned mode)
{
    atomic_store(&stepfault_control()->count, 0);
    atomic_store(&stepfault_control()->mode, mode);
}

/* What the daemon and the VM still do behind an answer is not the operation's: a read of the shim's
 * connection, say, which must end it when it fails. */
static void wait_idle(void)
{
    struct stepfault_control *k = stepfault_control();

    atomic_store(&k->mode, STEPFAULT_COUNT);
    for (unsigned last, i = 0; i < 100; i++) {
        last = atomic_load(&k->count);
        usleep(IDLE_US);
        if (last == atomic_load(&k->count))
            break;
    }
    atomic_store(&k->mode, STEPFAULT_OFF);
}

static int check_agent(struct subject *s, struct err *err)
{
    Grpc__CheckRequest q = GRPC__CHECK_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    int r = ttrpc_client_call(s->agent, "grpc.Health", "Check", &q.base,
                              &grpc__health_check_response__descriptor, SHIM_PATIENCE_MS, &answer,
                              NULL, err);

    if (answer)
        protobuf_c_message_free_unpacked(answer, NULL);
    return r;
}

static int running_pod(struct subject *s, struct err *err)
{
    unsigned mode = hold_faults();
    s->lost = ERR_INIT;
    int r = create_vm(s, err);

    if (r == 0)
        r = start_vm(s, err);
    if (r == 0)
        r = ttrpc_client_connect(path_agent, 5000, &s->agent, err);
    if (r == 0)
        r = check_agent(s, err);
    wait_idle();
    let_faults(mode);
    return r;
}

/* Whatever has failed or died: the agent answers on the connection of before. */
static int still_runs(struct subject *s, int r, const struct err *err)
{
    unsigned mode = hold_faults();
    if (r < 0)
        s->lost = *err;
    else
        r = check_agent(s, &s->lost);
    ttrpc_client_free(TAKE_PTR(s->agent));
    atomic_store(&stepfault_control()->mode, mode);
    return r;
}

/* ---- the operator ---- */

static int ask(struct subject *s, const char *method, const ProtobufCMessage *request,
               const ProtobufCMessageDescriptor *reply, ProtobufCMessage **ret, struct err *err)
{
    return call_at(s, path_control, "peerpod.Control", method, request, reply, ret, err);
}

static int status(struct subject *s, struct err *err)
{
    Peerpod__StatusRequest q = PEERPOD__STATUS_REQUEST__INIT;

    return ask(s, "Status", &q.base, &peerpod__status_response__descriptor, NULL, err);
}

static int inspect(struct subject *s, struct err *err)
{
    Peerpod__InspectRequest q = PEERPOD__INSPECT_REQUEST__INIT;

    q.id = (char *)(uintptr_t)SANDBOX;
    return ask(s, "Inspect", &q.base, &peerpod__inspect_response__descriptor, NULL, err);
}

/* Returns how many there are. */
static int orphans(struct subject *s, bool delete, struct err *err)
{
    Peerpod__OrphansRequest q = PEERPOD__ORPHANS_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;

    q.delete_ = delete;
    int r = ask(s, "Orphans", &q.base, &peerpod__orphans_response__descriptor, &answer, err);
    if (r < 0)
        return r;
    int n = (int)((const Peerpod__OrphansResponse *)answer)->n_orphans;
    protobuf_c_message_free_unpacked(answer, NULL);
    return n;
}

/* All questions, about a sandbox without a VM. */
static int control(void *arg, struct err *err)
{
    unsigned mode = hold_faults();
    int r = create_vm(arg, err);

    let_faults(mode);
    if (r == 0)
        r = status(arg, err);
    if (r == 0)
        r = inspect(arg, err);
    if (r == 0)
        r = orphans(arg, false, err);
    return r;
}

static int die_and_come_back(struct subject *s, struct err *err)
{
    pid_t pid = daemon_pid();

    if (pid <= 0 || kill(pid, SIGKILL) < 0)
        return err_set(err, -ESRCH, "no daemon to kill");
    for (int64_t until = clock_mono_ms() + PATIENCE_MS; clock_mono_ms() < until; usleep(20000)) {
        struct err e = ERR_INIT;
        if (daemon_pid() != pid && status(s, &e) == 0)
            return 0;
    }
    return err_set(err, -ETIMEDOUT, "the daemon does not come back");
}

/* The daemon dies with the pod running; its successor's way to the first answer has the faults. */
static int restart(void *arg, struct err *err)
{
    int r = running_pod(arg, err);

    return r < 0 ? r : still_runs(arg, die_and_come_back(arg, err), err);
}

/* A VM with this node's tags that no sandbox knows, as one whose state directory is lost; the daemon
 * finds it when it starts. */
static int lose_vm(struct subject *s, struct err *err)
{
    static const struct tag tags[] = {
        {TAG_CREATOR, "cloud-api-adaptor"}, {TAG_NODE, "worker"}, {TAG_SANDBOX, "lost"}, {0}};
    static const struct instance_request request = {.name = "podvm-lost-01234567",
                                                    .token = "0123456789abcdef0123456789abcdef",
                                                    .tags = tags,
                                                    .user_data = "#cloud-config\n",
                                                    .user_data_len = 14};
    struct instance instance = {0};
    struct job *job = job_new_inline(20000);
    int r = s->provider->type->create(s->provider, job, &request, &instance, err);

    job_free_inline(job);
    if (r == 0)
        r = die_and_come_back(s, err);
    for (int i = 0; r == 0 && orphans(s, false, err) != 1; i++, usleep(20000))
        r = i < 500 ? 0 : err_set(err, -ETIMEDOUT, "the daemon does not see the VM");
    return r;
}

static bool is_empty(const char *path);

static int wait_no_vm(int64_t ms, struct err *err)
{
    for (int64_t until = clock_mono_ms() + ms; !is_empty(instances); usleep(5000))
        if (clock_mono_ms() > until)
            return err_set(err, -ETIMEDOUT, "the VM is not deleted");
    return 0;
}

static int orphan(void *arg, struct err *err)
{
    unsigned mode = hold_faults();
    int r = lose_vm(arg, err);

    let_faults(mode);
    if (r == 0)
        r = orphans(arg, true, err);
    return r < 0 ? r : wait_no_vm(ORPHAN_MS, err);
}

/* The operator's word again: the daemon may have died with it, and forgets what it could not do. */
static int recover_orphan(void *arg, _unused_ int result, struct err *err)
{
    int64_t until = clock_mono_ms() + PATIENCE_MS;

    for (;;) {
        struct err e = ERR_INIT;
        int r = orphans(arg, true, &e);
        if (r == 0)
            r = wait_no_vm(0, &e);
        if (r == 0)
            return 0;
        if (clock_mono_ms() > until)
            return err_set(err, -ETIMEDOUT, "orphans -delete: %d, %s", r, err_text(&e));
        usleep(20000);
    }
}

/* StopVM until it is answered: the daemon may be on its way back up. */
static int recover(void *arg, _unused_ int result, struct err *err)
{
    struct subject *s = arg;
    int64_t until = clock_mono_ms() + PATIENCE_MS;

    for (;;) {
        struct err e = ERR_INIT;
        int r = stop_vm(arg, &e);
        if (r == 0)
            return s->lost.code ? err_set(err, s->lost.code, "the pod was lost: %s", s->lost.text)
                                : 0;
        if (clock_mono_ms() > until)
            return err_set(err, r, "StopVM: %s", e.text);
        usleep(20000);
    }
}

/* ---- the world ---- */

/* fs_write_atomic may leave it where its second step fails too; the next start takes it away. */
static char *without_leftover(char *text)
{
    char *at = strstr(text, "/.generation" FS_TEMP_SUFFIX " ");
    if (!at)
        return text;
    char *end = strchr(at, '\n');
    while (at > text && at[-1] != '\n')
        at--;
    end = end ? end + 1 : strchr(at, '\0');
    memmove(at, end, strlen(end) + 1);
    return text;
}

/* Where the daemon is killed another process is compared: its descriptors and threads are not. */
static char *snapshot(void *arg)
{
    const struct subject *s = arg;

    /* What has died without a parent is ours: we are the namespace's first process. */
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
        if (pid == s->keeper)
            die("the keeper has ended");
    return without_leftover(world_snapshot_of(s->killing ? 0 : daemon_pid(), watched));
}

/* trouble: NULL: none. */
static pid_t start_node(const struct trouble *trouble)
{
    char program[PATH_MAX], keeper[PATH_MAX];

    (void)str_format(program, sizeof(program), "%s/stepfault/cloud-api-adaptor", bin);
    (void)str_format(keeper, sizeof(keeper), "%s/peerpod-keeper", bin);
    const char *argv[] = {"peerpod-keeper",
                          "-restart-max",
                          "100ms",
                          "--",
                          program,
                          "local",
                          "-socket",
                          path_socket,
                          "-pods-dir",
                          pods,
                          "-control-socket",
                          path_control,
                          "-local-registry-dir",
                          cloud,
                          "-local-guest-dir",
                          bin,
                          "-forwarder-compat",
                          "native",
                          "-node-name",
                          "worker",
                          "-proxy-timeout",
                          "10s",
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL};
    for (size_t i = 0, at = strv_len((char *const *)(uintptr_t)argv); trouble && trouble->flags[i];)
        argv[at++] = trouble->flags[i++];
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(node_log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (dup2(fd, 1) >= 0 && dup2(fd, 2) >= 0)
            execv(keeper, (char **)(uintptr_t)argv);
        _exit(127);
    }
    return pid;
}

/* A second daemon comes while the pod runs. Whichever has the pod in the end, the other's keeper ends. */
static int takeover(void *arg, struct err *err)
{
    struct subject *s = arg;
    int r = running_pod(s, err);

    if (r < 0)
        return r;
    pid_t keepers[] = {s->keeper, start_node(NULL)}, ended = 0;
    for (int64_t until = clock_mono_ms() + PATIENCE_MS; clock_mono_ms() < until; usleep(20000)) {
        struct err e = ERR_INIT;
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid == keepers[0] || pid == keepers[1])
            ended = pid;
        if (ended)
            s->keeper = ended == keepers[0] ? keepers[1] : keepers[0];
        if (ended && status(s, &e) == 0)
            return still_runs(s, 0, NULL);
    }
    return still_runs(s, err_set(err, -ETIMEDOUT, "two daemons do not become one"), err);
}

/* Keeper and daemon die, others begin. */
static int change_node(struct subject *s, const struct trouble *trouble, struct err *err)
{
    pid_t daemon;

    kill(s->keeper, SIGKILL);
    waitpid(s->keeper, NULL, 0);
    while ((daemon = daemon_pid()) > 0) {
        kill(daemon, SIGKILL);
        waitpid(daemon, NULL, 0);
    }
    s->keeper = start_node(trouble);
    for (int64_t until = clock_mono_ms() + PATIENCE_MS; clock_mono_ms() < until; usleep(10000)) {
        struct err e = ERR_INIT;
        if (status(s, &e) == 0)
            return 0;
    }
    return err_set(err, -ETIMEDOUT, "the daemon does not come up");
}

/* A pod whose provider is in trouble; that its StartVM fails is as it should be. */
static int troubled_pod(void *arg, struct err *err)
{
    struct subject *s = arg;
    struct err ignored = ERR_INIT;
    unsigned mode = hold_faults();
    int r = change_node(s, s->trouble, err);

    let_faults(mode);
    if (r == 0)
        r = create_vm(s, err);
    if (r == 0)
        (void)start_vm(s, &ignored);
    return r < 0 ? r : stop_vm(s, err);
}

static int recover_troubled(void *arg, int result, struct err *err)
{
    struct subject *s = arg;
    int r = recover(s, result, err);

    return r == 0 && s->trouble->lasts ? change_node(s, NULL, err) : r;
}

static void bind_control(const char *block, const char *program)
{
    char path[PATH_MAX];

    (void)str_format(path, sizeof(path), "%s/stepfault/%s.stepfault", bin, program);
    if (mount(block, path, NULL, MS_BIND, NULL) < 0)
        die("binding the control block");
}

static void place(char *out, const char *name)
{
    if (str_format(out, PATH_MAX, "%s/%s", world_dir(), name) < 0)
        die("name too long");
}

/* The pod's namespace as a CNI plugin leaves it. */
static int make_netns(struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    struct link eth0 = {0}, gateway = {0};
    struct link_address a = {.prefix = 24};
    struct link_route route = {0};
    int fd;
    int r = netns_create(netns, err);

    r = r < 0 ? r : netns_open(netns, &fd, err);
    r = r < 0 ? r : rtnl_open_in(fd, &nl, err);
    if (r < 0)
        return r;
    close(fd);
    r = link_add_veth(nl, &(struct link_veth){"eth0", NULL, "gateway", -1}, err);
    r = r < 0 ? r : link_find(nl, "eth0", &eth0, err);
    r = r < 0 ? r : link_find(nl, "gateway", &gateway, err);
    r = r < 0 ? r : link_set_up(nl, gateway.index, err);
    r = r < 0 ? r : link_set_up(nl, eth0.index, err);
    a.index = eth0.index;
    (void)net_address_parse("10.88.1.7", &a.address);
    r = r < 0 ? r : link_address_add(nl, &a, err);
    route.index = eth0.index;
    (void)net_address_parse("10.88.1.1", &route.gw);
    return r < 0 ? r : link_route_add(nl, &route, err);
}

static int open_provider(struct subject *s, struct err *err)
{
    const struct provider_type *local = provider_type_find("local");
    const char *const argv[] = {
        "-local-registry-dir", cloud, "-local-guest-dir", bin, "-guest-fault", "no-boot", NULL};

    s->sets[0] = (struct opt_set){"local", local->opts, &s->config, NULL};
    int r = opt_parse(s->sets, (char *const *)(uintptr_t)argv, NULL, NULL, err);
    return r < 0 ? r : local->open(&s->config, &s->provider, err);
}

static void setup(struct subject *s)
{
    char block[PATH_MAX];
    struct err err = ERR_INIT;
    ssize_t n = readlink("/proc/self/exe", bin, sizeof(bin) - 1);

    bin[n > 0 ? n : 0] = '\0';
    for (int i = 0; i < 2; i++)
        *strrchr(bin, '/') = '\0'; /* bin/stepfault/PROGRAM */
    place(state, "state");
    place(path_socket, "state/hypervisor.sock");
    place(path_control, "state/control.sock");
    place(pods, "state/pods");
    place(path_agent, "state/pods/" SANDBOX "/agent.ttrpc");
    place(cloud, "cloud");
    place(instances, "cloud/instances");
    place(netns, "netns/pod1");
    place(node_log, "node.log");
    place(block, "control");
    if (mkdir(state, 0700) < 0 || !stepfault_share(block))
        die("making directories");
    bind_control(block, "cloud-api-adaptor");
    bind_control(block, "peerpod-local-vm");
    if (make_netns(&err) < 0 || open_provider(s, &err) < 0)
        die(err.text);
    s->keeper = start_node(NULL);
    for (int i = 0; access(path_socket, F_OK) < 0; i++) {
        if (i > 500)
            die("the daemon does not open its socket");
        usleep(20000);
    }
}

/* ---- the operations ---- */

static const struct operation {
    const char *word;
    int (*run)(void *arg, struct err *err);
    int (*recover)(void *arg, int result, struct err *err);
    bool dies; /* also without a fault */
} operations[] = {{"pod", pod, recover, false},
                  {"restart", restart, recover, true},
                  {"takeover", takeover, recover, true},
                  {"control", control, recover, false},
                  {"orphan", orphan, recover_orphan, true},
                  {"trouble", troubled_pod, recover_troubled, true}};

static const struct faults {
    const char *word, *operation;
    enum stepfault_mode mode, pair;
    unsigned samples; /* of pairs so many first ones, each with so many second ones */
} faults[] = {
    {"fail", "pod", STEPFAULT_FAIL, STEPFAULT_OFF, 6},
    {"cancel", "pod", STEPFAULT_CANCEL, STEPFAULT_OFF, 5},
    {"kill", "pod", STEPFAULT_KILL, STEPFAULT_OFF, 6},
    {"fail+fail", "pod", STEPFAULT_FAIL, STEPFAULT_FAIL, 2},
    {"fail+kill", "pod", STEPFAULT_FAIL, STEPFAULT_KILL, 2},
    {"cancel+fail", "pod", STEPFAULT_CANCEL, STEPFAULT_FAIL, 2},
    {"kill+fail", "pod", STEPFAULT_KILL, STEPFAULT_FAIL, 2},
    {"kill+kill", "pod", STEPFAULT_KILL, STEPFAULT_KILL, 2},
    {"fail", "restart", STEPFAULT_FAIL, STEPFAULT_OFF, 3},
    {"kill", "restart", STEPFAULT_KILL, STEPFAULT_OFF, 3},
    {"fail+fail", "restart", STEPFAULT_FAIL, STEPFAULT_FAIL, 1},
    {"fail+kill", "restart", STEPFAULT_FAIL, STEPFAULT_KILL, 1},
    {"kill+fail", "restart", STEPFAULT_KILL, STEPFAULT_FAIL, 1},
    {"kill+kill", "restart", STEPFAULT_KILL, STEPFAULT_KILL, 1},
    {"fail", "takeover", STEPFAULT_FAIL, STEPFAULT_OFF, 3},
    {"kill", "takeover", STEPFAULT_KILL, STEPFAULT_OFF, 3},
    {"fail+fail", "takeover", STEPFAULT_FAIL, STEPFAULT_FAIL, 1},
    {"fail+kill", "takeover", STEPFAULT_FAIL, STEPFAULT_KILL, 1},
    {"kill+fail", "takeover", STEPFAULT_KILL, STEPFAULT_FAIL, 1},
    {"kill+kill", "takeover", STEPFAULT_KILL, STEPFAULT_KILL, 1},
    {"fail", "control", STEPFAULT_FAIL, STEPFAULT_OFF, 6},
    {"cancel", "control", STEPFAULT_CANCEL, STEPFAULT_OFF, 4},
    {"kill", "control", STEPFAULT_KILL, STEPFAULT_OFF, 4},
    {"fail+fail", "control", STEPFAULT_FAIL, STEPFAULT_FAIL, 1},
    {"fail+kill", "control", STEPFAULT_FAIL, STEPFAULT_KILL, 1},
    {"cancel+fail", "control", STEPFAULT_CANCEL, STEPFAULT_FAIL, 1},
    {"kill+fail", "control", STEPFAULT_KILL, STEPFAULT_FAIL, 1},
    {"kill+kill", "control", STEPFAULT_KILL, STEPFAULT_KILL, 1},
    {"fail", "orphan", STEPFAULT_FAIL, STEPFAULT_OFF, 3},
    {"cancel", "orphan", STEPFAULT_CANCEL, STEPFAULT_OFF, 2},
    {"kill", "orphan", STEPFAULT_KILL, STEPFAULT_OFF, 3},
    {"fail+fail", "orphan", STEPFAULT_FAIL, STEPFAULT_FAIL, 1},
    {"fail+kill", "orphan", STEPFAULT_FAIL, STEPFAULT_KILL, 1},
    {"cancel+fail", "orphan", STEPFAULT_CANCEL, STEPFAULT_FAIL, 1},
    {"kill+fail", "orphan", STEPFAULT_KILL, STEPFAULT_FAIL, 1},
    {"kill+kill", "orphan", STEPFAULT_KILL, STEPFAULT_KILL, 1},
    {"fail", "trouble", STEPFAULT_FAIL, STEPFAULT_OFF, 1},
    {"cancel", "trouble", STEPFAULT_CANCEL, STEPFAULT_OFF, 1},
    {"kill", "trouble", STEPFAULT_KILL, STEPFAULT_OFF, 1},
};

static bool is_empty(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *e = NULL;

    while (dir && (e = readdir(dir)) && e->d_name[0] == '.')
        continue;
    if (dir)
        closedir(dir);
    return !e;
}

/* StopVM is answered before anything is deleted, and a snapshot of what is just being deleted would never
 * be met again. */
static void wait_deleted(void)
{
    int64_t end = clock_mono_ms() + DELETED_MS;

    while (!is_empty(pods) || !is_empty(instances)) {
        if (clock_mono_ms() > end)
            die("the counting pod is not deleted");
        usleep(20000);
    }
}

/* What a kind of faults does not look at (descriptors, where the daemon is killed) is still to be
 * as it was when the next kind begins. */
static void wait_still(struct subject *s)
{
    _cleanup_free_ char *before = snapshot(s);

    for (int same = 0, i = 0; same < STILL && i < 100; i++) {
        usleep(STILL_US);
        char *now = snapshot(s);
        same = str_eq(before, now) ? same + 1 : 0;
        free(before);
        before = now;
    }
}

/* Steps of one undisturbed run. */
static unsigned count_steps(struct subject *s, const struct operation *o)
{
    struct stepfault_control *k = stepfault_control();
    struct err err = ERR_INIT;

    atomic_store(&k->count, 0);
    atomic_store(&k->mode, STEPFAULT_COUNT);
    if (o->run(s, &err) < 0)
        die(err.text);
    unsigned n = atomic_load(&k->count);
    atomic_store(&k->mode, STEPFAULT_OFF);
    if (o->recover(s, 0, &err) < 0)
        die(err.text);
    wait_deleted();
    if (!o->dies)
        sleep(1); /* threads and processes that end */
    return n;
}

/* Each STEPFAULT_STRIDE-th from the first on, or samples in the middle of what there is. */
static void plan(struct stepfault_case *c, unsigned steps, unsigned samples, uint64_t first)
{
    c->stride = stepfault_stride(0);
    if (c->stride > 0) {
        c->first = (unsigned)first;
    } else {
        c->stride = MAX(steps / samples, 1U);
        c->first = 1 + c->stride * PART / 4;
        c->samples = samples;
    }
    if (c->pair == STEPFAULT_OFF)
        return;
    /* Sampled near to the first: behind a failure there are not many more. */
    c->pair_stride = c->samples ? 1 + c->stride / 6 : c->stride;
    c->pair_first = c->samples ? 1 + c->pair_stride * PART / 4 : 1;
}

static unsigned run(struct subject *s, const struct operation *o, const struct faults *f,
                    unsigned steps, uint64_t first)
{
    char name[64];
    struct stepfault_case c = {.name = name,
                               .mode = f->mode,
                               .pair = f->pair,
                               .dirs = watched,
                               .run = o->run,
                               .recover = o->recover,
                               .cancel = cancel,
                               .snapshot = snapshot,
                               .settle_ms = 10000};

    plan(&c, steps, f->samples, first);
    s->killing = false;
    wait_still(s);
    s->killing = f->mode == STEPFAULT_KILL || f->pair == STEPFAULT_KILL || o->dies;
    (void)snprintf(name, sizeof(name), "daemon's %s%s%s, %s", o->word, s->trouble ? ": " : "",
                   s->trouble ? s->trouble->word : "", f->word);
    return stepfault_run(&c, s);
}

static unsigned run_all(struct subject *s, const struct operation *o, const char *word,
                        uint64_t first)
{
    unsigned steps = count_steps(s, o), wrong = 0;

    for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
        if (str_eq(faults[i].operation, o->word) && (!word || str_eq(word, faults[i].word)))
            wrong += run(s, o, &faults[i], steps, first);
    return wrong;
}

/* Each trouble; sampled, each of CI's builds with another kind of fault. */
static unsigned run_troubles(struct subject *s, const struct operation *o, const char *word,
                             uint64_t first)
{
    static const char *const kinds[] = {"fail", "cancel", "kill"};
    bool all = word || getenv("STEPFAULT_STRIDE");
    unsigned wrong = 0;

    for (size_t i = 0; i < ARRAY_SIZE(troubles); i++) {
        s->trouble = &troubles[i];
        wrong += run_all(s, o, all ? word : kinds[(i + PART) % ARRAY_SIZE(kinds)], first);
    }
    return wrong;
}

static void print_log(void)
{
    _cleanup_free_ char *log = NULL;
    size_t len;

    if (fs_read(AT_FDCWD, node_log, 16 << 20, &log, &len, NULL) == 0)
        fprintf(stderr, "%s", log + (len > 6000 ? len - 6000 : 0));
}

int main(int argc, char **argv)
{
    static struct subject s = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    unsigned wrong = 0;
    uint64_t first = 1;

    world_enter();
    stepfault_mute();
    setup(&s);
    if (argc > 3 && str_to_u64(argv[3], 100000, &first) < 0)
        return 2;
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        if (argc < 2 || str_eq(argv[1], operations[i].word))
            wrong += (operations[i].run == troubled_pod ? run_troubles : run_all)(
                &s, &operations[i], argc < 3 ? NULL : argv[2], first);
    if (wrong)
        print_log();
    kill(s.keeper, SIGKILL);
    s.provider->type->close(s.provider);
    opt_done(s.sets);
    return wrong ? 1 : 0;
}
