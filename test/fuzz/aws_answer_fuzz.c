/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reply of AWS's as it comes out of the HTTP client, judged, and its XML read as every answer that
 * we ask for. Input: two bytes of status, lines of headers, an empty line, the body.
 */
#include "base/str.h"
#include "providers/aws/ec2.h"
#include "providers/aws/error.h"
#include "providers/aws/xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEADERS_MAX 16
#define INPUT_MAX (1U << 20)
#define DAY_MS 86400000

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Cuts the lines off; what is behind the empty one. */
static char *split_headers(char *text, char *headers[HEADERS_MAX + 1])
{
    for (size_t n = 0; *text && *text != '\n'; n++) {
        char *end = strchrnul(text, '\n');
        if (n < HEADERS_MAX)
            headers[n] = text;
        text = *end ? end + 1 : end;
        *end = '\0';
    }
    return *text ? text + 1 : text;
}

static void judge(const struct http_response *reply)
{
    struct aws_error error;
    struct err err = ERR_INIT;
    enum rest_verdict verdict = aws_error_judge(reply, &error, &err);
    check(verdict != REST_DONE && err.code < 0 && *err.text);
    check(strnlen(error.code, sizeof(error.code)) < sizeof(error.code));
    for (const char *c = error.message; *c; c++)
        check((unsigned char)*c >= ' ');
    int64_t wait = rest_retry_after_ms(reply, DAY_MS);
    check(wait >= 0);
    const char *date = http_response_header(reply, "date");
    if (date)
        (void)rest_parse_date_ms(date);
}

static void read_instances(const char *body, size_t len)
{
    struct xml *xml = NULL;
    struct err err = ERR_INIT;
    if (len == 0 || xml_parse(body, len, &xml, &err) < 0)
        return;
    const struct xml_node *item = xml_first(xml_find(xml_root(xml), "instancesSet"));
    for (; item; item = xml_next(item)) {
        struct ec2_instance instance;
        struct err why = ERR_INIT;
        int r = ec2_parse_instance(item, &instance, &why);
        check((r < 0) == (why.code != 0));
        check(r < 0 || *instance.id);
    }
    xml_free(xml);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *headers[HEADERS_MAX + 1] = {NULL};
    if (size < 2 || size > INPUT_MAX)
        return 0;
    char *text = xcalloc(1, size);
    memcpy(text, data + 2, size - 2);
    struct http_response reply = {.sent = true, .headers = headers};
    reply.status = 300 + (data[0] << 8 | data[1]) % 300;
    reply.body = split_headers(text, headers);
    reply.body_len = (size_t)(text + size - 2 - reply.body);
    judge(&reply);
    read_instances(reply.body, reply.body_len);
    free(text);
    return 0;
}
