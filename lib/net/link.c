/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links, addresses and routes, one rtnetlink request each.
 *
 * All functions are straight: fill the fixed header, put the attributes, rtnl_call. What makes them
 * safe to repeat is decided here and not by callers: EEXIST of an address, ENODEV of a deletion and
 * EADDRNOTAVAIL of an address's deletion are success. A link's EEXIST is not: another's link may
 * bear the name.
 *
 * Lists are whole dumps. One that the kernel marks as interrupted is asked for again a few times:
 * names and addresses of other pods come and go all the time.
 */
#include "net/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/veth.h>

#include "base/str.h"

#define DUMP_TRIES 8
#define LINKS_MAX 65536U

/* ---- addresses as values ---- */

size_t net_address_len(const struct net_address *a)
{
    return a->family == AF_INET ? 4 : a->family == AF_INET6 ? 16 : 0;
}

int net_address_parse(const char *text, struct net_address *ret)
{
    struct net_address a = {.family = strchr(text, ':') ? AF_INET6 : AF_INET};

    if (inet_pton(a.family, text, a.bytes) != 1)
        return -EINVAL;
    *ret = a;
    return 0;
}

void net_address_format(const struct net_address *a, char out[NET_ADDRESS_SIZE])
{
    out[0] = '\0';
    if (a->family)
        (void)inet_ntop(a->family, a->bytes, out, NET_ADDRESS_SIZE);
}

bool net_address_eq(const struct net_address *a, const struct net_address *b)
{
    return a->family == b->family && memcmp(a->bytes, b->bytes, net_address_len(a)) == 0;
}

/* ---- dumps ---- */

/* Grows an array by one element of size bytes; NULL beyond LINKS_MAX. */
static void *list_grow(void **list, size_t *n, size_t size)
{
    if (*n >= LINKS_MAX)
        return NULL;
    if ((*n & (*n - 1)) == 0)
        *list = xrealloc(*list, (*n ? *n * 2 : 1) * size);
    return (char *)*list + (*n)++ * size;
}

typedef bool parse_fn(const struct nlmsghdr *h, void *ret);

static int dump_once(struct rtnl *nl, struct rtnl_request *q, const char *what, parse_fn *parse,
                     size_t size, void **ret, size_t *ret_n, struct err *err)
{
    _cleanup_free_ void *list = NULL;
    _cleanup_free_ void *item = xcalloc(1, size);
    const struct nlmsghdr *h;
    size_t n = 0;
    int r = rtnl_start(nl, q, what, err);

    if (r < 0)
        return r;
    while ((r = rtnl_next(nl, &h, err)) > 0) {
        if (!parse(h, item))
            continue;
        void *slot = list_grow(&list, &n, size);
        if (!slot)
            return err_set(err, -E2BIG, "%s: over %u entries", what, LINKS_MAX);
        memcpy(slot, item, size);
    }
    if (r < 0)
        return r;
    *ret = TAKE_PTR(list);
    *ret_n = n;
    return 0;
}

static int dump(struct rtnl *nl, uint16_t type, const void *body, size_t body_len, const char *what,
                parse_fn *parse, size_t size, void **ret, size_t *ret_n, struct err *err)
{
    int r = -EINTR;

    for (unsigned i = 0; i < DUMP_TRIES && r == -EINTR; i++) {
        struct rtnl_request q;
        struct err e = ERR_INIT;

        rtnl_request_init(&q, type, NLM_F_DUMP, body, body_len);
        r = dump_once(nl, &q, what, parse, size, ret, ret_n, &e);
        if (r < 0 && (r != -EINTR || i + 1 == DUMP_TRIES))
            return err_set(err, r, "%s", e.text);
    }
    return r;
}

/* ---- links ---- */

static void parse_linkinfo(const struct rtnl_attr *info, struct link *ret)
{
    struct rtnl_attrs nest = {info->data, info->len};
    struct rtnl_attr a;

    while (rtnl_attr_next(&nest, &a))
        if (a.type == IFLA_INFO_KIND)
            rtnl_attr_string(&a, ret->kind, sizeof(ret->kind));
}

