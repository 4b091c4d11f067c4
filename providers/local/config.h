/* SPDX-License-Identifier: Apache-2.0 */
/* The options of the local provider, and what its files agree on. */
#pragma once

#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "base/str.h"

struct local_config {
    char *registry_dir;
    char *guest_dir; /* "": beside the daemon's own program */
    char *agent;     /* "": test-agent in guest_dir */
    char *vm_log_dir;
    char *guest_fault;
    char *fail_create;
    bool fail_addresses, fail_list;
    int64_t fail_deletes;
    int64_t boot_delay_ns, delete_delay_ns;
};

/* Pairs of 198.18.0.0/15 (RFC 2544, benchmarks: never routed): 2 * index is the worker's end,
 * 2 * index + 1 the VM's. */
#define LOCAL_NET 0xc6120000U
/* The second interface, where a pod is to reach the world by it: pairs of 100.126.0.0/15, a part of RFC
 * 6598's shared space. */
#define LOCAL_OUTER_NET 0x647e0000U
#define LOCAL_INDEX_MAX 65535U
#define LOCAL_LINK_PREFIX "ppl" /* + index: the worker's end of the link */
#define LOCAL_VM_LINK "eth0"
#define LOCAL_OUTER_PREFIX "ppx"
#define LOCAL_VM_OUTER_LINK "eth1"
#define LOCAL_TOKEN_LEN 32 /* hex digits */
#define LOCAL_ID_SIZE 64

static inline uint32_t local_host_address(uint32_t index)
{
    return LOCAL_NET + 2 * index;
}

static inline uint32_t local_vm_address(uint32_t index)
{
    return LOCAL_NET + 2 * index + 1;
}

/* The worker end's MAC tells whose link it is. token: checked, LOCAL_TOKEN_LEN hex digits. */
static inline void local_link_mac(const char *token, unsigned char ret[6])
{
    unsigned char bytes[LOCAL_TOKEN_LEN / 2] = {0};

    (void)str_unhex(token, bytes, sizeof(bytes));
    ret[0] = 0x02; /* locally administered, unicast */
    memcpy(ret + 1, bytes, 5);
}

/* Start time in ticks since boot from the text of /proc/PID/stat: its field 22. The name in field 2
 * may hold anything, so fields are counted from its closing parenthesis. */
static inline int local_start_time(const char *stat, uint64_t *ret)
{
    const char *p = strrchr(stat, ')');
    unsigned long long start;

    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (!p || sscanf(p, " %llu", &start) != 1)
        return -EBADMSG;
    *ret = start;
    return 0;
}
