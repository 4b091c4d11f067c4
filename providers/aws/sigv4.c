/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signature Version 4, by OpenSSL's SHA-256 and HMAC.
 *
 * Model: a request becomes a *canonical request* (method, path, query, headers, hash of the body,
 * each in one spelling), its hash goes with date and scope into the *string to sign*, and a key
 * derived from the secret, the day, the region and the service signs that. Both sides do the same,
 * so each step has one right answer, and the vectors check each step.
 *
 * Spelling: path and query are percent-encoded but for the unreserved characters; query parameters
 * are sorted by name, then value; header names are lower case and sorted, values trimmed with inner
 * blanks merged, values of one name joined by commas in their order. All headers given are signed:
 * the caller gives those that no proxy alters.
 *
 * Inputs are ours, not from outside, so memory is not bounded here. OpenSSL's hashes fail only
 * when the library is broken or memory is out; both end the process, as xcalloc does.
 */
#include "providers/aws/sigv4.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <time.h>

#include "base/str.h"

#define ALGORITHM "AWS4-HMAC-SHA256"
#define DAY_LEN 8 /* of a date: "20150830" */
#define HASH_LEN 32

struct item {
    char *name, *value;
    size_t order; /* where it stood: qsort is not stable */
};

void sigv4_date(int64_t real_ms, char ret[SIGV4_DATE_SIZE])
{
    time_t seconds = (time_t)(real_ms / 1000);
    struct tm tm;

    gmtime_r(&seconds, &tm);
    strftime(ret, SIGV4_DATE_SIZE, "%Y%m%dT%H%M%SZ", &tm);
}

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void hash_hex(const void *data, size_t len, char ret[2 * HASH_LEN + 1])
{
    unsigned char hash[HASH_LEN];

    must(EVP_Digest(data, len, hash, NULL, EVP_sha256(), NULL) == 1);
    str_hex(hash, sizeof(hash), ret);
}

void sigv4_payload_hash(const void *body, size_t len, char ret[65])
{
    hash_hex(body, len, ret);
}

static void hmac(const void *key, size_t key_len, const void *data, size_t len,
                 unsigned char ret[HASH_LEN])
{
    must(HMAC(EVP_sha256(), key, (int)key_len, data, len, ret, NULL) != NULL);
}

static bool unreserved(unsigned char c)
{
    return isascii(c) && (isalnum(c) || strchr("-._~", c));
}

/* keep: characters that stay besides the unreserved ones; '%' there keeps what is encoded. */
static void add_encoded(struct buf *out, const char *s, size_t len, const char *keep)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];

        if (unreserved(c) || (c && strchr(keep, c)))
            buf_add(out, &s[i], 1);
        else
            buf_addf(out, "%%%02X", c);
    }
}

/* Drops the last segment of "/a/b/": "/a/". */
static void path_up(struct buf *out)
{
    if (out->len > 1)
        out->len--;
    while (out->len > 0 && out->data[out->len - 1] != '/')
        out->len--;
    if (out->len == 0)
        buf_adds(out, "/");
}

/* RFC 3986 5.2.4, and no empty segments. */
static void path_normalize(const char *path, struct buf *out)
{
    buf_adds(out, "/");
    while (*path) {
        size_t len;

        path += strspn(path, "/");
        len = strcspn(path, "/");
        if (len == 2 && memcmp(path, "..", 2) == 0) {
            path_up(out);
        } else if (len > 0 && !(len == 1 && *path == '.')) {
            buf_add(out, path, len);
            if (path[len] == '/')
                buf_adds(out, "/");
        }
        path += len;
    }
}

static void add_path(const struct sigv4 *s, struct buf *out)
{
    _cleanup_(buf_done) struct buf path = BUF_INIT(0);

    if (s->keep_path)
        buf_adds(&path, s->path);
    else
        path_normalize(s->path, &path);
    add_encoded(out, path.data, path.len, "/");
    buf_adds(out, "\n");
}

static int item_compare(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int r = strcmp(x->name, y->name);

    return r ? r : strcmp(x->value, y->value);
}

/* Values of one header keep their order. */
static int header_compare(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int r = strcmp(x->name, y->name);

    return r ? r : (x->order > y->order) - (x->order < y->order);
}

static void items_free(struct item *items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(items[i].name);
        free(items[i].value);
    }
    free(items);
}

static char *encoded(const char *s, size_t len)
{
    _cleanup_(buf_done) struct buf out = BUF_INIT(0);

    add_encoded(&out, s, len, "%");
    buf_adds(&out, "");
    return buf_steal(&out);
}

