/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The edit between tunnel and agent, on a real relay, socket and files.
 *
 * A "forwarder" (this process, or children that die) plays the tunnel: the shim's stream comes from
 * memory at the offset that the edit holds, what the agent sends goes to a result file at its
 * offset and is acknowledged then. The parent plays the agent at the other end of a socket pair.
 * Whatever happened on the way, at the end the agent must have got every frame once, edited where
 * due, and the result file must hold the agent's frames once, with one answer of ours for each
 * refused request, between two of them.
 *
 * The module is compiled into this file so that a child can die at its n-th step for every n.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void step_hook(void);
#define EDIT_STEP() step_hook()
#include "forwarder/edit.c"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

static unsigned dies_at; /* 0: never */
static unsigned steps;

static void step_hook(void)
{
    if (++steps == dies_at)
        _exit(42);
}

#include "unit/forwarder_script.h"

/* -- the world -- */

struct world {
    const struct script *script;
    char dir[64];
    int ours;   /* over all forwarders */
    int agent;  /* the other end */
    int result; /* what the far side of the tunnel has */
    size_t ring;
    struct buf got; /* by the agent */
    size_t agent_sent;
    bool agent_eof;
    size_t piece; /* of feeding, at most; 0: whatever fits */
    size_t split; /* the first piece of the shim's stream; 0: none */
    bool tiny;    /* on a file system of its own, which grows when nothing moves any more */
};

static unsigned starved; /* -ENOSPC was met so often */

/* Everything is in memory as on /run, where blocks cost microseconds and not milliseconds. */
static const char *base_dir(void)
{
    return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
}

static void world_begin(struct world *w, const struct script *script, size_t ring)
{
    struct err err = ERR_INIT;
    struct relay *relay;
    struct edit *edit;
    int s[2];
    *w = (struct world){.script = script, .ring = ring, .got = BUF_INIT(STREAM_MAX)};
    snprintf(w->dir, sizeof(w->dir), "%s/forwarder_edit.XXXXXX", base_dir());
    assert_non_null(mkdtemp(w->dir));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s), 0);
    w->ours = s[0];
    w->agent = s[1];
    int dir = open(w->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    w->result = memfd_create("result", MFD_CLOEXEC);
    assert_int_equal(relay_create(dir, "relay", dup(s[0]), ring, &relay, &err), 0);
    assert_int_equal(edit_create(dir, "edit", ring, relay, &rules, &edit, &err), 0);
    edit_close(edit);
    relay_close(relay);
    close(dir);
}

