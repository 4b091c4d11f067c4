/* SPDX-License-Identifier: Apache-2.0 */
/*
 * splice.h for a whole stream, in memory: the shim's bytes go in as they come, with two of their
 * frames held and edited on the way out; our own answers are put between two frames of the other
 * direction. For a connection that does not outlive its process (plain mode, adaptor/plain.c); the
 * one that does has forwarder/edit.c.
 */
#pragma once

#include "wire/splice.h"

struct splice_stream;

struct splice_stream *splice_stream_new(const struct splice_rules *rules); /* borrowed */
void splice_stream_free(struct splice_stream *s);
DEFINE_CLEANUP(struct splice_stream, splice_stream_free)

/* Takes up to len bytes of the shim's; returns how many. 0: not now (output or an answer waits). */
size_t splice_stream_put(struct splice_stream *s, const uint8_t *p, size_t len);
/* The shim sends no more. An unfinished frame goes on unfinished, unless it was held. */
void splice_stream_end(struct splice_stream *s);
/* What goes on, by offsets from 0. */
uint64_t splice_stream_head(const struct splice_stream *s);
uint64_t splice_stream_tail(const struct splice_stream *s);
size_t splice_stream_peek(const struct splice_stream *s, uint64_t offset, const uint8_t **ret);
int splice_stream_ack(struct splice_stream *s, uint64_t offset); /* -ERANGE: beyond head */

/* The agent's side: how many of its bytes may go to the shim now. 0: our answer comes first. */
size_t splice_stream_limit(const struct splice_stream *s);
/* n bytes of the agent's have gone to the shim. */
void splice_stream_pass(struct splice_stream *s, const uint8_t *p, size_t n);
/* When the limit is 0: the rest of our answer, and how much of it has been given to the shim. */
size_t splice_stream_answer(const struct splice_stream *s, const uint8_t **ret);
void splice_stream_answered(struct splice_stream *s, size_t n);
