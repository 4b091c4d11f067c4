/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper: parent, restarter, store. See keeper.c. */
#pragma once

#include "base/err.h"

struct keeper_config {
    char *const *argv;      /* the command, NULL-terminated, borrowed */
    int64_t restart_min_ms; /* first pause */
    int64_t restart_max_ms; /* it doubles up to this one */
    int64_t settled_ms;     /* a child that lived so long starts the pauses again */
};

/* Runs until the command has ended for good; *ret_status is then ours. */
int keeper_run(const struct keeper_config *config, int *ret_status, struct err *err);
