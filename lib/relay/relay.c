/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The process may be killed between any two instructions, and no byte may be lost or repeated. The
 * trouble is always the same: a system call has moved bytes and we die before its result is
 * stored. So for every call that moves bytes the kernel keeps a count of its own, in an object
 * that outlives us because the keeper holds it too, and recovery believes that count.
 *
 * In (socket to ring). Bytes are read with MSG_PEEK, straight into the ring at the place that belongs
 * to their offset, and taken out of the socket later, by a recv() that throws them away: to take them
 * wakes a peer that waits for anything on its socket, and the scheduler runs it before us, so the
 * bytes go on their way first (6 of 20 us at each end of an agent call). SO_PEEK_OFF, once it is set,
 * counts both: a peek begins that far into the queue and raises it by what it read, a recv() lowers it
 * by what it took, in the same breath. So it is what was read and not yet taken. The file stores
 * in_base, and
 *
 *     received so far = in_base + SO_PEEK_OFF                                              (1)
 *
 * holds at all times, without a store per read, but while bytes are taken: before that we store what
 * was received in in_taking, which is the answer as long as it is not 0; then we take all there is,
 * store the same in in_base, and clear in_taking. Our own bytes between the peer's
 * (relay_in_inject) go into the ring first and count by one store to in_base, which keeps (1).
 * An out-of-band byte is not in the stream and is not wanted here: such a connection may break, and
 * the pump ends it.
 *
 * Out (ring to socket). A socket does not say how much was written to it, but sendmmsg(2) does: its
 * result is the number of messages, and how many bytes of each were taken it writes into msg_len of
 * the caller's header, before it returns. That header lies in our file, so that the kernel itself
 * records what it did, in the same call, and a signal that kills us acts only behind it:
 *
 *     sent so far = call.base + call.msg_len                                                 (2)
 *
 * holds at all times; there is nothing to settle. Before the next call the other of two headers gets
 * base = sent and msg_len = 0, and one store of out_call makes it the one that counts. One message,
 * since a second one's count would need a base that nobody can store in between.
 * What it rests on: the header's page is there when the kernel writes to it, a microsecond after we
 * have (it lies in a tmpfs and was just touched). Were it taken away in between, the kernel would
 * fetch it again; only if that failed too, by a kill while it waits for it, would the count be lost.
 * Without a kill that failure is EFAULT, and ends the connection, since nobody knows what was sent.
 * A libc may wrap sendmmsg in a loop of sendmsg (musl does), so the system call is made as it is.
 * (A pipe between ring and socket, whose FIONREAD tells what an unrecorded call did, does the same
 * with two calls instead of one and two descriptors more, and cost 9 of 70 us of an agent call.)
 *
 * Into the out ring: the owner writes behind head and commits. With a state of its own it fills
 * the slot that does not count and flips out_slot: one store shows head and state together. Without
 * one, the store of head in the slot that counts is enough.
 *
 * Memory: after SIGKILL the shared mapping holds a prefix of our stores in program order (the
 * kernel is asked by another process, on whatever processor: death is a full barrier), so compiler
 * barriers suffice: store() below. One thread; of several system calls between two stores (reads,
 * takes) the kernel's count says how far they came.
 *
 * Failures. A full file system is -ENOSPC from a read or from relay_out_space and nothing else:
 * every block is allocated before it is touched (ring.c), the peer's bytes wait in the socket, and
 * the same call works again once there is room. A broken peer is the errno of recv or send; bytes
 * for it stay in the ring, and whoever owns us throws all of it away.
 *
 * The file is ours alone (0600, checked at recovery), yet recovery takes nothing from it on faith:
 * it could be torn, of another version, or someone's idea of a joke. All of it is checked before it
 * is mapped, on a copy; after that only we write to it.
 */
#include "relay/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "relay/relay_file.h"
#include "relay/ring.h"

_Static_assert(RELAY_BLOCK == RING_BLOCK, "the file's layout is in units of the ring's blocks");
_Static_assert(RELAY_RING_MAX == RING_SIZE_MAX, "one limit");
_Static_assert(sizeof(struct relay_file) <= RELAY_FILE_HEADER, "the header is one page");

