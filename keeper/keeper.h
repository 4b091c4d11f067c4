/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper: parent, restarter, store (keeper.c), with others of its kind (handover.c). */
#pragma once

#include "relay/fdtable.h"

struct keeper_config {
    char *const *argv; /* the command, NULL-terminated, borrowed; NULL: a store alone */
    char *socket;      /* where keepers meet; "": nowhere */
    /* In ns: the first pause, which doubles up to the longest; who lived so long starts anew. */
    int64_t restart_min, restart_max, settled;
};

/* Of a keeper with a command; handover.c says who moves whom. */
enum phase {
    PHASE_WAITING,     /* for others of our kind; our command does not run */
    PHASE_TRYING,      /* it does, but is not ready yet, and the predecessor stands by */
    PHASE_SERVING,     /* it runs, or is started again */
    PHASE_STANDING_BY, /* a successor has all; its turn comes when our command has ended */
    PHASE_RETIRED,     /* the work is done elsewhere for good */
};

struct peer {
    int fd, queue; /* -1: none; queue: of its child, ours to read when it has died */
};
#define NO_PEER ((struct peer){.fd = -1, .queue = -1})
#define IS_STORE(p) ((p)->queue < 0) /* has no child */

struct keeper {
    const struct keeper_config *config;
    sigset_t old_mask;
    int signal_fd, listen_fd, notify_fd;
    char dir[FDPASS_QUEUE_PATH_MAX], path[FDPASS_QUEUE_PATH_MAX]; /* of notify_fd */
    struct fdtable store;
    struct peer peers[2]; /* with a command one; a store alone: whose child runs, and who is next */
    enum phase phase;
    pid_t pid; /* 0: dead */
    int64_t started_at, pause_ms;
    int64_t due; /* the child's start; PHASE_STANDING_BY: its end by force */
    bool asked_to_end, ended;
    int status;
};

/* Runs until the command has ended for good; returns our exit status. */
int keeper_run(const struct keeper_config *config);
void keeper_retire(struct keeper *k); /* our work is done elsewhere */
/* Applies what is in a queue of messages; from: whose it is, NULL: our own child's. */
void keeper_drain(struct keeper *k, int queue, const struct peer *from);

/* Meets the others, where we neither listen nor have a peer. */
void handover_meet(struct keeper *k);
void handover_accept(struct keeper *k);
void handover_receive(struct keeper *k, struct peer *p);
/* Hands a message on to all peers but its sender; NULL: of our own child. */
void handover_relay(struct keeper *k, const struct peer *from, const struct fdpass *m);
/* True: the death is the hand-over's affair and no reason to start the child again. */
bool handover_child_died(struct keeper *k);
void handover_forget(struct peer *p);
