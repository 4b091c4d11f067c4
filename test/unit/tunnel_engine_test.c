/* SPDX-License-Identifier: Apache-2.0 */
/* Streams over the tunnel: bytes, windows, ends, and sessions that break in between. */
#include "tunnel_world.h"

#define MIB ((uint64_t)1 << 20)

static void test_one_channel(void **state)
{
    struct world *w = world_new();
    world_start(w);
    assert_true(run(w, both_up, 5000));
    open_channel(w, 1, 100, 200, false);
    assert_true(run(w, all_complete, 5000));
    assert_int_equal(w->daemon.eps[1]->held, 200);
    world_free(w);
}

static void test_added_before_up(void **state)
{
    struct world *w = world_new();
    world_start(w);
    open_channel(w, 1, 5 * MIB, 3 * MIB, true);
    assert_true(run(w, all_complete, 20000));
    assert_true(w->forwarder.eps[1]->fin && w->daemon.eps[1]->fin);
    world_free(w);
}

static bool some_way(struct world *w)
{
    return w->forwarder.eps[1] && w->forwarder.eps[1]->held > 2 * MIB;
}

static void cut_in_the_middle(void (*cut)(struct world *w))
{
    struct world *w = world_new();
    world_start(w);
    for (uint32_t id = 1; id <= 3; id++)
        open_channel(w, id, 12 * MIB, 9 * MIB, true);
    assert_true(run(w, some_way, 10000));
    uint64_t held = w->forwarder.eps[1]->held;
    assert_true(held < 12 * MIB);
    for (int i = 0; i < 5; i++) {
        cut(w);
        unsigned ups = w->daemon.ups;
        run(w, NULL, 20);
        assert_true(run(w, both_up, 5000));
        assert_int_equal(w->daemon.ups, ups + 1);
    }
    assert_true(run(w, all_complete, 20000));
    assert_int_equal(w->daemon.downs, 5);
    assert_true(w->forwarder.ups >= 6);
    world_free(w);
}

static void test_reset_in_the_middle(void **state)
{
    cut_in_the_middle(cut_reset);
}

static void test_close_in_the_middle(void **state)
{
    cut_in_the_middle(cut_close);
}

static void test_many_channels(void **state)
{
    struct world *w = world_new();
    world_start(w);
    for (uint32_t id = 1; id <= 200; id++)
        open_channel(w, id, 100000 + id, 60000 + id, true);
    assert_true(run(w, all_complete, 20000));
    world_free(w);
}

static void test_channel_limit(void **state)
{
    struct world *w = world_new();
    world_start(w);
    struct ep *e = ep_get(&w->daemon, 1);
    for (uint32_t id = 1; id <= TUNNEL_CHANNELS_MAX; id++)
        assert_int_equal(tunnel_channel_add(w->daemon.t, id, &ep_ops, e), 0);
    assert_int_equal(tunnel_channel_add(w->daemon.t, 1000, &ep_ops, e), -EMFILE);
    tunnel_channel_remove(w->daemon.t, 7, "room");
    assert_int_equal(tunnel_channel_add(w->daemon.t, 8, &ep_ops, e), -EEXIST);
    assert_int_equal(tunnel_channel_add(w->daemon.t, 0, &ep_ops, e), -EINVAL);
    assert_int_equal(tunnel_channel_add(w->daemon.t, 1000, &ep_ops, e), 0);
    world_free(w);
}

static bool second_complete(struct world *w)
{
    return ep_complete(w->daemon.eps[2], w->forwarder.eps[2]) &&
           ep_complete(w->forwarder.eps[2], w->daemon.eps[2]);
}

static bool first_stuck(struct world *w)
{
    return w->forwarder.eps[1]->held == RING;
}

/* The acknowledgement may come behind the bytes of others. */
static bool first_acked(struct world *w)
{
    return w->daemon.eps[1]->tail == RING;
}

/* Channel 1 has a full window and nobody who reads; channel 2 must not notice. */
static void test_slow_reader(void **state)
{
    struct world *w = world_new();
    world_start(w);
    struct ep *slow = ep_get(&w->forwarder, 1);
    slow->slow = true;
    open_channel(w, 1, 4 * MIB, 0, false);
    assert_true(run(w, first_stuck, 5000));
    open_channel(w, 2, 8 * MIB, 8 * MIB, true);
    assert_true(run(w, second_complete, 20000));
    assert_int_equal(slow->held, RING);
    assert_true(run(w, first_acked, 5000));
    assert_int_equal(slow->held, RING);
    slow->read = slow->held;
    slow->slow = false;
    tunnel_channel_kick(w->forwarder.t, 1);
    assert_true(run(w, all_complete, 5000));
    world_free(w);
}

