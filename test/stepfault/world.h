/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world of its own for a test program: namespaces that end with it, and snapshots of what is in
 * them, to show that an operation left nothing behind.
 */
#pragma once

#include "base/err.h"

/* Forks into fresh network, mount, pid and ipc namespaces with their own /proc and goes on there as
 * PID 1; the parent waits and exits with the same status. When the parent
 * is killed, so is the world. Without the right to do so: says so and exits with 77, with 1 under
 * STRICT=1. */
void world_enter(void);
/* A directory that only this world sees, empty at first. */
const char *world_dir(void);

/* Sorted lines: descriptors and threads of this process, processes, links, mounts, files below each
 * of dirs (NULL-terminated). Reaps ended children first. Owned. */
char *world_snapshot(const char *const *dirs);
/* As snapshot, for another process's descriptors and threads instead of ours. */
char *world_snapshot_of(pid_t pid, const char *const *dirs);
/* Prints the lines that differ and returns how many. */
unsigned world_diff(const char *before, const char *after);
/* Waits up to ms for the snapshot to become `before` again; 0, or the number of differing lines
 * after printing them. */
unsigned world_settle(const char *before, const char *const *dirs, int64_t ms);