static void world_end(struct world *w)
{
    static const char *const names[] = {"relay", "edit"};
    int dir = open(w->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        unlinkat(dir, names[i], 0);
    close(dir);
    rmdir(w->dir);
    close(w->ours);
    close(w->agent);
    close(w->result);
    buf_done(&w->got);
}

/* -- the forwarder -- */

static void forwarder_open(struct world *w, struct relay **relay, struct edit **edit)
{
    struct err err = ERR_INIT;
    int dir = open(w->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    if (relay_recover(dir, "relay", dup(w->ours), relay, &err) < 0 ||
        edit_recover(dir, "edit", *relay, &rules, edit, &err) < 0) {
        fprintf(stderr, "recovery: %s\n", err_text(&err));
        abort();
    }
    close(dir);
}

static bool feed(struct world *w, struct edit *e)
{
    const struct buf *shim = &w->script->shim;
    uint64_t held = edit_rx_held(e);
    uint8_t *to;
    if (held == shim->len) {
        if (edit_rx_has_fin(e))
            return false;
        edit_rx_fin(e);
        return true;
    }
    ssize_t n = edit_rx_space(e, &to);
    if (n < 0)
        return false;
    size_t len = MIN((size_t)n, shim->len - (size_t)held);
    if (w->piece > 0)
        len = least(len, 1 + random_below(w->piece));
    if (held < w->split)
        len = MIN(len, w->split - (size_t)held);
    memcpy(to, shim->data + held, len);
    edit_rx_commit(e, len);
    return true;
}

/* Reads of the agent as the pump does, and the far side's taking of it. */
static bool take(struct world *w, struct relay *r, struct edit *e)
{
    const uint8_t *p;
    if (relay_in_take(r) < 0)
        abort();
    ssize_t got =
        relay_in_read(r, w->piece > 0 ? MIN(edit_in_limit(e), w->piece) : edit_in_limit(e));
    edit_run(e);
    uint64_t tail = relay_in_tail(r);
    size_t n = relay_in_peek(r, tail, &p);
    if (n == 0 || random_below(4) == 0)
        return got > 0;
    n = 1 + random_below(n);
    if (pwrite(w->result, p, n, (off_t)tail) != (ssize_t)n || edit_in_ack(e, tail + n) < 0)
        abort();
    return true;
}

/* One round; false: nothing moved. */
static bool forward(struct world *w, struct relay *r, struct edit *e)
{
    uint64_t done = relay_out_done(r);
    bool moved = feed(w, e);
    int r1 = edit_run(e);
    if (r1 < 0 && r1 != -ENOSPC)
        abort();
    starved += r1 == -ENOSPC;
    int flushed = relay_out_flush(r);
    if (flushed < 0 && flushed != -EAGAIN)
        abort();
    moved = take(w, r, e) || moved;
    return moved || relay_out_done(r) != done;
}

static bool forwarder_finished(const struct relay *r)
{
    return relay_out_finished(r) && relay_in_eof(r) && relay_in_tail(r) == relay_in_head(r);
}

/* -- the agent -- */

static bool agent_round(struct world *w)
{
    bool moved = false;
    char bytes[16384];
    ssize_t n = w->agent_eof ? 0 : recv(w->agent, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n > 0)
        buf_add(&w->got, bytes, (size_t)n);
    if (n == 0)
        w->agent_eof = true;
    moved = n > 0;
    const struct buf *out = &w->script->agent;
    if (w->agent_sent < out->len) {
        n = send(w->agent, out->data + w->agent_sent,
                 least(1 + random_below(3000), out->len - w->agent_sent),
                 MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            w->agent_sent += (size_t)n;
            moved = true;
        }
    } else if (w->agent_eof) {
        shutdown(w->agent, SHUT_WR);
    }
    return moved;
}

/* -- the verdict -- */

static void check_result(struct world *w)
{
    size_t len = (size_t)lseek(w->result, 0, SEEK_END), at = 0, theirs = 0;
    unsigned answers = 0;
    uint8_t *all = malloc(len + 1);
    assert_non_null(all);
    assert_int_equal(pread(w->result, all, len, 0), (ssize_t)len);
    while (at < len) {
        struct ttrpc_header h;
        assert_true(len - at >= TTRPC_HEADER_SIZE);
        ttrpc_header_decode(all + at, &h);
        size_t frame = TTRPC_HEADER_SIZE + h.length;
        assert_true(frame <= len - at);
        if (h.stream > 1000) {
            assert_int_equal(h.stream, 1000 + ++answers);
            assert_int_equal(h.type, TTRPC_RESPONSE);
            assert_non_null(memmem(all + at, frame, "not a protobuf message", 22));
        } else {
            assert_true(frame <= w->script->agent.len - theirs);
            assert_memory_equal(all + at, w->script->agent.data + theirs, frame);
            theirs += frame;
        }
        at += frame;
    }
    free(all);
    assert_int_equal(theirs, w->script->agent.len);
    assert_int_equal(answers, w->script->refused);
}

static void check_world(struct world *w)
{
    assert_int_equal(w->got.len, w->script->expected.len);
    assert_memory_equal(w->got.data, w->script->expected.data, w->got.len);
    check_result(w);
}

/* -- without crashes -- */

static void run_inside(struct world *w)
{
    struct relay *r;
    struct edit *e;
    forwarder_open(w, &r, &e);
    unsigned idle = 0;
    while (!forwarder_finished(r) && idle < 10000) {
        bool moved = forward(w, r, e);
        moved = agent_round(w) || moved;
        idle = moved ? 0 : idle + 1;
        if (w->tiny && idle == 200)
            assert_int_equal(mount("x", base_dir(), "tmpfs", MS_REMOUNT, "size=64m"), 0);
    }
    assert_true(forwarder_finished(r));
    edit_trim(e);
    edit_close(e);
    relay_close(r);
    check_world(w);
}

static void test_split_at_every_byte(void **state)
{
    struct script s;
    script_small(&s);
    for (size_t split = 0; split <= s.shim.len; split++) {
        struct world w;
        world_begin(&w, &s, 32U << 10);
        w.split = split;
        run_inside(&w);
        world_end(&w);
    }
    script_done(&s);
}

static void test_pieces_and_rings(void **state)
{
    static const size_t pieces[] = {1, 7, 100, 5000, 0};
    struct script s;
    for (size_t ring = 32U << 10; ring <= 256U << 10; ring *= 2) {
        for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
            struct world w;
            if (pieces[i] == 1)
                script_small(&s);
            else
                script_mixed(&s);
            world_begin(&w, &s, ring);
            w.piece = pieces[i];
            run_inside(&w);
            world_end(&w);
            script_done(&s);
        }
    }
}

/* 4 MiB exactly passes and is edited up to the limit; a frame over the limit streams through. */
static void test_largest_frames(void **state)
{
    struct script s;
    struct world w;
    char *big = xcalloc(1, 5U << 20);
    script_init(&s);
    script_container(&s, 3900U << 10);
    script_pass(&s, TTRPC_REQUEST, big, (4U << 20) + 1);
    script_pass(&s, TTRPC_REQUEST, "\x0a\x01s\x12\x01m", 6);
    script_answers(&s, 5, 100000);
    world_begin(&w, &s, 256U << 10);
    run_inside(&w);
    world_end(&w);
    script_done(&s);
    free(big);
}

/* The shim closes in the middle of a frame: a passing one goes on as it is, a held one not. */
static void test_fin_inside_a_frame(void **state)
{
    struct script s;
    struct world w;
    for (int held = 0; held < 2; held++) {
        script_init(&s);
        script_request(&s, "Check", "", 0);
        size_t whole = s.shim.len, kept = s.expected.len;
        script_request(&s, held ? "CreateContainer" : "CopyFile", "\x0a\x05hello", 7);
        s.shim.len -= 3;
        s.expected.len = held ? kept : s.expected.len - 3;
        world_begin(&w, &s, 32U << 10);
        run_inside(&w);
        world_end(&w);
        /* and inside its header */
        s.shim.len = whole + 4;
        s.expected.len = kept;
        buf_add(&s.expected, s.shim.data + whole, 4);
        world_begin(&w, &s, 32U << 10);
        run_inside(&w);
        world_end(&w);
        script_done(&s);
    }
}

/* cmocka's handlers would run the other tests in a child. */
static void default_signals(void)
{
    signal(SIGSEGV, SIG_DFL);
    signal(SIGABRT, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
}

/* In a mount namespace of its own, so that nothing stays: 0 fine, 77 not possible here. */
static int run_on_full_disk(void)
{
    struct script s;
    struct world w;
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("x", base_dir(), "tmpfs", 0, "size=208k") < 0)
        return 77;
    script_mixed(&s);
    world_begin(&w, &s, 32U << 10);
    w.tiny = true;
    run_inside(&w);
    world_end(&w);
    script_done(&s);
    return starved > 100 ? 0 : 1;
}

/* A full file system is a pause: no signal, no wrong byte, and it goes on when there is room. */
static void test_full_file_system(void **state)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        default_signals();
        _exit(run_on_full_disk());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        const char *strict = getenv("STRICT");
        fprintf(stderr, "forwarder.edit: no mount namespace to be had: full file system skipped\n");
        assert_false(strict && strcmp(strict, "1") == 0);
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* -- with crashes -- */

/* A forwarder in a child that dies at its n-th step (0: lives). Returns true when all is done. */
static bool run_child(struct world *w, unsigned n, unsigned kill_after_us)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct relay *r;
        struct edit *e;
        default_signals();
        steps = 0;
        dies_at = n;
        forwarder_open(w, &r, &e);
        while (!forwarder_finished(r)) {
            if (!forward(w, r, e)) {
                struct pollfd p = {.fd = w->ours, .events = POLLIN};
                poll(&p, 1, 1);
            }
        }
        _exit(0);
    }
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (!agent_round(w))
            sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &t);
        int64_t us = (t.tv_sec - t0.tv_sec) * 1000000 + (t.tv_nsec - t0.tv_nsec) / 1000;
        if ((kill_after_us > 0 && us > kill_after_us) || us > 20000000)
            kill(pid, SIGKILL);
    }
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && kill_after_us > 0;
    bool stepped = WIFEXITED(status) && WEXITSTATUS(status) == 42;
    bool finished = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    assert_true(killed || stepped || finished);
    return finished;
}

