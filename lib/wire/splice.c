/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Two calls of the shim must not reach the agent as they are (kata-contract.md 3.4):
 *
 *     CreateContainer   ttrpc Request.payload(3) . OCI(6) . Linux(8) . Namespaces(6) += network
 *     CreateSandbox     ttrpc Request.payload(3) . dns(2) is dropped, every one of them
 *
 * These are the pod VM's. The worker has one of its own, when what runs in the VM expects it:
 *
 *     CreateContainer   ttrpc Request.payload(3) . OCI(6) . Annotations(7) += what the owner wants
 *
 * Field numbers: kata-containers at 7c6ba40c54, src/libs/protocols/protos/{agent,oci}.proto, the
 * same since 2.0, and the recording of a real node.
 *
 * A decoder and an encoder would lose what they do not know (the agent's API grows) and reorder the
 * rest. So the bytes are walked, never decoded: on each level the last length-delimited field of
 * the wanted number is found, and the output is the input with a few ranges replaced: the length
 * varints on the way down, and the insertion itself at the end of the innermost message. A level
 * that is absent is made, at the end of the one above it.
 *
 * Why the last: a singular message that occurs twice is merged by the protobuf specification, but
 * rust-protobuf, the agent's decoder, keeps the last one alone. An edit of the last is right for
 * both. For strings and bytes (service, method, payload) everyone takes the last.
 *
 * What is refused: a varint of more than 64 bits, a field number 0 or beyond 29 bits, a length that
 * leaves its message, wire types 6 and 7, a group without end or nested more than GROUP_DEPTH_MAX.
 * That is what the agent's decoder refuses, too; where we were stricter the shim would get an error
 * that names us, where we were laxer the agent's own. Nothing recurses; nothing is allocated but
 * the output, once its size is known.
 *
 * This is not a border of security: a shim that wants a request of its own to go unedited can hide
 * a second `method` behind a passing first one. What a container may do is judged by the agent's
 * policy, which sees what the agent sees.
 */
#include "wire/splice.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define GROUP_DEPTH_MAX 32
#define VARINT_MAX 10

enum {
    WIRE_VARINT = 0,
    WIRE_I64 = 1,
    WIRE_LEN = 2,
    WIRE_SGROUP = 3,
    WIRE_EGROUP = 4,
    WIRE_I32 = 5
};

enum { REQUEST_SERVICE = 1, REQUEST_METHOD = 2, REQUEST_PAYLOAD = 3 };
enum { CREATE_CONTAINER_OCI = 6, CREATE_SANDBOX_DNS = 2 };
enum { SPEC_MOUNTS = 5, SPEC_ANNOTATIONS = 7, SPEC_LINUX = 8, LINUX_NAMESPACES = 6 };
enum { MOUNT_DESTINATION = 1, MOUNT_SOURCE = 2, MOUNT_TYPE = 3 };
enum { ENTRY_KEY = 1, ENTRY_VALUE = 2 };
enum { NAMESPACE_TYPE = 1, NAMESPACE_PATH = 2 };

static const char agent_service[] = "grpc.AgentService";
static const char create_container[] = "CreateContainer";
static const char create_sandbox[] = "CreateSandbox";

struct span { /* bytes of the frame */
    const uint8_t *data;
    size_t len;
};

struct field {
    const uint8_t *start; /* the tag */
    const uint8_t *size;  /* WIRE_LEN: the length varint */
    struct span value;    /* WIRE_LEN: the content */
    const uint8_t *end;
    uint32_t number, type;
};

static bool span_eq(struct span s, const char *text)
{
    size_t len = strlen(text);
    return s.len == len && memcmp(s.data, text, len) == 0;
}

/* Returns what follows the varint, NULL when it does not end before `end` or has over 64 bits. */
static const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, uint64_t *ret)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < VARINT_MAX && p < end; i++, p++) {
        uint64_t bits = *p & 0x7FU;
        if (i == VARINT_MAX - 1 && bits > 1)
            return NULL;
        value |= bits << (7 * i);
        if (!(*p & 0x80U)) {
            *ret = value;
            return p + 1;
        }
    }
    return NULL;
}