static bool both_stuck(struct world *w)
{
    return w->daemon.eps[1]->held == RING && first_stuck(w) && first_acked(w) &&
           w->forwarder.eps[1]->tail == RING;
}

/* All rings are full, both ways, when the session breaks, again and again; then both read on. */
static void test_full_rings_over_breaks(void **state)
{
    struct world *w = world_new();
    struct ep *eps[] = {ep_get(&w->daemon, 1), ep_get(&w->forwarder, 1)};
    eps[0]->slow = eps[1]->slow = true;
    world_start(w);
    open_channel(w, 1, 2 * MIB, 2 * MIB, true);
    assert_true(run(w, both_stuck, 5000));
    for (unsigned i = 1; i <= 3; i++) {
        (i % 2 ? cut_reset : cut_close)(w);
        run(w, NULL, 20);
        assert_true(run(w, both_up, 5000));
        run(w, NULL, 20);
        assert_int_equal(w->daemon.downs, i);
        assert_true(both_stuck(w));
    }
    for (size_t i = 0; i < ARRAY_SIZE(eps); i++) {
        eps[i]->read = eps[i]->held;
        eps[i]->slow = false;
        tunnel_channel_kick(*eps[i]->t, 1);
    }
    assert_true(run(w, all_complete, 5000));
    world_free(w);
}

static bool first_dropping(struct world *w)
{
    return w->forwarder.eps[1]->nospc > 0;
}

/* No blocks at the receiver: its bytes are dropped and asked for again, others pass. */
static void test_no_space(void **state)
{
    struct world *w = world_new();
    world_start(w);
    struct ep *full = ep_get(&w->forwarder, 1);
    open_channel(w, 1, 2 * MIB, 0, true);
    full->full = true;
    assert_true(run(w, first_dropping, 5000));
    open_channel(w, 2, 2 * MIB, 2 * MIB, true);
    assert_true(run(w, second_complete, 10000));
    full->full = false;
    assert_true(run(w, all_complete, 5000));
    assert_int_equal(w->daemon.downs, 0);
    full->full = true;
    w->daemon.eps[1]->keep_open = true; /* it has ended: nothing more happens */
    run(w, NULL, 300);
    assert_int_equal(w->daemon.downs, 0);
    world_free(w);
}

/* Bytes that nobody can hold stay unacknowledged: the ping for them comes and is answered. */
static void test_pings_beside_a_stuck_channel(void **state)
{
    struct world *w = world_new();
    struct tunnel_stats stats;
    world_start(w);
    ep_get(&w->forwarder, 1)->full = true;
    open_channel(w, 1, 2 * MIB, 0, true);
    assert_true(run(w, first_dropping, 5000));
    run(w, NULL, 3000);
    tunnel_get_stats(w->daemon.t, &stats);
    assert_true(stats.rtt_us > 0);
    assert_int_equal(w->daemon.downs, 0);
    w->forwarder.eps[1]->full = false;
    assert_true(run(w, all_complete, 5000));
    assert_int_equal(w->daemon.downs, 0);
    world_free(w);
}

/* A peer without the feature: the session ends and resume repairs it. */
static void test_no_space_without_rewind(void **state)
{
    struct world *w = world_new();
    w->daemon.config.feature_mask = TUNNEL_FEATURE_REWIND;
    world_start(w);
    struct ep *full = ep_get(&w->forwarder, 1);
    full->full = true;
    open_channel(w, 1, MIB, 0, true);
    assert_true(run(w, first_dropping, 5000));
    assert_non_null(strstr(w->forwarder.why, "no room"));
    full->full = false;
    assert_true(run(w, all_complete, 5000));
    assert_true(w->daemon.downs >= 1);
    world_free(w);
}

static bool half_done(struct world *w)
{
    const struct ep *a = w->daemon.eps[1], *b = w->forwarder.eps[1];
    return b->fin && a->fin_acked && a->held == b->total;
}

