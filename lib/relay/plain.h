/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plain mode: one byte stream over one TLS (or bare TCP) connection, as the Go programs have it.
 * The endpoint is the same as a channel's of the tunnel (struct channel_ops), so that shimconn.c
 * and forwarder/channel.c serve both. What a tunnel can and this cannot: survive its connection.
 * See plain.c (design.md 4, docs/plain-mode.md). Loop only.
 */
#pragma once

#include "relay/tunnel.h"

struct plain_link;

/* Until an endpoint is attached; afterwards its `gone` tells the end. Neither is called from inside
 * a plain_ function. */
struct plain_ops {
    void (*up)(void *owner); /* the connection stands; the far side has taken our certificate */
    /* Dialling: refused in a way that trying again may not mend; it goes on at 1 s. Once for each
     * new text. May be NULL. */
    void (*refused)(void *owner, const struct err *why);
    /* It is no more; the link is freed behind this call. */
    void (*ended)(void *owner, const struct err *why);
};

struct plain_target {
    struct sockaddr_storage address;
    socklen_t address_len;
    struct tls_ctx *ctx; /* borrowed; NULL: no TLS */
    char server_name[256];
};

struct plain_stats {
    uint64_t bytes_tx, bytes_rx;
};

/* Dials until a connection stands or deadline_ms (clock_mono_ms; 0: none) has passed. target is
 * copied. A connect attempt lasts at most 500 ms, attempts start at least 100 ms apart. */
int plain_dial(uv_loop_t *loop, const struct plain_target *target, int64_t deadline_ms,
               const struct plain_ops *ops, void *owner, struct plain_link **ret, struct err *err);
/* A connection was accepted; takes fd, also on failure. ctx as above. */
int plain_accept(uv_loop_t *loop, int fd, struct tls_ctx *ctx, const struct plain_ops *ops,
                 void *owner, struct plain_link **ret, struct err *err);
/* From now on bytes go between the connection and the endpoint; also before `up`, which then is
 * not told. Without endpoint nothing is read. */
void plain_attach(struct plain_link *l, const struct channel_ops *ops, void *ep);
void plain_kick(struct plain_link *l); /* as tunnel_channel_kick */
/* Our end is gone, or nobody wants it. No callbacks. */
void plain_close(struct plain_link *l);
bool plain_is_up(const struct plain_link *l);
void plain_last_error(const struct plain_link *l, struct err *ret); /* of the last attempt */
void plain_get_stats(const struct plain_link *l, struct plain_stats *ret);