static size_t varint_put(uint64_t value, uint8_t out[VARINT_MAX])
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7)
        out[n++] = (uint8_t)(value | 0x80U);
    out[n++] = (uint8_t)value;
    return n;
}

static size_t varint_size(uint64_t value)
{
    uint8_t scratch[VARINT_MAX];
    return varint_put(value, scratch);
}

static const uint8_t *tag_get(const uint8_t *p, const uint8_t *end, struct field *f)
{
    uint64_t tag;
    f->start = p;
    p = varint_get(p, end, &tag);
    if (!p || tag > UINT32_MAX || tag >> 3 == 0)
        return NULL;
    f->number = (uint32_t)tag >> 3;
    f->type = (uint32_t)tag & 7U;
    return p;
}

/* The value of everything but groups. */
static const uint8_t *value_get(const uint8_t *p, const uint8_t *end, struct field *f)
{
    uint64_t n;
    switch (f->type) {
    case WIRE_VARINT:
        return varint_get(p, end, &n);
    case WIRE_I64:
        return end - p < 8 ? NULL : p + 8;
    case WIRE_I32:
        return end - p < 4 ? NULL : p + 4;
    case WIRE_LEN:
        f->size = p;
        p = varint_get(p, end, &n);
        if (!p || n > (uint64_t)(end - p))
            return NULL;
        f->value = (struct span){p, (size_t)n};
        return p + n;
    default:
        return NULL;
    }
}

/* p is behind a start tag of `number`. */
static const uint8_t *group_skip(const uint8_t *p, const uint8_t *end, uint32_t number)
{
    uint32_t open[GROUP_DEPTH_MAX] = {number};
    unsigned depth = 1;
    while (p && depth > 0) {
        struct field f = {0};
        p = tag_get(p, end, &f);
        if (!p)
            return NULL;
        if (f.type == WIRE_SGROUP) {
            if (depth == GROUP_DEPTH_MAX)
                return NULL;
            open[depth++] = f.number;
        } else if (f.type == WIRE_EGROUP) {
            if (f.number != open[--depth])
                return NULL;
        } else {
            p = value_get(p, end, &f);
        }
    }
    return p;
}

/* The field at p, p < end; false: not protobuf. */
static bool field_get(const uint8_t *p, const uint8_t *end, struct field *ret)
{
    *ret = (struct field){0};
    p = tag_get(p, end, ret);
    if (!p)
        return false;
    ret->end = ret->type == WIRE_SGROUP ? group_skip(p, end, ret->number) : value_get(p, end, ret);
    return ret->end != NULL;
}

/* Iterates over a message: 1, 0 at its end, -EBADMSG. *at begins at its first byte. */
static int field_next(struct span message, const uint8_t **at, struct field *ret)
{
    const uint8_t *end = message.data + message.len;
    if (*at == end)
        return 0;
    if (!field_get(*at, end, ret))
        return -EBADMSG;
    *at = ret->end;
    return 1;
}

/* The last length-delimited field `number`; ret->start stays NULL when there is none. The whole
 * message is checked on the way. */
static int field_last(struct span message, uint32_t number, struct field *ret)
{
    struct field f;
    const uint8_t *at = message.data;
    int r;
    *ret = (struct field){0};
    while ((r = field_next(message, &at, &f)) > 0) {
        if (f.number == number && f.type == WIRE_LEN)
            *ret = f;
    }
    return r;
}

/* -- peek -- */

