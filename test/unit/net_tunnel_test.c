/* SPDX-License-Identifier: Apache-2.0 */
/* VXLAN links, redirection, routes of both families, neighbours: against the kernel, in a world of
 * its own. What iproute2 sees of them is in test/podnet. */
#include "unit/check.h"

#include <errno.h>
#include <linux/neighbour.h>
#include <poll.h>

#include "base/str.h"
#include "net/netns.h"
#include "net/route.h"
#include "net/tc.h"
#include "stepfault/world.h"

static char ns_path[PATH_MAX];
static struct rtnl *here, *there;
static int ns = -1;

static struct net_address address(const char *text)
{
    struct net_address a;

    assert_int_equal(net_address_parse(text, &a), 0);
    return a;
}

static void ok(int r, const struct err *err)
{
    if (r < 0)
        fail_msg("%s", err_text(err));
}

static int setup(void **state)
{
    struct err err = ERR_INIT;

    ok(netns_create(ns_path, &err), &err);
    ok(netns_open(ns_path, &ns, &err), &err);
    ok(rtnl_open(&here, &err), &err);
    ok(rtnl_open_in(ns, &there, &err), &err);
    return 0;
}

static int teardown(void **state)
{
    struct err err = ERR_INIT;

    rtnl_close(there);
    rtnl_close(here);
    close(ns);
    ok(netns_delete(ns_path, &err), &err);
    return 0;
}

static void add_vxlan(const char *name, const char *remote, uint32_t vni)
{
    static const unsigned char mac[NET_MAC_LEN] = {2, 9, 8, 7, 6, 5};
    const struct link_vxlan v = {.name = name,
                                 .netns_fd = ns,
                                 .vni = vni,
                                 .port = 4790,
                                 .remote = address(remote),
                                 .mac = mac,
                                 .mtu = 8950};
    struct err err = ERR_INIT;

    ok(link_add_vxlan(here, &v, &err), &err);
}

static void test_vxlan(void **state)
{
    struct err err = ERR_INIT;
    struct link link;
    char mac[NET_MAC_SIZE];

    add_vxlan("ppvxlan7", "192.0.2.1", 555007);
    assert_int_equal(link_find(here, "ppvxlan7", &link, &err), -ENODEV);
    ok(link_find(there, "ppvxlan7", &link, &err), &err);
    assert_string_equal(link.kind, "vxlan");
    assert_int_equal(link.vni, 555007);
    assert_int_equal(link.vxlan_port, 4790);
    assert_int_equal(link.mtu, 8950);
    const struct net_address remote = address("192.0.2.1");
    assert_true(net_address_eq(&link.remote, &remote));
    net_mac_format(link.mac, mac);
    assert_string_equal(mac, "02:09:08:07:06:05");
    ok(link_rename(there, link.index, "vxlan1", &err), &err);
    ok(link_set_up(there, link.index, &err), &err);

    /* The VNI belongs to the namespace of the socket, wherever the link is. */
    const struct link_vxlan same = {
        .name = "other", .netns_fd = -1, .vni = 555007, .port = 4790, .remote = remote};
    assert_int_equal(link_add_vxlan(here, &same, &err), -EEXIST);
    assert_text_has(err.text, "id 555007, to 192.0.2.1): A VXLAN device with the specified VNI");
    err_clear(&err);
    const struct link_vxlan nowhere = {.name = "other", .netns_fd = -1, .vni = 1, .port = 1};
    assert_int_equal(link_add_vxlan(here, &nowhere, &err), -EINVAL);
    err_clear(&err);

    ok(link_delete(there, link.index, &err), &err);
    add_vxlan("six", "2001:db8::7", 555007);
    ok(link_find(there, "six", &link, &err), &err);
    const struct net_address six = address("2001:db8::7");
    assert_true(net_address_eq(&link.remote, &six));
    ok(link_delete(there, link.index, &err), &err);
}

