/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a shim and an agent say to each other in the forwarder's tests, and what must arrive.
 * Included behind cmocka.h.
 */
#pragma once

#include <json-c/json.h>

#include "base/buf.h"
#include "base/str.h"
#include "wire/splice.h"

#define NETNS "/run/netns/podns"
#define STREAM_MAX (48U << 20)

static const struct splice_rules rules = {.netns_path = NETNS, .clear_dns = true};

static uint64_t seed = 88172645463325252ULL;

/* A function: MIN evaluates twice. */
static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t random_below(size_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (size_t)(seed % n);
}

/* -- streams -- */

struct script {
    struct buf shim;     /* what the shim sends */
    struct buf agent;    /* what the agent sends */
    struct buf expected; /* what the agent must get */
    unsigned refused;    /* requests that we answer: streams 1001, 1002, ... in this order */
};

static inline void add_frame(struct buf *b, uint8_t type, uint32_t stream, const void *body,
                             size_t len)
{
    struct ttrpc_header h = {(uint32_t)len, stream, type, 0};
    uint8_t bytes[TTRPC_HEADER_SIZE];
    ttrpc_header_encode(&h, bytes);
    buf_add(b, bytes, sizeof(bytes));
    buf_add(b, len > 0 ? body : "", len);
}

static inline void script_request(struct script *s, const char *method, const void *payload,
                                  size_t len)
{
    struct buf edited = BUF_INIT(STREAM_MAX);
    size_t at = s->shim.len;
    uint32_t stream = 1;
    struct err err = ERR_INIT;
    assert_int_equal(
        ttrpc_add_request(&s->shim, stream, "grpc.AgentService", method, payload, len, 1000, NULL),
        0);
    uint8_t *frame = (uint8_t *)s->shim.data + at;
    int r = splice_frame(frame, s->shim.len - at, &rules, &edited, &err);
    if (r < 0) {
        struct ttrpc_header h;
        ttrpc_header_decode(frame, &h);
        h.stream = 1000 + ++s->refused;
        ttrpc_header_encode(&h, frame);
    } else {
        buf_add(&s->expected, edited.data, edited.len);
    }
    buf_done(&edited);
}

static inline void script_pass(struct script *s, uint8_t type, const void *body, size_t len)
{
    add_frame(&s->shim, type, 5, body, len);
    add_frame(&s->expected, type, 5, body, len);
}

/* A tag and a length of four bytes, longer than need be. */
static inline void add_tag(struct buf *b, uint8_t tag, size_t len)
{
    uint8_t bytes[5] = {tag, (uint8_t)((len & 0x7f) | 0x80), (uint8_t)((len >> 7 & 0x7f) | 0x80),
                        (uint8_t)((len >> 14 & 0x7f) | 0x80), (uint8_t)(len >> 21 & 0x7f)};
    buf_add(b, bytes, sizeof(bytes));
}

/* A spec with len bytes of an annotation. */
static inline void script_container(struct script *s, size_t len)
{
    struct buf payload = BUF_INIT(STREAM_MAX);
    char *text = xcalloc(1, len + 1);
    memset(text, 'a' + (int)random_below(26), len);
    buf_adds(&payload, "\x0a\x02"
                       "c1");
    add_tag(&payload, 0x32, len + 5);
    add_tag(&payload, 0x3a, len);
    buf_add(&payload, text, len);
    script_request(s, "CreateContainer", payload.data, payload.len);
    free(text);
    buf_done(&payload);
}

static inline void script_init(struct script *s)
{
    *s = (struct script){.shim = BUF_INIT(STREAM_MAX),
                         .agent = BUF_INIT(STREAM_MAX),
                         .expected = BUF_INIT(STREAM_MAX)};
}

static inline void script_done(struct script *s)
{
    buf_done(&s->shim);
    buf_done(&s->agent);
    buf_done(&s->expected);
}

static inline void script_answers(struct script *s, unsigned count, size_t max)
{
    char *body = xcalloc(1, max + 1);
    for (unsigned i = 0; i < count; i++) {
        size_t len = random_below(max + 1);
        memset(body, (int)('A' + i % 26), len);
        add_frame(&s->agent, TTRPC_RESPONSE, 2 * i + 1, body, len);
    }
    free(body);
}

