/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a process inside a container. The agent has many threads and must not fork; it spawns
 * its own program anew (`test-agent --jail MODE`), single-threaded, with what it needs on fixed
 * descriptors. That helper joins or makes the namespaces, forks the real process as a child of the
 * agent, mounts, and reports over a SOCK_SEQPACKET pair.
 */
#pragma once

#include <sys/types.h>

#include "base/err.h"

/* Descriptors of the helper. */
enum jail_fd {
    JAIL_FD_REQUEST = 3, /* a memfd: the CreateContainer or ExecProcess request */
    JAIL_FD_SYNC = 4,
    JAIL_FD_A = 5, /* container: the sandbox's ipc namespace; exec: the container's pidfd */
    JAIL_FD_B = 6, /* container: the sandbox's uts namespace */
};

/* First byte of each message. Helper to agent: pid (text), ready, error (text). Agent to helper:
 * go. */
enum jail_message {
    JAIL_PID = 'P',
    JAIL_READY = 'R',
    JAIL_ERROR = 'E',
    JAIL_GO = 'G',
};
#define JAIL_MESSAGE_MAX 1024

/* What --jail runs; returns the exit status of the helper's first process. mode: "container",
 * "pause" (a container whose process only waits), "exec", or "sandbox" (holds new ipc and uts
 * namespaces until the agent lets go). */
int jail_main(const char *mode);
