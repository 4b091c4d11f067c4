/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A relay on the loop: one uv_poll on the relay's raw socket, reading while the in ring has room,
 * writing while the out ring has bytes, trimming after a second of silence.
 *
 * A read of 0 with POLLRDHUP alone is a half-close (the reply is still due); only an error or
 * POLLHUP (both directions closed) is the end of the connection. `broken` comes only when all that
 * the peer had sent before is in the in ring (a last answer must not be lost: where the ring is
 * full, reading goes on after each relay_in_ack and kick, without polling meanwhile). After
 * `broken` the pump is idle and the owner is expected to stop it and close the relay. A peer that
 * sends an out-of-band byte is cut off at once (-EPROTO).
 */
#pragma once

#include <uv.h>

#include "relay/relay.h"

struct pump;

struct pump_ops {
    void (*in_ready)(void *owner);          /* new bytes at head, or end of file */
    void (*out_room)(void *owner);          /* the out ring has drained some, or has finished */
    void (*broken)(void *owner, int error); /* -EPIPE, -ECONNRESET, ...; 0: closed both ways */
    /* May be NULL: no limit. Asked before each read: at most so many bytes now, 0 for none until
     * the next kick (who injects has to stop at the end of a frame). */
    size_t (*in_limit)(void *owner);
};

/* relay and owner are borrowed and outlive the pump. Callbacks come from the loop only, never from
 * inside a pump_ function. */
int pump_start(uv_loop_t *loop, struct relay *relay, const struct pump_ops *ops, void *owner,
               struct pump **ret, struct err *err);
/* Takes what was read out of the socket; closes the handles asynchronously. The relay may be closed at
 * once, not before. */
void pump_stop(struct pump *p);
void pump_kick(struct pump *p); /* bytes were committed to out, or in was acknowledged */
