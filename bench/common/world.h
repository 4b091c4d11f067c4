/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker node of the benchmark's own: namespaces, the real daemon under the real keeper on the
 * `local` provider, pods made as a shim makes them.
 */
#pragma once

#include <limits.h>
#include <sys/types.h>

#include "base/err.h"

struct world {
    char bin[PATH_MAX];              /* the folder of this program and of all others */
    const char *log;                 /* what the programs write; appended */
    const char *const *keeper_flags; /* NULL-terminated, or NULL */
    const char *const *launcher;     /* words that run the daemon's command line; or NULL */
    pid_t keeper;
};

struct pod {
    char id[65];
    char *socket; /* agent.ttrpc */
    char netns[64];
    pid_t init;          /* the VM's PID 1, as we see it */
    char agent[64];      /* the agent's own socket, through /proc */
    char address[16];    /* the VM's, dotted */
    int64_t listened_us; /* clock_mono_us when the forwarder was seen to listen; 0: not seen */
    int64_t answered_us; /* when StartVM had answered */
};

/* Fills in bin. */
int world_here(struct world *w, struct err *err);

/* Makes net, mount, pid and uts namespaces with an empty /run and calls run(arg) as PID 1 in them:
 * its end ends all, this program too, with run's value as its status. Returns only a negative errno,
 * with err set, when there is no way. */
int world_run(int (*run)(void *arg), void *arg, struct err *err);

/* The keeper and the daemon with default options, native mode, and this agent in the VMs (NULL: the
 * provider's default). more: NULL-terminated flags, or NULL. */
int world_start(struct world *w, const char *agent, const char *const *more, struct err *err);
/* The process that runs the program of this name (first 15 bytes) now; 0: none. The newest. */
pid_t world_pid(const char *comm);
/* A program that dies with us; netns_of: in the network namespace of that process, 0: in ours. */
int world_spawn(const struct world *w, pid_t netns_of, const char *const *argv, pid_t *ret,
                struct err *err);
void world_kill(pid_t pid);

/* A pod in steps: its network namespace, as a CNI plugin leaves it; CreateVM; StartVM. */
int pod_prepare(struct pod *p, unsigned number, struct err *err);
int pod_create(struct pod *p, struct err *err);
int pod_run(struct pod *p, struct err *err);
/* All of them, of the only pod there is: watches for the forwarder's listener meanwhile. */
int pod_start(struct pod *p, unsigned number, struct err *err);
/* StopVM; waits until the daemon has forgotten the pod, so until its VM is gone. The namespace goes
 * too. */
int pod_stop(struct pod *p, struct err *err);

/* A program that a sanitizer has ended is restarted as if it had been killed: looks for its words in
 * the programs' log and in the VMs' (-vm-log-dir). */
int world_check_logs(const struct world *w, const char *vm_logs, struct err *err);

/* Until path is a socket that takes connections. */
int wait_socket(const char *path, int64_t ms, struct err *err);
