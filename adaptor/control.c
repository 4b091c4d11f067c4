/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peerpod.Control: what peerpodctl asks. Read-only; answers from the loop's own structs, so it
 * works also while every provider call hangs.
 */
#include "adaptor/control.h"

#include "adaptor/reconcile.h"
#include "adaptor/sandbox.h"
#include "control.pb-c.h"
#include "relay/fdstore.h"

static const char *tunnel_word(const struct sandbox *sb)
{
    if (sb->plain)
        return sb->tunnel_up ? "plain" : "connecting";
    if (!sb->tunnel)
        return "none";
    if (sb->tunnel_up)
        return "up";
    return sb->record.state == SANDBOX_RUNNING ? "down" : "connecting";
}

static void fill_status(struct sandbox *sb, Peerpod__SandboxStatus *s)
{
    struct tunnel_stats stats = {0};
    if (sb->tunnel)
        tunnel_get_stats(sb->tunnel, &stats);
    peerpod__sandbox_status__init(s);
    s->id = sb->record.id;
    s->pod = sb->record.pod;
    s->namespace_ = sb->record.namespace;
    s->state = (char *)sandbox_state_name(sb->record.state);
    s->instance_id = sb->record.instance.id;
    s->instance_name = sb->record.instance.name;
    s->address = sb->record.instance.addresses[0];
    s->tunnel = (char *)tunnel_word(sb);
    s->bytes_in = sb->bytes_rx + stats.bytes_rx;
    s->bytes_out = sb->bytes_tx + stats.bytes_tx;
    s->created_unix_ms = sb->record.created_ms;
    s->started_unix_ms = sb->record.started_ms;
    s->last_error = sb->record.last_error ? sb->record.last_error : (char *)"";
    s->generation = sb->adaptor->tenure.generation;
    s->netns = sb->record.netns;
    s->agent_socket = sb->socket_path;
    s->instance_type = sb->record.spec.type;
    s->shim_connections = shimconn_count(sb);
    s->reconnects = stats.redials;
    sb->waits_for[0] = '\0';
    if (sb->job)
        job_words(sb->job, sb->waits_for);
    s->waits_for = sb->waits_for;
}

static void status(struct rpc_call *call, void *owner)
{
    struct adaptor *a = owner;
    Peerpod__DaemonInfo info = PEERPOD__DAEMON_INFO__INIT;
    Peerpod__StatusResponse response = PEERPOD__STATUS_RESPONSE__INIT;
    _cleanup_free_ Peerpod__SandboxStatus *all = xcalloc(a->n_sandboxes + 1, sizeof(*all));
    _cleanup_free_ Peerpod__SandboxStatus **list = xcalloc(a->n_sandboxes + 1, sizeof(*list));
    info.version = (char *)PP_VERSION;
    info.provider = (char *)a->provider->type->name;
    info.generation = a->tenure.generation;
    info.pid = getpid();
    info.started_unix_ms = a->started_ms;
    info.keeper = fdstore_available();
    info.forwarder_compat = a->config->forwarder_compat;
    info.boot_id = a->boot;
    response.daemon = &info;
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next) {
        fill_status(sb, &all[response.n_sandboxes]);
        list[response.n_sandboxes] = &all[response.n_sandboxes];
        response.n_sandboxes++;
    }
    response.sandboxes = list;
    rpc_call_reply(call, &response.base);
}

/* The one sandbox whose id begins with `prefix`; NULL when there is none or more than one. */
static struct sandbox *find_prefix(struct adaptor *a, const char *prefix, unsigned *ret_n)
{
    struct sandbox *found = NULL;
    *ret_n = 0;
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next) {
        if (str_eq(sb->record.id, prefix)) {
            *ret_n = 1;
            return sb;
        }
        if (str_starts(sb->record.id, prefix)) {
            found = sb;
            ++*ret_n;
        }
    }
    return *ret_n == 1 ? found : NULL;
}

static void inspect(struct rpc_call *call, void *owner)
{
    Peerpod__InspectRequest *request =
        (void *)rpc_call_decode(call, &peerpod__inspect_request__descriptor);
    if (!request)
        return;
    unsigned n;
    struct sandbox *sb = find_prefix(owner, request->id, &n);
    if (sb) {
        Peerpod__InspectResponse response = PEERPOD__INSPECT_RESPONSE__INIT;
        Peerpod__SandboxStatus s;
        _cleanup_free_ char *text = record_text(&sb->record);
        fill_status(sb, &s);
        response.sandbox = &s;
        response.record = text;
        rpc_call_reply(call, &response.base);
    } else {
        _cleanup_free_ char *text = str_asprintf("%s sandbox's id begins with '%.64s'",
                                                 n ? "more than one" : "no", request->id);
        rpc_call_error(call, n ? TTRPC_FAILED_PRECONDITION : TTRPC_NOT_FOUND, text);
    }
    protobuf_c_message_free_unpacked(&request->base, NULL);
}

static void orphans(struct rpc_call *call, void *owner)
{
    struct adaptor *a = owner;
    Peerpod__OrphansRequest *request =
        (void *)rpc_call_decode(call, &peerpod__orphans_request__descriptor);
    Peerpod__OrphansResponse response = PEERPOD__ORPHANS_RESPONSE__INIT;
    if (!request)
        return;
    if (request->delete_)
        response.deleting = reconcile_delete(a->reconcile, request->id);
    _cleanup_free_ Peerpod__Orphan *all = xcalloc(ORPHANS_MAX, sizeof(*all));
    _cleanup_free_ Peerpod__Orphan **list = xcalloc(ORPHANS_MAX, sizeof(*list));
    for (const struct orphan *o = reconcile_orphans(a->reconcile); o; o = o->next) {
        Peerpod__Orphan *m = list[response.n_orphans] = &all[response.n_orphans];
        response.n_orphans++;
        peerpod__orphan__init(m);
        m->instance_id = (char *)o->instance.id;
        m->instance_name = (char *)o->instance.name;
        m->sandbox = (char *)o->instance.sandbox;
        m->boot_id = (char *)o->instance.boot;
        m->first_seen_unix_ms = o->first_seen_ms;
        m->deleting = o->deleting;
        m->verdict = (char *)o->verdict;
    }
    const char *trouble;
    response.orphans = list;
    response.looked_unix_ms = reconcile_looked(a->reconcile, &trouble);
    response.trouble = (char *)(uintptr_t)trouble;
    rpc_call_reply(call, &response.base);
    protobuf_c_message_free_unpacked(&request->base, NULL);
}

const struct rpc_method control_methods[] = {
    {"peerpod.Control", "Orphans", orphans},
    {"peerpod.Control", "Status", status},
    {"peerpod.Control", "Inspect", inspect},
    {NULL, NULL, NULL},
};
