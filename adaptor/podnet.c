/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's side of the pod's network.
 *
 * The CNI plugin has made the pod's namespace as for any pod: an interface with an address, a MAC,
 * routes. All of that is told to the VM, which makes itself the same interface. Here remains a wire:
 * what arrives at the pod's interface leaves through the VXLAN link to the VM, and the reverse.
 *
 *     CNI - eth0 <= tc redirect => vxlan1 - UDP of the node - vxlan of the VM - eth0 in podns
 *              (pod's namespace)
 *
 * The VXLAN link's socket belongs to the node's namespace, where the route to the VM is, while the
 * link is born in the pod's (lib/net/link.h), under a name that nobody else uses, and is then named
 * vxlan1. So a crash leaves nothing in the node's namespace, and what it leaves in the pod's is told
 * by its VNI, which is the sandbox's own until its teardown has succeeded.
 *
 * The flow is kept out of the node's connection tracking where there is nftables (lib/net/notrack.h); it
 * works without, so a failure is a line in the log, once. Its entry is found by the VNI too, and goes
 * also when the pod's namespace, and the link with it, has gone before.
 *
 * Order: link, then qdiscs and filters; teardown goes the other way, so that whenever there is
 * something left to remove, the link is still there to say that it is ours.
 *
 * One process at a time changes a pod's network. Within one daemon the sandbox's single job sees to
 * that, and between two the lock of the state directory; but a daemon that hands over (takeover.c)
 * has jobs that go on behind the lock, and two that make or clear the same link take it from under
 * each other. So it closes the gate before it lets go: changes under way are waited for, which
 * takes milliseconds, and others begin only if it takes its right back.
 *
 * Inspection reads only. The primary interface is the one with the default route: IPv4's, or IPv6's
 * where there is none. The MTU is the pod's own, or what the node's interface leaves it behind the
 * outer headers, if that is less.
 */
#include "adaptor/podnet.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/neighbour.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "net/netns.h"
#include "net/notrack.h"
#include "net/route.h"
#include "net/tc.h"

#define TUNNEL_LINK "vxlan1"
#define BIRTH_PREFIX "ppvxlan"
#define STEP_US 1000

static struct {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    unsigned inside; /* lock */
    bool closed;     /* lock */
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER};

/* ---- tables of a namespace ---- */

struct tables {
    struct rtnl *nl;
    struct link *links;
    struct link_address *addresses;
    struct link_route *routes;
    size_t n_links, n_addresses, n_routes;
};

static void tables_done(struct tables *t)
{
    rtnl_close(t->nl);
    free(t->links);
    free(t->addresses);
    free(t->routes);
}

static int tables_read(int netns_fd, struct tables *t, struct err *err)
{
    int r = rtnl_open_in(netns_fd, &t->nl, err);

    if (r == 0)
        r = link_list(t->nl, &t->links, &t->n_links, err);
    if (r == 0)
        r = link_address_list(t->nl, 0, &t->addresses, &t->n_addresses, err);
    if (r == 0)
        r = link_route_list(t->nl, &t->routes, &t->n_routes, err);
    return r;
}

static const struct link *link_of(const struct tables *t, int index)
{
    for (size_t i = 0; i < t->n_links; i++)
        if (t->links[i].index == index)
            return &t->links[i];
    return NULL;
}

static const struct link_route *default_route(const struct tables *t, int family)
{
    const struct link_route *best = NULL;

    for (size_t i = 0; i < t->n_routes; i++) {
        const struct link_route *r = &t->routes[i];
        if (r->family == family && r->prefix == 0 && r->index &&
            (!best || r->metric < best->metric))
            best = r;
    }
    return best;
}

/* 0: none. */
static int primary(const struct tables *t)
{
    const struct link_route *r = default_route(t, AF_INET);

    if (!r)
        r = default_route(t, AF_INET6);
    return r ? r->index : 0;
}

static bool wanted_address(const struct link_address *a, int index, int family)
{
    return a->index == index && a->address.family == family &&
           (a->scope == RT_SCOPE_UNIVERSE || a->scope == RT_SCOPE_SITE);
}

static const struct link_address *first_address(const struct tables *t, int index, int family)
{
    for (size_t i = 0; i < t->n_addresses; i++)
        if (wanted_address(&t->addresses[i], index, family))
            return &t->addresses[i];
    return NULL;
}

static void prefix_format(const struct net_address *a, uint8_t prefix, char out[APF_PREFIX_SIZE])
{
    char text[NET_ADDRESS_SIZE];

    net_address_format(a, text);
    (void)str_format(out, APF_PREFIX_SIZE, "%.45s/%u", text, prefix);
}

/* ---- the node's interface ---- */

/* Asked for one by one: a full node has thousands of links that come and go, and a list of all is
 * never right then. ret->index 0: there is none, and none is needed. */
static int node_link(const struct podnet_config *config, struct tables *t, struct link *ret,
                     struct err *err)
{
    const char *name = config->host_interface;
    int index = primary(t);
    int r = *name ? link_find(t->nl, name, ret, err) : index ? link_get(t->nl, index, ret, err) : 0;

    if (r == -ENODEV && *name)
        return err_set(err, r, "this node has no interface %s (-host-interface)", name);
    if (r < 0)
        return r == -ENODEV ? err_set(err, r, "the node's default route has lost its link") : r;
    if (ret->index == 0 && !config->point_to_point)
        return err_set(err, -ENODEV,
                       "this node has no default route, which tells the interface of the "
                       "tunnels; name one by -host-interface");
    return 0;
}

static int inspect_node(const struct podnet_config *config, struct apf_network *ret,
                        struct err *err)
{
    _cleanup_(tables_done) struct tables t = {0};
    struct link link = {.index = 0};
    int r = rtnl_open(&t.nl, err);

    if (r == 0)
        r = link_route_list(t.nl, &t.routes, &t.n_routes, err);
    if (r == 0)
        r = node_link(config, &t, &link, err);
    if (r < 0 || link.index == 0)
        return r;
    r = link_address_list(t.nl, link.index, &t.addresses, &t.n_addresses, err);
    if (r < 0)
        return r;
    const struct link_address *a = first_address(&t, link.index, AF_INET);
    if (!a)
        a = first_address(&t, link.index, AF_INET6);
    if (!a)
        return err_set(err, -EADDRNOTAVAIL, "the node's interface %s has no address", link.name);
    uint32_t room = link.mtu - MIN(link.mtu, link_vxlan_overhead(a->address.family));
    ret->mtu = MIN(ret->mtu, room);
    ret->dedicated = *config->host_interface && primary(&t) && link.index != primary(&t);
    prefix_format(&a->address, a->prefix, ret->worker_node_ip);
    return 0;
}

/* ---- the pod's namespace ---- */

static int take_addresses(const struct podnet_config *config, const struct tables *t,
                          const struct link *link, struct apf_network *ret, struct err *err)
{
    const struct link_address *first = first_address(t, link->index, AF_INET);

    if (!first && !config->ipv4_only)
        first = first_address(t, link->index, AF_INET6);
    if (!first)
        return err_set(err, -EADDRNOTAVAIL, "the pod's interface %s has no %saddress", link->name,
                       config->ipv4_only ? "IPv4 " : "");
    prefix_format(&first->address, first->prefix, ret->podip);
    for (size_t i = 0; i < t->n_addresses && !config->ipv4_only; i++) {
        const struct link_address *a = &t->addresses[i];
        if (a == first ||
            !(wanted_address(a, link->index, AF_INET) || wanted_address(a, link->index, AF_INET6)))
            continue;
        if (ret->n_podips == APF_PODIPS_MAX)
            return err_set(err, -E2BIG, "the pod's interface %s has over %d addresses", link->name,
                           APF_PODIPS_MAX + 1);
        prefix_format(&a->address, a->prefix, ret->podips[ret->n_podips++]);
    }
    return 0;
}

static bool is_link_local6(const struct net_address *a)
{
    return a->family == AF_INET6 && a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

static bool wanted_route(const struct podnet_config *config, const struct link_route *r, int index)
{
    return r->index == index && !(config->ipv4_only && r->family != AF_INET) &&
           !is_link_local6(&r->dst);
}

static int add_route(struct apf_network *net, const struct net_address *dst, uint8_t prefix,
                     const struct link_route *like, struct err *err)
{
    if (net->n_routes == APF_ROUTES_MAX)
        return err_set(err, -E2BIG, "the pod has over %d routes", APF_ROUTES_MAX);
    net->routes = xrealloc(net->routes, (net->n_routes + 1) * sizeof(*net->routes));
    struct apf_route *route = &net->routes[net->n_routes++];
    *route = (struct apf_route){0};
    prefix_format(dst, prefix, route->dst);
    if (like->gw.family) {
        char gw[NET_ADDRESS_SIZE];
        net_address_format(&like->gw, gw);
        (void)str_format(route->gw, sizeof(route->gw), "%.45s", gw);
    }
    (void)str_format(route->dev, sizeof(route->dev), "%s", net->interface);
    (void)str_format(route->protocol, sizeof(route->protocol), "%s",
                     link_protocol_name(like->protocol));
    (void)str_format(route->scope, sizeof(route->scope), "%s", link_scope_name(like->scope));
    return 0;
}

static int take_routes(const struct podnet_config *config, const struct tables *t,
                       const struct link *link, struct apf_network *ret, struct err *err)
{
    int r = 0;

    for (size_t i = 0; i < t->n_routes && r == 0; i++) {
        const struct link_route *route = &t->routes[i];
        const struct net_address any = {.family = route->family};
        if (wanted_route(config, route, link->index))
            r = add_route(ret, route->dst.family ? &route->dst : &any, route->prefix, route, err);
    }
    return r;
}

static bool is_told(const struct apf_network *net, const char *dst)
{
    for (size_t i = 0; i < net->n_routes; i++)
        if (str_eq(net->routes[i].dst, dst))
            return true;
    return false;
}

/* -pod-subnet-cidrs: the way that the pod's default route takes. With -ext-network-via-podvm the VM
 * leaves that one out, and these are what stays in the tunnel. Once each: the Go forwarder fails at
 * the second. */
static int add_subnets(const struct podnet_config *config, const struct tables *t,
                       struct apf_network *ret, struct err *err)
{
    int r = 0;

    for (char **s = config->pod_subnets; s && *s && r == 0; s++) {
        char text[APF_PREFIX_SIZE];
        struct net_address dst;
        uint8_t prefix;
        if (net_prefix_parse(*s, &dst, &prefix) < 0)
            return err_set(err, -EINVAL, "-pod-subnet-cidrs: '%s' is not a subnet (10.244.0.0/16)",
                           *s);
        const struct link_route *way = default_route(t, dst.family);
        dst = net_address_network(&dst, prefix);
        prefix_format(&dst, prefix, text);
        if (way && !is_told(ret, text) && !(config->ipv4_only && dst.family != AF_INET))
            r = add_route(ret, &dst, prefix, way, err);
    }
    return r;
}

static int take_neighbours(const struct tables *t, const struct link *link, struct apf_network *ret,
                           struct err *err)
{
    _cleanup_free_ struct link_neighbour *list = NULL;
    size_t n = 0, kept = 0;
    int r = link_neighbour_list(t->nl, link->index, &list, &n, err);

    if (r < 0 || n == 0)
        return r;
    ret->neighbors = xcalloc(n, sizeof(*ret->neighbors));
    for (size_t i = 0; i < n; i++) {
        struct apf_neighbor *to = &ret->neighbors[kept];
        char ip[NET_ADDRESS_SIZE];
        if (!(list[i].state & NUD_PERMANENT))
            continue;
        if (++kept > APF_NEIGHBORS_MAX)
            return err_set(err, -E2BIG, "the pod has over %d permanent neighbours",
                           APF_NEIGHBORS_MAX);
        net_address_format(&list[i].address, ip);
        (void)str_format(to->ip, sizeof(to->ip), "%.45s", ip);
        (void)str_format(to->dev, sizeof(to->dev), "%s", link->name);
        net_mac_format(list[i].mac, to->hw_addr);
        (void)str_format(to->state, sizeof(to->state), "permanent");
    }
    ret->n_neighbors = kept;
    return 0;
}

static int inspect_pod(const struct podnet_config *config, struct apf_network *ret, struct err *err)
{
    static const unsigned char none[NET_MAC_LEN];
    _cleanup_(tables_done) struct tables t = {0};
    _cleanup_close_ int fd = -1;
    int r = netns_open(config->netns, &fd, err);

    if (r == 0)
        r = tables_read(fd, &t, err);
    if (r < 0)
        return r;
    const struct link *link = link_of(&t, primary(&t));
    if (!link)
        return err_set(err, -ENODEV,
                       "no default route in %s: the CNI plugin of this node must give the pod one",
                       config->netns);
    if (memcmp(link->mac, none, sizeof(none)) == 0)
        return err_set(err, -EOPNOTSUPP, "the pod's interface %s has no Ethernet address",
                       link->name);
    (void)str_format(ret->interface, sizeof(ret->interface), "%s", link->name);
    net_mac_format(link->mac, ret->pod_hw_addr);
    ret->mtu = link->mtu;
    r = take_addresses(config, &t, link, ret, err);
    if (r == 0)
        r = take_routes(config, &t, link, ret, err);
    if (r == 0)
        r = add_subnets(config, &t, ret, err);
    return r < 0 ? r : take_neighbours(&t, link, ret, err);
}

int podnet_inspect(const struct podnet_config *config, struct apf_network *ret, struct err *err)
{
    struct apf apf = {.network = {.index = config->index,
                                  .vxlan_id = config->vni,
                                  .vxlan_port = config->port,
                                  .tunnel_type = "vxlan"}};
    int r = inspect_pod(config, &apf.network, err);

    apf.network.external_net_via_pod_vm = config->external_net_via_pod_vm;
    (void)str_format(apf.network.metadata_address, sizeof(apf.network.metadata_address), "%s",
                     config->metadata_address);
    if (r == 0)
        r = inspect_node(config, &apf.network, err);
    if (r < 0) {
        apf_done(&apf);
        return err_wrap(err, r, "inspecting the pod's network");
    }
    *ret = apf.network;
    return 0;
}

/* ---- set-up and teardown ---- */

int podnet_remote(const struct apf_network *net, const char *const *addresses, size_t n,
                  struct net_address *ret, struct err *err)
{
    struct net_address node = {0}, a;
    uint8_t prefix;

    if (net->dedicated && n < 2)
        return err_set(err, -EADDRNOTAVAIL,
                       "-host-interface names a dedicated network, but the VM has no second "
                       "address there");
    (void)net_prefix_parse(net->worker_node_ip, &node, &prefix);
    for (size_t i = net->dedicated ? 1 : 0; i < n; i++)
        if (net_address_parse(addresses[i], &a) == 0 && (!node.family || a.family == node.family)) {
            *ret = a;
            return 0;
        }
    return err_set(err, -EADDRNOTAVAIL, "the VM has no address of the same family as the node's %s",
                   net->worker_node_ip);
}

/* One direction each. */
static int redirect(struct rtnl *nl, int a, int b, struct err *err)
{
    int r = tc_ingress_add(nl, a, err);

    if (r == 0)
        r = tc_ingress_add(nl, b, err);
    if (r == 0)
        r = tc_redirect_add(nl, a, b, err);
    return r < 0 ? r : tc_redirect_add(nl, b, a, err);
}

static int find_sure(struct rtnl *nl, const char *name, struct link *ret, struct err *err)
{
    int r = link_find(nl, name, ret, err);

    return r == -ENODEV ? err_set(err, r, "link %s is not in the pod's namespace", name) : r;
}

static int make(int netns_fd, const struct apf_network *net, const struct net_address *remote,
                struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *node = NULL, *pod = NULL;
    struct link interface, tunnel;
    char birth[IFNAMSIZ];
    int r = str_format(birth, sizeof(birth), BIRTH_PREFIX "%u", net->index % 100000000U);
    const struct link_vxlan vxlan = {.name = birth,
                                     .netns_fd = netns_fd,
                                     .vni = net->vxlan_id,
                                     .port = (uint16_t)net->vxlan_port,
                                     .remote = *remote,
                                     .mtu = net->mtu > ETH_DATA_LEN ? net->mtu : 0};

    r = r < 0 ? r : rtnl_open(&node, err);
    r = r < 0 ? r : rtnl_open_in(netns_fd, &pod, err);
    r = r < 0 ? r : find_sure(pod, net->interface, &interface, err);
    r = r < 0 ? r : link_add_vxlan(node, &vxlan, err);
    r = r < 0 ? r : find_sure(pod, birth, &tunnel, err);
    r = r < 0 ? r : link_rename(pod, tunnel.index, TUNNEL_LINK, err);
    r = r < 0 ? r : link_set_up(pod, tunnel.index, err);
    return r < 0 ? r : redirect(pod, interface.index, tunnel.index, err);
}

static int remove_ours(struct rtnl *nl, const char *interface, uint32_t vni, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    size_t n;
    int r = link_list(nl, &links, &n, err);

    for (size_t i = 0; r == 0 && i < n; i++) {
        struct link eth;
        if (!str_eq(links[i].kind, "vxlan") || links[i].vni != vni)
            continue;
        r = link_find(nl, interface, &eth, err);
        if (r == 0)
            r = tc_ingress_delete(nl, eth.index, err);
        if (r == 0 || r == -ENODEV)
            r = link_delete(nl, links[i].index, err);
    }
    return r;
}

static int take_down(const char *netns, const char *interface, uint32_t vni, struct err *err)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    _cleanup_close_ int fd = -1;
    struct err e = ERR_INIT;
    int r = netns_open(netns, &fd, &e);

    if (r == -ENOENT || r == -EINVAL)
        return 0; /* its links went with it */
    r = r < 0 ? r : rtnl_open_in(fd, &nl, &e);
    r = r < 0 ? r : remove_ours(nl, interface, vni, &e);
    return r < 0 ? err_set(err, r, "%s", e.text) : 0;
}

static void keep_untracked(const struct apf_network *net, const struct net_address *remote)
{
    static atomic_bool told;
    struct err err = ERR_INIT;

    if (notrack_add(remote, (uint16_t)net->vxlan_port, net->vxlan_id, &err) < 0 &&
        !atomic_exchange(&told, true))
        log_info(
            "pod network: NOTRACK is left out, so a firewall of this node tracks the tunnels: %s",
            err_text(&err));
}

static int tear_down(const char *netns, const char *interface, uint32_t vni, struct err *err)
{
    struct err links = ERR_INIT, rule = ERR_INIT;
    int r = take_down(netns, interface, vni, &links), q = notrack_delete(vni, &rule);

    if (r < 0 || q < 0)
        return err_set(err, r < 0 ? r : q, "taking down the pod's network: %s",
                       r < 0 ? links.text : rule.text);
    return 0;
}

static int set_up(const char *netns, const struct apf_network *net,
                  const struct net_address *remote, struct err *err)
{
    _cleanup_close_ int fd = -1;
    int r = take_down(netns, net->interface, net->vxlan_id, err);

    r = r < 0 ? r : netns_open(netns, &fd, err);
    if (r == 0)
        keep_untracked(net, remote); /* before the first packet */
    r = r < 0 ? r : make(fd, net, remote, err);
    if (r < 0) {
        struct err undo = ERR_INIT;
        if (tear_down(netns, net->interface, net->vxlan_id, &undo) < 0)
            log_warn("%s", err_text(&undo));
        return err_wrap(err, r, "setting up the pod's network");
    }
    return 0;
}

/* ---- one process at a time ---- */

static void enter(void)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.closed)
        pthread_cond_wait(&gate.opened, &gate.lock);
    gate.inside++;
    pthread_mutex_unlock(&gate.lock);
}

static void leave(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.inside--;
    pthread_mutex_unlock(&gate.lock);
}

int podnet_setup(const char *netns, const struct apf_network *net, const struct net_address *remote,
                 struct err *err)
{
    enter();
    int r = set_up(netns, net, remote, err);
    leave();
    return r;
}

int podnet_teardown(const char *netns, const char *interface, uint32_t vni, struct err *err)
{
    enter();
    int r = tear_down(netns, interface, vni, err);
    leave();
    return r;
}

static unsigned close_gate(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.closed = true;
    unsigned inside = gate.inside;
    pthread_mutex_unlock(&gate.lock);
    return inside;
}

int podnet_pause(int64_t ms, struct err *err)
{
    int64_t end = clock_mono_ms() + ms;
    while (close_gate() > 0) {
        if (clock_mono_ms() > end) {
            podnet_resume();
            return err_set(err, -ETIMEDOUT, "the network of a pod is being changed");
        }
        usleep(STEP_US);
    }
    return 0;
}

void podnet_resume(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.closed = false;
    pthread_cond_broadcast(&gate.opened);
    pthread_mutex_unlock(&gate.lock);
}
