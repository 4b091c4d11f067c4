/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeping the tunnels' UDP flows out of connection tracking, by nftables, in the caller's network
 * namespace. Both are safe to repeat, from several processes at once.
 */
#pragma once

#include "net/link.h"

/* From and to `remote`, with destination port `port`. What `vni` had before goes. Errors mean that
 * the flow is tracked, which costs table entries and time, and breaks nothing: no nftables in this
 * kernel, no permission, ... */
int notrack_add(const struct net_address *remote, uint16_t port, uint32_t vni, struct err *err);
/* Fine when there is nothing of this VNI's, and where there is no nftables. */
int notrack_delete(uint32_t vni, struct err *err);
