/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's network: one veth pair, the worker's end in the worker's namespace, numbered as a /31.
 *
 * The peer is born inside the VM's namespace, whose only holders are the VM's processes: when they
 * end, the kernel removes both ends, whatever else has crashed. The worker's end carries a MAC made
 * from the token from its first instant, so that a link of the same name can be told from another's
 * without a second step that might not happen.
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

static struct net_address v4(uint32_t address)
{
    struct net_address a = {.family = AF_INET};
    uint32_t n = htonl(address);

    memcpy(a.bytes, &n, sizeof(n));
    return a;
}

/* Adds the pair; a link of an earlier try, whose namespace is about to go, is removed first. */
static int add_pair(const struct guest *g, struct rtnl *host, int vm_netns, const char *name,
                    struct err *err)
{
    unsigned char mac[NET_MAC_LEN];
    const struct link_veth veth = {
        .name = name, .mac = mac, .peer_name = LOCAL_VM_LINK, .peer_netns_fd = vm_netns};
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

static int vm_end(const struct guest *g, struct rtnl *vm, struct link *ret, struct err *err)
{
    int r = number(vm, LOCAL_VM_LINK, local_vm_address(g->index), ret, err);

    if (r == 0)
        r = link_set_up(vm, 1, err); /* loopback is always the first */
    const struct link_route route = {.index = ret->index, .gw = v4(local_host_address(g->index))};
    return r < 0 ? r : link_route_add(vm, &route, err);
}

int guest_link_make(const struct guest *g, struct rtnl *host, int vm_netns, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *vm = NULL;
    struct link here, there;
    char name[IFNAMSIZ];
    int r = str_format(name, sizeof(name), LOCAL_LINK_PREFIX "%u", g->index);

    if (r == 0)
        r = add_pair(g, host, vm_netns, name, err);
    if (r == 0)
        r = number(host, name, local_host_address(g->index), &here, err);
    if (r == 0)
        r = rtnl_open(&vm, err);
    if (r == 0)
        r = vm_end(g, vm, &there, err);
    if (r == 0)
        r = know(host, &here, local_vm_address(g->index), &there, err);
    if (r == 0)
        r = know(vm, &there, local_host_address(g->index), &here, err);
    return r < 0 ? err_wrap(err, r, "the VM's network") : 0;
}
