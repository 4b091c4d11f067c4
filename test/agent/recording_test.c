/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our messages against a real shim's and a real kata-agent's (corpus, kata-agent-socket.jsonl):
 * every frame decodes with no field left over at any depth, and encodes again to the very same
 * bytes. A field number that we had wrong, or left out, fails here.
 */
#include "../unit/check.h"

#include <errno.h>
#include <fcntl.h>

#include "agent.pb-c.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "health.pb-c.h"
#include "wire/ttrpc.h"

#define FILE_MAX (16U << 20)
#define STREAMS_MAX 4096

#define AGENT(method, request, reply)                                                              \
    {                                                                                              \
        "grpc.AgentService", method, &grpc__##request##__descriptor, &grpc__##reply##__descriptor  \
    }
static const struct method {
    const char *service, *name;
    const ProtobufCMessageDescriptor *request, *reply;
} methods[] = {
    {"grpc.Health", "Check", &grpc__check_request__descriptor,
     &grpc__health_check_response__descriptor},
    AGENT("CreateSandbox", create_sandbox_request, empty),
    AGENT("DestroySandbox", destroy_sandbox_request, empty),
    AGENT("GetGuestDetails", guest_details_request, guest_details_response),
    AGENT("CreateContainer", create_container_request, empty),
    AGENT("StartContainer", start_container_request, empty),
    AGENT("RemoveContainer", remove_container_request, empty),
    AGENT("RemoveStaleVirtiofsShareMounts", remove_stale_virtiofs_share_mounts_request, empty),
    AGENT("ExecProcess", exec_process_request, empty),
    AGENT("SignalProcess", signal_process_request, empty),
    AGENT("WaitProcess", wait_process_request, wait_process_response),
    AGENT("ReadStdout", read_stream_request, read_stream_response),
    AGENT("ReadStderr", read_stream_request, read_stream_response),
    AGENT("WriteStdin", write_stream_request, write_stream_response),
    AGENT("CloseStdin", close_stdin_request, empty),
    AGENT("TtyWinResize", tty_win_resize_request, empty),
    AGENT("GetOOMEvent", get_oomevent_request, oomevent),
    AGENT("StatsContainer", stats_container_request, stats_container_response),
    AGENT("CopyFile", copy_file_request, empty),
};

struct pending { /* what each stream of each connection waits for */
    int64_t conn;
    uint32_t stream;
    const struct method *method;
};

static struct {
    struct pending pending[STREAMS_MAX];
    size_t n, requests, replies, errors;
} seen;

static void check_known(const ProtobufCMessage *m);

static void check_member(const ProtobufCFieldDescriptor *f, const void *member, size_t n)
{
    const ProtobufCMessage *const *list = f->label == PROTOBUF_C_LABEL_REPEATED
                                              ? *(const ProtobufCMessage *const *const *)member
                                              : (const ProtobufCMessage *const *)member;

    for (size_t i = 0; i < n; i++)
        check_known(list[i]);
}

static void check_known(const ProtobufCMessage *m)
{
    if (!m)
        return;
    if (m->n_unknown_fields > 0)
        fail_msg("%s: field %u is not known to us", m->descriptor->name, m->unknown_fields[0].tag);
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        const char *base = (const char *)m;
        size_t n = 1;

        if (f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        if (f->label == PROTOBUF_C_LABEL_REPEATED)
            n = *(const size_t *)(const void *)(base + f->quantifier_offset);
        check_member(f, base + f->offset, n);
    }
}

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_len)
{
    uint8_t *bytes = xcalloc(1, protobuf_c_message_get_packed_size(m) + 1);

    *ret_len = protobuf_c_message_pack(m, bytes);
    return bytes;
}

/* Rust writes a map's zero values, protobuf-c leaves them out: there the meaning must stay. */
static void check_payload(const ProtobufCMessageDescriptor *type, const ProtobufCBinaryData *data)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, data->len, data->data);
    size_t len, len2;

    if (!m)
        fail_msg("%s: %zu bytes do not decode", type->name, data->len);
    check_known(m);
    _cleanup_free_ uint8_t *bytes = pack(m, &len);
    protobuf_c_message_free_unpacked(m, NULL);
    if (len == data->len && (len == 0 || memcmp(bytes, data->data, len) == 0))
        return;
    if (type != &grpc__stats_container_response__descriptor)
        fail_msg("%s: %zu bytes became %zu others", type->name, data->len, len);
    m = protobuf_c_message_unpack(type, NULL, len, bytes);
    assert_non_null(m);
    _cleanup_free_ uint8_t *again = pack(m, &len2);
    protobuf_c_message_free_unpacked(m, NULL);
    assert_int_equal(len, len2);
    assert_memory_equal(bytes, again, len);
}

