/* SPDX-License-Identifier: Apache-2.0 */
/* User data: the builder's bytes, the strict reader, and that one reads what the other writes. */
#include "guest/userdata.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/str.h"
#include "guest/cloudconfig.h"

static char *build(const struct userdata_file *files, size_t n, size_t *ret_len)
{
    struct err err = ERR_INIT;
    char *text = NULL;

    if (userdata_build(files, n, 0, &text, ret_len, &err) < 0)
        fail_msg("%s", err.text);
    return text;
}

static void golden(void **state)
{
    static const struct userdata_file files[] = {
        {"/run/peerpod/apf.json", "{\"a\": \"b: c\"}\n", 14},
        {"/run/peerpod/initdata", "H4sIAAAA+/==", 12},
        {"/run/peerpod/scratch-space.marker", NULL, 0},
        {"/run/peerpod/auth.json", "  {\n\n  }\n\n", 10},
        {"/run/peerpod/aa.toml", "", 0},
        {"/run/peerpod/cdh.toml", "a\r\n\"\\\xc3\xa9\xf0\x9f\x98\x80", 11},
    };
    static const char expected[] = "#cloud-config\n"
                                   "\n"
                                   "write_files:\n"
                                   "  - path: /run/peerpod/apf.json\n"
                                   "    content: |\n"
                                   "      {\"a\": \"b: c\"}\n"
                                   "  - path: /run/peerpod/initdata\n"
                                   "    content: |-\n"
                                   "      H4sIAAAA+/==\n"
                                   "  - path: /run/peerpod/scratch-space.marker\n"
                                   "  - path: /run/peerpod/auth.json\n"
                                   "    content: |2+\n"
                                   "        {\n"
                                   "\n"
                                   "        }\n"
                                   "\n"
                                   "  - path: /run/peerpod/aa.toml\n"
                                   "    content: \"\"\n"
                                   "  - path: /run/peerpod/cdh.toml\n"
                                   "    content: \"a\\r\\n\\\"\\\\\\xE9\\U0001F600\"\n";
    size_t len;
    _cleanup_free_ char *text = build(files, ARRAY_SIZE(files), &len);

    assert_string_equal(text, expected);
    assert_int_equal(len, strlen(expected));
}

static void round_trip_one(const char *content, size_t len)
{
    struct userdata_file files[] = {{"/a", content, len}, {"/b", NULL, 0}, {"/c", content, len}};
    struct cloudconfig cc = {0};
    struct err err = ERR_INIT;
    size_t text_len;
    _cleanup_free_ char *text = build(files, 3, &text_len);

    if (cloudconfig_parse(text, text_len, &cc, &err) < 0)
        fail_msg("%s in:\n%s", err.text, text);
    assert_int_equal(cc.n, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(cc.files[i].path, files[i].path);
        if (!files[i].content) {
            assert_null(cc.files[i].content);
            continue;
        }
        if (cc.files[i].len != len || memcmp(cc.files[i].content, content, len) != 0)
            fail_msg("not the same content:\n%s", text);
    }
    cloudconfig_done(&cc);
}

static void round_trip_all_short(void **state)
{
    static const char *const atoms[] = {"a",        " ",
                                        "\n",       "\t",
                                        "#",        "- x: y",
                                        "\r",       "---",
                                        "\xc2\x85", "\xe2\x80\xa8",
                                        ": ",       "\xef\xbb\xbf",
                                        "\x7f",     "\xf0\x9f\x98\x80",
                                        "'\""};
    const size_t n = ARRAY_SIZE(atoms);

    for (size_t i = 0; i < n * n * n * n; i++) {
        char text[64] = "";
        size_t k = i;

        for (int part = 0; part < 4; part++, k /= n)
            strncat(text, atoms[k % n], 16);
        round_trip_one(text, strlen(text));
    }
    round_trip_one("", 0);
}

