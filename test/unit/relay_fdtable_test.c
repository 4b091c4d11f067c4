/* SPDX-License-Identifier: Apache-2.0 */
/* The table of descriptors: messages, limits, and the hand-over to another one. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>

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

/* Names in the order of their descriptors, all of them open. */
static void check_names(const struct fdtable *t, const char *expected)
{
    char names[4096] = "";
    int last = -1;

    for (size_t i = 0; i < t->n; i++) {
        const struct fdtable_entry *next = NULL;
        for (const struct fdtable_entry *e = t->entries; e < t->entries + t->n; e++)
            if (e->fd > last && (!next || e->fd < next->fd))
                next = e;
        assert_non_null(next);
        assert_true(is_open(next->fd));
        snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", i > 0 ? ":" : "",
                 next->name);
        last = next->fd;
    }
    assert_string_equal(names, expected);
}

static void init(struct fdtable *t, size_t max)
{
    fdtable_init(t);
    assert_true(t->max >= max);
    t->max = max;
}

static void duplicates_stay_and_go_together(void **state)
{
    static struct fdtable s;
    int a = open_fd(), b = open_fd(), c = open_fd();

    init(&s, 10);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x\nFDPOLL=0\n", a), 0);
    assert_int_equal(apply(&s, "FDNAME=y\nFDSTORE=1", b), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", c), 0);
    check_names(&s, "x:y:x");
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=x", -1), 0);
    check_names(&s, "y");
    assert_false(is_open(a) || is_open(c));
    fdtable_done(&s);
    assert_false(is_open(b));
}

static void what_is_not_stored_is_closed(void **state)
{
    static const char *const bad[] = {
        "FDSTORE=1\nFDNAME=", "FDSTORE=1\nFDNAME=a:b", "FDSTORE=1\nFDNAME=a b",
        "FDSTORE=1\nFDNAME=abcdefghijklmnopqrstu", "FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x"};
    static struct fdtable s;

    init(&s, 10);
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
    check_names(&s, "stored");
    fdtable_done(&s);
}

/* A message that comes twice; and what only looks like it: the same file, opened once more. */
static void same_twice(void **state)
{
    static struct fdtable s;
    int fd = open_fd(), copies[2] = {fcntl(fd, F_DUPFD_CLOEXEC, 3), fcntl(fd, F_DUPFD_CLOEXEC, 3)};

    init(&s, 10);
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=x", copies, 2), 0);
    check_names(&s, "x");
    assert_false(is_open(copies[1]));
    /* One that is there already in front of one that is not: their numbers follow each other. */
    copies[0] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    copies[1] = open_fd();
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=x", copies, 2), 0);
    check_names(&s, "x:x");
    assert_false(is_open(copies[0]));
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=y", fd), 0);
    check_names(&s, "y:x:x");
    fdtable_done(&s);
}

static void many_in_one_message(void **state)
{
    static struct fdtable s;
    int fds[3] = {open_fd(), open_fd(), open_fd()};

    init(&s, 10);
    assert_int_equal(apply_fds(&s, "FDSTORE=1\nFDNAME=f", fds, 3), 0);
    check_names(&s, "f:f:f");
    fdtable_done(&s);
}

/* A command finds them from 3 on, whatever numbers they had. */
static void given_to_a_command(void **state)
{
    static char text[] =
        "cd /proc/self/fd && echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID - $$)) "
        "$(readlink 3) $(readlink 4) $(readlink 5) >&2";
    static char *const argv[] = {"sh", "-c", text, NULL};
    static struct fdtable s;
    char out[256] = "", paths[2][32] = {"/dev/zero", "/dev/full"};
    sigset_t mask;
    int pair[2], status;

    init(&s, 10);
    assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
    int low = open(paths[0], O_RDONLY | O_CLOEXEC), high = fcntl(low, F_DUPFD_CLOEXEC, 300);
    close(low);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=high", high), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=low", open(paths[1], O_RDONLY | O_CLOEXEC)), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=null", open_fd()), 0);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    fdtable_exec_init("/nowhere");
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pair[1], STDERR_FILENO);
        fdtable_exec(&s, argv, &mask);
    }
    close(pair[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_true(read(pair[0], out, sizeof(out) - 1) > 0);
    assert_string_equal(out, "3 low:null:high 0 /dev/full /dev/null /dev/zero\n");
    close(pair[0]);
    fdtable_done(&s);
}

/* One table into another, over a real connection. */
struct taker {
    struct fdtable table;
    struct err err;
    int fd, result, extra;
};

static void *take(void *arg)
{
    struct taker *t = arg;

    t->result = fdtable_exchange(&t->table, t->fd, false, -1, &t->extra, &t->err);
    if (t->result < 0)
        shutdown(t->fd, SHUT_RDWR);
    return NULL;
}

static int exchange(struct fdtable *from, struct taker *t, struct err *err)
{
    int own = open_fd(), none = -1;
    struct timeval limit = {.tv_sec = 10};
    pthread_t thread;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (size_t i = 0; i < 2; i++)
        setsockopt(pair[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    t->fd = pair[1];
    t->extra = -1;
    assert_int_equal(pthread_create(&thread, NULL, take, t), 0);
    int r = fdtable_exchange(from, pair[0], true, own, &none, err);
    shutdown(pair[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    assert_int_equal(none, -1);
    assert_true(r < 0 || is_open(t->extra));
    closep(&t->extra);
    close(own);
    close(pair[0]);
    close(pair[1]);
    return r;
}

static void exchanged(void **state)
{
    static struct taker t = {.err = ERR_INIT}, small = {.err = ERR_INIT};
    struct err err = ERR_INIT;
    static struct fdtable from;
    char text[64];

    init(&from, 300);
    init(&small.table, 100);
    init(&t.table, 300);
    assert_int_equal(exchange(&from, &t, &err), 0);
    assert_int_equal(t.table.n, 0);
    for (int i = 0; i < 200; i++) {
        snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=n%d", i);
        assert_int_equal(apply(&from, text, open_fd()), 0);
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(apply(&t.table, "FDSTORE=1\nFDNAME=other", open_fd()), 0);
    assert_int_equal(exchange(&from, &t, &err), 0);
    assert_int_equal(t.result, 0);
    assert_int_equal(t.table.n, 205);
    assert_int_equal(from.n, 205);
    for (int i = 0; i < 200; i++) {
        bool there = false;
        snprintf(text, sizeof(text), "n%d", i);
        for (size_t j = 0; j < 205; j++)
            there = there || strcmp(t.table.entries[j].name, text) == 0;
        assert_true(there);
    }
    /* The same again adds nothing. */
    assert_int_equal(exchange(&from, &t, &err), 0);
    assert_int_equal(t.table.n, 205);
    assert_int_equal(from.n, 205);
    /* What only some of many have. */
    assert_int_equal(apply(&from, "FDSTORE=1\nFDNAME=late", open_fd()), 0);
    assert_int_equal(apply(&t.table, "FDSTOREREMOVE=1\nFDNAME=n7", -1), 0);
    assert_int_equal(exchange(&from, &t, &err), 0);
    assert_int_equal(t.table.n, 206);
    assert_true(exchange(&from, &small, &err) < 0);
    assert_int_equal(small.result, -ENOSPC);
    fdtable_done(&small.table);
    fdtable_done(&from);
    fdtable_done(&t.table);
}

static void number_is_limited(void **state)
{
    static struct fdtable s;
    int fd = open_fd();

    init(&s, 2);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=a", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=b", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", fd), -ENOSPC);
    assert_false(is_open(fd));
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=a", -1), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", open_fd()), 0);
    check_names(&s, "c:b"); /* a's number is free again */
    fdtable_done(&s);
}

static void names_are_limited(void **state)
{
    static struct fdtable s;
    size_t fits = FDTABLE_NAMES_MAX / (FDSTORE_NAME_MAX + 1);
    struct rlimit limit;
    char text[64];

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < fits + 100) {
        print_message("needs %zu descriptors: skipped\n", fits + 100);
        assert_null(getenv("STRICT"));
        skip();
    }
    init(&s, fits + 5);
    for (size_t i = 0; i <= fits; i++) {
        snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%020zu\nFDPOLL=0\n", i);
        assert_int_equal(apply(&s, text, open_fd()), i < fits ? 0 : -ENOSPC);
    }
    assert_int_equal(s.n, fits);
    fdtable_done(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(duplicates_stay_and_go_together),
        cmocka_unit_test(what_is_not_stored_is_closed),
        cmocka_unit_test(same_twice),
        cmocka_unit_test(many_in_one_message),
        cmocka_unit_test(given_to_a_command),
        cmocka_unit_test(exchanged),
        cmocka_unit_test(number_is_limited),
        cmocka_unit_test(names_are_limited),
    };
    return cmocka_run_group_tests_name("relay.fdtable", tests, NULL, NULL);
}
