/* SPDX-License-Identifier: Apache-2.0 */
/* NOTRACK entries against the kernel, as nft(8) reads them: what is made, once, by whom, and that
 * nothing is left. */
#include "unit/check.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "base/str.h"
#include "net/notrack.h"
#include "stepfault/world.h"

#define THREADS 4
#define EACH 10

static char shown[65536];

static const char *ruleset(void)
{
    FILE *f = popen("nft list ruleset", "re");

    assert_non_null(f);
    shown[fread(shown, 1, sizeof(shown) - 1, f)] = '\0';
    assert_int_equal(pclose(f), 0);
    return shown;
}

static void add(const char *remote, uint32_t vni)
{
    struct err err = ERR_INIT;
    struct net_address a;

    assert_int_equal(net_address_parse(remote, &a), 0);
    if (notrack_add(&a, 4789, vni, &err) < 0)
        fail_msg("%s", err_text(&err));
}

static void take(uint32_t vni)
{
    struct err err = ERR_INIT;

    if (notrack_delete(vni, &err) < 0)
        fail_msg("%s", err_text(&err));
}

static void has(const char *text)
{
    if (!strstr(ruleset(), text))
        fail_msg("no '%s' in: %s", text, shown);
}

static size_t count(const char *text)
{
    size_t n = 0;

    for (const char *at = ruleset(); (at = strstr(at, text)); at += strlen(text))
        n++;
    return n;
}

static void test_what_is_made(void **state)
{
    add("192.0.2.7", 555000);
    has("table inet peerpod {");
    has("type filter hook output priority raw; policy accept;");
    has("type filter hook prerouting priority raw; policy accept;");
    has("ip daddr . udp dport @t4 notrack");
    has("ip6 daddr . udp dport @t6 notrack");
    has("ip saddr . udp dport @t4 notrack");
    has("ip6 saddr . udp dport @t6 notrack");
    has("elements = { 192.0.2.7 . 4789 comment \"peerpod 555000\" }");
    add("2001:db8::7", 555001);
    has("elements = { 2001:db8::7 . 4789 comment \"peerpod 555001\" }");
    assert_int_equal(count("notrack"), 4);
    take(555000);
    assert_int_equal(count("comment"), 1);
    take(555001);
    assert_string_equal(ruleset(), "");
}

static void test_again(void **state)
{
    for (int i = 0; i < 3; i++)
        add("192.0.2.7", 555000);
    assert_int_equal(count("comment"), 1);
    assert_int_equal(count("notrack"), 4);
    add("192.0.2.8", 555000); /* the VM has another address now */
    assert_int_equal(count("comment"), 1);
    has("192.0.2.8 . 4789");
    for (int i = 0; i < 3; i++)
        take(555000);
    assert_string_equal(ruleset(), "");
}

/* A VM has got the address of one whose teardown is still to come. */
static void test_an_address_of_two(void **state)
{
    add("192.0.2.7", 555000);
    add("192.0.2.7", 555001);
    take(555000);
    has("192.0.2.7 . 4789 comment \"peerpod 555001\"");
    take(555001);
    assert_string_equal(ruleset(), "");
}

static void test_tables_of_others_stay(void **state)
{
    assert_int_equal(system("nft add table inet other"), 0);
    add("192.0.2.7", 555000);
    take(555000);
    assert_string_equal(ruleset(), "table inet other {\n}\n");
    assert_int_equal(system("nft delete table inet other"), 0);
}

static void *crowd(void *arg)
{
    uint32_t first = *(uint32_t *)arg;
    char remote[32];

    for (uint32_t i = 0; i < EACH; i++) {
        (void)str_format(remote, sizeof(remote), "198.18.%u.%u", first % 251, i);
        add(remote, 555000 + first + i);
    }
    for (uint32_t i = 0; i < EACH; i++)
        take(555000 + first + i);
    return NULL;
}

/* Beside somebody else who changes rules all the time. */
static void test_all_at_once(void **state)
{
    pthread_t threads[THREADS];
    uint32_t first[THREADS];
    FILE *other =
        popen("for i in $(seq 20); do nft add table ip x; nft delete table ip x; done", "re");

    for (uint32_t i = 0; i < THREADS; i++) {
        first[i] = i * EACH;
        assert_int_equal(pthread_create(&threads[i], NULL, crowd, &first[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(pclose(other), 0);
    assert_string_equal(ruleset(), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_made),      cmocka_unit_test(test_again),
        cmocka_unit_test(test_an_address_of_two), cmocka_unit_test(test_tables_of_others_stay),
        cmocka_unit_test(test_all_at_once),
    };

    world_enter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
