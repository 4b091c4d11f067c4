/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routes and neighbours, one rtnetlink request each.
 *
 * The main table only: what a pod's namespace holds beside it (local, multicast) follows from its
 * addresses. Both families are asked for one after the other, because a dump of "all families" also
 * brings multicast routes. A kernel without IPv6 answers the second question with an empty list or
 * an error, and both mean: none.
 */
#include "net/route.h"

#include <errno.h>
#include <linux/neighbour.h>

#include "base/str.h"

/* ---- names ---- */

struct word {
    const char *name;
    uint8_t value;
};

static const struct word protocols[] = {{"static", RTPROT_STATIC},
                                        {"boot", RTPROT_BOOT},
                                        {"dhcp", RTPROT_DHCP},
                                        {"kernel", RTPROT_KERNEL}};
static const struct word scopes[] = {{"universe", RT_SCOPE_UNIVERSE},
                                     {"site", RT_SCOPE_SITE},
                                     {"link", RT_SCOPE_LINK},
                                     {"host", RT_SCOPE_HOST},
                                     {"nowhere", RT_SCOPE_NOWHERE}};

static const char *word_name(const struct word *words, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++)
        if (words[i].value == value)
            return words[i].name;
    return "";
}

static int word_parse(const struct word *words, size_t n, const char *name, uint8_t *ret)
{
    for (size_t i = 0; i < n; i++)
        if (!*name || str_eq(words[i].name, name)) {
            *ret = words[i].value;
            return 0;
        }
    return -EINVAL;
}

const char *link_protocol_name(uint8_t protocol)
{
    return word_name(protocols, ARRAY_SIZE(protocols), protocol);
}

const char *link_scope_name(uint8_t scope)
{
    return word_name(scopes, ARRAY_SIZE(scopes), scope);
}

int link_protocol_parse(const char *name, uint8_t *ret)
{
    return word_parse(protocols, ARRAY_SIZE(protocols), name, ret);
}

int link_scope_parse(const char *name, uint8_t *ret)
{
    return word_parse(scopes, ARRAY_SIZE(scopes), name, ret);
}

/* ---- routes: changing ---- */

static int route_family(const struct link_route *r)
{
    return r->dst.family ? r->dst.family : r->gw.family ? r->gw.family : r->family;
}

static void route_request(struct rtnl_request *q, uint16_t type, unsigned flags,
                          const struct link_route *route, const struct rtmsg *body)
{
    rtnl_request_init(q, type, flags, body, sizeof(*body));
    if (route->dst.family)
        rtnl_put(q, RTA_DST, route->dst.bytes, net_address_len(&route->dst));
    if (route->gw.family)
        rtnl_put(q, RTA_GATEWAY, route->gw.bytes, net_address_len(&route->gw));
    if (route->index)
        rtnl_put_u32(q, RTA_OIF, (uint32_t)route->index);
    if (route->metric)
        rtnl_put_u32(q, RTA_PRIORITY, route->metric);
}

static void route_what(char *out, size_t size, const char *verb, const struct link_route *route)
{
    char dst[NET_ADDRESS_SIZE] = "default", gw[NET_ADDRESS_SIZE];

    if (route->dst.family)
        net_address_format(&route->dst, dst);
    net_address_format(&route->gw, gw);
    (void)str_format(out, size, "%s route %.40s/%u%s%.40s", verb, dst,
                     route->dst.family ? route->prefix : 0U, *gw ? " via " : "", gw);
}

int link_route_add(struct rtnl *nl, const struct link_route *route, struct err *err)
{
    const struct rtmsg body = {.rtm_family = (uint8_t)route_family(route),
                               .rtm_dst_len = route->dst.family ? route->prefix : 0,
                               .rtm_table = RT_TABLE_MAIN,
                               .rtm_protocol = route->protocol ? route->protocol : RTPROT_STATIC,
                               .rtm_scope = route->has_scope   ? route->scope
                                            : route->gw.family ? RT_SCOPE_UNIVERSE
                                            : route->type      ? RT_SCOPE_UNIVERSE
                                                               : RT_SCOPE_LINK,
                               .rtm_flags = route->onlink ? RTNH_F_ONLINK : 0,
                               .rtm_type = route->type ? route->type : RTN_UNICAST};
    struct rtnl_request q;
    char what[128];

    if (!body.rtm_family)
        return err_set(err, -EINVAL, "adding a route: neither destination nor gateway");
    route_what(what, sizeof(what), "adding", route);
    route_request(&q, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, &body);
    return rtnl_call(nl, &q, what, err);
}

