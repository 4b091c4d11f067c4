/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Differential fuzzing of the splicer against wire_view.h, an independent reader: what the splicer
 * accepts must come out as the same message but for the edit, what it refuses must be no message
 * for the reader either. The first byte of the input chooses the method (bit 0), whether the rest
 * is the payload or the whole body of the request (bit 1), and the edit: the pod VM's, or the
 * worker's annotations (bit 2).
 */
#include <errno.h>

#include "unit/wire_view.h"
#include "wire/splice.h"

#define NETNS "/run/netns/podns"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t added[] = "\x32\x1b\x0a\x07network\x12\x10" NETNS;
static const uint32_t namespaces_path[] = {3, 6, 8}, spec_path[] = {3, 6};
static const uint8_t annotation[] = "\x3a\x08\x0a\x03key\x12\x01v";

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void make_body(const uint8_t *data, size_t size, struct buf *ret)
{
    static const char agent[] = "\x0a\x11grpc.AgentService";
    static const char container[] = "\x12\x0f"
                                    "CreateContainer";
    static const char sandbox[] = "\x12\x0d"
                                  "CreateSandbox";
    if (!(data[0] & 2)) {
        uint8_t tag[] = {0x1a, (uint8_t)((size - 1) | 0x80), (uint8_t)((size - 1) >> 7 | 0x80),
                         (uint8_t)((size - 1) >> 14 & 0x7f)};
        buf_adds(ret, agent);
        buf_adds(ret, data[0] & 1 ? sandbox : container);
        buf_add(ret, tag, sizeof(tag));
    }
    buf_add(ret, data + 1, size - 1);
}

/* The frame lies in a block of its own size, so that a read beyond it is seen. */
static uint8_t *make_frame(const uint8_t *data, size_t size, size_t *ret_len)
{
    struct buf body = {0};
    make_body(data, size, &body);
    *ret_len = TTRPC_HEADER_SIZE + body.len;
    uint8_t *frame = malloc(*ret_len);
    struct ttrpc_header h = {(uint32_t)body.len, 1, TTRPC_REQUEST, 0};
    check(frame != NULL);
    ttrpc_header_encode(&h, frame);
    if (body.len > 0)
        memcpy(frame + TTRPC_HEADER_SIZE, body.data, body.len);
    buf_done(&body);
    return frame;
}

/* The last field of that number; empty when there is none. *ok: as the reader sees it. */
static struct view_bytes last_of(struct view_bytes message, uint32_t number, bool *ok)
{
    struct view_level level;
    *ok = view_read(message, number, &level) && *ok;
    buf_done(&level.rest);
    return *ok ? level.content : (struct view_bytes){0};
}

static bool all_readable(struct view_bytes list, uint32_t number)
{
    struct view_cursor c = view_begin(list);
    bool ok = true;
    while (ok && c.p < c.end) {
        struct view_bytes content = {0};
        uint64_t tag = view_varint(&c);
        view_value(&c, tag, 32, &content);
        if (tag == ((uint64_t)number << 3 | 2))
            last_of(content, 1, &ok);
    }
    return ok;
}

static bool text_is(struct view_bytes b, const char *text)
{
    return b.len == strlen(text) && memcmp(b.data, text, b.len) == 0;
}

enum kind { NOTHING, CONTAINER, SANDBOX };

/* What the reader thinks of it: the method, and whether all that has to be is readable. */
static enum kind read_request(struct view_bytes body, bool annotates, bool *ret_ok)
{
    bool ok = true;
    struct view_bytes service = last_of(body, 1, &ok), method = last_of(body, 2, &ok);
    enum kind kind = NOTHING;
    *ret_ok = ok;
    if (!ok || !service.data || !text_is(service, "grpc.AgentService") || !method.data)
        return NOTHING;
    if (text_is(method, "CreateContainer"))
        kind = CONTAINER;
    else if (text_is(method, "CreateSandbox"))
        kind = SANDBOX;
    struct view_bytes payload = last_of(body, 3, &ok);
    if (kind == SANDBOX && !annotates)
        last_of(payload, 2, &ok);
    if (kind == CONTAINER) {
        struct view_bytes spec = last_of(payload, 6, &ok);
        struct view_bytes part = last_of(spec, 8, &ok);
        if (!annotates)
            last_of(part, 6, &ok);
        ok = ok && all_readable(spec, 5);
    }
    *ret_ok = ok;
    return kind;
}

