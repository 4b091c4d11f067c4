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
 * With -ext-network-via-podvm podns gets the VM's second interface as well (external.c), and with it
 * the default routes; what the daemon lists beside those stays in the tunnel. That interface would lead
 * to the metadata address, so this has an unreachable route, in all clouds' forms, except where a
 * listed route leads into the tunnel. Where containers shall reach it (-pod-metadata-address), it
 * becomes an address of podns itself: behind it listens metaproxy.c.
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

#include "base/log.h"
#include "base/str.h"
#include "forwarder/underlay.h"
#include "net/netns.h"
#include "net/notrack.h"

#define BIRTH_NAME "vxlan0"
#define DEFAULT_PORT 4789
#define DEFAULT_MIN_ID 555000U
#define DEFAULT_MTU 1450U
#define LOOPBACK 1 /* the first link of every namespace */

/* pod-network, understood. */
struct plan {
    const struct apf_network *net;
    struct net_address worker; /* family 0: the VM's gateway */
    unsigned char mac[NET_MAC_LEN];
    struct link_address addresses[APF_PODIPS_MAX + 1];
    size_t n_addresses;
    uint32_t vni, mtu;
    uint16_t port;
    struct net_address metadata; /* family 0: closed */
    struct external external;    /* when net says so */
};

/* Of AWS, Azure and GCP; AWS and GCP by IPv6; Alibaba; Azure's "wire server". */
static const char *const metadata_addresses[] = {"169.254.169.254", "fd00:ec2::254", "fd20:ce::254",
                                                 "100.100.100.200", "168.63.129.16"};

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

static int plan_make(const struct apf_network *net, const struct podnet_guest *guest,
                     struct plan *p, struct err *err)
{
    uint8_t prefix;
    int r = 0;

    *p = (struct plan){.net = net,
                       .vni = net->vxlan_id ? net->vxlan_id : DEFAULT_MIN_ID + net->index,
                       .mtu = net->mtu ? net->mtu : DEFAULT_MTU,
                       .port = (uint16_t)(net->vxlan_port ? net->vxlan_port : DEFAULT_PORT)};
    if (*net->tunnel_type && !str_eq(net->tunnel_type, "vxlan"))
        return bad(err, "tunnel-type", net->tunnel_type);
    if (!*net->interface)
        return bad(err, "interface", net->interface);
    if (net_mac_parse(net->pod_hw_addr, p->mac) < 0)
        return bad(err, "pod-hw-addr", net->pod_hw_addr);
    if (*net->worker_node_ip && net_prefix_parse(net->worker_node_ip, &p->worker, &prefix) < 0)
        return bad(err, "worker-node-ip", net->worker_node_ip);
    if (*guest->metadata && net_address_parse(guest->metadata, &p->metadata) < 0)
        return err_set(err, -EINVAL, "-pod-metadata-address %s is not a numeric address",
                       guest->metadata);
    r = plan_address(p, "podip", net->podip, err);
    for (size_t i = 0; i < net->n_podips && r == 0; i++)
        r = plan_address(p, "podips", net->podips[i], err);
    return r;
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

/* A default route that the second interface takes over. */
static bool is_external(const struct plan *p, const struct link_route *route)
{
    int family = route->gw.family ? route->gw.family : route->family;

    return route->prefix == 0 && p->external.gw[family == AF_INET6].family;
}

static int add_routes(struct rtnl *pod, const struct plan *p, int index, bool with_gateway,
                      struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->net->n_routes; i++) {
        struct link_route route;
        r = read_route(p, &p->net->routes[i], &route, err);
        route.index = index;
        if (r == 0 && (route.gw.family != 0) == with_gateway && !is_external(p, &route))
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
    int r = link_set_up(pod, LOOPBACK, err);

    r = r < 0 ? r : link_set_mtu(pod, index, p->mtu, err);
    r = r < 0 ? r : link_set_up(pod, index, err);
    r = r < 0 ? r : add_addresses(pod, p, index, err);
    r = r < 0 ? r : add_routes(pod, p, index, false, err);
    r = r < 0 ? r : add_routes(pod, p, index, true, err);
    return r < 0 ? r : add_neighbours(pod, p, index, err);
}

/* ---- the metadata address ---- */

static bool is_in_tunnel(const struct apf_network *net, const struct net_address *a)
{
    for (size_t i = 0; i < net->n_routes; i++) {
        struct net_address dst;
        uint8_t bits;
        if (net_prefix_parse(net->routes[i].dst, &dst, &bits) < 0 || bits == 0)
            continue;
        struct net_address network = net_address_network(a, bits);
        if (dst.family == a->family && net_address_eq(&network, &dst))
            return true;
    }
    return false;
}

static struct link_route dead_end(const struct net_address *a)
{
    return (struct link_route){
        .type = RTN_UNREACHABLE, .dst = *a, .prefix = (uint8_t)(8 * net_address_len(a))};
}

static int close_metadata(struct rtnl *pod, const struct plan *p, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(metadata_addresses); i++) {
        struct net_address a;
        (void)net_address_parse(metadata_addresses[i], &a);
        const struct link_route route = dead_end(&a);
        if (p->external.gw[a.family == AF_INET6].family && !is_in_tunnel(p->net, &a) &&
            !net_address_eq(&a, &p->metadata))
            r = link_route_add(pod, &route, err);
    }
    return r;
}

