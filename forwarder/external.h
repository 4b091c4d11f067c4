/* SPDX-License-Identifier: Apache-2.0 */
/* The VM's second interface as the pod's way out (-ext-network-via-podvm; docs/network.md). */
#pragma once

#include "net/route.h"

/* What is to know about it; index [0]: IPv4, [1]: IPv6. */
struct external {
    char name[IFNAMSIZ]; /* in the VM's namespace */
    struct link_address address[2];
    struct net_address gw[2];
    uint32_t metric[2];  /* of its own default route */
    uint8_t protocol[2]; /* likewise */
    bool has_route[2];   /* false: the gateway was concluded */
    bool moved;          /* it is in podns */
    int index;           /* where it is */
};

/* Looks in podns, then in the VM. tunnel: index of the interface that carries the tunnel. -ENODEV
 * without err set when there is none (yet). */
int external_find(struct rtnl *vm, struct rtnl *pod, int tunnel, struct external *ret,
                  struct err *err);
/* Into podns with it, where `taken` is the pod's own interface: its addresses, its default routes.
 * Again is fine. */
int external_enter(struct rtnl *vm, struct rtnl *pod, int pod_fd, const char *taken,
                   struct external *e, struct err *err);
/* Back into the VM with it, as it was. Fine when there is none. */
int external_leave(struct rtnl *vm, struct rtnl *pod, struct err *err);
