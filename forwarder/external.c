/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's second interface, moved into podns: what does not belong to the cluster leaves by it.
 *
 * As in the Go forwarder: it is the first Ethernet interface beside the primary one (and beside the
 * tunnel's) that has an address. Its gateway is that of its default route; without one it is the
 * primary's where both are in one subnet, else the subnet's first address, which is where the clouds
 * have it. IPv6 leaves by it only where it has a default route: a router's address cannot be guessed.
 *
 * The kernel takes addresses and routes away from a link that moves, and we may be killed behind the
 * move. So what is to be put back is written on the link itself before, as its alias:
 *
 *     peerpod-external eth1 192.0.2.7/24 gw=192.0.2.1@100/16 2001:db8::7/64 near=fe80::1@0/0
 *
 * (gw: of a route of its own, with its metric and who made it; near: concluded). A link with such an alias is ours to
 * finish, wherever it is: in podns on the way in, in the VM's namespace on the way back, where the
 * alias goes last.
 */
#include "forwarder/external.h"

#include <errno.h>

#include "base/str.h"
#include "net/netns.h"

#define MARK "peerpod-external "
#define OTHER_NAME "ext0" /* where the pod's own interface has its name */

struct vm {
    struct link *links;
    struct link_address *addresses;
    struct link_route *routes;
    size_t n_links, n_addresses, n_routes;
};

static void vm_done(struct vm *v)
{
    free(v->links);
    free(v->addresses);
    free(v->routes);
}

static int slot(int family)
{
    return family == AF_INET6;
}

/* ---- the alias ---- */

static int alias_write(const struct external *e, char out[LINK_ALIAS_SIZE])
{
    int r = str_format(out, LINK_ALIAS_SIZE, MARK "%s", e->name);

    for (int i = 0; i < 2 && r >= 0; i++) {
        char a[NET_ADDRESS_SIZE], gw[NET_ADDRESS_SIZE];
        size_t at = strlen(out);
        if (!e->address[i].address.family)
            continue;
        net_address_format(&e->address[i].address, a);
        net_address_format(&e->gw[i], gw);
        r = str_format(out + at, LINK_ALIAS_SIZE - at, " %s/%u", a, e->address[i].prefix);
        at = strlen(out);
        if (r >= 0 && *gw)
            r = str_format(out + at, LINK_ALIAS_SIZE - at, " %s=%s@%u/%u",
                           e->has_route[i] ? "gw" : "near", gw, e->metric[i], e->protocol[i]);
    }
    return r;
}

static void read_gateway(const char *word, struct external *e)
{
    _cleanup_(strv_freep) char **parts = str_split(strchr(word, '=') + 1, '@');
    _cleanup_(strv_freep) char **numbers = parts[0] && parts[1] ? str_split(parts[1], '/') : NULL;
    struct net_address gw;
    uint64_t metric, protocol;

    if (!numbers || !numbers[0] || !numbers[1] || net_address_parse(parts[0], &gw) < 0 ||
        str_to_u64(numbers[0], UINT32_MAX, &metric) < 0 ||
        str_to_u64(numbers[1], UINT8_MAX, &protocol) < 0)
        return;
    int i = slot(gw.family);
    e->gw[i] = gw;
    e->metric[i] = (uint32_t)metric;
    e->protocol[i] = (uint8_t)protocol;
    e->has_route[i] = str_starts(word, "gw=");
}

static bool alias_read(const struct link *l, struct external *ret)
{
    _cleanup_(strv_freep) char **words = NULL;
    struct external e = {.index = l->index};
    struct link_address a = {0};

    if (!str_starts(l->alias, MARK))
        return false;
    words = str_split(l->alias + strlen(MARK), ' ');
    for (size_t i = 0; words[i]; i++) {
        if (i == 0 && str_format(e.name, sizeof(e.name), "%s", words[i]) < 0)
            return false;
        if (i > 0 && strchr(words[i], '='))
            read_gateway(words[i], &e);
        else if (i > 0 && net_prefix_parse(words[i], &a.address, &a.prefix) == 0)
            e.address[slot(a.address.family)] = a;
    }
    *ret = e;
    return *e.name;
}

/* -ENODEV: none there. */
static int find_marked(struct rtnl *nl, struct external *ret, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    size_t n;
    int r = link_list(nl, &links, &n, err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (alias_read(&links[i], ret))
            return 0;
    return -ENODEV;
}

/* ---- which one ---- */

/* Of one link, or of any (0): the one that is used. */
static const struct link_route *default_route(const struct vm *v, int index, int family)
{
    const struct link_route *best = NULL;

    for (size_t i = 0; i < v->n_routes; i++) {
        const struct link_route *r = &v->routes[i];
        if (r->family == family && r->prefix == 0 && r->gw.family && r->index &&
            (!index || r->index == index) && (!best || r->metric < best->metric))
            best = r;
    }
    return best;
}

static const struct link_address *address_on(const struct vm *v, int index, int family)
{
    for (size_t i = 0; i < v->n_addresses; i++)
        if (v->addresses[i].index == index && v->addresses[i].address.family == family &&
            v->addresses[i].scope == RT_SCOPE_UNIVERSE)
            return &v->addresses[i];
    return NULL;
}

static bool same_network(const struct link_address *a, const struct link_address *b)
{
    struct net_address x = net_address_network(&a->address, a->prefix),
                       y = net_address_network(&b->address, b->prefix);

    return a->prefix == b->prefix && net_address_eq(&x, &y);
}

static void conclude_gateway(const struct vm *v, struct external *e, int family)
{
    int i = slot(family);
    const struct link_address *mine = &e->address[i];
    const struct link_route *own = default_route(v, e->index, family),
                            *used = default_route(v, 0, family);
    const struct link_address *other = used ? address_on(v, used->index, family) : NULL;

    if (own) {
        e->gw[i] = own->gw;
        e->metric[i] = own->metric;
        e->protocol[i] = own->protocol;
        /* Two of one metric: put back, it would be in the other's place. */
        e->has_route[i] = own == used || own->metric != used->metric;
    } else if (used && other && same_network(mine, other)) {
        e->gw[i] = used->gw;
    } else if (family == AF_INET && mine->prefix < 31) {
        e->gw[i] = net_address_network(&mine->address, mine->prefix);
        e->gw[i].bytes[3]++;
    }
}

static bool is_candidate(const struct vm *v, const struct link *l, int tunnel)
{
    const struct link_route *primary = default_route(v, 0, AF_INET);

    if (!primary)
        primary = default_route(v, 0, AF_INET6);
    /* veth: what a container's interface is, in `local` and in tests also the VM's. */
    return !(l->flags & IFF_LOOPBACK) && l->index != tunnel &&
           !(primary && primary->index == l->index) && (!*l->kind || str_eq(l->kind, "veth"));
}

static int find_new(struct rtnl *nl, int tunnel, struct external *ret, struct err *err)
{
    _cleanup_(vm_done) struct vm v = {0};
    int r = link_list(nl, &v.links, &v.n_links, err);

    r = r < 0 ? r : link_address_list(nl, 0, &v.addresses, &v.n_addresses, err);
    r = r < 0 ? r : link_route_list(nl, &v.routes, &v.n_routes, err);
    for (size_t i = 0; r == 0 && i < v.n_links; i++) {
        const struct link *l = &v.links[i];
        struct external e = {.index = l->index};
        const struct link_address *four = address_on(&v, l->index, AF_INET),
                                  *six = address_on(&v, l->index, AF_INET6);
        if (!(four || six) || !is_candidate(&v, l, tunnel))
            continue;
        (void)str_format(e.name, sizeof(e.name), "%s", l->name);
        if (four)
            e.address[0] = *four;
        if (six)
            e.address[1] = *six;
        if (four)
            conclude_gateway(&v, &e, AF_INET);
        if (six)
            conclude_gateway(&v, &e, AF_INET6);
        *ret = e;
        return 0;
    }
    return r < 0 ? r : -ENODEV;
}

int external_find(struct rtnl *vm, struct rtnl *pod, int tunnel, struct external *ret,
                  struct err *err)
{
    int r = find_marked(pod, ret, err);

    if (r == 0)
        ret->moved = true;
    if (r == -ENODEV)
        r = find_marked(vm, ret, err);
    return r == -ENODEV ? find_new(vm, tunnel, ret, err) : r;
}

/* ---- in and out ---- */

static int add_addresses(struct rtnl *nl, const struct external *e, struct err *err)
{
    int r = link_set_up(nl, e->index, err);

    for (int i = 0; r == 0 && i < 2; i++) {
        struct link_address a = e->address[i];
        a.index = e->index;
        if (a.address.family)
            r = link_address_add(nl, &a, err);
    }
    return r;
}

/* Then no "onlink" is needed, and the route that is put back looks as it did. */
static bool is_near(const struct link_address *a, const struct net_address *gw)
{
    struct net_address x = net_address_network(&a->address, a->prefix),
                       y = net_address_network(gw, a->prefix);

    return net_address_eq(&x, &y);
}

static int add_routes(struct rtnl *nl, const struct external *e, bool back, struct err *err)
{
    int r = 0;

    for (int i = 0; r == 0 && i < 2; i++) {
        const struct link_route route = {.index = e->index,
                                         .gw = e->gw[i],
                                         .onlink = !is_near(&e->address[i], &e->gw[i]),
                                         .metric = back ? e->metric[i] : 0,
                                         .protocol = back ? e->protocol[i] : RTPROT_BOOT};
        if (e->gw[i].family && (!back || e->has_route[i]))
            r = link_route_add(nl, &route, err);
    }
    return r;
}

static int move_in(struct rtnl *vm, struct rtnl *pod, int pod_fd, const char *taken,
                   struct external *e, struct err *err)
{
    const char *name = str_eq(e->name, taken) ? OTHER_NAME : e->name;
    char alias[LINK_ALIAS_SIZE];
    struct link link;
    int r = alias_write(e, alias);

    r = r < 0 ? err_set(err, r, "too much to remember") : link_set_alias(vm, e->index, alias, err);
    r = r < 0 ? r : link_move(vm, e->index, pod_fd, name, err);
    r = r < 0 ? r : link_find(pod, name, &link, err);
    if (r == -ENODEV)
        return err_set(err, r, "it vanished");
    if (r == 0)
        e->index = link.index;
    e->moved = r == 0;
    return r;
}

int external_enter(struct rtnl *vm, struct rtnl *pod, int pod_fd, const char *taken,
                   struct external *e, struct err *err)
{
    struct err why = ERR_INIT;
    int r = e->moved ? 0 : move_in(vm, pod, pod_fd, taken, e, &why);

    r = r < 0 ? r : add_addresses(pod, e, &why);
    r = r < 0 ? r : add_routes(pod, e, false, &why);
    return r < 0 ? err_set(err, r, "the VM's second interface %s: %s", e->name, why.text) : 0;
}

static int put_back(struct rtnl *vm, struct err *err)
{
    struct external e;
    int r = find_marked(vm, &e, err);

    if (r < 0)
        return r == -ENODEV ? 0 : r;
    r = add_addresses(vm, &e, err);
    r = r < 0 ? r : add_routes(vm, &e, true, err);
    return r < 0 ? r : link_set_alias(vm, e.index, "", err);
}

int external_leave(struct rtnl *vm, struct rtnl *pod, struct err *err)
{
    _cleanup_close_ int home = -1;
    struct external e;
    struct err why = ERR_INIT;
    int r = find_marked(pod, &e, &why);

    if (r == 0) {
        r = netns_open_own(&home, &why);
        r = r < 0 ? r : link_move(pod, e.index, home, e.name, &why);
    } else if (r == -ENODEV) {
        r = 0;
    }
    r = r < 0 ? r : put_back(vm, &why);
    return r < 0 ? err_set(err, r, "returning the VM's second interface: %s", why.text) : 0;
}