int link_route_delete(struct rtnl *nl, const struct link_route *route, struct err *err)
{
    const struct rtmsg body = {.rtm_family = (uint8_t)route_family(route),
                               .rtm_dst_len = route->dst.family ? route->prefix : 0,
                               .rtm_table = RT_TABLE_MAIN,
                               .rtm_protocol = route->protocol,
                               .rtm_type = route->type,
                               .rtm_scope = route->has_scope ? route->scope : RT_SCOPE_NOWHERE};
    struct rtnl_request q;
    char what[128];

    if (!body.rtm_family)
        return err_set(err, -EINVAL, "deleting a route: neither destination nor gateway");
    route_what(what, sizeof(what), "deleting", route);
    route_request(&q, RTM_DELROUTE, 0, route, &body);
    return rtnl_call_unless(nl, &q, what, -ESRCH, err);
}

/* ---- routes: reading ---- */

static void get_address(const struct rtnl_attr *a, int family, struct net_address *ret)
{
    struct net_address found = {.family = family};

    if (a->len != net_address_len(&found) || a->len == 0)
        return;
    memcpy(found.bytes, a->data, a->len);
    *ret = found;
}

static uint32_t metrics_mtu(const struct rtnl_attr *metrics)
{
    struct rtnl_attrs nest = {metrics->data, metrics->len};
    struct rtnl_attr a;

    while (rtnl_attr_next(&nest, &a))
        if (a.type == RTAX_MTU)
            return rtnl_attr_u32(&a);
    return 0;
}

static void route_attr(const struct rtnl_attr *a, struct link_route *ret)
{
    switch (a->type) {
    case RTA_DST:
        get_address(a, ret->family, &ret->dst);
        break;
    case RTA_GATEWAY:
        get_address(a, ret->family, &ret->gw);
        break;
    case RTA_PREFSRC:
        get_address(a, ret->family, &ret->prefsrc);
        break;
    case RTA_OIF:
        ret->index = (int)rtnl_attr_u32(a);
        break;
    case RTA_PRIORITY:
        ret->metric = rtnl_attr_u32(a);
        break;
    case RTA_METRICS:
        ret->mtu = metrics_mtu(a);
        break;
    default:
        break;
    }
}

static const struct rtmsg *route_body(const struct nlmsghdr *h)
{
    const struct rtmsg *body = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);

    if (h->nlmsg_type != RTM_NEWROUTE || h->nlmsg_len < NLMSG_LENGTH(sizeof(*body)) ||
        body->rtm_type != RTN_UNICAST || (body->rtm_flags & RTM_F_CLONED))
        return NULL;
    return body->rtm_family == AF_INET || body->rtm_family == AF_INET6 ? body : NULL;
}

static void route_read(const struct nlmsghdr *h, const struct rtmsg *body, struct link_route *ret)
{
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(*body));
    struct rtnl_attr a;

    *ret = (struct link_route){.family = body->rtm_family,
                               .prefix = body->rtm_dst_len,
                               .protocol = body->rtm_protocol,
                               .scope = body->rtm_scope,
                               .has_scope = true,
                               .onlink = body->rtm_flags & RTNH_F_ONLINK};
    while (rtnl_attr_next(&attrs, &a))
        route_attr(&a, ret);
}

bool link_route_parse(const struct nlmsghdr *h, struct link_route *ret)
{
    const struct rtmsg *body = route_body(h);

    if (!body || body->rtm_table != RT_TABLE_MAIN)
        return false;
    route_read(h, body, ret);
    return ret->prefix == 0 || ret->dst.family;
}

static bool route_parse_any(const struct nlmsghdr *h, void *ret)
{
    return link_route_parse(h, ret);
}

static int route_list_of(struct rtnl *nl, int family, struct link_route **ret, size_t *ret_n,
                         struct err *err)
{
    const struct rtmsg body = {.rtm_family = (uint8_t)family};
    void *list;
    int r = rtnl_dump(nl, RTM_GETROUTE, &body, sizeof(body), "listing routes", route_parse_any,
                      sizeof(struct link_route), &list, ret_n, err);

    if (r == 0)
        *ret = list;
    return r;
}