static void build_refused(void **state)
{
    static const struct {
        struct userdata_file file;
        const char *why;
    } cases[] = {
        {{"relative", "x", 1}, "path \"relative\" is not allowed"},
        {{"/a/../b", "x", 1}, "is not allowed"},
        {{"/a//b", "x", 1}, "is not allowed"},
        {{"/a/.", "x", 1}, "is not allowed"},
        {{"/a b", "x", 1}, "is not allowed"},
        {{"/a\n", "x", 1}, "is not allowed"},
        {{"/a: b", "x", 1}, "is not allowed"},
        {{"/a/", "x", 1}, "is not allowed"},
        {{"", "x", 1}, "is not allowed"},
        {{NULL, "x", 1}, "is not allowed"},
        {{"/a", "x\0y", 3}, "/a holds a NUL character (offset 1)"},
        {{"/a", "xy\xff", 3}, "/a is not UTF-8 text (offset 2)"},
    };
    struct userdata_file twice[] = {{"/a", "x", 1}, {"/a", "y", 1}};
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t len;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        err_clear(&err);
        assert_int_equal(userdata_build(&cases[i].file, 1, 0, &text, &len, &err), -EINVAL);
        if (!strstr(err.text, cases[i].why))
            fail_msg("case %zu: %s", i, err.text);
    }
    err_clear(&err);
    assert_int_equal(userdata_build(twice, 2, 0, &text, &len, &err), -EINVAL);
    assert_non_null(strstr(err.text, "twice"));
    assert_null(text);
}