static void test_half_close(void **state)
{
    struct world *w = world_new();
    world_start(w);
    struct ep *e = open_channel(w, 1, 1000, 2000, true), *f = ep_get(&w->forwarder, 1);
    f->keep_open = true;
    assert_true(run(w, half_done, 5000));
    assert_false(e->fin || e->gone || f->gone);
    f->total += 5000; /* the reply comes behind the end of the request */
    f->keep_open = false;
    tunnel_channel_kick(w->forwarder.t, 1);
    assert_true(run(w, all_complete, 5000));
    assert_true(e->fin);
    world_free(w);
}

static bool forwarder_gone(struct world *w)
{
    return w->forwarder.eps[1] && w->forwarder.eps[1]->gone;
}

static bool daemon_gone(struct world *w)
{
    return w->daemon.eps[1]->gone;
}

static bool second_gone(struct world *w)
{
    return w->daemon.eps[2]->gone;
}

static void test_close(void **state)
{
    struct world *w = world_new();
    world_start(w);
    open_channel(w, 1, 100, 100, false);
    assert_true(run(w, all_complete, 5000));
    tunnel_channel_remove(w->daemon.t, 1, "the shim hung up");
    assert_true(run(w, forwarder_gone, 5000));
    assert_string_equal(w->forwarder.eps[1]->reason, "the shim hung up");
    assert_false(w->daemon.eps[1]->gone);
    tunnel_channel_remove(w->daemon.t, 1, "twice does nothing");
    tunnel_channel_kick(w->daemon.t, 1);

    open_channel(w, 2, 300000, 100, false);
    w->forwarder.open_result = -ECONNREFUSED; /* data is on its way when the answer comes */
    assert_true(run(w, second_gone, 3000));
    assert_non_null(strstr(w->daemon.eps[2]->reason, "Connection refused"));
    assert_int_equal(w->daemon.downs, 0);
    world_free(w);
}

static bool daemon_down(struct world *w)
{
    return w->daemon.downs > 0;
}

static void go_down(struct world *w)
{
    cut_close(w);
    w->refuse_all = true;
    assert_true(run(w, daemon_down, 3000));
    assert_int_equal(w->daemon.downs, 1);
}

static void test_removed_while_down(void **state)
{
    for (int side = 0; side < 2; side++) {
        struct world *w = world_new();
        world_start(w);
        open_channel(w, 1, 100, 100, false);
        assert_true(run(w, all_complete, 5000));
        go_down(w);
        tunnel_channel_remove(side ? w->daemon.t : w->forwarder.t, 1, "meanwhile");
        w->refuse_all = false;
        assert_true(run(w, side ? forwarder_gone : daemon_gone, 5000));
        world_free(w);
    }
}

static bool third_way(struct world *w)
{
    return w->forwarder.eps[1] && w->forwarder.eps[1]->held > MIB && w->daemon.eps[1]->held > MIB;
}

/* Either process dies and comes back with what its endpoints hold. */
static void test_restart_of_either_side(void **state)
{
    struct world *w = world_new();
    world_start(w);
    open_channel(w, 1, 12 * MIB, 12 * MIB, true);
    for (int i = 0; i < 6; i++) {
        struct side *s = i % 2 ? &w->daemon : &w->forwarder;
        if (i == 0)
            assert_true(run(w, third_way, 10000));
        tunnel_free(s->t);
        s->t = NULL;
        run(w, NULL, 10);
        s->config.generation += (unsigned)i % 2;
        s->ups = 0; /* `first` is of the process */
        side_start(s);
        assert_int_equal(tunnel_channel_add(s->t, 1, &ep_ops, s->eps[1]), 0);
        assert_true(run(w, both_up, 5000));
        run(w, NULL, 5);
    }
    assert_true(run(w, all_complete, 20000));
    world_free(w);
}

/* The forwarder has lost its state: what has carried bytes is gone, what has not is opened again.
 */
static void test_lost_state(void **state)
{
    struct world *w = world_new();
    world_start(w);
    open_channel(w, 1, 100, 0, false);
    open_channel(w, 2, 0, 0, false);
    assert_true(run(w, all_complete, 5000));
    tunnel_free(w->forwarder.t);
    w->forwarder.ups = 0;
    side_start(&w->forwarder);
    assert_true(run(w, daemon_gone, 5000));
    assert_false(w->daemon.eps[2]->gone);
    w->daemon.eps[2]->total = 50;
    tunnel_channel_kick(w->daemon.t, 2);
    assert_true(run(w, second_complete, 5000));
    world_free(w);
}

static bool agent_is_ready(struct world *w)
{
    return w->daemon.agent_ready;
}

