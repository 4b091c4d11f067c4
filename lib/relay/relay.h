/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay: one unix stream connection, byte-exact across the death of the process that serves it.
 * See relay.c for the theory of operation (design.md 5, "Exactly once").
 *
 *     socket --recv--> [in ring]  --> the tunnel      in:  offsets of what the peer sent us
 *     socket <--send-- [out ring] <-- the tunnel      out: offsets of what we send the peer
 *
 * The state lies in a mapped file; the socket is also held by the keeper (or systemd), so that a new
 * process opens the same file on the same socket and goes on. One thread. All functions are
 * non-blocking. Offsets are absolute stream positions from 0 and never wrap. Nobody else reads or
 * peeks at the socket (that would move SO_PEEK_OFF).
 */
#pragma once

#include "base/err.h"

#define RELAY_RING_DEFAULT (256U << 10) /* bytes, a power of two, at least 32 KiB */
#define RELAY_RING_MAX (16U << 20)
#define RELAY_BLOCK (16U << 10) /* unit of allocation in the file */
#define RELAY_USER_SIZE 192     /* the owner's state, committed together with out_head */

struct relay;

/* 0 when this kernel has what exactly-once needs (SO_PEEK_OFF counting on a unix stream,
 * sendmmsg's count in our memory), else -ENOSYS with an err that says which and what it means. */
int relay_selftest(struct err *err);

/*
 * A new connection: creates the file `path` (0600, O_EXCL) in dirfd, sets SO_PEEK_OFF. Nothing has
 * been read before it returns. socket: SOCK_STREAM, AF_UNIX, O_NONBLOCK (checked); taken on success
 * (relay_close closes it). ring_size: of both rings. -ENOSPC: the file system is full.
 */
int relay_create(int dirfd, const char *path, int socket, size_t ring_size, struct relay **ret,
                 struct err *err);
/*
 * The same connection after our predecessor's death: maps the file, checks it (sizes, offsets,
 * version: a hostile or torn file is -EBADMSG, never a crash), settles it with the kernel's counts.
 * Takes the socket on success. -EPROTONOSUPPORT: a newer program's file, which must be left alone.
 * -ENODATA: the predecessor died inside relay_create, before anything was read: unlink the file and
 * create it again. -ENOSPC: no room for blocks that should have been there.
 */
int relay_recover(int dirfd, const char *path, int socket, struct relay **ret, struct err *err);
/* -EPROTONOSUPPORT: a newer program's file, as above; 0 for any other. Only looks. */
int relay_check_format(int dirfd, const char *path, struct err *err);
/* Unmaps, closes the socket; the file stays (the owner unlinks it when the connection has ended). */
void relay_close(struct relay *r);
DEFINE_CLEANUP(struct relay, relay_close)

int relay_socket(const struct relay *r); /* borrowed, for polling */

/* -- in: socket to ring -- */

/* One peek, a second one where the ring's end cut it short. > 0: bytes, which also stay in the socket
 * until relay_in_take; 0: the peer will send no more (end of file, sticky); -EAGAIN: nothing there;
 * -ENOBUFS: ring full (wait for relay_in_ack); -ENOSPC: no blocks (try again later); else the
 * connection is broken. `limit`: at most so many bytes (SIZE_MAX: no). */
ssize_t relay_in_read(struct relay *r, size_t limit);
/* Takes out of the socket what was read: the peer gets its room back, and may run at once. To be
 * called before the socket is polled again, which would find it readable, and before its last close:
 * unread bytes in it are a reset to the peer. < 0: the connection is broken. */
int relay_in_take(struct relay *r);
size_t relay_in_untaken(const struct relay *r);
uint64_t relay_in_head(const struct relay *r); /* received so far */
uint64_t relay_in_tail(const struct relay *r); /* acknowledged so far */
bool relay_in_eof(const struct relay *r);
/* Contiguous bytes from `offset` (tail <= offset <= head): length, *ret into the ring (borrowed
 * until the next relay_in_ack beyond it). 0 at head. */
size_t relay_in_peek(const struct relay *r, uint64_t offset, const uint8_t **ret);
/* The far side holds everything below offset. Lower or equal offsets are no-ops; beyond head is
 * -ERANGE. */
int relay_in_ack(struct relay *r, uint64_t offset);
/* Inserts bytes of our own at head (between two frames of the peer's; the owner knows where that
 * is): they take part in the offsets as if the peer had sent them. All or nothing: -ENOBUFS. */
int relay_in_inject(struct relay *r, const void *data, size_t len);

/* -- out: ring to socket -- */

uint64_t relay_out_head(const struct relay *r); /* accepted so far */
uint64_t relay_out_done(const struct relay *r); /* handed to the socket so far */
/* Free bytes in the ring (not blocks). */
size_t relay_out_free(const struct relay *r);
/* Contiguous room at head, with blocks allocated: > 0; -ENOBUFS: ring full; -ENOSPC; -EPIPE: after
 * relay_out_fin. Valid until the next commit or trim. */
ssize_t relay_out_space(struct relay *r, uint8_t **ret);
/*
 * n bytes were put at relay_out_space: head += n and, in the same single store, the owner's state
 * (user may be NULL: unchanged; n may be 0). At recovery both are seen or neither.
 */
void relay_out_commit(struct relay *r, size_t n, const void *user, size_t user_len);
/* The last committed user state; zeroes at first. Borrowed, valid until the next commit. */
const void *relay_user(const struct relay *r);
/* The far side sends no more: after the last byte, shutdown(SHUT_WR). Idempotent. */
void relay_out_fin(struct relay *r);
bool relay_out_finished(const struct relay *r); /* fin given, all bytes out, shut down by a flush of
                                                   this process */
bool relay_out_waits(const struct relay *r);    /* a flush has something to do */
/*
 * Moves bytes towards the socket until it would block or the ring is empty. 0: nothing left to do;
 * -EAGAIN: wait for POLLOUT; -EPIPE and others: the connection is broken.
 */
int relay_out_flush(struct relay *r);

/* Gives unused blocks back to the file system; call after a second without unacknowledged bytes. */
void relay_trim(struct relay *r);
