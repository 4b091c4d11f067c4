/* SPDX-License-Identifier: Apache-2.0 */
/* The provider without a cloud: a pod VM is a set of namespaces on this machine. */
#pragma once

#include "providers/provider.h"

extern const struct provider_type local_provider_type;
