/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routes of the main table and permanent neighbours, in the namespace that an rtnl socket belongs
 * to. Adding replaces what is there; deleting what is not there succeeds.
 */
#pragma once

#include "net/link.h"

struct link_route {
    int index;
    struct net_address dst; /* family 0: default, then gw or family tells the family */
    uint8_t prefix;
    struct net_address gw;      /* family 0: directly connected */
    int family;                 /* of listed ones; needed for a default route without gateway */
    uint8_t type;               /* RTN_...; 0: unicast. Those listed are unicast */
    uint8_t protocol;           /* RTPROT_...; 0: static */
    uint8_t scope;              /* RT_SCOPE_...; looked at when has_scope */
    bool has_scope;             /* false: link without a gateway, else universe */
    bool onlink;                /* take the gateway for directly reachable */
    uint32_t metric;            /* 0: the family's default */
    uint32_t mtu;               /* of listed ones; 0: none */
    struct net_address prefsrc; /* of listed ones; family 0: none */
};

/* Replaces a route of the same destination and metric. */
int link_route_add(struct rtnl *nl, const struct link_route *route, struct err *err);
/* Like it in destination, link, and what else is set. */
int link_route_delete(struct rtnl *nl, const struct link_route *route, struct err *err);
/* Unicast routes of the main table, of both families, in the kernel's order; those with several next
 * hops have index 0. Owned: free(). */
int link_route_list(struct rtnl *nl, struct link_route **ret, size_t *ret_n, struct err *err);
/* How the kernel reaches dst: index, gw, prefsrc, mtu (0: the link's). -ENETUNREACH, ... */
int link_route_get(struct rtnl *nl, const struct net_address *dst, struct link_route *ret,
                   struct err *err);

struct link_neighbour {
    int index;
    struct net_address address;
    unsigned char mac[NET_MAC_LEN];
    uint16_t state; /* NUD_... */
};
int link_neighbour_add(struct rtnl *nl, const struct link_neighbour *n, struct err *err);
/* Of one link, both families; those without a MAC of 6 bytes are left out. Owned: free(). */
int link_neighbour_list(struct rtnl *nl, int index, struct link_neighbour **ret, size_t *ret_n,
                        struct err *err);

/* The words of apf.json; "" for what has none there. */
const char *link_protocol_name(uint8_t protocol);
const char *link_scope_name(uint8_t scope);
/* -EINVAL; "" is static and universe. */
int link_protocol_parse(const char *name, uint8_t *ret);
int link_scope_parse(const char *name, uint8_t *ret);

/* What the dumps do with one message. For the fuzzer. */
bool link_route_parse(const struct nlmsghdr *h, struct link_route *ret);
bool link_neighbour_parse(const struct nlmsghdr *h, struct link_neighbour *ret);