static inline void script_small(struct script *s)
{
    script_init(s);
    script_request(s, "Check", "", 0);
    script_request(s, "CreateSandbox",
                   "\x0a\x01h\x12\x03"
                   "dns\x2a\x02id\x12\x01x",
                   15);
    script_request(s, "CreateContainer", "\x32\x7f", 2); /* refused */
    script_pass(s, TTRPC_DATA, "data", 4);
    script_container(s, 3);
    script_request(s, "CreateContainer", "\x0f", 1); /* refused */
    script_request(s, "CreateContainer", "\x0f", 1); /* and at once again */
    script_pass(s, TTRPC_REQUEST, "\x0a\x01s\x12\x01m", 6);
    script_answers(s, 6, 30);
}

/* Megabytes, with every kind of frame again and again. */
static inline void script_long(struct script *s, unsigned rounds)
{
    char *big = xcalloc(1, 1U << 20);
    script_init(s);
    script_request(s, "Check", "", 0);
    script_request(s, "CreateSandbox",
                   "\x0a\x01h\x12\x03"
                   "dns\x2a\x02id\x12\x01x",
                   15);
    for (unsigned i = 0; i < rounds; i++) {
        memset(big, (int)('a' + i % 26), 1U << 20);
        script_request(s, "CopyFile", big, 1 + random_below(1U << 20));
        script_container(s, 1 + random_below(i % 8 == 0 ? 3U << 20 : 20000));
        if (i % 3 == 0)
            script_request(s, "CreateContainer", "\x0f", 1);
        script_pass(s, 255, big, random_below(3000));
    }
    script_answers(s, 40 * rounds, 30000);
    free(big);
}

static inline void script_mixed(struct script *s)
{
    char *big = xcalloc(1, 100000);
    script_init(s);
    script_request(s, "Check", "", 0);
    script_request(s, "CreateSandbox",
                   "\x0a\x01h\x12\x03"
                   "dns\x2a\x02id\x12\x01x",
                   15);
    script_request(s, "CopyFile", big, 100000);
    script_container(s, 200000); /* larger than every ring */
    script_request(s, "CreateContainer", "\x0f", 1);
    script_pass(s, 255, big, 40000);
    script_container(s, 300);
    script_request(s, "CreateContainer", "\x32\x7f", 2);
    script_request(s, "CreateSandbox", "\x12\x7f", 2);
    script_container(s, 40000);
    script_request(s, "StartContainer", "", 0);
    script_answers(s, 40, 9000);
    free(big);
}

#define RECORDED_MAX 8

static inline void script_recorded_frame(struct script *s, const char *from, const uint8_t *frame,
                                         size_t len)
{
    struct buf edited = BUF_INIT(STREAM_MAX);
    if (str_eq(from, "shim")) {
        buf_add(&s->shim, frame, len);
        assert_int_equal(splice_frame(frame, len, &rules, &edited, NULL), 0);
        buf_add(&s->expected, edited.data, edited.len);
    } else {
        buf_add(&s->agent, frame, len);
    }
    buf_done(&edited);
}

static inline void script_recorded_line(struct script *scripts, int *n, const char *line)
{
    struct json_object *o = json_tokener_parse(line), *from, *frame, *conn;
    assert_non_null(o);
    assert_true(json_object_object_get_ex(o, "from", &from));
    assert_true(json_object_object_get_ex(o, "frame", &frame));
    assert_true(json_object_object_get_ex(o, "conn", &conn));
    const char *hex = json_object_get_string(frame);
    int i = json_object_get_int(conn) - 1;
    size_t len = strlen(hex) / 2;
    assert_in_range(i, 0, RECORDED_MAX - 1);
    for (; *n <= i; (*n)++)
        script_init(&scripts[*n]);
    uint8_t *bytes = xcalloc(1, len + 1);
    assert_int_equal(str_unhex(hex, bytes, len), 0);
    if (len > 0)
        script_recorded_frame(&scripts[i], json_object_get_string(from), bytes, len);
    free(bytes);
    json_object_put(o);
}

/* How many connections it has; -1: no recording here. */
static inline int script_recording(struct script scripts[RECORDED_MAX], const char *corpus)
{
    const char *dir = getenv("PEERPOD_CORPUS");
    char *path = str_asprintf("%s/recordings/kata-agent-socket.jsonl", dir ? dir : corpus);
    FILE *f = fopen(path, "re");
    free(path);
    if (!f)
        return -1;
    char *line = NULL;
    size_t size = 0;
    int n = 0;
    while (getline(&line, &size, f) > 0)
        script_recorded_line(scripts, &n, line);
    free(line);
    fclose(f);
    return n;
}