/* One of the first two fields: SPLICE_PASS when it is `number`, in its shortest form. */
static enum splice_verdict peek_string(const uint8_t **p, const uint8_t *end, uint32_t number,
                                       struct span *ret)
{
    uint64_t n;
    if (end - *p < 2)
        return end > *p && **p != (number << 3 | WIRE_LEN) ? SPLICE_HOLD : SPLICE_MORE;
    if (**p != (number << 3 | WIRE_LEN))
        return SPLICE_HOLD;
    const uint8_t *content = varint_get(*p + 1, end, &n);
    /* A name that SPLICE_PEEK_MAX cannot hold is no name of ours, but odd enough to be held. */
    if ((*p)[1] & 0x80U || !content)
        return SPLICE_HOLD;
    if (n > (uint64_t)(end - content))
        return SPLICE_MORE;
    *ret = (struct span){content, (size_t)n};
    *p = content + n;
    return SPLICE_PASS;
}

static enum splice_verdict peek_body(const uint8_t *body, const uint8_t *end)
{
    struct span service, method;
    enum splice_verdict v = peek_string(&body, end, REQUEST_SERVICE, &service);
    if (v != SPLICE_PASS)
        return v;
    v = peek_string(&body, end, REQUEST_METHOD, &method);
    if (v != SPLICE_PASS)
        return v;
    if (!span_eq(service, agent_service))
        return SPLICE_PASS;
    return span_eq(method, create_container) || span_eq(method, create_sandbox) ? SPLICE_HOLD
                                                                                : SPLICE_PASS;
}

enum splice_verdict splice_peek(const uint8_t *frame, size_t len)
{
    struct ttrpc_header h;
    if (len < TTRPC_HEADER_SIZE)
        return SPLICE_MORE;
    ttrpc_header_decode(frame, &h);
    if (h.type != TTRPC_REQUEST || h.length > TTRPC_BODY_MAX)
        return SPLICE_PASS;
    size_t whole = TTRPC_HEADER_SIZE + h.length;
    size_t have = MIN(MIN(len, whole), (size_t)SPLICE_PEEK_MAX);
    enum splice_verdict v = peek_body(frame + TTRPC_HEADER_SIZE, frame + have);
    if (v == SPLICE_MORE && (have == whole || have == SPLICE_PEEK_MAX))
        return SPLICE_HOLD;
    return v;
}

/* -- the edits -- */

/* The frame with its header's length changed and everything of the body still to come. */
static int frame_begin(struct span frame, size_t body, struct buf *out, struct err *err)
{
    struct ttrpc_header h;
    if (buf_reserve(out, TTRPC_HEADER_SIZE + body) < 0)
        return err_set(err, -E2BIG, "no room for a request of %zu bytes", body);
    ttrpc_header_decode(frame.data, &h);
    h.length = (uint32_t)body;
    uint8_t header[TTRPC_HEADER_SIZE];
    ttrpc_header_encode(&h, header);
    return buf_add(out, header, sizeof(header));
}

static int frame_copy(struct span frame, struct buf *out, struct err *err)
{
    if (buf_add(out, frame.data, frame.len) < 0)
        return err_set(err, -E2BIG, "no room for a request of %zu bytes", frame.len);
    return 0;
}

static void add_range(struct buf *out, const uint8_t *from, const uint8_t *to)
{
    buf_add(out, from, (size_t)(to - from));
}

static void add_varint(struct buf *out, uint64_t value)
{
    uint8_t bytes[VARINT_MAX];
    buf_add(out, bytes, varint_put(value, bytes));
}

/* A length-delimited field that holds `content`. */
static void add_field(struct buf *out, uint32_t number, const void *content, size_t len)
{
    add_varint(out, (uint64_t)number << 3 | WIRE_LEN);
    add_varint(out, len);
    buf_add(out, content, len);
}

#define LEVELS 3        /* payload, OCI, Linux */
#define INSERT_MAX 4352 /* PATH_MAX and the tags */

struct path { /* the way down to Linux.Namespaces */
    struct field level[LEVELS];
    unsigned found; /* levels that exist */
    const uint8_t *insert_at;
};