bool link_parse(const struct nlmsghdr *h, struct link *ret)
{
    const struct ifinfomsg *info = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(*info));
    struct rtnl_attr a;

    if (h->nlmsg_type != RTM_NEWLINK || h->nlmsg_len < NLMSG_LENGTH(sizeof(*info)))
        return false;
    *ret = (struct link){.index = info->ifi_index, .flags = info->ifi_flags};
    while (rtnl_attr_next(&attrs, &a)) {
        if (a.type == IFLA_IFNAME)
            rtnl_attr_string(&a, ret->name, sizeof(ret->name));
        else if (a.type == IFLA_MTU)
            ret->mtu = rtnl_attr_u32(&a);
        else if (a.type == IFLA_LINK)
            ret->peer_index = (int)rtnl_attr_u32(&a);
        else if (a.type == IFLA_ADDRESS && a.len == sizeof(ret->mac))
            memcpy(ret->mac, a.data, sizeof(ret->mac));
        else if (a.type == IFLA_LINKINFO)
            parse_linkinfo(&a, ret);
    }
    return ret->index > 0 && ret->name[0];
}

static bool link_parse_any(const struct nlmsghdr *h, void *ret)
{
    return link_parse(h, ret);
}

static const struct ifinfomsg any_link = {.ifi_family = AF_UNSPEC};

int link_list(struct rtnl *nl, struct link **ret, size_t *ret_n, struct err *err)
{
    void *list;
    int r = dump(nl, RTM_GETLINK, &any_link, sizeof(any_link), "listing links", link_parse_any,
                 sizeof(struct link), &list, ret_n, err);

    if (r == 0)
        *ret = list;
    return r;
}

int link_find(struct rtnl *nl, const char *name, struct link *ret, struct err *err)
{
    struct rtnl_request q;
    const struct nlmsghdr *h;
    struct err e = ERR_INIT;
    bool found = false;
    int r;

    rtnl_request_init(&q, RTM_GETLINK, NLM_F_ACK, &any_link, sizeof(any_link));
    rtnl_put_string(&q, IFLA_IFNAME, name);
    r = rtnl_start(nl, &q, "looking for a link", &e);
    if (r == 0)
        while ((r = rtnl_next(nl, &h, &e)) > 0)
            found = link_parse(h, ret) || found;
    if (r == -ENODEV || (r == 0 && !found))
        return -ENODEV;
    return r < 0 ? err_set(err, r, "%s", e.text) : 0;
}

int link_add_veth(struct rtnl *nl, const struct link_veth *veth, struct err *err)
{
    struct rtnl_request q;
    char what[64];

    rtnl_request_init(&q, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &any_link, sizeof(any_link));
    rtnl_put_string(&q, IFLA_IFNAME, veth->name);
    if (veth->mac)
        rtnl_put(&q, IFLA_ADDRESS, veth->mac, NET_MAC_LEN);
    size_t info = rtnl_nest(&q, IFLA_LINKINFO);
    rtnl_put_string(&q, IFLA_INFO_KIND, "veth");
    size_t data = rtnl_nest(&q, IFLA_INFO_DATA);
    size_t peer = rtnl_nest(&q, VETH_INFO_PEER);
    rtnl_put_raw(&q, &any_link, sizeof(any_link));
    rtnl_put_string(&q, IFLA_IFNAME, veth->peer_name);
    if (veth->peer_netns_fd >= 0)
        rtnl_put_u32(&q, IFLA_NET_NS_FD, (uint32_t)veth->peer_netns_fd);
    rtnl_nest_end(&q, peer);
    rtnl_nest_end(&q, data);
    rtnl_nest_end(&q, info);
    (void)str_format(what, sizeof(what), "adding link %.*s", IFNAMSIZ, veth->name);
    return rtnl_call(nl, &q, what, err);
}

static void link_request(struct rtnl_request *q, uint16_t type, int index)
{
    const struct ifinfomsg info = {.ifi_family = AF_UNSPEC, .ifi_index = index};

    rtnl_request_init(q, type, 0, &info, sizeof(info));
}

int link_rename(struct rtnl *nl, int index, const char *name, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_NEWLINK, index);
    rtnl_put_string(&q, IFLA_IFNAME, name);
    return rtnl_call(nl, &q, "renaming a link", err);
}

int link_set_up(struct rtnl *nl, int index, struct err *err)
{
    const struct ifinfomsg info = {
        .ifi_family = AF_UNSPEC, .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct rtnl_request q;

    rtnl_request_init(&q, RTM_NEWLINK, 0, &info, sizeof(info));
    return rtnl_call(nl, &q, "setting a link up", err);
}

int link_set_mtu(struct rtnl *nl, int index, uint32_t mtu, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_NEWLINK, index);
    rtnl_put_u32(&q, IFLA_MTU, mtu);
    return rtnl_call(nl, &q, "setting a link's MTU", err);
}

int link_move(struct rtnl *nl, int index, int netns_fd, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_NEWLINK, index);
    rtnl_put_u32(&q, IFLA_NET_NS_FD, (uint32_t)netns_fd);
    return rtnl_call(nl, &q, "moving a link to another network namespace", err);
}

