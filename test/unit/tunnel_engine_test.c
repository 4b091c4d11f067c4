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

int main(void)
{
    pattern_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_channel),
        cmocka_unit_test(test_added_before_up),
        cmocka_unit_test(test_reset_in_the_middle),
        cmocka_unit_test(test_close_in_the_middle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
