/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Netlink replies: the walk over messages, extended acknowledgements and attributes. The first
 * message's sequence number is taken for ours, so that a mutation of it does not hide the rest.
 */
#include <assert.h>
#include <errno.h>

#include "net/route.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char *copy = xcalloc(1, size + 1); /* aligned, and of its exact size */
    struct rtnl_reply it = {.data = copy, .len = size};
    const struct nlmsghdr *h;
    size_t last = 0;
    int r;

    memcpy(copy, data, size);
    if (size >= sizeof(*h))
        it.seq = ((const struct nlmsghdr *)(const void *)copy)->nlmsg_seq;
    while ((r = rtnl_reply_next(&it, &h)) == 1) {
        struct link link;
        struct link_address address;
        struct link_route route;
        struct link_neighbour neighbour;

        assert(it.pos > last && it.pos <= size);
        last = it.pos;
        if (link_parse(h, &link))
            assert(strnlen(link.name, sizeof(link.name)) < sizeof(link.name));
        if (link_address_parse(h, &address))
            assert(net_address_len(&address.address) > 0);
        if (link_route_parse(h, &route))
            assert(route.prefix == 0 || net_address_len(&route.dst) > 0);
        if (link_neighbour_parse(h, &neighbour))
            assert(net_address_len(&neighbour.address) > 0);
    }
    assert(r <= 0 && r >= -4095);
    assert(strnlen(it.extack, sizeof(it.extack)) < sizeof(it.extack));
    free(copy);
    return 0;
}
