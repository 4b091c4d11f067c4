/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several real keepers that meet at a socket: successors, stores alone, and each of them killed.
 */
#include "keeper_meeting.h"

static void assert_silent(struct fixture *f)
{
    struct pollfd p = {.fd = f->listener, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 300), 0);
}

static void successor(void **state)
{
    struct scene *s = *state;

    first_act(s);
    enter(s, s->b);
    assert_string_equal(hear(s->a), "signal 15");
    assert_string_equal(ask(s->a, "remove y"), "ok");
    assert_string_equal(ask(s->a, "add late 3"), "ok");
    order(s->a, "exit 0");
    meet(s->b);
    assert_string_equal(s->b->store, "late=3 x=1");
    assert_silent(s->a);
    assert_string_equal(ask(s->b, "ready"), "ok");
    assert_int_equal(keeper_status(s->a), 0);
    kill_child(s->b);
    assert_string_equal(s->b->store, "late=3 x=1");
    /* And so on: a third one takes over from the second at the same place. */
    enter(s, s->c);
    relieve(s->b, s->c);
    assert_string_equal(s->c->store, "late=3 x=1");
    assert_string_equal(ask(s->c, "ready"), "ok");
    assert_int_equal(keeper_status(s->b), 0);
}

/* A new version that does not come up is no end of the old one. */
static void successor_that_fails(void **state)
{
    struct scene *s = *state;

    first_act(s);
    enter(s, s->b);
    relieve(s->a, s->b);
    assert_string_equal(ask(s->b, "add new 3"), "ok");
    assert_string_equal(ask(s->b, "remove x"), "ok");
    order(s->b, "exit 1");
    meet(s->a);
    assert_string_equal(s->a->store, "new=3 y=2");
    assert_int_equal(keeper_status(s->b), 1);
    /* The next one may try. */
    enter(s, s->c);
    relieve(s->a, s->c);
    assert_string_equal(ask(s->c, "ready"), "ok");
    assert_int_equal(keeper_status(s->a), 0);
}

static void successor_killed(void **state)
{
    struct scene *s = *state;

    first_act(s);
    enter(s, s->b);
    relieve(s->a, s->b);
    assert_string_equal(ask(s->b, "add new 3"), "ok");
    kill_container(s->b);
    meet(s->a);
    assert_string_equal(s->a->store, "new=3 x=1 y=2");
    kill_child(s->a);
    assert_string_equal(s->a->store, "new=3 x=1 y=2");
}

static void predecessor_killed(void **state)
{
    struct scene *s = *state;

    first_act(s);
    enter(s, s->b);
    assert_string_equal(hear(s->a), "signal 15");
    assert_string_equal(ask(s->a, "add late 3"), "ok");
    kill_container(s->a);
    meet(s->b);
    assert_string_equal(s->b->store, "late=3 x=1 y=2");
    kill_child(s->b);
    assert_string_equal(s->b->store, "late=3 x=1 y=2");
    enter(s, s->c);
    relieve(s->b, s->c);
    assert_string_equal(ask(s->c, "ready"), "ok");
    assert_int_equal(keeper_status(s->b), 0);
}

/* As a container's first process it must not end: it would be started again, as a successor. */
static void predecessor_waits_as_pid_one(void **state)
{
    struct scene *s = *state;
    const char *const words[] = {"-log-level", "error", "-socket",  s->path, "--",
                                 self_path,    "child", s->a->path, NULL};

    if (geteuid() != 0) {
        print_message("needs root: skipped\n");
        assert_null(getenv("STRICT"));
        skip();
    }
    start_keeper_in(s->a, words, CLONE_NEWPID);
    meet(s->a);
    assert_string_equal(ask(s->a, "add x 1"), "ok");
    enter(s, s->b);
    relieve(s->a, s->b);
    assert_string_equal(ask(s->b, "ready"), "ok");
    assert_silent(s->a);
    assert_int_equal(waitpid(s->a->keeper, NULL, WNOHANG), 0);
    kill(s->a->keeper, SIGTERM);
    assert_int_equal(keeper_status(s->a), 0);
    kill_child(s->b);
    assert_string_equal(s->b->store, "x=1");
}

static void thousand_descriptors(void **state)
{
    struct scene *s = *state;
    char expected[64];

    enter(s, s->a);
    meet(s->a);
    assert_string_equal(ask(s->a, "many 0 1000"), "ok");
    enter(s, s->b);
    assert_string_equal(hear(s->a), "signal 15");
    int64_t before = clock_mono_us();
    order(s->a, "exit 0");
    meet(s->b);
    print_message("the child's end to its successor's start: %lld us\n",
                  (long long)(clock_mono_us() - before));
    const char *at = s->b->store;
    for (int i = 0; i < 1000; i++) {
        int len = snprintf(expected, sizeof(expected), "%sname-of-20-chars%04d=%d",
                           i == 0 ? "" : " ", i, i);
        assert_memory_equal(at, expected, (size_t)len);
        at += len;
    }
}