static void test_redirect(void **state)
{
    struct err err = ERR_INIT;
    struct link a, b;

    ok(link_add_veth(there, &(struct link_veth){"a", NULL, "b", -1}, &err), &err);
    ok(link_find(there, "a", &a, &err), &err);
    ok(link_find(there, "b", &b, &err), &err);
    ok(tc_ingress_delete(there, a.index, &err), &err);
    assert_true(tc_redirect_add(there, a.index, b.index, &err) < 0); /* no qdisc */
    assert_text_has(err.text, "u32, mirred");
    err_clear(&err);
    for (int i = 0; i < 2; i++) {
        ok(tc_ingress_add(there, a.index, &err), &err);
        ok(tc_redirect_add(there, a.index, b.index, &err), &err);
    }
    ok(tc_ingress_delete(there, a.index, &err), &err);
    ok(tc_ingress_delete(there, a.index, &err), &err);
    ok(link_delete(there, a.index, &err), &err);
    ok(tc_ingress_delete(there, a.index, &err), &err);
}

static const struct link_route *find_route(const struct link_route *list, size_t n, const char *dst,
                                           uint8_t prefix)
{
    const struct net_address want = *dst ? address(dst) : (struct net_address){0};

    for (size_t i = 0; i < n; i++)
        if (net_address_eq(&list[i].dst, &want) && list[i].prefix == prefix)
            return &list[i];
    return NULL;
}

static void test_routes(void **state)
{
    _cleanup_free_ struct link_route *list = NULL;
    struct err err = ERR_INIT;
    struct link_route got;
    struct link a;
    size_t n;

    ok(link_add_veth(there, &(struct link_veth){"a", NULL, "b", -1}, &err), &err);
    ok(link_find(there, "b", &a, &err), &err);
    ok(link_set_up(there, a.index, &err), &err);
    ok(link_find(there, "a", &a, &err), &err);
    ok(link_set_up(there, a.index, &err), &err);
    const struct link_address v4 = {.index = a.index, .address = address("10.1.2.3"), .prefix = 24};
    const struct link_address v6 = {
        .index = a.index, .address = address("fd00:1::3"), .prefix = 64, .no_subnet_route = true};
    ok(link_address_add(there, &v4, &err), &err);
    ok(link_address_add(there, &v6, &err), &err);
    /* The automatic one goes, as in the Go programs; a listed one comes back, of its own kind. */
    const struct link_route subnet = {.index = a.index,
                                      .dst = address("10.1.2.0"),
                                      .prefix = 24,
                                      .protocol = RTPROT_KERNEL,
                                      .scope = RT_SCOPE_LINK,
                                      .has_scope = true};
    ok(link_route_delete(there, &subnet, &err), &err);
    ok(link_route_delete(there, &subnet, &err), &err);
    const struct link_route via = {.index = a.index, .gw = address("169.254.1.1")};
    assert_true(link_route_add(there, &via, &err) < 0);
    assert_text_has(err.text,
                    "adding route default/0 via 169.254.1.1: Nexthop has invalid gateway");
    err_clear(&err);
    const struct link_route gateway = {
        .index = a.index, .dst = address("169.254.1.1"), .prefix = 32};
    ok(link_route_add(there, &gateway, &err), &err);
    ok(link_route_add(there, &via, &err), &err);
    const struct link_route via6 = {.index = a.index, .gw = address("fe80::1"), .onlink = true};
    ok(link_route_add(there, &via6, &err), &err);
    ok(link_route_add(there, &via6, &err), &err);

    ok(link_route_list(there, &list, &n, &err), &err);
    assert_null(find_route(list, n, "10.1.2.0", 24));
    assert_null(find_route(list, n, "fd00:1::", 64));
    const struct link_route *r = find_route(list, n, "169.254.1.1", 32);
    assert_non_null(r);
    assert_int_equal(r->scope, RT_SCOPE_LINK);
    r = find_route(list, n, "", 0);
    assert_non_null(r);
    assert_int_equal(r->index, a.index);

    const struct net_address far = address("203.0.113.9"), far6 = address("2001:db8::9");
    ok(link_route_get(there, &far, &got, &err), &err);
    assert_int_equal(got.index, a.index);
    assert_true(net_address_eq(&got.gw, &via.gw));
    assert_true(net_address_eq(&got.prefsrc, &v4.address));
    ok(link_route_get(there, &far6, &got, &err), &err);
    assert_true(net_address_eq(&got.prefsrc, &v6.address));
    assert_int_equal(link_route_get(here, &far, &got, &err), -ENETUNREACH);
    assert_text_has(err.text, "looking up the route to 203.0.113.9");
    err_clear(&err);
    ok(link_delete(there, a.index, &err), &err);
}

