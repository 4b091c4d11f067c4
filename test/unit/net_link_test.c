/* SPDX-License-Identifier: Apache-2.0 */
/* Links, addresses, routes and network namespaces against the kernel, in a world of its own. */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/str.h"
#include "net/netns.h"
#include "net/route.h"
#include "stepfault/world.h"

static char ns_path[PATH_MAX];

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

static void test_veth_into_namespace(void **state)
{
    static const unsigned char mac[NET_MAC_LEN] = {2, 1, 2, 3, 4, 5};
    _cleanup_(rtnl_closep) struct rtnl *here = NULL, *there = NULL;
    struct err err = ERR_INIT;
    struct link a, b;
    int ns;

    ok(netns_create(ns_path, &err), &err);
    ok(netns_create(ns_path, &err), &err); /* again: fine */
    ok(netns_open(ns_path, &ns, &err), &err);
    ok(rtnl_open(&here, &err), &err);
    ok(rtnl_open_in(ns, &there, &err), &err);
    const struct link_veth veth = {
        .name = "a0", .mac = mac, .peer_name = "b0", .peer_netns_fd = ns};
    ok(link_add_veth(here, &veth, &err), &err);
    ok(link_find(here, "a0", &a, &err), &err);
    ok(link_find(there, "b0", &b, &err), &err);
    assert_int_equal(link_find(here, "b0", &b, &err), -ENODEV);
    ok(link_find(there, "b0", &b, &err), &err);
    assert_memory_equal(a.mac, mac, sizeof(mac));
    assert_string_equal(a.kind, "veth");
    assert_int_equal(link_add_veth(here, &veth, &err), -EEXIST);
    assert_text_has(err.text, "adding link a0");

    err_clear(&err);
    const struct link_address v4 = {
        .index = a.index, .address = address("198.18.0.2"), .prefix = 31};
    const struct link_address v6 = {.index = a.index, .address = address("fd00::2"), .prefix = 127};
    const struct link_address far = {
        .index = b.index, .address = address("198.18.0.3"), .prefix = 31};
    for (int i = 0; i < 2; i++) {
        ok(link_address_add(here, &v4, &err), &err);
        ok(link_address_add(here, &v6, &err), &err);
        ok(link_address_add(there, &far, &err), &err);
        ok(link_set_up(here, a.index, &err), &err);
        ok(link_set_up(there, b.index, &err), &err);
    }
    const struct link_route route = {.index = b.index, .gw = address("198.18.0.2")};
    ok(link_route_add(there, &route, &err), &err);
    ok(link_route_add(there, &route, &err), &err);

    struct link_address *list;
    size_t n, found = 0;
    ok(link_address_list(here, a.index, &list, &n, &err), &err);
    for (size_t i = 0; i < n; i++)
        found += net_address_eq(&list[i].address, &v4.address) ||
                 net_address_eq(&list[i].address, &v6.address);
    free(list);
    assert_int_equal(found, 2);
    ok(link_address_delete(here, &v4, &err), &err);
    ok(link_address_delete(here, &v4, &err), &err);
    ok(link_set_mtu(here, a.index, 1400, &err), &err);
    ok(link_rename(there, b.index, "eth7", &err), &err);
    ok(link_find(there, "eth7", &b, &err), &err);
    ok(link_set_alias(here, a.index, "was a0", &err), &err);
    ok(link_move(here, a.index, ns, "a1", &err), &err);
    assert_int_equal(link_find(here, "a0", &a, &err), -ENODEV);
    ok(link_find(there, "a1", &a, &err), &err);
    assert_int_equal(a.mtu, 1400);
    assert_string_equal(a.alias, "was a0");
    ok(link_set_alias(there, a.index, "", &err), &err);
    ok(link_find(there, "a1", &a, &err), &err);
    assert_string_equal(a.alias, "");
    ok(link_delete(there, a.index, &err), &err);
    ok(link_delete(there, a.index, &err), &err);
    close(ns);
    ok(netns_delete(ns_path, &err), &err);
    ok(netns_delete(ns_path, &err), &err);
    assert_int_equal(netns_exists(ns_path), 0);
}

static void test_kernel_words(void **state)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    struct err err = ERR_INIT;
    struct rtnl_request q;
    const struct ifinfomsg body = {0};

    ok(rtnl_open(&nl, &err), &err);
    rtnl_request_init(&q, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof(body));
    rtnl_put_string(&q, IFLA_IFNAME, "x0");
    size_t info = rtnl_nest(&q, IFLA_LINKINFO);
    rtnl_put_string(&q, IFLA_INFO_KIND, "nonsense");
    rtnl_nest_end(&q, info);
    assert_true(rtnl_call(nl, &q, "adding x0", &err) < 0);
    assert_text_has(err.text, "adding x0: Unknown device type");
}

static void test_unwalked_dump(void **state)
{
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    struct err err = ERR_INIT;
    const struct ifinfomsg body = {0};
    const struct nlmsghdr *h;
    struct rtnl_request q;
    struct link lo;

    ok(rtnl_open(&nl, &err), &err);
    rtnl_request_init(&q, RTM_GETLINK, NLM_F_DUMP, &body, sizeof(body));
    ok(rtnl_start(nl, &q, "listing", &err), &err);
    assert_int_equal(rtnl_next(nl, &h, &err), 1);
    /* The rest stays unread: the next answer is still the right one. */
    ok(link_find(nl, "lo", &lo, &err), &err);
    assert_int_equal(lo.index, 1);
}

static void test_many_links(void **state)
{
    enum { N = 60 };
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    _cleanup_free_ struct link *list = NULL;
    struct err err = ERR_INIT;
    struct link link, same;
    char a[IFNAMSIZ], b[IFNAMSIZ];
    size_t n;

    ok(rtnl_open(&nl, &err), &err);
    for (int i = 0; i < N; i++) {
        (void)snprintf(a, sizeof(a), "m%d", i);
        (void)snprintf(b, sizeof(b), "n%d", i);
        ok(link_add_veth(nl, &(struct link_veth){a, NULL, b, -1}, &err), &err);
    }
    ok(link_list(nl, &list, &n, &err), &err);
    assert_int_equal(n, 2 * N + 1);
    for (int i = 0; i < N; i++) {
        (void)snprintf(a, sizeof(a), "m%d", i);
        ok(link_find(nl, a, &link, &err), &err);
        ok(link_get(nl, link.index, &same, &err), &err);
        assert_string_equal(same.name, a);
        ok(link_delete(nl, link.index, &err), &err);
        assert_int_equal(link_get(nl, link.index, &same, &err), -ENODEV);
    }
}

static void test_not_a_namespace(void **state)
{
    struct err err = ERR_INIT;
    char path[PATH_MAX + 8];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/plain", world_dir());
    fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    close(fd);
    assert_int_equal(netns_open(path, &fd, &err), -EINVAL);
    assert_text_has(err.text, "not a network namespace");
    err_clear(&err);
    assert_int_equal(netns_open("/nonexistent", &fd, &err), -ENOENT);
    assert_int_equal(netns_exists(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_veth_into_namespace), cmocka_unit_test(test_kernel_words),
        cmocka_unit_test(test_unwalked_dump),       cmocka_unit_test(test_many_links),
        cmocka_unit_test(test_not_a_namespace),
    };

    world_enter();
    (void)snprintf(ns_path, sizeof(ns_path), "%s/netns/pod", world_dir());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
