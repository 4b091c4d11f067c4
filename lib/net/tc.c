/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Redirection by traffic control.
 *
 * The filter has one key with an empty mask, which matches everything, for all protocols, so ARP and
 * IPv6 go the same way. It has a fixed priority and handle: adding it again meets EEXIST, which is
 * success. mirred "redirect" takes the packet away from the stack of the namespace: the pod's own
 * address on the link stays, and never answers.
 *
 * u32 and mirred are what the Go programs use and what every kernel has.
 */
#include "net/tc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>

#define INGRESS_HANDLE 0xffff0000U
#define FILTER_PRIORITY 1U
#define FILTER_HANDLE                                                                              \
    0x80000800U /* hash table 800, bucket 0, item 800: what the kernel would give */

int tc_ingress_add(struct rtnl *nl, int index, struct err *err)
{
    const struct tcmsg body = {.tcm_family = AF_UNSPEC,
                               .tcm_ifindex = index,
                               .tcm_parent = TC_H_INGRESS,
                               .tcm_handle = INGRESS_HANDLE};
    struct rtnl_request q;

    rtnl_request_init(&q, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof(body));
    rtnl_put_string(&q, TCA_KIND, "ingress");
    return rtnl_call_unless(nl, &q, "adding an ingress qdisc", -EEXIST, err);
}

int tc_ingress_delete(struct rtnl *nl, int index, struct err *err)
{
    const struct tcmsg body = {.tcm_family = AF_UNSPEC,
                               .tcm_ifindex = index,
                               .tcm_parent = TC_H_INGRESS,
                               .tcm_handle = INGRESS_HANDLE};
    struct rtnl_request q;
    struct err e = ERR_INIT;

    rtnl_request_init(&q, RTM_DELQDISC, 0, &body, sizeof(body));
    int r = rtnl_call(nl, &q, "deleting an ingress qdisc", &e);
    /* The kernel's three ways of saying that there is none, by version. */
    if (r < 0 && r != -ENOENT && r != -EINVAL && r != -ENODEV)
        return err_set(err, r, "%s", e.text);
    return 0;
}

static void put_mirred(struct rtnl_request *q, int to)
{
    const struct tc_mirred mirred = {
        .action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR, .ifindex = (uint32_t)to};
    size_t actions = rtnl_nest(q, TCA_U32_ACT);
    size_t first = rtnl_nest(q, 1);

    rtnl_put_string(q, TCA_ACT_KIND, "mirred");
    size_t options = rtnl_nest(q, TCA_ACT_OPTIONS);
    rtnl_put(q, TCA_MIRRED_PARMS, &mirred, sizeof(mirred));
    rtnl_nest_end(q, options);
    rtnl_nest_end(q, first);
    rtnl_nest_end(q, actions);
}

int tc_redirect_add(struct rtnl *nl, int from, int to, struct err *err)
{
    const struct tcmsg body = {.tcm_family = AF_UNSPEC,
                               .tcm_ifindex = from,
                               .tcm_parent = INGRESS_HANDLE,
                               .tcm_handle = FILTER_HANDLE,
                               .tcm_info = FILTER_PRIORITY << 16 | htons(ETH_P_ALL)};
    /* The selector and its one key, all zero: no bit is compared. */
    union {
        struct tc_u32_sel sel;
        unsigned char bytes[sizeof(struct tc_u32_sel) + sizeof(struct tc_u32_key)];
    } match = {.sel = {.flags = TC_U32_TERMINAL, .nkeys = 1}};
    struct rtnl_request q;

    rtnl_request_init(&q, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof(body));
    rtnl_put_string(&q, TCA_KIND, "u32");
    size_t options = rtnl_nest(&q, TCA_OPTIONS);
    rtnl_put(&q, TCA_U32_SEL, &match, sizeof(match.bytes));
    put_mirred(&q, to);
    rtnl_nest_end(&q, options);
    return rtnl_call_unless(nl, &q, "adding a redirecting filter (u32, mirred)", -EEXIST, err);
}
