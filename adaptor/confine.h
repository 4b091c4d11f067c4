/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon gives up before it serves. See confine.c. */
#pragma once

#include "providers/provider.h"

/* Behind the reading of options: no provider's secret stays in the environment. */
void confine_forget_secrets(void);
/* Before there are threads. What the machine refuses is said in the log. */
void confine_daemon(const struct provider_type *type);
