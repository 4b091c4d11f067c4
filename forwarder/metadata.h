/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a pod VM finds its user data: a file of the config drive, or the metadata service of the
 * cloud it runs on (compat.md "User data"). docs/userdata.md describes sources and detection.
 */
#pragma once

#include "base/err.h"
#include "loop/job.h"

#define METADATA_DOCUMENT_MAX (4U << 20) /* decoded */
#define METADATA_BODY_MAX (6U << 20)     /* as it is sent, base64 included */

/* All borrowed for the call. Endpoints are base URLs without a path: "http://169.254.169.254". */
struct metadata_config {
    const char *root;   /* prefix of every path that is read */
    const char *source; /* "auto" or a name of metadata_sources */
    const char *vendor; /* hypervisor vendor; "": ask the processor */
    const char *azure, *aws, *alibaba;
    const char *gcp_host; /* host[:port] */
};

/* file, azure, aws, gcp, alibaba, in the order in which they are tried; ends with NULL. */
extern const char *const metadata_sources[];

/*
 * The name of the source that this machine has, NULL for none (yet): then err says what was looked
 * at. Cheap: reads a few small files.
 */
const char *metadata_detect(const struct metadata_config *config, struct err *err);
/* One attempt. ret: the document, decoded, NUL-terminated, owned, secret. */
int metadata_fetch(const struct metadata_config *config, const char *source, struct job *job,
                   char **ret, size_t *ret_len, struct err *err);
