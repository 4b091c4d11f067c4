/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has connected: a daemon in native mode, or one in plain mode? See greet.c. Loop only.
 */
#pragma once

#include <uv.h>

#include "base/err.h"

struct greeter;

/* decided: takes fd, whose bytes are all still there. */
typedef void greet_decided_fn(void *owner, int fd, bool native);

struct greeter *greeter_new(uv_loop_t *loop, greet_decided_fn *decided, void *owner);
void greeter_free(struct greeter *g);
/* Takes fd (non-blocking). patience_ms: for the first bytes, then the connection is closed. */
void greeter_add(struct greeter *g, int fd, unsigned patience_ms);
