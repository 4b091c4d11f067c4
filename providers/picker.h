/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which instance type a pod gets (compat.md "Annotations"; design.md 9), the same with every
 * provider: the pod's own choice if the list allows it, else the smallest that fits what the pod
 * asks for, else the default.
 */
#pragma once

#include "providers/provider.h"

#define PICKER_TYPES_MAX 256

struct picker_type {
    char name[INSTANCE_TYPE_MAX];
    uint32_t vcpus;
    uint64_t memory_mib;
    uint32_t gpus;
};

/*
 * list: what the operator allows, in the operator's order, with the provider's facts. def: the type
 * of a pod that asks for nothing; must be in the list. Fills ret (room for n) with the positions of
 * the candidates, best first: the ones behind the first are for when the cloud has no room for it,
 * and each gives the pod at least what it asks for. -EINVAL names what was asked for and what there
 * is.
 */
int picker_pick(const struct picker_type *list, size_t n, const struct instance_spec *spec,
                const char *def, size_t *ret, size_t *ret_n, struct err *err);
