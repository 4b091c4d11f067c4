/* SPDX-License-Identifier: Apache-2.0 */
/* The table of descriptors: messages, limits, and the hand-over to another one. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "relay/fdtable.h"

static int open_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

#define FIRST 500 /* far above what a test has open */

static int apply_fds(struct fdtable *t, const char *text, const int *fds, size_t n)
{
    static struct fdpass m;
    struct err err = ERR_INIT;

    m.len = strlen(text);
    memcpy(m.text, text, m.len);
    m.n_fds = n;
    memcpy(m.fds, fds, n * sizeof(*fds));
    int r = fdtable_apply(t, &m, &err);
    assert_int_equal(r, err.code);
    assert_int_equal(m.n_fds, 0);
    return r;
}

static int apply(struct fdtable *t, const char *text, int fd)
{
    return apply_fds(t, text, &fd, fd >= 0 ? 1 : 0);
}

static void check_names(const struct fdtable *t, const char *expected)
{
    char names[4096];

    fdtable_names(t, 0, t->n, names);
    assert_string_equal(names, t->n ? expected : "");
    for (size_t i = 0; i < t->n; i++)
        assert_true(is_open(t->first + (int)i));
    assert_false(is_open(t->first + (int)t->n));
}

static void duplicates_stay_and_go_together(void **state)
{
    struct fdtable s;
    int a = open_fd(), b = open_fd(), c = open_fd();

    fdtable_init(&s, FIRST, 10);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x\nFDPOLL=0\n", a), 0);
    assert_int_equal(apply(&s, "FDNAME=y\nFDSTORE=1", b), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", c), 0);
    check_names(&s, "x:y:x");
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=x", -1), 0);
    check_names(&s, "y");
    for (int fd = a; fd <= c; fd++)
        assert_false(is_open(fd));
    fdtable_done(&s);
    assert_false(is_open(FIRST));
}

static void what_is_not_stored_is_closed(void **state)
{
    static const char *const bad[] = {
        "FDSTORE=1\nFDNAME=", "FDSTORE=1\nFDNAME=a:b", "FDSTORE=1\nFDNAME=a b",
        "FDSTORE=1\nFDNAME=abcdefghijklmnopqrstu", "FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x"};
    struct fdtable s;

    fdtable_init(&s, FIRST, 10);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        int fd = open_fd();
        assert_int_equal(apply(&s, bad[i], fd), -EINVAL);
        assert_false(is_open(fd));
    }
    int fd = open_fd();
    assert_int_equal(apply(&s, "READY=1\nSTATUS=up", fd), 0);
    assert_false(is_open(fd));
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", -1), -EINVAL);
    assert_int_equal(apply(&s, "", -1), 0);
    assert_int_equal(s.n, 0);
    assert_int_equal(apply(&s, "FDSTORE=1", open_fd()), 0);
    check_names(&s, FDTABLE_NAME_DEFAULT);
    fdtable_done(&s);
}

/* A message that comes twice; and what only looks like it: the same file, opened once more. */
static void same_twice(void **state)
{
    struct fdtable s;
    int fd = open_fd(), copies[2] = {fcntl(fd, F_DUPFD_CLOEXEC, 3), fcntl(fd, F_DUPFD_CLOEXEC, 3)};

    fdtable_init(&s, FIRST, 10);
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=x", copies, 2), 0);
    check_names(&s, "x");
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=y", fd), 0);
    check_names(&s, "x:x:y");
    fdtable_done(&s);
}

static void many_in_one_message(void **state)
{
    struct fdtable s;
    int fds[3] = {open_fd(), open_fd(), open_fd()};

    fdtable_init(&s, FIRST, 10);
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=a:b:c", fds, 3), 0);
    check_names(&s, "a:b:c");
    for (size_t i = 0; i < 3; i++)
        fds[i] = open_fd();
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=d:e", fds, 3), -EINVAL);
    for (size_t i = 0; i < 3; i++)
        fds[i] = open_fd();
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=f", fds, 3), 0);
    check_names(&s, "a:b:c:d:f:f:f");
    /* Where the kernel gives the right number at once, it stays. */
    fdtable_done(&s);
    fdtable_init(&s, open_fd(), 10);
    close(s.first);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", open_fd()), 0);
    check_names(&s, "x");
    fdtable_done(&s);
}

