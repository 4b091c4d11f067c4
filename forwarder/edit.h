/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies between the tunnel and one agent connection: a ring of its own for the shim's bytes,
 * the parser that edits two of its requests on the way to the relay, and the insertion of our own
 * answers between two frames of the agent's. See edit.c for the theory of operation (design.md 4).
 *
 *     tunnel --> [rx ring] --parser--> relay's out ring --> agent
 *     tunnel <-- relay's in ring <-- agent, and our own answers
 *
 * All state lies in a mapped file and in the relay's user state; a successor opens both and goes
 * on. Offsets as in relay.h. Loop only. The relay is borrowed and outlives the edit.
 */
#pragma once

#include "relay/relay.h"
#include "wire/splice.h"

struct edit;

/* A new connection: creates `path` (0600, O_EXCL) in dirfd. rules are borrowed. ring_size: of the
 * rx ring, as for relay_create. The relay has been created and nothing has been read from it. */
int edit_create(int dirfd, const char *path, size_t ring_size, struct relay *relay,
                const struct splice_rules *rules, struct edit **ret, struct err *err);
/* The same after our predecessor's death, the relay being recovered. -EBADMSG: torn or not ours;
 * -EPROTONOSUPPORT: a newer program's; -ENODATA: it died inside edit_create. */
int edit_recover(int dirfd, const char *path, struct relay *relay, const struct splice_rules *rules,
                 struct edit **ret, struct err *err);
void edit_close(struct edit *e); /* the file stays */
DEFINE_CLEANUP(struct edit, edit_close)

/* -- the tunnel's side, as struct channel_ops has it -- */

uint64_t edit_rx_held(const struct edit *e);
uint64_t edit_rx_limit(const struct edit *e);
ssize_t edit_rx_space(struct edit *e, uint8_t **ret);
void edit_rx_commit(struct edit *e, size_t n);
void edit_rx_fin(struct edit *e);
bool edit_rx_has_fin(const struct edit *e);
/* In place of relay_in_ack, which would drop what a successor needs to find the frames. */
int edit_in_ack(struct edit *e, uint64_t offset);

/*
 * Moves what can be moved: call it after rx_commit, rx_fin, edit_in_ack, after new bytes of the
 * agent's and when the out ring has drained. Afterwards the relay may have bytes to send, a fin, or
 * an answer of ours in its in ring, and edit_rx_limit may have grown. 0, or -ENOSPC: the file
 * system is full, call again later.
 */
int edit_run(struct edit *e);
/* For pump_ops.in_limit: how far the agent may be read now, so that an answer that waits finds the
 * end of a frame. */
size_t edit_in_limit(struct edit *e);
/* Gives unused blocks back to the file system. */
void edit_trim(struct edit *e);

struct edit_stats {
    uint64_t frames, edited, refused; /* of this process */
};
void edit_get_stats(const struct edit *e, struct edit_stats *ret);
