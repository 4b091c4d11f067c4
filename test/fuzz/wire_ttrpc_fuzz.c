/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames: the walk in pieces and the header's decoder see the same. Bodies of ttrpc messages and of
 * the hypervisor and control services: the first byte chooses the type; what is decoded must come
 * back the same from its encoding, as must every error text.
 */
#include <stdint.h>

#include "control.pb-c.h"
#include "hypervisor.pb-c.h"
#include "wire/ttrpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ProtobufCMessageDescriptor *const types[] = {&ttrpc__request__descriptor,
                                                          &ttrpc__response__descriptor,
                                                          &hypervisor__create_vmrequest__descriptor,
                                                          &hypervisor__start_vmrequest__descriptor,
                                                          &peerpod__inspect_request__descriptor,
                                                          &peerpod__status_response__descriptor,
                                                          &peerpod__orphans_response__descriptor};

static bool has_unknown(const ProtobufCMessage *m);

static bool field_has_unknown(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    const void *at = (const char *)m + f->offset;
    const size_t *count = (const void *)((const char *)m + f->quantifier_offset);
    ProtobufCMessage *const *one = at, *const *const *list = at;

    if (f->type != PROTOBUF_C_TYPE_MESSAGE)
        return false;
    if (f->label != PROTOBUF_C_LABEL_REPEATED)
        return *one && has_unknown(*one);
    for (size_t i = 0; i < *count; i++)
        if (has_unknown((*list)[i]))
            return true;
    return false;
}

static bool has_unknown(const ProtobufCMessage *m)
{
    for (unsigned i = 0; i < m->descriptor->n_fields; i++)
        if (field_has_unknown(m, &m->descriptor->fields[i]))
            return true;
    return m->n_unknown_fields > 0;
}

static void check_message(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t size)
{
    ProtobufCMessage *first, *second;
    uint8_t *one, *two;
    size_t len;

    if (ttrpc_message_decode(type, data, size, &first, NULL) < 0)
        return;
    len = protobuf_c_message_get_packed_size(first);
    one = xcalloc(1, len + 1);
    two = xcalloc(1, len + 1);
    if (protobuf_c_message_pack(first, one) != len)
        abort();
    /* An encoding may be longer than its source (a short negative int32) and then beyond a limit.
     */
    if (ttrpc_message_decode(type, one, len, &second, NULL) == 0) {
        if (protobuf_c_message_get_packed_size(second) != len ||
            protobuf_c_message_pack(second, two) != len || memcmp(one, two, len) != 0)
            abort();
        protobuf_c_message_free_unpacked(second, NULL);
    } else if (len <= size && !has_unknown(first)) {
        abort();
    }
    protobuf_c_message_free_unpacked(first, NULL);
    free(one);
    free(two);
}

static void check_error_text(const uint8_t *data, size_t size)
{
    struct buf b = BUF_INIT(0), again = BUF_INIT(0);
    char *text = xcalloc(1, size + 1);
    Ttrpc__Response *r;

    memcpy(text, data, size);
    ttrpc_add_error(&b, 1, TTRPC_INTERNAL, text);
    if (ttrpc_response_decode((const uint8_t *)b.data + TTRPC_HEADER_SIZE,
                              b.len - TTRPC_HEADER_SIZE, &r, NULL) < 0)
        abort();
    ttrpc_add_error(&again, 1, TTRPC_INTERNAL, r->status->message); /* clean text stays */
    if (again.len != b.len || memcmp(again.data, b.data, b.len) != 0)
        abort();
    ttrpc__response__free_unpacked(r, NULL);
    free(text);
    buf_done(&b);
    buf_done(&again);
}

/* A request that was decoded, encoded by our own client's side, is decoded as the same. */
static void check_request(const uint8_t *data, size_t size)
{
    struct buf b = BUF_INIT(0);
    Ttrpc__Request *r, *again;
    struct err err = ERR_INIT;

    if (ttrpc_request_decode(data, size, &r, &err) < 0) {
        if (err.code >= 0)
            abort();
        return;
    }
    if (ttrpc_add_request(&b, 1, r->service, r->method, r->payload.data, r->payload.len,
                          r->timeout_nano, NULL) == 0) {
        if (ttrpc_request_decode((const uint8_t *)b.data + TTRPC_HEADER_SIZE,
                                 b.len - TTRPC_HEADER_SIZE, &again, NULL) < 0 ||
            strcmp(r->service, again->service) != 0 || strcmp(r->method, again->method) != 0 ||
            r->payload.len != again->payload.len)
            abort();
        ttrpc__request__free_unpacked(again, NULL);
    }
    ttrpc__request__free_unpacked(r, NULL);
    buf_done(&b);
}

/* data[0]: the size of a piece. */
static void check_frames(const uint8_t *data, size_t size)
{
    uint64_t left = 0, at = 0;
    uint32_t have = 0;
    uint8_t header[TTRPC_HEADER_SIZE];
    size_t piece = (size_t)data[0] + 1, pos = 1;
    struct ttrpc_header h;

    while (pos < size) { /* at: where the frame begins, by the decoder */
        if (at == 0)
            at = pos;
        pos += ttrpc_walk(&left, &have, header, data + pos, MIN(piece, size - pos));
        if (pos > size)
            abort();
        if (pos - at < TTRPC_HEADER_SIZE)
            continue;
        ttrpc_header_decode(data + at, &h);
        uint64_t end = at + TTRPC_HEADER_SIZE + h.length;
        if (pos > end || (have == 0 && left != end - pos) || (left == 0 && have == 0 && pos != end))
            abort();
        at = pos == end ? 0 : at;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    check_frames(data, size);
    check_request(data + 1, size - 1);
    check_message(types[data[0] % ARRAY_SIZE(types)], data + 1, size - 1);
    check_error_text(data + 1, size - 1);
    return 0;
}
