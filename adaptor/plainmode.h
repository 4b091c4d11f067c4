/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox whose VM has the stock forwarder (-forwarder-compat upstream): its TLS, its papers in
 * apf.json, the dialling in StartVM. See plainmode.c (docs/plain-mode.md).
 */
#pragma once

#include "adaptor/sandbox.h"
#include "guest/apf.h"
#include "relay/plain.h"
#include "wire/splice.h"

struct plainmode;

/* The options of plain mode, and the files that they name. */
int plainmode_check(const struct adaptor_config *config, struct err *err);
/* In native mode: a warning for each of them that was given. */
void plainmode_tell_unused(const struct adaptor_config *config);
/* What the forwarder must know: keys of apf.json. Makes the server's certificate when it is ours to
 * make, and keeps it (not its key) in the sandbox's directory. */
int plainmode_fill_apf(struct sandbox *sb, struct apf *apf, struct err *err);
/* The instance has an address: everything that connecting takes. */
int plainmode_open(struct sandbox *sb, struct err *err);
/* StartVM: dials until it is answered; reports as tunnel_ops does. */
struct plainmode_ops {
    void (*up)(struct sandbox *sb);
    void (*refused)(struct sandbox *sb, const struct err *why);
};
int plainmode_dial(struct sandbox *sb, const struct plainmode_ops *ops, struct err *err);
void plainmode_close(struct sandbox *sb);
/* A connection for one of the shim's: the one that StartVM has made, or one that is being dialled.
 * rules: the edits that go with it, borrowed. */
int plainmode_connect(struct sandbox *sb, const struct plain_ops *ops, void *owner,
                      const struct splice_rules **ret_rules, struct plain_link **ret,
                      struct err *err);
void plainmode_last_error(const struct sandbox *sb, struct err *ret);
