/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ttrpc frames and messages.
 *
 * Model: a frame is ten bytes of header (length, stream, type, flags; big-endian) and a body that
 * is one protobuf message. Everything here is a pure function from bytes to values or back.
 *
 * Invariants: what the encoders append is always a whole frame or nothing; its body never exceeds
 * TTRPC_BODY_MAX; error texts are valid UTF-8 (Go's and Rust's decoders refuse the whole message
 * otherwise, and the caller would lose the text that matters most).
 *
 * Failures: bytes from outside are -EBADMSG. A decoder may not be made to allocate much more than
 * it was sent: a 4 MiB body of empty metadata entries would unfold to some 200 MB of structs, so
 * decoding has a memory budget of its own (DECODE_MEMORY_MAX) and refuses beyond it. The budget
 * sits in front of malloc, so results are freed in protobuf-c's ordinary way.
 *
 * An OK response carries no status, as Go servers do it; readers take an absent status, or one with
 * code 0, for success.
 */
#include "wire/ttrpc.h"

#include <errno.h>

#include "base/str.h"

#define DECODE_MEMORY_MAX (32U << 20)
#define ERROR_TEXT_MAX (16U << 10)

static uint32_t get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_be32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

void ttrpc_header_decode(const uint8_t in[TTRPC_HEADER_SIZE], struct ttrpc_header *ret)
{
    ret->length = get_be32(in);
    ret->stream = get_be32(in + 4);
    ret->type = in[8];
    ret->flags = in[9];
}

void ttrpc_header_encode(const struct ttrpc_header *h, uint8_t out[TTRPC_HEADER_SIZE])
{
    put_be32(out, h->length);
    put_be32(out + 4, h->stream);
    out[8] = h->type;
    out[9] = h->flags;
}

size_t ttrpc_walk(uint64_t *left, uint32_t *have, uint8_t header[TTRPC_HEADER_SIZE],
                  const uint8_t *p, size_t n)
{
    struct ttrpc_header h;
    if (*left > 0) {
        n = (size_t)MIN(*left, n);
        *left -= n;
        return n;
    }
    n = MIN(n, (size_t)TTRPC_HEADER_SIZE - *have);
    memcpy(header + *have, p, n);
    *have += (uint32_t)n;
    if (*have == TTRPC_HEADER_SIZE) {
        ttrpc_header_decode(header, &h);
        *left = h.length;
        *have = 0;
    }
    return n;
}

static void *budget_alloc(void *arg, size_t size)
{
    size_t *left = arg;

    if (size > *left)
        return NULL;
    *left -= size;
    return malloc(size);
}

static void budget_free(void *arg, void *p)
{
    (void)arg;
    free(p);
}

int ttrpc_message_decode(const ProtobufCMessageDescriptor *type, const uint8_t *body, size_t len,
                         ProtobufCMessage **ret, struct err *err)
{
    size_t left = DECODE_MEMORY_MAX;
    ProtobufCAllocator allocator = {
        .alloc = budget_alloc, .free = budget_free, .allocator_data = &left};

    if (len > TTRPC_BODY_MAX)
        return err_set(err, -EBADMSG, "a body of %zu bytes exceeds the limit of %u", len,
                       TTRPC_BODY_MAX);
    /* protobuf-c wants a pointer even for no bytes. */
    *ret = protobuf_c_message_unpack(type, &allocator, len, body ? body : (const uint8_t *)"");
    if (!*ret)
        return err_set(err, -EBADMSG, "the body of %zu bytes is not a %s message", len, type->name);
    return 0;
}

int ttrpc_request_decode(const uint8_t *body, size_t len, Ttrpc__Request **ret, struct err *err)
{
    ProtobufCMessage *message;
    int r = ttrpc_message_decode(&ttrpc__request__descriptor, body, len, &message, err);

    if (r < 0)
        return r;
    *ret = (Ttrpc__Request *)message;
    return 0;
}

int ttrpc_response_decode(const uint8_t *body, size_t len, Ttrpc__Response **ret, struct err *err)
{
    ProtobufCMessage *message;
    int r = ttrpc_message_decode(&ttrpc__response__descriptor, body, len, &message, err);

    if (r < 0)
        return r;
    *ret = (Ttrpc__Response *)message;
    return 0;
}

static int add_frame(struct buf *out, uint32_t stream, uint8_t type,
                     const ProtobufCMessage *message, struct err *err)
{
    size_t len = protobuf_c_message_get_packed_size(message);
    struct ttrpc_header header = {.stream = stream, .type = type};
    int r;

    if (len > TTRPC_BODY_MAX)
        return err_set(err, -EMSGSIZE, "a message of %zu bytes exceeds ttrpc's limit of %u", len,
                       TTRPC_BODY_MAX);
    header.length = (uint32_t)len;
    r = buf_reserve(out, TTRPC_HEADER_SIZE + len);
    if (r < 0)
        return err_set(err, r, "no room for a frame of %zu bytes", len);
    ttrpc_header_encode(&header, (uint8_t *)out->data + out->len);
    protobuf_c_message_pack(message, (uint8_t *)out->data + out->len + TTRPC_HEADER_SIZE);
    buf_grown(out, TTRPC_HEADER_SIZE + len);
    return 0;
}

