/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands here is the Go shim's behaviour as recorded (corpus/kata-shim-normal-pod.txt): one
 * new connection per hypervisor call; all nine annotations, empty ones too; deadlines of 30 s for
 * Check, 300 s for CreateSandbox, 60 s for most others, none for calls that block; files of the
 * container copied below one directory; network and cgroup namespaces left out of the specification
 * and the paths of the others blank.
 */
#include "ctl/shim.h"

#include <errno.h>
#include <sys/stat.h>

#include "base/str.h"
#include "health.pb-c.h"
#include "hypervisor.pb-c.h"

#define CONNECT_TIMEOUT_MS 5000
#define CHECK_TIMEOUT_MS 30000
#define SANDBOX_TIMEOUT_MS 300000
#define AGENT_TIMEOUT_MS 60000
#define VM_TIMEOUT_MS 60000 /* the shim has none for CreateVM and StopVM; a person waits here */
#define READ_SIZE 32768     /* the Go shim's */
#define SHARED_DIR "/run/kata-containers/shared/containers"
#define ANNOTATIONS_MAX 64

/* protobuf-c's strings are not const, though packing only reads them. */
static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* -------- the hypervisor -------- */

static int hypervisor_call(const struct shim_vm *vm, const char *method,
                           const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                           int64_t timeout_ms, ProtobufCMessage **ret, struct err *err)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = NULL;
    int r = ttrpc_client_connect(vm->socket, CONNECT_TIMEOUT_MS, &c, err);

    return r < 0 ? r
                 : ttrpc_client_call(c, "hypervisor.Hypervisor", method, request, type, timeout_ms,
                                     ret, NULL, err);
}

struct annotations {
    size_t n;
    Hypervisor__CreateVMRequest__AnnotationsEntry entries[ANNOTATIONS_MAX];
    Hypervisor__CreateVMRequest__AnnotationsEntry *list[ANNOTATIONS_MAX];
    char *owned[ANNOTATIONS_MAX]; /* the copied keys of key=value words */
};

static int annotation_put(struct annotations *a, const char *key, const char *value)
{
    size_t i = 0;

    while (i < a->n && !str_eq(a->entries[i].key, key))
        i++;
    if (i == ANNOTATIONS_MAX)
        return -E2BIG;
    if (i == a->n) {
        a->list[a->n] = &a->entries[a->n];
        hypervisor__create_vmrequest__annotations_entry__init(a->list[a->n++]);
        a->entries[i].key = text(key);
    }
    a->entries[i].value = text(value);
    return 0;
}

static int annotations_fill(struct annotations *a, const struct shim_vm *vm, struct err *err)
{
#define HYPERVISOR "io.katacontainers.config.hypervisor."
    const char *const usual[][2] = {
        {"io.kubernetes.cri.sandbox-name", vm->pod},
        {"io.kubernetes.cri.sandbox-namespace", vm->namespace},
        {HYPERVISOR "machine_type", ""},
        {HYPERVISOR "image", ""},
        {HYPERVISOR "default_vcpus", "0"},
        {HYPERVISOR "default_memory", "0"},
        {HYPERVISOR "default_gpus", "0"},
        {HYPERVISOR "default_gpu_model", ""},
        {HYPERVISOR "cc_init_data", vm->initdata ? vm->initdata : ""},
    };
#undef HYPERVISOR
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(usual); i++)
        r = annotation_put(a, usual[i][0], usual[i][1]);
    for (char *const *word = vm->annotations; r == 0 && word && *word; word++) {
        const char *equals = strchr(*word, '=');

        if (!equals)
            return err_set(err, -EINVAL, "annotation '%.64s' is not key=value", *word);
        char *key = strndup(*word, (size_t)(equals - *word));
        size_t before = a->n;
        r = key ? annotation_put(a, key, equals + 1) : -ENOMEM;
        if (r == 0 && a->n > before)
            a->owned[before] = key;
        else
            free(key);
    }
    return r < 0 ? err_errno(err, r, "the annotations") : 0;
}

static void annotations_done(struct annotations *a)
{
    for (size_t i = 0; i < ANNOTATIONS_MAX; i++)
        free(a->owned[i]);
}

