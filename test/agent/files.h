/* SPDX-License-Identifier: Apache-2.0 */
/* CopyFile, confined to one directory. */
#pragma once

#include "agent.pb-c.h"
#include "base/err.h"

/* base: "/run/kata-containers/shared/containers"; q->path must lie below it. */
int files_copy(const char *base, const Grpc__CopyFileRequest *q, struct err *err);
