/* SPDX-License-Identifier: Apache-2.0 */
/* Initdata: both forms, digests against known values, limits (gzip bombs included), refusals. */
#include "guest/initdata.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/base64.h"
#include "base/str.h"

#define HEAD "version = \"0.1.0\"\nalgorithm = \"%s\"\n"

/* Digests made with coreutils: printf ... | sha256sum, sha384sum, sha512sum. */
static const struct {
    const char *algorithm, *digest;
} digests[] = {
    {"sha256", "d7aef9535c96ed3415fd25a7ec171d0442288f06ba0270a476674b8418b3357a"},
    {"sha384", "c8046a081a95cc27c446ca715a0005a83a947b1a0efb48c6d8f4b84e319cae844601c22323954bac624"
               "f1dd638e8d86f"},
    {"sha512", "9c19662591c937d97f2963ad2d32f21cfe3a03734bfd5b90c3b09b2be0987ef10616da6db3995ad5e6f"
               "657dbce26a1f981f10b6f044b458a257308064ea50d9c"},
};

static void parse_ok(const char *text, size_t len, struct initdata *d)
{
    struct err err = ERR_INIT;

    *d = (struct initdata){0};
    if (initdata_parse(text, len, d, &err) < 0)
        fail_msg("%s", err.text);
}

static void digests_match(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(digests); i++) {
        _cleanup_free_ char *text =
            str_asprintf(HEAD "[data]\n\"aa.toml\" = '''\nx = 1\n'''\n", digests[i].algorithm);
        _cleanup_free_ char *packed = NULL;
        struct initdata raw, unpacked;
        size_t len;

        parse_ok(text, strlen(text), &raw);
        assert_int_equal(raw.algorithm, i);
        assert_string_equal(initdata_algorithm_name(raw.algorithm), digests[i].algorithm);
        assert_string_equal(raw.digest_hex, digests[i].digest);
        assert_int_equal(raw.digest_len * 2, strlen(digests[i].digest));
        assert_string_equal(raw.toml, text);
        assert_int_equal(initdata_encode(text, strlen(text), &packed, &len, NULL), 0);
        assert_int_equal(len, strlen(packed));
        parse_ok(packed, len, &unpacked);
        assert_string_equal(unpacked.toml, text);
        assert_string_equal(unpacked.digest_hex, digests[i].digest);
        assert_string_equal(initdata_get(&unpacked, "aa.toml")->value, "x = 1\n");
        assert_null(initdata_get(&unpacked, "cdh.toml"));
        initdata_done(&raw);
        initdata_done(&unpacked);
    }
}

static void empty_one(void **state)
{
    struct initdata d;

    parse_ok(initdata_empty, strlen(initdata_empty), &d);
    assert_int_equal(d.algorithm, INITDATA_SHA256);
    assert_int_equal(d.n_entries, 1);
    assert_int_equal(initdata_get(&d, "aa.toml")->len, 0);
    assert_string_equal(d.digest_hex,
                        "0a209162d070762caad74cbb48121f194707abb105c2f77950c8ec00b05c37b3");
    initdata_done(&d);
}

