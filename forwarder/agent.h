/* SPDX-License-Identifier: Apache-2.0 */
/* Where the kata-agent is: its socket, held so that it outlives its name. See agent.c. */
#pragma once

#include <uv.h>

#include "base/err.h"

struct agent;

/* ready: on the loop, never from inside agent_start; at each change. path and owner are borrowed.
 */
typedef void agent_ready_fn(void *owner, bool ready);

int agent_start(uv_loop_t *loop, const char *path, agent_ready_fn *ready, void *owner,
                struct agent **ret, struct err *err);
void agent_stop(struct agent *a); /* frees when its handle is closed */
/* A new connection, non-blocking. -ECONNREFUSED, -ENOTCONN: the agent is not there (any more). */
int agent_connect(struct agent *a, int *ret, struct err *err);
