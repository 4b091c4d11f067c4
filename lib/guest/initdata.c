/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Model: initdata is a text that is measured (its digest is bound to the VM's launch) and then
 * obeyed. So the raw TOML text is the value, and everything else is either a way to carry it
 * (base64 of gzip) or something read out of it. The text is never rewritten: a digest over other
 * bytes would be another VM.
 *
 * Telling the forms apart: base64 has no quotes, and initdata without quotes cannot name its
 * version; so a text all of whose characters belong to base64 is base64. What unpacks to something
 * else than one gzip member with nothing behind it is refused, because gzip readers disagree about
 * what follows the first member, and two readers must not see two texts.
 *
 * Limits: both forms come from a pod's annotation, that is from anybody. The base64 text is
 * bounded, and so is what it unpacks to: inflating stops at the first byte over the limit, so a
 * bomb costs INITDATA_TOML_MAX of memory and a few milliseconds.
 *
 * The encoder writes the gzip header itself (no time, no system), so that the same text always
 * gives the same user data, and a repeated create sends the same request.
 *
 * Unknown keys beside version, algorithm and [data] are passed over as the other readers of this
 * format do it; they are measured like everything else.
 */
#include "guest/initdata.h"

#include <errno.h>
#include <openssl/evp.h>
#include <zlib.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/str.h"
#include "guest/toml.h"

#define GZIP_WINDOW (MAX_WBITS + 16) /* zlib: 16 more means a gzip header */
#define CHUNK ((size_t)64 << 10)

const char initdata_empty[] = "algorithm = \"sha256\"\n"
                              "version = \"" INITDATA_VERSION "\"\n"
                              "\n"
                              "[data]\n"
                              "\"aa.toml\" = \"\"\n";

static const char *const algorithm_names[] = {
    [INITDATA_SHA256] = "sha256",
    [INITDATA_SHA384] = "sha384",
    [INITDATA_SHA512] = "sha512",
};

const char *initdata_algorithm_name(enum initdata_algorithm algorithm)
{
    return algorithm_names[algorithm];
}

static bool is_base64_text(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) &&
            (c == 0 || !strchr("+/= \t\r\n", c)))
            return false;
    }
    return true;
}

/* Inflates until the end of the member; ret grows by chunks up to its limit. */
static int inflate_all(z_stream *z, struct buf *out, struct err *err)
{
    for (;;) {
        size_t room = MIN(CHUNK, out->max - out->len);
        int r;

        if (room == 0)
            return err_set(err, -E2BIG, "initdata unpacks to more than %u bytes",
                           INITDATA_TOML_MAX);
        r = buf_reserve(out, room);
        if (r < 0)
            return err_set(err, r, "no memory to unpack initdata");
        z->next_out = (Bytef *)out->data + out->len;
        z->avail_out = (uInt)room;
        r = inflate(z, Z_NO_FLUSH);
        buf_grown(out, room - z->avail_out);
        if (r == Z_STREAM_END)
            return 0;
        if (r == Z_MEM_ERROR)
            return err_set(err, -ENOMEM, "no memory to unpack initdata");
        if (r != Z_OK)
            return err_set(err, -EINVAL, "initdata is not whole gzip: %s",
                           r == Z_BUF_ERROR ? "it ends too early"
                           : z->msg         ? z->msg
                                            : "damaged");
    }
}

