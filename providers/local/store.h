/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of local VMs: a directory that plays the cloud's data base. Any number of processes
 * may use it at once.
 */
#pragma once

#include <sys/types.h>

#include "loop/job.h"
#include "providers/local/config.h"
#include "providers/provider.h"

struct store; /* thread-safe: holds nothing but names */

struct store_record {
    char id[LOCAL_ID_SIZE]; /* "local-INDEX-TOKEN" */
    char name[INSTANCE_NAME_MAX + 1];
    char token[LOCAL_TOKEN_LEN + 1];
    uint32_t index;
    bool external_network; /* of the request at hand, not kept */
    size_t n_tags;
    char *tags[INSTANCE_TAGS_MAX][2]; /* owned: store_record_done */
};

/* Where the VM of an instance stands. */
enum store_state {
    STORE_HALF, /* record written, VM not made (or not yet) */
    STORE_RUNNING,
    STORE_ENDED,
    STORE_DELETING,
};

struct store_init {
    pid_t pid; /* of the VM's PID 1, in our pid namespace */
    uint64_t start;
};

int store_open(const char *dir, struct store **ret, struct err *err);
void store_close(struct store *s);
DEFINE_CLEANUP(struct store, store_close)

void store_record_done(struct store_record *r);

/* Makes the record of a request, or finds that of an earlier request with the same token. Returns
 * with the instance locked: *ret_lock, a descriptor whose closing unlocks. *ret_new: made now. When
 * it fails and ret->id is set (ret must be zeroed before), there is such an instance.
 * taken: indexes that are in use outside the registry. */
typedef bool store_taken_fn(uint32_t index, void *arg);
int store_add(struct store *s, struct job *job, const struct instance_request *request,
              store_taken_fn *taken, void *arg, struct store_record *ret, int *ret_lock,
              bool *ret_new, struct err *err);

/* Locks an instance, waiting as long as the job may. -ENOENT without err when there is none. */
int store_lock(struct store *s, struct job *job, const char *id, int *ret_lock, struct err *err);
/* Reads one record; -ENOENT without err when there is none. */
int store_get(struct store *s, const char *id, struct store_record *ret, struct err *err);
/* Removes what dead processes left half made or half removed, unless the registry is in use. */
void store_tidy(struct store *s);
/* Ids of all instances, owned: strv_free. */
int store_ids(struct store *s, char ***ret, struct err *err);
int store_state(struct store *s, const char *id, enum store_state *ret, struct err *err);
/* -ENOENT: no VM was ever started, or it is of an earlier boot; without err. */
int store_read_init(struct store *s, const char *id, struct store_init *ret, struct err *err);
/* A pidfd of the VM's PID 1; -ESRCH when it has ended. Never another process with its old pid. */
int store_open_init(const struct store_init *init, int *ret);
/* Path of a file of the instance ("log", "user-data", "" for the directory). */
int store_path(struct store *s, const char *id, const char *file, char *out, size_t size,
               struct err *err);
int store_mark_deleting(struct store *s, const char *id, struct err *err);
/* Forgets what an earlier try to make the VM left (lock held). */
int store_reset(struct store *s, const char *id, struct err *err);
/* Takes the instance out of the registry and removes its files (lock held). job NULL: not to be
 * cancelled, bounded by STORE_UNDO_MS. */
#define STORE_UNDO_MS 15000
int store_remove(struct store *s, struct job *job, const char *id, struct err *err);
/* Removes the files of instances that are out of the registry: a removal may fail behind that. */
int store_finish_removals(struct store *s, struct job *job, struct err *err);