static void settle_agent(struct world *w)
{
    for (int i = 0; i < 1000 && (agent_round(w) || !w->agent_eof); i++)
        ;
}

static void test_death_at_every_step(void **state)
{
    struct script s;
    unsigned n = 1;
    script_small(&s);
    for (bool early = false; !early; n++) {
        struct world w;
        world_begin(&w, &s, 32U << 10);
        w.piece = 64;
        early = run_child(&w, n, 0);
        if (!early)
            assert_true(run_child(&w, 0, 0));
        settle_agent(&w);
        check_world(&w);
        world_end(&w);
    }
    fprintf(stderr, "forwarder.edit: %u steps of the small script, a death at each\n", n - 1);
    assert_true(n > 30);
    script_done(&s);
}

/* Again and again, in the larger script. */
static void test_many_deaths(void **state)
{
    struct script s;
    unsigned deaths = 0;
    script_mixed(&s);
    for (int round = 0; round < 5; round++) {
        struct world w;
        world_begin(&w, &s, round % 2 ? 32U << 10 : 64U << 10);
        w.piece = round % 3 == 0 ? 2000 : 0;
        while (!run_child(&w, 2 + (unsigned)random_below(80), 0))
            deaths++;
        settle_agent(&w);
        check_world(&w);
        world_end(&w);
    }
    fprintf(stderr, "forwarder.edit: %u deaths at steps\n", deaths);
    script_done(&s);
}