/* protobuf-c's structs are not const, and packing does not write through them. */
static ProtobufCBinaryData borrowed(const void *payload, size_t len)
{
    return (ProtobufCBinaryData){.len = len, .data = (uint8_t *)(uintptr_t)payload};
}

int ttrpc_add_request(struct buf *out, uint32_t stream, const char *service, const char *method,
                      const void *payload, size_t len, int64_t timeout_ns, struct err *err)
{
    Ttrpc__Request request = TTRPC__REQUEST__INIT;

    request.service = (char *)(uintptr_t)service;
    request.method = (char *)(uintptr_t)method;
    request.payload = borrowed(payload, len);
    request.timeout_nano = timeout_ns;
    return add_frame(out, stream, TTRPC_REQUEST, &request.base, err);
}

int ttrpc_add_response(struct buf *out, uint32_t stream, const void *payload, size_t len,
                       struct err *err)
{
    Ttrpc__Response response = TTRPC__RESPONSE__INIT;

    response.payload = borrowed(payload, len);
    return add_frame(out, stream, TTRPC_RESPONSE, &response.base, err);
}

/* Length of the valid UTF-8 sequence at s (n bytes there), 0 when there is none: no overlong forms,
 * no surrogates, nothing above U+10FFFF (RFC 3629). */
static size_t utf8_sequence(const uint8_t *s, size_t n)
{
    uint8_t low = 0x80, high = 0xbf;
    size_t len;

    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n < len)
        return 0;
    if (s[0] == 0xe0)
        low = 0xa0;
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xed)
        high = 0x9f;
    else if (s[0] == 0xf4)
        high = 0x8f;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return len;
}

/* A copy of message, cut and with every byte that is not UTF-8 as '?'. Owned. */
static char *clean_text(const char *message)
{
    size_t len = MIN(strlen(message), (size_t)ERROR_TEXT_MAX), n = 0;
    char *clean = xcalloc(1, len + 1);

    for (size_t i = 0; i < len;) {
        size_t step = utf8_sequence((const uint8_t *)message + i, len - i);

        if (step == 0 && i + 4 > len && len == ERROR_TEXT_MAX)
            break; /* the cut went through a character */
        if (step == 0) {
            clean[n++] = '?';
            i++;
            continue;
        }
        memcpy(clean + n, message + i, step);
        n += step;
        i += step;
    }
    return clean;
}

void ttrpc_add_error(struct buf *out, uint32_t stream, enum ttrpc_code code, const char *message)
{
    _cleanup_free_ char *text = clean_text(message ? message : "");
    Ttrpc__Status status = TTRPC__STATUS__INIT;
    Ttrpc__Response response = TTRPC__RESPONSE__INIT;

    status.code = (int32_t)code;
    status.message = text;
    response.status = &status;
    /* A failed buffer stays failed (buf.h) and its owner looks. */
    (void)add_frame(out, stream, TTRPC_RESPONSE, &response.base, NULL);
}

enum ttrpc_code ttrpc_code_from_errno(int negative_errno)
{
    switch (-negative_errno) {
    case 0:
        return TTRPC_OK;
    case ECANCELED:
        return TTRPC_CANCELLED;
    case EINVAL:
    case EBADMSG:
    case ERANGE:
    case ENAMETOOLONG:
    case EILSEQ:
        return TTRPC_INVALID_ARGUMENT;
    case ETIMEDOUT:
    case ETIME:
        return TTRPC_DEADLINE_EXCEEDED;
    case ENOENT:
        return TTRPC_NOT_FOUND;
    case EEXIST:
        return TTRPC_ALREADY_EXISTS;
    case EPERM:
    case EACCES:
        return TTRPC_PERMISSION_DENIED;
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case EMSGSIZE:
    case E2BIG:
    case EFBIG:
    case EUSERS:
    case ENOBUFS:
        return TTRPC_RESOURCE_EXHAUSTED;
    case EBUSY:
    case EALREADY:
    case EINPROGRESS:
    case ESTALE:
        return TTRPC_FAILED_PRECONDITION;
    case ENOSYS:
    case EOPNOTSUPP:
        return TTRPC_UNIMPLEMENTED;
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENOTCONN:
    case EPIPE:
    case ESHUTDOWN:
    case EAGAIN:
        return TTRPC_UNAVAILABLE;
    default:
        return TTRPC_INTERNAL;
    }
}

const char *ttrpc_code_name(enum ttrpc_code code)
{
    static const char *const names[] = {
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    };

    return (size_t)code < ARRAY_SIZE(names) ? names[code] : "unknown code";
}
