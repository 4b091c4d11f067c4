/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's network: one veth pair, the worker's end in the worker's namespace, numbered as a /31.
 *
 * The peer is born inside the VM's namespace, whose only holders are the VM's processes: when they
 * end, the kernel removes both ends, whatever else has crashed. The worker's end carries a MAC made
 * from the token from its first instant, so that a link of the same name can be told from another's
 * without a second step that might not happen.
 *
 * Where the pod is to reach the world through the VM there is a second pair, with a default route that comes
 * behind the first one's. It leads to the worker as well: what is beyond is
 * the worker's routing, as for any other machine behind it.
 *
 * Each end knows the other's MAC for ever: the kernel's table of learned ones is shared by all
 * network namespaces, and its 1024 places would be full with some 500 VMs, each there from both
 * sides; the next VM is not reached then.
 */
#include <arpa/inet.h>
#include <errno.h>

#include "base/str.h"
#include "net/route.h"
#include "providers/local/config.h"
#include "providers/local/vm/vm.h"

#define OUTER_METRIC 200

/* One of the pairs. */
struct pair {
    const char *prefix, *vm_name;
    uint32_t host, vm;         /* addresses */
    uint32_t metric;           /* of the default route */
    const char *cloud_address; /* the VM's besides; NULL, "": none */
};

static struct net_address v4(uint32_t address)
{
    struct net_address a = {.family = AF_INET};
    uint32_t n = htonl(address);

    memcpy(a.bytes, &n, sizeof(n));
    return a;
}

/* Adds the pair; a link of an earlier try, whose namespace is about to go, is removed first. */
static int add_pair(const struct guest *g, struct rtnl *host, int vm_netns, const char *name,
                    const char *vm_name, struct err *err)
{
    unsigned char mac[NET_MAC_LEN];
    const struct link_veth veth = {
        .name = name, .mac = mac, .peer_name = vm_name, .peer_netns_fd = vm_netns};
    struct err e = ERR_INIT;
    struct link there;

    local_link_mac(g->token, mac);
    int r = link_add_veth(host, &veth, &e);
    if (r != -EEXIST)
        return r < 0 ? err_set(err, r, "%s", e.text) : 0;
    r = link_find(host, name, &there, err);
    if (r == 0 && memcmp(there.mac, mac, sizeof(mac)) != 0)
        return err_set(err, -EBUSY, "link %s exists already and is not ours; try again", name);
    if (r == 0)
        r = link_delete(host, there.index, err);
    if (r < 0 && r != -ENODEV)
        return r;
    return link_add_veth(host, &veth, err);
}

static int number(struct rtnl *nl, const char *name, uint32_t address, struct link *ret,
                  struct err *err)
{
    int r = link_find(nl, name, ret, err);

    if (r < 0)
        return r == -ENODEV ? err_set(err, r, "link %s vanished", name) : r;
    const struct link_address a = {.index = ret->index, .address = v4(address), .prefix = 31};
    r = link_address_add(nl, &a, err);
    return r < 0 ? r : link_set_up(nl, ret->index, err);
}

static int know(struct rtnl *nl, const struct link *own, uint32_t address, const struct link *other,
                struct err *err)
{
    struct link_neighbour n = {.index = own->index, .address = v4(address)};

    memcpy(n.mac, other->mac, sizeof(n.mac));
    return link_neighbour_add(nl, &n, err);
}

static int vm_end(const struct pair *p, struct rtnl *vm, struct link *ret, struct err *err)
{
    int r = number(vm, p->vm_name, p->vm, ret, err);

    if (r < 0)
        return r;
    const struct link_route route = {.index = ret->index, .gw = v4(p->host), .metric = p->metric};
    return link_route_add(vm, &route, err);
}

/* The address that the VM has in the cloud which this machine plays: the worker reaches it by the
 * link's own. */
static int add_cloud_address(const struct pair *p, const char *text, struct rtnl *host,
                             const struct link *here, struct rtnl *vm, const struct link *there,
                             struct err *err)
{
    struct in_addr number;

    if (inet_pton(AF_INET, text, &number) != 1)
        return err_set(err, -EINVAL, "'%s' is no IPv4 address", text);
    const struct link_address a = {
        .index = there->index, .address = v4(ntohl(number.s_addr)), .prefix = 32};
    const struct link_route route = {
        .index = here->index, .dst = a.address, .prefix = 32, .gw = v4(p->vm)};
    int r = link_address_add(vm, &a, err);

    return r < 0 ? r : link_route_add(host, &route, err);
}

static int make_pair(const struct guest *g, const struct pair *p, struct rtnl *host,
                     struct rtnl *vm, int vm_netns, struct err *err)
{
    struct link here, there;
    char name[IFNAMSIZ];
    int r = str_format(name, sizeof(name), "%s%u", p->prefix, g->index);

    r = r < 0 ? r : add_pair(g, host, vm_netns, name, p->vm_name, err);
    r = r < 0 ? r : number(host, name, p->host, &here, err);
    r = r < 0 ? r : vm_end(p, vm, &there, err);
    r = r < 0 ? r : know(host, &here, p->vm, &there, err);
    r = r < 0 ? r : know(vm, &there, p->host, &here, err);
    if (r == 0 && p->cloud_address && *p->cloud_address)
        r = add_cloud_address(p, p->cloud_address, host, &here, vm, &there, err);
    return r;
}

int guest_link_make(const struct guest *g, struct rtnl *host, int vm_netns, struct err *err)
{
    const struct pair inner = {.prefix = LOCAL_LINK_PREFIX,
                               .vm_name = LOCAL_VM_LINK,
                               .host = local_host_address(g->index),
                               .vm = local_vm_address(g->index),
                               .cloud_address = g->address};
    const struct pair outer = {.prefix = LOCAL_OUTER_PREFIX,
                               .vm_name = LOCAL_VM_OUTER_LINK,
                               .host = LOCAL_OUTER_NET + 2 * g->index,
                               .vm = LOCAL_OUTER_NET + 2 * g->index + 1,
                               .metric = OUTER_METRIC};
    _cleanup_(rtnl_closep) struct rtnl *vm = NULL;
    int r = rtnl_open(&vm, err);

    r = r < 0 ? r : link_set_up(vm, 1, err); /* loopback is always the first */
    r = r < 0 ? r : make_pair(g, &inner, host, vm, vm_netns, err);
    if (r == 0 && g->outer)
        r = make_pair(g, &outer, host, vm, vm_netns, err);
    return r < 0 ? err_wrap(err, r, "the VM's network") : 0;
}
