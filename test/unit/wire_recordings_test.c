/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every frame that a real kata shim, a real kata-agent and a stub of the hypervisor service
 * exchanged for one pod, decoded, encoded and decoded again: frame, ttrpc message, payload.
 *
 * "The same meaning" is judged by a dump of all fields through the descriptors, lists in order; an
 * unknown field anywhere fails, so the protos hold all that travels. A copy need not have the same
 * bytes: map entries keep their order, but an encoder may write an empty field that ours leaves
 * out. How many do is printed.
 */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>

#include "agent.pb-c.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "health.pb-c.h"
#include "hypervisor.pb-c.h"
#include "wire/ttrpc.h"

#define FILE_MAX (16U << 20)
#define CALLS_MAX 1024

struct method {
    const char *name;
    const ProtobufCMessageDescriptor *request, *reply;
};

#define AGENT(name, request, reply)                                                                \
    {                                                                                              \
        "grpc.AgentService/" name, &grpc__##request##__descriptor, &grpc__##reply##__descriptor    \
    }

static const struct method methods[] = {
    {"hypervisor.Hypervisor/CreateVM", &hypervisor__create_vmrequest__descriptor,
     &hypervisor__create_vmresponse__descriptor},
    {"hypervisor.Hypervisor/StartVM", &hypervisor__start_vmrequest__descriptor,
     &hypervisor__start_vmresponse__descriptor},
    {"hypervisor.Hypervisor/StopVM", &hypervisor__stop_vmrequest__descriptor,
     &hypervisor__stop_vmresponse__descriptor},
    {"grpc.Health/Check", &grpc__check_request__descriptor,
     &grpc__health_check_response__descriptor},
    AGENT("CloseStdin", close_stdin_request, empty),
    AGENT("CopyFile", copy_file_request, empty),
    AGENT("CreateContainer", create_container_request, empty),
    AGENT("CreateSandbox", create_sandbox_request, empty),
    AGENT("DestroySandbox", destroy_sandbox_request, empty),
    AGENT("ExecProcess", exec_process_request, empty),
    AGENT("GetGuestDetails", guest_details_request, guest_details_response),
    AGENT("GetOOMEvent", get_oomevent_request, oomevent),
    AGENT("ReadStderr", read_stream_request, read_stream_response),
    AGENT("ReadStdout", read_stream_request, read_stream_response),
    AGENT("RemoveContainer", remove_container_request, empty),
    AGENT("RemoveStaleVirtiofsShareMounts", remove_stale_virtiofs_share_mounts_request, empty),
    AGENT("SignalProcess", signal_process_request, empty),
    AGENT("StartContainer", start_container_request, empty),
    AGENT("StatsContainer", stats_container_request, stats_container_response),
    AGENT("WaitProcess", wait_process_request, wait_process_response),
    AGENT("WriteStdin", write_stream_request, write_stream_response),
};

struct tally {
    unsigned frames, same_bytes, ends, payloads, same_payloads, errors;
    struct {
        int64_t connection;
        uint32_t stream;
        const struct method *method;
    } calls[CALLS_MAX];
    size_t call_count;
};

/* ---- the dump ---- */

static void dump_message(const ProtobufCMessage *m, struct buf *out);

static void dump_value(const ProtobufCFieldDescriptor *f, const void *value, struct buf *out)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING:
        buf_addf(out, "\"%s\"", *(char *const *)value);
        break;
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *b = value;
        _cleanup_free_ char *hex = xcalloc(1, 2 * b->len + 1);
        str_hex(b->data, b->len, hex);
        buf_adds(out, hex);
        break;
    }
    case PROTOBUF_C_TYPE_MESSAGE:
        dump_message(*(ProtobufCMessage *const *)value, out);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        buf_addf(out, "%016llx", (unsigned long long)*(const uint64_t *)value);
        break;
    default:
        buf_addf(out, "%08x", *(const uint32_t *)value);
    }
}

