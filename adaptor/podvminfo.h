/* SPDX-License-Identifier: Apache-2.0 */
/* podvminfo.PodVMInfo: which instance serves a pod (compat.md, "Second service"). */
#pragma once

#include "adaptor/rpc.h"

struct adaptor;

void podvminfo_get_info(struct rpc_call *call, void *adaptor);
/* A sandbox has got its instance: answers those who wait for it. */
void podvminfo_instance_known(struct adaptor *a);
/* Lets go of all who wait. */
void podvminfo_end(struct adaptor *a);
