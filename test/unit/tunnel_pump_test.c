/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pumps on real relays, alone and as the ends of a tunnel: program - unix socket - relay - tunnel -
 * relay - unix socket - program.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "base/fs.h"
#include "relay/pump.h"
#include "tunnel_world.h"

struct end { /* a relay with its pump, and the program's socket at its other side */
    struct tunnel **t;
    uint32_t id;
    struct relay *relay;
    struct pump *pump;
    int app;
    bool broken, gone, fin_received;
    int error;
    unsigned readies, rooms, reads;
    size_t limit;
    const char *asks; /* by the program, when an answer is on its way to it */
};

static char dir[] = "/tmp/pump-XXXXXX";
static int work_dir;

static bool end_has_fin(void *p)
{
    return ((struct end *)p)->fin_received;
}

static uint64_t end_tx_head(void *p)
{
    return relay_in_head(((struct end *)p)->relay);
}

static bool end_tx_fin(void *p)
{
    return relay_in_eof(((struct end *)p)->relay);
}

static uint64_t end_tx_tail(void *p)
{
    return relay_in_tail(((struct end *)p)->relay);
}

static size_t end_tx_peek(void *p, uint64_t offset, const uint8_t **ret)
{
    return relay_in_peek(((struct end *)p)->relay, offset, ret);
}

static int end_tx_acked(void *p, uint64_t offset)
{
    struct end *e = p;
    int r = relay_in_ack(e->relay, offset);
    pump_kick(e->pump);
    return r;
}

static uint64_t end_rx_held(void *p)
{
    return relay_out_head(((struct end *)p)->relay);
}

static uint64_t end_rx_limit(void *p)
{
    struct relay *r = ((struct end *)p)->relay;
    return relay_out_head(r) + relay_out_free(r);
}

static ssize_t end_rx_space(void *p, uint8_t **ret)
{
    return relay_out_space(((struct end *)p)->relay, ret);
}

static void end_rx_commit(void *p, size_t n)
{
    struct end *e = p;
    relay_out_commit(e->relay, n, NULL, 0);
    pump_kick(e->pump);
}

static void end_rx_fin(void *p)
{
    struct end *e = p;
    e->fin_received = true;
    relay_out_fin(e->relay);
    pump_kick(e->pump);
}

static void end_gone(void *p, const char *reason)
{
    ((struct end *)p)->gone = true;
}

static const struct channel_ops end_ops = {
    .tx_head = end_tx_head,
    .tx_fin = end_tx_fin,
    .tx_tail = end_tx_tail,
    .tx_peek = end_tx_peek,
    .tx_acked = end_tx_acked,
    .rx_held = end_rx_held,
    .rx_limit = end_rx_limit,
    .rx_space = end_rx_space,
    .rx_commit = end_rx_commit,
    .rx_fin = end_rx_fin,
    .rx_has_fin = end_has_fin,
    .gone = end_gone,
};

static void on_in_ready(void *p)
{
    struct end *e = p;
    e->readies++;
    if (e->t)
        tunnel_channel_kick(*e->t, e->id);
}

static void on_out_room(void *p)
{
    struct end *e = p;
    e->rooms++;
    if (e->asks)
        assert_int_equal(write(e->app, e->asks, strlen(e->asks)), strlen(e->asks));
    if (e->t)
        tunnel_channel_kick(*e->t, e->id);
}

static void on_broken(void *p, int error)
{
    struct end *e = p;
    assert_false(e->broken);
    e->broken = true;
    e->error = error;
}

static size_t in_limit(void *p)
{
    ((struct end *)p)->reads++;
    return ((struct end *)p)->limit;
}

static const struct pump_ops pump_callbacks = {
    .in_ready = on_in_ready, .out_room = on_out_room, .broken = on_broken, .in_limit = in_limit};