static size_t value_size(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        return 4;
    default:
        return 8;
    }
}

static void dump_message(const ProtobufCMessage *m, struct buf *out)
{
    if (!m) {
        buf_adds(out, "absent");
        return;
    }
    if (m->n_unknown_fields > 0)
        fail_msg("%s has an unknown field %u", m->descriptor->name, m->unknown_fields[0].tag);
    buf_addf(out, "%s{", m->descriptor->name);
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        const char *at = (const char *)m + f->offset;
        buf_addf(out, "%u=", f->id);
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t n = *(const size_t *)(const void *)((const char *)m + f->quantifier_offset);
            const char *items = *(char *const *)(const void *)at;
            for (size_t k = 0; k < n; k++, buf_adds(out, ","))
                dump_value(f, items + k * value_size(f), out);
        } else {
            dump_value(f, at, out);
        }
        buf_adds(out, ";");
    }
    buf_adds(out, "}");
}

/* ---- the round ---- */

/* Decodes, encodes, decodes, compares; true when the bytes are the same as well. */
static bool round_trip(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t len)
{
    _cleanup_(buf_done) struct buf one = BUF_INIT(0), two = BUF_INIT(0);
    ProtobufCMessage *first, *second;
    struct err err = ERR_INIT;
    uint8_t *packed;
    size_t size;
    bool same;
    if (ttrpc_message_decode(type, data, len, &first, &err) < 0)
        fail_msg("%s: %s", type->name, err_text(&err));
    size = protobuf_c_message_get_packed_size(first);
    packed = xcalloc(1, size + 1);
    assert_int_equal(protobuf_c_message_pack(first, packed), size);
    assert_int_equal(ttrpc_message_decode(type, packed, size, &second, &err), 0);
    dump_message(first, &one);
    dump_message(second, &two);
    assert_false(one.failed);
    assert_string_equal(one.data, two.data);
    same = size == len && (len == 0 || memcmp(data, packed, len) == 0);
    protobuf_c_message_free_unpacked(first, NULL);
    protobuf_c_message_free_unpacked(second, NULL);
    free(packed);
    return same;
}

static const struct method *find_method(const Ttrpc__Request *q)
{
    _cleanup_free_ char *name = str_asprintf("%s/%s", q->service, q->method);
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if (str_eq(methods[i].name, name))
            return &methods[i];
    fail_msg("no message types are known for %s", name);
    return NULL;
}

static void check_payload(struct tally *t, const ProtobufCMessageDescriptor *type,
                          const ProtobufCBinaryData *payload)
{
    t->payloads++;
    t->same_payloads += round_trip(type, payload->data, payload->len);
}

static void check_request(struct tally *t, int64_t connection, uint32_t stream, const uint8_t *body,
                          size_t len)
{
    struct err err = ERR_INIT;
    Ttrpc__Request *q;
    const struct method *m;
    assert_int_equal(ttrpc_request_decode(body, len, &q, &err), 0);
    m = find_method(q);
    check_payload(t, m->request, &q->payload);
    assert_true(t->call_count < CALLS_MAX);
    t->calls[t->call_count].connection = connection;
    t->calls[t->call_count].stream = stream;
    t->calls[t->call_count++].method = m;
    ttrpc__request__free_unpacked(q, NULL);
}

static void check_response(struct tally *t, int64_t connection, uint32_t stream,
                           const uint8_t *body, size_t len)
{
    struct err err = ERR_INIT;
    Ttrpc__Response *r;
    size_t i = 0;
    assert_int_equal(ttrpc_response_decode(body, len, &r, &err), 0);
    while (i < t->call_count &&
           (t->calls[i].connection != connection || t->calls[i].stream != stream))
        i++;
    assert_true(i < t->call_count); /* an answer belongs to a request */
    if (r->status && r->status->code != 0) {
        t->errors++;
        assert_true(strlen(r->status->message) > 0);
    } else {
        check_payload(t, t->calls[i].method->reply, &r->payload);
    }
    ttrpc__response__free_unpacked(r, NULL);
}

