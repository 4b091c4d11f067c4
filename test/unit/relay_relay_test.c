/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay's functions one by one, in one process: a "restart" here is relay_close on duplicates
 * of the descriptors and relay_recover. Death at any instruction is kill_loop's (test/relay).
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/fs.h"
#include "relay/relay.h"
#include "relay/relay_file.h"

#define RING (32U << 10)
#define FILE_NAME "conn"

struct fixture {
    char dir[64];
    int dirfd;
    int peer; /* the test's end */
    int kept; /* what a keeper would hold */
    struct relay *relay;
};

static int dup_of(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static int recover(struct fixture *f, struct err *err)
{
    int fd = dup_of(f->kept), r = relay_recover(f->dirfd, FILE_NAME, fd, &f->relay, err);

    if (r < 0)
        close(fd);
    return r;
}

static void restart(struct fixture *f)
{
    struct err err = ERR_INIT;

    relay_close(TAKE_PTR(f->relay));
    if (recover(f, &err) < 0)
        fail_msg("recover: %s", err_text(&err));
}

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct err err = ERR_INIT;
    int s[2];

    snprintf(f->dir, sizeof(f->dir), "/tmp/relay-test.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->dirfd = open(f->dir, O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s), 0);
    f->peer = s[0];
    f->kept = s[1];
    if (relay_create(f->dirfd, FILE_NAME, dup_of(s[1]), RING, &f->relay, &err) < 0)
        fail_msg("create: %s", err_text(&err));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    relay_close(f->relay);
    closep(&f->kept);
    closep(&f->peer);
    close(f->dirfd);
    fs_remove_tree(AT_FDCWD, f->dir, NULL);
    free(f);
    return 0;
}

static uint8_t pattern(uint64_t offset)
{
    return (uint8_t)((offset * 2654435761U) >> 13);
}

static void send_pattern(int fd, uint64_t from, size_t len)
{
    uint8_t data[8192];

    while (len > 0) {
        size_t n = MIN(len, sizeof(data));
        for (size_t i = 0; i < n; i++)
            data[i] = pattern(from + i);
        assert_int_equal(send(fd, data, n, MSG_NOSIGNAL), n);
        from += n;
        len -= n;
    }
}

static void check_in(const struct relay *r, uint64_t from, uint64_t to)
{
    const uint8_t *data;

    while (from < to) {
        size_t n = relay_in_peek(r, from, &data);
        assert_true(n > 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(data[i], pattern(from + i));
        from += n;
    }
}

static void put_out(struct relay *r, size_t len)
{
    while (len > 0) {
        uint8_t *at;
        ssize_t n = relay_out_space(r, &at);
        assert_true(n > 0);
        n = MIN(n, (ssize_t)len);
        for (ssize_t i = 0; i < n; i++)
            at[i] = pattern(relay_out_head(r) + (uint64_t)i);
        relay_out_commit(r, (size_t)n, NULL, 0);
        len -= (size_t)n;
    }
}

static void take_out(int fd, uint64_t from, size_t len)
{
    uint8_t data[8192];

    while (len > 0) {
        ssize_t n = recv(fd, data, MIN(len, sizeof(data)), 0);
        assert_true(n > 0);
        for (ssize_t i = 0; i < n; i++)
            assert_int_equal(data[i], pattern(from + (uint64_t)i));
        from += (uint64_t)n;
        len -= (size_t)n;
    }
}

static void selftest_passes(void **state)
{
    struct err err = ERR_INIT;
    assert_int_equal(relay_selftest(&err), 0);
}

static void in_survives_restart(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), -EAGAIN);
    send_pattern(f->peer, 0, 5000);
    assert_int_equal(relay_in_read(f->relay, 100), 100);
    assert_int_equal(relay_in_read(f->relay, 0), -EAGAIN);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 100);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 4900);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 5000);
    check_in(f->relay, 0, 5000);
    assert_int_equal(relay_in_ack(f->relay, 5001), -ERANGE);
    assert_int_equal(relay_in_ack(f->relay, 4000), 0);
    assert_int_equal(relay_in_ack(f->relay, 3000), 0);
    restart(f);
    assert_int_equal(relay_in_tail(f->relay), 4000);
    check_in(f->relay, 4000, 5000);
}

