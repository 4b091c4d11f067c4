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
    PHASE_SERVING,  /* the child runs, or is started again */
    PHASE_TRYING,   /* it is not ready yet, and the predecessor stands by */
    PHASE_WAITING,  /* there is none yet: our predecessor's has not ended */
    PHASE_STOPPING, /* a successor has all and waits for its end */
    PHASE_STOPPED,  /* the successor is trying; we stand by */
    PHASE_RETIRED,  /* the work is done elsewhere for good */
};

struct peer {
    int fd, queue; /* -1: none; queue: of its child, ours to read when it has died */
    bool keeps;    /* a store alone */
};
#define NO_PEER ((struct peer){.fd = -1, .queue = -1})

struct keeper {
    const struct keeper_config *config;
    sigset_t old_mask;
    int signal_fd, listen_fd, notify_fd;
    char dir[FDPASS_QUEUE_PATH_MAX], path[FDPASS_QUEUE_PATH_MAX]; /* of notify_fd */
    struct fdtable store;
    struct peer peers[2]; /* with a command one; a store alone: whose child runs, and who is next */
    enum phase phase;
    pid_t pid; /* 0: dead */
    int64_t started_at, restart_at, pause_ms, deadline;
    bool asked_to_end, ended;
    int status;
};

/* Runs until the command has ended for good; *ret_status is then ours. */
int keeper_run(const struct keeper_config *config, int *ret_status, struct err *err);
/* Moves a descriptor of ours out of the store's way; -1 stays -1. */
int keeper_lift(const struct keeper *k, int fd);
void keeper_retire(struct keeper *k); /* our work is done elsewhere */
/* Applies what is in a queue of messages; from: whose it is, NULL: our own child's. */
void keeper_drain(struct keeper *k, int queue, const struct peer *from);

/* A store alone, from its beginning on: gives up all that it does not need. */
void keeper_confine(void);

int handover_init(struct keeper *k, struct err *err);
void handover_accept(struct keeper *k);
void handover_receive(struct keeper *k, struct peer *p);
/* Hands a message on to all peers but its sender. */
void handover_relay(struct keeper *k, const struct peer *from, const struct fdpass *m);
/* True: the death is the hand-over's affair and no reason to start the child again. */
bool handover_child_died(struct keeper *k);
void handover_settled(struct keeper *k); /* the child is ready: there is no way back */
void handover_forget(struct peer *p);
void handover_late(struct keeper *k); /* k->deadline has passed */
