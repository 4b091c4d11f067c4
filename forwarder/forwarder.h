/* SPDX-License-Identifier: Apache-2.0 */
/* The forwarder: listener, tunnel, channels, agent. See forwarder.c. */
#pragma once

#include <uv.h>

#include "base/err.h"
#include "forwarder/options.h"

struct forwarder;

/* Everything up to serving; fdstore_init was called. options are borrowed. On failure nothing runs,
 * and state and store are as a successor needs them. */
int forwarder_new(uv_loop_t *loop, const struct forwarder_options *options, struct forwarder **ret,
                  struct err *err);
/* Leaves state and store to a successor. Handles close asynchronously: let the loop run behind it.
 */
void forwarder_free(struct forwarder *f);