#define THROW_AWAY 8192 /* stays in the processor's cache */
#define THROW_AWAY_PIECES 32

struct relay {
    struct relay_file *file; /* mapped */
    size_t map_size;
    int file_fd;
    int socket;
    struct ring in, out;
    uint64_t in_head; /* what (1) says, so that nobody needs to ask the kernel */
    uint32_t untaken; /* what SO_PEEK_OFF is */
    bool shut;        /* SHUT_WR was done */
};

#define barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* A store that a successor may find, in program order with all others and with system calls. */
static void store(uint64_t *field, uint64_t value)
{
    barrier();
    __atomic_store_n(field, value, __ATOMIC_RELAXED);
    barrier();
}

static void store32(uint32_t *field, uint32_t value)
{
    barrier();
    __atomic_store_n(field, value, __ATOMIC_RELAXED);
    barrier();
}

static int peek_get(int fd, int *ret)
{
    socklen_t len = sizeof(*ret);
    return getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, ret, &len) < 0 ? -errno : 0;
}

static int peek_set(int fd, int value)
{
    return setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof(value)) < 0 ? -errno : 0;
}

/* -- self-test -- */

/* Two writes are one stream to a peek, which goes on where the last one ended. */
static int test_peek_off(int a, int b)
{
    char text[8];
    int off, r = peek_set(a, 0);

    if (r < 0)
        return r;
    if (send(b, "abc", 3, MSG_NOSIGNAL) != 3 || send(b, "def", 3, MSG_NOSIGNAL) != 3 ||
        recv(a, text, 2, MSG_DONTWAIT | MSG_PEEK) != 2 ||
        recv(a, text + 2, 6, MSG_DONTWAIT | MSG_PEEK) != 4 || memcmp(text, "abcdef", 6) != 0 ||
        recv(a, text, 5, MSG_DONTWAIT) != 5)
        return -EIO;
    r = peek_get(a, &off);
    if (r < 0)
        return r;
    return off == 1 ? 0 : -ENOSYS;
}

/* As it is, whatever the C library makes of it. 1: msg_len says how much was taken; -1, errno. */
static long send_counted(int fd, struct mmsghdr *msg)
{
    return syscall(SYS_sendmmsg, fd, msg, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int test_send(int a)
{
    struct iovec iov[] = {{"abc", 3}, {"de", 2}};
    struct mmsghdr msg = {.msg_hdr = {.msg_iov = iov, .msg_iovlen = ARRAY_SIZE(iov)}};

    if (send_counted(a, &msg) != 1)
        return -errno;
    return msg.msg_len == 5 ? 0 : -ENOSYS;
}

int relay_selftest(struct err *err)
{
    static const char meaning[] = "a restart of this program will end the connections it carries";
    int s[2] = {-1, -1}, r = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) < 0)
        return err_errno(err, -errno, "relay self-test: socketpair");
    if (test_peek_off(s[0], s[1]) < 0)
        r = err_set(err, -ENOSYS,
                    "this kernel does not count in SO_PEEK_OFF what is read from a unix socket: %s",
                    meaning);
    if (r == 0 && test_send(s[0]) < 0)
        r = err_set(err, -ENOSYS, "this kernel does not count what sendmmsg has sent: %s", meaning);
    close(s[0]);
    close(s[1]);
    return r;
}

/* -- birth -- */

/* A blocking descriptor would hang the loop one day, not now. */
static int check_nonblock(int socket, struct err *err)
{
    int flags = fcntl(socket, F_GETFL);

    if (flags < 0)
        return err_errno(err, -errno, "relay: descriptor %d", socket);
    if (!(flags & O_NONBLOCK))
        return err_set(err, -EINVAL, "relay: descriptor %d is blocking", socket);
    return 0;
}