static bool agent_is_not_ready(struct world *w)
{
    return !w->daemon.agent_ready;
}

static void test_agent_ready(void **state)
{
    struct world *w = world_new();
    world_start(w);
    assert_true(run(w, both_up, 5000));
    assert_false(w->daemon.agent_ready);
    tunnel_set_agent_ready(w->forwarder.t, true);
    assert_true(run(w, agent_is_ready, 1000));
    tunnel_set_agent_ready(w->forwarder.t, false);
    assert_true(run(w, agent_is_not_ready, 1000));
    go_down(w);
    tunnel_set_agent_ready(w->forwarder.t, true);
    w->refuse_all = false;
    assert_true(run(w, agent_is_ready, 2000));
    world_free(w);
}

/* Without the feature the news comes by the next hello, and that comes at once. */
static void test_agent_ready_masked(void **state)
{
    struct world *w = world_new();
    w->forwarder.config.feature_mask = TUNNEL_FEATURE_AGENT_READY;
    world_start(w);
    assert_true(run(w, both_up, 5000));
    tunnel_set_agent_ready(w->forwarder.t, true);
    assert_true(run(w, agent_is_ready, 2000));
    assert_int_equal(w->daemon.downs, 1);
    tunnel_set_agent_ready(w->forwarder.t, false); /* nobody waits for that: no reason to hang up */
    run(w, NULL, 200);
    assert_int_equal(w->daemon.downs, 1);
    world_free(w);
}

/* Callbacks that free the tunnel they come from. */
static void free_on_down(void *p, const struct err *why)
{
    struct side *s = p;
    tunnel_free(TAKE_PTR(s->t));
}

static bool daemon_freed(struct world *w)
{
    return !w->daemon.t;
}

static void test_free_in_callback(void **state)
{
    static struct tunnel_ops ops;
    struct world *w = world_new();
    struct err err = ERR_INIT;
    ops = side_ops;
    ops.down = free_on_down;
    side_start(&w->forwarder);
    assert_int_equal(tunnel_new(&w->loop, &w->daemon.config, &ops, &w->daemon, &w->daemon.t, &err),
                     0);
    tunnel_dial(w->daemon.t, (struct sockaddr *)&w->address, sizeof(w->address));
    open_channel(w, 1, 4 * MIB, 4 * MIB, false);
    assert_true(run(w, third_way, 5000));
    cut_reset(w);
    assert_true(run(w, daemon_freed, 5000));
    world_free(w);
}

/* Nobody listens at first: noticed soon after somebody does, and the error says why not. */
static void test_late_listener(void **state)
{
    struct world *w = world_new();
    struct err err = ERR_INIT;
    struct sockaddr_in there = w->address;
    there.sin_port = htons(1); /* tcpmux: nobody has that */
    side_start(&w->forwarder);
    assert_int_equal(
        tunnel_new(&w->loop, &w->daemon.config, &side_ops, &w->daemon, &w->daemon.t, &err), 0);
    tunnel_dial(w->daemon.t, (struct sockaddr *)&there, sizeof(there));
    run(w, NULL, 250);
    tunnel_last_error(w->daemon.t, &err);
    assert_non_null(strstr(err.text, "127.0.0.1:1: connecting: Connection refused"));
    tunnel_dial(w->daemon.t, (struct sockaddr *)&w->address, sizeof(w->address));
    assert_true(run(w, both_up, 400));
    assert_int_equal(w->daemon.refusals, 0);
    world_free(w);
}

int main(void)
{
    pattern_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_channel),
        cmocka_unit_test(test_added_before_up),
        cmocka_unit_test(test_reset_in_the_middle),
        cmocka_unit_test(test_close_in_the_middle),
        cmocka_unit_test(test_many_channels),
        cmocka_unit_test(test_channel_limit),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_full_rings_over_breaks),
        cmocka_unit_test(test_no_space),
        cmocka_unit_test(test_pings_beside_a_stuck_channel),
        cmocka_unit_test(test_no_space_without_rewind),
        cmocka_unit_test(test_half_close),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_removed_while_down),
        cmocka_unit_test(test_restart_of_either_side),
        cmocka_unit_test(test_lost_state),
        cmocka_unit_test(test_agent_ready),
        cmocka_unit_test(test_agent_ready_masked),
        cmocka_unit_test(test_free_in_callback),
        cmocka_unit_test(test_late_listener),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
