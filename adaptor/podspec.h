/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a CreateVM request asks for: the annotations of kata-contract.md 2.3, read leniently where
 * kata writes them leniently (fractions, empty, 0 = unset) and checked strictly where they come
 * from pods.
 */
#pragma once

#include "adaptor/record.h"
#include "hypervisor.pb-c.h"

#define PODSPEC_INITDATA_MAX (6U << 20)

struct podspec {
    char id[SANDBOX_ID_MAX + 1];
    char pod[RECORD_NAME_MAX + 1], namespace[RECORD_NAME_MAX + 1];
    char netns[256];
    struct instance_spec spec;
    const char *initdata; /* borrowed from the request; NULL: none */
};

/* -EINVAL names the annotation and what is allowed. */
int podspec_parse(const Hypervisor__CreateVMRequest *request, struct podspec *ret, struct err *err);
/* podvm-<pod>-<first 8 of id>, characters outside [a-z0-9-] become '-', at most 63. */
void podspec_instance_name(const char *pod, const char *id, char ret[INSTANCE_NAME_MAX + 1]);