static void out_survives_restart(void **state)
{
    struct fixture *f = *state;

    put_out(f->relay, 9000);
    restart(f);
    assert_int_equal(relay_out_head(f->relay), 9000);
    assert_int_equal(relay_out_done(f->relay), 0);
    assert_int_equal(relay_out_flush(f->relay), 0);
    assert_int_equal(relay_out_done(f->relay), 9000);
    restart(f);
    assert_int_equal(relay_out_done(f->relay), 9000);
    assert_int_equal(relay_out_free(f->relay), RING);
    take_out(f->peer, 0, 9000);
}

static size_t blocks(const struct fixture *f)
{
    struct stat st;
    assert_int_equal(fstatat(f->dirfd, FILE_NAME, &st, 0), 0);
    return (size_t)st.st_blocks * 512 / RELAY_BLOCK;
}

static void ring_fills_and_wraps(void **state)
{
    struct fixture *f = *state;
    uint64_t sent = 0, acked = 0;

    for (int lap = 0; lap < 5; lap++) {
        size_t n = RING - (size_t)(sent - acked);
        send_pattern(f->peer, sent, n + 100);
        sent += n;
        while (relay_in_head(f->relay) < sent)
            assert_true(relay_in_read(f->relay, SIZE_MAX) > 0);
        assert_int_equal(relay_in_read(f->relay, SIZE_MAX), -ENOBUFS);
        restart(f);
        assert_int_equal(relay_in_read(f->relay, SIZE_MAX), -ENOBUFS);
        check_in(f->relay, acked, sent);
        acked = sent - 777;
        assert_int_equal(relay_in_ack(f->relay, acked), 0);
        /* the 100 that waited in the socket */
        for (size_t got = 0; got < 100;)
            got += (size_t)relay_in_read(f->relay, 100 - got);
        sent += 100;
    }
}

static void out_fills_and_resumes(void **state)
{
    struct fixture *f = *state;
    uint8_t *at;

    put_out(f->relay, RING);
    assert_int_equal(relay_out_space(f->relay, &at), -ENOBUFS);
    assert_int_equal(relay_out_free(f->relay), 0);
    assert_int_equal(relay_out_flush(f->relay), 0);
    /* Now until the socket is full; the pipe then holds bytes too. */
    uint64_t head = RING;
    while (relay_out_flush(f->relay) == 0) {
        put_out(f->relay, 10000);
        head += 10000;
    }
    assert_int_equal(relay_out_flush(f->relay), -EAGAIN);
    assert_true(relay_out_done(f->relay) < head);
    for (uint64_t got = 0; got < head; got += 1000) {
        size_t n = (size_t)MIN(head - got, 1000);
        restart(f);
        take_out(f->peer, got, n);
        int r = relay_out_flush(f->relay);
        assert_true(r == 0 || r == -EAGAIN);
    }
    assert_int_equal(relay_out_done(f->relay), head);
}

static void inject_takes_part(void **state)
{
    struct fixture *f = *state;
    uint8_t own[300];
    static uint8_t much[RING + 1];

    send_pattern(f->peer, 0, 1000);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 1000);
    for (size_t i = 0; i < sizeof(own); i++)
        own[i] = pattern(1000 + i);
    assert_int_equal(relay_in_inject(f->relay, own, sizeof(own)), 0);
    send_pattern(f->peer, 1300, RING - 1300);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 1300);
    while (relay_in_head(f->relay) < RING)
        assert_true(relay_in_read(f->relay, SIZE_MAX) > 0);
    check_in(f->relay, 0, RING);
    assert_int_equal(relay_in_inject(f->relay, own, 1), -ENOBUFS);
    assert_int_equal(relay_in_ack(f->relay, 100), 0);
    assert_int_equal(relay_in_inject(f->relay, much, 101), -ENOBUFS);
    assert_int_equal(relay_in_inject(f->relay, much, sizeof(much)), -ENOBUFS);
    assert_int_equal(relay_in_head(f->relay), RING);
    for (size_t i = 0; i < 100; i++)
        own[i] = pattern(RING + i);
    assert_int_equal(relay_in_inject(f->relay, own, 100), 0); /* across the wrap's end */
    check_in(f->relay, 100, RING + 100);
    assert_int_equal(relay_in_inject(f->relay, own, 0), 0);
}

