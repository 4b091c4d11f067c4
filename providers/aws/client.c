/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client: what the provider holds. It only ties its parts together: the wire (wire.c: endpoint,
 * signature, tries), the credentials (credentials.c) and the metadata service (imds.c). Making one
 * touches neither network nor files, so that --print-config and the daemon's start never wait.
 */
#include "providers/aws/client.h"

#include <errno.h>

#include "base/str.h"
#include "providers/aws/credentials.h"
#include "providers/aws/imds.h"
#include "providers/aws/wire.h"

struct aws_client {
    struct imds *imds;
    struct aws_wire *wire;
    struct credentials *credentials;
};

static int check_url(const char *option, const char *url, struct err *err)
{
    size_t scheme = str_starts(url, "https://") ? 8 : str_starts(url, "http://") ? 7 : 0;

    if (scheme == 0 || strcspn(url + scheme, "/") == 0 ||
        strcspn(url, "@?# \t\r\n\\%") < strlen(url))
        return err_set(err, -EINVAL,
                       "-%s '%.200s' must be http:// or https://, host, port and path alone",
                       option, url);
    return 0;
}

static int check_urls(const struct aws_config *config, struct err *err)
{
    const struct {
        const char *option, *url;
    } urls[] = {{"aws-endpoint-url", config->endpoint_url},
                {"aws-endpoint-url-ec2", config->endpoint_url_ec2},
                {"aws-endpoint-url-sts", config->endpoint_url_sts},
                {"aws-metadata-endpoint", config->metadata_endpoint}};

    for (size_t i = 0; i < ARRAY_SIZE(urls); i++) {
        int r = str_empty(urls[i].url) ? 0 : check_url(urls[i].option, urls[i].url, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int aws_client_new(const struct aws_config *config, struct aws_client **ret, struct err *err)
{
    struct aws_client *client;
    int r = check_urls(config, err);

    if (r < 0)
        return r;
    client = xcalloc(1, sizeof(*client));
    client->imds = imds_new(config->metadata_endpoint);
    client->wire = aws_wire_new(config, client->imds);
    client->credentials = credentials_new(config, client->wire, client->imds);
    *ret = client;
    return 0;
}

void aws_client_free(struct aws_client *client)
{
    if (!client)
        return;
    credentials_free(client->credentials);
    aws_wire_free(client->wire);
    imds_free(client->imds);
    free(client);
}

int aws_call(struct aws_client *client, struct job *job, const struct aws_request *request,
             struct http_response *ret, struct aws_error *ret_error, struct err *err)
{
    return aws_wire_call(client->wire, job, request, credentials_get, client->credentials, ret,
                         ret_error, err);
}

int aws_client_region(struct aws_client *client, struct job *job, char ret[AWS_REGION_MAX],
                      struct err *err)
{
    return aws_wire_region(client->wire, job, ret, err);
}

int aws_metadata_get(struct aws_client *client, struct job *job, const char *path, char **ret,
                     struct err *err)
{
    return imds_get(client->imds, job, path, ret, err);
}

void aws_client_source(struct aws_client *client, char ret[AWS_SOURCE_MAX])
{
    credentials_source(client->credentials, ret);
}
