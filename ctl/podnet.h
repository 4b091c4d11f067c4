/* SPDX-License-Identifier: Apache-2.0 */
/* The network namespace that a CNI plugin would have made for the pod. */
#pragma once

#include "net/link.h"

/* Makes path with an eth0 that has an address and the default route, reached from here. On failure
 * nothing is left. */
int podnet_create(const char *path, struct err *err);
/* The pod's address there. */
void podnet_address(const char *path, char out[NET_ADDRESS_SIZE]);
int podnet_delete(const char *path, struct err *err);
