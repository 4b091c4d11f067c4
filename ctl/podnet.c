/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As the ptp plugin would do it: a veth pair between the pod's namespace and ours, both ends with an
 * address of their own (/32), so that the worker reaches the pod by its IP and no other pod is in the
 * way. The addresses and the name of our end follow from the namespace's path: pods side by side
 * have different ones, and what a run that was killed left behind is found again.
 */
#include "ctl/podnet.h"

#include <errno.h>

#include "base/str.h"
#include "net/netns.h"
#include "net/route.h"

#define GATEWAY_ADDRESS "10.88.0.1"
#define POD_ADDRESSES 65000U /* behind 10.88.1.0 */

static uint32_t digest(const char *path)
{
    uint32_t h = 2166136261U; /* FNV-1a */

    for (const char *c = path; *c; c++)
        h = (h ^ (unsigned char)*c) * 16777619U;
    return h;
}

static void pod_address(const char *path, struct net_address *ret)
{
    uint32_t n = 256U + digest(path) % POD_ADDRESSES;
    char text[NET_ADDRESS_SIZE];

    (void)str_format(text, sizeof(text), "10.88.%u.%u", n >> 8, n & 255U);
    (void)net_address_parse(text, ret);
}

void podnet_address(const char *path, char out[NET_ADDRESS_SIZE])
{
    struct net_address a;

    pod_address(path, &a);
    net_address_format(&a, out);
}

static void link_name(const char *path, char out[IFNAMSIZ])
{
    (void)str_format(out, IFNAMSIZ, "pprun%08x", digest(path));
}

static int remove_link(struct rtnl *nl, const char *name, struct err *err)
{
    struct link link;
    int r = link_find(nl, name, &link, err);

    if (r == -ENODEV)
        return 0;
    return r < 0 ? r : link_delete(nl, link.index, err);
}

static int find_and_raise(struct rtnl *nl, const char *name, int *ret_index, struct err *err)
{
    struct link link;
    int r = link_find(nl, name, &link, err);

    if (r == -ENODEV)
        return err_set(err, r, "no link %s after making it", name);
    *ret_index = link.index;
    return r < 0 ? r : link_set_up(nl, link.index, err);
}

static int worker_end(struct rtnl *nl, const char *path, struct err *err)
{
    struct link_address gateway = {.prefix = 32};
    struct link_route way = {.prefix = 32};
    char name[IFNAMSIZ];
    int index = 0, r;

    link_name(path, name);
    r = find_and_raise(nl, name, &index, err);
    gateway.index = way.index = index;
    (void)net_address_parse(GATEWAY_ADDRESS, &gateway.address);
    pod_address(path, &way.dst);
    r = r < 0 ? r : link_address_add(nl, &gateway, err);
    return r < 0 ? r : link_route_add(nl, &way, err);
}

static int pod_end(struct rtnl *nl, const char *path, struct err *err)
{
    struct link_address own = {.prefix = 32};
    struct link_route on_link = {.prefix = 32}, way = {0};
    int index = 0;
    int r = find_and_raise(nl, "eth0", &index, err);

    own.index = on_link.index = way.index = index;
    pod_address(path, &own.address);
    (void)net_address_parse(GATEWAY_ADDRESS, &on_link.dst);
    (void)net_address_parse(GATEWAY_ADDRESS, &way.gw);
    r = r < 0 ? r : link_address_add(nl, &own, err);
    r = r < 0 ? r : link_route_add(nl, &on_link, err);
    return r < 0 ? r : link_route_add(nl, &way, err);
}

static int links_make(const char *path, int netns_fd, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *here = NULL, *pod = NULL;
    char name[IFNAMSIZ];
    const struct link_veth veth = {.name = name, .peer_name = "eth0", .peer_netns_fd = netns_fd};
    int r = rtnl_open(&here, err);

    link_name(path, name);
    r = r < 0 ? r : rtnl_open_in(netns_fd, &pod, err);
    r = r < 0 ? r : remove_link(here, name, err);
    r = r < 0 ? r : link_add_veth(here, &veth, err);
    r = r < 0 ? r : worker_end(here, path, err);
    return r < 0 ? r : pod_end(pod, path, err);
}

int podnet_create(const char *path, struct err *err)
{
    _cleanup_close_ int fd = -1;
    int r = netns_create(path, err);

    if (r < 0)
        return r;
    r = netns_open(path, &fd, err);
    r = r < 0 ? r : links_make(path, fd, err);
    if (r < 0)
        (void)podnet_delete(path, NULL);
    return r;
}

int podnet_delete(const char *path, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *here = NULL;
    char name[IFNAMSIZ];
    int r = rtnl_open(&here, err);

    link_name(path, name);
    r = r < 0 ? r : remove_link(here, name, err);
    int d = netns_delete(path, r < 0 ? NULL : err);
    return r < 0 ? r : d;
}
