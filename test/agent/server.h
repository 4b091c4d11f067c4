/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The test agent's ttrpc server: connections, calls, workers. It behaves as ttrpc-rust does in
 * kata-agent (kata-contract.md 1.3), not as a careful server would.
 */
#pragma once

#include "base/err.h"
#include "wire/ttrpc.h"

struct call;
struct server;

/* Runs on a worker. Answers with call_reply or call_fail, or returns the result of a call_wait that
 * failed: -ETIMEDOUT becomes code 4, -ECANCELED (client gone, agent ending) no answer at all. */
typedef int call_handler(struct call *call, const ProtobufCMessage *request);

struct method {
    const char *service, *name;
    const ProtobufCMessageDescriptor *request;
    call_handler *run;
};

struct server_config {
    const char *journal;          /* file for one JSON line per request, or NULL */
    const char *bodies;           /* directory for each request's frame, or NULL */
    const struct method *methods; /* ends with a NULL service */
};

int server_new(const struct server_config *config, struct server **ret, struct err *err);
/* Cancels all calls, closes all connections, waits until no handler runs. */
void server_free(struct server *s);
DEFINE_CLEANUP(struct server, server_free)
/* Takes fd, a connected socket. */
void server_add(struct server *s, int fd);

/* NULL: an empty reply. */
int call_reply(struct call *call, const ProtobufCMessage *reply);
int call_fail(struct call *call, enum ttrpc_code code, const char *fmt, ...) _printf_(3, 4);
/* Until fd (-1: none) is ready for `events`: 0, or what the handler returns. */
int call_wait(struct call *call, int fd, short events);
/* The same for two descriptors; either may be -1. */
int call_wait2(struct call *call, int fd, short events, int fd2, short events2);
/* The sending process's request as it arrived, for handing on (borrowed). */
const ProtobufCBinaryData *call_payload(const struct call *call);
