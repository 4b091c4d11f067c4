/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links and addresses of the namespace that an rtnl socket belongs to. The adding forms
 * succeed when the same thing is there already, the deleting ones when nothing is.
 */
#pragma once

#include <net/if.h>
#include <netinet/in.h>

#include "net/rtnl.h"

#define NET_ADDRESS_SIZE 64 /* text with prefix length, either family */
#define NET_MAC_LEN 6
#define NET_MAC_SIZE 18 /* text */
#define LINK_ALIAS_SIZE 256

/* An address of either family. */
struct net_address {
    int family; /* AF_INET, AF_INET6; 0: none */
    unsigned char bytes[16];
};

size_t net_address_len(const struct net_address *a);
/* Numeric text without prefix; -EINVAL. */
int net_address_parse(const char *text, struct net_address *ret);
void net_address_format(const struct net_address *a, char out[NET_ADDRESS_SIZE]);
/* "10.244.1.7/24"; -EINVAL. */
int net_prefix_parse(const char *text, struct net_address *ret, uint8_t *ret_prefix);
/* Clears the bits behind the prefix. */
struct net_address net_address_network(const struct net_address *a, uint8_t prefix);
bool net_address_eq(const struct net_address *a, const struct net_address *b);

struct link {
    int index;
    int peer_index; /* IFLA_LINK: a veth's other end, in its own namespace; 0: none */
    unsigned flags; /* IFF_UP, ... */
    uint32_t mtu;
    char name[IFNAMSIZ];
    char kind[16];                  /* "veth", "vxlan"; "" for hardware and loopback */
    unsigned char mac[NET_MAC_LEN]; /* zero when it has none of this length */
    uint32_t vni;                   /* of a "vxlan" */
    uint16_t vxlan_port;
    struct net_address remote;
    char alias[LINK_ALIAS_SIZE]; /* a remark that goes with the link to other namespaces */
};

/* "02:42:ac:11:00:02". -EINVAL. */
int net_mac_parse(const char *text, unsigned char ret[NET_MAC_LEN]);
void net_mac_format(const unsigned char mac[NET_MAC_LEN], char out[NET_MAC_SIZE]);

/* -ENODEV without err set when there is none of that name. */
int link_find(struct rtnl *nl, const char *name, struct link *ret, struct err *err);
int link_get(struct rtnl *nl, int index, struct link *ret, struct err *err);
/* Owned array: free(). Not for the node's own namespace: where links come and go all the time the
 * kernel never gets through its list undisturbed. */
int link_list(struct rtnl *nl, struct link **ret, size_t *ret_n, struct err *err);

struct link_veth {
    const char *name;
    const unsigned char *mac; /* NULL: the kernel chooses */
    const char *peer_name;
    int peer_netns_fd; /* -1: the peer stays here */
};
/* -EEXIST when the name is taken (the caller decides whether it is its own: the MAC tells). */
int link_add_veth(struct rtnl *nl, const struct link_veth *veth, struct err *err);

/* A point-to-point VXLAN. Its UDP socket stays in the namespace of nl, wherever the link is; there
 * must be no link called name here either (the kernel looks there first). */
struct link_vxlan {
    const char *name;
    int netns_fd; /* where the link is born; -1: here */
    uint32_t vni;
    uint16_t port;
    struct net_address remote;
    const unsigned char *mac; /* NULL: the kernel chooses */
    uint32_t mtu;             /* 0: the kernel chooses */
};
/* -EEXIST: the name is taken, or the VNI in the namespace of nl; the text tells which. */
int link_add_vxlan(struct rtnl *nl, const struct link_vxlan *vxlan, struct err *err);
/* What the outer headers cost: 50 bytes over IPv4, 70 over IPv6. */
uint32_t link_vxlan_overhead(int family);
/* "": none. */
int link_set_alias(struct rtnl *nl, int index, const char *alias, struct err *err);
int link_rename(struct rtnl *nl, int index, const char *name, struct err *err);
int link_set_up(struct rtnl *nl, int index, struct err *err);
int link_set_mtu(struct rtnl *nl, int index, uint32_t mtu, struct err *err);
/* To another namespace, where it is called `name`. It loses addresses and routes, and is down there. */
int link_move(struct rtnl *nl, int index, int netns_fd, const char *name, struct err *err);
int link_delete(struct rtnl *nl, int index, struct err *err);

struct link_address {
    int index;
    struct net_address address;
    uint8_t prefix;
    uint8_t scope;        /* RT_SCOPE_...; of listed ones */
    bool no_subnet_route; /* added without the route to its subnet */
};
/* A /31 or /127 is a point-to-point pair. IPv6 without duplicate address detection: the links are
 * ours, and an address that is not usable for a second costs a second of pod start. */
int link_address_add(struct rtnl *nl, const struct link_address *a, struct err *err);
int link_address_delete(struct rtnl *nl, const struct link_address *a, struct err *err);
/* index 0: of all links. */
int link_address_list(struct rtnl *nl, int index, struct link_address **ret, size_t *ret_n,
                      struct err *err);

/* What the dumps do with one message; false: not of this kind, or malformed. For the fuzzer. */
bool link_parse(const struct nlmsghdr *h, struct link *ret);
bool link_address_parse(const struct nlmsghdr *h, struct link_address *ret);
