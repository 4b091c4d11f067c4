/* SPDX-License-Identifier: Apache-2.0 */
/* What the runner and the runtime of step faults say to each other within one process. */
#pragma once

#include "stepfault/stepfault.h"

/* NULL when the file is not there or too small. */
struct stepfault_control *stepfault_map(const char *path);
void stepfault_use(struct stepfault_control *c);
