/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record of one sandbox, `<pods-dir>/<id>/sandbox.json`: everything that a new process needs to
 * go on with it, secrets excepted (those lie in files of their own beside it). See record.c.
 */
#pragma once

#include <net/if.h>

#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "providers/provider.h"
#include "wire/tls.h"

#define RECORD_FILE "sandbox.json"
#define RECORD_MAX (256U << 10)
/* Tests raise them. */
#ifndef RECORD_MAJOR
#define RECORD_MAJOR 1
#endif
#ifndef RECORD_MINOR
#define RECORD_MINOR 1 /* 1: node */
#endif
#define RECORD_NAME_MAX 253 /* pod and namespace names */
#define RECORD_TOKEN_LEN 32
#define RECORD_KEY_LEN 8

/*
 * What the daemon may do in each state:
 *   CREATED   listens for the shim; no instance exists. Leaves by StartVM, StopVM, grace.
 *   STARTING  an instance may exist, also when no id is known: written before the provider is
 *             called. Leaves by success, failure, StopVM, the caller's end of file.
 *   RUNNING   the tunnel has been up once. Leaves by StopVM, shim gone, VM gone.
 *   DELETING  StopVM has been answered; nothing of it is served. Leaves when the provider confirms
 *             that nothing is left; then the record goes.
 */
enum sandbox_state { SANDBOX_CREATED, SANDBOX_STARTING, SANDBOX_RUNNING, SANDBOX_DELETING };

struct record {
    int64_t minor; /* the highest version that has written it: who finds a lower one than its own
                      knows that its own fields are missing */
    char id[SANDBOX_ID_MAX + 1];
    char pod[RECORD_NAME_MAX + 1], namespace[RECORD_NAME_MAX + 1];
    char netns[256];
    char boot[FS_BOOT_ID_LEN + 1];
    char node[RECORD_NAME_MAX + 1]; /* whose boot that is; "": of a version that did not say */
    enum sandbox_state state;
    int64_t created_ms, started_ms; /* real time; 0: not yet */
    struct instance_spec spec;
    char spec_digest[65];             /* sha256 of what the instance is made from */
    char token[RECORD_TOKEN_LEN + 1]; /* idempotency token */
    char key[RECORD_KEY_LEN + 1];     /* prefix of this sandbox's names in the fd store */
    struct instance instance;         /* id "": none known */
    uint8_t peer_pin[TLS_PIN_SIZE];
    bool enrolled;
    bool plain; /* its VM was started in plain mode; absent in a record: not */
    uint32_t next_channel;
    uint32_t vxlan_id;            /* 0: none yet */
    char pod_interface[IFNAMSIZ]; /* "": not inspected yet */
    char *last_error;             /* owned; NULL: none */
    struct json_object *unknown;  /* fields of a newer minor version, or NULL; owned */
};

const char *sandbox_state_name(enum sandbox_state state);

/* Reads DIRFD/sandbox.json. -ENOENT: none. -EBADMSG: not a record. -EPROTONOSUPPORT: of a newer
 * major version (the daemon must end then). */
int record_read(int dirfd, struct record *ret, struct err *err);
/* Atomic; keeps what it did not understand when it was read. */
int record_write(int dirfd, const struct record *r, struct err *err);
/* The JSON text of it, owned. */
char *record_text(const struct record *r);
void record_done(struct record *r);
