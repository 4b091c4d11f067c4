/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links and addresses, one rtnetlink request each.
 *
 * All functions are straight: fill the fixed header, put the attributes, rtnl_call. What makes them
 * safe to repeat is decided here and not by callers: EEXIST of an address, ENODEV of a deletion and
 * EADDRNOTAVAIL of an address's deletion are success. A link's EEXIST is not: another's link may
 * bear the name.
 */
#include "net/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/veth.h>

#include "base/str.h"

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

int net_prefix_parse(const char *text, struct net_address *ret, uint8_t *ret_prefix)
{
    char address[NET_ADDRESS_SIZE];
    const char *slash = strchr(text, '/');
    struct net_address a;
    uint64_t bits;

    if (!slash || str_format(address, sizeof(address), "%.*s", (int)(slash - text), text) < 0 ||
        net_address_parse(address, &a) < 0 || str_to_u64(slash + 1, 128, &bits) < 0 ||
        bits > 8 * net_address_len(&a))
        return -EINVAL;
    *ret = a;
    *ret_prefix = (uint8_t)bits;
    return 0;
}

struct net_address net_address_network(const struct net_address *a, uint8_t prefix)
{
    struct net_address n = *a;

    for (unsigned bit = prefix; bit < 8 * sizeof(n.bytes); bit++)
        n.bytes[bit / 8] &= (unsigned char)~(0x80U >> (bit % 8));
    return n;
}

int net_mac_parse(const char *text, unsigned char ret[NET_MAC_LEN])
{
    unsigned char mac[NET_MAC_LEN];

    if (strlen(text) != NET_MAC_SIZE - 1)
        return -EINVAL;
    for (size_t i = 0; i < NET_MAC_LEN; i++) {
        const char digits[3] = {text[3 * i], text[3 * i + 1], '\0'};
        if (str_unhex(digits, mac + i, 1) < 0 || (i > 0 && text[3 * i - 1] != ':'))
            return -EINVAL;
    }
    memcpy(ret, mac, sizeof(mac));
    return 0;
}

void net_mac_format(const unsigned char mac[NET_MAC_LEN], char out[NET_MAC_SIZE])
{
    (void)str_format(out, NET_MAC_SIZE, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                     mac[3], mac[4], mac[5]);
}

bool net_address_eq(const struct net_address *a, const struct net_address *b)
{
    return a->family == b->family && memcmp(a->bytes, b->bytes, net_address_len(a)) == 0;
}

/* ---- links ---- */

static void parse_vxlan(const struct rtnl_attr *data, struct link *ret)
{
    struct rtnl_attrs nest = {data->data, data->len};
    struct rtnl_attr a;

    while (rtnl_attr_next(&nest, &a)) {
        if (a.type == IFLA_VXLAN_ID)
            ret->vni = rtnl_attr_u32(&a);
        else if (a.type == IFLA_VXLAN_PORT && a.len == 2)
            ret->vxlan_port = (uint16_t)(((const unsigned char *)a.data)[0] << 8 |
                                         ((const unsigned char *)a.data)[1]);
        else if ((a.type == IFLA_VXLAN_GROUP && a.len == 4) ||
                 (a.type == IFLA_VXLAN_GROUP6 && a.len == 16)) {
            ret->remote.family = a.len == 4 ? AF_INET : AF_INET6;
            memcpy(ret->remote.bytes, a.data, a.len);
        }
    }
}

static void parse_linkinfo(const struct rtnl_attr *info, struct link *ret)
{
    struct rtnl_attrs nest = {info->data, info->len};
    struct rtnl_attr a;

    while (rtnl_attr_next(&nest, &a))
        if (a.type == IFLA_INFO_KIND)
            rtnl_attr_string(&a, ret->kind, sizeof(ret->kind));
        else if (a.type == IFLA_INFO_DATA && str_eq(ret->kind, "vxlan"))
            parse_vxlan(&a, ret);
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
        else if (a.type == IFLA_IFALIAS)
            rtnl_attr_string(&a, ret->alias, sizeof(ret->alias));
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
    /* Without counters, more than half of each answer: the shorter the dump, the fewer meet a
     * change. */
    static const struct {
        struct ifinfomsg link;
        struct nlattr mask;
        uint32_t value;
    } request = {{.ifi_family = AF_UNSPEC},
                 {sizeof(struct nlattr) + sizeof(uint32_t), IFLA_EXT_MASK},
                 RTEXT_FILTER_SKIP_STATS};
    void *list;
    int r = rtnl_dump(nl, RTM_GETLINK, &request, sizeof(request), "listing links", link_parse_any,
                      sizeof(struct link), &list, ret_n, err);

    if (r == 0)
        *ret = list;
    return r;
}

/* By name or, when that is NULL, by index. */
static int find(struct rtnl *nl, const char *name, int index, struct link *ret, struct err *err)
{
    const struct ifinfomsg body = {.ifi_family = AF_UNSPEC, .ifi_index = index};
    struct rtnl_request q;
    const struct nlmsghdr *h;
    struct err e = ERR_INIT;
    bool found = false;
    int r;

    rtnl_request_init(&q, RTM_GETLINK, NLM_F_ACK, &body, sizeof(body));
    if (name)
        rtnl_put_string(&q, IFLA_IFNAME, name);
    r = rtnl_start(nl, &q, "looking for a link", &e);
    if (r == 0)
        while ((r = rtnl_next(nl, &h, &e)) > 0)
            found = link_parse(h, ret) || found;
    if (r == -ENODEV || (r == 0 && !found))
        return -ENODEV;
    return r < 0 ? err_set(err, r, "%s", e.text) : 0;
}

