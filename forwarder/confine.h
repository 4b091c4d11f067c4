/* SPDX-License-Identifier: Apache-2.0 */
/* What the forwarder gives up once it serves. See confine.c. */
#pragma once

/* After forwarder_new. What the machine refuses is said in the log. */
void confine(void);