static int gunzip(const uint8_t *data, size_t len, char **ret, size_t *ret_len, struct err *err)
{
    /* One byte more than allowed, so that exactly the maximum can be told from too much. */
    _cleanup_(buf_done) struct buf out = BUF_INIT((size_t)INITDATA_TOML_MAX + 1);
    z_stream z = {.next_in = (z_const Bytef *)data, .avail_in = (uInt)len};
    size_t left;
    int r;

    if (len < 2 || data[0] != 0x1f || data[1] != 0x8b)
        return err_set(err, -EINVAL,
                       "initdata is base64, but not of gzip; allowed are TOML text and "
                       "base64(gzip(TOML))");
    if (inflateInit2(&z, GZIP_WINDOW) != Z_OK)
        return err_set(err, -ENOMEM, "no memory to unpack initdata");
    r = inflate_all(&z, &out, err);
    left = z.avail_in;
    inflateEnd(&z);
    if (r < 0)
        return r;
    if (out.len > INITDATA_TOML_MAX)
        return err_set(err, -E2BIG, "initdata unpacks to more than %u bytes", INITDATA_TOML_MAX);
    if (left)
        return err_set(err, -EINVAL, "%zu bytes behind the gzip data of initdata", left);
    *ret_len = out.len;
    *ret = buf_steal(&out);
    return *ret ? 0 : err_set(err, -ENOMEM, "no memory to unpack initdata");
}

static int decode_base64_gzip(const char *text, size_t len, char **ret, size_t *ret_len,
                              struct err *err)
{
    _cleanup_free_ uint8_t *packed = NULL;
    size_t packed_len;
    int r;

    if (len > INITDATA_ENCODED_MAX)
        return err_set(err, -E2BIG, "initdata of %zu bytes of base64; at most %u are allowed", len,
                       INITDATA_ENCODED_MAX);
    r = base64_decode(text, len, INITDATA_ENCODED_MAX, &packed, &packed_len, err);
    if (r < 0)
        return err_wrap(err, r, "reading initdata");
    return gunzip(packed, packed_len, ret, ret_len, err);
}

int initdata_decode(const char *text, size_t len, char **ret, size_t *ret_len, struct err *err)
{
    char *copy;

    if (len == 0)
        return err_set(err, -EINVAL, "initdata is empty");
    if (is_base64_text(text, len))
        return decode_base64_gzip(text, len, ret, ret_len, err);
    if (len > INITDATA_TOML_MAX)
        return err_set(err, -E2BIG, "initdata of %zu bytes of TOML; at most %u are allowed", len,
                       INITDATA_TOML_MAX);
    copy = malloc(len + 1);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory for initdata");
    memcpy(copy, text, len);
    copy[len] = 0;
    *ret = copy;
    *ret_len = len;
    return 0;
}

/* The string behind a top-level key. */
static int get_string(const struct toml *t, const char *key, const char **ret, struct err *err)
{
    const struct toml_entry *e = toml_get(t, key);

    if (!e)
        return err_set(err, -EINVAL, "initdata has no \"%s\"", key);
    if (e->type != TOML_STRING || strlen(e->string) != e->len)
        return err_set(err, -EINVAL, "initdata line %u: \"%s\" must be a string", e->line, key);
    *ret = e->string;
    return 0;
}

static int check_head(const struct toml *t, enum initdata_algorithm *ret, struct err *err)
{
    const char *version = NULL, *algorithm = NULL;
    int r;

    r = get_string(t, "version", &version, err);
    if (r < 0)
        return r;
    if (!str_eq(version, INITDATA_VERSION))
        return err_set(err, -EINVAL, "initdata version \"%.32s\" is not known; allowed is \"%s\"",
                       version, INITDATA_VERSION);
    r = get_string(t, "algorithm", &algorithm, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(algorithm_names); i++) {
        if (str_eq(algorithm, algorithm_names[i])) {
            *ret = (enum initdata_algorithm)i;
            return 0;
        }
    }
    return err_set(err, -EINVAL,
                   "initdata algorithm \"%.32s\" is not known; allowed are sha256, sha384, sha512",
                   algorithm);
}

/* Moves the strings of [data] out of the parsed TOML. */
static int take_entries(const struct toml *t, struct initdata *d, struct err *err)
{
    const struct toml_entry *data = toml_get(t, "data");

    if (!data)
        return 0;
    if (data->type != TOML_TABLE)
        return err_set(err, -EINVAL, "initdata line %u: \"data\" must be a [table]", data->line);
    if (data->table->n > INITDATA_ENTRIES_MAX)
        return err_set(err, -E2BIG, "initdata has %zu entries in [data]; at most %d are allowed",
                       data->table->n, INITDATA_ENTRIES_MAX);
    d->entries = xcalloc(data->table->n, sizeof(*d->entries));
    for (size_t i = 0; i < data->table->n; i++) {
        struct toml_entry *e = &data->table->entries[i];

        if (e->type != TOML_STRING)
            return err_set(err, -EINVAL, "initdata line %u: entries of [data] must be strings",
                           e->line);
        d->entries[d->n_entries++] = (struct initdata_entry){
            .name = TAKE_PTR(e->key), .value = TAKE_PTR(e->string), .len = e->len};
    }
    return 0;
}

