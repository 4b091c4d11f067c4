/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podnet_tool: one side of the pod's network at a time, for tests whose other side is a script.
 *
 *   podnet_tool inspect NETNS [index=N] [vni=N] [port=N] [host=IF] [v4only] [p2p] [cidr=CIDR,...]
 *                       [external]
 *                                        writes apf.json to standard output
 *   podnet_tool setup NETNS VM-ADDRESS... < apf.json      the worker's side
 *   podnet_tool teardown NETNS IF VNI
 *   podnet_tool guest-setup NETNS [wait=MS] [host=IF] [metadata=ADDRESS] < apf.json    the pod VM's side
 *   podnet_tool guest-teardown NETNS [metadata=ADDRESS] < apf.json
 *
 * Exit status 1 and the error's text on standard error when it failed.
 */
#include <errno.h>
#include <stdio.h>

#include "adaptor/podnet.h"
#include "base/str.h"
#include "forwarder/podnet.h"

struct words {
    int n;
    char **argv;
};

/* The value of key=VALUE; "" when it is not there. */
static const char *value(const struct words *w, const char *key)
{
    size_t len = strlen(key);

    for (int i = 0; i < w->n; i++)
        if (strncmp(w->argv[i], key, len) == 0 && w->argv[i][len] == '=')
            return w->argv[i] + len + 1;
    return "";
}

static uint32_t number(const struct words *w, const char *key, uint32_t otherwise)
{
    uint64_t v;

    return str_to_u64(value(w, key), UINT32_MAX, &v) < 0 ? otherwise : (uint32_t)v;
}

static bool flag(const struct words *w, const char *key)
{
    for (int i = 0; i < w->n; i++)
        if (str_eq(w->argv[i], key))
            return true;
    return false;
}

static int inspect(const struct words *w, struct err *err)
{
    struct apf apf = {.has_network = true};
    char **cidrs = *value(w, "cidr") ? str_split(value(w, "cidr"), ',') : NULL;
    const struct podnet_config config = {
        .netns = w->argv[0],
        .host_interface = value(w, "host"),
        .pod_subnets = cidrs,
        .index = number(w, "index", 0),
        .vni = number(w, "vni", 555000),
        .port = (uint16_t)number(w, "port", 4789),
        .point_to_point = flag(w, "p2p"),
        .ipv4_only = flag(w, "v4only"),
        .external_net_via_pod_vm = flag(w, "external"),
        .metadata_address = "",
    };
    char *text = NULL;
    size_t len = 0;
    int r = podnet_inspect(&config, &apf.network, err);

    if (r == 0)
        r = apf_build(&apf, &text, &len, err);
    if (r == 0)
        fwrite(text, 1, len, stdout);
    free(text);
    strv_free(cidrs);
    apf_done(&apf);
    return r;
}

static int read_apf(struct apf *ret, struct err *err)
{
    static char text[APF_JSON_MAX];
    size_t len = fread(text, 1, sizeof(text), stdin);

    return apf_parse(text, len, ret, err);
}

static int setup(const struct words *w, struct apf *apf, struct err *err)
{
    struct net_address remote;
    int r = podnet_remote(&apf->network, (const char *const *)w->argv + 1, (size_t)w->n - 1,
                          &remote, err);

    return r < 0 ? r : podnet_setup(w->argv[0], &apf->network, &remote, err);
}

static int run(const char *verb, const struct words *w, struct apf *apf, struct err *err)
{
    const struct podnet_guest guest = {.netns = w->argv[0],
                                       .host_interface = value(w, "host"),
                                       .metadata = value(w, "metadata"),
                                       .wait_ms = number(w, "wait", 5000)};
    uint64_t vni;

    if (str_eq(verb, "inspect"))
        return inspect(w, err);
    if (str_eq(verb, "teardown") && w->n == 3 && str_to_u64(w->argv[2], UINT32_MAX, &vni) == 0)
        return podnet_teardown(w->argv[0], w->argv[1], (uint32_t)vni, err);
    int r = read_apf(apf, err);
    if (r < 0)
        return r;
    if (str_eq(verb, "setup") && w->n >= 2)
        return setup(w, apf, err);
    if (str_eq(verb, "guest-setup"))
        return podnet_guest_setup(&apf->network, &guest, err);
    if (str_eq(verb, "guest-teardown"))
        return podnet_guest_teardown(&apf->network, &guest, err);
    return err_set(err, -EINVAL, "unknown: %s", verb);
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    struct apf apf = {0};

    if (argc < 3) {
        fputs("usage: podnet_tool VERB NETNS [WORD...]\n", stderr);
        return 2;
    }
    const struct words w = {argc - 2, argv + 2};
    int r = run(argv[1], &w, &apf, &err);
    apf_done(&apf);
    if (r < 0)
        fprintf(stderr, "%s\n", err_text(&err));
    return r < 0;
}