int shim_create_vm(const struct shim_vm *vm, char **ret_agent_socket, struct err *err)
{
    _cleanup_(annotations_done) struct annotations annotations = {0};
    Hypervisor__CreateVMRequest q = HYPERVISOR__CREATE_VMREQUEST__INIT;
    ProtobufCMessage *m = NULL;
    int r = annotations_fill(&annotations, vm, err);

    if (r < 0)
        return r;
    q.id = text(vm->id);
    q.networknamespacepath = text(vm->netns);
    q.annotations = annotations.list;
    q.n_annotations = annotations.n;
    r = hypervisor_call(vm, "CreateVM", &q.base, &hypervisor__create_vmresponse__descriptor,
                        VM_TIMEOUT_MS, &m, err);
    if (r < 0)
        return r;
    const char *path = ((Hypervisor__CreateVMResponse *)m)->agentsocketpath;
    if (path[0] != '/' || strpbrk(path, ":%?#"))
        r = err_set(err, -EPROTO, "CreateVM returned '%.128s', which a shim would not take", path);
    else
        *ret_agent_socket = xstrdup(path);
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

int shim_start_vm(const struct shim_vm *vm, int64_t timeout_ms, struct err *err)
{
    Hypervisor__StartVMRequest q = HYPERVISOR__START_VMREQUEST__INIT;
    ProtobufCMessage *m = NULL;

    q.id = text(vm->id);
    int r = hypervisor_call(vm, "StartVM", &q.base, &hypervisor__start_vmresponse__descriptor,
                            timeout_ms, &m, err);
    if (r == 0)
        protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

int shim_stop_vm(const struct shim_vm *vm, struct err *err)
{
    Hypervisor__StopVMRequest q = HYPERVISOR__STOP_VMREQUEST__INIT;
    ProtobufCMessage *m = NULL;

    q.id = text(vm->id);
    int r = hypervisor_call(vm, "StopVM", &q.base, &hypervisor__stop_vmresponse__descriptor,
                            VM_TIMEOUT_MS, &m, err);
    if (r == 0)
        protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

/* -------- the agent -------- */

/* ret NULL: the answer holds nothing of interest. */
static int agent_call(struct ttrpc_client *agent, const char *method,
                      const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                      int64_t timeout_ms, ProtobufCMessage **ret, struct err *err)
{
    ProtobufCMessage *m = NULL;
    int r = ttrpc_client_call(agent, "grpc.AgentService", method, request,
                              type ? type : &grpc__empty__descriptor, timeout_ms, &m, NULL, err);

    if (r < 0)
        return r;
    if (ret)
        *ret = m;
    else
        protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

int shim_check(struct ttrpc_client *agent, struct err *err)
{
    Grpc__CheckRequest q = GRPC__CHECK_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    int r = ttrpc_client_call(agent, "grpc.Health", "Check", &q.base,
                              &grpc__health_check_response__descriptor, CHECK_TIMEOUT_MS, &m, NULL,
                              err);

    if (r < 0)
        return r;
    if (((Grpc__HealthCheckResponse *)m)->status !=
        GRPC__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING)
        r = err_set(err, -EPROTO, "the agent says that it does not serve");
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

int shim_create_sandbox(struct ttrpc_client *agent, const char *id, const char *hostname,
                        const char *resolv, struct err *err)
{
    static const char *const shm_options[] = {"noexec", "nosuid", "nodev", "mode=1777",
                                              "size=67108864"};
    Grpc__CreateSandboxRequest q = GRPC__CREATE_SANDBOX_REQUEST__INIT;
    Grpc__Storage shm = GRPC__STORAGE__INIT, *storages[] = {&shm};
    char **lines _cleanup_(strv_freep) = str_split(resolv, '\n');

    shm.driver = text("ephemeral");
    shm.source = text("shm");
    shm.fstype = text("tmpfs");
    shm.mount_point = text("/run/kata-containers/sandbox/shm");
    shm.options = (char **)(uintptr_t)shm_options;
    shm.n_options = ARRAY_SIZE(shm_options);
    q.hostname = text(hostname);
    q.sandbox_id = text(id);
    q.dns = lines;
    q.n_dns = strv_len(lines);
    q.storages = storages;
    q.n_storages = ARRAY_SIZE(storages);
    return agent_call(agent, "CreateSandbox", &q.base, NULL, SANDBOX_TIMEOUT_MS, NULL, err);
}

int shim_guest_details(struct ttrpc_client *agent, char **ret_version, struct err *err)
{
    Grpc__GuestDetailsRequest q = GRPC__GUEST_DETAILS_REQUEST__INIT;
    ProtobufCMessage *m = NULL;

    q.mem_block_size = true;
    q.mem_hotplug_probe = true;
    int r = agent_call(agent, "GetGuestDetails", &q.base, &grpc__guest_details_response__descriptor,
                       AGENT_TIMEOUT_MS, &m, err);
    if (r < 0)
        return r;
    const Grpc__AgentDetails *details = ((Grpc__GuestDetailsResponse *)m)->agent_details;
    *ret_version = xstrdup(details ? details->version : "");
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

void shim_copy_path(const char *container, const char *name, char out[SHIM_COPY_PATH_MAX])
{
    (void)str_format(out, SHIM_COPY_PATH_MAX, SHARED_DIR "/%s-%.16s-%s", container, container,
                     name);
}

int shim_copy_file(struct ttrpc_client *agent, const char *path, const void *data, size_t len,
                   struct err *err)
{
    Grpc__CopyFileRequest q = GRPC__COPY_FILE_REQUEST__INIT;

    q.path = text(path);
    q.file_size = (int64_t)len;
    q.file_mode = S_IFREG | 0644;
    q.dir_mode = 0750;
    q.data = (ProtobufCBinaryData){.len = len, .data = (uint8_t *)(uintptr_t)data};
    return agent_call(agent, "CopyFile", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

/* -------- the container's specification -------- */

struct mount {
    const char *destination, *source, *type;
    const char *options[8];
};

/* As containerd makes them for a pod without privileges. */
static const struct mount usual_mounts[] = {
    {"/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}},
    {"/dev", "tmpfs", "tmpfs", {"nosuid", "strictatime", "mode=755", "size=65536k"}},
    {"/dev/pts",
     "devpts",
     "devpts",
     {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
    {"/dev/mqueue", "mqueue", "mqueue", {"nosuid", "noexec", "nodev"}},
    {"/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", "ro"}},
    {"/dev/shm", "/run/kata-containers/sandbox/shm", "bind", {"rbind"}},
};
#define MOUNTS (ARRAY_SIZE(usual_mounts) + 1)
#define NAMESPACES 3
#define SPEC_ANNOTATIONS 6

static void mount_fill(Grpc__Mount *m, const struct mount *from)
{
    grpc__mount__init(m);
    m->destination = text(from->destination);
    m->source = text(from->source);
    m->type = text(from->type);
    m->options = (char **)(uintptr_t)from->options;
    while (m->n_options < ARRAY_SIZE(from->options) && from->options[m->n_options])
        m->n_options++;
}

/* The parts of the specification that do not depend on the container, and room for those that do.
 */
struct parts {
    char resolv[SHIM_COPY_PATH_MAX], root_path[256];
    Grpc__Root root;
    Grpc__Linux linux_;
    Grpc__Mount mounts[MOUNTS], *mount_list[MOUNTS];
    Grpc__Namespace namespaces[NAMESPACES], *namespace_list[NAMESPACES];
    Grpc__Spec__AnnotationsEntry annotations[SPEC_ANNOTATIONS], *annotation_list[SPEC_ANNOTATIONS];
    Grpc__Storage image, *storages[1];
};

static void parts_annotations(struct parts *p, const struct shim_container *c)
{
    bool sandbox = str_eq(c->id, c->sandbox);
    const char *const pairs[SPEC_ANNOTATIONS][2] = {
        {"io.kubernetes.cri.container-type", sandbox ? "sandbox" : "container"},
        {"io.katacontainers.pkg.oci.container_type", sandbox ? "pod_sandbox" : "pod_container"},
        {"io.kubernetes.cri.sandbox-id", c->sandbox},
        {"io.kubernetes.cri.sandbox-name", c->pod},
        {"io.kubernetes.cri.sandbox-namespace", c->namespace},
        {"io.kubernetes.cri.image-name", c->image},
    };

    for (size_t i = 0; i < SPEC_ANNOTATIONS; i++) {
        p->annotation_list[i] = &p->annotations[i];
        grpc__spec__annotations_entry__init(&p->annotations[i]);
        p->annotations[i].key = text(pairs[i][0]);
        p->annotations[i].value = text(pairs[i][1]);
    }
}

static void parts_linux(struct parts *p)
{
    static const char *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq",
                                           "/proc/sysrq-trigger"};
    static const char *const types[NAMESPACES] = {"ipc", "uts", "mount"};

    grpc__linux__init(&p->linux_);
    for (size_t i = 0; i < NAMESPACES; i++) {
        p->namespace_list[i] = &p->namespaces[i];
        grpc__namespace__init(&p->namespaces[i]);
        p->namespaces[i].type = text(types[i]);
    }
    p->linux_.namespaces = p->namespace_list;
    p->linux_.n_namespaces = NAMESPACES;
    p->linux_.readonly_paths = (char **)(uintptr_t)readonly;
    p->linux_.n_readonly_paths = ARRAY_SIZE(readonly);
}

static int parts_root(struct parts *p, const struct shim_container *c, struct err *err)
{
    const struct mount last = {"/etc/resolv.conf", p->resolv, "bind", {"rbind", "rprivate", "ro"}};
    int r = str_format(p->root_path, sizeof p->root_path, "/run/kata-containers/%s/rootfs", c->id);

    if (r < 0)
        return err_errno(err, r, "container id");
    shim_copy_path(c->id, "resolv.conf", p->resolv);
    for (size_t i = 0; i < MOUNTS; i++) {
        p->mount_list[i] = &p->mounts[i];
        mount_fill(&p->mounts[i], i < ARRAY_SIZE(usual_mounts) ? &usual_mounts[i] : &last);
    }
    grpc__root__init(&p->root);
    grpc__storage__init(&p->image);
    p->image.driver = text("image_guest_pull");
    p->image.source = text(c->image);
    p->image.fstype = text("overlay");
    p->image.mount_point = p->root.path = p->root_path;
    p->storages[0] = &p->image;
    return 0;
}

static int send_spec(struct ttrpc_client *agent, const struct shim_container *c,
                     Grpc__Process *process, struct err *err)
{
    Grpc__CreateContainerRequest q = GRPC__CREATE_CONTAINER_REQUEST__INIT;
    Grpc__Spec spec = GRPC__SPEC__INIT;
    struct parts p;
    int r = parts_root(&p, c, err);

    if (r < 0)
        return r;
    parts_linux(&p);
    parts_annotations(&p, c);
    spec.version = text("1.1.0");
    spec.process = process;
    spec.root = &p.root;
    spec.hostname = text(c->pod);
    spec.mounts = p.mount_list;
    spec.n_mounts = MOUNTS;
    spec.linux_ = &p.linux_;
    spec.annotations = p.annotation_list;
    spec.n_annotations = SPEC_ANNOTATIONS;
    q.container_id = q.exec_id = text(c->id);
    q.storages = p.storages;
    q.n_storages = ARRAY_SIZE(p.storages);
    q.oci = &spec;
    return agent_call(agent, "CreateContainer", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_create_container(struct ttrpc_client *agent, const struct shim_container *c,
                          struct err *err)
{
    Grpc__Process process = GRPC__PROCESS__INIT;
    Grpc__User user = GRPC__USER__INIT;
    Grpc__Box size = GRPC__BOX__INIT;

    process.terminal = c->terminal;
    process.user = &user;
    process.args = (char **)(uintptr_t)c->args;
    process.n_args = strv_len(c->args);
    process.env = (char **)(uintptr_t)c->env;
    process.n_env = strv_len(c->env);
    process.cwd = text("/");
    process.no_new_privileges = true;
    size.height = c->rows;
    size.width = c->columns;
    if (c->terminal && c->rows > 0)
        process.console_size = &size;
    return send_spec(agent, c, &process, err);
}

/* -------- processes -------- */

int shim_start_container(struct ttrpc_client *agent, const char *id, struct err *err)
{
    Grpc__StartContainerRequest q = GRPC__START_CONTAINER_REQUEST__INIT;

    q.container_id = text(id);
    return agent_call(agent, "StartContainer", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_remove_container(struct ttrpc_client *agent, const char *id, struct err *err)
{
    Grpc__RemoveContainerRequest q = GRPC__REMOVE_CONTAINER_REQUEST__INIT;
    Grpc__RemoveStaleVirtiofsShareMountsRequest stale =
        GRPC__REMOVE_STALE_VIRTIOFS_SHARE_MOUNTS_REQUEST__INIT;

    q.container_id = text(id);
    int r = agent_call(agent, "RemoveContainer", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
    return r < 0 ? r
                 : agent_call(agent, "RemoveStaleVirtiofsShareMounts", &stale.base, NULL,
                              AGENT_TIMEOUT_MS, NULL, err);
}

int shim_destroy_sandbox(struct ttrpc_client *agent, struct err *err)
{
    Grpc__DestroySandboxRequest q = GRPC__DESTROY_SANDBOX_REQUEST__INIT;

    return agent_call(agent, "DestroySandbox", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_signal(struct ttrpc_client *agent, const char *id, int signo, struct err *err)
{
    Grpc__SignalProcessRequest q = GRPC__SIGNAL_PROCESS_REQUEST__INIT;

    q.container_id = q.exec_id = text(id);
    q.signal = (uint32_t)signo;
    return agent_call(agent, "SignalProcess", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_wait(struct ttrpc_client *agent, const char *id, int *ret_status, struct err *err)
{
    Grpc__WaitProcessRequest q = GRPC__WAIT_PROCESS_REQUEST__INIT;
    ProtobufCMessage *m = NULL;

    q.container_id = q.exec_id = text(id);
    int r = agent_call(agent, "WaitProcess", &q.base, &grpc__wait_process_response__descriptor, 0,
                       &m, err);
    if (r < 0)
        return r;
    *ret_status = ((Grpc__WaitProcessResponse *)m)->status;
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

int shim_read(struct ttrpc_client *agent, const char *id, const char *method, uint8_t **ret,
              size_t *ret_len, struct err *err)
{
    Grpc__ReadStreamRequest q = GRPC__READ_STREAM_REQUEST__INIT;
    ProtobufCMessage *m = NULL;

    q.container_id = q.exec_id = text(id);
    q.len = READ_SIZE;
    int r = agent_call(agent, method, &q.base, &grpc__read_stream_response__descriptor, 0, &m, err);
    if (r < 0)
        return r;
    Grpc__ReadStreamResponse *reply = (Grpc__ReadStreamResponse *)m;
    *ret_len = reply->data.len;
    *ret = TAKE_PTR(reply->data.data);
    reply->data.len = 0;
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}

int shim_write(struct ttrpc_client *agent, const char *id, const void *data, size_t len,
               struct err *err)
{
    for (size_t done = 0; done < len;) {
        Grpc__WriteStreamRequest q = GRPC__WRITE_STREAM_REQUEST__INIT;
        ProtobufCMessage *m = NULL;

        q.container_id = q.exec_id = text(id);
        q.data =
            (ProtobufCBinaryData){.len = len - done, .data = (uint8_t *)(uintptr_t)data + done};
        int r = agent_call(agent, "WriteStdin", &q.base, &grpc__write_stream_response__descriptor,
                           0, &m, err);
        if (r < 0)
            return r;
        size_t n = ((Grpc__WriteStreamResponse *)m)->len;
        protobuf_c_message_free_unpacked(m, NULL);
        if (n == 0 || n > len - done)
            return err_set(err, -EPROTO, "WriteStdin took %zu of %zu bytes", n, len - done);
        done += n;
    }
    return 0;
}

int shim_close_stdin(struct ttrpc_client *agent, const char *id, struct err *err)
{
    Grpc__CloseStdinRequest q = GRPC__CLOSE_STDIN_REQUEST__INIT;

    q.container_id = q.exec_id = text(id);
    return agent_call(agent, "CloseStdin", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_resize(struct ttrpc_client *agent, const char *id, unsigned rows, unsigned columns,
                struct err *err)
{
    Grpc__TtyWinResizeRequest q = GRPC__TTY_WIN_RESIZE_REQUEST__INIT;

    q.container_id = q.exec_id = text(id);
    q.row = rows;
    q.column = columns;
    return agent_call(agent, "TtyWinResize", &q.base, NULL, AGENT_TIMEOUT_MS, NULL, err);
}

int shim_oom_event(struct ttrpc_client *agent, char **ret_container, struct err *err)
{
    Grpc__GetOOMEventRequest q = GRPC__GET_OOMEVENT_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    int r = agent_call(agent, "GetOOMEvent", &q.base, &grpc__oomevent__descriptor, 0, &m, err);

    if (r < 0)
        return r;
    *ret_container = xstrdup(((Grpc__OOMEvent *)m)->container_id);
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}
