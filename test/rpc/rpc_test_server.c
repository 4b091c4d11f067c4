/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server for the tests of adaptor/rpc.c: usage: rpc_test_server SOCKET [MAX_CONNECTIONS].
 *
 * Service test.Echo; requests and answers are ttrpc.KeyValue messages:
 *   Echo       the same message back
 *   Large      an answer whose value has as many bytes as `value` says
 *   Error      code `key` and text `value`
 *   Meta       the `value`-th metadata value of key `key`, or 5
 *   Timeout    value: the call's time limit in nanoseconds
 *   Block      parked under the name `key` until Release; answered 1 when its client goes
 *   Release    answers the newest parked call of that name first; value: how many there were
 *   Parked     value: how many calls are parked under that name
 *   Cancelled  value: how many parked calls lost their client so far
 * hypervisor.Hypervisor/Version is there as well, so that cases which need no more also run against
 * the daemon. Ends on SIGTERM, freeing everything, so that leak checkers have their say.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "adaptor/rpc.h"
#include "base/log.h"
#include "base/str.h"
#include "hypervisor.pb-c.h"
#include "relay/fdstore.h"

#define VALUE_MAX (8U << 20)

struct parked {
    struct parked *next;
    struct rpc_call *call;
    char *name;
};

struct state {
    struct rpc_server *server;
    struct parked *parked;
    unsigned cancelled;
    uv_signal_t term;
};

static Ttrpc__KeyValue *decode(struct rpc_call *call)
{
    return (Ttrpc__KeyValue *)rpc_call_decode(call, &ttrpc__key_value__descriptor);
}

static void reply(struct rpc_call *call, char *value)
{
    Ttrpc__KeyValue answer = TTRPC__KEY_VALUE__INIT;

    answer.value = value;
    rpc_call_reply(call, &answer.base);
}

static void reply_number(struct rpc_call *call, int64_t n)
{
    _cleanup_free_ char *text = str_asprintf("%lld", (long long)n);

    reply(call, text);
}

static void on_echo(struct rpc_call *call, void *owner)
{
    Ttrpc__KeyValue *m = decode(call);
    (void)owner;

    if (!m)
        return;
    rpc_call_reply(call, &m->base);
    ttrpc__key_value__free_unpacked(m, NULL);
}

static void on_large(struct rpc_call *call, void *owner)
{
    Ttrpc__KeyValue *m = decode(call);
    uint64_t n;
    (void)owner;

    if (!m)
        return;
    if (str_to_u64(m->value, VALUE_MAX, &n) < 0) {
        rpc_call_error(call, TTRPC_INVALID_ARGUMENT, "not a size");
    } else {
        _cleanup_free_ char *value = xcalloc(1, n + 1);

        memset(value, 'x', n);
        reply(call, value);
    }
    ttrpc__key_value__free_unpacked(m, NULL);
}

static void on_error(struct rpc_call *call, void *owner)
{
    Ttrpc__KeyValue *m = decode(call);
    uint64_t code;
    (void)owner;

    if (!m)
        return;
    if (str_to_u64(m->key, 100, &code) < 0)
        code = TTRPC_INVALID_ARGUMENT;
    rpc_call_error(call, (enum ttrpc_code)code, m->value);
    ttrpc__key_value__free_unpacked(m, NULL);
}

static void on_meta(struct rpc_call *call, void *owner)
{
    Ttrpc__KeyValue *m = decode(call);
    const char *value = NULL;
    uint64_t index;
    (void)owner;

    if (!m)
        return;
    if (str_to_u64(m->value, 1000, &index) == 0)
        value = rpc_call_metadata(call, m->key, index);
    if (value)
        reply(call, (char *)(uintptr_t)value);
    else
        rpc_call_error(call, TTRPC_NOT_FOUND, "no such metadata");
    ttrpc__key_value__free_unpacked(m, NULL);
}

static void on_timeout(struct rpc_call *call, void *owner)
{
    (void)owner;
    reply_number(call, rpc_call_timeout_ns(call));
}

static void parked_free(struct parked *p)
{
    free(p->name);
    free(p);
}

static void on_gone(struct rpc_call *call, void *arg)
{
    struct state *s = arg;
    struct parked **at = &s->parked, *p;

    while ((*at)->call != call)
        at = &(*at)->next;
    p = *at;
    *at = p->next;
    parked_free(p);
    s->cancelled++;
    rpc_call_error(call, TTRPC_CANCELLED, "nobody reads this");
}

