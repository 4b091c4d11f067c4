/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A blocking ttrpc client for tools and tests: one connection, calls from any thread, answers
 * routed by stream id by a reader thread of its own.
 */
#pragma once

#include "wire/ttrpc.h"

struct ttrpc_client;

/* timeout_ms bounds the connect. -ENOENT, -ECONNREFUSED, ... name the path and what to do. */
int ttrpc_client_connect(const char *path, int64_t timeout_ms, struct ttrpc_client **ret,
                         struct err *err);
void ttrpc_client_free(struct ttrpc_client *c); /* waiting calls fail with -ESHUTDOWN */
/* Ends the connection, so that the calls of other threads return; c stays valid until it is freed.
 */
void ttrpc_client_shutdown(struct ttrpc_client *c);
DEFINE_CLEANUP(struct ttrpc_client, ttrpc_client_free)

/*
 * One unary call. Request and reply are protobuf-c messages; *ret is freed with
 * protobuf_c_message_free_unpacked. timeout_ms 0: none. A remote error is -EREMOTEIO with
 * "CODE: message" in err and the code in *ret_code (may be NULL).
 */
int ttrpc_client_call(struct ttrpc_client *c, const char *service, const char *method,
                      const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply,
                      int64_t timeout_ms, ProtobufCMessage **ret, int *ret_code, struct err *err);