static void store_survives_container(void **state)
{
    struct scene *s = *state;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    first_act(s);
    kill_container(s->a);
    enter(s, s->b);
    meet(s->b);
    assert_string_equal(s->b->store, "x=1 y=2");
    /* Sent, and then all die at once. */
    assert_string_equal(ask(s->b, "remove x"), "ok");
    for (int i = 0; i < 10; i++) {
        char command[64], expected[64];
        struct fixture *now = i % 2 ? s->a : s->b, *next = i % 2 ? s->b : s->a;
        snprintf(command, sizeof(command), "last-words n%02d v%d", i, i);
        snprintf(expected, sizeof(expected), "n%02d=v%d", i, i);
        order(now, command);
        waitpid(now->keeper, NULL, 0);
        now->keeper = 0;
        enter(s, next);
        meet(next);
        assert_non_null(strstr(next->store, expected));
        assert_non_null(strstr(next->store, "y=2"));
        assert_null(strstr(strstr(next->store, expected) + 1, expected));
    }
}

static void store_with_successors(void **state)
{
    struct scene *s = *state;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    first_act(s);
    enter(s, s->b);
    assert_string_equal(hear(s->a), "signal 15");
    assert_string_equal(ask(s->a, "add late 3"), "ok");
    order(s->a, "exit 0");
    meet(s->b);
    assert_string_equal(s->b->store, "late=3 x=1 y=2");
    assert_string_equal(ask(s->b, "add new 4"), "ok");
    order(s->b, "exit 1"); /* not ready: back to the first */
    meet(s->a);
    assert_string_equal(s->a->store, "late=3 new=4 x=1 y=2");
    assert_int_equal(keeper_status(s->b), 1);
    enter(s, s->c);
    relieve(s->a, s->c);
    assert_string_equal(ask(s->c, "ready"), "ok");
    assert_int_equal(keeper_status(s->a), 0);
    kill_container(s->c);
    enter(s, s->b);
    meet(s->b);
    assert_string_equal(s->b->store, "late=3 new=4 x=1 y=2");
}

/* The first keeper that comes to a store has nobody to go back to: its command is started again. */
static void store_alone_with_failing_command(void **state)
{
    struct scene *s = *state;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    enter(s, s->a);
    meet(s->a);
    assert_string_equal(ask(s->a, "add x 1"), "ok");
    order(s->a, "exit 1");
    meet(s->a);
    assert_string_equal(s->a->store, "x=1");
}

/* Killed, the store finds everything again with the keeper; then it is the one that survives. */
static void store_killed(void **state)
{
    struct scene *s = *state;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    first_act(s);
    kill_keeper(s->stores[0]);
    kill_child(s->a);
    assert_string_equal(s->a->store, "x=1 y=2");
    assert_string_equal(ask(s->a, "add z 3"), "ok");
    enter_store(s, s->stores[1]);
    usleep(500 * 1000); /* the keeper tries five times a second */
    assert_string_equal(ask(s->a, "add late 4"), "ok");
    kill_container(s->a);
    enter(s, s->b);
    meet(s->b);
    assert_string_equal(s->b->store, "late=4 x=1 y=2 z=3");
}

static void store_follows_store(void **state)
{
    struct scene *s = *state;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    first_act(s);
    enter_store(s, s->stores[1]);
    assert_int_equal(keeper_status(s->stores[0]), 0);
    assert_string_equal(ask(s->a, "add z 3"), "ok");
    usleep(100 * 1000);
    kill_container(s->a);
    enter(s, s->b);
    meet(s->b);
    assert_string_equal(s->b->store, "x=1 y=2 z=3");
}

int main(int argc, char **argv)
{
#define SCENE(name) cmocka_unit_test_setup_teardown(name, set_scene, strike_scene)
    const struct CMUnitTest tests[] = {
        SCENE(successor),
        SCENE(successor_that_fails),
        SCENE(successor_killed),
        SCENE(predecessor_killed),
        SCENE(predecessor_waits_as_pid_one),
        SCENE(thousand_descriptors),
        SCENE(store_survives_container),
        SCENE(store_with_successors),
        SCENE(store_alone_with_failing_command),
        SCENE(store_killed),
        SCENE(store_follows_store),
    };
    int status = keeper_world_main(argc, argv);

    return status >= 0 ? status : cmocka_run_group_tests_name("keeper.handover", tests, NULL, NULL);
}
