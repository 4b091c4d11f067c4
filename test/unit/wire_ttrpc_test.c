/* SPDX-License-Identifier: Apache-2.0 */
/* The ttrpc codec at its edges: header bytes, sizes about the limit, error texts, memory. */
#include "unit/check.h"

#include <errno.h>

#include "base/str.h"
#include "wire/ttrpc.h"

static void headers_are_big_endian(void **state)
{
    static const uint8_t bytes[] = {0x00, 0x01, 0x02, 0x03, 0xff, 0xfe, 0xfd, 0xfc, 0x02, 0x81};
    uint8_t again[TTRPC_HEADER_SIZE];
    struct ttrpc_header h;
    ttrpc_header_decode(bytes, &h);
    assert_int_equal(h.length, 0x010203);
    assert_int_equal(h.stream, 0xfffefdfc);
    assert_int_equal(h.type, TTRPC_RESPONSE);
    assert_int_equal(h.flags, 0x81);
    ttrpc_header_encode(&h, again);
    assert_memory_equal(bytes, again, sizeof(bytes));
}

static struct ttrpc_header check_frame(const struct buf *b)
{
    struct ttrpc_header h;
    assert_true(b->len >= TTRPC_HEADER_SIZE);
    ttrpc_header_decode((const uint8_t *)b->data, &h);
    assert_int_equal(h.length, b->len - TTRPC_HEADER_SIZE);
    return h;
}

static const uint8_t *body_of(const struct buf *b)
{
    return (const uint8_t *)b->data + TTRPC_HEADER_SIZE;
}

static void requests_come_back(void **state)
{
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    struct err err = ERR_INIT;
    Ttrpc__Request *q;
    assert_int_equal(ttrpc_add_request(&b, 0xffffffff, "a.B", "C", "\0\1", 2, -5, &err), 0);
    assert_int_equal(check_frame(&b).stream, 0xffffffff);
    assert_int_equal(check_frame(&b).type, TTRPC_REQUEST);
    assert_int_equal(ttrpc_request_decode(body_of(&b), b.len - TTRPC_HEADER_SIZE, &q, &err), 0);
    assert_string_equal(q->service, "a.B");
    assert_string_equal(q->method, "C");
    assert_int_equal(q->payload.len, 2);
    assert_memory_equal(q->payload.data, "\0\1", 2);
    assert_int_equal(q->timeout_nano, -5);
    ttrpc__request__free_unpacked(q, NULL);
}

static void an_empty_answer_is_a_bare_header(void **state)
{
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    struct err err = ERR_INIT;
    Ttrpc__Response *r;
    assert_int_equal(ttrpc_add_response(&b, 1, NULL, 0, &err), 0);
    assert_int_equal(b.len, TTRPC_HEADER_SIZE);
    assert_int_equal(ttrpc_response_decode(NULL, 0, &r, &err), 0);
    assert_null(r->status);
    assert_int_equal(r->payload.len, 0);
    ttrpc__response__free_unpacked(r, NULL);
}

/* A payload of n bytes costs 1 byte of key and 4 of length from 2 MiB on. */
static void the_limit_is_exact(void **state)
{
    const size_t most = TTRPC_BODY_MAX - 5;
    _cleanup_free_ uint8_t *payload = xcalloc(1, most + 1);
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    struct err err = ERR_INIT;
    assert_int_equal(ttrpc_add_response(&b, 1, payload, most, &err), 0);
    assert_int_equal(b.len, TTRPC_HEADER_SIZE + TTRPC_BODY_MAX);
    assert_int_equal(check_frame(&b).length, TTRPC_BODY_MAX);
    assert_int_equal(ttrpc_add_response(&b, 1, payload, most + 1, &err), -EMSGSIZE);
    assert_int_equal(b.len, TTRPC_HEADER_SIZE + TTRPC_BODY_MAX); /* nothing was added */
    assert_text_has(err_text(&err), "4194305");
    err_clear(&err);
    assert_int_equal(ttrpc_add_request(&b, 1, "s", "m", payload, most, 0, &err), -EMSGSIZE);
}

static void oversize_is_not_decoded(void **state)
{
    _cleanup_free_ uint8_t *body = xcalloc(1, TTRPC_BODY_MAX + 1);
    struct err err = ERR_INIT;
    Ttrpc__Request *q;
    assert_int_equal(ttrpc_request_decode(body, TTRPC_BODY_MAX + 1, &q, &err), -EBADMSG);
}

