/* SPDX-License-Identifier: Apache-2.0 */
/* Several real keepers that meet at a socket, for the tests of hand-over. */
#pragma once

#include "keeper_world.h"

/* Up to four keepers, by letter, and the socket at which they meet. */
struct scene {
    struct fixture *a, *b, *c;
    struct fixture *stores[2];
    char dir[64], path[96];
};

static int set_scene(void **state)
{
    struct scene *s = xcalloc(1, sizeof(*s));

    setup((void **)&s->a);
    setup((void **)&s->b);
    setup((void **)&s->c);
    setup((void **)&s->stores[0]);
    setup((void **)&s->stores[1]);
    snprintf(s->dir, sizeof(s->dir), "/tmp/keeper-meet.XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    snprintf(s->path, sizeof(s->path), "%s/keeper.sock", s->dir);
    *state = s;
    return 0;
}

static int strike_scene(void **state)
{
    struct scene *s = *state;

    teardown((void **)&s->c);
    teardown((void **)&s->b);
    teardown((void **)&s->a);
    teardown((void **)&s->stores[0]);
    teardown((void **)&s->stores[1]);
    fs_remove_tree(AT_FDCWD, s->dir, NULL);
    free(s);
    return 0;
}

static void enter(struct scene *s, struct fixture *f)
{
    const char *const words[] = {
        "-log-level", "error", "-restart-max", "200ms", "-socket", s->path, "-settled",
        "60s",        "--",    self_path,      "child", f->path,   NULL};
    start_keeper(f, words);
}

static void wait_path(const char *path)
{
    int64_t deadline = clock_mono_ms() + WAIT_MS;

    while (access(path, F_OK) < 0 && clock_mono_ms() < deadline)
        usleep(1000);
    assert_int_equal(access(path, F_OK), 0);
}

static void enter_store(struct scene *s, struct fixture *f)
{
    const char *const words[] = {"-log-level", "error", "-socket", s->path, NULL};
    start_keeper(f, words);
}

static void kill_keeper(struct fixture *f)
{
    kill(f->keeper, SIGKILL);
    assert_int_equal(waitpid(f->keeper, NULL, 0), f->keeper);
    f->keeper = 0;
}

/* The keeper and what it started, as when a container is killed whole. */
static void kill_container(struct fixture *f)
{
    kill(f->child, SIGSTOP); /* it must not outlive the keeper */
    kill_keeper(f);
    kill(f->child, SIGKILL);
    closep(&f->conn);
    f->conn = -1;
}

/* a serves, with x and y. */
static void first_act(struct scene *s)
{
    enter(s, s->a);
    meet(s->a);
    assert_string_equal(ask(s->a, "ready"), "ok");
    assert_string_equal(ask(s->a, "add x 1"), "ok");
    assert_string_equal(ask(s->a, "add y 2"), "ok");
}

/* The second has come; the first one's child has been asked to end and has. */
static void relieve(struct fixture *old, struct fixture *new)
{
    assert_string_equal(hear(old), "signal 15");
    order(old, "exit 0");
    meet(new);
}
