/* SPDX-License-Identifier: Apache-2.0 */
/* The descriptor store without a process around it: messages and limits. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "keeper/store.h"

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

static int apply(struct store *s, const char *text, int fd)
{
    struct err err = ERR_INIT;
    int r = store_apply(s, text, strlen(text), &fd, fd >= 0 ? 1 : 0, &err);
    assert_int_equal(r, err.code);
    return r;
}

static void check_names(const struct store *s, const char *expected)
{
    char *names = store_names(s);
    assert_string_equal(names, expected);
    free(names);
}

static void duplicates_stay_and_go_together(void **state)
{
    struct store s;
    int a = open_fd(), b = open_fd(), c = open_fd();

    store_init(&s, 10);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x\nFDPOLL=0\n", a), 0);
    assert_int_equal(apply(&s, "FDNAME=y\nFDSTORE=1", b), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=x", c), 0);
    check_names(&s, "x:y:x");
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=x", -1), 0);
    check_names(&s, "y");
    assert_false(is_open(a));
    assert_true(is_open(b));
    assert_false(is_open(c));
    store_done(&s);
    assert_false(is_open(b));
}

static void what_is_not_stored_is_closed(void **state)
{
    static const char *const bad[] = {
        "FDSTORE=1\nFDNAME=", "FDSTORE=1\nFDNAME=a:b", "FDSTORE=1\nFDNAME=a b",
        "FDSTORE=1\nFDNAME=abcdefghijklmnopqrstu", "FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x"};
    struct store s;

    store_init(&s, 10);
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
    check_names(&s, STORE_NAME_DEFAULT);
    store_done(&s);
}

static void number_is_limited(void **state)
{
    struct store s;
    int fd = open_fd();

    store_init(&s, 2);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=a", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=b", open_fd()), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", fd), -ENOSPC);
    assert_false(is_open(fd));
    assert_int_equal(apply(&s, "FDSTOREREMOVE=1\nFDNAME=a", -1), 0);
    assert_int_equal(apply(&s, "FDSTORE=1\nFDNAME=c", open_fd()), 0);
    check_names(&s, "b:c");
    store_done(&s);
}

/* Numbers that are no descriptors: the limit is reached long after a test's own. */
static void names_are_limited(void **state)
{
    struct store s;
    size_t fits = STORE_NAMES_MAX / (STORE_NAME_MAX + 1);
    char text[64];

    store_init(&s, 100000);
    for (size_t i = 0; i <= fits; i++) {
        snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%020zu\nFDPOLL=0\n", i);
        assert_int_equal(apply(&s, text, INT32_MAX), i < fits ? 0 : -ENOSPC);
    }
    char *names = store_names(&s);
    assert_int_equal(strlen(names), fits * (STORE_NAME_MAX + 1) - 1);
    free(names);
    store_done(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(duplicates_stay_and_go_together),
        cmocka_unit_test(what_is_not_stored_is_closed),
        cmocka_unit_test(number_is_limited),
        cmocka_unit_test(names_are_limited),
    };
    return cmocka_run_group_tests_name("keeper.store", tests, NULL, NULL);
}