static int take_digest(struct initdata *d, struct err *err)
{
    const EVP_MD *md = d->algorithm == INITDATA_SHA256   ? EVP_sha256()
                       : d->algorithm == INITDATA_SHA384 ? EVP_sha384()
                                                         : EVP_sha512();
    unsigned len = 0;

    if (EVP_Digest(d->toml, d->toml_len, d->digest, &len, md, NULL) != 1)
        return err_set(err, -EIO, "OpenSSL does not provide %s",
                       initdata_algorithm_name(d->algorithm));
    d->digest_len = len;
    str_hex(d->digest, len, d->digest_hex);
    return 0;
}

static int read_toml(struct initdata *d, struct err *err)
{
    _cleanup_(toml_freep) struct toml *t = NULL;
    int r;

    r = toml_parse(d->toml, d->toml_len, &t, err);
    if (r < 0)
        return err_wrap(err, r, "reading initdata");
    r = check_head(t, &d->algorithm, err);
    if (r < 0)
        return r;
    r = take_entries(t, d, err);
    return r < 0 ? r : take_digest(d, err);
}

int initdata_parse(const char *text, size_t len, struct initdata *ret, struct err *err)
{
    struct initdata d = {0};
    int r;

    r = initdata_decode(text, len, &d.toml, &d.toml_len, err);
    if (r == 0)
        r = read_toml(&d, err);
    if (r < 0)
        initdata_done(&d);
    else
        *ret = d;
    return r;
}

void initdata_done(struct initdata *d)
{
    for (size_t i = 0; i < d->n_entries; i++) {
        secret_wipe(d->entries[i].value, d->entries[i].len);
        free(d->entries[i].value);
        free(d->entries[i].name);
    }
    free(d->entries);
    if (d->toml)
        secret_wipe(d->toml, d->toml_len);
    free(d->toml);
    *d = (struct initdata){0};
}

const struct initdata_entry *initdata_get(const struct initdata *d, const char *name)
{
    for (size_t i = 0; i < d->n_entries; i++)
        if (str_eq(d->entries[i].name, name))
            return &d->entries[i];
    return NULL;
}

int initdata_encode(const char *toml, size_t len, char **ret, size_t *ret_len, struct err *err)
{
    gz_header header = {.os = 255 /* unknown */};
    z_stream z = {.next_in = (z_const Bytef *)toml, .avail_in = (uInt)len};
    _cleanup_free_ uint8_t *out = NULL;
    size_t bound;
    int r;

    if (len > INITDATA_TOML_MAX)
        return err_set(err, -E2BIG, "initdata of %zu bytes of TOML; at most %u are allowed", len,
                       INITDATA_TOML_MAX);
    if (deflateInit2(&z, Z_BEST_COMPRESSION, Z_DEFLATED, GZIP_WINDOW, 9, Z_DEFAULT_STRATEGY) !=
        Z_OK)
        return err_set(err, -ENOMEM, "no memory to pack initdata");
    deflateSetHeader(&z, &header);
    bound = deflateBound(&z, len);
    out = xcalloc(1, bound);
    z.next_out = out;
    z.avail_out = (uInt)bound;
    r = deflate(&z, Z_FINISH);
    bound -= z.avail_out;
    deflateEnd(&z);
    if (r != Z_STREAM_END)
        return err_set(err, -EIO, "packing initdata: zlib says %d", r);
    *ret = base64_encode(out, bound);
    *ret_len = strlen(*ret);
    return 0;
}