static void user_state_goes_with_head(void **state)
{
    struct fixture *f = *state;
    uint8_t zero[RELAY_USER_SIZE] = {0}, user[RELAY_USER_SIZE], *at;

    assert_memory_equal(relay_user(f->relay), zero, sizeof(zero));
    memset(user, 7, sizeof(user));
    relay_out_commit(f->relay, 0, user, sizeof(user));
    assert_memory_equal(relay_user(f->relay), user, sizeof(user));
    assert_true(relay_out_space(f->relay, &at) > 3);
    memcpy(at, "abc", 3);
    relay_out_commit(f->relay, 3, NULL, 0);
    restart(f);
    assert_memory_equal(relay_user(f->relay), user, sizeof(user));
    assert_int_equal(relay_out_head(f->relay), 3);
    relay_out_commit(f->relay, 0, "xy", 2); /* the rest stays */
    memcpy(user, "xy", 2);
    restart(f);
    assert_memory_equal(relay_user(f->relay), user, sizeof(user));
    assert_int_equal(relay_out_head(f->relay), 3);
}

static void eof_is_sticky(void **state)
{
    struct fixture *f = *state;

    send_pattern(f->peer, 0, 10);
    assert_int_equal(shutdown(f->peer, SHUT_WR), 0);
    assert_int_equal(relay_in_read(f->relay, 4), 4);
    assert_false(relay_in_eof(f->relay));
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 6);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 0);
    assert_true(relay_in_eof(f->relay));
    restart(f);
    assert_true(relay_in_eof(f->relay));
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 0);
    /* half-close: the other direction lives */
    put_out(f->relay, 100);
    assert_int_equal(relay_out_flush(f->relay), 0);
    take_out(f->peer, 0, 100);
}

static void fin_comes_last(void **state)
{
    struct fixture *f = *state;
    uint8_t *at, byte;

    put_out(f->relay, 100);
    relay_out_fin(f->relay);
    relay_out_fin(f->relay);
    assert_int_equal(relay_out_space(f->relay, &at), -EPIPE);
    assert_false(relay_out_finished(f->relay));
    restart(f);
    assert_int_equal(relay_out_flush(f->relay), 0);
    assert_true(relay_out_finished(f->relay));
    restart(f);
    assert_int_equal(relay_out_flush(f->relay), 0);
    assert_true(relay_out_finished(f->relay));
    take_out(f->peer, 0, 100);
    assert_int_equal(recv(f->peer, &byte, 1, 0), 0);
    send_pattern(f->peer, 0, 5);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 5);
}

static void broken_peer(void **state)
{
    struct fixture *f = *state;

    send_pattern(f->peer, 0, 5);
    put_out(f->relay, 100);
    close(TAKE_FD(f->peer));
    assert_int_equal(relay_out_flush(f->relay), -EPIPE);
    restart(f);
    assert_int_equal(relay_out_flush(f->relay), -EPIPE);
    assert_int_equal(relay_out_done(f->relay), 0);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 5); /* what it said before is still good */
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 0);
}

static void reset_peer(void **state)
{
    struct fixture *f = *state;

    put_out(f->relay, 100);
    assert_int_equal(relay_out_flush(f->relay), 0);
    close(TAKE_FD(f->peer)); /* with bytes unread */
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), -ECONNRESET);
}

