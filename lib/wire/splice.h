/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Edits of serialized agent requests: nested protobuf messages are spliced, lengths on the way are
 * fixed, every other byte (unknown fields, order, odd encodings) stays. kata-contract.md 3.4 says
 * which and why. Works on bytes from the shim, which the pod VM does not trust: hostile input is
 * -EBADMSG, never a crash; depth and sizes are bounded.
 */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "wire/ttrpc.h"

enum splice_verdict {
    SPLICE_PASS, /* this frame is not edited: stream it through */
    SPLICE_HOLD, /* hold the whole frame, then splice_frame */
    SPLICE_MORE, /* cannot tell from so few bytes */
};

/*
 * Looks at the first `len` bytes of a frame of the shim's, header included. A request whose service
 * and method are not its first two fields is held. Bodies over TTRPC_BODY_MAX pass: their receiver
 * refuses them. At most SPLICE_PEEK_MAX bytes are ever needed: SPLICE_MORE is never the answer to
 * that many, nor to a whole frame.
 */
#define SPLICE_PEEK_MAX 128
enum splice_verdict splice_peek(const uint8_t *frame, size_t len);

struct splice_mount { /* a mount of the spec as the guest sees it; borrowed, not NUL-terminated */
    const char *type, *source, *destination;
    size_t type_len, source_len, destination_len;
};

/* The spec of a CreateContainer, for who adds annotations to it. Valid during the call. */
struct splice_spec;
/* The value of an annotation, as its receiver sees it; false: there is none. Borrowed. */
bool splice_spec_annotation(const struct splice_spec *spec, const char *key, const char **ret,
                            size_t *ret_len);
/* Iterates over the mounts in their order; *at is NULL before the first. false: no more. */
bool splice_spec_mount(const struct splice_spec *spec, const void **at, struct splice_mount *ret);
/* Adds an annotation; it takes the place of one of the same name. */
void splice_spec_annotate(struct splice_spec *spec, const char *key, const char *value);

struct splice_rules {
    /* CreateContainer: appended as LinuxNamespace{network, path}; NULL: not. */
    const char *netns_path;
    /* CreateSandbox: field 2 removed. */
    bool clear_dns;
    /* Called for each mount of a CreateContainer that is otherwise sound, in the spec's order, when
     * the whole frame has been checked (missing bind sources). May be NULL. */
    void (*mount)(void *arg, const struct splice_mount *mount);
    /* Called for each sound CreateContainer that has a spec; may add annotations. May be NULL, and
     * is in place of netns_path (one is the worker's edit, the other the pod VM's). */
    void (*annotate)(void *arg, struct splice_spec *spec);
    void *arg;
};

/*
 * A whole held frame, header included, to a whole frame in `out` (appended; nothing on failure). A
 * frame that turns out not to need an edit is copied as it is. Where a submessage occurs more than
 * once the last one is edited: the receiver keeps that one alone. -EMSGSIZE: the body would exceed
 * TTRPC_BODY_MAX, err says by what; -EBADMSG: not a protobuf message of that shape, or `len` is not
 * the frame's; -E2BIG: `out` is full. The caller then answers the stream.
 */
int splice_frame(const uint8_t *frame, size_t len, const struct splice_rules *rules,
                 struct buf *out, struct err *err);
/* Our own answer to a held frame that must not go on: an error response on its stream. */
void splice_answer(const uint8_t *frame, const struct err *why, struct buf *out);
