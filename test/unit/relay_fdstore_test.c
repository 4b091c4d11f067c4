/* SPDX-License-Identifier: Apache-2.0 */
/* The client of the descriptor store, against a socket that plays the store; with the real keeper
 * in keeper_keeper_test.c. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/fs.h"
#include "relay/fdstore.h"

struct fixture {
    char dir[64], path[96];
    int store;
};

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(f->dir, sizeof(f->dir), "/tmp/fdstore-test.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/notify", f->dir);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", f->path);
    f->store = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(f->store, (struct sockaddr *)&address, sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", f->path, 1);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    fdstore_done();
    close(f->store);
    fs_remove_tree(AT_FDCWD, f->dir, NULL);
    free(f);
    return 0;
}

/* The descriptor that came along, or -1. */
static int receive(const struct fixture *f, char *text, size_t size)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {.iov_base = text, .iov_len = size - 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(f->store, &msg, MSG_CMSG_CLOEXEC);
    int fd = -1;

    assert_true(n >= 0);
    text[n] = '\0';
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static void messages(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;
    char text[128];
    int p[2];

    assert_int_equal(fdstore_init(&err), 0);
    assert_true(fdstore_available());
    assert_null(getenv("NOTIFY_SOCKET"));
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    assert_int_equal(fdstore_add("conn-1.s", p[1], &err), 0);
    int fd = receive(f, text, sizeof(text));
    assert_string_equal(text, "FDSTORE=1\nFDNAME=conn-1.s\nFDPOLL=0\n");
    close(p[1]);
    assert_int_equal(write(fd, "x", 1), 1); /* a duplicate, and it lives on */
    assert_int_equal(read(p[0], text, 1), 1);
    close(fd);
    close(p[0]);
    assert_int_equal(fdstore_remove("conn-1.s", &err), 0);
    assert_int_equal(receive(f, text, sizeof(text)), -1);
    assert_string_equal(text, "FDSTOREREMOVE=1\nFDNAME=conn-1.s\n");
    assert_int_equal(fdstore_notify("READY=1", &err), 0);
    assert_int_equal(receive(f, text, sizeof(text)), -1);
    assert_string_equal(text, "READY=1");
}

static void bad_arguments(void **state)
{
    static const char *const names[] = {"", "abcdefghijklmnopqrstu", "a:b", "A", "a b", "a\nb"};
    struct err err = ERR_INIT;

    assert_int_equal(fdstore_init(&err), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_int_equal(fdstore_add(names[i], 0, &err), -EINVAL);
        err_clear(&err);
        assert_int_equal(fdstore_remove(names[i], &err), -EINVAL);
        err_clear(&err);
    }
    assert_int_equal(fdstore_add("a", -1, &err), -EBADF);
}

static void a_store_that_is_gone_is_an_error(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;

    assert_int_equal(fdstore_init(&err), 0);
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(fdstore_add("a", 0, &err), -ENOENT);
    err_clear(&err);
    fdstore_done();
    assert_false(fdstore_available());
    assert_int_equal(fdstore_add("a", 0, &err), 0); /* no store: nothing to do */
    setenv("NOTIFY_SOCKET", "relative", 1);
    assert_int_equal(fdstore_init(&err), -EINVAL);
    assert_null(getenv("NOTIFY_SOCKET"));
}

static void count_one(const char *name, int fd, void *arg)
{
    assert_true(fd >= 3);
    (*(int *)arg)++;
}

/* In a child, because the protocol's numbers begin with 3. */
static void inherit(const char *pid, const char *names, int n)
{
    struct err err = ERR_INIT;
    char text[32];
    int left = 0;

    for (int fd = 3; fd < 3 + n; fd++)
        dup2(0, fd);
    if (pid == NULL) {
        snprintf(text, sizeof(text), "%d", (int)getpid());
        pid = text;
    }
    setenv("LISTEN_PID", pid, 1);
    char count[8];
    snprintf(count, sizeof(count), "%d", n);
    setenv("LISTEN_FDS", count, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    assert_int_equal(fdstore_init(&err), 0);
    assert_null(getenv("LISTEN_FDS"));
    assert_null(getenv("LISTEN_PID"));
    assert_null(getenv("LISTEN_FDNAMES"));
    fdstore_each("", count_one, &left);
    if (strcmp(pid, "1") == 0) { /* meant for somebody else */
        assert_int_equal(left, 0);
        return;
    }
    assert_int_equal(left, n);
    assert_int_equal(fcntl(3, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fdstore_take("b"), 4);
    assert_int_equal(fdstore_take("b"), 6); /* two of one name: in order */
    assert_int_equal(fdstore_take("b"), -1);
    assert_int_equal(fdstore_take("nothing"), -1);
    assert_int_equal(fdstore_take("unknown"), 7); /* more descriptors than names */
    left = 0;
    fdstore_each("", count_one, &left);
    assert_int_equal(left, n - 3);
    fdstore_done();
    assert_int_equal(fcntl(3, F_GETFD), -1); /* nobody took it */
    assert_int_equal(fcntl(4, F_GETFD), FD_CLOEXEC);
}

static void check_in_child(const char *pid, const char *names, int n)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        inherit(pid, names, n);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void inherited_descriptors(void **state)
{
    check_in_child(NULL, "c:b:a:b", 5);
    check_in_child("1", "c:b:a:b", 5);
}

static void bad_environment(void **state)
{
    struct err err = ERR_INIT;
    char pid[32];

    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "many", 1);
    assert_int_equal(fdstore_init(&err), -EINVAL);
    fdstore_done();
    err_clear(&err);
    setenv("LISTEN_PID", "x", 1);
    setenv("LISTEN_FDS", "1", 1);
    assert_int_equal(fdstore_init(&err), -EINVAL);
    fdstore_done();
    err_clear(&err);
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "60000", 1);
    assert_int_equal(fdstore_init(&err), -EBADF);
    assert_null(getenv("LISTEN_FDS"));
}

static void note_name(const char *name, int fd, void *arg)
{
    assert_true(fd >= 0);
    size_t len = strlen(arg);
    snprintf((char *)arg + len, 64 - len, "%s", name);
}

/* What a predecessor gave goes into the store, the proof last, and can then be taken. */
static void adopted_descriptors(void **state)
{
    struct fixture *f = *state;
    struct fdstore_entry all[] = {{"token.1", dup(0)}, {"b", dup(0)}, {"a", dup(0)}};
    struct err err = ERR_INIT;
    char text[128], held[64] = "";

    assert_int_equal(fdstore_init(&err), 0);
    assert_int_equal(fdstore_adopt(all, 3, "token.", false, &err), 0);
    for (size_t i = 1; i <= 3; i++) {
        char expected[64];
        snprintf(expected, sizeof(expected), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0\n", all[i % 3].name);
        close(receive(f, text, sizeof(text)));
        assert_string_equal(text, expected);
    }
    fdstore_each_held(note_name, held);
    assert_string_equal(held, ""); /* nobody has taken any */
    assert_int_equal(fdstore_take("b"), all[1].fd);
    assert_int_equal(fdstore_take("a"), all[2].fd);
    assert_int_equal(fdstore_remove("a", &err), 0);
    fdstore_each_held(note_name, held);
    assert_string_equal(held, "b");
    close(all[1].fd);
    close(all[2].fd);
}

/* The same keeper has them: nothing is added, and nothing taken out on failure. */
static void adopted_from_the_same_store(void **state)
{
    struct fixture *f = *state;
    struct fdstore_entry all[] = {{"a", dup(0)}};
    struct err err = ERR_INIT;
    char text[128];

    setenv(FDSTORE_BORN, "17", 1);
    assert_int_equal(fdstore_init(&err), 0);
    bool shared = false;
    assert_int_equal(fdstore_born(&shared), 17);
    assert_true(shared);
    assert_int_equal(fdstore_adopt(all, 1, "token.", true, &err), 0);
    fdstore_disinherit(true);
    assert_int_equal(fcntl(all[0].fd, F_GETFD), -1);
    assert_int_equal(recv(f->store, text, sizeof(text), 0), -1);
}

/* A store that takes no more: none of it is kept. */
static void adoption_fails_as_a_whole(void **state)
{
    struct fixture *f = *state;
    struct fdstore_entry all[] = {{"a", dup(0)}, {"Bad", dup(0)}, {"token.1", dup(0)}};
    struct err err = ERR_INIT;
    char text[128], held[64] = "";

    assert_int_equal(fdstore_init(&err), 0);
    assert_int_equal(fdstore_adopt(all, 3, "token.", false, &err), -EINVAL);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(fcntl(all[i].fd, F_GETFD), -1);
    close(receive(f, text, sizeof(text)));
    assert_string_equal(text, "FDSTORE=1\nFDNAME=a\nFDPOLL=0\n");
    assert_int_equal(receive(f, text, sizeof(text)), -1);
    assert_string_equal(text, "FDSTOREREMOVE=1\nFDNAME=a\n");
    fdstore_each_held(note_name, held);
    assert_string_equal(held, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(messages, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_arguments, setup, teardown),
        cmocka_unit_test_setup_teardown(a_store_that_is_gone_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(inherited_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_environment, setup, teardown),
        cmocka_unit_test_setup_teardown(adopted_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(adopted_from_the_same_store, setup, teardown),
        cmocka_unit_test_setup_teardown(adoption_fails_as_a_whole, setup, teardown),
    };
    return cmocka_run_group_tests_name("relay.fdstore", tests, NULL, NULL);
}