static struct end *end_new(uv_loop_t *loop, const char *name)
{
    struct err err = ERR_INIT;
    int pair[2];
    struct end *e = xcalloc(1, sizeof(*e));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    e->app = pair[1];
    e->limit = SIZE_MAX;
    if (relay_create(work_dir, name, pair[0], RELAY_RING_DEFAULT, &e->relay, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(unlinkat(work_dir, name, 0), 0); /* the mapping is enough here */
    assert_int_equal(pump_start(loop, e->relay, &pump_callbacks, e, &e->pump, &err), 0);
    return e;
}

static void end_free(struct end *e)
{
    pump_stop(e->pump);
    relay_close(e->relay);
    if (e->app >= 0)
        close(e->app);
    free(e);
}

static void spin(uv_loop_t *loop, unsigned ms)
{
    int64_t end = clock_mono_ms() + ms;
    while (clock_mono_ms() < end) {
        uv_run(loop, UV_RUN_NOWAIT);
        usleep(200);
    }
}

/* Whatever the pump holds goes out again on the same relay: an echo. */
static void echo(struct end *e)
{
    const uint8_t *from;
    uint8_t *to;
    for (;;) {
        size_t n = relay_in_peek(e->relay, relay_in_tail(e->relay), &from);
        ssize_t room = n ? relay_out_space(e->relay, &to) : 0;
        if (room <= 0)
            break;
        n = MIN(n, (size_t)room);
        memcpy(to, from, n);
        relay_out_commit(e->relay, n, NULL, 0);
        relay_in_ack(e->relay, relay_in_tail(e->relay) + n);
    }
    pump_kick(e->pump);
}

static void test_pump_reads_and_writes(void **state)
{
    uv_loop_t loop;
    char text[64] = "";
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "a");
    assert_int_equal(write(e->app, "hello", 5), 5);
    spin(&loop, 20);
    assert_int_equal(relay_in_head(e->relay), 5);
    unsigned rooms = e->rooms;
    echo(e);
    spin(&loop, 20);
    assert_int_equal(read(e->app, text, sizeof(text)), 5);
    assert_string_equal(text, "hello");
    assert_true(e->rooms > rooms);
    /* A half-close is no end: the reply is still due. */
    assert_int_equal(write(e->app, "last", 4), 4);
    shutdown(e->app, SHUT_WR);
    spin(&loop, 20);
    assert_true(relay_in_eof(e->relay) && !e->broken);
    echo(e);
    spin(&loop, 20);
    assert_int_equal(read(e->app, text, sizeof(text)), 4);
    close(TAKE_FD(e->app));
    spin(&loop, 20);
    assert_true(e->broken);
    assert_int_equal(e->error, 0);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* The peer writes more than the ring holds and goes away: every byte is read before `broken`, and
 * a loop that waits for room does not spin. */
static void test_pump_last_bytes(void **state)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "b");
    int size = 1 << 20;
    setsockopt(e->app, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    _cleanup_free_ char *bytes = xcalloc(1, 400 << 10);
    fcntl(e->app, F_SETFL, O_NONBLOCK);
    ssize_t sent = write(e->app, bytes, 400 << 10);
    spin(&loop, 20);
    ssize_t more = write(e->app, bytes, 400 << 10);
    sent += MAX(more, 0);
    assert_true(sent > (ssize_t)RELAY_RING_DEFAULT);
    close(TAKE_FD(e->app));
    spin(&loop, 20);
    assert_int_equal(relay_in_head(e->relay), RELAY_RING_DEFAULT);
    assert_false(e->broken);
    for (int i = 0; i < 100 && !e->broken; i++) {
        relay_in_ack(e->relay, relay_in_head(e->relay));
        pump_kick(e->pump);
        spin(&loop, 5);
    }
    assert_true(e->broken);
    assert_int_equal(relay_in_head(e->relay), sent);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* Who was answered asks at once: that is read in the same turn of the loop. */
static void test_pump_reads_behind_its_answer(void **state)
{
    uv_loop_t loop;
    uint8_t *to;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "d");
    uv_run(&loop, UV_RUN_NOWAIT);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_true(relay_out_space(e->relay, &to) > 6);
    memcpy(to, "answer", 6);
    relay_out_commit(e->relay, 6, NULL, 0);
    pump_kick(e->pump);
    e->asks = "next";
    unsigned readies = e->readies;
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(e->rooms, 1);
    assert_int_equal(relay_in_head(e->relay), 4);
    assert_int_equal(e->readies, readies + 1);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static int in_socket(const struct end *e)
{
    int n = -1;
    assert_int_equal(ioctl(relay_socket(e->relay), FIONREAD, &n), 0);
    return n;
}

/* Bytes are sent on first, then taken out of the socket, which wakes whoever wrote them; and they are
 * out of it before the loop waits, or it would not. */
static void test_pump_takes_behind_its_callbacks(void **state)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "f");
    assert_int_equal(write(e->app, "hello", 5), 5);
    while (e->readies == 0)
        uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(in_socket(e), 5);
    assert_int_equal(relay_in_untaken(e->relay), 5);
    unsigned readies = e->readies;
    uv_run(&loop, UV_RUN_NOWAIT);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(in_socket(e), 0);
    assert_int_equal(relay_in_untaken(e->relay), 0);
    assert_int_equal(relay_in_head(e->relay), 5);
    assert_int_equal(e->readies, readies);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* A socket that is closed with unread bytes in it is a reset to the peer. */
static void test_pump_stop_leaves_nothing_in_the_socket(void **state)
{
    uv_loop_t loop;
    char byte;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "g");
    assert_int_equal(write(e->app, "hello", 5), 5);
    while (e->readies == 0)
        uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(in_socket(e), 5);
    int app = TAKE_FD(e->app);
    end_free(e);
    assert_int_equal(read(app, &byte, 1), 0);
    close(app);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* The predecessor died between the two. */
static void test_pump_takes_what_a_predecessor_read(void **state)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "h");
    struct err err = ERR_INIT;
    struct relay *other;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(relay_create(work_dir, "i", fcntl(pair[0], F_DUPFD_CLOEXEC, 0),
                                  RELAY_RING_DEFAULT, &other, &err),
                     0);
    assert_int_equal(write(pair[1], "hello", 5), 5);
    assert_int_equal(relay_in_read(other, SIZE_MAX), 5);
    relay_close(other);
    pump_stop(e->pump);
    relay_close(e->relay);
    assert_int_equal(relay_recover(work_dir, "i", pair[0], &e->relay, &err), 0);
    assert_int_equal(unlinkat(work_dir, "i", 0), 0);
    assert_int_equal(in_socket(e), 5);
    assert_int_equal(pump_start(&loop, e->relay, &pump_callbacks, e, &e->pump, &err), 0);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(in_socket(e), 0);
    assert_int_equal(relay_in_head(e->relay), 5);
    assert_int_equal(write(pair[1], "again", 5), 5);
    spin(&loop, 5);
    assert_int_equal(relay_in_head(e->relay), 10);
    assert_int_equal(in_socket(e), 0);
    end_free(e);
    close(pair[1]);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* More at once than libuv asks for: it polls up to 48 times more before the next turn, and would find
 * all of them again. */
