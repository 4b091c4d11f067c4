/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Differential fuzzing of the ttrpc parsers against the Go library (test/go/ttrpcjudge, a child that
 * gets each input): both refuse it, or both find the same in it. The first byte chooses Request,
 * Response, or a stream of frames. Without the judge beside this program it says so and ends with 77.
 *
 * What protobuf-c sees otherwise, and no ttrpc client sends, is told by a reader of its own (`odd`)
 * and left out: groups and a known field of another wire type (protobuf-c refuses, Go skips);
 * strings that are not UTF-8 (Go refuses) or hold a NUL (a C string ends there); a submessage that
 * comes twice (Go merges its fields); numbers of fields that do not exist varints of more than 64
 * bits (Go refuses), and tags and lengths of more than five bytes (protobuf-c refuses). Nothing else may differ.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"
#include "unit/wire_view.h"
#include "wire/ttrpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define INPUT_MAX 16384

enum { REQUEST, RESPONSE, FRAMES, KINDS };

static int judge = -1;

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char path[PATH_MAX];
    int s[2];
    (void)argc;
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    check(n > 0);
    path[n] = '\0';
    snprintf(strrchr(path, '/'), 16, "/ttrpcjudge");
    if (access(path, X_OK) < 0) {
        fprintf(stderr, "skipped: no %s: is there a Go toolchain? (test wire.judge builds it)\n",
                path);
        exit(77);
    }
    signal(SIGPIPE, SIG_IGN);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) == 0);
    if (fork() == 0) {
        dup2(s[1], 0);
        dup2(s[1], 1);
        execl(path, path, NULL);
        _exit(127);
    }
    close(s[1]);
    judge = s[0];
    (void)argv;
    return 0;
}

/* ---- the judge's answer ---- */

static void take(void *data, size_t len)
{
    for (size_t have = 0; have < len;) {
        ssize_t n = recv(judge, (char *)data + have, len - have, MSG_WAITALL);
        check(n > 0 || (n < 0 && errno == EINTR));
        have += n > 0 ? (size_t)n : 0;
    }
}

