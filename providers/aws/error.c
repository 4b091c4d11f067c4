/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS's errors.
 *
 * Their code decides, not the HTTP status: throttling comes with 400, 429 and 503, and capacity that
 * is lacking comes with 500 although the same request will be refused for hours. Only where there
 * is no code (a proxy's or a load balancer's page) does the status speak.
 *
 * Denials are those that fresh credentials or a corrected clock may heal. EC2 answers AuthFailure
 * and RequestExpired to either, so the two are not told apart here: rest.c looks at the clock first.
 * UnauthorizedOperation is none of them: the credentials are good and the permission is missing.
 */
#include "providers/aws/error.h"

#include <errno.h>

#include "base/json.h"
#include "base/str.h"
#include "providers/aws/xml.h"

static const char *const throttled[] = {
    "RequestLimitExceeded",     "Throttling",
    "ThrottlingException",      "ThrottledException",
    "RequestThrottled",         "RequestThrottledException",
    "TooManyRequestsException", "EC2ThrottledException",
    "BandwidthLimitExceeded",   "SlowDown",
    "PriorRequestNotComplete",  NULL,
};
static const char *const denied[] = {
    "RequestExpired",
    "ExpiredToken",
    "ExpiredTokenException",
    "AuthFailure",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "RequestTimeTooSkewed",
    "RequestInTheFuture",
    "InvalidClientTokenId",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
    NULL,
};
/* With a 4xx status. */
static const char *const broken[] = {"RequestTimeout", "RequestTimeoutException",
                                     "IDPCommunicationError", NULL};
static const char *const forbidden[] = {"UnauthorizedOperation", "AccessDenied",
                                        "AccessDeniedException", "OptInRequired", NULL};

static bool among(const char *const *list, const char *code)
{
    for (; *list; list++)
        if (str_eq(*list, code))
            return true;
    return false;
}

/* Control characters would break log lines. */
static void fit_text(const char *text, char *ret, size_t size)
{
    snprintf(ret, size, "%.*s", (int)size - 1, text);
    for (; *ret; ret++)
        if ((unsigned char)*ret < ' ')
            *ret = ' ';
}

static void take_text(const struct xml_node *node, const char *path, char *ret, size_t size)
{
    char text[8192];

    /* EC2's encoded authorization messages are longer than anybody reads. */
    if (xml_text(node, path, text, sizeof(text)) < 0)
        snprintf(text, sizeof(text), "(more than %zu bytes)", sizeof(text) - 1);
    fit_text(text, ret, size);
}

/* {"__type": "com.amazonaws.servicequotas#NoSuchResourceException", "message": "..."} */
static bool parse_json(const char *body, size_t len, struct aws_error *ret)
{
    _cleanup_(json_putp) struct json_object *o = NULL;
    const char *type = "", *message = "", *hash;

    if (json_parse(body, len, &o, NULL) < 0 || json_get_string(o, "__type", &type, NULL) < 0)
        return false;
    if (json_get_string(o, "message", &message, NULL) < 0)
        (void)json_get_string(o, "Message", &message, NULL);
    hash = strrchr(type, '#');
    fit_text(hash ? hash + 1 : type, ret->code, sizeof(ret->code));
    fit_text(message, ret->message, sizeof(ret->message));
    return ret->code[0] != '\0';
}

bool aws_error_parse(const char *body, size_t len, struct aws_error *ret)
{
    _cleanup_(xml_freep) struct xml *xml = NULL;
    const struct xml_node *root, *e;

    if (len > 0 && body[0] == '{')
        return parse_json(body, len, ret);
    if (len == 0 || xml_parse(body, len, &xml, NULL) < 0)
        return false;
    root = xml_root(xml);
    e = xml_find(root, "Errors.Error");
    e = e ? e : xml_find(root, "Error");
    if (!e)
        return false;
    take_text(e, "Code", ret->code, sizeof(ret->code));
    take_text(e, "Message", ret->message, sizeof(ret->message));
    take_text(root, xml_find(root, "RequestID") ? "RequestID" : "RequestId", ret->request_id,
              sizeof(ret->request_id));
    return ret->code[0] != '\0';
}

static enum rest_verdict verdict_of(const struct aws_error *e)
{
    if (among(throttled, e->code) || (!e->code[0] && e->status == 429))
        return REST_THROTTLED;
    if (among(denied, e->code))
        return REST_DENIED;
    if (str_starts(e->code, "Insufficient"))
        return REST_FAILED;
    return e->status >= 500 || among(broken, e->code) ? REST_BROKEN : REST_FAILED;
}

static int errno_of(enum rest_verdict verdict, const struct aws_error *e)
{
    if (verdict == REST_THROTTLED)
        return -EAGAIN;
    return verdict == REST_DENIED || among(forbidden, e->code) ? -EACCES : -EREMOTEIO;
}

enum rest_verdict aws_error_judge(const struct http_response *reply, struct aws_error *ret,
                                  struct err *err)
{
    enum rest_verdict verdict;

    *ret = (struct aws_error){0};
    (void)aws_error_parse(reply->body, reply->body_len, ret);
    if (!ret->request_id[0] && http_response_header(reply, "x-amzn-requestid"))
        fit_text(http_response_header(reply, "x-amzn-requestid"), ret->request_id,
                 sizeof(ret->request_id));
    ret->status = reply->status;
    verdict = verdict_of(ret);
    if (ret->code[0])
        err_set(err, errno_of(verdict, ret), "%s: %s%s%s%s", ret->code, ret->message,
                ret->request_id[0] ? " (request " : "", ret->request_id,
                ret->request_id[0] ? ")" : "");
    else
        err_set(err, errno_of(verdict, ret), "HTTP %ld without an error of AWS's in it (%zu bytes)",
                reply->status, reply->body_len);
    return verdict;
}