static void test_neighbours(void **state)
{
    _cleanup_free_ struct link_neighbour *list = NULL;
    struct err err = ERR_INIT;
    struct link a;
    size_t n, found = 0;

    ok(link_add_veth(there, &(struct link_veth){"a", NULL, "b", -1}, &err), &err);
    ok(link_find(there, "a", &a, &err), &err);
    ok(link_set_up(there, a.index, &err), &err);
    struct link_neighbour one = {
        .index = a.index, .address = address("169.254.1.1"), .mac = {2, 1, 1, 1, 1, 1}};
    struct link_neighbour two = {
        .index = a.index, .address = address("fe80::1"), .mac = {2, 1, 1, 1, 1, 2}};
    for (int i = 0; i < 2; i++) {
        ok(link_neighbour_add(there, &one, &err), &err);
        ok(link_neighbour_add(there, &two, &err), &err);
    }
    ok(link_neighbour_list(there, a.index, &list, &n, &err), &err);
    for (size_t i = 0; i < n; i++)
        if (list[i].state == NUD_PERMANENT && (memcmp(list[i].mac, one.mac, sizeof(one.mac)) == 0 ||
                                               memcmp(list[i].mac, two.mac, sizeof(two.mac)) == 0))
            found++;
    assert_int_equal(found, 2);
    ok(link_delete(there, a.index, &err), &err);
}

static void test_events(void **state)
{
    struct err err = ERR_INIT;
    struct link a;
    int fd;

    ok(rtnl_open_events(RTMGRP_LINK, &fd, &err), &err);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    ok(link_add_veth(here, &(struct link_veth){"e", NULL, "f", -1}, &err), &err);
    assert_int_equal(poll(&p, 1, 1000), 1);
    ok(link_find(here, "e", &a, &err), &err);
    ok(link_delete(here, a.index, &err), &err);
    rtnl_events_drain(fd);
    assert_int_equal(poll(&p, 1, 0), 0);
    close(fd);
}

static void test_texts(void **state)
{
    static const char *const bad_prefixes[] = {"10.0.0.1",   "10.0.0.1/33", "x/8",        "/8",
                                               "fd00::/129", "10.0.0.1/",   "10.0.0.1/-1"};
    static const char *const bad_macs[] = {"", "02:42:ac:11:00", "02:42:ac:11:00:0g",
                                           "02-42-ac-11-00-02", "02:42:ac:11:00:022"};
    unsigned char mac[NET_MAC_LEN];
    struct net_address a;
    char text[NET_ADDRESS_SIZE];
    uint8_t bits;

    for (size_t i = 0; i < ARRAY_SIZE(bad_prefixes); i++)
        assert_int_equal(net_prefix_parse(bad_prefixes[i], &a, &bits), -EINVAL);
    for (size_t i = 0; i < ARRAY_SIZE(bad_macs); i++)
        assert_int_equal(net_mac_parse(bad_macs[i], mac), -EINVAL);
    assert_int_equal(net_prefix_parse("10.244.1.7/20", &a, &bits), 0);
    a = net_address_network(&a, bits);
    net_address_format(&a, text);
    assert_string_equal(text, "10.244.0.0");
    assert_int_equal(net_prefix_parse("fd00:ffff::7/17", &a, &bits), 0);
    a = net_address_network(&a, bits);
    net_address_format(&a, text);
    assert_string_equal(text, "fd00:8000::");
    assert_int_equal(link_scope_parse("link", &bits), 0);
    assert_int_equal(bits, RT_SCOPE_LINK);
    assert_int_equal(link_scope_parse("lnk", &bits), -EINVAL);
    assert_string_equal(link_protocol_name(RTPROT_KERNEL), "kernel");
    assert_string_equal(link_protocol_name(RTPROT_BIRD), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vxlan),  cmocka_unit_test(test_redirect),
        cmocka_unit_test(test_routes), cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_events), cmocka_unit_test(test_texts),
    };

    world_enter();
    (void)snprintf(ns_path, sizeof(ns_path), "%s/netns/pod", world_dir());
    return cmocka_run_group_tests(tests, setup, teardown);
}
