/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Go adaptor's own edits of CreateContainer (kata-contract.md 3.4, third point): annotations
 * that name the pod's cloud volumes and GPUs to the stock forwarder. Plain mode alone.
 */
#pragma once

#include "wire/splice.h"

#define DIRECT_VOLUMES_DIR "/run/kata-containers/shared/direct-volumes"

/* splice_rules.annotate; arg: the directory of direct volumes, a string. What cannot be read is
 * logged and left out, as the Go adaptor does. */
void volumes_annotate(void *arg, struct splice_spec *spec);
