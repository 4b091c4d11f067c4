/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CreateVM request's annotations, which pods write: what is accepted is within its limits, and
 * makes a name that clouds take. The input is lines of key=value; a key that begins with a letter
 * up to i stands for one of kata's, p for the network namespace, q for the id.
 */
#include <ctype.h>

#include "adaptor/podspec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ANNOTATIONS_MAX 16
#define KATA "io.katacontainers.config.hypervisor."

static const char *const keys[] = {"io.kubernetes.cri.sandbox-name",
                                   "io.kubernetes.cri.sandbox-namespace",
                                   KATA "default_vcpus",
                                   KATA "default_memory",
                                   KATA "default_gpus",
                                   KATA "machine_type",
                                   KATA "image",
                                   KATA "cc_init_data",
                                   "io.katacontainers.config.runtime.cc_init_data"};

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void set_line(Hypervisor__CreateVMRequest *request, char *line)
{
    char *value = strchr(line, '=');
    if (!value)
        return;
    *value++ = '\0';
    size_t known = (size_t)(*line - 'a');
    if (*line == 'p') {
        request->networknamespacepath = value;
    } else if (*line == 'q') {
        request->id = value;
    } else if (request->n_annotations < ANNOTATIONS_MAX) {
        Hypervisor__CreateVMRequest__AnnotationsEntry *e =
            request->annotations[request->n_annotations++];
        e->key = known < ARRAY_SIZE(keys) ? (char *)keys[known] : line;
        e->value = value;
    }
}

static void check_spec(const struct podspec *spec)
{
    char name[INSTANCE_NAME_MAX + 1];
    podspec_instance_name(spec->pod, spec->id, name);
    for (const char *c = name; *c; c++)
        check(islower((unsigned char)*c) || isdigit((unsigned char)*c) || *c == '-');
    check(*spec->pod && *spec->namespace && *spec->netns == '/');
    check(spec->spec.vcpus <= 4096 && spec->spec.gpus <= 64 && spec->spec.memory_mib <= 1U << 26);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Hypervisor__CreateVMRequest request = HYPERVISOR__CREATE_VMREQUEST__INIT;
    Hypervisor__CreateVMRequest__AnnotationsEntry entries[ANNOTATIONS_MAX], *list[ANNOTATIONS_MAX];
    struct podspec spec;
    struct err err = ERR_INIT;
    char *text = xcalloc(1, size + 1);
    if (size > 0)
        memcpy(text, data, size);
    for (size_t i = 0; i < ANNOTATIONS_MAX; i++) {
        list[i] = &entries[i];
        hypervisor__create_vmrequest__annotations_entry__init(list[i]);
    }
    request.annotations = list;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        set_line(&request, line);
    }
    int r = podspec_parse(&request, &spec, &err);
    check((r < 0) == (err.code != 0));
    if (r == 0)
        check_spec(&spec);
    free(text);
    return 0;
}
