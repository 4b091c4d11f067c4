/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checked parsers. Each takes the whole string or reports an error; none depends on the locale's
 * idea of digits, blanks or decimal points beyond what C's "C" locale (the only one that we run
 * in) says.
 */
#include "base/str.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>

bool str_eq(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool str_starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_empty(const char *s)
{
    return !s || !*s;
}

int str_to_u64(const char *s, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;
    if (str_empty(s))
        return -EINVAL;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return -EINVAL;
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*s - '0'), &value))
            return -ERANGE;
    }
    if (value > max)
        return -ERANGE;
    *ret = value;
    return 0;
}

int str_to_i64(const char *s, int64_t min, int64_t max, int64_t *ret)
{
    bool negative = s && *s == '-';
    uint64_t magnitude;
    if (!s)
        return -EINVAL;
    int r = str_to_u64(s + (negative || *s == '+'), (uint64_t)INT64_MAX + negative, &magnitude);
    if (r < 0)
        return r;
    int64_t value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    if (value < min || value > max)
        return -ERANGE;
    *ret = value;
    return 0;
}

int str_to_double(const char *s, double *ret)
{
    if (str_empty(s) || strspn(s, "+-.eE0123456789") != strlen(s))
        return -EINVAL;
    char *end;
    double value = strtod(s, &end);
    if (*end || end == s)
        return -EINVAL;
    if (!isfinite(value))
        return -ERANGE;
    *ret = value;
    return 0;
}

static const struct {
    const char *name;
    double ns;
} duration_units[] = {
    /* longer names first where one begins another */
    {"ns", 1},   {"us", 1e3}, {"\u00b5s", 1e3}, {"\u03bcs", 1e3},
    {"ms", 1e6}, {"s", 1e9},  {"m", 60e9},      {"h", 3600e9},
};

static int duration_part(const char **s, double *total)
{
    char number[32];
    size_t digits = strspn(*s, ".0123456789");
    double value;
    if (digits == 0 || digits >= sizeof(number))
        return -EINVAL;
    memcpy(number, *s, digits);
    number[digits] = '\0';
    int r = str_to_double(number, &value);
    if (r < 0)
        return r;
    *s += digits;
    for (size_t i = 0; i < ARRAY_SIZE(duration_units); i++)
        if (str_starts(*s, duration_units[i].name)) {
            *s += strlen(duration_units[i].name);
            *total += value * duration_units[i].ns;
            return 0;
        }
    return -EINVAL; /* a number without a unit */
}

int str_to_duration(const char *s, int64_t *ret_ns)
{
    double total = 0;
    if (str_empty(s))
        return -EINVAL;
    bool negative = *s == '-';
    s += negative || *s == '+';
    if (str_eq(s, "0")) {
        *ret_ns = 0;
        return 0;
    }
    if (!*s)
        return -EINVAL;
    while (*s) {
        int r = duration_part(&s, &total);
        if (r < 0)
            return r;
    }
    if (total >= 9.2e18)
        return -ERANGE;
    int64_t ns = (int64_t)(total + 0.5);
    *ret_ns = negative ? -ns : ns;
    return 0;
}

void str_from_duration(int64_t ns, char *out, size_t size)
{
    const char *sign = ns < 0 ? "-" : "";
    uint64_t n = ns < 0 ? 0 - (uint64_t)ns : (uint64_t)ns;
    if (n < 1000000000 && n > 0) {
        snprintf(out, size, "%s%.10g%s", sign, n >= 1000000 ? (double)n / 1e6 : (double)n / 1e3,
                 n >= 1000000 ? "ms" : "us");
        return;
    }
    uint64_t hours = n / 3600000000000, minutes = n / 60000000000 % 60;
    double seconds = (double)(n % 60000000000) / 1e9;
    if (hours)
        snprintf(out, size, "%s%lluh%llum%.10gs", sign, (unsigned long long)hours,
                 (unsigned long long)minutes, seconds);
    else if (minutes)
        snprintf(out, size, "%s%llum%.10gs", sign, (unsigned long long)minutes, seconds);
    else
        snprintf(out, size, "%s%.10gs", sign, seconds);
}

int str_to_bool(const char *s, bool *ret)
{
    static const char *const yes[] = {"1", "t", "T", "TRUE", "true", "True"};
    static const char *const no[] = {"0", "f", "F", "FALSE", "false", "False"};
    for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
        if (str_eq(s, yes[i]) || str_eq(s, no[i])) {
            *ret = str_eq(s, yes[i]);
            return 0;
        }
    }
    return -EINVAL;
}

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

char **str_split(const char *s, char sep)
{
    size_t n = 0;
    char **v = xcalloc(1, sizeof(*v));
    while (s && *s) {
        const char *end = strchr(s, sep);
        size_t len = end ? (size_t)(end - s) : strlen(s);
        const char *item = s;
        s += len + (end ? 1 : 0);
        for (; len && blank(*item); len--)
            item++;
        while (len && blank(item[len - 1]))
            len--;
        if (!len)
            continue;
        v = xrealloc(v, (n + 2) * sizeof(*v));
        v[n] = xcalloc(1, len + 1);
        memcpy(v[n++], item, len);
        v[n] = NULL;
    }
    return v;
}

void strv_free(char **v)
{
    for (size_t i = 0; v && v[i]; i++)
        free(v[i]);
    free(v);
}

size_t strv_len(char *const *v)
{
    size_t n = 0;
    while (v && v[n])
        n++;
    return n;
}

void str_hex(const void *data, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *in = data;
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[in[i] >> 4];
        out[2 * i + 1] = digits[in[i] & 15];
    }
    out[2 * len] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int str_unhex(const char *hex, void *out, size_t len)
{
    unsigned char *bytes = out;
    if (!hex || strlen(hex) != 2 * len)
        return -EINVAL;
    for (size_t i = 0; i < len; i++) {
        int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        bytes[i] = (unsigned char)(high << 4 | low);
    }
    return 0;
}

int str_format(char *out, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, size, fmt, ap);
    va_end(ap);
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

char *str_asprintf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    if (n < 0)
        abort();
    return s;
}

int str_check_sandbox_id(const char *id, const char **ret_why)
{
    if (str_empty(id)) {
        *ret_why = "it is empty";
        return -EINVAL;
    }
    if (strnlen(id, SANDBOX_ID_MAX + 1) > SANDBOX_ID_MAX) {
        *ret_why = "it is longer than 64 characters";
        return -EINVAL;
    }
    if (*id == '.') {
        *ret_why = "it begins with a dot";
        return -EINVAL;
    }
    for (; *id; id++)
        if (!isalnum((unsigned char)*id) && !strchr("_.-", *id)) {
            *ret_why = "it has characters other than letters, digits, '_', '.' and '-'";
            return -EINVAL;
        }
    return 0;
}

void secret_wipe(void *p, size_t len)
{
    explicit_bzero(p, len);
}
