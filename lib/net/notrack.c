/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NOTRACK for the tunnels, through nfnetlink.
 *
 * Model: one table for all tunnels of a namespace. Two sets hold (address, UDP port), one for each
 * family; two base chains at the priority of "raw" look a packet up: by its destination on the way
 * out, by its source on the way in. So a packet costs one lookup, however many tunnels there are
 * (rules of each tunnel's own would be walked one by one, and the kernel allows 1024 base chains). As
 * nft(8) would write it:
 *
 *     table inet peerpod {
 *         set t4 { type ipv4_addr . inet_service; size 4096; elements = { 192.0.2.7 . 4789 comment "peerpod 555000" } }
 *         set t6 { type ipv6_addr . inet_service; size 4096; }
 *         chain output { type filter hook output priority raw;
 *             ip daddr . udp dport @t4 notrack; ip6 daddr . udp dport @t6 notrack; }
 *         chain prerouting { type filter hook prerouting priority raw;
 *             ip saddr . udp dport @t4 notrack; ip6 saddr . udp dport @t6 notrack; }
 *     }
 *
 * Invariant: the table exists while a set has an element. The element's comment names its owner by
 * VNI: removal needs to know nothing else, and does not take away the entry of a newer VM that has
 * got the same address meanwhile.
 *
 * Each change is one batch, which the kernel takes whole or not at all, so there is no half-made
 * table to repair. What the batch is made of was looked at before; it carries the ruleset's
 * generation of that time, and the kernel refuses it (ERESTART) when somebody has changed any rule
 * since. Then we look again. Our own threads wait for each other first. The sets have a size because
 * the kernel's tables without one are rehashed behind every generation's back, and a listing then lacks
 * or repeats elements (seen: an element deleted twice).
 */
#include "net/notrack.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_ipv4.h>
#include <pthread.h>

#include "base/str.h"

#define TABLE "peerpod"
#define TUNNELS_MAX 4096U /* of each family; those beyond are tracked */
#define TRIES 100
#define STALE_MAX 8 /* of one VNI, where one is the rule */
#define KEY_MAX 20
#define COMMENT_SIZE 32
#define UDATA_COMMENT 0 /* of nft(8)'s own user data: type, length, text with its NUL */

/* nft(8)'s numbers of the types, six bits each, so that it can print the sets. */
#define TYPE_IPV4_SERVICE (7U << 6 | 13U)
#define TYPE_IPV6_SERVICE (8U << 6 | 13U)

struct element {
    bool six; /* in which set */
    unsigned char key[KEY_MAX];
};

/* What there is, as far as one VNI is concerned. */
struct look {
    char comment[COMMENT_SIZE];
    const struct element *wanted; /* NULL: none */
    uint32_t generation;
    bool table, there; /* the wanted element is there and ours */
    size_t others;
    struct element stale[STALE_MAX];
    size_t n_stale;
};

static const char *set_name(bool six)
{
    return six ? "t6" : "t4";
}

static size_t key_len(bool six)
{
    return six ? 20 : 8; /* each part fills whole registers of four bytes */
}

/* ---- pieces of messages ---- */

static void message(struct rtnl_request *q, unsigned type, unsigned flags)
{
    const struct nfgenmsg body = {.nfgen_family = NFPROTO_INET, .version = NFNETLINK_V0};

    rtnl_request_next(q, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type), flags, &body, sizeof(body));
}

static void put_number(struct rtnl_request *q, uint16_t attr, uint32_t value)
{
    rtnl_put_u32(q, attr, htonl(value));
}

static void batch_begin(struct rtnl_request *q, uint32_t generation)
{
    const struct nfgenmsg body = {
        .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(NFNL_SUBSYS_NFTABLES)};

    rtnl_request_init(q, NFNL_MSG_BATCH_BEGIN, 0, &body, sizeof(body));
    put_number(q, NFNL_BATCH_GENID, generation);
}

static void batch_end(struct rtnl_request *q)
{
    const struct nfgenmsg body = {
        .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(NFNL_SUBSYS_NFTABLES)};

    /* Of the last change alone: with one acknowledgement each, the first would end the answer before a
     * later one's error. */
    ((struct nlmsghdr *)(void *)(q->data + q->at))->nlmsg_flags |= NLM_F_ACK;
    rtnl_request_next(q, NFNL_MSG_BATCH_END, 0, &body, sizeof(body));
}

/* ---- the table ---- */

