/* SPDX-License-Identifier: Apache-2.0 */
/* Splicing: by hand-made messages of every odd shape, at the size limit, and on the recording of a
 * real node. What a receiver sees is judged by wire_view.h, an independent reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <json-c/json.h>

#include "base/str.h"
#include "unit/wire_view.h"
#include "wire/splice.h"

#define NETNS "/run/netns/podns"
static const uint8_t added[] = "\x32\x1b\x0a\x07network\x12\x10" NETNS;
static const struct view_bytes namespace_bytes = {added, sizeof(added) - 1};
static const uint32_t namespaces_path[] = {3, 6, 8};
static const struct splice_rules rules = {.netns_path = NETNS, .clear_dns = true};

/* -- a little encoder -- */

static void put_varint(struct buf *b, uint64_t v)
{
    do {
        uint8_t byte = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
        buf_add(b, &byte, 1);
        v >>= 7;
    } while (v > 0);
}

static void put_len(struct buf *b, uint32_t number, const void *data, size_t len)
{
    put_varint(b, (uint64_t)number << 3 | 2);
    put_varint(b, len);
    buf_add(b, data, len);
}

static void put_text(struct buf *b, uint32_t number, const char *text)
{
    put_len(b, number, text, strlen(text));
}

static void put_buf(struct buf *b, uint32_t number, struct buf *content)
{
    put_len(b, number, content->data ? content->data : "", content->len);
    buf_done(content);
}

static void put_frame(struct buf *out, const struct buf *body)
{
    struct ttrpc_header h = {.length = (uint32_t)body->len, .stream = 7, .type = TTRPC_REQUEST};
    uint8_t bytes[TTRPC_HEADER_SIZE];
    ttrpc_header_encode(&h, bytes);
    buf_add(out, bytes, sizeof(bytes));
    buf_add(out, body->data ? body->data : "", body->len);
}

/* A request of the shim's, with timeout and metadata behind the payload as the Go client sends. */
static void put_request(struct buf *out, const char *method, const struct buf *payload)
{
    struct buf body = {0}, pair = {0};
    put_text(&body, 1, "grpc.AgentService");
    put_text(&body, 2, method);
    put_len(&body, 3, payload->data ? payload->data : "", payload->len);
    put_varint(&body, 4 << 3);
    put_varint(&body, 60000000000);
    put_text(&pair, 1, "containerd-namespace-ttrpc");
    put_text(&pair, 2, "k8s.io");
    put_buf(&body, 5, &pair);
    put_frame(out, &body);
    buf_done(&body);
}

static struct view_bytes body_of(const struct buf *frame)
{
    assert_true(frame->len >= TTRPC_HEADER_SIZE);
    return (struct view_bytes){(uint8_t *)frame->data + TTRPC_HEADER_SIZE,
                               frame->len - TTRPC_HEADER_SIZE};
}

/* The header of an edited frame differs in its length alone. */
static void check_header(const struct buf *in, const struct buf *out)
{
    struct ttrpc_header h;
    ttrpc_header_decode((uint8_t *)out->data, &h);
    assert_int_equal(h.length, out->len - TTRPC_HEADER_SIZE);
    assert_memory_equal(in->data + 4, out->data + 4, TTRPC_HEADER_SIZE - 4);
}

static void splice_ok(const struct buf *in, struct buf *out)
{
    struct err err = ERR_INIT;
    if (splice_frame((uint8_t *)in->data, in->len, &rules, out, &err) < 0)
        fail_msg("splice_frame: %s", err_text(&err));
}

/* Consumes the frame. */
static void check_appended(struct buf *in)
{
    struct buf out = BUF_INIT(8U << 20);
    splice_ok(in, &out);
    check_header(in, &out);
    assert_true(view_appended(body_of(in), body_of(&out), namespaces_path, 3, namespace_bytes));
    buf_done(in);
    buf_done(&out);
}

/* Consumes the payload. */
static void check_container(struct buf *payload)
{
    struct buf in = BUF_INIT(8U << 20);
    put_request(&in, "CreateContainer", payload);
    buf_done(payload);
    assert_int_equal(splice_peek((uint8_t *)in.data, in.len), SPLICE_HOLD);
    check_appended(&in);
}