static void check_frame(struct tally *t, int64_t connection, const uint8_t *frame, size_t len)
{
    const uint8_t *body = frame + TTRPC_HEADER_SIZE;
    uint8_t again[TTRPC_HEADER_SIZE];
    struct ttrpc_header h;
    bool request;
    assert_true(len >= TTRPC_HEADER_SIZE);
    ttrpc_header_decode(frame, &h);
    ttrpc_header_encode(&h, again);
    assert_memory_equal(frame, again, TTRPC_HEADER_SIZE);
    assert_int_equal(h.length, len - TTRPC_HEADER_SIZE);
    assert_true(h.type == TTRPC_REQUEST || h.type == TTRPC_RESPONSE);
    request = h.type == TTRPC_REQUEST;
    t->frames++;
    t->same_bytes += round_trip(
        request ? &ttrpc__request__descriptor : &ttrpc__response__descriptor, body, h.length);
    (request ? check_request : check_response)(t, connection, h.stream, body, h.length);
}

static void check_line(struct tally *t, const char *line, size_t len)
{
    struct json_object *o = NULL;
    struct err err = ERR_INIT;
    const char *hex;
    int64_t connection;
    assert_int_equal(json_parse(line, len, &o, &err), 0);
    assert_int_equal(json_get_string(o, "frame", &hex, &err), 0);
    assert_int_equal(json_get_i64(o, "conn", &connection, &err), 0);
    if (hex[0] == '\0') {
        t->ends++;
    } else {
        size_t size = strlen(hex) / 2;
        _cleanup_free_ uint8_t *frame = xcalloc(1, size);
        assert_int_equal(str_unhex(hex, frame, size), 0);
        check_frame(t, connection, frame, size);
    }
    json_put(o);
}

/* skip() where the corpus is absent, unless STRICT=1. */
static char *read_corpus(const char *name, size_t *ret_len)
{
    const char *dir = getenv("PEERPOD_CORPUS");
    _cleanup_free_ char *path =
        str_asprintf("%s/recordings/%s", dir ? dir : PP_CORPUS_DEFAULT, name);
    struct err err = ERR_INIT;
    char *text = NULL;
    int r = fs_read(AT_FDCWD, path, FILE_MAX, &text, ret_len, &err);
    if (r == -ENOENT && !str_eq(getenv("STRICT"), "1")) {
        print_message("skipped: no %s (PEERPOD_CORPUS)\n", path);
        freep(&path); /* skip() jumps over the cleanup */
        skip();
    }
    if (r < 0)
        fail_msg("%s", err_text(&err));
    return text;
}

static struct tally check_recording(const char *name)
{
    struct tally t = {0};
    size_t len;
    char *text = read_corpus(name, &len);
    for (char *line = text, *end; line < text + len; line = end + 1) {
        end = strchrnul(line, '\n');
        if (end > line)
            check_line(&t, line, (size_t)(end - line));
    }
    free(text);
    print_message("%s: %u frames, %u encoded to the same bytes; %u payloads, %u the same; "
                  "%u errors, %u ends\n",
                  name, t.frames, t.same_bytes, t.payloads, t.same_payloads, t.errors, t.ends);
    return t;
}

static void the_hypervisor_recording(void **state)
{
    struct tally t = check_recording("kata-hypervisor-socket.jsonl");
    assert_int_equal(t.frames, 12);
    assert_int_equal(t.payloads, 12);
}

static void the_agent_recording(void **state)
{
    struct tally t = check_recording("kata-agent-socket.jsonl");
    assert_int_equal(t.frames, 165);
    assert_int_equal(t.payloads + t.errors, 165);
    assert_true(t.errors > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_hypervisor_recording),
        cmocka_unit_test(the_agent_recording),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
