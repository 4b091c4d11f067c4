/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serving a stock adaptor: connections without the tunnel's ALPN. See plainmode.c
 * (docs/plain-mode.md). Loop only.
 */
#pragma once

#include "forwarder/channel.h"
#include "forwarder/options.h"
#include "guest/apf.h"

struct plainmode;

/* Can it be served, by what the options and apf.json give? */
bool plainmode_wanted(const struct forwarder_options *o, const struct apf *apf);
/* channels: where the connections to the agent come from, borrowed. */
int plainmode_new(uv_loop_t *loop, const struct forwarder_options *o, const struct apf *apf,
                  struct channel_set *channels, struct plainmode **ret, struct err *err);
void plainmode_free(struct plainmode *p);
/* A TCP connection was accepted; takes fd. */
void plainmode_accept(struct plainmode *p, int fd);
void plainmode_agent_ready(struct plainmode *p, bool ready);
