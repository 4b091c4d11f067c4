/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hypervisor.Hypervisor as the shims use it (kata-contract.md 2): request in, sandbox operation,
 * answer out. The idempotency table (2.4):
 *
 *   CreateVM, same id   CREATED: the same path again. STARTING, RUNNING: AlreadyExists.
 *                       DELETING: waits for the deletion, then creates.
 *   StartVM             unknown id: NotFound. Twice: the second joins the first, or succeeds.
 *                       End of file: the last caller to go takes the start with it.
 *   StopVM              always OK, as soon as the state is on disk; unknown ids as well.
 *
 * The text of an error is what `kubectl describe pod` shows.
 */
#include "adaptor/service.h"

#include <errno.h>

#include "adaptor/podvminfo.h"
#include "adaptor/sandbox.h"
#include "base/log.h"
#include "hypervisor.pb-c.h"

/* One CreateVM or StartVM that is not answered at once. */
struct pending {
    struct waiter waiter;
    struct adaptor *adaptor;
    struct rpc_call *call;
    Hypervisor__CreateVMRequest *create; /* CreateVM that waits for a deletion; owned */
    char id[SANDBOX_ID_MAX + 1];
};

static void fail(struct rpc_call *call, const struct err *err, const char *method, const char *id)
{
    log_entry(LOG_LEVEL_ERROR, id, method, "%s", err_text(err));
    rpc_call_fail(call, err);
}

static void pending_free(struct pending *p)
{
    if (p->create)
        protobuf_c_message_free_unpacked(&p->create->base, NULL);
    free(p);
}

/* -- CreateVM -- */

static void reply_created(struct rpc_call *call, struct sandbox *sb)
{
    Hypervisor__CreateVMResponse response = HYPERVISOR__CREATE_VMRESPONSE__INIT;
    response.agentsocketpath = sb->socket_path;
    rpc_call_reply(call, &response.base);
}

static void create_now(struct adaptor *a, struct rpc_call *call,
                       const Hypervisor__CreateVMRequest *request)
{
    struct err err = ERR_INIT;
    struct podspec spec;
    struct sandbox *sb = NULL;
    int r = podspec_parse(request, &spec, &err);
    if (r == 0)
        r = sandbox_create(a, &spec, &sb, &err);
    if (r < 0)
        fail(call, &err, "CreateVM", NULL);
    else
        reply_created(call, sb);
}

static void create(struct adaptor *a, struct rpc_call *call, Hypervisor__CreateVMRequest *request);

/* Through the whole table again: another waiter may have created it meanwhile. */
static void create_after_deletion(struct waiter *w, const struct err *err)
{
    struct pending *p = container_of(w, struct pending, waiter);
    rpc_call_on_cancel(p->call, NULL, NULL);
    if (err)
        fail(p->call, err, "CreateVM", p->id);
    else
        create(p->adaptor, p->call, TAKE_PTR(p->create));
    pending_free(p);
}

static void create_cancelled(struct rpc_call *call, void *arg)
{
    struct pending *p = arg;
    struct sandbox *sb = sandbox_find(p->adaptor, p->id);
    if (sb)
        waiter_remove(&sb->enders, &p->waiter);
    rpc_call_error(call, TTRPC_CANCELLED, "the client has gone");
    pending_free(p);
}

static struct pending *pending_new(struct adaptor *a, struct rpc_call *call, const char *id)
{
    struct pending *p = xcalloc(1, sizeof(*p));
    p->adaptor = a;
    p->call = call;
    snprintf(p->id, sizeof(p->id), "%s", id);
    return p;
}

