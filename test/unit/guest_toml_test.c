/* SPDX-License-Identifier: Apache-2.0 */
/* The TOML reader: what initdata needs, taken; everything else refused with line and reason. */
#include "guest/toml.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/str.h"
#include "guest/utf8.h"

static struct toml *parse(const char *text)
{
    struct err err = ERR_INIT;
    struct toml *t = NULL;

    if (toml_parse(text, strlen(text), &t, &err) < 0)
        fail_msg("'%s': %s", text, err.text);
    return t;
}

static void whole_document(void **state)
{
    _cleanup_(toml_freep) struct toml *t =
        parse("# initdata\r\nversion = \"0.1.0\" # here\n\n algorithm=\"sha384\"\nn = -1_000\n"
              "yes = true\nno=false\n[data]\n\"aa.toml\" = '''\n[t]\nurl = 'x'\n'''\n"
              "'cdh.toml' = \"\"\"\\\n   one \\\n\n   two\"\"\"\n[ 'other table' ] # end");
    const struct toml_entry *data = toml_get(t, "data");

    assert_int_equal(t->n, 7);
    assert_string_equal(toml_get(t, "version")->string, "0.1.0");
    assert_int_equal(toml_get(t, "version")->line, 2);
    assert_int_equal(toml_get(t, "n")->integer, -1000);
    assert_int_equal(toml_get(t, "yes")->integer, 1);
    assert_int_equal(toml_get(t, "no")->type, TOML_BOOLEAN);
    assert_int_equal(data->type, TOML_TABLE);
    assert_string_equal(toml_get(data->table, "aa.toml")->string, "[t]\nurl = 'x'\n");
    assert_string_equal(toml_get(data->table, "cdh.toml")->string, "one two");
    assert_int_equal(toml_get(data->table, "cdh.toml")->line, 13);
    assert_int_equal(toml_get(t, "other table")->table->n, 0);
    assert_null(toml_get(t, "nothing"));
}

static void strings(void **state)
{
    static const struct {
        const char *text, *value;
    } cases[] = {
        {"\"\"", ""},
        {"''", ""},
        {"'C:\\x'", "C:\\x"},
        {"\"\\b\\t\\n\\f\\r\\\"\\\\\"", "\b\t\n\f\r\"\\"},
        {"\"\\u00e9\\U0001F600\"", "\xc3\xa9\xf0\x9f\x98\x80"},
        {"\"\ttab and # no comment\"", "\ttab and # no comment"},
        {"\"\"\"\"\"\"", ""},
        {"\"\"\"\"\"\"\"\"", "\"\""},
        {"\"\"\"a\"\"b\"\"\"", "a\"\"b"},
        {"\"\"\"\na\r\nb\"\"\"", "a\nb"},
        {"\"\"\"\r\na\"\"\"", "a"},
        {"\"\"\"\n\na\"\"\"", "\na"},
        {"\"\"\"a\\  \r\n \t\n\n b\"\"\"", "ab"},
        {"\"\"\"\\\"\"\"\\\"\"\"\"", "\"\"\"\""},
        {"'''\n'\\n''\n'''''", "'\\n''\n''"},
        {"''''a'''", "'a"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_free_ char *text = str_asprintf("k = %s\n", cases[i].text);
        _cleanup_(toml_freep) struct toml *t = parse(text);

        assert_string_equal(t->entries[0].string, cases[i].value);
        assert_int_equal(t->entries[0].len, strlen(cases[i].value));
    }
}

static void integers(void **state)
{
    static const struct {
        const char *text;
        int64_t value;
    } cases[] = {
        {"0", 0},
        {"-0", 0},
        {"+99", 99},
        {"1_2_3", 123},
        {"0xDEAD_beef", 0xdeadbeef},
        {"0o755", 0755},
        {"0b1_0", 2},
        {"9223372036854775807", INT64_MAX},
        {"-9223372036854775808", INT64_MIN},
        {"0x7fffffffffffffff", INT64_MAX},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_free_ char *text = str_asprintf("k = %s # end", cases[i].text);
        _cleanup_(toml_freep) struct toml *t = parse(text);

        assert_int_equal(t->entries[0].type, TOML_INTEGER);
        assert_true(t->entries[0].integer == cases[i].value);
    }
}

struct refusal {
    const char *text, *why;
};

static const struct refusal refusals[] = {
    {"a = [1]", "line 1: arrays are not allowed here; strings, integers, true and false"},
    {"\na = {b = 1}", "line 2: inline tables"},
    {"a = 1.5", "floats and dates"},
    {"a = 1e3", "floats and dates"},
    {"a = inf", "not understood"},
    {"a = +nan", "not understood"},
    {"a = 1979-05-27", "floats and dates"},
    {"a = 07:32:00", "cannot begin with 0"},
    {"a = 012", "cannot begin with 0"},
    {"a = 0_1", "cannot begin with 0"},
    {"a = 1_", "floats and dates"},
    {"a = _1", "not understood"},
    {"a = 1__2", "floats and dates"},
    {"a = 0x", "not understood"},
    {"a = +0x1", "floats and dates"},
    {"a = 9223372036854775808", "64 bits"},
    {"a = -9223372036854775809", "64 bits"},
    {"a = 0x8000000000000000", "64 bits"},
    {"a = True", "not understood"},
    {"a = truex", "not understood"},
    {"a = ", "not understood"},
    {"a = # x", "not understood"},
    {"a", "'=' is expected"},
    {"a b = 1", "'=' is expected"},
    {"= 1", "a key is expected"},
    {"\xc3\xa9 = 1", "a key is expected"},
    {"aa.toml = 'x'", "as in \"aa.toml\""},
    {"[a.b]", "dotted keys"},
    {"[[a]]", "arrays of tables"},
    {"[a", "']' is expected"},
    {"[]", "a key is expected"},
    {"[a] b = 1", "behind a table's name"},
    {"a = 1 b = 2", "behind a value"},
    {"a = 'x' 'y'", "behind a value"},
    {"a = 1\n\na = 2", "line 3: key defined a second time; it stands in line 1"},
    {"a = 1\n[a]", "line 2: key defined a second time"},
    {"[a]\n[a]", "line 2: key defined a second time"},
    {"[a]\nb='x'\n\"b\"=1", "line 3: key defined a second time; it stands in line 2"},
    {"\n\na = 'x", "line 3: string without its closing quote"},
    {"a = \"x\ny\"", "line 1: string without its closing quote"},
    {"\na = '''x\n\n", "line 2: the multi-line string that begins here"},
    {"a = \"\\x\"", "unknown escape"},
    {"a = \"\\ \"", "unknown escape"},
    {"a = \"\"\"\\ x\"\"\"", "unknown escape"},
    {"a = \"\\u12\"", "hexadecimal digits"},
    {"a = \"\\ud800\"", "not a character"},
    {"a = \"\\U00110000\"", "not a character"},
    {"a = \"\x01\"", "control character 0x01"},
    {"a = '''\x7f'''", "control character 0x7f"},
    {"a = '''\r'''", "control character 0x0d"},
    {"# \x02\n", "control character 0x02 in a comment"},
    {"a = 1\r", "floats and dates"},
    {"a = '\xff'", "not UTF-8"},
    {"\n\n\"\xc0\x80\" = 1", "line 3: not UTF-8"},
    {"\xef\xbb\xbf"
     "a = 1",
     "a key is expected"},
    {"\"\"\"a\"\"\" = 1", "a key cannot be a multi-line string"},
    {"\"a\\u0000\" = 1", "NUL"},
    {"a = '''''''''", "behind a value"},
};

static void refused(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        struct err err = ERR_INIT;
        struct toml *t = NULL;
        int r = toml_parse(refusals[i].text, strlen(refusals[i].text), &t, &err);

        if (r != -EINVAL || t || !strstr(err.text, refusals[i].why))
            fail_msg("'%s' gave %d, '%s'", refusals[i].text, r, err.text);
    }
}

