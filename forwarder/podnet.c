/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pod VM's side of the pod's network.
 *
 * The containers live in podns. There, a VXLAN link to the worker plays the pod's interface: same
 * name, MAC, addresses, routes and permanent neighbours as the CNI plugin gave the pod on the
 * worker, where traffic is handed on unchanged (adaptor/podnet.c). The link's socket stays in the
 * VM's own namespace. podns holds nothing else: what the VM itself reaches, the cloud's metadata
 * address among it, containers do not reach through the VM.
 *
 * The VM's own network may come up after us. We wait for it by netlink events, and ask anew after
 * each: is there a route to the worker, by an interface that is up and has an address? Without an
 * address of the worker (the local provider) it is the gateway of the default route.
 *
 * Idempotent, as this program may be killed at any step and starts again while the pod runs: a link
 * with the right name, VNI, worker and MAC is kept; everything is then added in the forms that
 * tolerate what is there. Links of another VNI's or of a half-made set-up go first. The link is born
 * in podns under the name vxlan0, because the pod's own name (eth0) is taken in the VM's namespace.
 *
 * MTU: what the worker says, or what the way to the worker leaves behind the outer headers, if that
 * is less.
 *
 * Order, as in the Go programs: link, addresses (the subnet route that comes with each is removed,
 * unless listed), routes without a gateway, routes with one, neighbours. A gateway that no listed
 * route covers is taken for directly reachable: podns has one link only.
 */
#include "forwarder/podnet.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "net/netns.h"
#include "net/route.h"

#define BIRTH_NAME "vxlan0"
#define DEFAULT_PORT 4789
#define DEFAULT_MIN_ID 555000U
#define DEFAULT_MTU 1450U
#define EVENTS                                                                                     \
    (RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)

/* pod-network, understood. */
struct plan {
    const struct apf_network *net;
    struct net_address worker; /* family 0: the VM's gateway */
    unsigned char mac[NET_MAC_LEN];
    struct link_address addresses[APF_PODIPS_MAX + 1];
    size_t n_addresses;
    uint32_t vni, mtu;
    uint16_t port;
};

/* ---- understanding ---- */

static int bad(struct err *err, const char *key, const char *value)
{
    return err_set(err, -EINVAL, "pod-network.%s: '%s' is no use", key, value);
}

static int plan_address(struct plan *p, const char *key, const char *text, struct err *err)
{
    struct link_address *a = &p->addresses[p->n_addresses];

    if (net_prefix_parse(text, &a->address, &a->prefix) < 0)
        return bad(err, key, text);
    p->n_addresses++;
    return 0;
}

static int plan_make(const struct apf_network *net, struct plan *p, struct err *err)
{
    uint8_t prefix;
    int r = 0;

    *p = (struct plan){.net = net,
                       .vni = net->vxlan_id ? net->vxlan_id : DEFAULT_MIN_ID + net->index,
                       .mtu = net->mtu ? net->mtu : DEFAULT_MTU,
                       .port = (uint16_t)(net->vxlan_port ? net->vxlan_port : DEFAULT_PORT)};
    if (*net->tunnel_type && !str_eq(net->tunnel_type, "vxlan"))
        return bad(err, "tunnel-type", net->tunnel_type);
    if (net->external_net_via_pod_vm)
        return err_set(err, -ENOTSUP,
                       "pod-network.external-net-via-pod-vm: a second interface of the VM is not "
                       "used yet; start the daemon without -ext-network-via-podvm");
    if (!*net->interface)
        return bad(err, "interface", net->interface);
    if (net_mac_parse(net->pod_hw_addr, p->mac) < 0)
        return bad(err, "pod-hw-addr", net->pod_hw_addr);
    if (*net->worker_node_ip && net_prefix_parse(net->worker_node_ip, &p->worker, &prefix) < 0)
        return bad(err, "worker-node-ip", net->worker_node_ip);
    r = plan_address(p, "podip", net->podip, err);
    for (size_t i = 0; i < net->n_podips && r == 0; i++)
        r = plan_address(p, "podips", net->podips[i], err);
    return r;
}

/* ---- waiting for the VM's own network ---- */

__attribute__((format(printf, 2, 3))) static int missing(char *out, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(out, ERR_TEXT_MAX, fmt, ap);
    va_end(ap);
    return -EAGAIN;
}

