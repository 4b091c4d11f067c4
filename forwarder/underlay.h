/* SPDX-License-Identifier: Apache-2.0 */
/* The VM's own network: waits until there is a way to the worker (docs/network.md). */
#pragma once

#include "forwarder/external.h"

struct underlay {
    struct net_address worker;  /* family 0: the VM's gateway, which is then found */
    const char *host_interface; /* "": any */
    int64_t wait_ms;
    struct external *external; /* NULL: not wanted; else waited for too, and filled in */
    /* found: */
    int index;
    uint32_t mtu; /* of the way to the worker */
};

/* vm, pod: sockets of the two namespaces. -ETIMEDOUT names the first thing that is missing. */
int underlay_wait(struct rtnl *vm, struct rtnl *pod, struct underlay *u, struct err *err);