static void limits(void **state)
{
    _cleanup_free_ char *text = xcalloc(1, TOML_TEXT_MAX + 2);
    char *p = text;
    struct err err = ERR_INIT;
    struct toml *t = NULL;

    memset(text, ' ', TOML_TEXT_MAX + 1);
    assert_int_equal(toml_parse(text, TOML_TEXT_MAX + 1, &t, &err), -E2BIG);
    assert_non_null(strstr(err.text, "4194304"));
    assert_int_equal(toml_parse(text, TOML_TEXT_MAX, &t, NULL), 0);
    toml_free(TAKE_PTR(t));
    for (int i = 0; i <= TOML_ENTRIES_MAX; i++)
        p += snprintf(p, 32, "k%d = 1\n", i);
    err_clear(&err);
    assert_int_equal(toml_parse(text, (size_t)(p - text), &t, &err), -E2BIG);
    assert_non_null(strstr(err.text, "line 1025: more than 1024"));
    err_clear(&err);
    memset(text, 'k', TOML_KEY_MAX + 1);
    snprintf(text + TOML_KEY_MAX + 1, 8, "=1\n");
    assert_int_equal(toml_parse(text, strlen(text), &t, &err), -E2BIG);
    assert_int_equal(toml_parse(text + 1, strlen(text) - 1, &t, NULL), 0);
    toml_free(t);
}

static void utf8(void **state)
{
    size_t bad = 0;
    char out[4];

    for (uint32_t c = 0; c <= 0x110000; c++) {
        size_t n = utf8_put(c, out);
        uint32_t back;

        assert_true((n == 0) == (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)));
        if (n == 0)
            continue;
        assert_int_equal(utf8_next(out, n, &back), n);
        assert_int_equal(back, c);
        assert_true(n == 1 || utf8_next(out, n - 1, &back) == -EILSEQ);
    }
    assert_false(utf8_valid("a\xed\xa0\x80", 4, &bad));
    assert_int_equal(bad, 1);
    assert_false(utf8_valid("\xc1\xbf", 2, &bad));
    assert_false(utf8_valid("\xf4\x90\x80\x80", 4, &bad));
    assert_false(utf8_valid("\xe0\x9f\xbf", 3, &bad));
    assert_true(utf8_valid("", 0, &bad));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_document), cmocka_unit_test(strings), cmocka_unit_test(integers),
        cmocka_unit_test(refused),        cmocka_unit_test(limits),  cmocka_unit_test(utf8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
