/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keepers killed at every step of a hand-over.
 *
 * A thread traces the victim and kills it at its n-th stop, before and behind each system call, for
 * n = 1, 1 + KEEPER_KILL_STRIDE (5), ... until the whole goes through without reaching n. Whenever
 * that is, every descriptor must turn up in the next child that starts, once, or the child that has
 * it must still be there and must not have been asked to end.
 */
#include <pthread.h>
#include <sys/ptrace.h>

#include "keeper_meeting.h"

struct tracer {
    pthread_t thread;
    pid_t pid, child; /* the child dies with it: a container killed whole; 0: only the keeper */
    int n;
    bool stop;   /* give up: the scene is over */
    bool killed; /* the n-th stop was reached */
};

static void *trace(void *arg)
{
    struct tracer *t = arg;
    int status, stops = 0;

    if (ptrace(PTRACE_SEIZE, t->pid, 0, PTRACE_O_TRACESYSGOOD) < 0 ||
        ptrace(PTRACE_INTERRUPT, t->pid, 0, 0) < 0)
        return NULL;
    while (!__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
        pid_t pid = waitpid(t->pid, &status, __WALL | WNOHANG);
        if (pid == 0) {
            usleep(50);
            continue;
        }
        if (pid < 0 || !WIFSTOPPED(status))
            return NULL;
        bool call = WSTOPSIG(status) == (SIGTRAP | 0x80);
        if (call && ++stops >= t->n)
            break;
        int sig = call || status >> 16 ? 0 : WSTOPSIG(status);
        ptrace(PTRACE_SYSCALL, t->pid, 0, sig);
    }
    if (stops < t->n) {
        ptrace(PTRACE_INTERRUPT, t->pid, 0, 0);
        waitpid(t->pid, &status, __WALL);
        ptrace(PTRACE_DETACH, t->pid, 0, 0);
        return NULL;
    }
    if (t->child > 0)
        kill(t->child, SIGSTOP);
    kill(t->pid, SIGKILL);
    waitpid(t->pid, &status, __WALL);
    if (t->child > 0)
        kill(t->child, SIGKILL);
    __atomic_store_n(&t->killed, true, __ATOMIC_RELEASE);
    return NULL;
}

static void begin_trace(struct tracer *t, pid_t pid, int n)
{
    *t = (struct tracer){.pid = pid, .n = n};
    assert_int_equal(pthread_create(&t->thread, NULL, trace, t), 0);
}

static bool killed(struct tracer *t)
{
    return __atomic_load_n(&t->killed, __ATOMIC_ACQUIRE);
}

static bool end_trace(struct tracer *t)
{
    __atomic_store_n(&t->stop, true, __ATOMIC_RELEASE);
    pthread_join(t->thread, NULL);
    return t->killed;
}

static int stride(void)
{
    uint64_t value = 5;
    const char *text = getenv("KEEPER_KILL_STRIDE");

    if (text)
        assert_int_equal(str_to_u64(text, 1000, &value), 0);
    return (int)value;
}

/* What has happened so far in a hand-over from a to b. */
struct course {
    bool told;    /* a's child was asked to end */
    bool late;    /* and its last descriptor was taken */
    bool resumed; /* a has started its child again */
    bool started; /* b has started its own */
};

static void advance(struct scene *s, struct course *c)
{
    if (!c->told && try_hear(s->a, 2)) {
        assert_string_equal(s->a->reply, "signal 15");
        c->told = true;
        c->late = try_ask(s->a, "add late 3") && str_eq(s->a->reply, "ok");
        if (s->a->conn >= 0)
            send(s->a->conn, "exit 0", 6, MSG_NOSIGNAL);
    }
    c->resumed = c->resumed || (c->told && try_meet(s->a));
    if (!c->started && try_meet(s->b)) {
        c->started = true;
        try_ask(s->b, "ready");
    }
    usleep(500);
}

static void check_store(const struct fixture *f, const struct course *c, int n)
{
    const char *expected = c->late ? "late=3 x=1 y=2" : "x=1 y=2";

    if (!str_eq(f->store, expected) && !(str_eq(f->store, "late=3 x=1 y=2") && c->told)) {
        print_error("killed at stop %d: '%s' instead of '%s'\n", n, f->store, expected);
        fail();
    }
}

