/* SPDX-License-Identifier: Apache-2.0 */
/* What CreateVM's annotations may say (kata-contract.md 2.3 and 7, case 11). */
#include "unit/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "adaptor/podspec.h"

#define HYP "io.katacontainers.config.hypervisor."

static Hypervisor__CreateVMRequest request;
static Hypervisor__CreateVMRequest__AnnotationsEntry entries[16], *list[16];

static void set(const char *key, const char *value)
{
    size_t i = 0;
    while (i < request.n_annotations && strcmp(entries[i].key, key) != 0)
        i++;
    if (i == request.n_annotations)
        request.n_annotations++;
    hypervisor__create_vmrequest__annotations_entry__init(&entries[i]);
    entries[i].key = (char *)key;
    entries[i].value = (char *)value;
    list[i] = &entries[i];
}

static int set_up(void **state)
{
    static char id[] = "317c7ae225b8b5a7d6ee12d79dd3eb3e23e89b7fca54bef52b5b917a74603d4c";
    hypervisor__create_vmrequest__init(&request);
    request.id = id;
    request.annotations = list;
    request.networknamespacepath = (char *)"/var/run/netns/cni-1";
    set("io.kubernetes.cri.sandbox-name", "web-0");
    set("io.kubernetes.cri.sandbox-namespace", "ns1");
    set(HYP "machine_type", "t3.small");
    set(HYP "image", "");
    set(HYP "default_vcpus", "2");
    set(HYP "default_memory", "512");
    set(HYP "default_gpus", "0");
    set(HYP "default_gpu_model", "");
    set(HYP "cc_init_data", "");
    return 0;
}

static void all_nine_annotations(void **state)
{
    struct err err = ERR_INIT;
    struct podspec spec;
    assert_int_equal(podspec_parse(&request, &spec, &err), 0);
    assert_string_equal(spec.pod, "web-0");
    assert_string_equal(spec.spec.type, "t3.small");
    assert_int_equal(spec.spec.vcpus, 2);
    assert_int_equal(spec.spec.memory_mib, 512);
    assert_null(spec.initdata);
    set(HYP "default_vcpus", "1.5"); /* runtime-rs */
    set(HYP "default_memory", "");
    set("io.katacontainers.config.runtime.cc_init_data", "older key");
    assert_int_equal(podspec_parse(&request, &spec, &err), 0);
    assert_int_equal(spec.spec.vcpus, 2);
    assert_int_equal(spec.spec.memory_mib, 0);
    assert_string_equal(spec.initdata, "older key");
    set(HYP "cc_init_data", "newer key");
    assert_int_equal(podspec_parse(&request, &spec, &err), 0);
    assert_string_equal(spec.initdata, "newer key");
}

static void refused(const char *part)
{
    struct err err = ERR_INIT;
    struct podspec spec;
    assert_int_equal(podspec_parse(&request, &spec, &err), -EINVAL);
    assert_text_has(err.text, part);
}

static void bad_annotations_are_named(void **state)
{
    static const char *const numbers[] = {"-1", "many", "1e9", "0x10", "nan", "2 "};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        set(HYP "default_vcpus", numbers[i]);
        refused("default_vcpus is not a number between 0 and 4096");
    }
    set(HYP "default_vcpus", "");
    set(HYP "machine_type", "a b");
    refused("machine_type has blanks");
    set(HYP "machine_type", "");
    set("io.kubernetes.cri.sandbox-name", "");
    refused("sandbox-name is missing");
    set("io.kubernetes.cri.sandbox-name", "a/../b");
    refused("sandbox-name has characters");
}

static void bad_ids_and_paths_are_named(void **state)
{
    static char longer[301];
    static const char *const ids[] = {"", "a/b", "..", "../x", longer};
    memset(longer, 'a', 300);
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        request.id = (char *)ids[i];
        refused("sandbox id is not valid");
    }
    set_up(state);
    request.networknamespacepath = (char *)"";
    refused("networkNamespacePath is missing");
    request.networknamespacepath = (char *)"run/netns/x";
    refused("not an absolute path");
}

static void instance_names_are_those_of_the_go_program(void **state)
{
    char name[INSTANCE_NAME_MAX + 1], pod[300];
    podspec_instance_name("Web.0_x", "317c7ae225b8", name);
    assert_string_equal(name, "podvm--eb-0-x-317c7ae2");
    memset(pod, 'a', sizeof(pod) - 1);
    pod[sizeof(pod) - 1] = '\0';
    podspec_instance_name(pod, "317c7ae225b8", name);
    assert_int_equal(strlen(name), INSTANCE_NAME_MAX);
    assert_string_equal(name + 54, "-317c7ae2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_nine_annotations, set_up),
        cmocka_unit_test_setup(bad_annotations_are_named, set_up),
        cmocka_unit_test_setup(bad_ids_and_paths_are_named, set_up),
        cmocka_unit_test(instance_names_are_those_of_the_go_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