static bool sandbox_edited(struct view_bytes in, struct view_bytes out)
{
    struct view_level a, b;
    bool ok = view_read(in, 3, &a) && view_read(out, 3, &b) && view_level_same(&a, &b) &&
              view_removed(a.content, b.content, 2);
    buf_done(&a.rest);
    buf_done(&b.rest);
    return ok;
}

static void check_peek(const uint8_t *frame, size_t len)
{
    enum splice_verdict v = splice_peek(frame, len);
    check(v != SPLICE_MORE);
    for (size_t part = 0; part < MIN(len, (size_t)SPLICE_PEEK_MAX); part++) {
        enum splice_verdict early = splice_peek(frame, part);
        check(early == SPLICE_MORE || early == v);
    }
}

static void touch(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        __asm__ volatile("" ::"r"(text[i]));
}

static void count_mount(void *arg, const struct splice_mount *mount)
{
    (*(unsigned *)arg)++;
    touch(mount->source, mount->source_len);
}

/* Both ways through the mounts see the same ones. */
static void annotate(void *arg, struct splice_spec *spec)
{
    struct splice_mount m;
    const void *at = NULL;
    const char *value;
    size_t len;
    while (splice_spec_mount(spec, &at, &m)) {
        (*(unsigned *)arg)--;
        touch(m.type, m.type_len);
        touch(m.destination, m.destination_len);
    }
    if (splice_spec_annotation(spec, "key", &value, &len))
        touch(value, len);
    splice_spec_annotate(spec, "key", "v");
}

static void check_edit(enum kind kind, bool annotates, struct view_bytes in, struct view_bytes out)
{
    static const struct view_bytes tail = {added, sizeof(added) - 1};
    static const struct view_bytes note = {annotation, sizeof(annotation) - 1};
    bool same = in.len == out.len && memcmp(in.data, out.data, in.len) == 0;
    bool ok = true;
    struct view_level body;
    if (kind == SANDBOX && !annotates) {
        check(sandbox_edited(in, out));
    } else if (kind == CONTAINER && !annotates) {
        check(view_appended(in, out, namespaces_path, 3, tail));
    } else if (kind == CONTAINER) {
        check(view_read(last_of(in, 3, &ok), 6, &body));
        check(body.present ? view_appended(in, out, spec_path, 2, note) : same);
        buf_done(&body.rest);
    } else {
        check(same);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct splice_rules pod_vm = {.netns_path = NETNS, .clear_dns = true};
    unsigned mounts = 0;
    const struct splice_rules worker = {.annotate = annotate, .mount = count_mount, .arg = &mounts};
    struct buf out = {0};
    size_t len;
    bool readable;
    if (size < 1 || size > 1U << 20)
        return 0;
    uint8_t *frame = make_frame(data, size, &len);
    struct view_bytes in = {frame + TTRPC_HEADER_SIZE, len - TTRPC_HEADER_SIZE};
    check_peek(frame, len);
    bool annotates = data[0] & 4;
    enum kind kind = read_request(in, annotates, &readable);
    struct err err = ERR_INIT;
    int r = splice_frame(frame, len, annotates ? &worker : &pod_vm, &out, &err);
    check(r == 0 || r == -EBADMSG);
    check((r == 0) == readable && mounts == 0);
    if (r == 0)
        check_edit(kind, annotates, in,
                   (struct view_bytes){(uint8_t *)out.data + TTRPC_HEADER_SIZE,
                                       out.len - TTRPC_HEADER_SIZE});
    else
        splice_answer(frame, &err, &out);
    buf_done(&out);
    free(frame);
    return 0;
}
