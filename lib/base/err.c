/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors as values. The text lives inside the struct, so an error can be copied between threads
 * and outlive what caused it; long texts are cut where a UTF-8 character begins, because they
 * travel in protobuf strings, which must be valid UTF-8.
 */
#include "base/err.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>

static void cut_utf8(char *text, size_t size, int written)
{
    if (written < 0 || (size_t)written < size)
        return;
    size_t end = size - sizeof("...");
    while (end > 0 && ((unsigned char)text[end] & 0xC0) == 0x80)
        end--;
    memcpy(text + end, "...", sizeof("..."));
}

static void format(char *text, const char *fmt, va_list ap) _printf_(2, 0);
static void format(char *text, const char *fmt, va_list ap)
{
    cut_utf8(text, ERR_TEXT_MAX, vsnprintf(text, ERR_TEXT_MAX, fmt, ap));
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    assert(code < 0);
    if (err) {
        va_list ap;
        assert(err->code == 0);
        err->code = code;
        va_start(ap, fmt);
        format(err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

static void append(struct err *err, const char *separator, const char *text)
{
    char joined[ERR_TEXT_MAX];
    cut_utf8(joined, sizeof(joined),
             snprintf(joined, sizeof(joined), "%s%s%s", err->text, separator, text));
    memcpy(err->text, joined, sizeof(joined));
}

int err_wrap(struct err *err, int code, const char *fmt, ...)
{
    assert(code < 0);
    if (err) {
        struct err inner = *err;
        va_list ap;
        va_start(ap, fmt);
        format(err->text, fmt, ap);
        va_end(ap);
        err->code = code;
        append(err, ": ", inner.code ? inner.text : strerror(-code));
    }
    return code;
}

int err_errno(struct err *err, int code, const char *fmt, ...)
{
    assert(code < 0);
    if (err) {
        va_list ap;
        assert(err->code == 0);
        err->code = code;
        va_start(ap, fmt);
        format(err->text, fmt, ap);
        va_end(ap);
        append(err, ": ", strerror(-code));
    }
    return code;
}

void err_clear(struct err *err)
{
    if (!err)
        return;
    err->code = 0;
    err->text[0] = '\0';
}

const char *err_text(const struct err *err)
{
    return err && err->code ? err->text : "no error";
}
