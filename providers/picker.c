/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The picker: a linear scan, because the list has a handful of entries in no order that means
 * anything.
 *
 * A pod asks by name (its machine_type annotation), by size (vCPUs, memory, GPUs, each alone or
 * together; 0 means that it does not care), or not at all. A name must be in the list and is the
 * only candidate: the pod's author knows why. A size is met by every type that has at least as much
 * of everything; among those the one with the fewest GPUs is first, then with the least memory, then
 * with the fewest vCPUs, ties in the order of the list: what a pod does not use costs money, a GPU
 * the most. No request is the default type, and behind it what is at least as large.
 *
 * When nothing fits, the error says what was asked for and how large the largest is, because that is
 * what the pod's author can change.
 */
#include "providers/picker.h"

#include <errno.h>
#include <inttypes.h>

#include "base/buf.h"
#include "base/str.h"

#define NAMES_TEXT_MAX 400

static bool fits(const struct picker_type *t, const struct instance_spec *spec)
{
    return t->vcpus >= spec->vcpus && t->memory_mib >= spec->memory_mib && t->gpus >= spec->gpus;
}

static bool smaller(const struct picker_type *a, const struct picker_type *b)
{
    if (a->gpus != b->gpus)
        return a->gpus < b->gpus;
    if (a->memory_mib != b->memory_mib)
        return a->memory_mib < b->memory_mib;
    return a->vcpus < b->vcpus;
}

/* Insertion keeps ties in the order of the list. */
static void insert(const struct picker_type *list, size_t i, size_t *ret, size_t first, size_t *n)
{
    size_t at = *n;

    for (; at > first && smaller(&list[i], &list[ret[at - 1]]); at--)
        ret[at] = ret[at - 1];
    ret[at] = i;
    ++*n;
}

static size_t position(const struct picker_type *list, size_t n, const char *name)
{
    size_t i = 0;

    while (i < n && !str_eq(list[i].name, name))
        i++;
    return i;
}

static int not_in_list(const struct picker_type *list, size_t n, const char *name, struct err *err)
{
    struct buf names = BUF_INIT(0);

    for (size_t i = 0; i < n && names.len < NAMES_TEXT_MAX; i++)
        buf_addf(&names, "%s%s", i ? ", " : "", list[i].name);
    err_set(err, -EINVAL, "instance type '%s' is not among those that the operator allows: %s%s",
            name, n ? names.data : "(none)", names.len >= NAMES_TEXT_MAX ? ", ..." : "");
    buf_done(&names);
    return -EINVAL;
}

static int nothing_fits(const struct picker_type *list, size_t n, const struct instance_spec *spec,
                        struct err *err)
{
    struct instance_spec most = {0};

    for (size_t i = 0; i < n; i++) {
        most.vcpus = MAX(most.vcpus, list[i].vcpus);
        most.memory_mib = MAX(most.memory_mib, list[i].memory_mib);
        most.gpus = MAX(most.gpus, list[i].gpus);
    }
    return err_set(err, -EINVAL,
                   "no allowed instance type has %u vCPUs, %" PRIu64 " MiB of memory and %u GPUs "
                   "together: among %zu types the most are %u vCPUs, %" PRIu64 " MiB, %u GPUs",
                   spec->vcpus, spec->memory_mib, spec->gpus, n, most.vcpus, most.memory_mib,
                   most.gpus);
}

int picker_pick(const struct picker_type *list, size_t n, const struct instance_spec *spec,
                const char *def, size_t *ret, size_t *ret_n, struct err *err)
{
    struct instance_spec want = *spec;
    const bool sized = spec->vcpus || spec->memory_mib || spec->gpus;
    const char *name = *spec->type ? spec->type : sized ? NULL : def;
    size_t named = name ? position(list, n, name) : n;

    *ret_n = 0;
    if (name && named == n)
        return not_in_list(list, n, name, err);
    if (name)
        ret[(*ret_n)++] = named;
    if (*spec->type)
        return 0;
    if (name) {
        want.vcpus = list[named].vcpus;
        want.memory_mib = list[named].memory_mib;
        want.gpus = list[named].gpus;
    }
    for (size_t i = 0, first = *ret_n; i < n; i++)
        if (i != named && fits(&list[i], &want))
            insert(list, i, ret, first, ret_n);
    return *ret_n ? 0 : nothing_fits(list, n, spec, err);
}