/* depth: LEVELS, or 2: no farther than OCI. */
static int path_find(struct span body, unsigned depth, struct path *ret)
{
    static const uint32_t numbers[LEVELS] = {REQUEST_PAYLOAD, CREATE_CONTAINER_OCI, SPEC_LINUX};
    struct span message = body;
    *ret = (struct path){0};
    for (; ret->found < depth; ret->found++) {
        struct field *f = &ret->level[ret->found];
        int r = field_last(message, numbers[ret->found], f);
        if (r < 0)
            return r;
        if (!f->start)
            break;
        message = f->value;
    }
    ret->insert_at = message.data + message.len;
    if (ret->found < LEVELS)
        return 0;
    struct field namespaces; /* checks what we append to */
    return field_last(message, LINUX_NAMESPACES, &namespaces);
}

/* The new namespace, wrapped in the levels that are absent. */
static int build_insert(const struct path *path, const char *netns, struct buf *ret)
{
    static const uint32_t wrap[LEVELS] = {REQUEST_PAYLOAD, CREATE_CONTAINER_OCI, SPEC_LINUX};
    char content[INSERT_MAX];
    struct buf b = BUF_INIT(INSERT_MAX);
    add_field(&b, NAMESPACE_TYPE, "network", strlen("network"));
    add_field(&b, NAMESPACE_PATH, netns, strlen(netns));
    for (unsigned level = LEVELS + 1; !b.failed && level-- > path->found;) {
        size_t len = b.len;
        memcpy(content, b.data, len);
        buf_consume(&b, len);
        add_field(&b, level == LEVELS ? (uint32_t)LINUX_NAMESPACES : wrap[level], content, len);
    }
    *ret = b;
    return b.failed ? -E2BIG : 0;
}

/* The new content length of each level; returns by how much the body grows. */
static size_t path_lengths(const struct path *path, size_t insert, size_t ret[LEVELS])
{
    size_t growth = insert;
    for (unsigned i = path->found; i-- > 0;) {
        const struct field *f = &path->level[i];
        ret[i] = f->value.len + growth;
        /* An overlong varint becomes a short one: the difference may be negative, the sum not. */
        growth += varint_size(ret[i]);
        growth -= (size_t)(f->value.data - f->size);
    }
    return growth;
}

/* what: for the person who reads that there is no room. */
static int insert_write(struct span frame, const struct path *path, const struct buf *insert,
                        const char *what, struct buf *out, struct err *err)
{
    size_t lengths[LEVELS];
    size_t body = frame.len - TTRPC_HEADER_SIZE;
    size_t grown = body + path_lengths(path, insert->len, lengths);
    if (grown > TTRPC_BODY_MAX)
        return err_set(err, -EMSGSIZE,
                       "CreateContainer request of %zu bytes would have %zu with %s in its spec, "
                       "the limit is %u: make the pod's spec smaller",
                       body, grown, what, TTRPC_BODY_MAX);
    int r = frame_begin(frame, grown, out, err);
    if (r < 0)
        return r;
    const uint8_t *at = frame.data + TTRPC_HEADER_SIZE;
    for (unsigned i = 0; i < path->found; i++) {
        add_range(out, at, path->level[i].size);
        add_varint(out, lengths[i]);
        at = path->level[i].value.data;
    }
    add_range(out, at, path->insert_at);
    buf_add(out, insert->data, insert->len);
    add_range(out, path->insert_at, frame.data + frame.len);
    return 0;
}

static void mount_set(struct splice_mount *m, const struct field *f)
{
    const char *text = (const char *)f->value.data;
    if (f->type != WIRE_LEN)
        return;
    if (f->number == MOUNT_DESTINATION) {
        m->destination = text;
        m->destination_len = f->value.len;
    } else if (f->number == MOUNT_SOURCE) {
        m->source = text;
        m->source_len = f->value.len;
    } else if (f->number == MOUNT_TYPE) {
        m->type = text;
        m->type_len = f->value.len;
    }
}

