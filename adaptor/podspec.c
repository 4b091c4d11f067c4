/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Annotations to a spec. Annotations come from pods and are untrusted: every length, character and
 * number is checked, and values never reach a log. Numbers: the Go shim writes integers, the Rust
 * shim decimal fractions ("1.5" vCPUs); fractions are rounded up, because a pod that asks for one
 * and a half processors is not served by one. Initdata comes under two keys (older shims).
 */
#include "adaptor/podspec.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>

#define KATA "io.katacontainers.config.hypervisor."

static const char *annotation(const Hypervisor__CreateVMRequest *request, const char *key)
{
    for (size_t i = 0; i < request->n_annotations; i++)
        if (str_eq(request->annotations[i]->key, key))
            return request->annotations[i]->value;
    return NULL;
}

static int get_name(const Hypervisor__CreateVMRequest *request, const char *key, char *out,
                    struct err *err)
{
    const char *value = annotation(request, key);
    if (str_empty(value))
        return err_set(err, -EINVAL, "CreateVM: annotation %s is missing", key);
    if (strlen(value) > RECORD_NAME_MAX)
        return err_set(err, -EINVAL, "CreateVM: annotation %s is longer than %d characters", key,
                       RECORD_NAME_MAX);
    for (const char *c = value; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("-._", *c))
            return err_set(err, -EINVAL,
                           "CreateVM: annotation %s has characters other than letters, digits, "
                           "'-', '.' and '_'",
                           key);
    memcpy(out, value, strlen(value) + 1);
    return 0;
}

static int get_number(const Hypervisor__CreateVMRequest *request, const char *key, uint64_t max,
                      uint64_t *ret, struct err *err)
{
    const char *value = annotation(request, key);
    double number = 0;
    if (str_empty(value))
        return 0;
    if (str_to_double(value, &number) < 0 || number < 0 || number > (double)max)
        return err_set(err, -EINVAL, "CreateVM: annotation %s is not a number between 0 and %llu",
                       key, (unsigned long long)max);
    *ret = (uint64_t)ceil(number);
    return 0;
}

static int get_word(const Hypervisor__CreateVMRequest *request, const char *key, char *out,
                    size_t size, struct err *err)
{
    const char *value = annotation(request, key);
    if (!value)
        return 0;
    for (const char *c = value; *c; c++)
        if (!isgraph((unsigned char)*c))
            return err_set(err, -EINVAL, "CreateVM: annotation %s has blanks or control characters",
                           key);
    if (str_format(out, size, "%s", value) < 0)
        return err_set(err, -EINVAL, "CreateVM: annotation %s is longer than %zu characters", key,
                       size - 1);
    return 0;
}

static int get_spec(const Hypervisor__CreateVMRequest *request, struct instance_spec *spec,
                    struct err *err)
{
    uint64_t vcpus = 0, gpus = 0;
    int r = get_number(request, KATA "default_vcpus", 4096, &vcpus, err);
    if (r == 0)
        r = get_number(request, KATA "default_memory", 1U << 26, &spec->memory_mib, err);
    if (r == 0)
        r = get_number(request, KATA "default_gpus", 64, &gpus, err);
    if (r == 0)
        r = get_word(request, KATA "machine_type", spec->type, sizeof(spec->type), err);
    if (r == 0)
        r = get_word(request, KATA "image", spec->image, sizeof(spec->image), err);
    spec->vcpus = (uint32_t)vcpus;
    spec->gpus = (uint32_t)gpus;
    return r;
}

static int get_netns(const Hypervisor__CreateVMRequest *request, struct podspec *spec,
                     struct err *err)
{
    const char *path = request->networknamespacepath;
    if (str_empty(path))
        return err_set(err, -EINVAL,
                       "CreateVM: networkNamespacePath is missing; kata's configuration needs "
                       "disable_new_netns = true with the Go runtime, false with runtime-rs");
    if (*path != '/' || str_format(spec->netns, sizeof(spec->netns), "%s", path) < 0)
        return err_set(err, -EINVAL,
                       "CreateVM: networkNamespacePath is not an absolute path of at most %zu "
                       "characters",
                       sizeof(spec->netns) - 1);
    return 0;
}

int podspec_parse(const Hypervisor__CreateVMRequest *request, struct podspec *ret, struct err *err)
{
    struct podspec spec = {0};
    const char *why;
    if (str_check_sandbox_id(request->id, &why) < 0)
        return err_set(err, -EINVAL, "CreateVM: the sandbox id is not valid: %s", why);
    memcpy(spec.id, request->id, strlen(request->id) + 1);
    int r = get_name(request, "io.kubernetes.cri.sandbox-name", spec.pod, err);
    if (r == 0)
        r = get_name(request, "io.kubernetes.cri.sandbox-namespace", spec.namespace, err);
    if (r == 0)
        r = get_netns(request, &spec, err);
    if (r == 0)
        r = get_spec(request, &spec.spec, err);
    if (r < 0)
        return r;
    spec.initdata = annotation(request, KATA "cc_init_data");
    if (str_empty(spec.initdata))
        spec.initdata = annotation(request, "io.katacontainers.config.runtime.cc_init_data");
    if (str_empty(spec.initdata))
        spec.initdata = NULL;
    if (spec.initdata && strlen(spec.initdata) > PODSPEC_INITDATA_MAX)
        return err_set(err, -E2BIG, "CreateVM: initdata is larger than %u bytes",
                       PODSPEC_INITDATA_MAX);
    *ret = spec;
    return 0;
}

void podspec_instance_name(const char *pod, const char *id, char ret[INSTANCE_NAME_MAX + 1])
{
    /* 15 characters around the pod's name: "podvm-", "-", 8 of the id */
    snprintf(ret, INSTANCE_NAME_MAX + 1, "podvm-%.48s-%.8s", pod, id);
    for (char *c = ret; *c; c++)
        if (!islower((unsigned char)*c) && !isdigit((unsigned char)*c))
            *c = '-';
}
