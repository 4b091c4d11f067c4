/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network namespaces. No thread of the caller ever changes its namespace: work in another one runs
 * on a thread made for it, which ends there, so that a failed way back cannot exist.
 */
#pragma once

#include <sys/types.h>

#include "base/err.h"

/* A descriptor of the namespace that path (/run/netns/NAME, /proc/PID/ns/net) names; owned.
 * -EINVAL when path is something else, -ENOENT, ... */
int netns_open(const char *path, int *ret, struct err *err);
int netns_open_pid(pid_t pid, int *ret, struct err *err);
/* Of the calling thread. */
int netns_open_own(int *ret, struct err *err);

/* Makes an empty namespace and binds it to path, parent directories included, as `ip netns add`
 * does (loopback up). One that is there already is fine. */
int netns_create(const char *path, struct err *err);
/* Unbinds and removes path; a missing one is fine. */
int netns_delete(const char *path, struct err *err);
/* 1: a namespace is bound there; 0: nothing, or something else. */
int netns_exists(const char *path);

/* Calls fn inside the namespace, on a thread made for it, and returns what fn returns. */
typedef int netns_fn(void *arg, struct err *err);
int netns_run(int netns_fd, netns_fn *fn, void *arg, struct err *err);