static void take_request(int64_t conn, uint32_t stream, const uint8_t *body, size_t len)
{
    struct err err = ERR_INIT;
    Ttrpc__Request *q = NULL;
    size_t i = 0;

    assert_int_equal(ttrpc_request_decode(body, len, &q, &err), 0);
    while (i < ARRAY_SIZE(methods) &&
           !(str_eq(methods[i].service, q->service) && str_eq(methods[i].name, q->method)))
        i++;
    if (i == ARRAY_SIZE(methods))
        fail_msg("%s/%s is not in our table", q->service, q->method);
    check_payload(methods[i].request, &q->payload);
    assert_true(seen.n < STREAMS_MAX);
    seen.pending[seen.n++] = (struct pending){conn, stream, &methods[i]};
    seen.requests++;
    ttrpc__request__free_unpacked(q, NULL);
}

static void take_response(int64_t conn, uint32_t stream, const uint8_t *body, size_t len)
{
    struct err err = ERR_INIT;
    Ttrpc__Response *a = NULL;
    size_t i = 0;

    assert_int_equal(ttrpc_response_decode(body, len, &a, &err), 0);
    while (i < seen.n && (seen.pending[i].conn != conn || seen.pending[i].stream != stream))
        i++;
    assert_true(i < seen.n);
    if (a->status && a->status->code != 0) {
        seen.errors++;
        assert_int_equal(a->payload.len, 0);
    } else {
        check_payload(seen.pending[i].method->reply, &a->payload);
    }
    seen.replies++;
    ttrpc__response__free_unpacked(a, NULL);
}

static void take_line(struct json_object *line)
{
    const char *hex;
    int64_t conn;
    struct ttrpc_header h;

    assert_int_equal(json_get_string(line, "frame", &hex, NULL), 0);
    assert_int_equal(json_get_i64(line, "conn", &conn, NULL), 0);
    size_t len = strlen(hex) / 2;
    if (len == 0) /* this direction ended */
        return;
    _cleanup_free_ uint8_t *frame = xcalloc(1, len + 1);
    assert_int_equal(str_unhex(hex, frame, len), 0);
    assert_true(len >= TTRPC_HEADER_SIZE);
    ttrpc_header_decode(frame, &h);
    assert_int_equal(h.length, len - TTRPC_HEADER_SIZE);
    if (h.type == TTRPC_REQUEST)
        take_request(conn, h.stream, frame + TTRPC_HEADER_SIZE, h.length);
    else
        take_response(conn, h.stream, frame + TTRPC_HEADER_SIZE, h.length);
}

static void test_recording(void **state)
{
    const char *corpus = getenv("PEERPOD_CORPUS"), *strict = getenv("STRICT");
    struct err err = ERR_INIT;
    size_t len;

    (void)state;
    if (!corpus)
        corpus = PEERPOD_CORPUS_DEFAULT;
    _cleanup_free_ char *path = str_asprintf("%s/recordings/kata-agent-socket.jsonl", corpus);
    _cleanup_free_ char *all = NULL;
    int r = fs_read(AT_FDCWD, path, FILE_MAX, &all, &len, &err);
    if (r == -ENOENT && !str_eq(strict, "1")) {
        print_message("skipped: %s\n", err_text(&err));
        exit(77);
    }
    if (r < 0)
        fail_msg("%s", err_text(&err));
    for (char *line = all, *end; (end = strchr(line, '\n')); line = end + 1) {
        struct json_object *o = NULL;

        assert_int_equal(json_parse(line, (size_t)(end - line), &o, &err), 0);
        take_line(o);
        json_put(o);
    }
    print_message("%zu requests, %zu replies, %zu of them errors\n", seen.requests, seen.replies,
                  seen.errors);
    assert_true(seen.requests > 50);
    assert_true(seen.replies > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recording)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
