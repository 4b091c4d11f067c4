/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bodies of the query protocol. The keys say where a value belongs in the service's model
 * ("TagSpecification.1.Tag.2.Key"); nothing here knows that model, tests compare with botocore's.
 */
#include "providers/aws/query.h"

#include <inttypes.h>
#include <stdarg.h>

#define KEY_MAX 128

static void add_encoded(struct buf *body, const char *value)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";

    while (*value) {
        size_t n = strspn(value, plain);
        buf_add(body, value, n);
        value += n;
        if (*value)
            buf_addf(body, "%%%02X", (unsigned char)*value++);
    }
}

static void add(struct buf *body, const char *value, const char *key, va_list ap) _printf_(3, 0);
static void add(struct buf *body, const char *value, const char *key, va_list ap)
{
    char name[KEY_MAX];
    int n = vsnprintf(name, sizeof(name), key, ap);

    if (n < 0 || (size_t)n >= sizeof(name)) {
        body->failed = true;
        return;
    }
    buf_addf(body, "&%s=", name);
    add_encoded(body, value);
}

void query_begin(struct buf *body, const char *action, const char *version)
{
    *body = BUF_INIT(QUERY_BYTES_MAX);
    buf_addf(body, "Action=%s&Version=%s", action, version);
}

void query_add(struct buf *body, const char *value, const char *key, ...)
{
    va_list ap;

    if (!value)
        return;
    va_start(ap, key);
    add(body, value, key, ap);
    va_end(ap);
}

void query_add_i64(struct buf *body, int64_t value, const char *key, ...)
{
    char text[24];
    va_list ap;

    snprintf(text, sizeof(text), "%" PRId64, value);
    va_start(ap, key);
    add(body, text, key, ap);
    va_end(ap);
}
