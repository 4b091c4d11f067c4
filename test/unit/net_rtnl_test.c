/* SPDX-License-Identifier: Apache-2.0 */
/* Requests and replies in memory: bounds, nesting, the kernel's words, malformed messages. */
#include "unit/check.h"

#include <errno.h>

#include "net/link.h"
#include "net/rtnl.h"

struct error_reply {
    struct nlmsghdr h;
    struct nlmsgerr e;
    struct nlattr a;
    char text[12];
};

static struct error_reply error_reply(int code)
{
    struct error_reply m = {
        .h = {.nlmsg_len = sizeof(m),
              .nlmsg_type = NLMSG_ERROR,
              .nlmsg_flags = NLM_F_CAPPED | NLM_F_ACK_TLVS,
              .nlmsg_seq = 7},
        .e = {.error = code, .msg = {.nlmsg_len = 999}},
        .a = {.nla_len = sizeof(struct nlattr) + 12, .nla_type = NLMSGERR_ATTR_MSG},
        .text = "no such day",
    };
    return m;
}

static struct rtnl_reply reply(const void *data, size_t len)
{
    return (struct rtnl_reply){.data = data, .len = len, .seq = 7};
}

static void test_extack(void **state)
{
    struct error_reply m = error_reply(-EINVAL);
    struct rtnl_reply it = reply(&m, sizeof(m));
    const struct nlmsghdr *h;

    assert_int_equal(rtnl_reply_next(&it, &h), -EINVAL);
    assert_string_equal(it.extack, "no such day");
    m.e.error = 0;
    it = reply(&m, sizeof(m));
    assert_int_equal(rtnl_reply_next(&it, &h), 0);
    assert_string_equal(it.extack, "");
    m.e.error = -EAGAIN; /* must not be taken for "read more" */
    it = reply(&m, sizeof(m));
    assert_int_equal(rtnl_reply_next(&it, &h), -EBUSY);
}

static void test_uncapped_extack(void **state)
{
    /* Without NLM_F_CAPPED the request comes back between the code and the words. */
    struct {
        struct nlmsghdr h;
        struct nlmsgerr e;
        unsigned char body[16];
        struct nlattr a;
        char text[8];
    } m = {.h = {.nlmsg_len = sizeof(m),
                 .nlmsg_type = NLMSG_ERROR,
                 .nlmsg_flags = NLM_F_ACK_TLVS,
                 .nlmsg_seq = 7},
           .e = {.error = -EPERM, .msg = {.nlmsg_len = NLMSG_HDRLEN + 16}},
           .a = {.nla_len = sizeof(struct nlattr) + 8, .nla_type = NLMSGERR_ATTR_MSG},
           .text = "refused"};
    struct rtnl_reply it = reply(&m, sizeof(m));
    const struct nlmsghdr *h;

    assert_int_equal(rtnl_reply_next(&it, &h), -EPERM);
    assert_string_equal(it.extack, "refused");
    m.e.msg.nlmsg_len = UINT32_MAX;
    it = reply(&m, sizeof(m));
    assert_int_equal(rtnl_reply_next(&it, &h), -EPERM);
    assert_string_equal(it.extack, "");
}

static void test_malformed(void **state)
{
    struct error_reply m = error_reply(-EINVAL);
    const struct nlmsghdr *h;
    const uint32_t lengths[] = {0, 15, sizeof(m) + 1, UINT32_MAX};

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        m.h.nlmsg_len = lengths[i];
        struct rtnl_reply it = reply(&m, sizeof(m));
        assert_int_equal(rtnl_reply_next(&it, &h), -EBADMSG);
    }
    m = error_reply(5);
    struct rtnl_reply it = reply(&m, sizeof(m));
    assert_int_equal(rtnl_reply_next(&it, &h), -EBADMSG);
    m = error_reply(-EINVAL);
    m.h.nlmsg_seq = 6; /* an older answer: skipped */
    it = reply(&m, sizeof(m));
    assert_int_equal(rtnl_reply_next(&it, &h), -EAGAIN);
}

static void test_attributes(void **state)
{
    struct {
        struct nlattr a;
        uint32_t value;
        struct nlattr broken;
    } m = {{8, 3}, 77, {3, 4}};
    struct rtnl_attrs it = {(const unsigned char *)&m, sizeof(m)};
    struct rtnl_attr a;
    char text[4];

    assert_true(rtnl_attr_next(&it, &a));
    assert_int_equal(a.type, 3);
    assert_int_equal(rtnl_attr_u32(&a), 77);
    assert_false(rtnl_attr_next(&it, &a));
    a = (struct rtnl_attr){.data = "abcd", .len = 4};
    rtnl_attr_string(&a, text, sizeof(text));
    assert_string_equal(text, ""); /* never cut to another name */
}

static void test_request_bounds(void **state)
{
    static struct rtnl_request q;
    const struct ifinfomsg body = {0};
    static char big[RTNL_REQUEST_MAX];

    rtnl_request_init(&q, RTM_NEWLINK, 0, &body, sizeof(body));
    size_t nest = rtnl_nest(&q, IFLA_LINKINFO);
    rtnl_put_string(&q, IFLA_INFO_KIND, "veth");
    rtnl_nest_end(&q, nest);
    assert_false(q.failed);
    assert_int_equal(q.len, NLMSG_HDRLEN + sizeof(body) + 4 + 12);
    struct nlattr a;
    memcpy(&a, q.data + nest, sizeof(a));
    assert_int_equal(a.nla_len, 16);
    assert_int_equal(a.nla_type, IFLA_LINKINFO | NLA_F_NESTED);
    rtnl_put(&q, 9, big, sizeof(big));
    assert_true(q.failed);
    size_t len = q.len;
    rtnl_put_u8(&q, 9, 1); /* failed stays failed */
    assert_int_equal(q.len, len);
}

static void test_addresses_as_text(void **state)
{
    char text[NET_ADDRESS_SIZE];
    struct net_address a, b;

    assert_int_equal(net_address_parse("198.18.0.3", &a), 0);
    net_address_format(&a, text);
    assert_string_equal(text, "198.18.0.3");
    assert_int_equal(net_address_parse("fd00::1", &b), 0);
    net_address_format(&b, text);
    assert_string_equal(text, "fd00::1");
    assert_false(net_address_eq(&a, &b));
    assert_int_equal(net_address_parse("198.18.0", &a), -EINVAL);
    assert_int_equal(net_address_parse("fd00::1/64", &a), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extack),         cmocka_unit_test(test_uncapped_extack),
        cmocka_unit_test(test_malformed),      cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_request_bounds), cmocka_unit_test(test_addresses_as_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
