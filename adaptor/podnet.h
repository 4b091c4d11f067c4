/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's side of the pod's network: what the pod's namespace is like, and the VXLAN link that
 * ties it to the VM (docs/network.md). Synchronous, for jobs.
 */
#pragma once

#include "guest/apf.h"
#include "net/link.h"

/* What inspection needs beside the namespace; borrowed texts. */
struct podnet_config {
    const char *netns;            /* path of the pod's network namespace */
    const char *host_interface;   /* "": the one with the default route */
    const char *metadata_address; /* that containers may reach; "": none */
    char **pod_subnets;           /* what stays in the tunnel beside the pod's own subnet */
    uint32_t index;               /* among the node's tunnels */
    uint32_t vni;
    uint16_t port;
    bool point_to_point; /* the VM may take its gateway for us: no address of the node is fine */
    bool ipv4_only;      /* the VM's forwarder knows nothing else */
    bool external_net_via_pod_vm;
};

/* Fills ret (to be ended with apf_done of its owner). Changes nothing. */
int podnet_inspect(const struct podnet_config *config, struct apf_network *ret, struct err *err);

/* Makes the link to the VM at `remote` and the two redirections. Leftovers of a set-up with the same
 * VNI go first; on failure nothing is left. */
int podnet_setup(const char *netns, const struct apf_network *net, const struct net_address *remote,
                 struct err *err);
/* Of the VM's addresses, the one that carries the tunnel: of the node's family, the second one on a
 * dedicated network. -EADDRNOTAVAIL. */
int podnet_remote(const struct apf_network *net, const char *const *addresses, size_t n,
                  struct net_address *ret, struct err *err);

/* Takes back whatever there is of it. A namespace that has gone has taken it along: success. */
int podnet_teardown(const char *netns, const char *interface, uint32_t vni, struct err *err);

/* Waits up to ms for all changes under way; then whoever wants to change anything waits until
 * podnet_resume, or for the end of the process. -ETIMEDOUT: nothing is paused. */
int podnet_pause(int64_t ms, struct err *err);
void podnet_resume(void);