/* rules NULL: check only. */
static int mounts_walk(struct span spec, const struct splice_rules *rules)
{
    struct field f, part;
    const uint8_t *at = spec.data;
    int r;
    while ((r = field_next(spec, &at, &f)) > 0) {
        struct splice_mount m = {.type = "", .source = "", .destination = ""};
        if (f.number != SPEC_MOUNTS || f.type != WIRE_LEN)
            continue;
        const uint8_t *in = f.value.data;
        int s;
        while ((s = field_next(f.value, &in, &part)) > 0)
            mount_set(&m, &part);
        if (s < 0)
            return s;
        if (rules)
            rules->mount(rules->arg, &m);
    }
    return r;
}

struct splice_spec {
    struct span message;
    struct buf insert; /* entries of Annotations, each with its tag */
};

/* One entry of the map: -EBADMSG when it is none. */
static int entry_get(struct span entry, struct span *key, struct span *value)
{
    struct field f;
    const uint8_t *at = entry.data;
    int r;
    *key = *value = (struct span){0};
    while ((r = field_next(entry, &at, &f)) > 0) {
        if (f.type == WIRE_LEN && f.number == ENTRY_KEY)
            *key = f.value;
        else if (f.type == WIRE_LEN && f.number == ENTRY_VALUE)
            *value = f.value;
    }
    return r;
}

bool splice_spec_annotation(const struct splice_spec *spec, const char *key, const char **ret,
                            size_t *ret_len)
{
    struct field f;
    struct span name, value;
    const uint8_t *at = spec->message.data;
    bool found = false;
    while (field_next(spec->message, &at, &f) > 0) {
        if (f.number == SPEC_ANNOTATIONS && f.type == WIRE_LEN &&
            entry_get(f.value, &name, &value) == 0 && span_eq(name, key)) {
            *ret = value.len ? (const char *)value.data : "";
            *ret_len = value.len;
            found = true;
        }
    }
    return found;
}

bool splice_spec_mount(const struct splice_spec *spec, const void **at, struct splice_mount *ret)
{
    struct field f, part;
    const uint8_t *p = *at ? *at : spec->message.data;
    *ret = (struct splice_mount){.type = "", .source = "", .destination = ""};
    while (field_next(spec->message, &p, &f) > 0) {
        if (f.number != SPEC_MOUNTS || f.type != WIRE_LEN)
            continue;
        const uint8_t *in = f.value.data;
        while (field_next(f.value, &in, &part) > 0)
            mount_set(ret, &part);
        *at = p;
        return true;
    }
    return false;
}

void splice_spec_annotate(struct splice_spec *spec, const char *key, const char *value)
{
    struct buf entry = BUF_INIT(TTRPC_BODY_MAX);
    add_field(&entry, ENTRY_KEY, key, strlen(key));
    add_field(&entry, ENTRY_VALUE, value, strlen(value));
    if (entry.failed)
        spec->insert.failed = true;
    else
        add_field(&spec->insert, SPEC_ANNOTATIONS, entry.data, entry.len);
    buf_done(&entry);
}

static int annotate_container(struct span frame, const struct path *path,
                              const struct splice_rules *rules, struct buf *out, struct err *err)
{
    struct splice_spec spec = {.insert = BUF_INIT(TTRPC_BODY_MAX)};
    if (path->found < 2)
        return frame_copy(frame, out, err);
    spec.message = path->level[1].value;
    rules->annotate(rules->arg, &spec);
    int r;
    if (spec.insert.failed)
        r = err_set(err, -EMSGSIZE,
                    "CreateContainer request: its volumes' annotations are too "
                    "long");
    else if (spec.insert.len == 0)
        r = frame_copy(frame, out, err);
    else
        r = insert_write(frame, path, &spec.insert, "its volumes' annotations", out, err);
    buf_done(&spec.insert);
    return r;
}

static int add_namespace(struct span frame, const struct path *path, const char *netns,
                         struct buf *out, struct err *err)
{
    struct buf insert = {0};
    int r = build_insert(path, netns, &insert);
    r = r < 0 ? err_set(err, r, "path of the network namespace is too long")
              : insert_write(frame, path, &insert, "the pod's network namespace", out, err);
    buf_done(&insert);
    return r;
}

