/* SPDX-License-Identifier: Apache-2.0 */
/* Who may talk to whom: enrolment, pins, and each refusal, with the words at both ends. */
#include "tunnel_world.h"

static const uint8_t secret[32] = "a secret of thirty-two bytes....";

static void use_secret(struct side *s, const uint8_t *value)
{
    memcpy(s->config.secret, value, sizeof(secret));
    s->config.secret_len = sizeof(secret);
}

static struct world *world_enrolling(void)
{
    struct world *w = world_new();
    memset(w->daemon.config.peer_pin, 0, TLS_PIN_SIZE);
    use_secret(&w->daemon, secret);
    use_secret(&w->forwarder, secret);
    return w;
}

static bool both_enrolled(struct world *w)
{
    return both_up(w) && w->forwarder.enrolled > 0;
}

static bool both_refused(struct world *w)
{
    return w->daemon.refusals > 0 && w->forwarder.refusals > 0;
}

static void expect_refusal(struct world *w, const char *text)
{
    world_start(w);
    assert_true(run(w, both_refused, 3000));
    if (!strstr(w->daemon.refused, text) || !strstr(w->forwarder.refused, text))
        fail_msg("'%s' and '%s' do not say '%s'", w->daemon.refused, w->forwarder.refused, text);
    assert_int_equal(w->daemon.ups + w->forwarder.ups, 0);
    assert_int_equal(w->daemon.enrolled + w->forwarder.enrolled, 0);
    run(w, NULL, 100);
    assert_int_equal(w->accepted, 1); /* the next try comes after a second */
    world_free(w);
}

static void test_enrolment(void **state)
{
    struct world *w = world_enrolling();
    world_start(w);
    assert_true(run(w, both_enrolled, 3000));
    assert_int_equal(w->daemon.enrolled, 1);
    assert_int_equal(w->forwarder.enrolled, 1);
    uint8_t pin[TLS_PIN_SIZE];
    tls_identity_pin(w->forwarder.id, pin);
    assert_memory_equal(w->daemon.pin, pin, TLS_PIN_SIZE);
    /* From now on the pin rules, and nobody enrols again. */
    cut_close(w);
    run(w, NULL, 20);
    assert_true(run(w, both_up, 3000));
    assert_int_equal(w->daemon.enrolled + w->forwarder.enrolled, 2);
    world_free(w);
}

static void test_wrong_secret(void **state)
{
    static const uint8_t other[32] = "another secret of thirty-two by.";
    struct world *w = world_enrolling();
    use_secret(&w->forwarder, other);
    expect_refusal(w, "the daemon's enrolment secret is wrong");
}

static void test_wrong_daemon_key(void **state)
{
    struct world *w = world_enrolling();
    w->forwarder.config.peer_pin[31] ^= 1;
    expect_refusal(w, "the daemon's key is not the one in this pod VM's user data");
}

static void test_wrong_forwarder_key(void **state)
{
    struct world *w = world_new();
    w->daemon.config.peer_pin[0] ^= 1;
    expect_refusal(w, "the pod VM's key is not the one that was enrolled");
}

static void test_wrong_sandbox(void **state)
{
    struct world *w = world_enrolling();
    w->daemon.config.sandbox_id = "sandbox-2";
    expect_refusal(w, "hello is for sandbox sandbox-2");
}

static void test_lower_generation(void **state)
{
    struct world *w = world_new();
    w->forwarder.config.generation = 7;
    w->daemon.config.generation = 6;
    expect_refusal(w, "daemon generation 6 is older");
}

static void test_lost_pin(void **state)
{
    struct world *w = world_enrolling();
    w->forwarder.config.secret_len = 0;
    expect_refusal(w, "enrolled already, and the daemon has lost its pin");
}

static void test_generation_is_stored(void **state)
{
    struct world *w = world_new();
    w->daemon.config.generation = 9;
    world_start(w);
    assert_true(run(w, both_up, 3000));
    assert_int_equal(w->forwarder.generation, 9);
    world_free(w);
}

/* The daemon died between storing the pin and saying so: it holds pin but no secret. */
static void test_died_before_enrolled(void **state)
{
    struct world *w = world_new();
    use_secret(&w->forwarder, secret);
    world_start(w);
    assert_true(run(w, both_enrolled, 3000));
    assert_int_equal(w->daemon.enrolled, 0);
    assert_int_equal(w->forwarder.enrolled, 1);
    world_free(w);
}

