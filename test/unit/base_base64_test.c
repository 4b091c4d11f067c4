/* SPDX-License-Identifier: Apache-2.0 */
/* base64: RFC 4648 section 10, every length, white space, and what must be refused. */
#include "base/base64.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void rfc_vectors(void **state)
{
    static const char *const vectors[][2] = {{"", ""},
                                             {"f", "Zg=="},
                                             {"fo", "Zm8="},
                                             {"foo", "Zm9v"},
                                             {"foob", "Zm9vYg=="},
                                             {"fooba", "Zm9vYmE="},
                                             {"foobar", "Zm9vYmFy"}};

    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        _cleanup_free_ char *text = base64_encode(vectors[i][0], strlen(vectors[i][0]));
        _cleanup_free_ uint8_t *data = NULL;
        size_t len;

        assert_string_equal(text, vectors[i][1]);
        assert_int_equal(base64_decode(text, strlen(text), 100, &data, &len, NULL), 0);
        assert_int_equal(len, strlen(vectors[i][0]));
        assert_string_equal((char *)data, vectors[i][0]);
    }
}

static void every_length_and_byte(void **state)
{
    uint8_t in[300];

    for (size_t len = 0; len < sizeof(in); len++) {
        _cleanup_free_ uint8_t *out = NULL;
        _cleanup_free_ char *text = NULL;
        size_t out_len;

        for (size_t i = 0; i < len; i++)
            in[i] = (uint8_t)(i * 7 + len);
        text = base64_encode(in, len);
        assert_int_equal(base64_decode(text, strlen(text), len, &out, &out_len, NULL), 0);
        assert_int_equal(out_len, len);
        assert_memory_equal(out, in, len);
    }
}

static void refused(void **state)
{
    static const struct {
        const char *text;
        const char *why;
    } cases[] = {
        {"Zg=", "middle of a group"}, {"Zg", "middle of a group"}, {"Z", "middle of a group"},
        {"Zh==", "offset 3"},         {"Zm9=", "offset 3"},        {"Zg==Zg==", "offset 4"},
        {"Zg=a", "offset 3"},         {"====", "offset 0"},        {"Z===", "offset 1"},
        {"Zm9v-_==", "offset 4"},     {"Zm9v\x80", "offset 4"},    {"Zm9v=", "offset 4"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = ERR_INIT;
        uint8_t *data = NULL;
        size_t len;

        assert_int_equal(
            base64_decode(cases[i].text, strlen(cases[i].text), 100, &data, &len, &err), -EINVAL);
        assert_null(data);
        if (!strstr(err.text, cases[i].why))
            fail_msg("'%s' gave '%s'", cases[i].text, err.text);
    }
}

static void white_space_and_limit(void **state)
{
    static const char text[] = " Zm9v\r\n\tYmFy\n";
    struct err err = ERR_INIT;
    uint8_t *data = NULL;
    size_t len;

    assert_int_equal(base64_decode(text, strlen(text), 5, &data, &len, &err), -E2BIG);
    assert_non_null(strstr(err.text, "at most 5"));
    assert_int_equal(base64_decode(text, strlen(text), 6, &data, &len, NULL), 0);
    assert_string_equal((char *)data, "foobar");
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rfc_vectors),
        cmocka_unit_test(every_length_and_byte),
        cmocka_unit_test(refused),
        cmocka_unit_test(white_space_and_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
