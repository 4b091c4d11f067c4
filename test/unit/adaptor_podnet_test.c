/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate before changes of pods' networks. That changes under way are waited for shows in
 * chain.takeover_load; the changes themselves are podnet.namespaces' and podnet.step_faults'.
 */
#include "check.h"

#include <pthread.h>

#include "adaptor/podnet.h"

#define AWHILE_US 50000
#define PATIENCE_MS 20

struct change {
    pthread_t thread;
    bool ended; /* atomic */
};

static void *change_thread(void *arg)
{
    struct change *c = arg;
    struct err err = ERR_INIT;
    podnet_teardown("/nowhere", "eth0", 1, &err);
    __atomic_store_n(&c->ended, true, __ATOMIC_RELEASE);
    return NULL;
}

static void begin(struct change *c)
{
    *c = (struct change){.ended = false};
    assert_int_equal(pthread_create(&c->thread, NULL, change_thread, c), 0);
}

static bool ended_after_a_while(const struct change *c)
{
    usleep(AWHILE_US);
    return __atomic_load_n(&c->ended, __ATOMIC_ACQUIRE);
}

static void test_nothing_is_changed_while_paused(void **state)
{
    struct change c[2];
    struct err err = ERR_INIT;
    for (int times = 0; times < 2; times++) {
        assert_int_equal(podnet_pause(PATIENCE_MS, &err), 0);
        begin(&c[0]);
        begin(&c[1]);
        assert_false(ended_after_a_while(&c[0]) || ended_after_a_while(&c[1]));
        podnet_resume();
        pthread_join(c[0].thread, NULL);
        pthread_join(c[1].thread, NULL);
        assert_true(c[0].ended && c[1].ended);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_changed_while_paused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
