/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A document is written straight into one buffer, file by file, by rules that depend on nothing but
 * the input: same files, same bytes.
 *
 * A content is a literal block where that carries it exactly (this is what people and stock
 * readers know), with the header that YAML needs for it:
 *
 *     |     ends with one newline         |-   ends without one        |+   ends with several
 *     |2    begins with a blank or an empty line (the indentation cannot be guessed from it)
 *
 * What a literal block would change (CR and the other line breaks of YAML, control characters,
 * byte order marks, text that is nothing but white space) becomes a double-quoted scalar of one
 * line with escapes. NUL and broken UTF-8 are no text, and are refused.
 *
 * Sizes: the whole document is built and then measured against the provider's limit, because only
 * then can the error name the true sizes of the parts as they stand in the document.
 */
#include "guest/userdata.h"

#include <errno.h>

#include "base/buf.h"
#include "base/str.h"
#include "guest/utf8.h"

#define INDENT "      "
#define PARTS_NAMED 3

/* How a content is to be written. */
struct shape {
    bool literal;
    bool blank_only; /* nothing but blanks and newlines */
};

/* Characters that come out of a literal block as they went in. */
static bool is_literal_char(uint32_t c)
{
    if (c == '\n' || c == '\t' || (c >= 0x20 && c <= 0x7e))
        return true;
    if (c < 0xa0 || c == 0x2028 || c == 0x2029 || c == 0xfeff)
        return false;
    return c <= 0xfffd || c >= 0x10000;
}

static int examine(const struct userdata_file *f, struct shape *ret, struct err *err)
{
    *ret = (struct shape){.literal = true, .blank_only = true};
    for (size_t i = 0; i < f->len;) {
        uint32_t c;
        int n = utf8_next(f->content + i, f->len - i, &c);

        if (n < 0)
            return err_set(err, -EINVAL, "user data: %s is not UTF-8 text (offset %zu)", f->path,
                           i);
        if (c == 0)
            return err_set(err, -EINVAL, "user data: %s holds a NUL character (offset %zu)",
                           f->path, i);
        ret->literal &= is_literal_char(c);
        ret->blank_only &= c == ' ' || c == '\t' || c == '\n';
        i += (size_t)n;
    }
    return 0;
}

static void add_escaped_char(struct buf *out, uint32_t c)
{
    if (c == '"' || c == '\\')
        buf_addf(out, "\\%c", (char)c);
    else if (c == '\n' || c == '\t' || c == '\r')
        buf_adds(out, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r");
    else if (c >= 0x20 && c <= 0x7e)
        buf_addf(out, "%c", (char)c);
    else if (c <= 0xff)
        buf_addf(out, "\\x%02X", c);
    else if (c <= 0xffff)
        buf_addf(out, "\\u%04X", c);
    else
        buf_addf(out, "\\U%08X", c);
}

/* The content is known to be UTF-8. */
static void add_quoted(struct buf *out, const struct userdata_file *f)
{
    uint32_t c;

    buf_adds(out, " \"");
    for (size_t i = 0; i < f->len;) {
        i += (size_t)utf8_next(f->content + i, f->len - i, &c);
        add_escaped_char(out, c);
    }
    buf_adds(out, "\"\n");
}

static void add_literal(struct buf *out, const struct userdata_file *f)
{
    const char *p = f->content, *end = p + f->len;
    bool guessable = *p != ' ' && *p != '\t' && *p != '\n';
    const char *chomp = end[-1] != '\n' ? "-" : f->len > 1 && end[-2] == '\n' ? "+" : "";

    buf_addf(out, " |%s%s\n", guessable ? "" : "2", chomp);
    while (p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t n = nl ? (size_t)(nl - p) : (size_t)(end - p);

        if (n)
            buf_adds(out, INDENT);
        buf_add(out, p, n);
        buf_adds(out, "\n");
        p += n + 1;
    }
}

static int add_file(struct buf *out, const struct userdata_file *f, struct err *err)
{
    struct shape shape;
    int r;

    buf_addf(out, "  - path: %s\n", f->path);
    if (!f->content)
        return 0;
    r = examine(f, &shape, err);
    if (r < 0)
        return r;
    buf_adds(out, "    content:");
    if (shape.literal && !shape.blank_only)
        add_literal(out, f);
    else
        add_quoted(out, f);
    return 0;
}

static bool is_path_char(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c && strchr("/._-", c));
}