static void test_namespace_is_appended_behind_the_others(void **state)
{
    struct buf ns = {0}, linux_ = {0}, spec = {0}, payload = {0};
    put_text(&ns, 1, "ipc");
    put_buf(&linux_, 6, &ns);
    put_text(&linux_, 5, "/kubepods/x");
    put_buf(&spec, 8, &linux_);
    put_text(&payload, 1, "c1");
    put_buf(&payload, 6, &spec);
    check_container(&payload);
}

static void test_absent_levels_are_made(void **state)
{
    struct buf spec = {0}, payload = {0}, linux_ = {0};
    put_text(&payload, 1, "no spec");
    check_container(&payload);

    payload = (struct buf){0};
    put_text(&spec, 1, "1.0.2");
    put_buf(&payload, 6, &spec);
    check_container(&payload);

    payload = spec = (struct buf){0};
    put_buf(&spec, 8, &linux_); /* present and empty */
    put_buf(&payload, 6, &spec);
    check_container(&payload);

    struct buf body = {0}, in = {0};
    put_text(&body, 1, "grpc.AgentService");
    put_text(&body, 2, "CreateContainer"); /* no payload at all */
    put_frame(&in, &body);
    buf_done(&body);
    check_appended(&in);
}

static void test_unknown_fields_stay(void **state)
{
    struct buf linux_ = {0}, spec = {0}, payload = {0};
    put_text(&linux_, 99, "unknown text");
    put_varint(&linux_, 100 << 3 | 5);
    buf_add(&linux_, "abcd", 4);
    put_text(&linux_, 6, "");
    put_varint(&linux_, 6 << 3); /* the number of namespaces with another wire type */
    put_varint(&linux_, 1);
    put_varint(&spec, 500 << 3 | 1);
    buf_add(&spec, "01234567", 8);
    put_buf(&spec, 8, &linux_);
    put_text(&spec, 9, "solaris");
    put_varint(&spec, 77 << 3 | 3); /* a group with a group inside */
    put_varint(&spec, 78 << 3 | 3);
    put_text(&spec, 8, "not Linux: inside a group");
    put_varint(&spec, 78 << 3 | 4);
    put_varint(&spec, 77 << 3 | 4);
    put_text(&payload, 4711, "before");
    put_buf(&payload, 6, &spec);
    put_text(&payload, 4712, "behind");
    check_container(&payload);
}

static void test_of_duplicates_the_last_is_edited(void **state)
{
    struct buf spec = {0}, payload = {0};
    put_text(&spec, 8, "");
    put_buf(&payload, 6, &spec);
    spec = (struct buf){0};
    put_text(&spec, 1, "the one that counts");
    put_text(&spec, 8, "");
    put_text(&spec, 8, "");
    put_buf(&payload, 6, &spec);
    put_varint(&payload, 6 << 3); /* another wire type behind: no OCI for anyone */
    put_varint(&payload, 5);
    check_container(&payload);
}

static void test_of_duplicate_payloads_the_last_is_edited(void **state)
{
    struct buf body = {0}, in = {0}, spec = {0}, payload = {0};
    put_text(&body, 1, "grpc.AgentService");
    put_text(&body, 2, "CreateContainer");
    put_text(&body, 3, "\xff\xff not even protobuf, but nobody reads it");
    put_text(&spec, 8, "");
    put_buf(&payload, 6, &spec);
    put_buf(&body, 3, &payload);
    put_text(&body, 9, "unknown");
    put_frame(&in, &body);
    buf_done(&body);
    check_appended(&in);
}

static void test_overlong_varints(void **state)
{
    struct buf body = {0}, in = {0};
    put_text(&body, 1, "grpc.AgentService");
    put_text(&body, 2, "CreateContainer");
    /* payload{OCI{Linux{}}}; tags and lengths longer than need be */
    static const uint8_t odd[] = "\x9a\x80\x00\x8a\x80\x80\x00"
                                 "\xb2\x00\x85\x80\x00"
                                 "\xc2\x00\x80\x80\x00";
    buf_add(&body, odd, sizeof(odd) - 1);
    put_frame(&in, &body);
    buf_done(&body);
    check_appended(&in);
}

