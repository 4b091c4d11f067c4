/* SPDX-License-Identifier: Apache-2.0 */
/* The operator's service on control.sock: peerpod.Control (lib/wire/proto/control.proto). */
#pragma once

#include "adaptor/rpc.h"

/* owner of all handlers: struct adaptor. */
extern const struct rpc_method control_methods[];
