/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.Health and grpc.AgentService: the table of methods. */
#pragma once

#include "server.h"

/* on_end: called on a worker after DestroySandbox has been answered. */
const struct method *service_methods(const char *run_dir, void (*on_end)(void));
