/* SPDX-License-Identifier: Apache-2.0 */
/* The providers that were built in: one line for each, in the order of --help. */
#include "base/str.h"
#include "providers/aws/aws.h"
#include "providers/local/local.h"
#include "providers/provider.h"

const struct provider_type *const provider_types[] = {
    &aws_provider_type,
    &local_provider_type,
    NULL,
};

const struct provider_type *provider_type_find(const char *name)
{
    for (const struct provider_type *const *t = provider_types; *t; t++)
        if (str_eq((*t)->name, name))
            return *t;
    return NULL;
}
