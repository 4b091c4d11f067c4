/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection that breaks at every point of its beginning: in the TLS handshake, in hello, in
 * enrolment, in a resume with bytes of three streams under way. One connection after the other ends
 * behind so and so many bytes of one direction, a few more each time, by a reset or by an end. Then one
 * is let live: every stream is whole, and both sides have enrolled once.
 *
 * The daemon dials 100 ms after a break, so many pairs of them run side by side, a loop each.
 */
#include "tunnel_world.h"

#define LAST 2400 /* bytes of one direction: far behind both hellos */
#define STEP 23
#define LANES 6 /* that share the points of one direction */
#define STREAM 60000

struct lane {
    struct world *w;
    bool enrolling, ended;
    int direction; /* 0: the daemon's bytes are counted, 1: the forwarder's */
    size_t limit, next;
    unsigned cuts;
};

struct wire { /* between the daemon's socket, [0], and the forwarder's, [1] */
    struct lane *lane;
    int fd[2];
    uv_poll_t poll[2];
    size_t passed[2];
    unsigned handles;
};

static struct lane lanes[4 * LANES];

static void on_wire_closed(uv_handle_t *handle)
{
    struct wire *x = handle->data;
    if (--x->handles == 0)
        free(x);
}

static void wire_end(struct wire *x, bool reset)
{
    const struct linger at_once = {.l_onoff = 1};
    if (reset)
        setsockopt(x->fd[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    for (int i = 0; i < 2; i++) {
        uv_close((uv_handle_t *)&x->poll[i], on_wire_closed);
        close(x->fd[i]);
    }
}

/* The streams fit into the sockets' buffers: a send never has to wait. */
static void on_wire(uv_poll_t *poll, int status, int events)
{
    struct wire *x = poll->data;
    int from = poll == &x->poll[1];
    size_t limit = from == x->lane->direction ? x->lane->limit : SIZE_MAX;
    char bytes[16384];
    ssize_t n = recv(x->fd[from], bytes, MIN(sizeof(bytes), limit - x->passed[from]), 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        wire_end(x, false);
        return;
    }
    x->passed[from] += (size_t)n;
    if (send(x->fd[!from], bytes, (size_t)n, MSG_NOSIGNAL) != n || x->passed[from] == limit) {
        x->lane->cuts++;
        wire_end(x, x->lane->cuts % 2);
    }
}

static void on_lane_accept(uv_poll_t *poll, int status, int events)
{
    struct world *w = poll->data;
    struct lane *lane = lanes;
    struct err err = ERR_INIT;
    int pair[2], fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    while (lane->w != w)
        lane++;
    lane->limit = lane->next <= LAST ? lane->next : SIZE_MAX;
    lane->next += (size_t)LANES * STEP;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    struct wire *x = xcalloc(1, sizeof(*x));
    *x = (struct wire){.lane = lane, .fd = {fd, pair[0]}, .handles = 2};
    for (int i = 0; i < 2; i++) {
        uv_poll_init(&w->loop, &x->poll[i], x->fd[i]);
        x->poll[i].data = x;
        uv_poll_start(&x->poll[i], UV_READABLE, on_wire);
    }
    if (tunnel_accept(w->forwarder.t, pair[1], &err) < 0)
        fail_msg("%s", err.text);
}

static void lane_begin(struct lane *lane, bool enrolling, int direction, int number)
{
    struct world *w = world_new();
    *lane = (struct lane){
        .w = w, .enrolling = enrolling, .direction = direction, .next = 1 + (size_t)number * STEP};
    if (enrolling) {
        memset(w->daemon.config.peer_pin, 0, TLS_PIN_SIZE);
        w->daemon.config.secret_len = w->forwarder.config.secret_len = 32;
    }
    uv_poll_start(&w->listen_poll, UV_READABLE, on_lane_accept);
    world_start(w);
    open_channel(w, 1, STREAM, STREAM, true);
    open_channel(w, 2, STREAM, 0, true);
    open_channel(w, 3, 0, 0, true);
}

static bool lane_done(const struct lane *lane)
{
    return lane->limit == SIZE_MAX && all_complete(lane->w) && both_up(lane->w);
}

static void lane_check(struct lane *lane)
{
    struct world *w = lane->w;
    unsigned planned = 0;
    for (size_t at = lane->next; at > (size_t)LANES * STEP; at -= (size_t)LANES * STEP)
        planned++;
    if (!lane_done(lane))
        fail_msg("%s, direction %d, at byte %zu: not done; the daemon: %s, the forwarder: %s",
                 lane->enrolling ? "enrolment" : "resume", lane->direction, lane->limit,
                 w->daemon.why, w->forwarder.why);
    assert_int_equal(lane->cuts, planned - 1);
    assert_int_equal(w->daemon.refusals + w->forwarder.refusals, 0);
    assert_int_equal(w->daemon.enrolled, lane->enrolling);
    assert_int_equal(w->forwarder.enrolled, lane->enrolling);
    assert_false(w->daemon.eps[1]->gone || w->daemon.eps[2]->gone || w->daemon.eps[3]->gone);
}

static void test_every_point(void **state)
{
    size_t ended = 0;
    for (size_t i = 0; i < ARRAY_SIZE(lanes); i++)
        lane_begin(&lanes[i], i % 2, i / 2 % 2, (int)(i / 4));
    for (int64_t end = clock_mono_ms() + 30000; ended < ARRAY_SIZE(lanes);) {
        if (clock_mono_ms() > end)
            break;
        for (size_t i = 0; i < ARRAY_SIZE(lanes); i++) {
            uv_run(&lanes[i].w->loop, UV_RUN_NOWAIT);
            if (!lanes[i].ended && lane_done(&lanes[i])) {
                lanes[i].ended = true;
                ended++;
            }
        }
        usleep(500);
    }
    for (size_t i = 0; i < ARRAY_SIZE(lanes); i++) {
        lane_check(&lanes[i]);
        world_free(lanes[i].w);
    }
}

int main(void)
{
    pattern_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
