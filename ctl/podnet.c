/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon looks for the interface with the default route, its address, MAC and MTU. A veth pair
 * with both ends inside the namespace gives it one without touching the worker's own network: the
 * pod reaches nothing by it but its own gateway.
 */
#include "ctl/podnet.h"

#include <errno.h>

#include "net/link.h"
#include "net/netns.h"
#include "net/route.h"

#define POD_ADDRESS "10.88.0.2"
#define GATEWAY_ADDRESS "10.88.0.1"
#define PREFIX 24

static int address_add(struct rtnl *nl, int index, const char *text, struct err *err)
{
    struct link_address a = {.index = index, .prefix = PREFIX};

    (void)net_address_parse(text, &a.address);
    return link_address_add(nl, &a, err);
}

static int links_make(struct rtnl *nl, struct err *err)
{
    const struct link_veth veth = {.name = "eth0", .peer_name = "gateway", .peer_netns_fd = -1};
    struct link_route route = {0};
    struct link eth0, gateway;
    int r = link_add_veth(nl, &veth, err);

    if (r < 0)
        return r;
    if (link_find(nl, "eth0", &eth0, err) < 0 || link_find(nl, "gateway", &gateway, err) < 0)
        return err && err->code < 0 ? err->code : err_set(err, -ENODEV, "no eth0 after making it");
    r = link_set_up(nl, gateway.index, err);
    r = r < 0 ? r : link_set_up(nl, eth0.index, err);
    r = r < 0 ? r : address_add(nl, gateway.index, GATEWAY_ADDRESS, err);
    r = r < 0 ? r : address_add(nl, eth0.index, POD_ADDRESS, err);
    if (r < 0)
        return r;
    route.index = eth0.index;
    (void)net_address_parse(GATEWAY_ADDRESS, &route.gw);
    return link_route_add(nl, &route, err);
}

int podnet_create(const char *path, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    _cleanup_close_ int fd = -1;
    int r = netns_create(path, err);

    if (r < 0)
        return r;
    r = netns_open(path, &fd, err);
    r = r < 0 ? r : rtnl_open_in(fd, &nl, err);
    r = r < 0 ? r : links_make(nl, err);
    if (r < 0)
        (void)netns_delete(path, NULL);
    return r;
}

int podnet_delete(const char *path, struct err *err)
{
    return netns_delete(path, err);
}