/* rtnl_call that takes one code of the kernel's for success. */
static int call_unless(struct rtnl *nl, struct rtnl_request *q, const char *what, int fine,
                       struct err *err)
{
    struct err e = ERR_INIT;
    int r = rtnl_call(nl, q, what, &e);

    if (r < 0 && r != fine)
        return err_set(err, r, "%s", e.text);
    return 0;
}

int link_delete(struct rtnl *nl, int index, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_DELLINK, index);
    return call_unless(nl, &q, "deleting a link", -ENODEV, err);
}

/* ---- addresses ---- */

static void address_request(struct rtnl_request *q, uint16_t type, unsigned flags,
                            const struct link_address *a)
{
    const struct ifaddrmsg body = {.ifa_family = (uint8_t)a->address.family,
                                   .ifa_prefixlen = a->prefix,
                                   .ifa_index = (uint32_t)a->index,
                                   .ifa_flags = a->address.family == AF_INET6 ? IFA_F_NODAD : 0};
    size_t len = net_address_len(&a->address);

    rtnl_request_init(q, type, flags, &body, sizeof(body));
    rtnl_put(q, IFA_LOCAL, a->address.bytes, len);
    rtnl_put(q, IFA_ADDRESS, a->address.bytes, len);
}

int link_address_add(struct rtnl *nl, const struct link_address *a, struct err *err)
{
    struct rtnl_request q;

    address_request(&q, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, a);
    return call_unless(nl, &q, "adding an address", -EEXIST, err);
}

int link_address_delete(struct rtnl *nl, const struct link_address *a, struct err *err)
{
    struct rtnl_request q;

    address_request(&q, RTM_DELADDR, 0, a);
    return call_unless(nl, &q, "deleting an address", -EADDRNOTAVAIL, err);
}

bool link_address_parse(const struct nlmsghdr *h, struct link_address *ret)
{
    const struct ifaddrmsg *body = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(*body));
    struct rtnl_attr a;
    bool found = false, local = false;

    if (h->nlmsg_type != RTM_NEWADDR || h->nlmsg_len < NLMSG_LENGTH(sizeof(*body)))
        return false;
    *ret = (struct link_address){.index = (int)body->ifa_index,
                                 .prefix = body->ifa_prefixlen,
                                 .address = {.family = body->ifa_family}};
    size_t len = net_address_len(&ret->address);
    while (rtnl_attr_next(&attrs, &a)) {
        /* IFA_ADDRESS is the peer's where both are there. */
        if (a.len != len || len == 0 || !(a.type == IFA_LOCAL || (a.type == IFA_ADDRESS && !local)))
            continue;
        memcpy(ret->address.bytes, a.data, len);
        local = local || a.type == IFA_LOCAL;
        found = true;
    }
    return found;
}

static bool link_address_parse_any(const struct nlmsghdr *h, void *ret)
{
    return link_address_parse(h, ret);
}

int link_address_list(struct rtnl *nl, int index, struct link_address **ret, size_t *ret_n,
                      struct err *err)
{
    const struct ifaddrmsg body = {.ifa_family = AF_UNSPEC, .ifa_index = (uint32_t)index};
    void *list;
    int r = dump(nl, RTM_GETADDR, &body, sizeof(body), "listing addresses", link_address_parse_any,
                 sizeof(struct link_address), &list, ret_n, err);

    if (r == 0)
        *ret = list;
    return r;
}

/* ---- routes ---- */

int link_route_add(struct rtnl *nl, const struct link_route *route, struct err *err)
{
    const struct net_address *some = route->dst.family ? &route->dst : &route->gw;
    const struct rtmsg body = {.rtm_family = (uint8_t)some->family,
                               .rtm_dst_len = route->dst.family ? route->prefix : 0,
                               .rtm_table = RT_TABLE_MAIN,
                               .rtm_protocol = RTPROT_STATIC,
                               .rtm_scope = route->gw.family ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK,
                               .rtm_type = RTN_UNICAST};
    struct rtnl_request q;

    if (!some->family)
        return err_set(err, -EINVAL, "adding a route: neither destination nor gateway");
    rtnl_request_init(&q, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof(body));
    if (route->dst.family)
        rtnl_put(&q, RTA_DST, route->dst.bytes, net_address_len(&route->dst));
    if (route->gw.family)
        rtnl_put(&q, RTA_GATEWAY, route->gw.bytes, net_address_len(&route->gw));
    rtnl_put_u32(&q, RTA_OIF, (uint32_t)route->index);
    return rtnl_call(nl, &q, "adding a route", err);
}