static int reopen_metadata(struct rtnl *pod, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(metadata_addresses); i++) {
        struct net_address a;
        struct err e = ERR_INIT;
        (void)net_address_parse(metadata_addresses[i], &a);
        const struct link_route route = dead_end(&a);
        r = link_route_delete(pod, &route, &e);
        if (r < 0 && r != -EOPNOTSUPP) /* no IPv6 here */
            return err_set(err, r, "%s", e.text);
        r = 0;
    }
    return r;
}

static struct link_address metadata_on_loopback(const struct plan *p)
{
    return (struct link_address){.index = LOOPBACK,
                                 .address = p->metadata,
                                 .prefix = (uint8_t)(8 * net_address_len(&p->metadata))};
}

/* ---- the whole ---- */

static int open_pod(const char *netns, int *ret_fd, struct rtnl **ret, struct err *err)
{
    int r = netns_open(netns, ret_fd, err);

    if (r < 0)
        return err_wrap(err, r, "the image must make it before (-pod-namespace)");
    return rtnl_open_in(*ret_fd, ret, err);
}

/* Closed before it is opened to the outside. */
static int go_outside(struct rtnl *vm, struct rtnl *pod, int pod_fd, struct plan *p,
                      struct err *err)
{
    const struct link_address metadata = metadata_on_loopback(p);
    int r = p->metadata.family ? link_set_up(pod, LOOPBACK, err) : 0;

    if (r == 0 && p->metadata.family)
        r = link_address_add(pod, &metadata, err);
    if (r < 0 || !p->net->external_net_via_pod_vm)
        return r;
    r = close_metadata(pod, p, err);
    return r < 0 ? r : external_enter(vm, pod, pod_fd, p->net->interface, &p->external, err);
}

static int take_down(struct rtnl *vm, struct rtnl *pod, const struct plan *p, struct err *err)
{
    const struct link_address metadata = metadata_on_loopback(p);
    int index, r = clear(pod, p, true, &index, err);

    if (r == 0 && p->net->external_net_via_pod_vm)
        r = external_leave(vm, pod, err);
    if (r == 0 && p->net->external_net_via_pod_vm)
        r = reopen_metadata(pod, err);
    return r < 0 || !p->metadata.family ? r : link_address_delete(pod, &metadata, err);
}

static int wait_for_vm(struct rtnl *vm, struct rtnl *pod, struct plan *p,
                       const struct podnet_guest *guest, struct err *err)
{
    struct underlay u = {.worker = p->worker,
                         .host_interface = guest->host_interface,
                         .wait_ms = guest->wait_ms,
                         .external = p->net->external_net_via_pod_vm ? &p->external : NULL};
    int r = underlay_wait(vm, pod, &u, err);

    if (r < 0)
        return r;
    uint32_t overhead = link_vxlan_overhead(u.worker.family);
    if (u.mtu > overhead)
        p->mtu = MIN(p->mtu, u.mtu - overhead);
    p->worker = u.worker;
    return 0;
}

static void keep_untracked(const struct plan *p)
{
    struct err err = ERR_INIT;

    if (notrack_add(&p->worker, p->port, p->vni, &err) < 0)
        log_info("pod network: NOTRACK is left out, so a firewall of this VM tracks the tunnel: %s",
                 err_text(&err));
}

static int setup(struct plan *p, const struct podnet_guest *guest, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *vm = NULL, *pod = NULL;
    _cleanup_close_ int fd = -1;
    int index = 0;
    int r = rtnl_open(&vm, err);

    r = r < 0 ? r : open_pod(guest->netns, &fd, &pod, err);
    r = r < 0 ? r : wait_for_vm(vm, pod, p, guest, err);
    r = r < 0 ? r : clear(pod, p, false, &index, err);
    if (r < 0)
        return r;
    bool kept = index != 0;
    keep_untracked(p); /* before the first packet */
    if (!kept)
        r = add_link(vm, pod, fd, p, &index, err);
    r = r < 0 ? r : dress(pod, p, index, err);
    r = r < 0 ? r : go_outside(vm, pod, fd, p, err);
    if (r < 0 && !kept) {
        struct err undo = ERR_INIT;
        if (take_down(vm, pod, p, &undo) < 0 || notrack_delete(p->vni, &undo) < 0)
            log_warn("taking down the pod's network: %s", err_text(&undo));
    }
    return r;
}

static void log_outcome(const struct plan *p)
{
    char worker[NET_ADDRESS_SIZE];

    net_address_format(&p->worker, worker);
    log_info("pod network: %s has %s, MTU %u, by VXLAN %u to %s%s%s", p->net->interface,
             p->net->podip, p->mtu, p->vni, worker, *p->external.name ? "; outside by " : "",
             p->external.name);
}

int podnet_guest_setup(const struct apf_network *net, const struct podnet_guest *guest,
                       struct err *err)
{
    struct plan p;
    int r = plan_make(net, guest, &p, err);

    r = r < 0 ? r : setup(&p, guest, err);
    if (r < 0)
        return err_wrap(err, r, "setting up the pod's network in %s", guest->netns);
    log_outcome(&p);
    return 0;
}

int podnet_guest_teardown(const struct apf_network *net, const struct podnet_guest *guest,
                          struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *vm = NULL, *pod = NULL;
    _cleanup_close_ int fd = -1;
    struct plan p;
    int r = plan_make(net, guest, &p, err);

    r = r < 0 ? r : notrack_delete(p.vni, err);
    if (r == 0 && netns_exists(guest->netns)) {
        r = rtnl_open(&vm, err);
        r = r < 0 ? r : open_pod(guest->netns, &fd, &pod, err);
        r = r < 0 ? r : take_down(vm, pod, &p, err);
    }
    return r < 0 ? err_wrap(err, r, "taking down the pod's network") : 0;
}