static void trim_gives_blocks_back(void **state)
{
    struct fixture *f = *state;

    send_pattern(f->peer, 0, RING);
    while (relay_in_head(f->relay) < RING)
        assert_true(relay_in_read(f->relay, SIZE_MAX) > 0);
    put_out(f->relay, RING);
    size_t full = blocks(f);
    assert_true(full >= 2 * RING / RELAY_BLOCK);
    relay_trim(f->relay); /* all in use */
    assert_int_equal(blocks(f), full);
    assert_int_equal(relay_in_ack(f->relay, RELAY_BLOCK), 0);
    relay_trim(f->relay);
    assert_int_equal(blocks(f), full - 1);
    check_in(f->relay, RELAY_BLOCK, RING);
    assert_int_equal(relay_in_ack(f->relay, RING), 0);
    assert_int_equal(relay_out_flush(f->relay), 0);
    restart(f); /* the new one does not know what the old one allocated */
    relay_trim(f->relay);
    assert_int_equal(blocks(f), 0);
    take_out(f->peer, 0, RING);
    send_pattern(f->peer, RING, 100);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 100);
    check_in(f->relay, RING, RING + 100);
}

static int in_socket(const struct fixture *f)
{
    int n = -1;
    assert_int_equal(ioctl(f->kept, FIONREAD, &n), 0);
    return n;
}

static void expect_untaken(const struct fixture *f, int n)
{
    assert_int_equal(in_socket(f), n);
    assert_int_equal(relay_in_untaken(f->relay), n);
}

static void what_is_read_is_taken_later(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(relay_in_take(f->relay), 0);
    send_pattern(f->peer, 0, 100);
    assert_int_equal(relay_in_read(f->relay, 60), 60);
    assert_int_equal(relay_in_untaken(f->relay), 60);
    assert_int_equal(in_socket(f), 100);
    send_pattern(f->peer, 100, 50); /* another buffer of the kernel's */
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 90);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), -EAGAIN);
    expect_untaken(f, 150);
    restart(f); /* between the two */
    expect_untaken(f, 150);
    assert_int_equal(relay_in_head(f->relay), 150);
    check_in(f->relay, 0, 150);
    assert_int_equal(relay_in_inject(f->relay, "inject", 6), 0);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 156);
    assert_int_equal(relay_in_take(f->relay), 0);
    expect_untaken(f, 0);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 156);
    send_pattern(f->peer, 156, 44);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 44);
    check_in(f->relay, 156, 200);
}

/* More than one recv of the bin takes. */
static void much_is_taken(void **state)
{
    struct fixture *f = *state;
    struct relay *big;
    int s[2], n = -1;
    struct err err = ERR_INIT;
    _cleanup_free_ uint8_t *data = xcalloc(1, 1 << 20);

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s), 0);
    int room = 4 << 20;
    setsockopt(s[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
    assert_int_equal(relay_create(f->dirfd, "big", dup_of(s[1]), 1 << 20, &big, &err), 0);
    ssize_t sent = send(s[0], data, 1 << 20, MSG_NOSIGNAL);
    assert_true(sent > 100000);
    while (relay_in_head(big) < (uint64_t)sent)
        assert_true(relay_in_read(big, SIZE_MAX) > 0);
    assert_int_equal(relay_in_untaken(big), sent);
    assert_int_equal(relay_in_take(big), 0);
    assert_int_equal(ioctl(s[1], FIONREAD, &n), 0);
    assert_int_equal(n, 0);
    relay_close(big);
    close(s[0]);
    close(s[1]);
}

static void overwrite(struct fixture *f, off_t at, const void *data, size_t len)
{
    int fd = openat(f->dirfd, FILE_NAME, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, data, len, at), len);
    close(fd);
}

