/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forwarder's options. Names, defaults and paths of the first ten are those of the Go program,
 * because units and images name them; what plain mode alone uses is accepted in native mode and
 * means nothing there.
 */
#include "forwarder/options.h"

#include "base/log.h"

#define AT(field) offsetof(struct forwarder_options, field)
#define STRING(name, field, value, text)                                                           \
    {                                                                                              \
        .flag = name, .type = OPT_STRING, .offset = AT(field), .def = value, .help = text          \
    }
#define WORD(name, variable, field, value, words, text)                                            \
    {                                                                                              \
        .flag = name, .env = variable, .type = OPT_STRING, .offset = AT(field), .def = value,      \
        .choices = words, .help = text                                                             \
    }
#define SWITCH(name, field, text)                                                                  \
    {                                                                                              \
        .flag = name, .type = OPT_BOOL, .offset = AT(field), .help = text                          \
    }

const struct opt forwarder_options[] = {
    STRING("config", config, "/run/peerpod/apf.json", "The daemon's word to this pod VM"),
    STRING("listen", listen, "0.0.0.0:15150", "Address and port for the daemon"),
    STRING("kata-agent-socket", agent_socket, "/run/kata-containers/agent.sock",
           "Socket of the kata-agent"),
    STRING("pod-namespace", pod_namespace, "/run/netns/podns",
           "Network namespace that the containers join"),
    STRING("host-interface", host_interface, "",
           "Interface to the worker; chosen by its address when empty"),
    STRING(
        "pod-metadata-address", metadata, "",
        "Opens the cloud's metadata service at this address to containers (a risk); what apf.json "
        "says when empty"),
    STRING("ca-cert-file", ca_file, "", "Plain mode: certificates that clients are checked with"),
    STRING("cert-file", cert_file, "", "Plain mode: our certificate"),
    STRING("cert-key", key_file, "", "Plain mode: our key"),
    SWITCH("tls-skip-verify", tls_skip_verify, "Plain mode: take any client"),
    SWITCH("disable-tls", disable_tls, "Plain mode: no TLS"),
    STRING("state-dir", state_dir, "/run/peerpod/forwarder",
           "Key and connections, kept over restarts of this program"),
    {.flag = "tunnel-feature-mask",
     .type = OPT_INT,
     .offset = AT(feature_mask),
     .def = "0",
     .min = 0,
     .max = INT64_MAX,
     .flags = OPT_HIDDEN,
     .help = "Features not to offer, for tests of old peers"},
    OPT_PROGRAM_ROWS(AT(program), "LOG_LEVEL", "LOG_FORMAT"),
    OPT_END,
};
