/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podvminfo.PodVMInfo/GetInfo. With Wait it blocks until the instance exists, the deadline passes,
 * or the client goes away; the number of those who wait is bounded by the server's limits.
 */
#include "adaptor/podvminfo.h"

#include <errno.h>

#include "adaptor/sandbox.h"
#include "podvminfo.pb-c.h"

struct info_waiter {
    struct info_waiter *next;
    struct adaptor *adaptor;
    struct rpc_call *call;
    char pod[RECORD_NAME_MAX + 1], namespace[RECORD_NAME_MAX + 1];
    uv_timer_t timer;
};

static struct sandbox *find(struct adaptor *a, const char *pod, const char *namespace)
{
    for (struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        if (sb->record.state != SANDBOX_DELETING && *sb->record.instance.id &&
            str_eq(sb->record.pod, pod) && str_eq(sb->record.namespace, namespace))
            return sb;
    return NULL;
}

static void reply(struct rpc_call *call, const struct sandbox *sb)
{
    Podvminfo__GetInfoResponse response = PODVMINFO__GET_INFO_RESPONSE__INIT;
    response.vmid = (char *)sb->record.instance.id;
    rpc_call_reply(call, &response.base);
}

static void waiter_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* Takes it off the list; its call has been or is being answered. */
static void waiter_end(struct info_waiter *w)
{
    struct info_waiter **at = &w->adaptor->info_waiters;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    uv_close((uv_handle_t *)&w->timer, waiter_closed);
}

static void not_found(struct rpc_call *call, enum ttrpc_code code, const char *pod,
                      const char *namespace)
{
    _cleanup_free_ char *text =
        str_asprintf("GetInfo: no pod VM of pod %s/%s on this node", namespace, pod);
    rpc_call_error(call, code, text);
}

static void timed_out(uv_timer_t *timer)
{
    struct info_waiter *w = timer->data;
    rpc_call_on_cancel(w->call, NULL, NULL);
    not_found(w->call, TTRPC_DEADLINE_EXCEEDED, w->pod, w->namespace);
    waiter_end(w);
}

static void cancelled(struct rpc_call *call, void *arg)
{
    rpc_call_error(call, TTRPC_CANCELLED, "the client has gone");
    waiter_end(arg);
}

void podvminfo_instance_known(struct adaptor *a)
{
    for (struct info_waiter *w = a->info_waiters, *next; w; w = next) {
        struct sandbox *sb = find(a, w->pod, w->namespace);
        next = w->next;
        if (!sb)
            continue;
        rpc_call_on_cancel(w->call, NULL, NULL);
        reply(w->call, sb);
        waiter_end(w);
    }
}

void podvminfo_end(struct adaptor *a)
{
    while (a->info_waiters) {
        rpc_call_on_cancel(a->info_waiters->call, NULL, NULL);
        rpc_call_error(a->info_waiters->call, TTRPC_UNAVAILABLE, "the daemon is ending");
        waiter_end(a->info_waiters);
    }
}

static void wait_for(struct adaptor *a, struct rpc_call *call,
                     const Podvminfo__GetInfoRequest *request)
{
    struct info_waiter *w = xcalloc(1, sizeof(*w));
    int64_t timeout_ns = rpc_call_timeout_ns(call);
    w->adaptor = a;
    w->call = call;
    snprintf(w->pod, sizeof(w->pod), "%s", request->podname);
    snprintf(w->namespace, sizeof(w->namespace), "%s", request->podnamespace);
    w->next = a->info_waiters;
    a->info_waiters = w;
    uv_timer_init(a->loop, &w->timer);
    w->timer.data = w;
    if (timeout_ns > 0)
        uv_timer_start(&w->timer, timed_out, (uint64_t)(timeout_ns / 1000000), 0);
    rpc_call_on_cancel(call, cancelled, w);
}

void podvminfo_get_info(struct rpc_call *call, void *adaptor)
{
    struct adaptor *a = adaptor;
    Podvminfo__GetInfoRequest *request =
        (void *)rpc_call_decode(call, &podvminfo__get_info_request__descriptor);
    if (!request)
        return;
    struct sandbox *sb = find(a, request->podname, request->podnamespace);
    if (strlen(request->podname) > RECORD_NAME_MAX ||
        strlen(request->podnamespace) > RECORD_NAME_MAX)
        rpc_call_error(call, TTRPC_INVALID_ARGUMENT,
                       "GetInfo: PodName and PodNamespace have at most 253 characters");
    else if (sb)
        reply(call, sb);
    else if (request->wait)
        wait_for(a, call, request);
    else
        not_found(call, TTRPC_NOT_FOUND, request->podname, request->podnamespace);
    protobuf_c_message_free_unpacked(&request->base, NULL);
}
