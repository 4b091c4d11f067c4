/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A synchronous rtnetlink socket: build one request, send it, walk its replies.
 *
 * Not thread-safe: one socket per job. The socket works on the network namespace in which it was
 * opened, for ever, whatever its thread does later. Errors carry the kernel's own words (extended
 * acknowledgement) where it gives some. Every request of the project passes rtnl_start: the one
 * place where a step fault can be put.
 */
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "base/err.h"

#define RTNL_REQUEST_MAX 4096U
#define RTNL_REPLY_MAX 65536U
#define RTNL_EXTACK_MAX 256U
#define RTNL_LIST_MAX 65536U

struct rtnl;

int rtnl_open(struct rtnl **ret, struct err *err);
/* The same for nftables (NETLINK_NETFILTER). */
int rtnl_open_filter(struct rtnl **ret, struct err *err);
/* In another network namespace; the caller's thread does not leave its own. */
int rtnl_open_in(int netns_fd, struct rtnl **ret, struct err *err);
void rtnl_close(struct rtnl *nl);
DEFINE_CLEANUP(struct rtnl, rtnl_close)

/* A socket that becomes readable when something of `groups` (RTMGRP_LINK, ...) changes; owned. What
 * changed is asked for, not read from the event: events get lost. */
int rtnl_open_events(uint32_t groups, int *ret, struct err *err);
void rtnl_events_drain(int fd);

/* A request under construction. Pieces that do not fit set `failed`, and rtnl_start refuses it. */
struct rtnl_request {
    size_t len;
    size_t at; /* where the message under construction begins */
    bool failed;
    _Alignas(8) unsigned char data[RTNL_REQUEST_MAX];
};

/* body: the family's fixed header (ifinfomsg, ...). flags: beside NLM_F_REQUEST. */
void rtnl_request_init(struct rtnl_request *q, uint16_t type, unsigned flags, const void *body,
                       size_t body_len);
/* One more message in the same datagram (nftables' batches); the kernel takes all of them for one
 * request. */
void rtnl_request_next(struct rtnl_request *q, uint16_t type, unsigned flags, const void *body,
                       size_t body_len);
void rtnl_put(struct rtnl_request *q, uint16_t attr, const void *data, size_t len);
void rtnl_put_u8(struct rtnl_request *q, uint16_t attr, uint8_t value);
void rtnl_put_u16(struct rtnl_request *q, uint16_t attr, uint16_t value);
void rtnl_put_u32(struct rtnl_request *q, uint16_t attr, uint32_t value);
void rtnl_put_string(struct rtnl_request *q, uint16_t attr, const char *value);
/* Raw bytes without an attribute header, aligned: the fixed header inside VETH_INFO_PEER. */
void rtnl_put_raw(struct rtnl_request *q, const void *data, size_t len);
/* Returns the mark that rtnl_nest_end needs. */
size_t rtnl_nest(struct rtnl_request *q, uint16_t attr);
void rtnl_nest_end(struct rtnl_request *q, size_t mark);

/* Sends. what: for the error text, "adding link pl7". Replies of an earlier request that were not
 * walked to the end are skipped by their sequence number. */
int rtnl_start(struct rtnl *nl, struct rtnl_request *q, const char *what, struct err *err);
/* 1: *ret is the next message of the answer (borrowed until the next call); 0: the answer is
 * complete; negative: the kernel's error. -EINTR: the dump was interrupted by a change, ask again.
 */
int rtnl_next(struct rtnl *nl, const struct nlmsghdr **ret, struct err *err);
/* rtnl_start with NLM_F_ACK, and all replies skipped. */
int rtnl_call(struct rtnl *nl, struct rtnl_request *q, const char *what, struct err *err);

/* rtnl_call that takes one code of the kernel's for success. */
int rtnl_call_unless(struct rtnl *nl, struct rtnl_request *q, const char *what, int fine,
                     struct err *err);

/* false: not of the wanted kind, or malformed. */
typedef bool rtnl_parse_fn(const struct nlmsghdr *h, void *ret);
/* A whole table, as an array of what parse makes of each message (size bytes); owned: free(). Asked
 * for again when it changed meanwhile. */
int rtnl_dump(struct rtnl *nl, uint16_t type, const void *body, size_t body_len, const char *what,
              rtnl_parse_fn *parse, size_t size, void **ret, size_t *ret_n, struct err *err);

/* Walks replies that lie in memory: what rtnl_next does with each datagram, apart for the fuzzer.
 */
struct rtnl_reply {
    const unsigned char *data; /* aligned to 4 */
    size_t len, pos;
    uint32_t seq;
    char extack[RTNL_EXTACK_MAX]; /* the kernel's words behind a negative return, or "" */
};
/* 1: a message; 0: end of the answer; -EAGAIN: the datagram is used up, the answer is not complete;
 * other: the error that the kernel reported; -EBADMSG: malformed. */
int rtnl_reply_next(struct rtnl_reply *it, const struct nlmsghdr **ret);

/* Attributes of a message behind its fixed header, or of a nest. */
struct rtnl_attrs {
    const unsigned char *data;
    size_t len;
};
struct rtnl_attr {
    uint16_t type; /* flags masked away */
    const void *data;
    size_t len;
};
/* Empty when the message is shorter than its header. */
struct rtnl_attrs rtnl_attrs_of(const struct nlmsghdr *h, size_t body_len);
/* false at the end, and at the first malformed attribute. */
bool rtnl_attr_next(struct rtnl_attrs *it, struct rtnl_attr *ret);
/* 0 when the attribute has another size. */
uint32_t rtnl_attr_u32(const struct rtnl_attr *a);
/* Copies a text of at most size - 1 bytes; "" when it does not fit. */
void rtnl_attr_string(const struct rtnl_attr *a, char *out, size_t size);
