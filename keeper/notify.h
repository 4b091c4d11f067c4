/* SPDX-License-Identifier: Apache-2.0 */
/* The socket on which the child's messages come (NOTIFY_SOCKET). */
#pragma once

#include "keeper/store.h"

struct notify {
    int fd;
    char dir[64], path[80];
};

/* Binds a datagram socket in a private directory of its own. */
int notify_init(struct notify *n, struct err *err);
void notify_done(struct notify *n);
/* Applies every message that is in the queue; logs what it refuses. */
void notify_drain(struct notify *n, struct store *store);