/* As the predecessor leaves it that dies while it takes: behind one recv of several, behind the last. */
static void death_while_taking(void **state)
{
    struct fixture *f = *state;
    static const size_t taken[] = {0, 40, 100};
    uint64_t head = 0;
    uint8_t bin[100];

    for (size_t i = 0; i < ARRAY_SIZE(taken); i++) {
        send_pattern(f->peer, head, 100);
        assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 100);
        head += 100;
        relay_close(TAKE_PTR(f->relay));
        overwrite(f, offsetof(struct relay_file, in_taking), &head, sizeof(head));
        if (taken[i] > 0)
            assert_int_equal(recv(f->kept, bin, taken[i], 0), taken[i]);
        assert_int_equal(recover(f, NULL), 0);
        assert_int_equal(relay_in_head(f->relay), head);
        expect_untaken(f, (int)(100 - taken[i]));
        restart(f);
        assert_int_equal(relay_in_head(f->relay), head);
        assert_int_equal(relay_in_take(f->relay), 0);
        restart(f);
        assert_int_equal(relay_in_head(f->relay), head);
        expect_untaken(f, 0);
    }
    check_in(f->relay, 0, head);
}

static void what_somebody_else_took_breaks_the_connection(void **state)
{
    struct fixture *f = *state;
    static const int off = 100;
    uint8_t bin[100];

    send_pattern(f->peer, 0, 100);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 100);
    assert_int_equal(recv(f->kept, bin, sizeof(bin), 0), 100);
    assert_int_equal(relay_in_take(f->relay), -EIO);
    assert_int_equal(relay_in_inject(f->relay, "inject", 6), 0);
    restart(f);
    assert_int_equal(relay_in_head(f->relay), 106);
    assert_int_equal(setsockopt(f->kept, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)), 0);
    close(TAKE_FD(f->peer));
    restart(f);
    assert_int_equal(relay_in_take(f->relay), -EIO);
}

/* Not in the stream: whatever becomes of it, no other byte is wrong. */
static void an_out_of_band_byte(void **state)
{
    struct fixture *f = *state;

    send_pattern(f->peer, 0, 100);
    if (send(f->peer, "!", 1, MSG_OOB | MSG_NOSIGNAL) != 1)
        return; /* a kernel without */
    send_pattern(f->peer, 100, 100);
    for (int i = 0; i < 4 && relay_in_head(f->relay) < 200; i++) {
        relay_in_read(f->relay, SIZE_MAX);
        if (relay_in_take(f->relay) < 0)
            break;
    }
    assert_true(relay_in_head(f->relay) >= 100);
    check_in(f->relay, 0, relay_in_head(f->relay));
}

/* They stop a read, and are dropped with the bytes that they came with. */
static void descriptors_in_the_stream(void **state)
{
    struct fixture *f = *state;
    uint8_t byte = pattern(100);
    union {
        struct cmsghdr head;
        char data[CMSG_SPACE(sizeof(int))];
    } control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)),
                          .cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS}};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    int p[2];

    assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
    memcpy(CMSG_DATA(&control.head), &p[1], sizeof(int));
    send_pattern(f->peer, 0, 100);
    assert_int_equal(sendmsg(f->peer, &msg, MSG_NOSIGNAL), 1);
    send_pattern(f->peer, 101, 99);
    close(p[1]);
    int next = dup_of(p[0]);
    close(next);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 101);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 99);
    assert_int_equal(read(p[0], &byte, 1), -1);
    assert_int_equal(relay_in_take(f->relay), 0);
    expect_untaken(f, 0);
    check_in(f->relay, 0, 200);
    assert_int_equal(read(p[0], &byte, 1), 0); /* nobody has the other end */
    int now = dup_of(p[0]);
    assert_int_equal(now, next);
    close(now);
    close(p[0]);
}

/* -- files that nobody should have written -- */

static void expect_refusal(struct fixture *f, int code)
{
    struct err err = ERR_INIT;
    int r = recover(f, &err);

    if (r != code || err.code != code)
        fail_msg("%d (%s), expected %d", r, err_text(&err), code);
}

