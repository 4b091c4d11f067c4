/* SPDX-License-Identifier: Apache-2.0 */
/* Starting the command with the store's descriptors (sd_listen_fds(3)). */
#pragma once

#include <signal.h>
#include <sys/types.h>

#include "keeper/store.h"

/* What a shell says for a command that cannot be run, and cannot be found. */
#define CHILD_NOT_EXECUTABLE 126
#define CHILD_NOT_FOUND 127

/* Forks and executes argv with the signal mask given, NOTIFY_SOCKET, and the store's descriptors
 * from 3 upwards. Returns the process id or a negative errno. */
pid_t child_start(char *const *argv, const sigset_t *mask, const char *notify_path,
                  const struct store *store, struct err *err);
