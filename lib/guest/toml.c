/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One pass over text that is known to be UTF-8. The parser holds a cursor, the line it is on, and
 * the table that lines go to; each line is a comment, a [header], or `key = value`, and each of
 * them must end where the line ends (multi-line strings count their own newlines).
 *
 * Invariants: the cursor never passes the end (peek gives 0 there, and a NUL in the text is refused
 * wherever it stands, so 0 always stops); a key is in a table at most once; at most
 * TOML_ENTRIES_MAX entries exist, so the linear search for duplicates stays cheap.
 *
 * Where TOML leaves a choice we take the portable one: CRLF inside a multi-line string becomes LF.
 * What initdata does not need is refused rather than half understood, because
 * the text is measured and then acted upon: two readers must not see two things in it. Dotted keys
 * get a hint of their own, since `aa.toml = ...` without quotes is the mistake that people make.
 *
 * Errors name the line and what is allowed, and never quote a value: values may be policies.
 */
#include "guest/toml.h"

#include <errno.h>
#include <stdarg.h>

#include "base/buf.h"
#include "base/str.h"
#include "guest/utf8.h"

#define ALLOWED "strings, integers, true and false are allowed here"

struct parser {
    const char *p, *end;
    unsigned line;
    struct toml *root, *table;
    size_t entries;
    struct err *err;
};

#define fail(ps, ...) err_set_at((ps), -EINVAL, __VA_ARGS__)

static int err_set_at(struct parser *ps, int code, const char *fmt, ...) _printf_(3, 4);

static int err_set_at(struct parser *ps, int code, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(ps->err, code, "TOML line %u: %s", ps->line, text);
}

static char peek_at(const struct parser *ps, size_t i)
{
    return (size_t)(ps->end - ps->p) > i ? ps->p[i] : 0;
}

static char peek(const struct parser *ps)
{
    return peek_at(ps, 0);
}

static bool at_end(const struct parser *ps)
{
    return ps->p == ps->end;
}

static bool looking_at(const struct parser *ps, const char *what)
{
    size_t n = strlen(what);

    return (size_t)(ps->end - ps->p) >= n && memcmp(ps->p, what, n) == 0;
}

static void skip_blanks(struct parser *ps)
{
    while (peek(ps) == ' ' || peek(ps) == '\t')
        ps->p++;
}

/* Length of the newline at the cursor: 0, 1 (LF) or 2 (CRLF). */
static size_t newline_len(const struct parser *ps)
{
    if (peek(ps) == '\n')
        return 1;
    return peek(ps) == '\r' && peek_at(ps, 1) == '\n' ? 2 : 0;
}

static bool take_newline(struct parser *ps)
{
    size_t n = newline_len(ps);

    ps->p += n;
    ps->line += n > 0;
    return n > 0;
}

/* What TOML calls a control character: may stand nowhere as itself (newlines apart). */
static bool is_control(char c)
{
    return ((unsigned char)c < 0x20 && c != '\t') || c == 0x7f;
}

static int skip_comment(struct parser *ps)
{
    while (!at_end(ps) && newline_len(ps) == 0) {
        if (is_control(*ps->p))
            return fail(ps, "control character 0x%02x in a comment", (unsigned)*ps->p);
        ps->p++;
    }
    return 0;
}