static void test_pump_many_at_once(void **state)
{
    enum { MANY = 1100 };
    static struct end *ends[MANY];
    unsigned reads = 0;
    struct rlimit files;
    uv_loop_t loop;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < 4 * MANY)
        skip();
    uv_loop_init(&loop);
    for (int i = 0; i < MANY; i++)
        ends[i] = end_new(&loop, "l");
    spin(&loop, 5);
    for (int i = 0; i < MANY; i++) {
        ends[i]->reads = 0;
        assert_int_equal(write(ends[i]->app, "hello", 5), 5);
    }
    uv_run(&loop, UV_RUN_NOWAIT);
    uv_run(&loop, UV_RUN_NOWAIT);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(relay_in_head(ends[i]->relay), 5);
        reads += ends[i]->reads;
        end_free(ends[i]);
    }
    assert_true(reads <= 3 * MANY);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* It would keep the socket ready, and the loop running, for as long as the peer likes. */
static void test_pump_cuts_off_out_of_band_bytes(void **state)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "k");
    assert_int_equal(write(e->app, "hello", 5), 5);
    spin(&loop, 5);
    bool can = send(e->app, "!", 1, MSG_OOB | MSG_NOSIGNAL) == 1; /* since Linux 5.15 */
    spin(&loop, 5);
    assert_int_equal(relay_in_head(e->relay), 5);
    assert_int_equal(e->broken, can);
    assert_int_equal(e->error, can ? -EPROTO : 0);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void test_pump_limit(void **state)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end *e = end_new(&loop, "c");
    e->limit = 3;
    assert_int_equal(write(e->app, "abcdef", 6), 6);
    uv_run(&loop, UV_RUN_NOWAIT);
    uv_run(&loop, UV_RUN_NOWAIT);
    e->limit = 0;
    spin(&loop, 20);
    uint64_t head = relay_in_head(e->relay);
    assert_true(head == 3 || head == 6);
    assert_int_equal(write(e->app, "ghi", 3), 3);
    spin(&loop, 20);
    assert_int_equal(relay_in_head(e->relay), head);
    e->limit = SIZE_MAX;
    pump_kick(e->pump);
    spin(&loop, 20);
    assert_int_equal(relay_in_head(e->relay), 9);
    end_free(e);
    spin(&loop, 5);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* -- the whole way -- */