/* Fills in the worker's address where it is the gateway. */
static int find_gateway(struct rtnl *nl, struct net_address *worker, char *lacks, struct err *err)
{
    _cleanup_free_ struct link_route *routes = NULL;
    size_t n;
    int r = link_route_list(nl, &routes, &n, err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (routes[i].prefix == 0 && routes[i].gw.family) {
            *worker = routes[i].gw;
            return 0;
        }
    return missing(lacks, "a default route of the VM");
}

static int check_interface(struct rtnl *nl, const char *name, int family, char *lacks,
                           struct err *err)
{
    _cleanup_free_ struct link_address *addresses = NULL;
    struct link link;
    size_t n;
    int r = link_find(nl, name, &link, err);

    if (r == -ENODEV)
        return missing(lacks, "interface %s (-host-interface)", name);
    if (r == 0)
        r = link_address_list(nl, link.index, &addresses, &n, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (addresses[i].address.family == family)
            return 0;
    return missing(lacks, "an address on interface %s (-host-interface)", name);
}

/* Why there is no way: the first of the things that have to be there. */
static int explain(struct rtnl *nl, const struct net_address *worker, char *lacks, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    _cleanup_free_ struct link_address *addresses = NULL;
    char text[NET_ADDRESS_SIZE];
    size_t n_links, n_addresses, up = 0, usable = 0;
    int r = link_list(nl, &links, &n_links, err);

    r = r < 0 ? r : link_address_list(nl, 0, &addresses, &n_addresses, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n_links; i++) {
        if (!(links[i].flags & IFF_UP) || (links[i].flags & IFF_LOOPBACK))
            continue;
        up++;
        for (size_t k = 0; k < n_addresses; k++)
            usable += addresses[k].index == links[i].index &&
                      addresses[k].address.family == worker->family &&
                      addresses[k].scope == RT_SCOPE_UNIVERSE;
    }
    net_address_format(worker, text);
    if (!up)
        return missing(lacks, "an interface of the VM that is up");
    if (!usable)
        return missing(lacks, "an %s address of the VM",
                       worker->family == AF_INET6 ? "IPv6" : "IPv4");
    return missing(lacks, "a route to the worker %s", text);
}

/* 0: *ret_mtu is what fits through; -EAGAIN: lacks says what is not there yet. */
static int check_underlay(struct rtnl *nl, struct plan *p, const char *host_interface,
                          uint32_t *ret_mtu, char *lacks, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    struct err none = ERR_INIT;
    struct link_route route;
    size_t n;
    int r = p->worker.family ? 0 : find_gateway(nl, &p->worker, lacks, err);

    if (r == 0 && *host_interface)
        r = check_interface(nl, host_interface, p->worker.family, lacks, err);
    if (r < 0)
        return r;
    if (link_route_get(nl, &p->worker, &route, &none) < 0)
        return explain(nl, &p->worker, lacks, err);
    r = link_list(nl, &links, &n, err);
    for (size_t i = 0; i < n && r == 0; i++)
        if (links[i].index == route.index && (links[i].flags & IFF_UP)) {
            *ret_mtu = route.mtu ? MIN(route.mtu, links[i].mtu) : links[i].mtu;
            return 0;
        }
    return r < 0 ? r : explain(nl, &p->worker, lacks, err);
}

static int wait_underlay(struct rtnl *nl, struct plan *p, const struct podnet_guest *guest,
                         struct err *err)
{
    char lacks[ERR_TEXT_MAX] = "";
    int64_t until = clock_mono_ms() + guest->wait_ms;
    uint32_t mtu = 0;
    _cleanup_close_ int events = -1;
    int r = rtnl_open_events(EVENTS, &events, err); /* before the first look */

    if (r < 0)
        return r;
    while ((r = check_underlay(nl, p, guest->host_interface, &mtu, lacks, err)) == -EAGAIN) {
        struct pollfd fd = {.fd = events, .events = POLLIN};
        int64_t left = until - clock_mono_ms();
        if (left <= 0)
            return err_set(err, -ETIMEDOUT, "%lld s went by without %s",
                           (long long)(guest->wait_ms / 1000), lacks);
        if (poll(&fd, 1, (int)left) < 0 && errno != EINTR)
            return err_errno(err, -errno, "waiting for the VM's network");
        rtnl_events_drain(events);
    }
    if (r < 0)
        return r;
    uint32_t overhead = link_vxlan_overhead(p->worker.family);
    if (mtu > overhead)
        p->mtu = MIN(p->mtu, mtu - overhead);
    return 0;
}

/* ---- the link ---- */

static bool is_right(const struct link *l, const struct plan *p)
{
    return str_eq(l->name, p->net->interface) && str_eq(l->kind, "vxlan") && l->vni == p->vni &&
           l->vxlan_port == p->port && net_address_eq(&l->remote, &p->worker) &&
           memcmp(l->mac, p->mac, sizeof(p->mac)) == 0;
}

/* Removes VXLAN links that stand in the way; *ret_index is the right one's, 0 when there is none. */
static int clear(struct rtnl *pod, const struct plan *p, bool all, int *ret_index, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    size_t n;
    int r = link_list(pod, &links, &n, err);

    *ret_index = 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        const struct link *l = &links[i];
        bool named = str_eq(l->name, p->net->interface);
        if (!all && is_right(l, p))
            *ret_index = l->index;
        else if (str_eq(l->kind, "vxlan") && (named || l->vni == p->vni))
            r = link_delete(pod, l->index, err);
        else if (named && !all)
            r = err_set(err, -EEXIST, "there is a link %s already, of kind '%s'", l->name, l->kind);
    }
    return r;
}

static int add_link(struct rtnl *vm, struct rtnl *pod, int netns_fd, const struct plan *p,
                    int *ret_index, struct err *err)
{
    const struct link_vxlan vxlan = {.name = BIRTH_NAME,
                                     .netns_fd = netns_fd,
                                     .vni = p->vni,
                                     .port = p->port,
                                     .remote = p->worker,
                                     .mac = p->mac,
                                     .mtu = p->mtu};
    struct link link;
    int r = link_add_vxlan(vm, &vxlan, err);

    if (r < 0)
        return r;
    r = link_find(pod, BIRTH_NAME, &link, err);
    if (r == -ENODEV)
        return err_set(err, r, "link " BIRTH_NAME " vanished");
    *ret_index = link.index;
    return r < 0 ? r : link_rename(pod, link.index, p->net->interface, err);
}

/* ---- addresses, routes, neighbours ---- */

static bool is_listed(const struct apf_network *net, const struct net_address *dst, uint8_t prefix)
{
    for (size_t i = 0; i < net->n_routes; i++) {
        struct net_address a;
        uint8_t bits;
        if (net_prefix_parse(net->routes[i].dst, &a, &bits) == 0 && bits == prefix &&
            net_address_eq(&a, dst))
            return true;
    }
    return false;
}

static int add_addresses(struct rtnl *pod, const struct plan *p, int index, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->n_addresses; i++) {
        struct link_address a = p->addresses[i];
        a.index = index;
        a.no_subnet_route = a.address.family == AF_INET6;
        const struct link_route subnet = {.index = index,
                                          .dst = net_address_network(&a.address, a.prefix),
                                          .prefix = a.prefix,
                                          .protocol = RTPROT_KERNEL,
                                          .scope = RT_SCOPE_LINK,
                                          .has_scope = true};
        r = link_address_add(pod, &a, err);
        if (r == 0 && !a.no_subnet_route && a.prefix < 32 &&
            !is_listed(p->net, &subnet.dst, a.prefix))
            r = link_route_delete(pod, &subnet, err);
    }
    return r;
}

