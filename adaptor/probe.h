/* SPDX-License-Identifier: Apache-2.0 */
/* /metrics, /startup, /live and /ready over HTTP, for kubelet and Prometheus. See probe.c. Loop. */
#pragma once

#include "adaptor/adaptor.h"

#define PROBE_CONNECTIONS_MAX 32
#define PROBE_HEADERS_MAX 8192 /* request line and headers together */
#define PROBE_REQUEST_MS 5000  /* from accept to the end of the answer, whatever arrives */

struct probe;

/* NULL when -probe-port is 0. An address that is taken is said and tried again, never an error. */
struct probe *probe_begin(struct adaptor *a);
void probe_free(struct probe *p);
