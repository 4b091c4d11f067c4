/* SPDX-License-Identifier: Apache-2.0 */
/* The process that is killed: two relays, and what the daemon and the forwarder do between them. */
#pragma once

#include "relay/relay.h"

/* Copies between the two until both directions have ended; the process exits with 0, or with 1 and
 * a line on stderr. Their files ("a", "b" in dirfd) are recovered, or made when nobody has finished
 * making them. */
_noreturn_ void worker_open(int dirfd, const int fds[2], size_t ring, uint64_t seed);
/* Under the keeper: listens in dir, accepts two connections once, stores all, goes on. */
int worker_kept(const char *dir);
