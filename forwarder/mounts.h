/* SPDX-License-Identifier: Apache-2.0 */
/* Missing sources of bind mounts (kata-contract.md 3.4). */
#pragma once

#include "wire/splice.h"

/* For splice_rules.mount: makes the source of a bind mount as a directory when nothing is there.
 * Absolute paths without ".." only; a failure is logged and no more. */
void mounts_make_source(void *arg, const struct splice_mount *mount);
