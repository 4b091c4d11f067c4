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

int aws_client_new(const struct aws_config *config, struct aws_client **ret, struct err *err)
{
    struct aws_client *client = xcalloc(1, sizeof(*client));

    (void)err;
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