static void new_set(struct rtnl_request *q, bool six)
{
    message(q, NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_put_string(q, NFTA_SET_TABLE, TABLE);
    rtnl_put_string(q, NFTA_SET_NAME, set_name(six));
    put_number(q, NFTA_SET_KEY_TYPE, six ? TYPE_IPV6_SERVICE : TYPE_IPV4_SERVICE);
    put_number(q, NFTA_SET_KEY_LEN, (uint32_t)key_len(six));
    put_number(q, NFTA_SET_ID, six ? 2 : 1);
    size_t nest = rtnl_nest(q, NFTA_SET_DESC);
    put_number(q, NFTA_SET_DESC_SIZE, TUNNELS_MAX);
    rtnl_nest_end(q, nest);
}

static void new_chain(struct rtnl_request *q, const char *name, uint32_t hook)
{
    message(q, NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_put_string(q, NFTA_CHAIN_TABLE, TABLE);
    rtnl_put_string(q, NFTA_CHAIN_NAME, name);
    rtnl_put_string(q, NFTA_CHAIN_TYPE, "filter");
    size_t nest = rtnl_nest(q, NFTA_CHAIN_HOOK);
    put_number(q, NFTA_HOOK_HOOKNUM, hook);
    put_number(q, NFTA_HOOK_PRIORITY, (uint32_t)NF_IP_PRI_RAW);
    rtnl_nest_end(q, nest);
}

struct number {
    uint16_t attr;
    uint32_t value;
};

struct expression {
    size_t element, data;
};

static struct expression expression_begin(struct rtnl_request *q, const char *name,
                                          const struct number *numbers, size_t n)
{
    struct expression e = {.element = rtnl_nest(q, NFTA_LIST_ELEM)};

    rtnl_put_string(q, NFTA_EXPR_NAME, name);
    e.data = rtnl_nest(q, NFTA_EXPR_DATA);
    for (size_t i = 0; i < n; i++)
        put_number(q, numbers[i].attr, numbers[i].value);
    return e;
}

static void expression_end(struct rtnl_request *q, struct expression e)
{
    rtnl_nest_end(q, e.data);
    rtnl_nest_end(q, e.element);
}

/* One byte of what the kernel knows about the packet has to be this. */
static void require(struct rtnl_request *q, uint32_t key, uint8_t value)
{
    const struct number meta[] = {{NFTA_META_DREG, NFT_REG_1}, {NFTA_META_KEY, key}};
    const struct number cmp[] = {{NFTA_CMP_SREG, NFT_REG_1}, {NFTA_CMP_OP, NFT_CMP_EQ}};

    expression_end(q, expression_begin(q, "meta", meta, ARRAY_SIZE(meta)));
    struct expression e = expression_begin(q, "cmp", cmp, ARRAY_SIZE(cmp));
    size_t data = rtnl_nest(q, NFTA_CMP_DATA);
    rtnl_put_u8(q, NFTA_DATA_VALUE, value);
    rtnl_nest_end(q, data);
    expression_end(q, e);
}

static void load(struct rtnl_request *q, uint32_t base, uint32_t offset, uint32_t len, uint32_t reg)
{
    const struct number payload[] = {{NFTA_PAYLOAD_DREG, reg},
                                     {NFTA_PAYLOAD_BASE, base},
                                     {NFTA_PAYLOAD_OFFSET, offset},
                                     {NFTA_PAYLOAD_LEN, len}};

    expression_end(q, expression_begin(q, "payload", payload, ARRAY_SIZE(payload)));
}

/* at: of the address in the IP header. */
static void new_rule(struct rtnl_request *q, const char *chain, bool six, uint32_t at)
{
    const struct number lookup[] = {{NFTA_LOOKUP_SREG, NFT_REG_1}};
    uint32_t len = six ? 16 : 4;

    message(q, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    rtnl_put_string(q, NFTA_RULE_TABLE, TABLE);
    rtnl_put_string(q, NFTA_RULE_CHAIN, chain);
    size_t list = rtnl_nest(q, NFTA_RULE_EXPRESSIONS);
    require(q, NFT_META_NFPROTO, six ? NFPROTO_IPV6 : NFPROTO_IPV4);
    require(q, NFT_META_L4PROTO, IPPROTO_UDP);
    load(q, NFT_PAYLOAD_NETWORK_HEADER, at, len, NFT_REG_1);
    load(q, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, NFT_REG32_00 + len / 4);
    struct expression e = expression_begin(q, "lookup", lookup, ARRAY_SIZE(lookup));
    rtnl_put_string(q, NFTA_LOOKUP_SET, set_name(six));
    expression_end(q, e);
    expression_end(q, expression_begin(q, "notrack", NULL, 0));
    rtnl_nest_end(q, list);
}

static void new_table(struct rtnl_request *q)
{
    message(q, NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_put_string(q, NFTA_TABLE_NAME, TABLE);
    new_set(q, false);
    new_set(q, true);
    new_chain(q, "output", NF_INET_LOCAL_OUT);
    new_rule(q, "output", false, 16);
    new_rule(q, "output", true, 24);
    new_chain(q, "prerouting", NF_INET_PRE_ROUTING);
    new_rule(q, "prerouting", false, 12);
    new_rule(q, "prerouting", true, 8);
}

static void delete_table(struct rtnl_request *q)
{
    message(q, NFT_MSG_DELTABLE, 0);
    rtnl_put_string(q, NFTA_TABLE_NAME, TABLE);
}

/* ---- elements ---- */

static struct element element_of(const struct net_address *remote, uint16_t port)
{
    struct element e = {.six = remote->family == AF_INET6};
    size_t len = net_address_len(remote);

    memcpy(e.key, remote->bytes, len);
    e.key[len] = (unsigned char)(port >> 8);
    e.key[len + 1] = (unsigned char)port;
    return e;
}

/* comment NULL: takes it out. */
static void element(struct rtnl_request *q, const struct element *e, const char *comment)
{
    unsigned char udata[2 + COMMENT_SIZE] = {UDATA_COMMENT};

    message(q, comment ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM,
            comment ? NLM_F_CREATE | NLM_F_EXCL : 0U);
    rtnl_put_string(q, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    rtnl_put_string(q, NFTA_SET_ELEM_LIST_SET, set_name(e->six));
    size_t list = rtnl_nest(q, NFTA_SET_ELEM_LIST_ELEMENTS);
    size_t one = rtnl_nest(q, NFTA_LIST_ELEM);
    size_t key = rtnl_nest(q, NFTA_SET_ELEM_KEY);
    rtnl_put(q, NFTA_DATA_VALUE, e->key, key_len(e->six));
    rtnl_nest_end(q, key);
    if (comment) {
        size_t len = strlen(comment) + 1;
        udata[1] = (unsigned char)len;
        memcpy(udata + 2, comment, len);
        rtnl_put(q, NFTA_SET_ELEM_USERDATA, udata, 2 + len);
    }
    rtnl_nest_end(q, one);
    rtnl_nest_end(q, list);
}

/* ---- looking ---- */

static void see_element(const struct rtnl_attr *one, bool six, struct look *look)
{
    struct rtnl_attrs attrs = {one->data, one->len};
    struct rtnl_attr a, value;
    struct element e = {.six = six};
    size_t comment_len = strlen(look->comment) + 1;
    bool ours = false;

    while (rtnl_attr_next(&attrs, &a)) {
        struct rtnl_attrs nest = {a.data, a.len};
        if (a.type == NFTA_SET_ELEM_KEY && rtnl_attr_next(&nest, &value) &&
            value.type == NFTA_DATA_VALUE && value.len == key_len(six))
            memcpy(e.key, value.data, value.len);
        else if (a.type == NFTA_SET_ELEM_USERDATA && a.len >= 2 + comment_len)
            ours = memcmp((const char *)a.data + 2, look->comment, comment_len) == 0;
    }
    bool same =
        look->wanted && look->wanted->six == six && memcmp(look->wanted->key, e.key, KEY_MAX) == 0;
    if (ours && same)
        look->there = true;
    else if (!ours && !same)
        look->others++;
    else if (look->n_stale < STALE_MAX)
        look->stale[look->n_stale++] = e;
}

static void see_message(const struct nlmsghdr *h, bool six, struct look *look)
{
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(struct nfgenmsg));
    struct rtnl_attr a, one;

    if (h->nlmsg_type != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM))
        return;
    while (rtnl_attr_next(&attrs, &a)) {
        struct rtnl_attrs list = {a.data, a.len};
        while (a.type == NFTA_SET_ELEM_LIST_ELEMENTS && rtnl_attr_next(&list, &one))
            see_element(&one, six, look);
    }
}

/* -ENOENT: no such set. */
static int see_set(struct rtnl *nl, bool six, struct look *look, struct err *err)
{
    const struct nfgenmsg body = {.nfgen_family = NFPROTO_INET, .version = NFNETLINK_V0};
    struct rtnl_request q;
    const struct nlmsghdr *h;

    rtnl_request_init(&q, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM, NLM_F_DUMP, &body,
                      sizeof(body));
    rtnl_put_string(&q, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    rtnl_put_string(&q, NFTA_SET_ELEM_LIST_SET, set_name(six));
    int r = rtnl_start(nl, &q, "reading the set of tunnels", err);
    while (r >= 0 && (r = rtnl_next(nl, &h, err)) > 0)
        see_message(h, six, look);
    return r;
}

static int see_generation(struct rtnl *nl, uint32_t *ret, struct err *err)
{
    const struct nfgenmsg body = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0};
    struct rtnl_request q;
    const struct nlmsghdr *h;
    struct rtnl_attr a;

    rtnl_request_init(&q, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, 0, &body, sizeof(body));
    int r = rtnl_start(nl, &q, "asking nftables for its generation", err);
    r = r < 0 ? r : rtnl_next(nl, &h, err); /* one message, without an end behind it */
    if (r <= 0)
        return r < 0 ? r : err_set(err, -EPROTO, "nftables does not tell its generation");
    struct rtnl_attrs attrs = rtnl_attrs_of(h, sizeof(body));
    while (rtnl_attr_next(&attrs, &a))
        if (a.type == NFTA_GEN_ID)
            *ret = ntohl(rtnl_attr_u32(&a));
    return 0;
}

static int see(struct rtnl *nl, struct look *look, struct err *err)
{
    struct err none = ERR_INIT, e = ERR_INIT;
    int r = see_generation(nl, &look->generation, err);

    if (r < 0)
        return r;
    r = see_set(nl, false, look, &none);
    look->table = r != -ENOENT;
    if (r == 0)
        r = see_set(nl, true, look, &e);
    if (r == -ENOENT)
        return 0;
    return r < 0 ? err_set(err, r, "%s", none.text[0] ? none.text : e.text) : 0;
}

/* ---- changing ---- */

static bool plan(const struct look *look, struct rtnl_request *q)
{
    bool last = !look->wanted && look->others == 0;

    if (look->wanted ? look->there && look->n_stale == 0
                     : !look->table || (look->n_stale == 0 && !last))
        return false;
    batch_begin(q, look->generation);
    if (look->wanted && !look->table)
        new_table(q);
    if (last)
        delete_table(q);
    for (size_t i = 0; !last && i < look->n_stale; i++)
        element(q, &look->stale[i], NULL);
    if (look->wanted && !look->there)
        element(q, look->wanted, look->comment);
    batch_end(q);
    return true;
}

/* -ERESTART, -EINTR: somebody else was at it. */
static int attempt(struct rtnl *nl, struct look *look, struct err *err)
{
    struct rtnl_request q;
    const struct nlmsghdr *h;
    int r = see(nl, look, err);

    if (r < 0 || !plan(look, &q))
        return r;
    r = rtnl_start(nl, &q, "changing the nftables table inet " TABLE, err);
    while (r >= 0 && (r = rtnl_next(nl, &h, err)) > 0)
        continue;
    return r;
}

static int change(const struct element *wanted, uint32_t vni, struct err *err)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    _cleanup_(rtnl_closep) struct rtnl *nl = NULL;
    struct err e = ERR_INIT;
    int r = rtnl_open_filter(&nl, &e);

    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; r == 0 || (i < TRIES && (r == -ERESTART || r == -EINTR)); i++) {
        struct look look = {.wanted = wanted};
        (void)str_format(look.comment, sizeof(look.comment), "peerpod %u", vni);
        e = (struct err)ERR_INIT;
        r = attempt(nl, &look, &e);
        if (r == 0)
            break;
    }
    pthread_mutex_unlock(&mutex);
    return r < 0 ? err_set(err, r, "%s", e.text) : 0;
}

int notrack_add(const struct net_address *remote, uint16_t port, uint32_t vni, struct err *err)
{
    const struct element wanted = element_of(remote, port);

    return change(&wanted, vni, err);
}

int notrack_delete(uint32_t vni, struct err *err)
{
    struct err e = ERR_INIT;
    int r = change(NULL, vni, &e);

    /* No nftables, or none for us: then there is nothing of ours either. */
    if (r < 0 && r != -EPROTONOSUPPORT && r != -EOPNOTSUPP && r != -EINVAL && r != -EPERM)
        return err_set(err, r, "%s", e.text);
    return 0;
}
