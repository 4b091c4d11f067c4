/* SPDX-License-Identifier: Apache-2.0 */
/* The real peerpod-keeper alone: what it keeps, when it starts again, when it ends. */
#include "keeper_world.h"

static void store_survives_death(void **state)
{
    struct fixture *f = *state;

    start_with_child(f);
    meet(f);
    assert_string_equal(f->store, "");
    assert_string_equal(ask(f, "add b two"), "ok");
    assert_string_equal(ask(f, "add a one"), "ok");
    kill_child(f);
    assert_string_equal(f->store, "a=one b=two");
    assert_string_equal(ask(f, "add c three"), "ok");
    assert_string_equal(ask(f, "remove b"), "ok");
    kill_child(f);
    assert_string_equal(f->store, "a=one c=three");
    order(f, "exit 3");
    meet(f);
    assert_string_equal(f->store, "a=one c=three");
}

/* Sent by the last instruction of a life: in the next one. */
static void sent_just_before_death(void **state)
{
    struct fixture *f = *state;
    char command[64], expected[64];

    start_with_child(f);
    meet(f);
    for (int i = 0; i < 20; i++) {
        snprintf(command, sizeof(command), "last-add n%02d v%d", i, i);
        snprintf(expected, sizeof(expected), "n%02d=v%d", i, i);
        order(f, command);
        meet(f);
        assert_non_null(strstr(f->store, expected));
    }
}

static void child_sees_no_protocol_variables(void **state)
{
    struct fixture *f = *state;

    start_with_child(f);
    meet(f);
    assert_string_equal(ask(f, "env"), "- - - -");
    assert_string_equal(ask(f, "add x y"), "ok");
    kill_child(f);
    assert_string_equal(ask(f, "env"), "- - - -");
}

/* 1000 names of 20 bytes arrive complete and in order; so they do when numbers collide. */
static void thousand_descriptors(void **state)
{
    struct fixture *f = *state;
    char expected[64];

    start_with_child(f);
    meet(f);
    assert_string_equal(ask(f, "many 0 1000"), "ok");
    for (int life = 0; life < 3; life++) {
        kill_child(f);
        const char *at = f->store;
        for (int i = life; i < 1000; i++) {
            int len = snprintf(expected, sizeof(expected), "%sname-of-20-chars%04d=%d",
                               i == life ? "" : " ", i, i);
            assert_memory_equal(at, expected, (size_t)len);
            at += len;
        }
        assert_int_equal(*at, '\0');
        snprintf(expected, sizeof(expected), "remove name-of-20-chars%04d", life);
        assert_string_equal(ask(f, expected), "ok");
    }
}

static void back_off_grows(void **state)
{
    struct fixture *f = *state;
    int64_t gaps[7];

    start_with_child(f);
    meet(f);
    for (size_t i = 0; i < ARRAY_SIZE(gaps); i++) {
        int64_t before = clock_mono_ms();
        kill_child(f);
        gaps[i] = clock_mono_ms() - before;
    }
    /* 10, 20, 40, 80, 160, 200, 200: lower bounds hold on any machine, upper ones do not. */
    assert_true(gaps[0] >= 9);
    assert_true(gaps[2] >= 39);
    assert_true(gaps[4] >= 159);
    assert_true(gaps[6] >= 199);
    assert_true(gaps[0] < 5000);
}

static void back_off_resets_when_settled(void **state)
{
    struct fixture *f = *state;
    const char *const words[] = {
        "-log-level", "error", "-restart-min", "10ms",  "-restart-max", "2s", "-settled",
        "300ms",      "--",    self_path,      "child", f->path,        NULL};
    start_keeper(f, words);
    meet(f);
    for (int i = 0; i < 7; i++)
        kill_child(f); /* the next pause would be 1280 ms */
    usleep(400 * 1000);
    int64_t before = clock_mono_ms();
    kill_child(f);
    assert_true(clock_mono_ms() - before < 1000);
}

