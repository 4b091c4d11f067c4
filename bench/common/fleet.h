/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many pods on one worker, each with a shim's connection to its agent, a running container and a
 * WaitProcess that blocks until the container ends.
 */
#pragma once

#include <pthread.h>

#include "bench/common/world.h"

#define FLEET_MAX 4000

struct ttrpc_client;

struct member {
    struct pod pod;
    char container[65];
    struct ttrpc_client *agent;
    pthread_t waiter;
    bool waiting; /* the waiter's thread is to be joined */
    bool ended;   /* WaitProcess has returned */
    int status;   /* the container's, once its WaitProcess has been answered; -1 before */
    struct err lost;
    int64_t start_us; /* what StartVM took */
};

struct fleet {
    struct member *members; /* FLEET_MAX of them */
    unsigned prepared, n;   /* that have a network namespace; that run */
};

void fleet_init(struct fleet *f);
void fleet_done(struct fleet *f);

/* What is done to one of them, on one of several threads. */
typedef int fleet_fn(struct fleet *f, unsigned member, void *arg, struct err *err);
/* fn on members from, from + step, ... below to; so many at once. After a failure, which is
 * returned, no other is begun. */
int fleet_each(struct fleet *f, unsigned from, unsigned to, unsigned step, unsigned at_once,
               fleet_fn *fn, void *arg, struct err *err);

/* Network namespaces, as a CNI plugin makes them before the shim is called, until there are n. */
int fleet_prepare(struct fleet *f, unsigned n, unsigned at_once, struct err *err);
/* CreateVM, StartVM, CreateSandbox, ..., StartContainer, WaitProcess (kata-contract.md 3.3), until n
 * run. */
int fleet_start(struct fleet *f, unsigned n, unsigned at_once, struct err *err);
/* The ends of all containers, told by their WaitProcess, DestroySandbox, StopVM, and the namespaces'
 * end. */
int fleet_stop(struct fleet *f, unsigned at_once, struct err *err);

/* So many bytes to the container (cat) and back, compared. */
int member_echo(struct member *m, const uint8_t *data, size_t len, struct err *err);
int member_check(struct member *m, struct err *err);
/* Whether its WaitProcess still waits. */
int member_waits(struct member *m, struct err *err);
