/* SPDX-License-Identifier: Apache-2.0 */
/* The network namespace that a CNI plugin would have made for the pod. */
#pragma once

#include "base/err.h"

/* Makes path with an eth0 that has an address and the default route. On failure nothing is left. */
int podnet_create(const char *path, struct err *err);
int podnet_delete(const char *path, struct err *err);
