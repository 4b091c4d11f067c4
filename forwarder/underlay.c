/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for the VM's own network, which may come up after us: by netlink events, subscribed to before
 * the first look, never by polling. After each event everything is asked for anew: is there a route to
 * the worker, by an interface that is up and has an address? Without an address of the worker (the
 * local provider) it is the gateway of the default route. Where the second interface of the VM is
 * wanted, it is waited for as well: clouds give it its address some seconds after the first.
 *
 * The error at the end of the wait says which of these was the first that was not there.
 */
#include "forwarder/underlay.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/str.h"

#define EVENTS                                                                                     \
    (RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)

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

static int check_route(struct rtnl *nl, struct underlay *u, char *lacks, struct err *err)
{
    _cleanup_free_ struct link *links = NULL;
    struct err none = ERR_INIT;
    struct link_route route;
    size_t n;

    if (link_route_get(nl, &u->worker, &route, &none) < 0)
        return explain(nl, &u->worker, lacks, err);
    int r = link_list(nl, &links, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        if (links[i].index == route.index && (links[i].flags & IFF_UP)) {
            u->index = route.index;
            u->mtu = route.mtu ? MIN(route.mtu, links[i].mtu) : links[i].mtu;
            return 0;
        }
    return r < 0 ? r : explain(nl, &u->worker, lacks, err);
}

/* -EAGAIN: lacks says what is not there yet. */
static int check(struct rtnl *vm, struct rtnl *pod, struct underlay *u, char *lacks,
                 struct err *err)
{
    int r = u->worker.family ? 0 : find_gateway(vm, &u->worker, lacks, err);

    if (r == 0 && *u->host_interface)
        r = check_interface(vm, u->host_interface, u->worker.family, lacks, err);
    if (r == 0)
        r = check_route(vm, u, lacks, err);
    if (r < 0 || !u->external)
        return r;
    r = external_find(vm, pod, u->index, u->external, err);
    return r == -ENODEV ? missing(lacks, "a second interface of the VM that has an address "
                                         "(-ext-network-via-podvm)")
                        : r;
}

int underlay_wait(struct rtnl *vm, struct rtnl *pod, struct underlay *u, struct err *err)
{
    char lacks[ERR_TEXT_MAX] = "";
    int64_t until = clock_mono_ms() + u->wait_ms;
    _cleanup_close_ int events = -1;
    int r = rtnl_open_events(EVENTS, &events, err);

    if (r < 0)
        return r;
    while ((r = check(vm, pod, u, lacks, err)) == -EAGAIN) {
        struct pollfd fd = {.fd = events, .events = POLLIN};
        int64_t left = until - clock_mono_ms();
        if (left <= 0)
            return err_set(err, -ETIMEDOUT, "%lld s went by without %s",
                           (long long)(u->wait_ms / 1000), lacks);
        if (poll(&fd, 1, (int)left) < 0 && errno != EINTR)
            return err_errno(err, -errno, "waiting for the VM's network");
        rtnl_events_drain(events);
    }
    return r;
}