static struct end *ends[2];

static int open_end(void *p, uint32_t id, const struct channel_ops **ret_ops, void **ret_ep)
{
    *ret_ops = &end_ops;
    *ret_ep = ends[1];
    return 0;
}

struct program { /* on a thread of its own, blocking, as shim and agent are */
    int fd;
    uint32_t seed, peer_seed;
    uint64_t total, got;
    bool wrong;
};

static void *program_write(void *arg)
{
    struct program *g = arg;
    for (uint64_t done = 0; done < g->total;) {
        size_t at = (size_t)((done + g->seed) % PATTERN);
        size_t len = (size_t)MIN(MIN(g->total - done, PATTERN - at), 1 + done % 70000);
        ssize_t n = write(g->fd, pattern + at, len);
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    shutdown(g->fd, SHUT_WR);
    return NULL;
}

static void *program_read(void *arg)
{
    struct program *g = arg;
    uint8_t bytes[32768];
    ssize_t n;
    while ((n = read(g->fd, bytes, sizeof(bytes))) > 0)
        for (ssize_t i = 0; i < n; i++)
            g->wrong |= bytes[i] != pattern[(g->got++ + g->peer_seed) % PATTERN];
    return NULL;
}

static bool both_finished(struct world *w)
{
    return relay_out_finished(ends[0]->relay) && relay_out_finished(ends[1]->relay);
}

static bool cut_now_and_then(struct world *w)
{
    static unsigned n;
    if (++n % 40 == 0)
        cut_reset(w);
    return both_finished(w);
}

static void whole_way(uint64_t total, bool (*done)(struct world *w))
{
    static struct tunnel_ops ops;
    struct world *w = world_new();
    struct err err = ERR_INIT;
    ops = side_ops;
    ops.open = open_end;
    ends[0] = end_new(&w->loop, "d");
    ends[1] = end_new(&w->loop, "e");
    assert_int_equal(
        tunnel_new(&w->loop, &w->forwarder.config, &ops, &w->forwarder, &w->forwarder.t, &err), 0);
    side_start(&w->daemon);
    ends[0]->t = &w->daemon.t;
    ends[1]->t = &w->forwarder.t;
    ends[0]->id = ends[1]->id = 1;
    assert_int_equal(tunnel_channel_add(w->daemon.t, 1, &end_ops, ends[0]), 0);
    assert_true(run(w, both_up, 5000));
    pthread_t threads[4];
    struct program shim = {.fd = ends[0]->app, .total = total, .seed = 11, .peer_seed = 13};
    struct program agent = {.fd = ends[1]->app, .total = total, .seed = 13, .peer_seed = 11};
    pthread_create(&threads[0], NULL, program_write, &shim);
    pthread_create(&threads[1], NULL, program_write, &agent);
    pthread_create(&threads[2], NULL, program_read, &shim);
    pthread_create(&threads[3], NULL, program_read, &agent);
    bool ok = run(w, done, 30000);
    if (!ok) {
        shutdown(shim.fd, SHUT_RDWR);
        shutdown(agent.fd, SHUT_RDWR);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_true(ok);
    assert_int_equal(shim.got, total);
    assert_int_equal(agent.got, total);
    assert_false(shim.wrong || agent.wrong);
    end_free(ends[0]);
    end_free(ends[1]);
    world_free(w);
}

static void test_whole_way(void **state)
{
    whole_way(24 << 20, both_finished);
}

static void test_whole_way_with_resets(void **state)
{
    whole_way(24 << 20, cut_now_and_then);
}

static int group_setup(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    work_dir = mkdtemp(dir) ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    return work_dir < 0 ? -1 : 0;
}

static int group_teardown(void **state)
{
    close(work_dir);
    return rmdir(dir);
}

int main(void)
{
    pattern_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pump_reads_and_writes),
        cmocka_unit_test(test_pump_last_bytes),
        cmocka_unit_test(test_pump_takes_behind_its_callbacks),
        cmocka_unit_test(test_pump_stop_leaves_nothing_in_the_socket),
        cmocka_unit_test(test_pump_takes_what_a_predecessor_read),
        cmocka_unit_test(test_pump_many_at_once),
        cmocka_unit_test(test_pump_cuts_off_out_of_band_bytes),
        cmocka_unit_test(test_pump_limit),
        cmocka_unit_test(test_pump_reads_behind_its_answer),
        cmocka_unit_test(test_whole_way),
        cmocka_unit_test(test_whole_way_with_resets),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