static void test_method_by_the_last_occurrence(void **state)
{
    struct buf body = {0}, in = {0}, out = {0};
    put_text(&body, 2, "Check");
    put_text(&body, 1, "grpc.AgentService");
    put_text(&body, 2, "CreateContainer");
    put_frame(&in, &body);
    assert_int_equal(splice_peek((uint8_t *)in.data, in.len), SPLICE_HOLD);
    check_appended(&in);
    put_text(&body, 2, "Check");
    in = (struct buf){0};
    put_frame(&in, &body);
    splice_ok(&in, &out);
    assert_int_equal(out.len, in.len);
    assert_memory_equal(out.data, in.data, in.len);
    buf_done(&body);
    buf_done(&in);
    buf_done(&out);
}

static void check_sandbox(struct buf *payload)
{
    static const uint32_t payload_path = 3;
    struct buf in = {0}, out = {0};
    put_request(&in, "CreateSandbox", payload);
    buf_done(payload);
    assert_int_equal(splice_peek((uint8_t *)in.data, in.len), SPLICE_HOLD);
    splice_ok(&in, &out);
    check_header(&in, &out);
    struct view_level a, b;
    assert_true(view_read(body_of(&in), payload_path, &a));
    assert_true(view_read(body_of(&out), payload_path, &b));
    assert_true(view_level_same(&a, &b));
    assert_true(view_removed(a.content, b.content, 2));
    buf_done(&a.rest);
    buf_done(&b.rest);
    buf_done(&in);
    buf_done(&out);
}

static void test_dns_is_dropped(void **state)
{
    struct buf payload = {0};
    put_text(&payload, 1, "web-0");
    put_text(&payload, 2, "nameserver 10.96.0.10");
    put_text(&payload, 5, "sandbox");
    put_text(&payload, 2, "search example");
    put_text(&payload, 2, "");
    put_varint(&payload, 2 << 3); /* no string: unknown to everyone */
    put_varint(&payload, 3);
    put_text(&payload, 999, "unknown");
    check_sandbox(&payload);
    payload = (struct buf){0};
    put_text(&payload, 2, "dns alone");
    check_sandbox(&payload);
    payload = (struct buf){0};
    put_text(&payload, 1, "no dns");
    check_sandbox(&payload);
    payload = (struct buf){0};
    check_sandbox(&payload);
}

/* A CreateContainer frame whose body has exactly `body` bytes. */
static void put_big(struct buf *in, size_t body)
{
    for (size_t fill = body - 200;; fill++) {
        struct buf spec = BUF_INIT(8U << 20), payload = BUF_INIT(8U << 20);
        char *text = malloc(fill);
        assert_non_null(text);
        memset(text, 'x', fill);
        put_len(&spec, 7, text, fill);
        free(text);
        put_text(&spec, 8, "");
        put_buf(&payload, 6, &spec);
        put_request(in, "CreateContainer", &payload);
        buf_done(&payload);
        assert_true(in->len <= body + TTRPC_HEADER_SIZE);
        if (in->len == body + TTRPC_HEADER_SIZE)
            return;
        buf_consume(in, in->len);
    }
}

static void test_sizes(void **state)
{
    struct buf in = BUF_INIT(8U << 20), out = BUF_INIT(8U << 20);
    struct err err = ERR_INIT;
    put_big(&in, 3900U << 10);
    check_appended(&in);
    /* 29 more bytes, lengths keep their size */
    in = BUF_INIT(8U << 20);
    put_big(&in, TTRPC_BODY_MAX - 29);
    check_appended(&in);
    in = BUF_INIT(8U << 20);
    put_big(&in, TTRPC_BODY_MAX - 28);
    assert_int_equal(splice_frame((uint8_t *)in.data, in.len, &rules, &out, &err), -EMSGSIZE);
    assert_int_equal(out.len, 0);
    assert_non_null(strstr(err_text(&err), "4194276 bytes would have 4194305"));
    assert_non_null(strstr(err_text(&err), "4194304"));
    buf_done(&in);
    buf_done(&out);
}

/* Where the outer lengths' varints grow with the insertion: 127 -> 128, 16383 -> 16384. */
static void test_length_varints_grow(void **state)
{
    for (size_t fill = 0; fill < 300; fill++) {
        struct buf spec = {0}, payload = {0};
        char text[300] = {0};
        put_len(&spec, 8, "", 0);
        put_len(&spec, 7, text, fill);
        put_buf(&payload, 6, &spec);
        check_container(&payload);
    }
    for (size_t fill = 16300; fill < 16400; fill++) {
        struct buf spec = {0}, payload = {0};
        char *text = xcalloc(1, fill);
        put_len(&spec, 7, text, fill);
        free(text);
        put_buf(&payload, 6, &spec);
        check_container(&payload);
    }
}

