/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AWS client as a command, for tests in Python: takes the provider's options and its environment,
 * calls GetCallerIdentity, and prints what came of it as one JSON object.
 */
#include <json-c/json.h>

#include "base/json.h"
#include "base/log.h"
#include "providers/aws/client.h"
#include "providers/aws/xml.h"

#define DEADLINE_MS 20000

static int ask(struct aws_client *client, struct json_object *out, struct err *err)
{
    const struct aws_request q = {.service = "sts",
                                  .action = "GetCallerIdentity",
                                  .body = "Action=GetCallerIdentity&Version=2011-06-15",
                                  .repeatable = true};
    struct job *job = job_new_inline(DEADLINE_MS);
    char region[AWS_REGION_MAX] = "", source[AWS_SOURCE_MAX] = "", arn[256] = "";
    struct http_response reply = {0};
    struct aws_error error = {0};
    struct xml *xml = NULL;
    int r = aws_client_region(client, job, region, err);

    if (r == 0)
        r = aws_call(client, job, &q, &reply, &error, err);
    if (r == 0)
        r = xml_parse(reply.body, reply.body_len, &xml, err);
    if (r == 0)
        xml_text(xml_root(xml), "GetCallerIdentityResult.Arn", arn, sizeof(arn));
    aws_client_source(client, source);
    json_add_string(out, "region", region);
    json_add_string(out, "source", source);
    json_add_string(out, "arn", arn);
    json_add_string(out, "code", error.code);
    xml_free(xml);
    http_response_done(&reply);
    job_free_inline(job);
    return r;
}

int main(int argc, char **argv)
{
    struct aws_config config = {0};
    struct opt_set sets[] = {{.title = "aws", .opts = aws_opts, .target = &config}, {0}};
    struct json_object *out = json_object_new_object();
    struct aws_client *client = NULL;
    struct err err = ERR_INIT;
    int r;

    (void)argc;
    log_init("aws_judge", LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT);
    r = opt_parse(sets, argv + 1, NULL, NULL, &err);
    if (r == 0)
        r = aws_client_new(&config, &client, &err);
    if (r == 0)
        r = ask(client, out, &err);
    json_add_i64(out, "r", r);
    json_add_string(out, "text", r < 0 ? err_text(&err) : "");
    puts(json_object_to_json_string(out));
    json_put(out);
    aws_client_free(client);
    opt_done(sets);
    return 0;
}