/* gzip -9 -n | base64 -w 60, made elsewhere: another encoder, with line breaks. */
static void reads_what_others_write(void **state)
{
    static const char text[] =
        "H4sIAAAAAAACAytLLSrOzM9TsFVQMtAz1DNQ4krMSc8vyizJyAWJFWckGpma\nKXEBAG5sV5wnAAAA\n";
    struct initdata d;

    parse_ok(text, strlen(text), &d);
    assert_string_equal(d.toml, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n");
    assert_int_equal(d.n_entries, 0);
    initdata_done(&d);
}

static void encoding_is_stable(void **state)
{
    _cleanup_free_ char *a = NULL, *b = NULL;
    _cleanup_free_ uint8_t *raw = NULL;
    size_t a_len, b_len, n;

    assert_int_equal(initdata_encode("x = 1\n", 6, &a, &a_len, NULL), 0);
    assert_int_equal(initdata_encode("x = 1\n", 6, &b, &b_len, NULL), 0);
    assert_string_equal(a, b);
    assert_int_equal(base64_decode(a, a_len, 1000, &raw, &n, NULL), 0);
    for (int i = 3; i < 8; i++)
        assert_int_equal(raw[i], 0); /* flags, time */
    assert_int_equal(raw[9], 255);   /* system: unknown */
}

/* gzip of `total` times `byte`, with `behind` bytes of text behind it, as base64. */
static char *pack(size_t total, char byte, const char *behind)
{
    static uint8_t out[1 << 20];
    char chunk[4096];
    z_stream z = {.next_out = out, .avail_out = sizeof(out) - 64};
    size_t n;

    memset(chunk, byte, sizeof(chunk));
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, MAX_WBITS + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
    while (total) {
        z.next_in = (Bytef *)chunk;
        z.avail_in = (uInt)MIN(total, sizeof(chunk));
        total -= z.avail_in;
        assert_int_equal(deflate(&z, Z_NO_FLUSH), Z_OK);
    }
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    n = sizeof(out) - 64 - z.avail_out;
    deflateEnd(&z);
    memcpy(out + n, behind, strlen(behind));
    return base64_encode(out, n + strlen(behind));
}

static void bombs(void **state)
{
    _cleanup_free_ char *exact = pack(INITDATA_TOML_MAX, ' ', "");
    _cleanup_free_ char *over = pack((size_t)INITDATA_TOML_MAX + 1, ' ', "");
    _cleanup_free_ char *bomb = pack((size_t)400 << 20, ' ', "");
    _cleanup_free_ char *text = NULL;
    struct err err = ERR_INIT;
    char *none = NULL;
    size_t len;

    assert_int_equal(initdata_decode(exact, strlen(exact), &text, &len, NULL), 0);
    assert_int_equal(len, INITDATA_TOML_MAX);
    assert_int_equal(initdata_decode(over, strlen(over), &none, &len, &err), -E2BIG);
    assert_non_null(strstr(err.text, "more than 4194304 bytes"));
    assert_int_equal(initdata_decode(bomb, strlen(bomb), &none, &len, NULL), -E2BIG);
    assert_null(none);
}

static void too_long(void **state)
{
    _cleanup_free_ char *text = xcalloc(1, INITDATA_ENCODED_MAX + 2);
    char *none = NULL;
    size_t len;

    memset(text, 'A', INITDATA_ENCODED_MAX + 1);
    assert_int_equal(initdata_decode(text, INITDATA_ENCODED_MAX + 1, &none, &len, NULL), -E2BIG);
    text[0] = '"';
    assert_int_equal(initdata_decode(text, INITDATA_TOML_MAX + 1, &none, &len, NULL), -E2BIG);
    assert_int_equal(initdata_encode(text, INITDATA_TOML_MAX + 1, &none, &len, NULL), -E2BIG);
    assert_null(none);
}

static void damaged(void **state)
{
    _cleanup_free_ char *good = pack(100, 'x', ""), *tail = pack(100, 'x', "tail");
    _cleanup_free_ uint8_t *raw = NULL;
    struct err err = ERR_INIT;
    char *none = NULL;
    size_t len, n;
    unsigned changed = 0;

    assert_int_equal(base64_decode(good, strlen(good), 1000, &raw, &n, NULL), 0);
    for (size_t cut = 1; cut < n; cut++) {
        _cleanup_free_ char *text = base64_encode(raw, cut);

        assert_int_equal(initdata_decode(text, strlen(text), &none, &len, NULL), -EINVAL);
    }
    for (size_t bit = 0; bit < n * 8; bit++) { /* header fields and padding are not protected */
        _cleanup_free_ char *text = NULL, *out = NULL;

        raw[bit / 8] ^= (uint8_t)(1 << bit % 8);
        text = base64_encode(raw, n);
        raw[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (initdata_decode(text, strlen(text), &out, &len, NULL) == 0) {
            assert_int_equal(len, 100);
            assert_int_equal(strspn(out, "x"), 100);
            changed++;
        }
    }
    assert_in_range(changed, 1, 7 * 8); /* flags, time, hints, system; a few bits of padding */
    assert_null(none);
    assert_int_equal(initdata_decode(tail, strlen(tail), &none, &len, &err), -EINVAL);
    assert_string_equal(err.text, "4 bytes behind the gzip data of initdata");
}

static const struct {
    const char *text, *why;
} refusals[] = {
    {"", "initdata is empty"},
    {"aGVsbG8=", "base64, but not of gzip"},
    {"H4sI", "it ends too early"},
    {"H4s", "reading initdata: base64 ends at offset 3"},
    {" \n ", "base64, but not of gzip"},
    {"a = [1]", "reading initdata: TOML line 1: arrays"},
    {"x = \"\"", "initdata has no \"version\""},
    {"version = \"0.1.0\"", "initdata has no \"algorithm\""},
    {"version = \"0.2.0\"\nalgorithm = \"sha256\"", "version \"0.2.0\" is not known"},
    {"version = 1\nalgorithm = \"sha256\"", "line 1: \"version\" must be a string"},
    {"version = \"0.1.0\"\nalgorithm = \"md5\"", "allowed are sha256, sha384, sha512"},
    {"version = \"0.1.0\"\nalgorithm = \"SHA256\"", "allowed are sha256, sha384, sha512"},
    {"version = \"0.1.0\\u0000\"\nalgorithm = \"sha256\"", "must be a string"},
    {"version = \"0.1.0\"\nalgorithm = \"sha256\"\ndata = 'x'",
     "line 3: \"data\" must be a [table]"},
    {"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\na = 1",
     "line 4: entries of [data] must be strings"},
};

static void refused(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        struct err err = ERR_INIT;
        struct initdata d = {0};
        int r = initdata_parse(refusals[i].text, strlen(refusals[i].text), &d, &err);

        if (r != -EINVAL || d.toml || !strstr(err.text, refusals[i].why))
            fail_msg("'%s' gave %d, '%s'", refusals[i].text, r, err.text);
    }
}

static void unknown_keys_and_many_entries(void **state)
{
    _cleanup_free_ char *text =
        str_asprintf("extra = true\n" HEAD "[more]\nx = 1\n[data]\n", "sha256");
    struct err err = ERR_INIT;
    struct initdata d;

    parse_ok(text, strlen(text), &d);
    initdata_done(&d);
    for (int i = 0; i <= INITDATA_ENTRIES_MAX; i++) {
        char *more = str_asprintf("%sk%d = ''\n", text, i);

        free(text);
        text = more;
    }
    assert_int_equal(initdata_parse(text, strlen(text), &d, &err), -E2BIG);
    assert_non_null(strstr(err.text, "65 entries in [data]; at most 64"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digests_match),
        cmocka_unit_test(empty_one),
        cmocka_unit_test(reads_what_others_write),
        cmocka_unit_test(encoding_is_stable),
        cmocka_unit_test(bombs),
        cmocka_unit_test(too_long),
        cmocka_unit_test(damaged),
        cmocka_unit_test(refused),
        cmocka_unit_test(unknown_keys_and_many_entries),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
