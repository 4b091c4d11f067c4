/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ttrpc server on the loop, for hypervisor.sock and control.sock. Everything here: loop.
 *
 * A handler gets a call and answers it exactly once, at once or later; until then the call is valid
 * whatever becomes of its connection. An answer to a client that is gone is dropped.
 */
#pragma once

#include <uv.h>

#include "base/err.h"
#include "wire/ttrpc.h"

#define RPC_CONNECTIONS_DEFAULT 4096U /* two for each pod, as Rust shims have them, and some more */
#define RPC_CALLS_PER_CONNECTION 512U /* more are answered 8 */
#define RPC_BODIES_MAX (64U << 20)    /* of requests not yet complete, all connections; beyond: 8 */
#define RPC_OUT_MAX (16U << 20)       /* unread answers of one connection; beyond: closed */
#define RPC_FRAME_TIME_MAX_MS                                                                      \
    60000 /* a frame that takes longer ends an otherwise idle connection */
#define RPC_SOCKET_PATH_MAX 107

struct rpc_server;
struct rpc_call;

typedef void rpc_handler_fn(struct rpc_call *call, void *owner);
/* The client is gone (both directions closed). At most once, never after the answer, from the loop,
 * never from inside rpc_call_*. The call is still to be answered: that frees it. */
typedef void rpc_cancel_fn(struct rpc_call *call, void *arg);

struct rpc_method {
    const char *service, *method;
    rpc_handler_fn *handler;
};

/*
 * A listening socket at `path`, 0600 from its first moment. The parent is made 0700 when missing;
 * an existing one is left as it is. A socket that nobody serves is removed; one that is served is
 * -EADDRINUSE and says so.
 */
int rpc_listen(const char *path, int *ret_fd, struct err *err);

/*
 * store: at most 3 characters, the prefix of the server's names in the descriptor store: connections
 * are kept there, and calls that were not answered are handed to their handlers again after a
 * restart (their methods must be idempotent). NULL: connections end with the process.
 * Takes listen_fd (on failure too). methods: borrowed, ends with {NULL}. owner goes to the
 * handlers. max_connections 0: the default, but at most a quarter of RLIMIT_NOFILE. Peers must be root
 * or our own uid.
 */
int rpc_server_new(uv_loop_t *loop, int listen_fd, unsigned max_connections, const char *store,
                   const struct rpc_method *methods, void *owner, struct rpc_server **ret,
                   struct err *err);
/* Closes all connections without cancelling their calls (stopping never deletes a VM); calls in
 * flight stay valid and are answered into the void. The socket's file stays. The memory goes with
 * the loop's next turn. */
void rpc_server_free(struct rpc_server *server);
unsigned rpc_server_connections(const struct rpc_server *server);

/* Borrowed; valid until the handler returns. */
const uint8_t *rpc_call_payload(const struct rpc_call *call, size_t *ret_len);
/* The index-th value of the metadata key; NULL when there are not so many. Valid until the handler
 * returns. */
const char *rpc_call_metadata(const struct rpc_call *call, const char *key, size_t index);
/* timeout_nano as sent; 0 for none (absent, zero, negative). Clamping is the handler's. */
int64_t rpc_call_timeout_ns(const struct rpc_call *call);
/* "service/method", static storage of the table: for logs. */
const char *rpc_call_method(const struct rpc_call *call);
/* false once the client is gone. */
bool rpc_call_connected(const struct rpc_call *call);

/* Decodes the payload, or answers the call with 3 and returns NULL. Freed with
 * protobuf_c_message_free_unpacked. */
ProtobufCMessage *rpc_call_decode(struct rpc_call *call, const ProtobufCMessageDescriptor *type);

/* fn NULL: none any more. */
void rpc_call_on_cancel(struct rpc_call *call, rpc_cancel_fn *fn, void *arg);

/* Each answers and frees the call. message: borrowed; NULL for an empty one. */
void rpc_call_reply(struct rpc_call *call, const ProtobufCMessage *message);
void rpc_call_error(struct rpc_call *call, enum ttrpc_code code, const char *text);
/* The code comes from err->code (ttrpc_code_from_errno). */
void rpc_call_fail(struct rpc_call *call, const struct err *err);
