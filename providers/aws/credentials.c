/* SPDX-License-Identifier: Apache-2.0 */
/* Credentials: for now those of the options alone. */
#include "providers/aws/credentials.h"

#include <errno.h>

#include "base/str.h"

struct credentials {
    const struct aws_config *config;
};

struct credentials *credentials_new(const struct aws_config *config, struct aws_wire *wire,
                                    struct imds *imds)
{
    struct credentials *c = xcalloc(1, sizeof(*c));

    (void)wire;
    (void)imds;
    c->config = config;
    return c;
}

void credentials_free(struct credentials *c)
{
    free(c);
}

int credentials_get(void *arg, struct job *job, const char *refused, int64_t now_ms,
                    struct aws_key *ret, struct err *err)
{
    const struct credentials *c = arg;
    struct aws_key key = {.id = c->config->access_key_id, .secret = c->config->secret_key};

    (void)job;
    (void)refused;
    (void)now_ms;
    if (str_empty(key.id) || str_empty(key.secret))
        return err_set(err, -EACCES, "no AWS credentials");
    if (!str_empty(c->config->session_token))
        key.token = c->config->session_token;
    *ret = aws_key_copy(&key);
    return 0;
}