/* At any instruction. */
static void test_kills(void **state)
{
    const char *text = getenv("KILLS");
    unsigned kills = 0, wanted = text ? (unsigned)strtoul(text, NULL, 10) : 60;
    struct script s;
    script_mixed(&s);
    while (kills < wanted) {
        struct world w;
        world_begin(&w, &s, 32U << 10);
        w.piece = 4000;
        while (!run_child(&w, 0, 200 + (unsigned)random_below(3000)))
            kills++;
        settle_agent(&w);
        check_world(&w);
        world_end(&w);
    }
    fprintf(stderr, "forwarder.edit: %u kills\n", kills);
    script_done(&s);
}

/* -- files -- */

static void test_hostile_files(void **state)
{
    struct script s;
    struct world w;
    script_small(&s);
    world_begin(&w, &s, 32U << 10);
    char path[100];
    snprintf(path, sizeof(path), "%s/edit", w.dir);
    int dir = open(w.dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    struct relay *relay;
    struct err err = ERR_INIT;
    assert_int_equal(relay_recover(dir, "relay", dup(w.ours), &relay, &err), 0);
    static const struct {
        off_t at;
        uint8_t value;
        int error;
    } cases[] = {
        {0, 'X', -EBADMSG},
        {offsetof(struct file, major), 2, -EPROTONOSUPPORT},
        {offsetof(struct file, ring_size), 1, -EBADMSG},
        {offsetof(struct file, rx_head) + 7, 0x80, -EBADMSG},
        {offsetof(struct file, rx_head) + 2, 1, -EBADMSG}, /* more than the ring holds */
        {offsetof(struct file, rx_fin), 2, -EBADMSG},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct edit *e = NULL;
        uint8_t was;
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(pread(fd, &was, 1, cases[i].at), 1);
        assert_int_equal(pwrite(fd, &cases[i].value, 1, cases[i].at), 1);
        err_clear(&err);
        assert_int_equal(edit_recover(dir, "edit", relay, &rules, &e, &err), cases[i].error);
        assert_int_equal(pwrite(fd, &was, 1, cases[i].at), 1);
        close(fd);
    }
    assert_int_equal(truncate(path, 100), 0);
    struct edit *e = NULL;
    err_clear(&err);
    assert_int_equal(edit_recover(dir, "edit", relay, &rules, &e, &err), -EBADMSG);
    relay_close(relay);
    close(dir);
    world_end(&w);
    script_done(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_at_every_byte),
        cmocka_unit_test(test_pieces_and_rings),
        cmocka_unit_test(test_largest_frames),
        cmocka_unit_test(test_fin_inside_a_frame),
        cmocka_unit_test(test_death_at_every_step),
        cmocka_unit_test(test_many_deaths),
        cmocka_unit_test(test_kills),
        cmocka_unit_test(test_full_file_system),
        cmocka_unit_test(test_hostile_files),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
