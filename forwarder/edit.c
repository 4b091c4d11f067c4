/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The tunnel counts the shim's bytes, the relay counts what the agent gets; an edit makes the two
 * differ. So the shim's bytes come into a ring of their own (rx), with the tunnel's offsets, and a
 * parser moves them on. What is in rx is held safely and may be acknowledged.
 *
 * Parser. It is always in one of four modes:
 *
 *     FRAME  at the start of a frame. splice_peek says whether it passes or is held. Nothing is
 *            moved, so nothing is stored: a successor looks at the same bytes again.
 *     PASS   `left` more bytes of this frame go from rx to the out ring, in pieces of any size.
 *     HOLD   the frame, `left` bytes of it, is collected in area A of the file, `at` are there.
 *            When all are, it is spliced into area B: EMIT; or it is refused: see below.
 *     EMIT   `left` bytes of area B go to the out ring, `at` of them are gone.
 *
 * Each step copies bytes to where nobody looks yet, then commits once: relay_out_commit shows the
 * out ring's new head, the rx offset and the parser's state together. A crash before it repeats the
 * copy with the same bytes; after it, it is done. So nothing is lost or sent twice, and because
 * a held frame leaves the rx ring it may be larger than that, and never stalls.
 *
 * Refusals. A held frame that is no protobuf, or would grow over the limit, is dropped and answered
 * by us on its stream. The answer, a whole frame, lies in the file's first block until it can be
 * inserted between two frames of the agent's; the shim's further frames go on meanwhile (a second
 * refusal waits). To know where frames end a walker follows the agent's headers; its position is
 * part of the same state, and is committed before any byte behind it is acknowledged, so that a
 * successor finds in the ring whatever the walker had not seen. While an answer waits, reading
 * stops at the next end of a frame (edit_in_limit), and goes on when the answer is in.
 *
 * Exactly once: `answer_at` = in head + 1 is committed, the answer is injected (one store to the
 * relay's file), the answer is cleared. Nothing is read from the agent in between, so a successor
 * that finds answer_at knows: the in head has moved, the answer is in; it has not, it is not.
 *
 * End of file. When the shim has sent its last byte and the parser has moved all, the agent's
 * connection is half-closed. A frame that the shim has not finished passes unfinished, unless it
 * was held: then it is dropped (its receiver could do nothing with it). An answer that still waits
 * when the agent has closed is dropped as well, the shim's connection ends anyway.
 *
 * Memory. Blocks are allocated before they are touched; a full file system is -ENOSPC from
 * edit_run or edit_rx_space and a later try. The areas are given back after each frame.
 */
#include "forwarder/edit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "relay/ring.h"

/* Tests die here. */
#ifndef EDIT_STEP
#define EDIT_STEP() ((void)0)
#endif

#define FILE_MAGIC "PPEDIT\0\1"
#define FILE_MAJOR 1
#define FRAME_MAX ((size_t)TTRPC_HEADER_SIZE + TTRPC_BODY_MAX)
#define AREA_SIZE ((FRAME_MAX + RING_BLOCK - 1) / RING_BLOCK * RING_BLOCK)
#define ANSWER_OFFSET 4096U
#define ANSWER_MAX (RING_BLOCK - ANSWER_OFFSET)
#define HOLD_CHUNK (256U << 10)
#define OFFSET_MAX (1ULL << 62)

struct file { /* block 0; behind it rx ring, area A, area B */
    char magic[8];
    uint32_t major;
    uint32_t ring_size;
    uint64_t rx_head;
    uint32_t rx_fin;
    uint32_t reserved;
};

enum mode { MODE_FRAME, MODE_PASS, MODE_HOLD, MODE_EMIT, MODES };

/* The relay's user state. All zero at the beginning. Fields are only ever added at the end. */
struct state {
    uint64_t consumed; /* rx offset up to which the parser has moved bytes */
    uint64_t left, at; /* see above */
    uint64_t in_seen;  /* in offset up to which the walker has looked */
    uint64_t in_left;  /* bytes of the agent's frame behind in_seen; 0: at or within a header */
    uint64_t answer_at;
    uint32_t answer_len; /* 0: none waits */
    uint32_t mode;
    uint32_t in_have; /* bytes of the header that the walker has */
    uint8_t in_header[TTRPC_HEADER_SIZE];
    uint8_t reserved[2];
};
_Static_assert(sizeof(struct state) <= RELAY_USER_SIZE, "fits the relay's user state");
_Static_assert(ANSWER_MAX >= 2 * ERR_TEXT_MAX, "an answer fits");

struct area {
    uint8_t *base;
    off_t offset;
    size_t allocated; /* from its start */
};

struct edit {
    struct file *file; /* mapped */
    size_t map_size;
    int fd;
    struct relay *relay;
    const struct splice_rules *rules;
    struct ring rx;
    struct area a, b;
    struct state s; /* what the next commit shows */
    bool walked;    /* s has walker fields that are not committed */
    struct edit_stats stats;
};

#define barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static void commit(struct edit *e, size_t n)
{
    EDIT_STEP();
    relay_out_commit(e->relay, n, &e->s, sizeof(e->s));
    e->walked = false;
    EDIT_STEP();
}

/* -- areas -- */

static int area_reserve(struct edit *e, struct area *a, size_t len)
{
    int r;
    if (len <= a->allocated)
        return 0;
    len = MIN((len + RING_BLOCK - 1) / RING_BLOCK * RING_BLOCK, AREA_SIZE);
    do
        r = fallocate(e->fd, 0, a->offset + (off_t)a->allocated, (off_t)(len - a->allocated));
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return errno == EDQUOT ? -ENOSPC : -errno;
    a->allocated = len;
    return 0;
}

static void area_release(struct edit *e, struct area *a)
{
    fallocate(e->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a->offset, (off_t)AREA_SIZE);
    a->allocated = 0;
    EDIT_STEP();
}

/* -- birth and recovery -- */

static size_t file_size(size_t ring_size)
{
    return RING_BLOCK + ring_size + 2 * AREA_SIZE;
}

static int map_file(int fd, size_t ring_size, struct edit **ret)
{
    size_t size = file_size(ring_size);
    int r;
    do
        r = fallocate(fd, 0, 0, RING_BLOCK);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    struct edit *e = xcalloc(1, sizeof(*e));
    e->file = (struct file *)(void *)map;
    e->map_size = size;
    e->fd = fd;
    ring_init(&e->rx, fd, RING_BLOCK, map + RING_BLOCK, ring_size);
    e->a.offset = (off_t)(RING_BLOCK + ring_size);
    e->b.offset = e->a.offset + (off_t)AREA_SIZE;
    e->a.base = map + e->a.offset;
    e->b.base = map + e->b.offset;
    *ret = e;
    return 0;
}

static void write_header(struct file *f, size_t ring_size)
{
    f->major = FILE_MAJOR;
    f->ring_size = (uint32_t)ring_size;
    barrier();
    memcpy(f->magic, FILE_MAGIC, sizeof(f->magic));
    barrier();
}

int edit_create(int dirfd, const char *path, size_t ring_size, struct relay *relay,
                const struct splice_rules *rules, struct edit **ret, struct err *err)
{
    int r = 0;
    if (!ring_size_ok(ring_size))
        return err_set(err, -EINVAL, "%s: a ring of %zu bytes is not allowed", path, ring_size);
    _cleanup_close_ int fd =
        openat(dirfd, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, -errno, "creating %s", path);
    if (ftruncate(fd, (off_t)file_size(ring_size)) < 0)
        r = -errno;
    if (r == 0)
        r = map_file(fd, ring_size, ret);
    if (r < 0) {
        unlinkat(dirfd, path, 0);
        return err_errno(err, r, "setting up %s", path);
    }
    TAKE_FD(fd);
    (*ret)->relay = relay;
    (*ret)->rules = rules;
    write_header((*ret)->file, ring_size);
    return 0;
}

static int check_file(int fd, const char *path, struct file *ret, struct err *err)
{
    static const char none[8];
    struct stat st;
    *ret = (struct file){.major = 0};
    if (fstat(fd, &st) < 0 || pread(fd, ret, sizeof(*ret), 0) < 0)
        return err_errno(err, -errno, "reading %s", path);
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
        return err_set(err, -EBADMSG, "%s is not a file of ours", path);
    if (memcmp(ret->magic, none, sizeof(none)) == 0)
        return err_set(err, -ENODATA, "%s was never finished", path);
    if (memcmp(ret->magic, FILE_MAGIC, sizeof(ret->magic)) != 0)
        return err_set(err, -EBADMSG, "%s is not an edit's file", path);
    if (ret->major > FILE_MAJOR)
        return err_set(err, -EPROTONOSUPPORT,
                       "%s has format %" PRIu32 ", this program knows up to %d: run the newer one",
                       path, ret->major, FILE_MAJOR);
    if (!ring_size_ok(ret->ring_size) || (uint64_t)st.st_size != file_size(ret->ring_size) ||
        ret->rx_fin > 1)
        return err_set(err, -EBADMSG, "%s: bad sizes", path);
    return 0;
}

static bool state_ok(const struct edit *e, const struct state *s)
{
    uint64_t head = e->file->rx_head;
    bool whole = s->mode == MODE_HOLD || s->mode == MODE_EMIT;
    return s->mode < MODES && head <= OFFSET_MAX && s->consumed <= head &&
           head - s->consumed <= e->rx.size && s->left <= OFFSET_MAX && s->at <= s->left &&
           (!whole || s->left <= FRAME_MAX) && s->answer_len <= ANSWER_MAX &&
           s->in_seen >= relay_in_tail(e->relay) && s->in_seen <= relay_in_head(e->relay) &&
           s->in_have < TTRPC_HEADER_SIZE && (s->in_left == 0 || s->in_have == 0);
}

/* Was the answer injected? See above. */
static void settle_answer(struct edit *e)
{
    if (e->s.answer_at == 0)
        return;
    if (relay_in_head(e->relay) > e->s.answer_at - 1)
        e->s.answer_len = 0;
    e->s.answer_at = 0;
    commit(e, 0);
}

static int recover_state(struct edit *e)
{
    memcpy(&e->s, relay_user(e->relay), sizeof(e->s));
    if (!state_ok(e, &e->s))
        return -EBADMSG;
    settle_answer(e);
    int r = ring_reserve(&e->rx, e->s.consumed, (size_t)(e->file->rx_head - e->s.consumed));
    if (e->s.mode != MODE_HOLD)
        area_release(e, &e->a);
    else if (r == 0)
        r = area_reserve(e, &e->a, (size_t)e->s.at);
    if (e->s.mode != MODE_EMIT)
        area_release(e, &e->b);
    else if (r == 0)
        r = area_reserve(e, &e->b, (size_t)e->s.left);
    return r;
}

int edit_recover(int dirfd, const char *path, struct relay *relay, const struct splice_rules *rules,
                 struct edit **ret, struct err *err)
{
    struct file f;
    struct edit *e = NULL;
    _cleanup_close_ int fd = openat(dirfd, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, -errno, "opening %s", path);
    int r = check_file(fd, path, &f, err);
    if (r < 0)
        return r;
    r = map_file(fd, f.ring_size, &e);
    if (!e)
        return err_errno(err, r, "mapping %s", path);
    TAKE_FD(fd);
    e->relay = relay;
    e->rules = rules;
    r = recover_state(e);
    if (r < 0) {
        edit_close(e);
        return err_errno(err, r, "%s: its state", path);
    }
    *ret = e;
    return 0;
}

void edit_close(struct edit *e)
{
    if (!e)
        return;
    munmap(e->file, e->map_size);
    close(e->fd);
    free(e);
}

/* -- rx -- */

uint64_t edit_rx_held(const struct edit *e)
{
    return e->file->rx_head;
}

uint64_t edit_rx_limit(const struct edit *e)
{
    return e->s.consumed + e->rx.size;
}

ssize_t edit_rx_space(struct edit *e, uint8_t **ret)
{
    size_t room = (size_t)(edit_rx_limit(e) - e->file->rx_head);
    if (room == 0)
        return -ENOBUFS;
    ssize_t n = ring_room(&e->rx, e->file->rx_head, room);
    if (n > 0)
        *ret = ring_at(&e->rx, e->file->rx_head);
    return n;
}

void edit_rx_commit(struct edit *e, size_t n)
{
    EDIT_STEP();
    barrier();
    __atomic_store_n(&e->file->rx_head, e->file->rx_head + n, __ATOMIC_RELAXED);
    barrier();
    EDIT_STEP();
}

void edit_rx_fin(struct edit *e)
{
    barrier();
    __atomic_store_n(&e->file->rx_fin, 1, __ATOMIC_RELAXED);
    barrier();
    EDIT_STEP();
}

bool edit_rx_has_fin(const struct edit *e)
{
    return e->file->rx_fin;
}

static size_t rx_waiting(const struct edit *e)
{
    return (size_t)(e->file->rx_head - e->s.consumed);
}

/* -- parser: each step returns 1 when it moved something, 0 when it has to wait, or an errno -- */

/* Nothing is in rx: wait, or the end. */
static int wait_or_finish(struct edit *e)
{
    if (e->file->rx_fin) {
        EDIT_STEP();
        relay_out_fin(e->relay);
        EDIT_STEP();
    }
    return 0;
}

static int step_frame(struct edit *e)
{
    uint8_t peek[SPLICE_PEEK_MAX];
    struct ttrpc_header h;
    size_t n = MIN(rx_waiting(e), sizeof(peek));
    if (n == 0)
        return wait_or_finish(e);
    ring_get(&e->rx, e->s.consumed, peek, n);
    enum splice_verdict v = splice_peek(peek, n);
    e->s.at = 0;
    if (v == SPLICE_MORE) {
        if (!e->file->rx_fin)
            return 0;
        e->s.left = n;
        e->s.mode = MODE_PASS;
        return 1;
    }
    ttrpc_header_decode(peek, &h);
    e->s.left = (uint64_t)TTRPC_HEADER_SIZE + h.length;
    e->s.mode = v == SPLICE_HOLD ? MODE_HOLD : MODE_PASS;
    e->stats.frames++;
    return 1;
}

static int step_pass(struct edit *e)
{
    uint8_t *to;
    size_t n = (size_t)MIN(e->s.left, rx_waiting(e));
    if (n == 0)
        return wait_or_finish(e);
    ssize_t room = relay_out_space(e->relay, &to);
    if (room < 0)
        return room == -ENOBUFS ? 0 : (int)room;
    n = MIN(n, (size_t)room);
    ring_get(&e->rx, e->s.consumed, to, n);
    e->s.consumed += n;
    e->s.left -= n;
    if (e->s.left == 0)
        e->s.mode = MODE_FRAME;
    commit(e, n);
    return 1;
}

/* The whole frame is in area A and must not go on: our answer on its stream. */
static void refuse(struct edit *e, const struct err *why)
{
    struct buf frame = BUF_INIT(ANSWER_MAX);
    splice_answer(e->a.base, why, &frame);
    memcpy((uint8_t *)e->file + ANSWER_OFFSET, frame.data, frame.len);
    e->s.answer_len = (uint32_t)frame.len;
    buf_done(&frame);
    e->s.mode = MODE_FRAME;
    e->s.at = e->s.left = 0;
    e->stats.refused++;
    commit(e, 0);
}

/* The whole frame is in area A. */
static int step_splice(struct edit *e)
{
    struct buf out = BUF_INIT(FRAME_MAX + 1);
    struct err err = ERR_INIT;
    if (e->s.answer_len > 0)
        return 0; /* an answer of ours waits, and this frame may need one */
    int r = splice_frame(e->a.base, (size_t)e->s.left, e->rules, &out, &err);
    if (r < 0) {
        refuse(e, &err);
    } else {
        r = area_reserve(e, &e->b, out.len);
        if (r < 0) {
            buf_done(&out);
            return r;
        }
        memcpy(e->b.base, out.data, out.len);
        e->s.left = out.len;
        e->s.at = 0;
        e->s.mode = MODE_EMIT;
        e->stats.edited++;
        commit(e, 0);
    }
    buf_done(&out);
    area_release(e, &e->a);
    return 1;
}

static int step_hold(struct edit *e)
{
    size_t n = MIN((size_t)MIN(e->s.left - e->s.at, rx_waiting(e)), (size_t)HOLD_CHUNK);
    if (e->s.at == e->s.left)
        return step_splice(e);
    if (n == 0)
        return wait_or_finish(e);
    int r = area_reserve(e, &e->a, (size_t)e->s.at + n);
    if (r < 0)
        return r;
    ring_get(&e->rx, e->s.consumed, e->a.base + e->s.at, n);
    e->s.consumed += n;
    e->s.at += n;
    commit(e, 0);
    return 1;
}

static int step_emit(struct edit *e)
{
    uint8_t *to;
    ssize_t room = relay_out_space(e->relay, &to);
    if (room < 0)
        return room == -ENOBUFS ? 0 : (int)room;
    size_t n = MIN((size_t)room, (size_t)(e->s.left - e->s.at));
    memcpy(to, e->b.base + e->s.at, n);
    e->s.at += n;
    bool done = e->s.at == e->s.left;
    if (done) {
        e->s.mode = MODE_FRAME;
        e->s.at = e->s.left = 0;
    }
    commit(e, n);
    if (done)
        area_release(e, &e->b);
    return 1;
}

static int step(struct edit *e)
{
    switch ((enum mode)e->s.mode) {
    case MODE_PASS:
        return step_pass(e);
    case MODE_HOLD:
        return step_hold(e);
    case MODE_EMIT:
        return step_emit(e);
    case MODE_FRAME:
    case MODES:
        break;
    }
    return step_frame(e);
}

/* -- the agent's side -- */

static void walk(struct edit *e)
{
    const uint8_t *p;
    size_t n;
    while ((n = relay_in_peek(e->relay, e->s.in_seen, &p)) > 0) {
        e->s.in_seen += ttrpc_walk(&e->s.in_left, &e->s.in_have, e->s.in_header, p, n);
        e->walked = true;
    }
}

static int inject(struct edit *e)
{
    walk(e);
    if (e->s.answer_len == 0)
        return 0;
    if (relay_in_eof(e->relay)) {
        e->s.answer_len = 0;
        commit(e, 0);
        return 1;
    }
    if (e->s.in_left > 0 || e->s.in_have > 0)
        return 0;
    e->s.answer_at = relay_in_head(e->relay) + 1;
    commit(e, 0);
    int r = relay_in_inject(e->relay, (uint8_t *)e->file + ANSWER_OFFSET, e->s.answer_len);
    EDIT_STEP();
    e->s.answer_at = 0;
    if (r == 0)
        e->s.answer_len = 0;
    commit(e, 0); /* on failure, too: from here on bytes may be read again */
    if (r < 0)
        return r == -ENOBUFS ? 0 : r;
    return 1;
}

int edit_in_ack(struct edit *e, uint64_t offset)
{
    if (offset > relay_in_head(e->relay))
        return -ERANGE;
    walk(e);
    if (e->walked)
        commit(e, 0);
    int r = relay_in_ack(e->relay, offset);
    EDIT_STEP();
    return r;
}

size_t edit_in_limit(struct edit *e)
{
    walk(e);
    if (e->s.answer_len == 0)
        return SIZE_MAX;
    if (e->s.in_left > 0)
        return (size_t)e->s.in_left;
    return e->s.in_have > 0 ? TTRPC_HEADER_SIZE - e->s.in_have : 0;
}

int edit_run(struct edit *e)
{
    int r, injected;
    do {
        do
            r = step(e);
        while (r > 0);
        injected = inject(e);
    } while (injected > 0);
    if (r == -EPIPE) /* after relay_out_fin: nothing more can be said to the agent */
        r = 0;
    return r < 0 ? r : injected;
}

void edit_trim(struct edit *e)
{
    ring_trim(&e->rx, e->s.consumed, e->file->rx_head);
}

void edit_get_stats(const struct edit *e, struct edit_stats *ret)
{
    *ret = e->stats;
}