static int edit_container(struct span frame, struct span body, const struct splice_rules *rules,
                          struct buf *out, struct err *err)
{
    struct path path;
    int r = path_find(body, rules->annotate ? 2 : LEVELS, &path);
    if (r == 0 && path.found > 1)
        r = mounts_walk(path.level[1].value, NULL);
    if (r < 0)
        return err_set(err, r, "CreateContainer request of %zu bytes is not a protobuf message",
                       body.len);
    if (rules->annotate)
        r = annotate_container(frame, &path, rules, out, err);
    else if (rules->netns_path)
        r = add_namespace(frame, &path, rules->netns_path, out, err);
    else
        r = frame_copy(frame, out, err);
    if (r == 0 && rules->mount && path.found > 1)
        mounts_walk(path.level[1].value, rules);
    return r;
}

void splice_answer(const uint8_t *frame, const struct err *why, struct buf *out)
{
    struct ttrpc_header h;
    ttrpc_header_decode(frame, &h);
    ttrpc_add_error(out, h.stream, ttrpc_code_from_errno(why->code), err_text(why));
}

/* How many bytes of the payload are its dns fields. */
static int sandbox_dropped(struct span payload, size_t *ret)
{
    struct field f;
    const uint8_t *at = payload.data;
    int r;
    *ret = 0;
    while ((r = field_next(payload, &at, &f)) > 0) {
        if (f.number == CREATE_SANDBOX_DNS && f.type == WIRE_LEN)
            *ret += (size_t)(f.end - f.start);
    }
    return r;
}

static int edit_sandbox(struct span frame, struct span body, struct buf *out, struct err *err)
{
    struct field payload, f;
    size_t dropped = 0;
    int r = field_last(body, REQUEST_PAYLOAD, &payload);
    if (r == 0 && payload.start)
        r = sandbox_dropped(payload.value, &dropped);
    if (r < 0)
        return err_set(err, r, "CreateSandbox request of %zu bytes is not a protobuf message",
                       body.len);
    if (dropped == 0)
        return frame_copy(frame, out, err);
    size_t kept = payload.value.len - dropped;
    size_t size_was = (size_t)(payload.value.data - payload.size);
    r = frame_begin(frame, body.len - dropped - size_was + varint_size(kept), out, err);
    if (r < 0)
        return r;
    add_range(out, body.data, payload.size);
    add_varint(out, kept);
    const uint8_t *at = payload.value.data;
    while (field_next(payload.value, &at, &f) > 0) {
        if (f.number != CREATE_SANDBOX_DNS || f.type != WIRE_LEN)
            add_range(out, f.start, f.end);
    }
    add_range(out, payload.end, body.data + body.len);
    return 0;
}

int splice_frame(const uint8_t *frame, size_t len, const struct splice_rules *rules,
                 struct buf *out, struct err *err)
{
    struct ttrpc_header h = {0};
    struct span whole = {frame, len};
    struct field service, method;
    if (len >= TTRPC_HEADER_SIZE)
        ttrpc_header_decode(frame, &h);
    if (len < TTRPC_HEADER_SIZE || h.length > TTRPC_BODY_MAX || len - TTRPC_HEADER_SIZE != h.length)
        return err_set(err, -EBADMSG, "not one whole frame: %zu bytes, its header says %" PRIu32,
                       len, h.length);
    if (h.type != TTRPC_REQUEST)
        return frame_copy(whole, out, err);
    struct span body = {frame + TTRPC_HEADER_SIZE, h.length};
    if (field_last(body, REQUEST_SERVICE, &service) < 0 ||
        field_last(body, REQUEST_METHOD, &method) < 0)
        return err_set(err, -EBADMSG, "request of %zu bytes is not a protobuf message", body.len);
    if (service.start && method.start && span_eq(service.value, agent_service)) {
        if (span_eq(method.value, create_container))
            return edit_container(whole, body, rules, out, err);
        if (span_eq(method.value, create_sandbox) && rules->clear_dns)
            return edit_sandbox(whole, body, out, err);
    }
    return frame_copy(whole, out, err);
}
