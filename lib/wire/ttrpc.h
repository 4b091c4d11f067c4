/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ttrpc frames and messages (kata-contract.md 1; containerd/ttrpc PROTOCOL.md). Pure functions on
 * bytes: no descriptors, no loop. Messages are generated from proto/ by protobuf-c.
 */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "ttrpc.pb-c.h"

#define TTRPC_HEADER_SIZE 10
#define TTRPC_BODY_MAX (4U << 20) /* legal; one more is not */

enum ttrpc_type { TTRPC_REQUEST = 1, TTRPC_RESPONSE = 2, TTRPC_DATA = 3 };
enum ttrpc_flags {
    TTRPC_FLAG_REMOTE_CLOSED = 1,
    TTRPC_FLAG_REMOTE_OPEN = 2,
    TTRPC_FLAG_NO_DATA = 4
};

/* google.rpc.Code */
enum ttrpc_code {
    TTRPC_OK = 0,
    TTRPC_CANCELLED = 1,
    TTRPC_UNKNOWN = 2,
    TTRPC_INVALID_ARGUMENT = 3,
    TTRPC_DEADLINE_EXCEEDED = 4,
    TTRPC_NOT_FOUND = 5,
    TTRPC_ALREADY_EXISTS = 6,
    TTRPC_PERMISSION_DENIED = 7,
    TTRPC_RESOURCE_EXHAUSTED = 8,
    TTRPC_FAILED_PRECONDITION = 9,
    TTRPC_ABORTED = 10,
    TTRPC_UNIMPLEMENTED = 12,
    TTRPC_INTERNAL = 13,
    TTRPC_UNAVAILABLE = 14,
};

struct ttrpc_header {
    uint32_t length, stream;
    uint8_t type, flags;
};

void ttrpc_header_decode(const uint8_t in[TTRPC_HEADER_SIZE], struct ttrpc_header *ret);
void ttrpc_header_encode(const struct ttrpc_header *h, uint8_t out[TTRPC_HEADER_SIZE]);

/* Follows a stream of frames by their headers: takes up to n bytes at p, returns how many; call
 * again for the rest. All zero at first; *left and *have both zero: at the start of a frame. */
size_t ttrpc_walk(uint64_t *left, uint32_t *have, uint8_t header[TTRPC_HEADER_SIZE],
                  const uint8_t *p, size_t n);

/* Decodes a Request body; -EBADMSG with the reason. ret: ttrpc__request__free_unpacked. */
int ttrpc_request_decode(const uint8_t *body, size_t len, Ttrpc__Request **ret, struct err *err);
/* Any message, within the same memory budget: for payloads. protobuf_c_message_free_unpacked. */
int ttrpc_message_decode(const ProtobufCMessageDescriptor *type, const uint8_t *body, size_t len,
                         ProtobufCMessage **ret, struct err *err);
int ttrpc_response_decode(const uint8_t *body, size_t len, Ttrpc__Response **ret, struct err *err);

/* Append one whole frame. A payload that makes the body exceed TTRPC_BODY_MAX: -EMSGSIZE. */
int ttrpc_add_request(struct buf *out, uint32_t stream, const char *service, const char *method,
                      const void *payload, size_t len, int64_t timeout_ns, struct err *err);
int ttrpc_add_response(struct buf *out, uint32_t stream, const void *payload, size_t len,
                       struct err *err);
/* message is cut at 16 KiB and made valid UTF-8; never fails for size. */
void ttrpc_add_error(struct buf *out, uint32_t stream, enum ttrpc_code code, const char *message);

/* The one place where errnos become codes (conventions.md). */
enum ttrpc_code ttrpc_code_from_errno(int negative_errno);
const char *ttrpc_code_name(enum ttrpc_code code);