/* Blanks, perhaps a comment, then a newline or the end. */
static int end_line(struct parser *ps, const char *behind)
{
    int r;

    skip_blanks(ps);
    if (peek(ps) == '#') {
        r = skip_comment(ps);
        if (r < 0)
            return r;
    }
    if (!at_end(ps) && !take_newline(ps))
        return fail(ps, "unexpected text behind %s; only a comment may follow on its line", behind);
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The digits of \uXXXX or \UXXXXXXXX; the cursor is behind the letter. */
static int unicode_escape(struct parser *ps, int digits, struct buf *out)
{
    char utf8[4];
    uint32_t c = 0;
    size_t n;

    for (int i = 0; i < digits; i++) {
        int v = hex_value(peek(ps));

        if (v < 0)
            return fail(ps, "\\u takes 4 and \\U takes 8 hexadecimal digits");
        c = c << 4 | (uint32_t)v;
        ps->p++;
    }
    n = utf8_put(c, utf8);
    if (n == 0)
        return fail(ps, "escape of U+%04X, which is not a character", c);
    return buf_add(out, utf8, n);
}

/* A backslash at the end of a line: it, the newline and all white space behind it vanish. */
static bool line_continues(struct parser *ps)
{
    struct parser at = *ps;

    skip_blanks(&at);
    if (!take_newline(&at))
        return false;
    do
        skip_blanks(&at);
    while (take_newline(&at));
    ps->p = at.p;
    ps->line = at.line;
    return true;
}

/* The cursor is behind the backslash. */
static int escape(struct parser *ps, bool multi, struct buf *out)
{
    static const char from[] = "btnfr\"\\", to[] = "\b\t\n\f\r\"\\";
    char c = peek(ps);
    const char *at = c ? strchr(from, c) : NULL;

    if (at) {
        ps->p++;
        return buf_add(out, &to[at - from], 1);
    }
    if (c == 'u' || c == 'U') {
        ps->p++;
        return unicode_escape(ps, c == 'u' ? 4 : 8, out);
    }
    if (multi && line_continues(ps))
        return 0;
    return fail(ps,
                "unknown escape; allowed are \\b \\t \\n \\f \\r \\\" \\\\ \\uXXXX \\UXXXXXXXX");
}

/* Characters up to the closing quote. literal: no escapes. The cursor is behind the opening one. */
static int single_line_string(struct parser *ps, char quote, struct buf *out)
{
    for (;;) {
        char c = peek(ps);
        int r;

        if (at_end(ps) || c == '\n' || c == '\r')
            return fail(ps, "string without its closing quote on the same line");
        if (is_control(c))
            return fail(ps, "control character 0x%02x in a string; write it as an escape",
                        (unsigned)c);
        ps->p++;
        if (c == quote)
            return 0;
        r = c == '\\' && quote == '"' ? escape(ps, false, out) : buf_add(out, &c, 1);
        if (r < 0)
            return r;
    }
}

/* The closing delimiter of a multi-line string, with up to two quotes of text before it. */
static int close_multi(struct parser *ps, char quote, struct buf *out, bool *ret_closed)
{
    size_t n = 0;

    while (peek_at(ps, n) == quote && n < 5)
        n++;
    *ret_closed = n >= 3;
    ps->p += n;
    if (n >= 3)
        n -= 3;
    for (size_t i = 0; i < n; i++) {
        int r = buf_add(out, &quote, 1);

        if (r < 0)
            return r;
    }
    return 0;
}

/* One character, newline or escape inside a multi-line string. */
static int multi_line_piece(struct parser *ps, char quote, struct buf *out)
{
    char c = peek(ps);

    if (take_newline(ps))
        return buf_add(out, "\n", 1);
    if (is_control(c))
        return fail(ps, "control character 0x%02x in a string", (unsigned)c);
    ps->p++;
    if (c == '\\' && quote == '"')
        return escape(ps, true, out);
    return buf_add(out, &c, 1);
}

/* The cursor is behind the opening delimiter. */
static int multi_line_string(struct parser *ps, char quote, struct buf *out)
{
    unsigned first = ps->line;
    bool closed = false;

    take_newline(ps);
    while (!closed) {
        int r;

        if (at_end(ps)) {
            ps->line = first;
            return fail(ps, "the multi-line string that begins here is never closed");
        }
        r = peek(ps) == quote ? close_multi(ps, quote, out, &closed)
                              : multi_line_piece(ps, quote, out);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Any of the four kinds; the cursor is on the quote. */
static int parse_string(struct parser *ps, bool may_be_multi, struct buf *out)
{
    char quote = *ps->p, three[] = {quote, quote, quote, 0};
    int r;

    if (looking_at(ps, three)) {
        if (!may_be_multi)
            return fail(ps, "a key cannot be a multi-line string");
        ps->p += 3;
        r = multi_line_string(ps, quote, out);
    } else {
        ps->p++;
        r = single_line_string(ps, quote, out);
    }
    if (r < 0)
        return r;
    return buf_add(out, "", 0);
}

static bool is_bare(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

static int check_key(struct parser *ps, const struct buf *key)
{
    if (key->len > TOML_KEY_MAX)
        return err_set_at(ps, -E2BIG, "key of %zu bytes; at most %d are allowed", key->len,
                          TOML_KEY_MAX);
    if (memchr(key->data, 0, key->len))
        return fail(ps, "key with a NUL character inside");
    return 0;
}

/* One key, bare or quoted; *ret is owned. Blanks behind it are skipped, dots refused. */
static int parse_key(struct parser *ps, char **ret)
{
    _cleanup_(buf_done) struct buf key = BUF_INIT((size_t)(ps->end - ps->p) + 1);
    const char *start = ps->p;
    int r;

    if (peek(ps) == '"' || peek(ps) == '\'') {
        r = parse_string(ps, false, &key);
    } else {
        while (is_bare(peek(ps)))
            ps->p++;
        if (ps->p == start)
            return fail(ps, "a key is expected: letters, digits, '_', '-', or a quoted string");
        r = buf_add(&key, start, (size_t)(ps->p - start));
    }
    if (r < 0)
        return r;
    r = check_key(ps, &key);
    if (r < 0)
        return r;
    skip_blanks(ps);
    if (peek(ps) == '.')
        return fail(ps, "dotted keys are not allowed here; a name with a dot is written in quotes, "
                        "as in \"aa.toml\"");
    *ret = buf_steal(&key);
    return 0;
}

const struct toml_entry *toml_get(const struct toml *t, const char *key)
{
    for (size_t i = 0; i < t->n; i++)
        if (str_eq(t->entries[i].key, key))
            return &t->entries[i];
    return NULL;
}

/* Takes *key. ret points into the table: valid until the next entry is added to it. */
static int add_entry(struct parser *ps, struct toml *table, char **key, struct toml_entry **ret)
{
    const struct toml_entry *old = toml_get(table, *key);
    struct toml_entry *e;

    if (old)
        return fail(ps, "key defined a second time; it stands in line %u already", old->line);
    if (ps->entries == TOML_ENTRIES_MAX)
        return err_set_at(ps, -E2BIG, "more than %d keys and tables", TOML_ENTRIES_MAX);
    ps->entries++;
    table->entries = xrealloc(table->entries, (table->n + 1) * sizeof(*e));
    e = &table->entries[table->n++];
    *e = (struct toml_entry){.key = TAKE_PTR(*key), .line = ps->line};
    *ret = e;
    return 0;
}

static int digit_value(char c, int base)
{
    int v = hex_value(c);

    return v < base ? v : -1;
}

/* Digits with single underscores between them; the cursor ends behind the last. */
static int parse_digits(struct parser *ps, int base, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;
    bool digit_before = false;

    for (;; ps->p++) {
        int v = digit_value(peek(ps), base);

        if (v >= 0) {
            if (value > (max - (uint64_t)v) / (uint64_t)base)
                return fail(ps, "integer does not fit into 64 bits");
            value = value * (uint64_t)base + (uint64_t)v;
            digit_before = true;
        } else if (peek(ps) == '_' && digit_before && digit_value(peek_at(ps, 1), base) >= 0) {
            digit_before = false;
        } else {
            break;
        }
    }
    if (!digit_before)
        return fail(ps, "this value is not understood; " ALLOWED);
    *ret = value;
    return 0;
}

static bool is_value_end(const struct parser *ps)
{
    return at_end(ps) || peek(ps) == ' ' || peek(ps) == '\t' || peek(ps) == '#' ||
           newline_len(ps) > 0;
}

/* 0x, 0o, 0b; the cursor is on the 0. */
static int parse_prefixed(struct parser *ps, int base, int64_t *ret)
{
    uint64_t value;
    int r;

    ps->p += 2;
    r = parse_digits(ps, base, INT64_MAX, &value);
    if (r < 0)
        return r;
    *ret = (int64_t)value;
    return 0;
}

static int parse_decimal(struct parser *ps, int64_t *ret)
{
    bool negative = peek(ps) == '-';
    uint64_t value;
    int r;

    if (negative || peek(ps) == '+')
        ps->p++;
    if (peek(ps) == '0' && (hex_value(peek_at(ps, 1)) >= 0 || peek_at(ps, 1) == '_'))
        return fail(ps, "an integer cannot begin with 0");
    r = parse_digits(ps, 10, (uint64_t)INT64_MAX + negative, &value);
    if (r < 0)
        return r;
    *ret = negative ? (int64_t)(0 - value) : (int64_t)value;
    return 0;
}

static int parse_integer(struct parser *ps, int64_t *ret)
{
    int r;

    if (looking_at(ps, "0x"))
        r = parse_prefixed(ps, 16, ret);
    else if (looking_at(ps, "0o"))
        r = parse_prefixed(ps, 8, ret);
    else if (looking_at(ps, "0b"))
        r = parse_prefixed(ps, 2, ret);
    else
        r = parse_decimal(ps, ret);
    if (r < 0)
        return r;
    if (!is_value_end(ps))
        return fail(ps, "floats and dates are not allowed here; " ALLOWED);
    return 0;
}

static int parse_word(struct parser *ps, struct toml_entry *e)
{
    bool yes = looking_at(ps, "true");

    if (!yes && !looking_at(ps, "false"))
        return fail(ps, "this value is not understood; " ALLOWED);
    ps->p += yes ? 4 : 5;
    if (!is_value_end(ps))
        return fail(ps, "this value is not understood; " ALLOWED);
    e->type = TOML_BOOLEAN;
    e->integer = yes;
    return 0;
}

static int parse_value(struct parser *ps, struct toml_entry *e)
{
    char c = peek(ps);

    if (c == '"' || c == '\'') {
        _cleanup_(buf_done) struct buf text = BUF_INIT((size_t)(ps->end - ps->p) + 1);
        int r = parse_string(ps, true, &text);

        if (r < 0)
            return r;
        e->type = TOML_STRING;
        e->len = text.len;
        e->string = buf_steal(&text);
        return 0;
    }
    if ((c >= '0' && c <= '9') || c == '+' || c == '-') {
        e->type = TOML_INTEGER;
        return parse_integer(ps, &e->integer);
    }
    if (c == '[')
        return fail(ps, "arrays are not allowed here; " ALLOWED);
    if (c == '{')
        return fail(ps, "inline tables are not allowed here; write a [table]");
    return parse_word(ps, e);
}

/* key = value. The value goes into the entry only when it is whole. */
static int parse_pair(struct parser *ps)
{
    struct toml_entry value = {.type = TOML_STRING}, *e;
    _cleanup_free_ char *key = NULL;
    int r;

    r = parse_key(ps, &key);
    if (r < 0)
        return r;
    if (peek(ps) != '=')
        return fail(ps, "'=' is expected behind the key");
    r = add_entry(ps, ps->table, &key, &e);
    if (r < 0)
        return r;
    ps->p++;
    skip_blanks(ps);
    r = parse_value(ps, &value);
    if (r < 0)
        return r;
    value.key = e->key;
    value.line = e->line;
    *e = value;
    return end_line(ps, "a value");
}

/* [name] */
static int parse_header(struct parser *ps)
{
    _cleanup_free_ char *key = NULL;
    struct toml_entry *e;
    int r;

    ps->p++;
    if (peek(ps) == '[')
        return fail(ps, "arrays of tables are not allowed here; write one [table]");
    skip_blanks(ps);
    r = parse_key(ps, &key);
    if (r < 0)
        return r;
    if (peek(ps) != ']')
        return fail(ps, "']' is expected behind the table's name");
    r = add_entry(ps, ps->root, &key, &e);
    if (r < 0)
        return r;
    ps->p++;
    e->type = TOML_TABLE;
    e->table = xcalloc(1, sizeof(*e->table));
    ps->table = e->table;
    return end_line(ps, "a table's name");
}

static int parse_line(struct parser *ps)
{
    skip_blanks(ps);
    if (at_end(ps) || peek(ps) == '#' || newline_len(ps) > 0)
        return end_line(ps, "a comment");
    return peek(ps) == '[' ? parse_header(ps) : parse_pair(ps);
}

void toml_free(struct toml *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        toml_free(t->entries[i].table);
        free(t->entries[i].key);
        free(t->entries[i].string);
    }
    free(t->entries);
    free(t);
}

static int check_utf8(const char *text, size_t len, struct err *err)
{
    unsigned line = 1;
    size_t bad;

    if (utf8_valid(text, len, &bad))
        return 0;
    for (size_t i = 0; i < bad; i++)
        line += text[i] == '\n';
    return err_set(err, -EINVAL, "TOML line %u: not UTF-8 text", line);
}

int toml_parse(const char *text, size_t len, struct toml **ret, struct err *err)
{
    _cleanup_(toml_freep) struct toml *root = NULL;
    struct parser ps = {.p = text, .end = text + len, .line = 1, .err = err};
    int r;

    if (len > TOML_TEXT_MAX)
        return err_set(err, -E2BIG, "TOML of %zu bytes; at most %u are allowed", len,
                       TOML_TEXT_MAX);
    r = check_utf8(text, len, err);
    if (r < 0)
        return r;
    root = xcalloc(1, sizeof(*root));
    ps.root = ps.table = root;
    while (!at_end(&ps)) {
        r = parse_line(&ps);
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(root);
    return 0;
}