static void check_refused(const char *method, const void *payload, size_t len)
{
    struct buf in = {0}, out = {0}, content = {0};
    struct err err = ERR_INIT;
    buf_add(&content, payload, len);
    put_request(&in, method, &content);
    assert_int_equal(splice_frame((uint8_t *)in.data, in.len, &rules, &out, &err), -EBADMSG);
    assert_int_equal(out.len, 0);
    assert_non_null(strstr(err_text(&err), method));
    buf_done(&content);
    buf_done(&in);
    buf_done(&out);
}

static void test_hostile_payloads(void **state)
{
    static const char *const bad[] = {
        "\x0a\x05"
        "abc",                      /* length beyond the end */
        "\x32\x03\x42\x02z",        /* Linux beyond OCI */
        "\x32\x04\x42\x02\x32\x7f", /* namespace beyond Linux */
        "\x32\x04\x42\x02\x0f\x01", /* wire type 7 */
        "\x0e\x01",                 /* wire type 6 */
        "\x0b\x08\x01",             /* group without end */
        "\x0b\x14",                 /* group ended by another number */
        "\x0c",                     /* end without start */
        "\x0d"
        "abc", /* short fixed32 */
        "\x09"
        "abcdefg",                                          /* short fixed64 */
        "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",     /* over 64 bits */
        "\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", /* over 10 bytes */
        "\x08\x80",                                         /* unfinished */
        "\xf8\xff\xff\xff\x1f\x01",                         /* tag over 32 bits */
        "\x32\x04\x2a\x02\x0a\x7f",                         /* broken mount */
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        check_refused("CreateContainer", bad[i], strlen(bad[i]));
    check_refused("CreateContainer", "\x02\x01z", 3); /* field number 0 */
    check_refused("CreateContainer", "\0", 1);
    check_refused("CreateSandbox", "\x12\x05z", 3);
    check_refused("CreateSandbox", "\x12\x01z\x0a\x05", 5);
    struct buf deep = {0};
    for (int i = 0; i < 33; i++)
        put_varint(&deep, 9 << 3 | 3);
    for (int i = 0; i < 33; i++)
        put_varint(&deep, 9 << 3 | 4);
    check_refused("CreateContainer", deep.data, deep.len);
    buf_consume(&deep, 1);
    deep.len--;
    check_container(&deep);
}

static void test_not_a_frame(void **state)
{
    struct buf in = {0}, out = {0}, none = {0};
    struct err err = ERR_INIT;
    put_request(&in, "CreateSandbox", &none);
    for (size_t len = 0; len < in.len; len++) {
        err_clear(&err);
        assert_int_equal(splice_frame((uint8_t *)in.data, len, &rules, &out, &err), -EBADMSG);
    }
    err_clear(&err);
    in.data[0] = 1; /* over TTRPC_BODY_MAX */
    assert_int_equal(splice_frame((uint8_t *)in.data, in.len, &rules, &out, &err), -EBADMSG);
    buf_done(&in);
    buf_done(&out);
}

static void test_peek_passes_everything_else(void **state)
{
    static const struct {
        const char *service, *method;
        enum splice_verdict verdict;
    } cases[] = {
        {"grpc.AgentService", "CreateContainer", SPLICE_HOLD},
        {"grpc.AgentService", "CreateSandbox", SPLICE_HOLD},
        {"grpc.AgentService", "CreateContainerX", SPLICE_PASS},
        {"grpc.AgentService", "CreateContaine", SPLICE_PASS},
        {"grpc.AgentService", "", SPLICE_PASS},
        {"grpc.Health", "CreateContainer", SPLICE_PASS},
        {"grpc.AgentService", "SomethingOfTheFuture", SPLICE_PASS},
        {"", "", SPLICE_PASS},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct buf body = {0}, in = {0};
        put_text(&body, 1, cases[i].service);
        put_text(&body, 2, cases[i].method);
        put_text(&body, 3, "payload");
        put_frame(&in, &body);
        assert_int_equal(splice_peek((uint8_t *)in.data, in.len), cases[i].verdict);
        /* fewer bytes: either no verdict yet or the same */
        for (size_t len = 0; len < in.len; len++) {
            enum splice_verdict v = splice_peek((uint8_t *)in.data, len);
            assert_true(v == SPLICE_MORE || v == cases[i].verdict);
        }
        buf_done(&body);
        buf_done(&in);
    }
}

static void test_peek_of_odd_frames(void **state)
{
    struct buf body = {0}, in = {0};
    put_frame(&in, &body); /* no body at all: not ours to judge, but held and copied */
    assert_int_equal(splice_peek((uint8_t *)in.data, in.len), SPLICE_HOLD);
    struct buf out = {0};
    splice_ok(&in, &out);
    assert_memory_equal(in.data, out.data, in.len);
    for (unsigned type = 0; type < 256; type++) {
        in.data[8] = (char)type;
        assert_int_equal(splice_peek((uint8_t *)in.data, TTRPC_HEADER_SIZE),
                         type == TTRPC_REQUEST ? SPLICE_HOLD : SPLICE_PASS);
    }
    in.data[8] = TTRPC_REQUEST;
    memcpy(in.data, "\0\x40\0\1", 4);
    assert_int_equal(splice_peek((uint8_t *)in.data, TTRPC_HEADER_SIZE), SPLICE_PASS);
    memcpy(in.data, "\0\x40\0\0", 4);
    assert_int_equal(splice_peek((uint8_t *)in.data, TTRPC_HEADER_SIZE), SPLICE_MORE);
    buf_done(&in);
    buf_done(&out);
    /* a service name that fills the peek: held, not waited for */
    char name[300];
    memset(name, 'n', sizeof(name));
    put_len(&body, 1, name, sizeof(name));
    in = (struct buf){0};
    put_frame(&in, &body);
    assert_int_equal(splice_peek((uint8_t *)in.data, SPLICE_PEEK_MAX), SPLICE_HOLD);
    buf_done(&body);
    buf_done(&in);
}

struct seen_mounts {
    char text[1000];
    size_t len;
};

static void on_mount(void *arg, const struct splice_mount *m)
{
    struct seen_mounts *seen = arg;
    int n = snprintf(seen->text + seen->len, sizeof(seen->text) - seen->len, "%.*s:%.*s:%.*s;",
                     (int)m->type_len, m->type, (int)m->source_len, m->source,
                     (int)m->destination_len, m->destination);
    seen->len += (size_t)n;
}

static void put_mount(struct buf *spec, const char *type, const char *source, const char *dest)
{
    struct buf m = {0};
    put_text(&m, 1, dest);
    if (source)
        put_text(&m, 2, source);
    put_text(&m, 3, "overridden");
    put_text(&m, 3, type);
    put_text(&m, 4, "rbind");
    put_buf(spec, 5, &m);
}

static void test_mounts_are_told(void **state)
{
    struct seen_mounts seen = {0};
    struct splice_rules with = {.mount = on_mount, .arg = &seen};
    struct buf spec = {0}, payload = {0}, in = {0}, out = {0};
    struct err err = ERR_INIT;
    put_mount(&spec, "replaced", "/spec", "/nobody/sees");
    put_buf(&payload, 6, &spec);
    spec = (struct buf){0};
    put_mount(&spec, "bind", "/a", "/in/a");
    put_mount(&spec, "tmpfs", NULL, "/tmp");
    put_buf(&payload, 6, &spec);
    put_request(&in, "CreateContainer", &payload);
    assert_int_equal(splice_frame((uint8_t *)in.data, in.len, &with, &out, &err), 0);
    assert_string_equal(seen.text, "bind:/a:/in/a;tmpfs::/tmp;");
    assert_int_equal(in.len, out.len); /* no namespace asked for: copied */
    assert_memory_equal(in.data, out.data, in.len);
    buf_done(&payload);
    buf_done(&in);
    buf_done(&out);
}

/* -- the recording -- */

struct tally {
    unsigned frames, containers, sandboxes;
};

static void check_recorded_edit(const struct buf *in, const struct buf *out, struct tally *t)
{
    struct view_level request, edited;
    check_header(in, out);
    assert_true(view_read(body_of(in), 3, &request));
    assert_true(view_read(body_of(out), 3, &edited));
    if (memmem(in->data, in->len, "CreateContainer", 15)) {
        assert_true(view_appended(body_of(in), body_of(out), namespaces_path, 3, namespace_bytes));
        t->containers++;
    } else {
        assert_non_null(memmem(in->data, in->len, "CreateSandbox", 13));
        assert_true(view_level_same(&request, &edited));
        assert_true(view_removed(request.content, edited.content, 2));
        assert_true(edited.content.len < request.content.len);
        assert_non_null(memmem(in->data, in->len, "nameserver", 10));
        assert_null(memmem(out->data, out->len, "nameserver", 10));
        t->sandboxes++;
    }
    buf_done(&request.rest);
    buf_done(&edited.rest);
}

static void check_recorded(const struct buf *in, struct tally *t)
{
    struct buf out = BUF_INIT(8U << 20);
    enum splice_verdict v = splice_peek((uint8_t *)in->data, in->len);
    for (size_t len = 0; len < MIN(in->len, (size_t)SPLICE_PEEK_MAX + 1); len++) {
        enum splice_verdict part = splice_peek((uint8_t *)in->data, len);
        assert_true(part == v || part == SPLICE_MORE);
    }
    assert_true(v != SPLICE_MORE);
    splice_ok(in, &out);
    t->frames++;
    if (v == SPLICE_HOLD)
        check_recorded_edit(in, &out, t);
    else
        assert_true(in->len == out.len && memcmp(in->data, out.data, in->len) == 0);
    buf_done(&out);
}

static void check_recorded_line(const char *line, struct tally *t)
{
    struct json_object *o = json_tokener_parse(line), *from, *frame;
    assert_non_null(o);
    assert_true(json_object_object_get_ex(o, "from", &from));
    assert_true(json_object_object_get_ex(o, "frame", &frame));
    const char *hex = json_object_get_string(frame);
    size_t len = strlen(hex) / 2;
    if (str_eq(json_object_get_string(from), "shim") && len > 0) {
        struct buf in = BUF_INIT(8U << 20);
        assert_int_equal(buf_reserve(&in, len), 0);
        assert_int_equal(str_unhex(hex, in.data, len), 0);
        buf_grown(&in, len);
        check_recorded(&in, t);
        buf_done(&in);
    }
    json_object_put(o);
}

static void test_recording(void **state)
{
    const char *dir = getenv("PEERPOD_CORPUS");
    const char *strict = getenv("STRICT");
    char *path = str_asprintf("%s/recordings/kata-agent-socket.jsonl", dir ? dir : PP_CORPUS);
    FILE *f = fopen(path, "re");
    if (!f) {
        fprintf(stderr, "wire.splice: %s is absent: the recording is skipped\n", path);
        free(path);
        assert_false(strict && str_eq(strict, "1"));
        skip();
    }
    free(path);
    char *line = NULL;
    size_t size = 0;
    struct tally t = {0};
    while (getline(&line, &size, f) > 0)
        check_recorded_line(line, &t);
    free(line);
    fclose(f);
    fprintf(stderr,
            "wire.splice: %u frames of the shim, edited: %u CreateContainer, %u "
            "CreateSandbox\n",
            t.frames, t.containers, t.sandboxes);
    assert_true(t.frames > 50 && t.containers >= 2 && t.sandboxes >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_namespace_is_appended_behind_the_others),
        cmocka_unit_test(test_absent_levels_are_made),
        cmocka_unit_test(test_unknown_fields_stay),
        cmocka_unit_test(test_of_duplicates_the_last_is_edited),
        cmocka_unit_test(test_of_duplicate_payloads_the_last_is_edited),
        cmocka_unit_test(test_overlong_varints),
        cmocka_unit_test(test_method_by_the_last_occurrence),
        cmocka_unit_test(test_dns_is_dropped),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_length_varints_grow),
        cmocka_unit_test(test_hostile_payloads),
        cmocka_unit_test(test_not_a_frame),
        cmocka_unit_test(test_peek_passes_everything_else),
        cmocka_unit_test(test_peek_of_odd_frames),
        cmocka_unit_test(test_mounts_are_told),
        cmocka_unit_test(test_recording),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