static int allocate_header(int fd)
{
    int r;

    do
        r = fallocate(fd, 0, 0, RELAY_FILE_HEADER);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Takes file_fd on success. The header's page is allocated, the file has its full size. */
static int relay_map(int file_fd, size_t ring_size, struct relay **ret)
{
    size_t size = relay_file_size(ring_size);
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_fd, 0);

    if (map == MAP_FAILED)
        return -errno;
    struct relay *r = xcalloc(1, sizeof(*r));
    r->file = map;
    r->map_size = size;
    r->file_fd = file_fd;
    r->socket = -1;
    ring_init(&r->in, file_fd, relay_file_in(), (uint8_t *)map + relay_file_in(), ring_size);
    ring_init(&r->out, file_fd, relay_file_out(ring_size),
              (uint8_t *)map + relay_file_out(ring_size), ring_size);
    *ret = r;
    return 0;
}

static void write_header(struct relay_file *f, size_t ring_size)
{
    f->major = RELAY_FILE_MAJOR;
    f->minor = RELAY_FILE_MINOR;
    f->ring_size = (uint32_t)ring_size;
    f->header_size = sizeof(*f);
    uint64_t magic;
    memcpy(&magic, RELAY_FILE_MAGIC, sizeof(magic));
    store((uint64_t *)(void *)f->magic, magic);
}

static int create_in(int file_fd, int socket, size_t ring_size, struct relay **ret)
{
    int r;

    if (ftruncate(file_fd, (off_t)relay_file_size(ring_size)) < 0)
        return -errno;
    r = allocate_header(file_fd);
    if (r < 0)
        return r;
    r = peek_set(socket, 0);
    if (r < 0)
        return r;
    r = relay_map(file_fd, ring_size, ret);
    if (r < 0)
        return r;
    write_header((*ret)->file, ring_size);
    return 0;
}

int relay_create(int dirfd, const char *path, int socket, size_t ring_size, struct relay **ret,
                 struct err *err)
{
    struct relay *relay = NULL;
    int r;

    if (!ring_size_ok(ring_size))
        return err_set(err, -EINVAL,
                       "relay: a ring of %zu bytes; allowed: powers of two from %u to %u",
                       ring_size, RING_SIZE_MIN, RING_SIZE_MAX);
    r = check_nonblock(socket, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd =
        openat(dirfd, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, -errno, "creating %s", path);
    r = create_in(fd, socket, ring_size, &relay);
    if (r < 0) {
        unlinkat(dirfd, path, 0);
        return err_errno(err, r, "setting up %s", path);
    }
    TAKE_FD(fd);
    relay->socket = socket;
    *ret = relay;
    return 0;
}

/* -- recovery -- */

static int check_identity(int fd, const char *path, struct relay_file *ret, struct err *err)
{
    struct stat st;
    ssize_t n;

    if (fstat(fd, &st) < 0)
        return err_errno(err, -errno, "%s", path);
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
        return err_set(err, -EBADMSG, "%s is not a file of ours", path);
    memset(ret, 0, sizeof(*ret));
    n = pread(fd, ret, sizeof(*ret), 0);
    if (n < 0)
        return err_errno(err, -errno, "reading %s", path);
    static const char none[8];
    if (memcmp(ret->magic, none, sizeof(none)) == 0)
        return err_set(err, -ENODATA, "%s was never finished: its creator had read nothing", path);
    if (memcmp(ret->magic, RELAY_FILE_MAGIC, sizeof(ret->magic)) != 0)
        return err_set(err, -EBADMSG, "%s is not a relay's file", path);
    if (ret->major > RELAY_FILE_MAJOR)
        return err_set(err, -EPROTONOSUPPORT,
                       "%s has format %" PRIu32 ", this program knows up to %d: run the newer one",
                       path, ret->major, RELAY_FILE_MAJOR);
    if (ret->major < RELAY_FILE_OLDEST || ret->header_size < RELAY_FILE_HEADER_MIN ||
        ret->header_size > RELAY_FILE_HEADER || !ring_size_ok(ret->ring_size))
        return err_set(err, -EBADMSG, "%s: bad version or sizes", path);
    if ((uint64_t)st.st_size != relay_file_size(ret->ring_size))
        return err_set(err, -EBADMSG, "%s has %jd bytes, not %zu", path, (intmax_t)st.st_size,
                       relay_file_size(ret->ring_size));
    return 0;
}

int relay_check_format(int dirfd, const char *path, struct err *err)
{
    struct relay_file header;
    struct err local = ERR_INIT;
    _cleanup_close_ int fd = openat(dirfd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || check_identity(fd, path, &header, &local) != -EPROTONOSUPPORT)
        return 0;
    return err_set(err, -EPROTONOSUPPORT, "%s", local.text);
}

/* Settles (1) in the copy. */
static int settle_in(struct relay_file *f, int peek_off, const char *path, struct err *err)
{
    if (peek_off < 0 || f->in_taking > RELAY_OFFSET_MAX || f->in_base > RELAY_OFFSET_MAX ||
        (f->in_taking != 0 && f->in_taking < (uint64_t)peek_off))
        return err_set(err, -EBADMSG,
                       "%s: bad base %" PRIu64 " (taking %" PRIu64 ") for SO_PEEK_OFF %d", path,
                       f->in_base, f->in_taking, peek_off);
    if (f->in_taking != 0)
        f->in_base = f->in_taking - (uint64_t)peek_off;
    f->in_taking = 0;
    uint64_t head = f->in_base + (uint64_t)peek_off;
    if (f->in_tail > head || head - f->in_tail > f->ring_size || f->in_eof > 1)
        return err_set(err, -EBADMSG, "%s: bad in tail %" PRIu64 " for head %" PRIu64, path,
                       f->in_tail, head);
    return 0;
}

/* (2) */
static uint64_t sent_of(const struct relay_file *f)
{
    const struct relay_call *call = &f->call[f->out_call];

    return call->base + call->msg.msg_len;
}

static int check_out(const struct relay_file *f, const char *path, struct err *err)
{
    if (f->out_slot > 1 || f->out_fin > 1 || f->out_call > 1)
        return err_set(err, -EBADMSG, "%s: bad slots or flags", path);
    uint64_t head = f->slot[f->out_slot].head, base = f->call[f->out_call].base;
    if (head > RELAY_OFFSET_MAX || base > head || sent_of(f) > head ||
        head - sent_of(f) > f->ring_size)
        return err_set(err, -EBADMSG, "%s: bad out offsets", path);
    return 0;
}

/* Each store alone leaves a file that the next recovery settles to the same. */
static void store_settled(struct relay_file *to, const struct relay_file *from)
{
    if (to->in_base != from->in_base)
        store(&to->in_base, from->in_base);
    if (to->in_taking != from->in_taking)
        store(&to->in_taking, from->in_taking);
}

static int recover_counts(struct relay_file *f, int socket, const char *path, int *ret_peek,
                          struct err *err)
{
    int r = peek_get(socket, ret_peek);

