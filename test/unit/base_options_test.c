/* SPDX-License-Identifier: Apache-2.0 */
/* Options: precedence of the four sources, Go's flag forms, and what is said of bad values. */
#include "unit/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/opt.h"
#include "base/str.h"

struct config {
    char *socket, *secret, *mode;
    bool skip;
    int64_t limit, timeout;
    char **tags;
};

#define FIELD(name) .offset = offsetof(struct config, name)
static const char *const modes[] = {"native", "upstream", NULL};
static const struct opt table[] = {
    {"socket", "T_SOCKET", OPT_STRING, FIELD(socket), .def = "/run/x.sock", .help = "where"},
    {"secret", "T_SECRET", OPT_STRING, FIELD(secret), .flags = OPT_SECRET | OPT_REQUIRED},
    {"mode", "T_MODE", OPT_STRING, FIELD(mode), .def = "upstream", .choices = modes},
    {"skip", "T_SKIP", OPT_BOOL, FIELD(skip)},
    {"limit", "T_LIMIT", OPT_INT, FIELD(limit), .def = "10", .min = -1, .max = 100},
    {"timeout", "T_TIMEOUT", OPT_DURATION, FIELD(timeout), .def = "5m", .flags = OPT_POSITIVE},
    {"tags", "T_TAGS", OPT_MAP, FIELD(tags)},
    OPT_END,
};

static struct config config;
static struct opt_set sets[] = {{.title = "test", .opts = table, .target = &config}, {0}};

static int parse(const char *file, struct err *err, char *const *argv)
{
    *err = ERR_INIT;
    memset(&config, 0, sizeof(config));
    return opt_parse(sets, argv, file, NULL, err);
}

static char file_path[64];

static const char *write_file(const char *text)
{
    snprintf(file_path, sizeof(file_path), "/tmp/opt-test.XXXXXX");
    int fd = mkstemp(file_path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    return file_path;
}

static void strongest_source_wins(void **state)
{
    struct err err;
    const char *file = write_file("# comment\n T_LIMIT = 20\nT_SOCKET='/file'\n\nT_MODE=native\n");
    setenv("T_SOCKET", "/env", 1);
    setenv("T_MODE", "", 1); /* empty counts as unset */
    char *argv[] = {"--limit=30", "-skip", "-tags", "a=1,b=2", NULL};
    assert_int_equal(parse(file, &err, argv), 0);
    assert_string_equal(config.socket, "/env");
    assert_string_equal(config.mode, "native");
    assert_int_equal(config.limit, 30);
    assert_true(config.skip);
    assert_int_equal(strv_len(config.tags), 2);
    assert_true(config.timeout == 300000000000);
    struct buf out = BUF_INIT(0);
    opt_print_config(sets, &out);
    assert_text_has(out.data, "# -socket, from environment\nT_SOCKET=/env\n");
    assert_text_has(out.data, "# -mode, from file\nT_MODE=native\n");
    assert_text_has(out.data, "T_SECRET=(unset)");
    buf_done(&out);
    opt_done(sets);
    unlink(file);
    unsetenv("T_SOCKET");
    unsetenv("T_MODE");
}

static void bad_flags_are_named(void **state)
{
    static const struct {
        char *argv[3];
        const char *text;
    } bad[] = {
        {{"-limit", "101"}, "flag -limit: '101' is out of range: -1 to 100"},
        {{"-limit"}, "flag -limit needs a value"},
        {{"-nope"}, "unknown flag -nope"},
        {{"-skip=maybe"}, "flag -skip: 'maybe' is not true or false"},
        {{"-mode=x"}, "not one of: native, upstream"},
        {{"-timeout=5"}, "not a duration"},
        {{"-timeout=0s"}, "not a positive duration"},
        {{"-tags=x"}, "not of the form key=value"},
        {{"word"}, "unexpected argument 'word'"},
    };
    struct err err;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_not_equal(parse(NULL, &err, bad[i].argv), 0);
        assert_text_has(err.text, bad[i].text);
        opt_done(sets);
    }
}

static void bad_file_lines_are_named(void **state)
{
    static const char *const bad[][2] = {
        {"\nT_LIMIT=many\n", "line 2: T_LIMIT: 'many' is not a whole number"},
        {"T_OTHER=1\n", "line 1: unknown key T_OTHER"},
        {"nonsense\n", "line 1: expected KEY=value"},
    };
    struct err err;
    char *none[] = {NULL};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        const char *file = write_file(bad[i][0]);
        assert_int_not_equal(parse(file, &err, none), 0);
        assert_text_has(err.text, bad[i][1]);
        opt_done(sets);
        unlink(file);
    }
    assert_int_equal(parse("/nonexistent/file", &err, none), 0);
    opt_done(sets);
}

static void environment_warns_and_keeps_the_default(void **state)
{
    struct err err;
    char *none[] = {NULL};
    setenv("T_TIMEOUT", "5", 1);
    setenv("T_SKIP", "yes", 1);
    assert_int_equal(parse(NULL, &err, none), 0);
    assert_true(config.timeout == 300000000000);
    assert_false(config.skip);
    assert_int_not_equal(opt_check_required(sets, &err), 0);
    assert_text_has(err.text, "-secret (T_SECRET)");
    opt_done(sets);
    unsetenv("T_TIMEOUT");
    unsetenv("T_SKIP");
}

static void secrets_stay_out_of_sight(void **state)
{
    struct err err;
    struct buf out = BUF_INIT(0);
    char *argv[] = {"-secret=hunter2", NULL};
    assert_int_equal(parse(NULL, &err, argv), 0);
    assert_int_equal(opt_check_required(sets, &err), 0);
    opt_print_config(sets, &out);
    opt_help(sets, &out);
    opt_man(sets, &out);
    assert_null(strstr(out.data, "hunter2"));
    assert_text_has(out.data, "T_SECRET=(set)");
    buf_done(&out);
    opt_done(sets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strongest_source_wins),
        cmocka_unit_test(bad_flags_are_named),
        cmocka_unit_test(bad_file_lines_are_named),
        cmocka_unit_test(environment_warns_and_keeps_the_default),
        cmocka_unit_test(secrets_stay_out_of_sight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