/* One table into another, over a real connection. */
struct taker {
    struct fdtable table;
    struct err err;
    int fd, result;
};

static void *take(void *arg)
{
    struct taker *t = arg;

    t->result = fdtable_take(&t->table, t->fd, &t->err);
    if (t->result < 0)
        shutdown(t->fd, SHUT_RDWR);
    return NULL;
}

static int give(const struct fdtable *from, struct taker *t, struct err *err)
{
    struct timeval limit = {.tv_sec = 10};
    pthread_t thread;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (size_t i = 0; i < 2; i++)
        setsockopt(pair[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    t->fd = pair[1];
    assert_int_equal(pthread_create(&thread, NULL, take, t), 0);
    int r = fdtable_give(from, pair[0], 10000, err);
    shutdown(pair[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    close(pair[0]);
    close(pair[1]);
    return r;
}

static void given_to_another(void **state)
{
    struct taker t = {.err = ERR_INIT}, small = {.err = ERR_INIT};
    struct err err = ERR_INIT;
    struct fdtable from;
    char text[64];

    fdtable_init(&from, FIRST, 300);
    fdtable_init(&small.table, 3 * FIRST, 100);
    fdtable_init(&t.table, 2 * FIRST, 300);
    assert_int_equal(give(&from, &t, &err), 0);
    assert_int_equal(t.table.n, 0);
    for (int i = 0; i < 200; i++) {
        snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=n%d", i);
        assert_int_equal(apply(&from, text, open_fd()), 0);
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(apply(&t.table, "FDSTORE=1\nFDNAME=old", open_fd()), 0);
    assert_int_equal(give(&from, &t, &err), 0);
    assert_int_equal(t.result, 0);
    assert_int_equal(t.table.n, 205);
    for (int i = 0; i < 200; i++) {
        bool there = false;
        snprintf(text, sizeof(text), "n%d", i);
        for (size_t j = 0; j < 205; j++)
            there = there || strcmp(t.table.names[j], text) == 0;
        assert_true(there);
    }
    /* The same again adds nothing. */
    assert_int_equal(give(&from, &t, &err), 0);
    assert_int_equal(t.table.n, 205);
    assert_true(give(&from, &small, &err) < 0);
    assert_int_equal(small.result, -ENOSPC);
    fdtable_done(&small.table);
    fdtable_done(&from);
    fdtable_done(&t.table);
}

static void number_is_limited(void **state)
{
    struct fdtable s;
    int fd = open_fd();

    fdtable_init(&s, FIRST, 2);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=a", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=b", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", fd), -ENOSPC);
    assert_false(is_open(fd));
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=a", -1), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", open_fd()), 0);
    check_names(&s, "b:c");
    fdtable_done(&s);
}

static void names_are_limited(void **state)
{
    static char names[FDTABLE_NAMES_MAX];
    struct fdtable s;
    size_t fits = FDTABLE_NAMES_MAX / (FDTABLE_NAME_MAX + 1);
    struct rlimit limit;
    char text[64];

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < FIRST + fits + 10) {
        print_message("needs %zu descriptors: skipped\n", FIRST + fits + 10);
        assert_null(getenv("STRICT"));
        skip();
    }
    fdtable_init(&s, FIRST, fits + 5);
    for (size_t i = 0; i <= fits; i++) {
        snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%020zu\nFDPOLL=0\n", i);
        assert_int_equal(apply(&s, text, open_fd()), i < fits ? 0 : -ENOSPC);
    }
    fdtable_names(&s, 0, s.n, names);
    assert_int_equal(strlen(names), fits * (FDTABLE_NAME_MAX + 1) - 1);
    fdtable_done(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(duplicates_stay_and_go_together),
        cmocka_unit_test(what_is_not_stored_is_closed),
        cmocka_unit_test(same_twice),
        cmocka_unit_test(many_in_one_message),
        cmocka_unit_test(given_to_another),
        cmocka_unit_test(number_is_limited),
        cmocka_unit_test(names_are_limited),
    };
    return cmocka_run_group_tests_name("relay.fdtable", tests, NULL, NULL);
}
