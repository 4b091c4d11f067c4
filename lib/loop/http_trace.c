/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Redaction by permission: a header's value is shown only if its name is on the list, so that a
 * token in a header that nobody thought of stays unseen. The others show how long they are, which is
 * enough to see that they are there. Queries are cut: Azure's and GCP's carry signatures.
 */
#include "loop/http_trace.h"

#include <strings.h>

#include "base/str.h"

#define VALUE_SHOWN_MAX 200

static const char *const harmless[] = {
    "accept",
    "connection",
    "content-length",
    "content-type",
    "date",
    "host",
    "retry-after",
    "server",
    "transfer-encoding",
    "user-agent",
    "x-amz-date",
    "x-amzn-requestid",
    "x-ms-client-request-id",
    "x-ms-correlation-request-id",
    "x-ms-request-id",
    "x-goog-request-id",
    "metadata-flavor",
};

static bool is_harmless(const char *name, size_t len)
{
    for (size_t i = 0; i < ARRAY_SIZE(harmless); i++)
        if (strlen(harmless[i]) == len && strncasecmp(harmless[i], name, len) == 0)
            return true;
    return false;
}

static void add_line(const char *line, size_t len, struct buf *out)
{
    const char *colon = memchr(line, ':', len), *query;
    size_t name = colon ? (size_t)(colon - line) : len, value;

    if (!colon || memchr(line, ' ', name)) { /* "GET /path?query HTTP/1.1", "HTTP/1.1 200 OK" */
        query = memchr(line, '?', len);
        buf_add(out, line, query ? (size_t)(query - line) : len);
        buf_adds(out, query ? "?..." : "");
        return;
    }
    buf_add(out, line, name);
    for (value = name + 1; value < len && line[value] == ' ';)
        value++;
    if (is_harmless(line, name))
        buf_addf(out, ": %.*s", (int)MIN(len - value, VALUE_SHOWN_MAX), line + value);
    else
        buf_addf(out, ": (%zu bytes)", len - value);
}

void http_trace_head(const char *data, size_t len, struct buf *out)
{
    for (size_t at = 0, n; at < len; at += n + 1) {
        const char *end = memchr(data + at, '\n', len - at);
        size_t line;

        n = line = end ? (size_t)(end - data) - at : len - at;
        while (line > 0 && data[at + line - 1] == '\r')
            line--;
        if (line == 0)
            continue;
        if (out->len > 0)
            buf_adds(out, "; ");
        add_line(data + at, line, out);
    }
}
