/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, buffers, strings, JSON: what they accept, and what they refuse. */
#include "unit/check.h"

#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"
#include "base/str.h"

static void errors_wrap_and_cut(void **state)
{
    struct err err = ERR_INIT;
    char longer[2 * ERR_TEXT_MAX];
    assert_int_equal(err_set(&err, -EIO, "HTTP %d", 500), -EIO);
    assert_int_equal(err_wrap(&err, -EIO, "creating %s", "x"), -EIO);
    assert_string_equal(err_text(&err), "creating x: HTTP 500");
    err_clear(&err);
    err_wrap(&err, -ENOENT, "opening");
    assert_string_equal(err_text(&err), "opening: No such file or directory");

    memset(longer, 'a', sizeof(longer));
    for (size_t i = 1; i + 2 < sizeof(longer); i += 2)
        memcpy(longer + i, "\xc3\xa9", 2); /* two-byte characters, to be cut between */
    longer[sizeof(longer) - 1] = '\0';
    err_clear(&err);
    err_set(&err, -EIO, "%s", longer);
    size_t len = strlen(err.text);
    assert_true(len < ERR_TEXT_MAX);
    assert_string_equal(err.text + len - 3, "...");
    assert_int_equal((unsigned char)err.text[len - 4], 0xa9);
    assert_int_equal(err_set(NULL, -EIO, "nobody reads this"), -EIO);
}

static void buffers_refuse_more_than_their_maximum(void **state)
{
    struct buf b = BUF_INIT(8);
    assert_int_equal(buf_adds(&b, "12345678"), 0);
    assert_int_equal(buf_adds(&b, "9"), -E2BIG);
    assert_true(b.failed);
    assert_null(buf_steal(&b));
    buf_done(&b);
    b = BUF_INIT(0);
    buf_addf(&b, "%d-%s", 7, "seven");
    buf_consume(&b, 2);
    char *text = buf_steal(&b);
    assert_string_equal(text, "seven");
    free(text);
    text = buf_steal(&b);
    assert_string_equal(text, "");
    free(text);
}

static void numbers_are_whole_strings(void **state)
{
    uint64_t u = 7;
    int64_t i = 7;
    double d;
    assert_int_equal(str_to_u64("18446744073709551615", UINT64_MAX, &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(str_to_u64("18446744073709551616", UINT64_MAX, &u), -ERANGE);
    assert_int_equal(str_to_u64("11", 10, &u), -ERANGE);
    const char *const bad[] = {"", " 1", "1 ", "0x1", "-1", "+", "1e3"};
    for (size_t n = 0; n < ARRAY_SIZE(bad); n++)
        assert_int_equal(str_to_u64(bad[n], UINT64_MAX, &u), -EINVAL);
    assert_int_equal(str_to_i64("-9223372036854775808", INT64_MIN, INT64_MAX, &i), 0);
    assert_true(i == INT64_MIN);
    assert_int_equal(str_to_i64("9223372036854775808", INT64_MIN, INT64_MAX, &i), -ERANGE);
    assert_int_equal(str_to_double("1.5", &d), 0);
    assert_int_equal(str_to_double("nan", &d), -EINVAL);
    assert_int_equal(str_to_double("1e999", &d), -ERANGE);
}

static void durations_are_those_of_go(void **state)
{
    static const struct {
        const char *text;
        int64_t ns;
        const char *back;
    } good[] = {
        {"5m", 300000000000, "5m0s"},
        {"90s", 90000000000, "1m30s"},
        {"1h15m30.5s", 4530500000000, "1h15m30.5s"},
        {"0", 0, "0s"},
        {"-1.5h", -5400000000000, "-1h30m0s"},
        {"100ms", 100000000, "100ms"},
        {"+2us", 2000, "2us"},
    };
    static const char *const bad[] = {"", "5", "m", "5x", "5 m", "1h-2m", "-", "1e400s"};
    int64_t ns;
    char back[32];
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(str_to_duration(good[i].text, &ns), 0);
        assert_true(ns == good[i].ns);
        str_from_duration(ns, back, sizeof(back));
        assert_string_equal(back, good[i].back);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_true(str_to_duration(bad[i], &ns) < 0);
}

static void lists_ids_and_hex(void **state)
{
    char **v = str_split(" a, b ,,c ", ',');
    const char *why;
    uint8_t bytes[2];
    char hex[5], id[80];
    assert_int_equal(strv_len(v), 3);
    assert_string_equal(v[1], "b");
    strv_free(v);
    assert_int_equal(str_unhex("fF09", bytes, 2), 0);
    str_hex(bytes, 2, hex);
    assert_string_equal(hex, "ff09");
    assert_int_equal(str_unhex("ff0", bytes, 2), -EINVAL);
    assert_int_equal(str_unhex("ff0g", bytes, 2), -EINVAL);
    memset(id, 'a', sizeof(id));
    id[64] = '\0';
    assert_int_equal(str_check_sandbox_id(id, &why), 0);
    id[64] = 'a';
    id[65] = '\0';
    const char *const bad[] = {id, "", "..", ".a", "a/b", "../x", "a b", "\xc3\xa9"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(str_check_sandbox_id(bad[i], &why), -EINVAL);
}

static void json_is_strict(void **state)
{
    static const char *const bad[] = {"", "{", "{\"a\":1} x", "[1,]", "{\"a\":\"\xff\"}"};
    struct json_object *o;
    int64_t i;
    const char *s;
    for (size_t n = 0; n < ARRAY_SIZE(bad); n++) {
        struct err err = ERR_INIT;
        assert_int_equal(json_parse(bad[n], strlen(bad[n]), &o, &err), -EINVAL);
        assert_text_has(err.text, "offset");
    }
    struct err err = ERR_INIT;
    const char *text = " {\"n\": 5, \"s\": \"x\\u0000y\"} \n";
    assert_int_equal(json_parse(text, strlen(text), &o, &err), 0);
    assert_int_equal(json_get_i64(o, "n", &i, &err), 0);
    assert_int_equal(json_get_i64(o, "m", &i, &err), -ENOENT);
    assert_int_equal(json_get_string(o, "n", &s, &err), -EINVAL);
    err_clear(&err);
    assert_int_equal(json_get_string(o, "s", &s, &err), -EINVAL);
    json_put(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_wrap_and_cut),
        cmocka_unit_test(buffers_refuse_more_than_their_maximum),
        cmocka_unit_test(numbers_are_whole_strings),
        cmocka_unit_test(durations_are_those_of_go),
        cmocka_unit_test(lists_ids_and_hex),
        cmocka_unit_test(json_is_strict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
