/* SPDX-License-Identifier: Apache-2.0 */
/* The files that AWS's programs share: ~/.aws/credentials and ~/.aws/config. */
#pragma once

#include "providers/aws/config.h"

#define PROFILE_FILE_MAX (1U << 20)
#define PROFILE_NAME_MAX 128

struct profiles;

/* Reads AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE (default: below $HOME); a file that does not
 * exist is empty. Owned: profiles_free. */
int profiles_load(struct profiles **ret, struct err *err);
void profiles_free(struct profiles *p);
DEFINE_CLEANUP(struct profiles, profiles_free)

/* One file's text (fuzzed): config says that sections are called "profile NAME". -EINVAL names the
 * line. Later values win within a file; what an earlier file has is kept. */
int profiles_add(struct profiles *p, const char *text, size_t len, bool config, struct err *err);
struct profiles *profiles_new(void);

bool profiles_has(const struct profiles *p, const char *profile);
/* Borrowed; NULL when absent. Keys are in lower case. */
const char *profiles_get(const struct profiles *p, const char *profile, const char *key);

/* The one in use: -aws-profile, AWS_PROFILE, AWS_DEFAULT_PROFILE, "default". Borrowed. ret_asked:
 * somebody named it (may be NULL). */
const char *aws_profile_name(const struct aws_config *config, bool *ret_asked);
/* Owned; NULL when the profile or its region does not exist, or the files cannot be read. */
char *aws_profile_region(const struct aws_config *config);