/* Takes request. */
static void create(struct adaptor *a, struct rpc_call *call, Hypervisor__CreateVMRequest *request)
{
    struct sandbox *sb = sandbox_find(a, request->id);
    struct err err = ERR_INIT;
    if (sb && sb->record.state == SANDBOX_CREATED) {
        reply_created(call, sb);
    } else if (sb && sb->record.state == SANDBOX_DELETING) {
        struct pending *p = pending_new(a, call, request->id);
        p->create = TAKE_PTR(request);
        p->waiter.done = create_after_deletion;
        waiter_add(&sb->enders, &p->waiter);
        rpc_call_on_cancel(call, create_cancelled, p);
    } else if (sb) {
        err_set(&err, -EEXIST, "CreateVM: sandbox %s exists and is %s", sb->record.id,
                sandbox_state_name(sb->record.state));
        fail(call, &err, "CreateVM", sb->record.id);
    } else {
        create_now(a, call, request);
    }
    if (request)
        protobuf_c_message_free_unpacked(&request->base, NULL);
}

static void create_vm(struct rpc_call *call, void *owner)
{
    Hypervisor__CreateVMRequest *request =
        (void *)rpc_call_decode(call, &hypervisor__create_vmrequest__descriptor);
    if (request)
        create(owner, call, request);
}

/* -- StartVM -- */

static void start_done(struct waiter *w, const struct err *err)
{
    struct pending *p = container_of(w, struct pending, waiter);
    rpc_call_on_cancel(p->call, NULL, NULL);
    if (err)
        rpc_call_fail(p->call, err);
    else
        rpc_call_reply(p->call, NULL);
    pending_free(p);
}

static void start_cancelled(struct rpc_call *call, void *arg)
{
    struct pending *p = arg;
    struct sandbox *sb = sandbox_find(p->adaptor, p->id);
    if (sb)
        sandbox_start_abandon(sb, &p->waiter);
    rpc_call_error(call, TTRPC_CANCELLED, "the client has gone");
    pending_free(p);
}

static void start_vm(struct rpc_call *call, void *owner)
{
    struct adaptor *a = owner;
    struct err err = ERR_INIT;
    Hypervisor__StartVMRequest *request =
        (void *)rpc_call_decode(call, &hypervisor__start_vmrequest__descriptor);
    if (!request)
        return;
    struct sandbox *sb = sandbox_find(a, request->id);
    if (sb) {
        struct pending *p = pending_new(a, call, request->id);
        p->waiter.done = start_done;
        rpc_call_on_cancel(call, start_cancelled, p);
        sandbox_start(sb, rpc_call_timeout_ns(call), &p->waiter);
    } else {
        err_set(&err, -ENOENT, "StartVM: no sandbox %.64s on this node; CreateVM comes first",
                request->id);
        fail(call, &err, "StartVM", NULL);
    }
    protobuf_c_message_free_unpacked(&request->base, NULL);
}

/* -- StopVM, Version -- */

static void stop_vm(struct rpc_call *call, void *owner)
{
    Hypervisor__StopVMRequest *request =
        (void *)rpc_call_decode(call, &hypervisor__stop_vmrequest__descriptor);
    if (!request)
        return;
    struct sandbox *sb = sandbox_find(owner, request->id);
    if (sb)
        sandbox_stop(sb, "StopVM");
    else
        log_info("StopVM of unknown sandbox %.64s: nothing to do", request->id);
    rpc_call_reply(call, NULL);
    protobuf_c_message_free_unpacked(&request->base, NULL);
}

static void version(struct rpc_call *call, void *owner)
{
    Hypervisor__VersionResponse response = HYPERVISOR__VERSION_RESPONSE__INIT;
    ProtobufCMessage *request = rpc_call_decode(call, &hypervisor__version_request__descriptor);
    (void)owner;
    if (!request)
        return;
    protobuf_c_message_free_unpacked(request, NULL);
    response.version = (char *)"peerpod " PP_VERSION;
    rpc_call_reply(call, &response.base);
}

const struct rpc_method hypervisor_methods[] = {
    {"hypervisor.Hypervisor", "CreateVM", create_vm},
    {"hypervisor.Hypervisor", "StartVM", start_vm},
    {"hypervisor.Hypervisor", "StopVM", stop_vm},
    {"hypervisor.Hypervisor", "Version", version},
    {"podvminfo.PodVMInfo", "GetInfo", podvminfo_get_info},
    {NULL, NULL, NULL},
};
