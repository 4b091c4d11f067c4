/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay's functions one by one, in one process: a "restart" here is relay_close on duplicates
 * of the descriptors and relay_recover. Death at any instruction is kill_loop's (test/relay).
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/fs.h"
#include "relay/relay.h"
#include "relay/relay_file.h"

#define RING (32U << 10)
#define FILE_NAME "conn"

struct fixture {
    char dir[64];
    int dirfd;
    int peer;              /* the test's end */
    struct relay_fds kept; /* what a keeper would hold */
    struct relay *relay;
};

static struct relay_fds dup_fds(const struct relay_fds *fds)
{
    return (struct relay_fds){fcntl(fds->socket, F_DUPFD_CLOEXEC, 0),
                              fcntl(fds->pipe_read, F_DUPFD_CLOEXEC, 0),
                              fcntl(fds->pipe_write, F_DUPFD_CLOEXEC, 0)};
}

static void close_fds(struct relay_fds *fds)
{
    closep(&fds->socket);
    closep(&fds->pipe_read);
    closep(&fds->pipe_write);
}

static int recover(struct fixture *f, struct err *err)
{
    struct relay_fds fds = dup_fds(&f->kept);
    int r = relay_recover(f->dirfd, FILE_NAME, &fds, &f->relay, err);

    if (r < 0)
        close_fds(&fds);
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
    f->kept.socket = s[1];
    assert_int_equal(relay_pipe(&f->kept, &err), 0);
    struct relay_fds fds = dup_fds(&f->kept);
    if (relay_create(f->dirfd, FILE_NAME, &fds, RING, &f->relay, &err) < 0)
        fail_msg("create: %s", err_text(&err));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    relay_close(f->relay);
    close_fds(&f->kept);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selftest_passes),
        cmocka_unit_test_setup_teardown(in_survives_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(out_survives_restart, setup, teardown),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("relay.relay", tests, NULL, NULL);
}
