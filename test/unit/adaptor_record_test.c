/* SPDX-License-Identifier: Apache-2.0 */
/* Records: round trip, what a newer minor version added, what a newer major one means. */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adaptor/record.h"

static char path[64];
static int dir = -1;

static int set_up(void **state)
{
    snprintf(path, sizeof(path), "/tmp/record-test.XXXXXX");
    if (!mkdtemp(path))
        return -1;
    dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    close(dir);
    return fs_remove_tree(AT_FDCWD, path, NULL);
}

static struct record sample(void)
{
    struct record r = {.state = SANDBOX_RUNNING, .created_ms = 17, .next_channel = 3};
    snprintf(r.id, sizeof(r.id), "%s", "abc");
    snprintf(r.pod, sizeof(r.pod), "%s", "web-0");
    snprintf(r.boot, sizeof(r.boot), "%s", "00000000-0000-0000-0000-000000000000");
    snprintf(r.node, sizeof(r.node), "%s", "worker-1");
    snprintf(r.token, sizeof(r.token), "%s", "0123456789abcdef0123456789abcdef");
    snprintf(r.key, sizeof(r.key), "%s", "01234567");
    snprintf(r.instance.id, sizeof(r.instance.id), "%s", "i-1");
    snprintf(r.instance.addresses[0], sizeof(r.instance.addresses[0]), "%s", "198.18.0.2");
    r.last_error = xstrdup("it said \"no\"");
    r.instance.n_addresses = 1;
    r.enrolled = true;
    memset(r.peer_pin, 0xab, sizeof(r.peer_pin));
    r.spec.memory_mib = 512;
    return r;
}

static void what_is_written_is_read(void **state)
{
    struct err err = ERR_INIT;
    struct record out = sample(), in;
    assert_int_equal(record_write(dir, &out, &err), 0);
    assert_int_equal(record_read(dir, &in, &err), 0);
    assert_string_equal(in.id, "abc");
    assert_int_equal(in.state, SANDBOX_RUNNING);
    assert_string_equal(in.node, "worker-1");
    assert_string_equal(in.instance.addresses[0], "198.18.0.2");
    assert_memory_equal(in.peer_pin, out.peer_pin, TLS_PIN_SIZE);
    assert_true(in.enrolled);
    assert_int_equal(in.next_channel, 3);
    assert_string_equal(in.last_error, out.last_error);
    assert_int_equal(in.spec.memory_mib, 512);
    assert_null(in.unknown); /* a thousand records are kept in memory, each once */
    record_done(&in);
    record_done(&out);
}

static void rewrite(const char *from, const char *to)
{
    struct err err = ERR_INIT;
    char *text, *at;
    size_t len;
    assert_int_equal(fs_read(dir, RECORD_FILE, RECORD_MAX, &text, &len, &err), 0);
    at = strstr(text, from);
    assert_non_null(at);
    struct buf b = BUF_INIT(0);
    buf_add(&b, text, (size_t)(at - text));
    buf_adds(&b, to);
    buf_adds(&b, at + strlen(from));
    assert_int_equal(fs_write_atomic(dir, RECORD_FILE, b.data, b.len, 0600, &err), 0);
    buf_done(&b);
    free(text);
}

static void a_newer_minor_version_keeps_its_fields(void **state)
{
    struct err err = ERR_INIT;
    struct record r = sample();
    char *text;
    assert_int_equal(record_write(dir, &r, &err), 0);
    record_done(&r);
    rewrite("\"version_minor\":1", "\"version_minor\":7, \"colour\":{\"of\":\"the future\"}");
    assert_int_equal(record_read(dir, &r, &err), 0);
    r.state = SANDBOX_DELETING;
    assert_int_equal(record_write(dir, &r, &err), 0);
    record_done(&r);
    assert_int_equal(fs_read(dir, RECORD_FILE, RECORD_MAX, &text, NULL, &err), 0);
    assert_text_has(text, "the future");
    assert_text_has(text, "\"version_minor\":7");
    assert_text_has(text, "deleting");
    free(text);
}

static void refused(const char *from, const char *to, int code, const char *part)
{
    struct err err = ERR_INIT;
    struct record r = sample();
    assert_int_equal(record_write(dir, &r, &err), 0);
    record_done(&r);
    rewrite(from, to);
    assert_int_equal(record_read(dir, &r, &err), code);
    assert_text_has(err.text, part);
}

static void torn_and_foreign_records_are_refused(void **state)
{
    refused("\"version_major\":1", "\"version_major\":2", -EPROTONOSUPPORT, "newer version");
    refused("\"version_major\":1", "\"major\":1", -EBADMSG, "version_major");
    refused("running", "flying", -EBADMSG, "state");
    refused("\"abc\"", "\"../abc\"", -EBADMSG, "not a sandbox id");
    refused("abababab", "abababax", -EBADMSG, "peer_pin");
    refused("\"next_channel\":3", "\"next_channel\":-3", -EBADMSG, "next_channel");
    refused("\"198.18.0.2\"", "17", -EBADMSG, "addresses");
    refused("0123456789abcdef0123456789abcdef", "0123", -EBADMSG, "token");
    refused("\"01234567\"", "\"0123.l:x\"", -EBADMSG, "\"key\"");
    refused("{", "", -EBADMSG, "not valid JSON");
    struct err err = ERR_INIT;
    struct record r;
    unlinkat(dir, RECORD_FILE, 0);
    assert_int_equal(record_read(dir, &r, &err), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_newer_minor_version_keeps_its_fields, set_up, tear_down),
        cmocka_unit_test_setup_teardown(torn_and_foreign_records_are_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