static const struct {
    size_t at, len;
    uint64_t value;
    int code;
} hostile[] = {
#define CASE(field, value, code)                                                                   \
    {                                                                                              \
        offsetof(struct relay_file, field), sizeof(((struct relay_file *)NULL)->field), value,     \
            code                                                                                   \
    }
    CASE(magic, 0x4141414141414141, -EBADMSG),
    CASE(magic, 0, -ENODATA),
    CASE(major, 0, -EBADMSG),
    CASE(major, 1, -EBADMSG),
    CASE(major, 2, -EBADMSG),
    CASE(major, RELAY_FILE_MAJOR + 1, -EPROTONOSUPPORT),
    CASE(major, UINT32_MAX, -EPROTONOSUPPORT),
    CASE(header_size, 8, -EBADMSG),
    CASE(header_size, UINT32_MAX, -EBADMSG),
    CASE(ring_size, 0, -EBADMSG),
    CASE(ring_size, RING + 1, -EBADMSG),
    CASE(ring_size, RING * 2, -EBADMSG), /* not the file's size */
    CASE(ring_size, 1U << 31, -EBADMSG),
    CASE(in_base, UINT64_MAX, -EBADMSG),
    CASE(in_base, RELAY_OFFSET_MAX, -EBADMSG),
    CASE(in_base, RING + 1 - 5000, -EBADMSG),
    CASE(in_taking, 5000, 0), /* it died before the first recv */
    CASE(in_taking, 4999, -EBADMSG),
    CASE(in_taking, RING + 1, -EBADMSG),
    CASE(in_taking, UINT64_MAX, -EBADMSG),
    CASE(in_tail, 5001, -EBADMSG),
    CASE(in_tail, UINT64_MAX, -EBADMSG),
    CASE(in_eof, 2, -EBADMSG),
    CASE(call[0].base, UINT64_MAX, -EBADMSG),
    CASE(call[0].base, 201, -EBADMSG),
    CASE(call[0].msg.msg_len, 301, -EBADMSG),
    CASE(call[0].msg.msg_len, UINT32_MAX, -EBADMSG),
    CASE(call[1].base, UINT64_MAX, 0), /* it does not count */
    CASE(out_call, 2, -EBADMSG),
    CASE(out_fin, 7, -EBADMSG),
    CASE(out_slot, 2, -EBADMSG),
    CASE(slot[0].head, 99, -EBADMSG),
    CASE(slot[0].head, UINT64_MAX, -EBADMSG),
    CASE(slot[0].head, 101 + RING, -EBADMSG),
    CASE(minor, 9, 0), /* an addition that we do not know */
#undef CASE
};
static void hostile_files_are_refused(void **state)
{
    struct fixture *f = *state;
    struct relay_file good;

    send_pattern(f->peer, 0, 5000);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 5000);
    put_out(f->relay, 100);
    assert_int_equal(relay_out_flush(f->relay), 0);
    put_out(f->relay, 200);
    relay_close(TAKE_PTR(f->relay));
    int fd = openat(f->dirfd, FILE_NAME, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &good, sizeof(good), 0), sizeof(good));
    close(fd);
    for (size_t i = 0; i < ARRAY_SIZE(hostile); i++) {
        overwrite(f, 0, &good, sizeof(good));
        overwrite(f, (off_t)hostile[i].at, &hostile[i].value, hostile[i].len);
        if (hostile[i].code < 0) {
            expect_refusal(f, hostile[i].code);
        } else {
            assert_int_equal(recover(f, NULL), 0);
            relay_close(TAKE_PTR(f->relay));
        }
    }
    overwrite(f, 0, &good, sizeof(good));
    assert_int_equal(recover(f, NULL), 0);
    check_in(f->relay, 0, 5000);
}

