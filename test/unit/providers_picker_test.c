/* SPDX-License-Identifier: Apache-2.0 */
/* The picker: the smallest that fits, whatever the order of the list; the cases that a binary search
 * in a list sorted by something else gets wrong. */
#include "providers/picker.h"

#include <errno.h>

#include "unit/check.h"

static const struct picker_type types[] = {
    {"large", 16, 65536, 0}, {"gpu", 8, 32768, 1},     {"small", 2, 4096, 0},
    {"fat", 2, 131072, 0},   {"gpu4", 48, 196608, 4},  {"medium", 4, 16384, 0},
    {"twin", 4, 16384, 0},   {"compute", 32, 8192, 0}, {"tiny", 1, 1024, 0},
};

struct test_case {
    struct instance_spec want;
    const char *first; /* NULL: nothing fits */
    size_t n;
};

static const struct test_case cases[] = {
    /* Nothing asked for: the default, and behind it what is at least as large. */
    {{0}, "medium", 5},
    /* Vcpus alone and memory alone count. */
    {{.vcpus = 1}, "tiny", 9},
    {{.vcpus = 3}, "compute", 6},
    {{.vcpus = 5}, "compute", 4},
    {{.vcpus = 33}, "gpu4", 1},
    {{.memory_mib = 1}, "tiny", 9},
    {{.memory_mib = 5000}, "compute", 7},
    {{.memory_mib = 9000}, "medium", 6},
    {{.memory_mib = 70000}, "fat", 2},
    /* Little of one, much of the other: in no one order are both sorted. */
    {{.vcpus = 1, .memory_mib = 100000}, "fat", 2},
    {{.vcpus = 3, .memory_mib = 100000}, "gpu4", 1},
    {{.vcpus = 32, .memory_mib = 8192}, "compute", 2},
    {{.vcpus = 4, .memory_mib = 16384}, "medium", 5},
    {{.vcpus = 2, .memory_mib = 4096}, "small", 8},
    /* GPUs are asked for alone or with the rest; who asks for none gets one only as a last way. */
    {{.gpus = 1}, "gpu", 2},
    {{.gpus = 2}, "gpu4", 1},
    {{.vcpus = 16, .gpus = 1}, "gpu4", 1},
    {{.vcpus = 48}, "gpu4", 1},
    /* Too much. */
    {{.vcpus = 49}, NULL, 0},
    {{.memory_mib = 200000}, NULL, 0},
    {{.gpus = 5}, NULL, 0},
    {{.memory_mib = 131072, .vcpus = 49}, NULL, 0},
    /* By name: that and no other, whatever else is asked for. */
    {{.type = "gpu"}, "gpu", 1},
    {{.type = "tiny", .vcpus = 8}, "tiny", 1},
    {{.type = "huge"}, NULL, 0},
};

static void test_cases(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        size_t got[ARRAY_SIZE(types)], n = 99;
        struct err err = ERR_INIT;
        int r = picker_pick(types, ARRAY_SIZE(types), &cases[i].want, "medium", got, &n, &err);

        if (!cases[i].first) {
            if (r != -EINVAL || n != 0)
                fail_msg("case %zu: %d, %zu candidates", i, r, n);
            continue;
        }
        if (r < 0)
            fail_msg("case %zu: %s", i, err.text);
        if (strcmp(types[got[0]].name, cases[i].first) != 0 || n != cases[i].n)
            fail_msg("case %zu: %s first of %zu, not %s of %zu", i, types[got[0]].name, n,
                     cases[i].first, cases[i].n);
    }
}

/* Every candidate fits, none twice, each no smaller than the one before; against a second opinion:
 * all pairs. */
static void test_order(void **state)
{
    for (uint32_t v = 0; v <= 48; v += 3)
        for (uint64_t m = 0; m <= 200000; m += 7777) {
            const struct instance_spec want = {.vcpus = v, .memory_mib = m + 1};
            size_t got[ARRAY_SIZE(types)], n = 0, fitting = 0;
            (void)picker_pick(types, ARRAY_SIZE(types), &want, "medium", got, &n, NULL);
            for (size_t i = 0; i < ARRAY_SIZE(types); i++)
                fitting += types[i].vcpus >= v && types[i].memory_mib >= m + 1;
            assert_int_equal(n, fitting);
            for (size_t i = 1; i < n; i++) {
                const struct picker_type *a = &types[got[i - 1]], *b = &types[got[i]];
                assert_true(
                    b->gpus > a->gpus || (b->gpus == a->gpus && b->memory_mib > a->memory_mib) ||
                    (b->gpus == a->gpus && b->memory_mib == a->memory_mib &&
                     (b->vcpus > a->vcpus || (b->vcpus == a->vcpus && got[i] > got[i - 1]))));
            }
        }
}

static void test_words(void **state)
{
    const struct instance_spec named = {.type = "huge"}, sized = {.vcpus = 49, .memory_mib = 7};
    struct err err = ERR_INIT;
    size_t got[ARRAY_SIZE(types)], n;

    assert_int_equal(picker_pick(types, 3, &named, "small", got, &n, &err), -EINVAL);
    assert_text_has(err.text,
                    "'huge' is not among those that the operator allows: large, gpu, small");
    err_clear(&err);
    assert_int_equal(picker_pick(types, ARRAY_SIZE(types), &sized, "small", got, &n, &err),
                     -EINVAL);
    assert_text_has(err.text, "49 vCPUs, 7 MiB");
    assert_text_has(err.text, "the most are 48 vCPUs, 196608 MiB, 4 GPUs");
    err_clear(&err);
    assert_int_equal(picker_pick(types, 0, &(struct instance_spec){0}, "small", got, &n, &err),
                     -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