static int read_route(const struct plan *p, const struct apf_route *from, struct link_route *ret,
                      struct err *err)
{
    struct link_route r = {.family = p->addresses[0].address.family};

    if (*from->dst && net_prefix_parse(from->dst, &r.dst, &r.prefix) < 0)
        return bad(err, "routes.dst", from->dst);
    if (*from->gw && net_address_parse(from->gw, &r.gw) < 0)
        return bad(err, "routes.gw", from->gw);
    if (link_protocol_parse(from->protocol, &r.protocol) < 0)
        return bad(err, "routes.protocol", from->protocol);
    if (link_scope_parse(from->scope, &r.scope) < 0)
        return bad(err, "routes.scope", from->scope);
    r.has_scope = *from->scope;
    if (*from->dst && r.prefix == 0) {
        r.family = r.dst.family;
        r.dst.family = 0;
    }
    *ret = r;
    return 0;
}

static int add_route(struct rtnl *pod, struct link_route *route, struct err *err)
{
    struct err e = ERR_INIT;
    int r = link_route_add(pod, route, &e);

    if ((r == -ENETUNREACH || r == -EHOSTUNREACH || r == -EINVAL) && route->gw.family) {
        route->onlink = true;
        return link_route_add(pod, route, err);
    }
    return r < 0 ? err_set(err, r, "%s", e.text) : 0;
}