/* What a newer minor version has put behind our last field is there when it comes back. */
static void a_newer_minor_version_keeps_its_fields(void **state)
{
    struct fixture *f = *state;
    const uint32_t minor = 1, header = sizeof(struct relay_file) + 8;
    const uint64_t added = 0x0123456789abcdef;
    uint64_t found = 0;
    struct err err = ERR_INIT;

    overwrite(f, offsetof(struct relay_file, minor), &minor, sizeof(minor));
    overwrite(f, offsetof(struct relay_file, header_size), &header, sizeof(header));
    overwrite(f, sizeof(struct relay_file), &added, sizeof(added));
    assert_int_equal(relay_check_format(f->dirfd, FILE_NAME, &err), 0);
    restart(f);
    send_pattern(f->peer, 0, 5000);
    assert_int_equal(relay_in_read(f->relay, SIZE_MAX), 5000);
    put_out(f->relay, 100);
    assert_int_equal(relay_out_flush(f->relay), 0);
    relay_trim(f->relay);
    int fd = openat(f->dirfd, FILE_NAME, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &found, sizeof(found), sizeof(struct relay_file)), sizeof(found));
    close(fd);
    assert_int_equal(found, added);
}

static void a_newer_major_version_is_seen(void **state)
{
    struct fixture *f = *state;
    const uint32_t major = RELAY_FILE_MAJOR + 1;
    struct err err = ERR_INIT;

    overwrite(f, offsetof(struct relay_file, major), &major, sizeof(major));
    assert_int_equal(relay_check_format(f->dirfd, FILE_NAME, &err), -EPROTONOSUPPORT);
    assert_non_null(strstr(err.text, "run the newer one"));
    err_clear(&err);
    assert_int_equal(relay_check_format(f->dirfd, "absent", &err), 0);
    relay_close(TAKE_PTR(f->relay));
}

static void sizes_are_checked(void **state)
{
    struct fixture *f = *state;
    static const off_t sizes[] = {0,
                                  7,
                                  300,
                                  4096,
                                  RELAY_BLOCK,
                                  RELAY_BLOCK + RING,
                                  RELAY_BLOCK + 2 * RING - 1,
                                  RELAY_BLOCK + 2 * RING + 1};

    relay_close(TAKE_PTR(f->relay));
    for (size_t i = ARRAY_SIZE(sizes); i-- > 0;) {
        int fd = openat(f->dirfd, FILE_NAME, O_RDWR | O_CLOEXEC);
        assert_int_equal(ftruncate(fd, sizes[i]), 0);
        close(fd);
        expect_refusal(f, sizes[i] < 8 ? sizes[i] == 0 ? -ENODATA : -EBADMSG : -EBADMSG);
    }
    assert_int_equal(unlinkat(f->dirfd, FILE_NAME, 0), 0);
    expect_refusal(f, -ENOENT);
    assert_int_equal(mkdirat(f->dirfd, FILE_NAME, 0700), 0);
    expect_refusal(f, -EISDIR);
    assert_int_equal(unlinkat(f->dirfd, FILE_NAME, AT_REMOVEDIR), 0);
    assert_int_equal(symlinkat("/dev/zero", f->dirfd, FILE_NAME), 0);
    expect_refusal(f, -ELOOP);
}

static void create_checks_its_arguments(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;
    struct relay *r;

    assert_int_equal(relay_create(f->dirfd, FILE_NAME, f->kept, RING, &r, &err), -EEXIST);
    err_clear(&err);
    assert_int_equal(relay_create(f->dirfd, "x", f->kept, RING - 1, &r, &err), -EINVAL);
    err_clear(&err);
    assert_int_equal(relay_create(f->dirfd, "x", f->kept, RING / 2, &r, &err), -EINVAL);
    err_clear(&err);
    fcntl(f->kept, F_SETFL, 0);
    assert_int_equal(relay_create(f->dirfd, "x", f->kept, RING, &r, &err), -EINVAL);
    fcntl(f->kept, F_SETFL, O_NONBLOCK);
    assert_int_not_equal(faccessat(f->dirfd, "x", F_OK, 0), 0);
}

