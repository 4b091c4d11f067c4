/* SPDX-License-Identifier: Apache-2.0 */
/* Pods that come and go during the storm: CreateVM, StartVM, a call, StopVM, again and again. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/err.h"

#define LIVES_MAX 4

struct lives {
    unsigned n;
    pthread_t threads[LIVES_MAX];
    struct err errs[LIVES_MAX];
    atomic_bool stop;
    atomic_uint under_way; /* calls on hypervisor.sock */
    atomic_uint numbers;
    atomic_ullong calls, started, checked;
    atomic_ullong
        excepted; /* connections that ended because they were accepted and not yet stored */
};

void lives_begin(struct lives *l, unsigned n);
/* Waits until all have ended. */
int lives_end(struct lives *l, struct err *err);
