/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the shim's, as it is in the pod VM: a channel of the tunnel, an edit, a relay
 * and a connection to the agent. See channel.c. Loop only.
 */
#pragma once

#include <uv.h>

#include "relay/plain.h"
#include "relay/tunnel.h"
#include "wire/splice.h"

struct agent_channel;
struct channel_set;

struct channel_set_config {
    uv_loop_t *loop;
    int dirfd; /* of the state directory, borrowed */
    const struct splice_rules *rules;
    /* A new connection to the agent, non-blocking. */
    int (*connect)(void *owner, int *ret, struct err *err);
    void *owner;
};

/* All channels of a tunnel. */
int channel_set_new(const struct channel_set_config *config, struct channel_set **ret,
                    struct err *err);
/* Leaves files and store as they are: a successor recovers them. */
void channel_set_free(struct channel_set *set);
/* Takes up what a predecessor left in the directory and the store, and clears what cannot be taken
 * up. Returns how many, or a negative errno: the state is a newer program's. */
int channel_set_recover(struct channel_set *set, struct err *err);
/* From now on channels report to it; recovered ones are added. */
int channel_set_attach(struct channel_set *set, struct tunnel *tunnel, struct err *err);
/* A stock adaptor's connection that is up: gets a connection to the agent of its own. On success the
 * link is the channel's. */
int channel_set_open_plain(struct channel_set *set, struct plain_link *link, struct err *err);
/* tunnel_ops.open */
int channel_set_open(struct channel_set *set, uint32_t id, const struct channel_ops **ret_ops,
                     void **ret_ep, struct err *err);
