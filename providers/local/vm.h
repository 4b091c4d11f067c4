/* SPDX-License-Identifier: Apache-2.0 */
/* Starting and ending the namespaces of one local VM, by way of the helper program. */
#pragma once

#include "providers/local/store.h"

struct vm_programs {
    char guest_dir[PATH_MAX]; /* absolute */
    char helper[PATH_MAX];
    char agent[PATH_MAX]; /* a command; empty: test-agent in guest_dir */
};

/* Finds the programs; each that is missing is an error that says where it was looked for. */
int vm_programs_find(const struct local_config *config, struct vm_programs *ret, struct err *err);
/* Are we allowed to make namespaces and links here? */
int vm_check_rights(struct err *err);

/* Makes the VM of a record whose lock is held. Runs to its end whatever the job is told, bounded in
 * time by the helper. */
int vm_start(struct store *s, const struct local_config *config, const struct store_record *rec,
             int lock, struct err *err);
/* Ends all its processes and waits until they and its link are gone (lock held). job NULL: as with
 * store_remove. */
int vm_stop(struct store *s, struct job *job, const struct store_record *rec, struct err *err);
/* For store_add: is there a link with that index's name? arg: struct rtnl. */
bool vm_index_taken(uint32_t index, void *arg);