int link_route_list(struct rtnl *nl, struct link_route **ret, size_t *ret_n, struct err *err)
{
    _cleanup_free_ struct link_route *v4 = NULL, *v6 = NULL;
    size_t n4 = 0, n6 = 0;
    struct err unused = ERR_INIT;
    int r = route_list_of(nl, AF_INET, &v4, &n4, err);

    if (r < 0)
        return r;
    r = route_list_of(nl, AF_INET6, &v6, &n6, &unused);
    if (r < 0 && r != -EOPNOTSUPP && r != -EAFNOSUPPORT)
        return err_set(err, r, "%s", unused.text);
    if (n6 > 0) {
        v4 = xrealloc(v4, (n4 + n6) * sizeof(*v4));
        memcpy(v4 + n4, v6, n6 * sizeof(*v4));
    }
    *ret = TAKE_PTR(v4);
    *ret_n = n4 + n6;
    return 0;
}

int link_route_get(struct rtnl *nl, const struct net_address *dst, struct link_route *ret,
                   struct err *err)
{
    const struct rtmsg body = {.rtm_family = (uint8_t)dst->family,
                               .rtm_dst_len = (uint8_t)(8 * net_address_len(dst))};
    const struct nlmsghdr *h;
    struct rtnl_request q;
    char what[128], text[NET_ADDRESS_SIZE];
    bool found = false;

    net_address_format(dst, text);
    (void)str_format(what, sizeof(what), "looking up the route to %.64s", text);
    rtnl_request_init(&q, RTM_GETROUTE, 0, &body, sizeof(body));
    rtnl_put(&q, RTA_DST, dst->bytes, net_address_len(dst));
    int r = rtnl_start(nl, &q, what, err);
    if (r < 0)
        return r;
    r = rtnl_next(nl, &h, err);
    if (r <= 0) /* the answer is one message, without an end behind it */
        return r < 0 ? r : err_set(err, -ENETUNREACH, "%s: no answer", what);
    const struct rtmsg *answer = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);
    found = h->nlmsg_type == RTM_NEWROUTE && h->nlmsg_len >= NLMSG_LENGTH(sizeof(*answer)) &&
            (answer->rtm_type == RTN_UNICAST || answer->rtm_type == RTN_LOCAL);
    if (!found)
        return err_set(err, -ENETUNREACH, "%s: none", what);
    route_read(h, answer, ret);
    return 0;
}

/* ---- neighbours ---- */

int link_neighbour_add(struct rtnl *nl, const struct link_neighbour *n, struct err *err)
{
    const struct ndmsg body = {.ndm_family = (uint8_t)n->address.family,
                               .ndm_ifindex = n->index,
                               .ndm_state = n->state ? n->state : NUD_PERMANENT,
                               .ndm_type = RTN_UNICAST};
    struct rtnl_request q;
    char what[96], text[NET_ADDRESS_SIZE];

    net_address_format(&n->address, text);
    (void)str_format(what, sizeof(what), "adding neighbour %.64s", text);
    rtnl_request_init(&q, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof(body));
    rtnl_put(&q, NDA_DST, n->address.bytes, net_address_len(&n->address));
    rtnl_put(&q, NDA_LLADDR, n->mac, NET_MAC_LEN);
    return rtnl_call(nl, &q, what, err);
}

bool link_neighbour_parse(const struct nlmsghdr *h, struct link_neighbour *ret)
{
    const struct ndmsg *body = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(*body));
    struct rtnl_attr a;
    bool mac = false;

    if (h->nlmsg_type != RTM_NEWNEIGH || h->nlmsg_len < NLMSG_LENGTH(sizeof(*body)))
        return false;
    *ret = (struct link_neighbour){.index = body->ndm_ifindex, .state = body->ndm_state};
    while (rtnl_attr_next(&attrs, &a)) {
        if (a.type == NDA_DST)
            get_address(&a, body->ndm_family, &ret->address);
        else if (a.type == NDA_LLADDR && a.len == NET_MAC_LEN) {
            memcpy(ret->mac, a.data, NET_MAC_LEN);
            mac = true;
        }
    }
    return mac && ret->address.family;
}

static bool neighbour_parse_any(const struct nlmsghdr *h, void *ret)
{
    return link_neighbour_parse(h, ret);
}

int link_neighbour_list(struct rtnl *nl, int index, struct link_neighbour **ret, size_t *ret_n,
                        struct err *err)
{
    const struct ndmsg body = {0};
    size_t n = 0, kept = 0;
    void *all = NULL;
    int r = rtnl_dump(nl, RTM_GETNEIGH, &body, sizeof(body), "listing neighbours",
                      neighbour_parse_any, sizeof(struct link_neighbour), &all, &n, err);

    if (r < 0)
        return r;
    struct link_neighbour *list = all;
    for (size_t i = 0; i < n; i++)
        if (list[i].index == index)
            list[kept++] = list[i];
    *ret = list;
    *ret_n = kept;
    return 0;
}