static int add_routes(struct rtnl *pod, const struct plan *p, int index, bool with_gateway,
                      struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->net->n_routes; i++) {
        struct link_route route;
        r = read_route(p, &p->net->routes[i], &route, err);
        route.index = index;
        if (r == 0 && (route.gw.family != 0) == with_gateway)
            r = add_route(pod, &route, err);
    }
    return r;
}

static int add_neighbours(struct rtnl *pod, const struct plan *p, int index, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->net->n_neighbors; i++) {
        const struct apf_neighbor *from = &p->net->neighbors[i];
        struct link_neighbour n = {.index = index};
        if (net_address_parse(from->ip, &n.address) < 0)
            return bad(err, "neighbors.ip", from->ip);
        if (net_mac_parse(from->hw_addr, n.mac) < 0)
            return bad(err, "neighbors.hw-addr", from->hw_addr);
        r = link_neighbour_add(pod, &n, err);
    }
    return r;
}

static int dress(struct rtnl *pod, const struct plan *p, int index, struct err *err)
{
    int r = link_set_up(pod, 1, err); /* loopback is always the first */

    r = r < 0 ? r : link_set_mtu(pod, index, p->mtu, err);
    r = r < 0 ? r : link_set_up(pod, index, err);
    r = r < 0 ? r : add_addresses(pod, p, index, err);
    r = r < 0 ? r : add_routes(pod, p, index, false, err);
    r = r < 0 ? r : add_routes(pod, p, index, true, err);
    return r < 0 ? r : add_neighbours(pod, p, index, err);
}

/* ---- the whole ---- */

static int open_pod(const char *netns, int *ret_fd, struct rtnl **ret, struct err *err)
{
    int r = netns_open(netns, ret_fd, err);

    if (r < 0)
        return err_wrap(err, r, "the image must make it before (-pod-namespace)");
    return rtnl_open_in(*ret_fd, ret, err);
}

static int setup(struct plan *p, const struct podnet_guest *guest, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *vm = NULL, *pod = NULL;
    _cleanup_close_ int fd = -1;
    int index = 0;
    int r = rtnl_open(&vm, err);

    r = r < 0 ? r : open_pod(guest->netns, &fd, &pod, err);
    r = r < 0 ? r : wait_underlay(vm, p, guest, err);
    r = r < 0 ? r : clear(pod, p, false, &index, err);
    if (r < 0)
        return r;
    bool kept = index != 0;
    if (!kept)
        r = add_link(vm, pod, fd, p, &index, err);
    r = r < 0 ? r : dress(pod, p, index, err);
    if (r < 0 && !kept) {
        struct err undo = ERR_INIT;
        if (clear(pod, p, true, &index, &undo) < 0)
            log_warn("taking down the pod's network: %s", err_text(&undo));
    }
    return r;
}

int podnet_guest_setup(const struct apf_network *net, const struct podnet_guest *guest,
                       struct err *err)
{
    struct plan p;
    char worker[NET_ADDRESS_SIZE];
    int r = plan_make(net, &p, err);

    r = r < 0 ? r : setup(&p, guest, err);
    if (r < 0)
        return err_wrap(err, r, "setting up the pod's network in %s", guest->netns);
    net_address_format(&p.worker, worker);
    log_info("pod network: %s has %s, MTU %u, by VXLAN %u to %s", net->interface, net->podip, p.mtu,
             p.vni, worker);
    return 0;
}

int podnet_guest_teardown(const struct apf_network *net, const struct podnet_guest *guest,
                          struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *pod = NULL;
    _cleanup_close_ int fd = -1;
    struct plan p = {.net = net,
                     .vni = net->vxlan_id ? net->vxlan_id : DEFAULT_MIN_ID + net->index};
    int index;

    if (!netns_exists(guest->netns))
        return 0;
    int r = open_pod(guest->netns, &fd, &pod, err);
    r = r < 0 ? r : clear(pod, &p, true, &index, err);
    return r < 0 ? err_wrap(err, r, "taking down the pod's network") : 0;
}
