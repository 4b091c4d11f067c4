/* SPDX-License-Identifier: Apache-2.0 */
/* The cloud's metadata service for containers, where the operator opens it (docs/network.md). */
#pragma once

#include <uv.h>

#include "base/err.h"

struct metaproxy;

/* Listens at `address` (numeric, of podns itself by then) port 80 in the namespace `netns`, and
 * connects to the same in our own. */
int metaproxy_new(uv_loop_t *loop, const char *netns, const char *address, struct metaproxy **ret,
                  struct err *err);
/* Closes asynchronously: let the loop run behind it. NULL is fine. */
void metaproxy_free(struct metaproxy *p);