static void add_query(const char *query, struct buf *out)
{
    struct item *items = xcalloc(query ? strlen(query) + 1 : 1, sizeof(*items));
    size_t n = 0;

    for (const char *p = query ? query : ""; *p; n++) {
        size_t len = strcspn(p, "&"), name = MIN(strcspn(p, "="), len);

        items[n].name = encoded(p, name);
        items[n].value = encoded(p + name + (name < len), len - name - (name < len));
        p += len + (p[len] == '&');
    }
    qsort(items, n, sizeof(*items), item_compare);
    for (size_t i = 0; i < n; i++)
        buf_addf(out, "%s%s=%s", i ? "&" : "", items[i].name, items[i].value);
    buf_adds(out, "\n");
    items_free(items, n);
}

/* Trimmed, runs of blanks as one. */
static char *header_value(const char *value)
{
    _cleanup_(buf_done) struct buf out = BUF_INIT(0);

    for (bool first = true;; first = false) {
        size_t len;

        value += strspn(value, " \t\r\n");
        len = strcspn(value, " \t\r\n");
        if (len == 0)
            break;
        buf_adds(&out, first ? "" : " ");
        buf_add(&out, value, len);
        value += len;
    }
    buf_adds(&out, "");
    return buf_steal(&out);
}

static struct item header_item(const char *line, size_t order)
{
    size_t len = strcspn(line, ":");
    struct item item = {.name = xcalloc(1, len + 1), .order = order};

    for (size_t i = 0; i < len; i++)
        item.name[i] = (char)tolower((unsigned char)line[i]);
    item.value = header_value(line + len + (line[len] == ':'));
    return item;
}

static void add_headers(const char *const *headers, struct buf *out, struct buf *ret_signed)
{
    struct item *items;
    size_t n = 0;

    while (headers[n])
        n++;
    items = xcalloc(n + 1, sizeof(*items));
    for (size_t i = 0; i < n; i++)
        items[i] = header_item(headers[i], i);
    qsort(items, n, sizeof(*items), header_compare);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && str_eq(items[i].name, items[i - 1].name)) {
            buf_addf(out, ",%s", items[i].value);
            continue;
        }
        buf_addf(out, "%s%s:%s", i ? "\n" : "", items[i].name, items[i].value);
        buf_addf(ret_signed, "%s%s", i ? ";" : "", items[i].name);
    }
    buf_adds(out, "\n\n");
    items_free(items, n);
}

void sigv4_canonical(const struct sigv4 *s, struct buf *ret, struct buf *ret_signed)
{
    char hash[2 * HASH_LEN + 1];

    buf_addf(ret, "%s\n", s->method);
    add_path(s, ret);
    add_query(s->query, ret);
    add_headers(s->headers, ret, ret_signed);
    hash_hex(s->body ? s->body : "", s->body_len, hash);
    buf_addf(ret, "%s\n%s", ret_signed->data, hash);
    must(!ret->failed && !ret_signed->failed);
}

static void add_scope(const struct sigv4 *s, struct buf *out)
{
    buf_addf(out, "%.*s/%s/%s/aws4_request", DAY_LEN, s->date, s->region, s->service);
}

void sigv4_to_sign(const struct sigv4 *s, const struct buf *canonical, struct buf *ret)
{
    char hash[2 * HASH_LEN + 1];

    hash_hex(canonical->data, canonical->len, hash);
    buf_addf(ret, ALGORITHM "\n%s\n", s->date);
    add_scope(s, ret);
    buf_addf(ret, "\n%s", hash);
    must(!ret->failed);
}

void sigv4_signature(const struct sigv4 *s, const struct buf *to_sign, char ret[65])
{
    _cleanup_(buf_done_secret) struct buf secret = BUF_INIT(0);
    unsigned char key[HASH_LEN];

    buf_addf(&secret, "AWS4%s", s->secret);
    must(!secret.failed);
    hmac(secret.data, secret.len, s->date, DAY_LEN, key);
    hmac(key, sizeof(key), s->region, strlen(s->region), key);
    hmac(key, sizeof(key), s->service, strlen(s->service), key);
    hmac(key, sizeof(key), "aws4_request", strlen("aws4_request"), key);
    hmac(key, sizeof(key), to_sign->data, to_sign->len, key);
    str_hex(key, sizeof(key), ret);
    secret_wipe(key, sizeof(key));
}

char *sigv4_authorization(const struct sigv4 *s)
{
    _cleanup_(buf_done) struct buf canonical = BUF_INIT(0), names = BUF_INIT(0),
                                   to_sign = BUF_INIT(0), line = BUF_INIT(0);
    char signature[2 * HASH_LEN + 1];

    sigv4_canonical(s, &canonical, &names);
    sigv4_to_sign(s, &canonical, &to_sign);
    sigv4_signature(s, &to_sign, signature);
    buf_addf(&line, "Authorization: " ALGORITHM " Credential=%s/", s->key_id);
    add_scope(s, &line);
    buf_addf(&line, ", SignedHeaders=%s, Signature=%s", names.data, signature);
    must(!line.failed);
    return buf_steal(&line);
}
