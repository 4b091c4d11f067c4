/* SPDX-License-Identifier: Apache-2.0 */
/* The services on hypervisor.sock: hypervisor.Hypervisor and podvminfo.PodVMInfo. */
#pragma once

#include "adaptor/rpc.h"

/* owner of all handlers: struct adaptor. */
extern const struct rpc_method hypervisor_methods[];