static void ask(const uint8_t *data, size_t size, struct buf *ret)
{
    uint32_t len = (uint32_t)size;
    uint8_t kind = data[0] % KINDS;
    struct iovec parts[] = {
        {&len, sizeof(len)}, {&kind, 1}, {(void *)(uintptr_t)(data + 1), size - 1}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    check(sendmsg(judge, &message, MSG_NOSIGNAL) == (ssize_t)(sizeof(len) + size));
    take(&len, sizeof(len));
    check(buf_reserve(ret, len + 1) == 0);
    take(ret->data, len);
    buf_grown(ret, len);
}

/* ---- ours, in the same form ---- */

static void add_text(struct buf *b, const void *data, size_t len)
{
    uint32_t n = (uint32_t)len;
    buf_add(b, &n, sizeof(n));
    buf_add(b, data, len);
}

static void add_number(struct buf *b, int64_t n)
{
    buf_add(b, &n, sizeof(n));
}

static int decode_request(const uint8_t *data, size_t size, struct buf *ret)
{
    Ttrpc__Request *r;
    struct err err = ERR_INIT;
    if (ttrpc_request_decode(data, size, &r, &err) < 0)
        return err.code;
    buf_add(ret, "\x01", 1);
    add_text(ret, r->service, strlen(r->service));
    add_text(ret, r->method, strlen(r->method));
    add_text(ret, r->payload.data, r->payload.len);
    add_number(ret, r->timeout_nano);
    for (size_t i = 0; i < r->n_metadata; i++) {
        add_text(ret, r->metadata[i]->key, strlen(r->metadata[i]->key));
        add_text(ret, r->metadata[i]->value, strlen(r->metadata[i]->value));
    }
    ttrpc__request__free_unpacked(r, NULL);
    return 0;
}

static int decode_response(const uint8_t *data, size_t size, struct buf *ret)
{
    Ttrpc__Response *r;
    struct err err = ERR_INIT;
    if (ttrpc_response_decode(data, size, &r, &err) < 0)
        return err.code;
    const Ttrpc__Status *s = r->status;
    buf_add(ret, "\x01", 1);
    add_number(ret, s ? s->code : 0);
    add_text(ret, s ? s->message : "", s ? strlen(s->message) : 0);
    for (size_t i = 0; s && i < s->n_details; i++) {
        add_text(ret, s->details[i]->type_url, strlen(s->details[i]->type_url));
        add_text(ret, s->details[i]->value.data, s->details[i]->value.len);
    }
    add_text(ret, r->payload.data, r->payload.len);
    ttrpc__response__free_unpacked(r, NULL);
    return 0;
}

/* The frames as the forwarder follows them: by their headers, in pieces. */
static int read_frames(const uint8_t *data, size_t size, struct buf *ret)
{
    uint8_t header[TTRPC_HEADER_SIZE] = {0};
    uint64_t left = 0;
    uint32_t have = 0;
    size_t at = 0, piece = 1 + size % 5;
    buf_add(ret, "\x01", 1);
    while (at < size) {
        struct ttrpc_header h;
        do
            at += ttrpc_walk(&left, &have, header, data + at, MIN(piece, size - at));
        while (have > 0 && at < size);
        if (have > 0)
            break;
        ttrpc_header_decode(header, &h);
        const uint8_t *body = data + at;
        check(left == h.length);
        while (left > 0 && at < size)
            at += ttrpc_walk(&left, &have, header, data + at, MIN(piece, size - at));
        if (left > 0)
            break;
        add_number(ret, (int64_t)h.stream << 16 | h.type << 8 | h.flags);
        add_text(ret, body, h.length);
    }
    buf_add(ret, have > 0 || left > 0 ? "\0" : "\x01", 1);
    return 0;
}

/* ---- what is left out ---- */

/* A message's fields by number: v varint, s string, b bytes, or the letter of a submessage, upper
 * case when it is repeated. */
static const char *const shapes[] = {
    ['q' - 'a'] = "ssbvK", ['k' - 'a'] = "ss", ['r' - 'a'] = "tb",
    ['t' - 'a'] = "vsA",   ['a' - 'a'] = "sb",
};

static bool odd_text(struct view_bytes text)
{
    for (size_t i = 0; i < text.len; i++)
        if (text.data[i] == 0 || text.data[i] > 127)
            return true;
    return false;
}

/* max: bytes that protobuf-c reads; of ten the last has one bit. */
static bool odd_varint(const struct view_cursor *c, size_t max)
{
    size_t n = 0;
    while (n < max && c->p + n < c->end && c->p[n] > 127)
        n++;
    return n == max || (n == 9 && c->p + n < c->end && c->p[n] > 1);
}

static bool odd(struct view_bytes message, char letter)
{
    const char *shape = shapes[letter - 'a'];
    struct view_cursor c = view_begin(message);
    unsigned seen = 0;
    while (c.p < c.end) {
        struct view_bytes content = {0};
        if (odd_varint(&c, 5))
            return true;
        uint64_t tag = view_varint(&c), number = tag >> 3;
        if (c.bad)
            return false;
        if ((tag & 7) == 3 || (tag & 7) == 4 || number == 0 || tag > UINT32_MAX)
            return true;
        if (((tag & 7) == 0 && odd_varint(&c, 10)) || ((tag & 7) == 2 && odd_varint(&c, 5)))
            return true;
        view_value(&c, tag, 0, &content);
        if (c.bad)
            return false;
        if (number > strlen(shape))
            continue;
        char type = shape[number - 1];
        if ((tag & 7) != (type == 'v' ? 0 : 2) || (type == 's' && odd_text(content)))
            return true;
        if (strchr("svb", type))
            continue;
        if (type > 'Z' && seen++ > 0)
            return true;
        if (odd(content, type > 'Z' ? type : (char)(type - 'A' + 'a')))
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf theirs = {0}, ours = {0};
    if (size < 1 || size > INPUT_MAX)
        return 0;
    ask(data, size, &theirs);
    static int (*const ours_of[])(const uint8_t *, size_t, struct buf *) = {
        [REQUEST] = decode_request, [RESPONSE] = decode_response, [FRAMES] = read_frames};
    uint8_t kind = data[0] % KINDS;
    int r = ours_of[kind](data + 1, size - 1, &ours);
    check(r == 0 || r == -EBADMSG);
    bool same = kind == FRAMES ||
                !odd((struct view_bytes){data + 1, size - 1}, kind == RESPONSE ? 'r' : 'q');
    check(!same || (r == 0) == (theirs.len > 0));
    if (same && r == 0)
        check(ours.len == theirs.len && memcmp(ours.data, theirs.data, ours.len) == 0);
    buf_done(&theirs);
    buf_done(&ours);
    return 0;
}