/* -- a full file system -- */

static void fill_up(const char *dir)
{
    char path[96], block[4096] = {0};

    snprintf(path, sizeof(path), "%s/filler", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, block, sizeof(block)) > 0)
        ;
    assert_int_equal(errno, ENOSPC);
    close(fd);
}

/* In a child: the mount namespace dies with it. */
static int full_file_system(void)
{
    struct fixture f = {.dir = "/tmp/relay-test.XXXXXX"};
    struct err err = ERR_INIT;
    uint8_t *at;
    int s[2];

    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return 77;
    if (mount("tmpfs", "/tmp", "tmpfs", 0, "size=256k") < 0)
        return 77;
    assert_non_null(mkdtemp(f.dir));
    f.dirfd = open(f.dir, O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s), 0);
    f.peer = s[0];
    f.kept = s[1];
    assert_int_equal(relay_create(f.dirfd, FILE_NAME, dup_of(s[1]), RING, &f.relay, &err), 0);
    fill_up(f.dir);
    send_pattern(f.peer, 0, 100);
    /* Full: nothing is read, nothing is lost, nobody dies of SIGBUS. */
    assert_int_equal(relay_in_read(f.relay, SIZE_MAX), -ENOSPC);
    assert_int_equal(relay_out_space(f.relay, &at), -ENOSPC);
    assert_int_equal(relay_in_inject(f.relay, "x", 1), -ENOSPC);
    restart(&f);
    struct relay *other;
    assert_int_equal(relay_create(f.dirfd, "other", f.kept, RING, &other, &err), -ENOSPC);
    assert_int_not_equal(faccessat(f.dirfd, "other", F_OK, 0), 0);
    assert_int_equal(unlinkat(f.dirfd, "filler", 0), 0);
    assert_int_equal(relay_in_read(f.relay, SIZE_MAX), 100);
    put_out(f.relay, 100);
    fill_up(f.dir);
    restart(&f);
    check_in(f.relay, 0, 100);
    assert_int_equal(relay_in_read(f.relay, SIZE_MAX), -EAGAIN);
    /* A hostile file that claims bytes where there are no blocks. */
    relay_close(TAKE_PTR(f.relay));
    uint64_t head = RING;
    overwrite(&f, offsetof(struct relay_file, slot[0].head), &head, sizeof(head));
    expect_refusal(&f, -ENOSPC);
    return 0;
}

static void full_file_system_is_enospc(void **state)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(full_file_system());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("no mount namespace here: skipped\n");
        assert_null(getenv("STRICT"));
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selftest_passes),
        cmocka_unit_test_setup_teardown(in_survives_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(out_survives_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(ring_fills_and_wraps, setup, teardown),
        cmocka_unit_test_setup_teardown(out_fills_and_resumes, setup, teardown),
        cmocka_unit_test_setup_teardown(inject_takes_part, setup, teardown),
        cmocka_unit_test_setup_teardown(user_state_goes_with_head, setup, teardown),
        cmocka_unit_test_setup_teardown(eof_is_sticky, setup, teardown),
        cmocka_unit_test_setup_teardown(fin_comes_last, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_peer, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_peer, setup, teardown),
        cmocka_unit_test_setup_teardown(trim_gives_blocks_back, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_read_is_taken_later, setup, teardown),
        cmocka_unit_test_setup_teardown(much_is_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(death_while_taking, setup, teardown),
        cmocka_unit_test_setup_teardown(what_somebody_else_took_breaks_the_connection, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(an_out_of_band_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(descriptors_in_the_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(hostile_files_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_newer_minor_version_keeps_its_fields, setup, teardown),
        cmocka_unit_test_setup_teardown(a_newer_major_version_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(sizes_are_checked, setup, teardown),
        cmocka_unit_test_setup_teardown(create_checks_its_arguments, setup, teardown),
        cmocka_unit_test(full_file_system_is_enospc),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("relay.relay", tests, NULL, NULL);
}
