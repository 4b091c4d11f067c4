/* SPDX-License-Identifier: Apache-2.0 */
/* The pod VM's side of the pod's network: the pod's interface in podns (docs/network.md). */
#pragma once

#include "guest/apf.h"

#define PODNET_WAIT_MS 180000 /* for the VM's interface and its address */

struct podnet_guest {
    const char *netns;          /* of the pod's containers, made before by the image */
    const char *host_interface; /* "": by the route to the worker */
    const char *metadata;       /* numeric: becomes an address of podns; "": none */
    int64_t wait_ms;
};

/* Waits for the VM's own network, then makes the pod's interface as the daemon says. One that is
 * there already and right is kept, with the traffic in it. On failure nothing is left that was not
 * there before. */
int podnet_guest_setup(const struct apf_network *net, const struct podnet_guest *guest,
                       struct err *err);
/* Takes back whatever there is of it; fine when there is nothing. */
int podnet_guest_teardown(const struct apf_network *net, const struct podnet_guest *guest,
                          struct err *err);