static void signals_are_forwarded(void **state)
{
    struct fixture *f = *state;
    static const int signals[] = {SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGINT, SIGTERM};
    char expected[32];

    start_with_child(f);
    meet(f);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        kill(f->keeper, signals[i]);
        snprintf(expected, sizeof(expected), "signal %d", signals[i]);
        assert_string_equal(hear(f), expected);
    }
    /* Asked to end, it ends with the child, as the child. */
    order(f, "exit 42");
    assert_int_equal(keeper_status(f), 42);
}

static void killed_when_asked_to_end(void **state)
{
    struct fixture *f = *state;

    start_with_child(f);
    meet(f);
    kill(f->keeper, SIGTERM);
    hear(f);
    kill(f->child, SIGKILL);
    assert_int_equal(keeper_status(f), 128 + SIGKILL);
}

static void orphans_are_reaped(void **state)
{
    struct fixture *f = *state;
    char path[64];
    int pid;

    start_with_child(f);
    meet(f);
    assert_int_equal(sscanf(ask(f, "orphan"), "orphan %d", &pid), 1);
    snprintf(path, sizeof(path), "/proc/%d", pid);
    int64_t deadline = clock_mono_ms() + WAIT_MS;
    while (access(path, F_OK) == 0 && clock_mono_ms() < deadline)
        usleep(1000);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* How many children (zombies too) a process has; -1: this kernel does not tell. */
static int count_children(pid_t pid)
{
    _cleanup_free_ char *text = NULL;
    char path[64];
    int n = 0;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    if (fs_read(AT_FDCWD, path, 65536, &text, NULL, NULL) < 0)
        return -1;
    for (const char *c = text; *c; c++)
        n += *c == ' ';
    return n;
}

/* As in a container, where the kernel keeps signals without a handler from it. */
static void as_pid_one(void **state)
{
    struct fixture *f = *state;
    const char *const words[] = {"-log-level", "error", "--", self_path, "child", f->path, NULL};
    int pid, n = 2;

    if (geteuid() != 0) {
        print_message("needs root: skipped\n");
        assert_null(getenv("STRICT"));
        skip();
    }
    start_keeper_in(f, words, CLONE_NEWPID);
    meet(f);
    assert_int_equal(f->child, 2);
    assert_int_equal(sscanf(ask(f, "orphan"), "orphan %d", &pid), 1);
    assert_string_equal(ask(f, "add x y"), "ok");
    int64_t deadline = clock_mono_ms() + WAIT_MS;
    while ((n = count_children(f->keeper)) > 1 && clock_mono_ms() < deadline)
        usleep(1000);
    assert_true(n == 1 || n == -1);
    kill(f->keeper, SIGHUP);
    assert_string_equal(hear(f), "signal 1");
    order(f, "exit 1");
    meet(f);
    assert_string_equal(f->store, "x=y");
    kill(f->keeper, SIGTERM);
    assert_string_equal(hear(f), "signal 15");
    order(f, "exit 5");
    assert_int_equal(keeper_status(f), 5);
}

static void other_users_are_refused(void **state)
{
    struct fixture *f = *state;

    if (geteuid() != 0) {
        print_message("needs root: skipped\n");
        assert_null(getenv("STRICT"));
        skip();
    }
    start_with_child(f);
    meet(f);
    assert_string_equal(ask(f, "as 65534 evil"), "sent 0");
    assert_string_equal(ask(f, "as 0 good"), "sent 0");
    kill_child(f);
    assert_string_equal(f->store, "good=foreign");
}

static int status_of(struct fixture *f, const char *const *words)
{
    start_keeper(f, words);
    return keeper_status(f);
}

static void final_statuses(void **state)
{
    struct fixture *f = *state;
    const char *const done[] = {"-log-level", "error", "--", "true", NULL};
    const char *const usage[] = {"-log-level", "error", "--", "sh", "-c", "exit 2", NULL};
    const char *const missing[] = {"-log-level=error", "--", "/nonexistent/x", NULL};
    const char *const no_command[] = {"--", NULL};
    const char *const bad_flag[] = {"-nonsense", "--", "true", NULL};
    const char *const no_place[] = {"-log-level=error", "--socket", "/proc/x", "--", "true", NULL};

    assert_int_equal(status_of(f, done), 0);
    assert_int_equal(status_of(f, usage), 2);
    assert_int_equal(status_of(f, missing), 127);
    assert_int_equal(status_of(f, no_command), 2);
    assert_int_equal(status_of(f, bad_flag), 2);
    assert_int_equal(status_of(f, no_place), 1);
}

/* With descriptors in the store a final status is not final. */
static void holds_on_while_it_holds(void **state)
{
    struct fixture *f = *state;

    start_with_child(f);
    meet(f);
    assert_string_equal(ask(f, "add x y"), "ok");
    order(f, "exit 2");
    meet(f);
    assert_string_equal(f->store, "x=y");
    assert_string_equal(ask(f, "remove x"), "ok");
    order(f, "exit 2");
    assert_int_equal(keeper_status(f), 2);
}

/* The work goes on elsewhere: the end, once the store is empty; a container's first process waits. */
static void handed_over(void **state)
{
    struct fixture *f = *state;
    const char *const words[] = {"-log-level", "error", "--", self_path, "child", f->path, NULL};

    start_with_child(f);
    meet(f);
    assert_string_equal(ask(f, "add x y"), "ok");
    order(f, "exit 79");
    meet(f);
    assert_string_equal(f->store, "x=y");
    assert_string_equal(ask(f, "remove x"), "ok");
    order(f, "exit 79");
    assert_int_equal(keeper_status(f), FDSTORE_EXIT_HANDED_OVER);
    if (geteuid() != 0)
        return; /* as_pid_one says so */
    start_keeper_in(f, words, CLONE_NEWPID);
    meet(f);
    order(f, "exit 79");
    usleep(300 * 1000);
    assert_int_equal(waitpid(f->keeper, NULL, WNOHANG), 0);
    kill(f->keeper, SIGTERM);
    assert_int_equal(keeper_status(f), 0);
}

/* That it takes none is shown by all the tests here, which have the library preloaded; this shows
 * that the library sees it. */
static void taken_memory_is_seen(void **state)
{
    static const char *const trials[] = {"malloc", "mmap"};
    int status;

    if (!preload)
        skip();
    for (size_t i = 0; i < ARRAY_SIZE(trials); i++) {
        struct fixture *f;
        setup((void **)&f);
        setenv("KEEPER_HEAP_TRIAL", trials[i], 1);
        start_with_child(f);
        unsetenv("KEEPER_HEAP_TRIAL");
        assert_int_equal(waitpid(f->keeper, &status, 0), f->keeper);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGABRT);
        f->keeper = 0;
        teardown((void **)&f);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(store_survives_death, setup, teardown),
        cmocka_unit_test_setup_teardown(sent_just_before_death, setup, teardown),
        cmocka_unit_test_setup_teardown(child_sees_no_protocol_variables, setup, teardown),
        cmocka_unit_test_setup_teardown(thousand_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(back_off_grows, setup, teardown),
        cmocka_unit_test_setup_teardown(back_off_resets_when_settled, setup, teardown),
        cmocka_unit_test_setup_teardown(signals_are_forwarded, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_when_asked_to_end, setup, teardown),
        cmocka_unit_test_setup_teardown(orphans_are_reaped, setup, teardown),
        cmocka_unit_test_setup_teardown(as_pid_one, setup, teardown),
        cmocka_unit_test_setup_teardown(other_users_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(final_statuses, setup, teardown),
        cmocka_unit_test_setup_teardown(holds_on_while_it_holds, setup, teardown),
        cmocka_unit_test_setup_teardown(handed_over, setup, teardown),
        cmocka_unit_test(taken_memory_is_seen),
    };
    int status = keeper_world_main(argc, argv);

    return status >= 0 ? status : cmocka_run_group_tests_name("keeper.keeper", tests, NULL, NULL);
}