static void on_block(struct rpc_call *call, void *owner)
{
    struct state *s = owner;
    Ttrpc__KeyValue *m = decode(call);
    struct parked *p;

    if (!m)
        return;
    p = xcalloc(1, sizeof(*p));
    p->call = call;
    p->name = xstrdup(m->key);
    p->next = s->parked;
    s->parked = p;
    rpc_call_on_cancel(call, on_gone, s);
    ttrpc__key_value__free_unpacked(m, NULL);
}

static void on_release(struct rpc_call *call, void *owner)
{
    struct state *s = owner;
    Ttrpc__KeyValue *m = decode(call);
    struct parked **at = &s->parked;
    int64_t n = 0;

    if (!m)
        return;
    while (*at) {
        struct parked *p = *at;

        if (!str_eq(p->name, m->key)) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        reply(p->call, p->name);
        parked_free(p);
        n++;
    }
    ttrpc__key_value__free_unpacked(m, NULL);
    reply_number(call, n);
}

static void on_parked(struct rpc_call *call, void *owner)
{
    const struct state *s = owner;
    Ttrpc__KeyValue *m = decode(call);
    int64_t n = 0;

    if (!m)
        return;
    for (const struct parked *p = s->parked; p; p = p->next)
        n += str_eq(p->name, m->key);
    ttrpc__key_value__free_unpacked(m, NULL);
    reply_number(call, n);
}

static void on_cancelled(struct rpc_call *call, void *owner)
{
    const struct state *s = owner;

    reply_number(call, s->cancelled);
}

static void on_version(struct rpc_call *call, void *owner)
{
    Hypervisor__VersionResponse answer = HYPERVISOR__VERSION_RESPONSE__INIT;
    ProtobufCMessage *m = rpc_call_decode(call, &hypervisor__version_request__descriptor);
    (void)owner;

    if (!m)
        return;
    protobuf_c_message_free_unpacked(m, NULL);
    answer.version = (char *)(uintptr_t) "test";
    rpc_call_reply(call, &answer.base);
}

static const struct rpc_method methods[] = {
    {"test.Echo", "Block", on_block},
    {"test.Echo", "Cancelled", on_cancelled},
    {"test.Echo", "Echo", on_echo},
    {"test.Echo", "Error", on_error},
    {"test.Echo", "Large", on_large},
    {"test.Echo", "Meta", on_meta},
    {"test.Echo", "Parked", on_parked},
    {"test.Echo", "Release", on_release},
    {"test.Echo", "Timeout", on_timeout},
    {"hypervisor.Hypervisor", "Version", on_version},
    {0},
};

static void on_term(uv_signal_t *handle, int number)
{
    struct state *s = handle->data;
    (void)number;

    rpc_server_free(s->server);
    while (s->parked) {
        struct parked *p = s->parked;

        s->parked = p->next;
        rpc_call_error(p->call, TTRPC_UNAVAILABLE, "stopping");
        parked_free(p);
    }
    uv_close((uv_handle_t *)handle, NULL);
}

static int listen_or_take(const char *path, int *ret, struct err *err)
{
    *ret = fdstore_take("listener");
    if (*ret >= 0)
        return 0;
    int r = rpc_listen(path, ret, err);
    return r < 0 ? r : fdstore_add("listener", *ret, err);
}

int main(int argc, char **argv)
{
    uv_loop_t *loop = uv_default_loop();
    struct state s = {0};
    struct err err = ERR_INIT;
    uint64_t limit = 0;
    int fd;

    log_init("rpc_test_server", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (argc < 2 || (argc > 2 && str_to_u64(argv[2], 100000, &limit) < 0)) {
        fprintf(stderr, "usage: rpc_test_server SOCKET [MAX_CONNECTIONS]\n");
        return 2;
    }
    /* Under the keeper its connections are durable, as the daemon's are. */
    if (fdstore_init(&err) < 0 || listen_or_take(argv[1], &fd, &err) < 0 ||
        rpc_server_new(loop, fd, (unsigned)limit, "t", methods, &s, &s.server, &err) < 0) {
        log_error("%s", err_text(&err));
        return 1;
    }
    uv_signal_init(loop, &s.term);
    s.term.data = &s;
    uv_signal_start(&s.term, on_term, SIGTERM);
    uv_run(loop, UV_RUN_DEFAULT);
    fdstore_done();
    return uv_loop_close(loop) == 0 ? 0 : 3;
}