    if (r < 0)
        return err_errno(err, r, "%s: SO_PEEK_OFF of its socket", path);
    r = settle_in(f, *ret_peek, path, err);
    return r < 0 ? r : check_out(f, path, err);
}

/* What is between tail and head has its blocks unless the file is hostile; then it gets some. */
static int recover_blocks(struct relay *r, const struct relay_file *f)
{
    int ret = ring_reserve(&r->in, f->in_tail, (size_t)(r->in_head - f->in_tail));

    if (ret < 0)
        return ret;
    return ring_reserve(&r->out, sent_of(f), (size_t)(f->slot[f->out_slot].head - sent_of(f)));
}

int relay_recover(int dirfd, const char *path, int socket, struct relay **ret, struct err *err)
{
    struct relay_file f;
    struct relay *relay = NULL;
    int r, peek_off;

    r = check_nonblock(socket, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = openat(dirfd, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, -errno, "opening %s", path);
    r = check_identity(fd, path, &f, err);
    if (r < 0)
        return r;
    r = recover_counts(&f, socket, path, &peek_off, err);
    if (r < 0)
        return r;
    r = allocate_header(fd);
    if (r == 0)
        r = relay_map(fd, f.ring_size, &relay);
    if (r < 0)
        return err_errno(err, r, "mapping %s", path);
    TAKE_FD(fd);
    relay->in_head = f.in_base + (uint64_t)peek_off;
    relay->untaken = (uint32_t)peek_off;
    r = recover_blocks(relay, &f);
    if (r < 0) {
        relay_close(relay);
        return err_errno(err, r, "%s: allocating its blocks", path);
    }
    store_settled(relay->file, &f);
    relay->socket = socket;
    *ret = relay;
    return 0;
}

void relay_close(struct relay *r)
{
    if (r == NULL)
        return;
    munmap(r->file, r->map_size);
    close(r->file_fd);
    closep(&r->socket);
    free(r);
}

int relay_socket(const struct relay *r)
{
    return r->socket;
}

/* -- in -- */

static size_t in_free(const struct relay *r)
{
    return r->in.size - (size_t)(r->in_head - r->file->in_tail);
}

/* One peek, of at most room bytes: as relay_in_read, and *ret_full when there may be more. */
static ssize_t read_once(struct relay *r, size_t room, bool *ret_full)
{
    ssize_t n, len = ring_room(&r->in, r->in_head, room);
    if (len < 0)
        return len;
    barrier();
    do
        n = recv(r->socket, ring_at(&r->in, r->in_head), (size_t)len, MSG_DONTWAIT | MSG_PEEK);
    while (n < 0 && errno == EINTR);
    barrier();
    if (n < 0)
        return -errno;
    if (n == 0)
        store32(&r->file->in_eof, 1);
    r->in_head += (uint64_t)n;
    r->untaken += (uint32_t)n;
    *ret_full = n == len;
    return n;
}

ssize_t relay_in_read(struct relay *r, size_t limit)
{
    size_t room = MIN(in_free(r), limit);
    bool full = false;

    if (r->file->in_eof)
        return 0;
    if (room == 0)
        return limit == 0 ? -EAGAIN : -ENOBUFS;
    ssize_t n = read_once(r, room, &full);
    if (n <= 0 || !full || (size_t)n == room)
        return n;
    /* The ring's end, or a block that was not there, has cut it short. */
    ssize_t more = read_once(r, room - (size_t)n, &full);
    return more > 0 ? n + more : n;
}

/* A recv of what was peeked at, into the bin. > 0, or a negative errno. */
static ssize_t throw_away(int socket, size_t len)
{
    uint8_t bin[THROW_AWAY];
    struct iovec iov[THROW_AWAY_PIECES];
    struct msghdr msg = {.msg_iov = iov};
    ssize_t n;

    for (; len > 0 && msg.msg_iovlen < ARRAY_SIZE(iov); msg.msg_iovlen++) {
        iov[msg.msg_iovlen] = (struct iovec){bin, MIN(len, sizeof(bin))};
        len -= iov[msg.msg_iovlen].iov_len;
    }
    barrier();
    do
        n = recvmsg(socket, &msg, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    barrier();
    if (n < 0)
        return -errno;
    return n > 0 ? n : -EIO;
}

int relay_in_take(struct relay *r)
{
    if (r->untaken == 0)
        return 0;
    store(&r->file->in_taking, r->in_head);
    while (r->untaken > 0) {
        ssize_t n = throw_away(r->socket, r->untaken);
        if (n < 0)
            return n == -EAGAIN ? -EIO : (int)n; /* they are not there any more: not our doing */
        r->untaken -= (uint32_t)n;
    }
    store(&r->file->in_base, r->in_head);
    store(&r->file->in_taking, 0);
    return 0;
}

size_t relay_in_untaken(const struct relay *r)
{
    return r->untaken;
}

uint64_t relay_in_head(const struct relay *r)
{
    return r->in_head;
}

uint64_t relay_in_tail(const struct relay *r)
{
    return r->file->in_tail;
}

bool relay_in_eof(const struct relay *r)
{
    return r->file->in_eof;
}

size_t relay_in_peek(const struct relay *r, uint64_t offset, const uint8_t **ret)
{
    if (offset < r->file->in_tail || offset >= r->in_head)
        return 0;
    *ret = ring_at(&r->in, offset);
    return ring_span(&r->in, offset, (size_t)(r->in_head - offset));
}

int relay_in_ack(struct relay *r, uint64_t offset)
{
    if (offset > r->in_head)
        return -ERANGE;
    if (offset > r->file->in_tail)
        store(&r->file->in_tail, offset);
    return 0;
}

int relay_in_inject(struct relay *r, const void *data, size_t len)
{
    if (len > in_free(r))
        return -ENOBUFS;
    int ret = ring_reserve(&r->in, r->in_head, len);
    if (ret < 0)
        return ret;
    ring_put(&r->in, r->in_head, data, len);
    /* The one that counts: a take that failed has left in_taking. */
    uint64_t *received = r->file->in_taking != 0 ? &r->file->in_taking : &r->file->in_base;
    store(received, *received + len);
    r->in_head += len;
    return 0;
}

/* -- out -- */

static struct relay_slot *slot(const struct relay *r)
{
    return &r->file->slot[r->file->out_slot];
}

uint64_t relay_out_head(const struct relay *r)
{
    return slot(r)->head;
}

uint64_t relay_out_done(const struct relay *r)
{
    return sent_of(r->file);
}

size_t relay_out_free(const struct relay *r)
{
    return r->out.size - (size_t)(slot(r)->head - sent_of(r->file));
}

ssize_t relay_out_space(struct relay *r, uint8_t **ret)
{
    size_t room = relay_out_free(r);

    if (r->file->out_fin)
        return -EPIPE;
    if (room == 0)
        return -ENOBUFS;
    ssize_t n = ring_room(&r->out, slot(r)->head, room);
    if (n > 0)
        *ret = ring_at(&r->out, slot(r)->head);
    return n;
}

void relay_out_commit(struct relay *r, size_t n, const void *user, size_t user_len)
{
    struct relay_slot *now = slot(r);
    uint64_t head = now->head + n;

    if (user == NULL) {
        if (n > 0)
            store(&now->head, head);
        return;
    }
    uint32_t other = !r->file->out_slot;
    struct relay_slot *next = &r->file->slot[other];
    user_len = MIN(user_len, sizeof(next->user));
    memcpy(next->user, user, user_len);
    memcpy(next->user + user_len, now->user + user_len, sizeof(next->user) - user_len);
    store(&next->head, head);
    store32(&r->file->out_slot, other);
}

const void *relay_user(const struct relay *r)
{
    return slot(r)->user;
}

void relay_out_fin(struct relay *r)
{
    if (!r->file->out_fin)
        store32(&r->file->out_fin, 1);
}

bool relay_out_waits(const struct relay *r)
{
    return sent_of(r->file) < slot(r)->head || (r->file->out_fin && !r->shut);
}

bool relay_out_finished(const struct relay *r)
{
    return r->shut;
}

/* The call that counts, with nothing sent by it yet. */
static struct relay_call *next_call(struct relay *r)
{
    struct relay_file *f = r->file;
    uint32_t other = !f->out_call;

    if (f->call[f->out_call].msg.msg_len > 0) {
        store32(&f->call[other].msg.msg_len, 0);
        store(&f->call[other].base, sent_of(f));
        store32(&f->out_call, other);
    }
    return &f->call[f->out_call];
}

/* > 0, or a negative errno. */
static int send_some(struct relay *r, uint64_t head)
{
    uint64_t sent = sent_of(r->file);
    size_t len = (size_t)(head - sent), span = ring_span(&r->out, sent, len);
    struct iovec iov[] = {{ring_at(&r->out, sent), span},
                          {ring_at(&r->out, sent + span), len - span}};
    struct relay_call *call = next_call(r);
    long n;

    call->msg.msg_hdr = (struct msghdr){.msg_iov = iov, .msg_iovlen = span < len ? 2 : 1};
    barrier();
    do
        n = send_counted(r->socket, &call->msg);
    while (n < 0 && errno == EINTR);
    barrier();
    if (n < 0)
        return -errno;
    return call->msg.msg_len > 0 ? 1 : -EIO;
}

int relay_out_flush(struct relay *r)
{
    uint64_t head = slot(r)->head;

    while (sent_of(r->file) < head) {
        int n = send_some(r, head);
        if (n < 0)
            return n;
    }
    if (r->file->out_fin && !r->shut) {
        if (shutdown(r->socket, SHUT_WR) < 0)
            return -errno;
        r->shut = true;
    }
    return 0;
}

void relay_trim(struct relay *r)
{
    ring_trim(&r->in, r->file->in_tail, r->in_head);
    ring_trim(&r->out, sent_of(r->file), slot(r)->head);
}