static void limit_names_largest(void **state)
{
    _cleanup_free_ char *big = xcalloc(1, 20001);
    struct userdata_file files[] = {{"/small", "x\n", 2},
                                    {"/middle", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", 31},
                                    {"/big", big, 20000},
                                    {"/tiny", "", 0}};
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t len, exact;

    memset(big, 'b', 20000);
    free(build(files, 4, &exact));
    assert_int_equal(userdata_build(files, 4, exact - 1, &text, &len, &err), -E2BIG);
    assert_null(text);
    assert_string_equal(err.text, "user data takes 20208 bytes, 1 more than the limit of 20207; "
                                  "largest parts: /big 20038, /middle 70, /small 40");
    assert_int_equal(userdata_build(files, 4, exact, &text, &len, NULL), 0);
    assert_int_equal(len, exact);
    free(text);
}

static void limit_of_all(void **state)
{
    _cleanup_free_ char *big = xcalloc(1, USERDATA_MAX);
    struct userdata_file file = {"/big", big, USERDATA_MAX};
    struct userdata_file many[USERDATA_FILES_MAX + 1] = {{0}};
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t len;

    memset(big, 'b', USERDATA_MAX);
    assert_int_equal(userdata_build(&file, 1, SIZE_MAX, &text, &len, &err), -E2BIG);
    assert_non_null(strstr(err.text, "limit of 4194304; largest parts: /big"));
    assert_int_equal(userdata_build(many, ARRAY_SIZE(many), 0, &text, &len, NULL), -E2BIG);
}

static void reads_what_others_write(void **state)
{
    static const char text[] = "#cloud-config  \r\n"
                               "# a comment\n"
                               "write_files:\n"
                               "- content: |\n"
                               "    {\"a\": 1}\n"
                               "  path: /run/peerpod/apf.json\n"
                               "- {path: '/run/peerpod/aa.toml', content: \"x\\ny\"}\n"
                               "- path: /run/peerpod/cdh.toml\n"
                               "  content: >\n"
                               "    folded\n"
                               "    text\n"
                               "- path: /none\n"
                               "  content:\n"
                               "- path: /null\n"
                               "  content: null\n"
                               "- path: /quoted\n"
                               "  content: 'null'\n";
    struct cloudconfig cc = {0};
    struct err err = ERR_INIT;

    if (cloudconfig_parse(text, strlen(text), &cc, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(cc.n, 6);
    assert_string_equal(cc.files[0].content, "{\"a\": 1}\n");
    assert_string_equal(cc.files[1].content, "x\ny");
    assert_string_equal(cc.files[2].content, "folded text\n");
    assert_null(cc.files[3].content);
    assert_null(cc.files[4].content);
    assert_string_equal(cc.files[5].content, "null");
    cloudconfig_done(&cc);
    assert_int_equal(cloudconfig_parse("#cloud-config\nwrite_files: []", 29, &cc, NULL), 0);
    assert_int_equal(cc.n, 0);
    cloudconfig_done(&cc);
}

#define HEAD "#cloud-config\n"
#define ENTRY HEAD "write_files:\n  - path: /a\n"

static const struct {
    const char *text, *why;
} refusals[] = {
    {"", "line 1: must be \"#cloud-config\""},
    {"write_files: []", "line 1: must be"},
    {"#cloud-config-archive\n", "line 1: must be"},
    {"#!/bin/sh\n", "line 1: must be"},
    {HEAD, "a mapping with the key write_files is expected"},
    {HEAD "[]", "line 2: a mapping with the key write_files"},
    {HEAD "{}", "write_files is missing"},
    {HEAD "runcmd: [ls]", "line 2: unknown key \"runcmd\"; allowed is write_files"},
    {HEAD "write_files: []\nusers: []", "line 3: unknown key \"users\""},
    {HEAD "write_files: []\nwrite_files: []", "line 3: write_files stands twice"},
    {HEAD "write_files: text", "the list of write_files is expected"},
    {HEAD "write_files:\n  - text", "line 3: an entry of write_files must be a mapping"},
    {HEAD "write_files:\n  - {}", "has no \"path\""},
    {HEAD "write_files:\n  - content: x", "has no \"path\""},
    {HEAD "write_files:\n  - path:\n", "has no \"path\""},
    {ENTRY "    permissions: '0644'", "line 4: unknown key \"permissions\" in write_files"},
    {ENTRY "    encoding: b64", "unknown key \"encoding\""},
    {ENTRY "    path: /b", "line 4: key \"path\" stands twice"},
    {ENTRY "    content: x\n    content: y", "line 5: key \"content\" stands twice"},
    {ENTRY "  - path: /a", "path /a stands in write_files twice"},
    {ENTRY "    content: [x]", "line 4: the value of \"content\" must be a string"},
    {ENTRY "    content: {x: y}", "must be a string"},
    {ENTRY "    content: &anchor x", "line 4: anchors are not allowed"},
    {HEAD "write_files: &a\n  - path: /a", "anchors are not allowed"},
    {ENTRY "    content: *alias", "line 4: aliases are not allowed"},
    {ENTRY "    content: !!binary aGk=", "line 4: tags are not allowed"},
    {ENTRY "    content: ! x", "tags are not allowed"},
    {ENTRY "    ? [x]\n    : y", "a key of write_files must be a word"},
    {ENTRY "    content: \"a\\0b\"", "holds a NUL character"},
    {ENTRY "    content: \"a\x01\"", "offset"},
    {ENTRY "    content: \"a\xff\"", "offset"},
    {ENTRY "    content: 'x", "line"},
    {ENTRY "   content: x", "line"},
    {ENTRY "\tcontent: x", "line"},
    {ENTRY "---\nwrite_files: []", "one document only"},
    {HEAD "%YAML 1.1\n---\nwrite_files: []", "directive is not allowed"},
    {HEAD "%TAG ! tag:x,2000:\n---\nwrite_files: []", "tags are not allowed"},
};

static void reader_refuses(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        struct cloudconfig cc = {0};
        struct err err = ERR_INIT;
        int r = cloudconfig_parse(refusals[i].text, strlen(refusals[i].text), &cc, &err);

        if (r != -EINVAL || cc.files || !strstr(err.text, refusals[i].why))
            fail_msg("'%s' gave %d, '%s'", refusals[i].text, r, err.text);
    }
}

static void reader_limits(void **state)
{
    _cleanup_free_ char *text = xcalloc(1, CLOUDCONFIG_MAX + 2);
    char *p = text;
    struct cloudconfig cc = {0};
    struct err err = ERR_INIT;

    memset(text, ' ', CLOUDCONFIG_MAX + 1);
    assert_int_equal(cloudconfig_parse(text, CLOUDCONFIG_MAX + 1, &cc, &err), -E2BIG);
    p += snprintf(p, 64, HEAD "write_files:\n");
    for (int i = 0; i <= CLOUDCONFIG_FILES_MAX; i++)
        p += snprintf(p, 64, "- path: /%d\n", i);
    err_clear(&err);
    assert_int_equal(cloudconfig_parse(text, (size_t)(p - text), &cc, &err), -EINVAL);
    assert_non_null(strstr(err.text, "more than 32 files"));
    p = text + snprintf(text, 64, ENTRY "  - path: /");
    memset(p, 'x', CLOUDCONFIG_PATH_MAX);
    err_clear(&err);
    assert_int_equal(cloudconfig_parse(text, (size_t)(p - text) + CLOUDCONFIG_PATH_MAX, &cc, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "path of 256 bytes; at most 255"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),         cmocka_unit_test(round_trip_all_short),
        cmocka_unit_test(build_refused),  cmocka_unit_test(limit_names_largest),
        cmocka_unit_test(limit_of_all),   cmocka_unit_test(reads_what_others_write),
        cmocka_unit_test(reader_refuses), cmocka_unit_test(reader_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