static void test_pin_cannot_be_stored(void **state)
{
    struct world *w = world_enrolling();
    w->daemon.enrolled_result = -ENOSPC;
    world_start(w);
    assert_true(run(w, both_refused, 3000));
    assert_non_null(strstr(w->forwarder.refused, "could not store the pod VM's key: No space"));
    assert_int_equal(w->forwarder.enrolled, 0);
    w->daemon.enrolled_result = 0;
    assert_true(run(w, both_enrolled, 3000));
    world_free(w);
}

static bool not_retired(struct world *w)
{
    return strstr(w->forwarder.why, "retiring the enrolment secret") != NULL;
}

static void test_secret_cannot_be_retired(void **state)
{
    struct world *w = world_enrolling();
    w->forwarder.enrolled_result = -EIO;
    world_start(w);
    assert_true(run(w, not_retired, 3000));
    assert_int_equal(w->daemon.enrolled, 1);
    w->forwarder.enrolled_result = 0;
    assert_true(run(w, both_enrolled, 3000));
    assert_int_equal(w->daemon.enrolled, 1);
    world_free(w);
}

static bool newer_up(struct world *w)
{
    return w->forwarder.downs > 0 && both_up(w);
}

static const struct side *older; /* of the test below */

static bool older_up(struct world *w)
{
    return older->ups > 0;
}

static bool older_refused(struct world *w)
{
    return older->refusals > 0 && older->downs > 0 && both_up(w);
}

/* A second daemon (same key, next generation) replaces the first, which is then refused. */
static void test_newer_daemon_replaces(void **state)
{
    struct world *w = world_new();
    struct err err = ERR_INIT;
    world_start(w);
    assert_true(run(w, both_up, 3000));
    struct side old = w->daemon;
    w->daemon.ups = w->daemon.downs = 0;
    w->daemon.config.generation = 2;
    /* The old one goes on with its own copy of the owner. */
    tunnel_free(w->daemon.t);
    assert_int_equal(tunnel_new(&w->loop, &old.config, &side_ops, &old, &old.t, &err), 0);
    old.ups = old.downs = old.refusals = 0;
    tunnel_dial(old.t, (struct sockaddr *)&w->address, sizeof(w->address));
    older = &old;
    assert_true(run(w, older_up, 3000));
    side_start(&w->daemon);
    assert_true(run(w, newer_up, 3000));
    assert_non_null(strstr(w->forwarder.why, "replaced by a newer connection"));
    assert_true(run(w, older_refused, 3000));
    assert_int_equal(old.ups, 1);
    assert_int_equal(old.downs, 1);
    assert_int_equal(old.refusals, 1);
    assert_non_null(strstr(old.refused, "daemon generation 1 is older"));
    assert_true(both_up(w));
    tunnel_free(old.t);
    world_free(w);
}

static void refuse_config(struct world *w, const struct tunnel_config *c, const char *text)
{
    struct err err = ERR_INIT;
    struct tunnel *t = NULL;
    assert_int_equal(tunnel_new(&w->loop, c, &side_ops, &w->daemon, &t, &err), -EINVAL);
    assert_non_null(strstr(err.text, text));
}

static void test_bad_config(void **state)
{
    struct world *w = world_new();
    struct tunnel_config c = w->daemon.config;
    memset(c.peer_pin, 0, TLS_PIN_SIZE);
    refuse_config(w, &c, "neither the pod VM's key nor its enrolment secret");
    c.role = TUNNEL_FORWARDER;
    refuse_config(w, &c, "tls-client-ca");
    c = w->daemon.config;
    c.sandbox_id = "../etc";
    refuse_config(w, &c, "sandbox id");
    c = w->daemon.config;
    c.secret_len = 65;
    refuse_config(w, &c, "65 bytes");
    world_free(w);
}

int main(void)
{
    pattern_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_enrolment),
        cmocka_unit_test(test_wrong_secret),
        cmocka_unit_test(test_wrong_daemon_key),
        cmocka_unit_test(test_wrong_forwarder_key),
        cmocka_unit_test(test_wrong_sandbox),
        cmocka_unit_test(test_lower_generation),
        cmocka_unit_test(test_lost_pin),
        cmocka_unit_test(test_generation_is_stored),
        cmocka_unit_test(test_died_before_enrolled),
        cmocka_unit_test(test_pin_cannot_be_stored),
        cmocka_unit_test(test_secret_cannot_be_retired),
        cmocka_unit_test(test_newer_daemon_replaces),
        cmocka_unit_test(test_bad_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