/* Plain YAML scalars, and nothing that leaves the directory it names. */
static bool path_ok(const char *path)
{
    if (str_empty(path) || path[0] != '/' || strlen(path) > USERDATA_PATH_MAX)
        return false;
    for (const char *p = path; *p; p++) {
        size_t n;

        if (!is_path_char(*p))
            return false;
        n = *p == '/' ? strcspn(p + 1, "/") : SIZE_MAX;
        if (n == 0 || (n == 1 && p[1] == '.') || (n == 2 && p[1] == '.' && p[2] == '.'))
            return false;
    }
    return true;
}

static int check_paths(const struct userdata_file *files, size_t n, struct err *err)
{
    if (n > USERDATA_FILES_MAX)
        return err_set(err, -E2BIG, "user data: %zu files; at most %d are allowed", n,
                       USERDATA_FILES_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!path_ok(files[i].path))
            return err_set(err, -EINVAL,
                           "user data: path \"%.64s\" is not allowed; an absolute path of letters, "
                           "digits, '.', '_', '-' is, at most %d bytes",
                           files[i].path ? files[i].path : "", USERDATA_PATH_MAX);
        for (size_t k = 0; k < i; k++)
            if (str_eq(files[i].path, files[k].path))
                return err_set(err, -EINVAL, "user data: path %s stands there twice",
                               files[i].path);
    }
    return 0;
}

/* The size of each file's part of the document, for the error alone. */
struct part {
    const char *path;
    size_t size;
};

static int larger_first(const void *a, const void *b)
{
    const struct part *x = a, *y = b;

    if (x->size != y->size)
        return x->size < y->size ? 1 : -1;
    return strcmp(x->path, y->path);
}

static int too_big(size_t total, size_t max, struct part *parts, size_t n, struct err *err)
{
    _cleanup_(buf_done) struct buf names = BUF_INIT(0);

    qsort(parts, n, sizeof(*parts), larger_first);
    for (size_t i = 0; i < MIN(n, (size_t)PARTS_NAMED); i++)
        buf_addf(&names, "%s%s %zu", i ? ", " : "", parts[i].path, parts[i].size);
    return err_set(err, -E2BIG,
                   "user data takes %zu bytes, %zu more than the limit of %zu; largest parts: %s",
                   total, total - max, max, names.data ? names.data : "none");
}

static int build(const struct userdata_file *files, size_t n, struct part *parts, struct buf *out,
                 struct err *err)
{
    buf_addf(out, "#cloud-config\n\nwrite_files:%s\n", n ? "" : " []");
    for (size_t i = 0; i < n; i++) {
        size_t before = out->len;
        int r = add_file(out, &files[i], err);

        if (r < 0)
            return r;
        parts[i] = (struct part){.path = files[i].path, .size = out->len - before};
    }
    return out->failed ? err_set(err, -E2BIG, "user data takes more than %u bytes", BUF_MAX_DEFAULT)
                       : 0;
}

int userdata_build(const struct userdata_file *files, size_t n, size_t max, char **ret,
                   size_t *ret_len, struct err *err)
{
    _cleanup_(buf_done_secret) struct buf out = BUF_INIT(0);
    struct part parts[USERDATA_FILES_MAX];
    size_t limit = max && max < USERDATA_MAX ? max : USERDATA_MAX;
    int r;

    r = check_paths(files, n, err);
    if (r < 0)
        return r;
    r = build(files, n, parts, &out, err);
    if (r < 0)
        return r;
    if (out.len > limit)
        return too_big(out.len, limit, parts, n, err);
    *ret_len = out.len;
    *ret = buf_steal(&out);
    return *ret ? 0 : err_set(err, -ENOMEM, "no memory for user data");
}
