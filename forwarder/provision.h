/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process-user-data provision-files: from user data to the files below /run/peerpod that the other
 * guest programs wait for. docs/userdata.md describes what comes out.
 */
#pragma once

#include "forwarder/metadata.h"

struct provision_config {
    struct metadata_config metadata;
    int64_t timeout_ms; /* > 0: for all attempts together */
    int64_t retry_ms;   /* > 0: between attempts */
};

/* Logs progress (never contents); the failure is the caller's to log. -ETIMEDOUT: err holds the
 * last attempt's reason. */
int provision_files(const struct provision_config *config, struct err *err);