int link_find(struct rtnl *nl, const char *name, struct link *ret, struct err *err)
{
    return find(nl, name, 0, ret, err);
}

int link_get(struct rtnl *nl, int index, struct link *ret, struct err *err)
{
    return find(nl, NULL, index, ret, err);
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

uint32_t link_vxlan_overhead(int family)
{
    return (family == AF_INET6 ? 40U : 20U) + 8U /* UDP */ + 8U /* VXLAN */ + 14U /* Ethernet */;
}

static void put_vxlan(struct rtnl_request *q, const struct link_vxlan *v)
{
    const unsigned char port[2] = {(unsigned char)(v->port >> 8), (unsigned char)v->port};

    rtnl_put_u32(q, IFLA_VXLAN_ID, v->vni);
    rtnl_put(q, v->remote.family == AF_INET6 ? IFLA_VXLAN_GROUP6 : IFLA_VXLAN_GROUP,
             v->remote.bytes, net_address_len(&v->remote));
    rtnl_put(q, IFLA_VXLAN_PORT, port, sizeof(port));
    /* There is one peer only. */
    rtnl_put_u8(q, IFLA_VXLAN_LEARNING, 0);
    if (v->remote.family == AF_INET)
        rtnl_put_u8(q, IFLA_VXLAN_UDP_CSUM, 0); /* RFC 7348: should be zero */
}

int link_add_vxlan(struct rtnl *nl, const struct link_vxlan *vxlan, struct err *err)
{
    struct rtnl_request q;
    char what[64], remote[NET_ADDRESS_SIZE];

    net_address_format(&vxlan->remote, remote);
    if (!vxlan->remote.family)
        return err_set(err, -EINVAL, "adding link %s: no remote address", vxlan->name);
    rtnl_request_init(&q, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &any_link, sizeof(any_link));
    rtnl_put_string(&q, IFLA_IFNAME, vxlan->name);
    if (vxlan->netns_fd >= 0)
        rtnl_put_u32(&q, IFLA_NET_NS_FD, (uint32_t)vxlan->netns_fd);
    if (vxlan->mac)
        rtnl_put(&q, IFLA_ADDRESS, vxlan->mac, NET_MAC_LEN);
    if (vxlan->mtu)
        rtnl_put_u32(&q, IFLA_MTU, vxlan->mtu);
    size_t info = rtnl_nest(&q, IFLA_LINKINFO);
    rtnl_put_string(&q, IFLA_INFO_KIND, "vxlan");
    size_t data = rtnl_nest(&q, IFLA_INFO_DATA);
    put_vxlan(&q, vxlan);
    rtnl_nest_end(&q, data);
    rtnl_nest_end(&q, info);
    (void)str_format(what, sizeof(what), "adding VXLAN link (id %u, to %.24s)", vxlan->vni, remote);
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

int link_set_alias(struct rtnl *nl, int index, const char *alias, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_NEWLINK, index);
    rtnl_put(&q, IFLA_IFALIAS, alias, strlen(alias));
    return rtnl_call(nl, &q, "setting a link's alias", err);
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

int link_move(struct rtnl *nl, int index, int netns_fd, const char *name, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_NEWLINK, index);
    rtnl_put_string(&q, IFLA_IFNAME, name);
    rtnl_put_u32(&q, IFLA_NET_NS_FD, (uint32_t)netns_fd);
    return rtnl_call(nl, &q, "moving a link to another network namespace", err);
}

int link_delete(struct rtnl *nl, int index, struct err *err)
{
    struct rtnl_request q;

    link_request(&q, RTM_DELLINK, index);
    return rtnl_call_unless(nl, &q, "deleting a link", -ENODEV, err);
}

/* ---- addresses ---- */

static void address_request(struct rtnl_request *q, uint16_t type, unsigned flags,
                            const struct link_address *a)
{
    const struct ifaddrmsg body = {.ifa_family = (uint8_t)a->address.family,
                                   .ifa_prefixlen = a->prefix,
                                   .ifa_index = (uint32_t)a->index};
    size_t len = net_address_len(&a->address);
    uint32_t ifa_flags = a->address.family == AF_INET6 ? IFA_F_NODAD : 0;

    rtnl_request_init(q, type, flags, &body, sizeof(body));
    rtnl_put(q, IFA_LOCAL, a->address.bytes, len);
    rtnl_put(q, IFA_ADDRESS, a->address.bytes, len);
    if (a->no_subnet_route)
        ifa_flags |= IFA_F_NOPREFIXROUTE;
    rtnl_put_u32(q, IFA_FLAGS, ifa_flags);
}

int link_address_add(struct rtnl *nl, const struct link_address *a, struct err *err)
{
    struct rtnl_request q;

    address_request(&q, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, a);
    return rtnl_call_unless(nl, &q, "adding an address", -EEXIST, err);
}

int link_address_delete(struct rtnl *nl, const struct link_address *a, struct err *err)
{
    struct rtnl_request q;

    address_request(&q, RTM_DELADDR, 0, a);
    return rtnl_call_unless(nl, &q, "deleting an address", -EADDRNOTAVAIL, err);
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
                                 .scope = body->ifa_scope,
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
    int r = rtnl_dump(nl, RTM_GETADDR, &body, sizeof(body), "listing addresses",
                      link_address_parse_any, sizeof(struct link_address), &list, ret_n, err);

    if (r == 0)
        *ret = list;
    return r;
}