/* The old one dies, with its child. False: it had ended before. */
static bool predecessor_dies(struct scene *s, int n)
{
    struct course c = {0};
    struct tracer t;

    first_act(s);
    begin_trace(&t, s->a->keeper, n);
    enter(s, s->b);
    int64_t deadline = clock_mono_ms() + WAIT_MS;
    while (!killed(&t) && !(c.started && ended(s->a)) && clock_mono_ms() < deadline)
        advance(s, &c);
    bool reached = end_trace(&t);
    if (reached)
        s->a->keeper = 0;
    while (!c.started && !ended(s->b) && clock_mono_ms() < deadline)
        advance(s, &c);
    assert_true(c.started || (ended(s->b) && !c.told));
    if (c.told)
        check_store(s->b, &c, n);
    else /* some may have come, or none: all is with the child */
        assert_true(try_ask(s->a, "env"));
    return reached;
}

static bool successor_dies(struct scene *s, int n)
{
    struct course c = {0};
    struct tracer t;

    first_act(s);
    enter(s, s->b);
    begin_trace(&t, s->b->keeper, n);
    int64_t deadline = clock_mono_ms() + WAIT_MS;
    while (!killed(&t) && !(c.started && ended(s->a)) && clock_mono_ms() < deadline)
        advance(s, &c);
    bool reached = end_trace(&t);
    if (!reached || ended(s->a))
        return false; /* the new one was the keeper already */
    s->b->keeper = 0;
    closep(&s->b->conn);
    s->b->conn = -1;
    while (c.told && !c.resumed && !ended(s->a) && clock_mono_ms() < deadline)
        advance(s, &c);
    if (ended(s->a))
        return false;
    if (!c.told) { /* once more, now that it is known not to be told */
        usleep(20 * 1000);
        advance(s, &c);
        while (c.told && !c.resumed && clock_mono_ms() < deadline)
            advance(s, &c);
    }
    if (!c.resumed)
        kill_child(s->a);
    check_store(s->a, &c, n);
    return true;
}

/* The keeper of a store dies with its child, which has just been told that its word is in. */
static bool client_dies(struct scene *s, int n)
{
    struct course all = {.told = true, .late = true};
    struct tracer t;

    enter_store(s, s->stores[0]);
    wait_path(s->path);
    first_act(s);
    begin_trace(&t, s->a->keeper, n);
    t.child = s->a->child;
    usleep(2000);
    bool added = try_ask(s->a, "add late 3") && str_eq(s->a->reply, "ok");
    for (int i = 0; i < 40 && !killed(&t); i++)
        usleep(1000);
    bool reached = end_trace(&t);
    if (!reached)
        return false;
    s->a->keeper = 0;
    closep(&s->a->conn);
    s->a->conn = -1;
    enter(s, s->b);
    meet(s->b);
    all.late = added;
    check_store(s->b, &all, n);
    return true;
}

static void at_every_step(bool (*scene)(struct scene *s, int n), int step, const char *name)
{
    int kills = 0, misses = 0;

    /* How many stops there are is a little different each time. */
    for (int n = 1; misses < 3; n += step) {
        struct scene *s;
        set_scene((void **)&s);
        bool reached = scene(s, n);
        kills += reached;
        misses = reached ? 0 : misses + 1;
        strike_scene((void **)&s);
    }
    print_message("%s: %d kills, one at each %d of its stops\n", name, kills, step);
    assert_true(kills > 5);
}

static void predecessor(void **state)
{
    at_every_step(predecessor_dies, stride(), "predecessor");
}

static void successor(void **state)
{
    at_every_step(successor_dies, stride(), "successor");
}

static void client_of_store(void **state)
{
    at_every_step(client_dies, 1, "client of a store");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predecessor),
        cmocka_unit_test(successor),
        cmocka_unit_test(client_of_store),
    };
    int status = keeper_world_main(argc, argv);

    return status >= 0 ? status : cmocka_run_group_tests_name("keeper.kills", tests, NULL, NULL);
}