static void memory_is_bounded(void **state)
{
    _cleanup_free_ uint8_t *body = xcalloc(1, TTRPC_BODY_MAX);
    struct err err = ERR_INIT;
    Ttrpc__Request *q;
    for (size_t i = 0; i + 1 < TTRPC_BODY_MAX; i += 2)
        body[i] = 0x2a; /* metadata, length 0: two bytes, some hundred when decoded */
    assert_int_equal(ttrpc_request_decode(body, TTRPC_BODY_MAX, &q, &err), -EBADMSG);
    err_clear(&err);
    assert_int_equal(ttrpc_request_decode(body, 20000, &q, &err), 0);
    assert_int_equal(q->n_metadata, 10000);
    ttrpc__request__free_unpacked(q, NULL);
}

static void garbage_is_refused(void **state)
{
    static const char *const bad[] = {"\xff",     "\x0a",     "\x0a\x05\x61\x62",
                                      "\x07\x01", "\x0f\x01", "\x0a\xff\xff\xff\xff\x0f",
                                      "\x20\x80"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_INIT;
        Ttrpc__Request *q;
        assert_int_equal(ttrpc_request_decode((const uint8_t *)bad[i], strlen(bad[i]), &q, &err),
                         -EBADMSG);
        assert_text_has(err_text(&err), "ttrpc.Request");
    }
}

static void check_error(const char *message, const char *want)
{
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    struct err err = ERR_INIT;
    Ttrpc__Response *r;
    ttrpc_add_error(&b, 9, TTRPC_NOT_FOUND, message);
    check_frame(&b);
    assert_int_equal(ttrpc_response_decode(body_of(&b), b.len - TTRPC_HEADER_SIZE, &r, &err), 0);
    assert_int_equal(r->status->code, TTRPC_NOT_FOUND);
    assert_int_equal(r->payload.len, 0);
    if (want)
        assert_string_equal(r->status->message, want);
    else
        assert_true(strlen(r->status->message) <= 16384 && strlen(r->status->message) > 16380);
    ttrpc__response__free_unpacked(r, NULL);
}

static void error_texts_are_utf8(void **state)
{
    _cleanup_free_ char *longer = xcalloc(1, 60001);
    check_error(NULL, "");
    check_error("plain", "plain");
    check_error("Gr\xc3\xbc\xc3\x9f"
                "e \xf0\x9f\x98\x80",
                "Gr\xc3\xbc\xc3\x9f"
                "e \xf0\x9f\x98\x80");
    check_error("a\xff"
                "b",
                "a?b");
    check_error("\xc3", "?");
    check_error("x\xe4\xb8", "x??");
    check_error("\xed\xa0\x80", "???");      /* a surrogate */
    check_error("\xc0\xaf", "??");           /* overlong */
    check_error("\xe0\x9f\xbf", "???");      /* overlong */
    check_error("\xf4\x90\x80\x80", "????"); /* beyond U+10FFFF */
    check_error("\xee\x80\x80\xf4\x8f\xbf\xbf", "\xee\x80\x80\xf4\x8f\xbf\xbf");
    for (size_t i = 0; i < 60000; i += 3)
        memcpy(longer + i, "\xe4\xb8\x96", 3);
    check_error(longer, NULL);
}

static void errnos_become_codes(void **state)
{
    static const struct {
        int r;
        enum ttrpc_code code;
    } all[] = {{0, TTRPC_OK},
               {-EINVAL, TTRPC_INVALID_ARGUMENT},
               {-ENOENT, TTRPC_NOT_FOUND},
               {-EEXIST, TTRPC_ALREADY_EXISTS},
               {-ETIMEDOUT, TTRPC_DEADLINE_EXCEEDED},
               {-ECANCELED, TTRPC_CANCELLED},
               {-ENOSPC, TTRPC_RESOURCE_EXHAUSTED},
               {-EACCES, TTRPC_PERMISSION_DENIED},
               {-EIO, TTRPC_INTERNAL},
               {-ECONNREFUSED, TTRPC_UNAVAILABLE},
               {-ENOSYS, TTRPC_UNIMPLEMENTED},
               {-EBUSY, TTRPC_FAILED_PRECONDITION}};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        assert_int_equal(ttrpc_code_from_errno(all[i].r), all[i].code);
    assert_string_equal(ttrpc_code_name(TTRPC_UNIMPLEMENTED), "Unimplemented");
    assert_string_equal(ttrpc_code_name((enum ttrpc_code)99), "unknown code");
    assert_string_equal(ttrpc_code_name((enum ttrpc_code) - 1), "unknown code");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_are_big_endian),
        cmocka_unit_test(requests_come_back),
        cmocka_unit_test(an_empty_answer_is_a_bare_header),
        cmocka_unit_test(the_limit_is_exact),
        cmocka_unit_test(oversize_is_not_decoded),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(error_texts_are_utf8),
        cmocka_unit_test(errnos_become_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
