/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of the daemon's common options. Names, variables, types and defaults of the first part
 * are the Go program's and may not change (compat.md); the second part is ours. Options that later
 * issues give a meaning to are accepted already, because existing DaemonSets pass them.
 */
#include "adaptor/config.h"

#define FIELD(name) .offset = offsetof(struct adaptor_config, name)
#define PORT .min = 1, .max = 65535

static const char *const tls_versions[] = {"VersionTLS12", "VersionTLS13", NULL};
static const char *const tunnel_types[] = {"vxlan", NULL};
static const char *const compat_modes[] = {"upstream", "native", NULL};
static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const log_formats[] = {"text", "json", NULL};

const struct opt adaptor_options[] = {
    {"socket", "REMOTE_HYPERVISOR_ENDPOINT", OPT_STRING, FIELD(socket),
     .def = "/run/peerpod/hypervisor.sock", .help = "unix socket of the remote hypervisor service"},
    {"pods-dir", "PODS_DIR", OPT_STRING, FIELD(pods_dir), .def = "/run/peerpod/pods",
     .help = "state directory; one directory for each sandbox"},
    {"pause-image", "PAUSE_IMAGE", OPT_STRING, FIELD(pause_image),
     .help = "accepted and unused: the pause image is in the pod VM"},
    {"forwarder-port", "FORWARDER_PORT", OPT_STRING, FIELD(forwarder_port), .def = "15150",
     .help = "TCP port of the forwarder in the pod VM"},
    {"ca-cert-file", "CACERT_FILE", OPT_STRING, FIELD(ca_cert_file),
     .help = "CA certificates that the forwarder's certificate is checked with (plain mode)"},
    {"cert-file", "CERT_FILE", OPT_STRING, FIELD(cert_file),
     .help = "client certificate for the forwarder (plain mode)"},
    {"cert-key", "CERT_KEY", OPT_STRING, FIELD(cert_key),
     .help = "key file of the client certificate (plain mode)"},
    {"tls-skip-verify", "TLS_SKIP_VERIFY", OPT_BOOL, FIELD(tls_skip_verify),
     .help = "do not check the forwarder's certificate (plain mode)"},
    {"tls-min-version", "TLS_MIN_VERSION", OPT_STRING, FIELD(tls_min_version),
     .choices = tls_versions, .help = "lowest TLS version (plain mode)"},
    {"tls-cipher-suites", "TLS_CIPHER_SUITES", OPT_LIST, FIELD(tls_cipher_suites),
     .help = "TLS 1.2 cipher suites by IANA name (plain mode)"},
    {"proxy-timeout", "PROXY_TIMEOUT", OPT_DURATION, FIELD(proxy_timeout_ns), .def = "5m",
     .flags = OPT_POSITIVE, .help = "how long StartVM waits for the forwarder in the pod VM"},
    {"tunnel-type", "TUNNEL_TYPE", OPT_STRING, FIELD(tunnel_type), .def = "vxlan",
     .choices = tunnel_types, .help = "how the pod's network reaches the pod VM"},
    {"vxlan-port", "VXLAN_PORT", OPT_INT, FIELD(vxlan_port), .def = "4789", PORT,
     .help = "UDP port of VXLAN"},
    {"initdata", "INITDATA", OPT_STRING, FIELD(initdata),
     .help = "initdata for pods that bring none: base64 of gzip of TOML"},
    {"cloud-config-verify", "CLOUD_CONFIG_VERIFY", OPT_BOOL, FIELD(cloud_config_verify),
     .help = "read each pod VM's cloud-config back before it is used"},
    {"peerpods-limit-per-node", "PEERPODS_LIMIT_PER_NODE", OPT_INT, FIELD(peerpods_limit),
     .def = "10", .min = INT32_MIN, .max = INT32_MAX,
     .help = "advertised as extended resource kata.peerpods.io/vm; negative: none"},
    {"enable-scratch-space", "ENABLE_SCRATCH_SPACE", OPT_BOOL, FIELD(enable_scratch_space),
     .help = "encrypted scratch space in the pod VM"},
    {"ext-network-via-podvm", "EXTERNAL_NETWORK_VIA_PODVM", OPT_BOOL, FIELD(ext_network_via_podvm),
     .help = "traffic that leaves the cluster goes out of the pod VM"},
    {"pod-subnet-cidrs", "POD_SUBNET_CIDRS", OPT_LIST, FIELD(pod_subnet_cidrs),
     .help = "subnets that stay in the tunnel with -ext-network-via-podvm"},
    {"disable-tls", NULL, OPT_BOOL, FIELD(disable_tls),
     .help = "no TLS to the forwarder (plain mode; for tests)"},
    {"host-interface", NULL, OPT_STRING, FIELD(host_interface),
     .help = "interface that carries VXLAN; default: the one with the default route"},
    {"vxlan-min-id", NULL, OPT_INT, FIELD(vxlan_min_id), .def = "555000", .min = 1,
     .max = (1 << 24) - 1, .help = "lowest VXLAN id"},

    {"forwarder-compat", "FORWARDER_COMPAT", OPT_STRING, FIELD(forwarder_compat), .def = "upstream",
     .choices = compat_modes, .help = "what runs in the pod VMs: the stock forwarder, or ours"},
    {"cluster-uid", "CLUSTER_UID", OPT_STRING, FIELD(cluster_uid),
     .help = "written on every resource; without it nothing unknown is ever deleted"},
    {"node-name", "NODE_NAME", OPT_STRING, FIELD(node_name),
     .help = "written on every resource; default: the host's name"},
    {"control-socket", "CONTROL_SOCKET", OPT_STRING, FIELD(control_socket),
     .def = "/run/peerpod/control.sock", .help = "unix socket that peerpodctl talks to"},
    {"start-timeout", "START_TIMEOUT", OPT_DURATION, FIELD(start_timeout_ns), .def = "10m",
     .flags = OPT_POSITIVE, .help = "upper bound of StartVM, whatever the caller allows"},
    {"grace-unstarted", "GRACE_UNSTARTED", OPT_DURATION, FIELD(grace_unstarted_ns), .def = "15m",
     .flags = OPT_POSITIVE, .help = "a sandbox that was created and not started ends after this"},
    {"grace-shim-gone", "GRACE_SHIM_GONE", OPT_DURATION, FIELD(grace_shim_gone_ns), .def = "60s",
     .flags = OPT_POSITIVE,
     .help = "a sandbox whose shim has closed its connection without StopVM ends after this"},
    {"tunnel-hold", "TUNNEL_HOLD", OPT_DURATION, FIELD(tunnel_hold_ns), .def = "150s",
     .flags = OPT_POSITIVE,
     .help = "how long a pod waits for a VM that cannot be reached before it fails"},
    {"reconcile-interval", "RECONCILE_INTERVAL", OPT_DURATION, FIELD(reconcile_interval_ns),
     .def = "5m", .flags = OPT_POSITIVE,
     .help = "how often the provider's instances are compared with the sandboxes"},
    {"orphan-grace", "ORPHAN_GRACE", OPT_DURATION, FIELD(orphan_grace_ns), .def = "24h",
     .flags = OPT_POSITIVE,
     .help = "an instance of this node and boot that no sandbox knows is deleted after this"},
    {"orphan-boot-grace", "ORPHAN_BOOT_GRACE", OPT_DURATION, FIELD(orphan_boot_grace_ns),
     .def = "10m", .flags = OPT_POSITIVE,
     .help = "one that was made before the node was booted, after this"},
    {"max-creates", "MAX_CREATES", OPT_INT, FIELD(max_creates), .def = "32", .min = 1, .max = 1024,
     .help = "instances being created at once; more wait"},
    {"max-deletes", "MAX_DELETES", OPT_INT, FIELD(max_deletes), .def = "32", .min = 1, .max = 1024,
     .help = "instances being deleted at once; more wait"},
    {"max-sandboxes", "MAX_SANDBOXES", OPT_INT, FIELD(max_sandboxes), .def = "2000", .min = 1,
     .max = 100000, .help = "CreateVM is refused beyond so many"},
    {"log-level", "LOG_LEVEL", OPT_STRING, FIELD(log_level), .def = "info", .choices = log_levels,
     .help = "what is logged"},
    {"log-format", "LOG_FORMAT", OPT_STRING, FIELD(log_format), .def = "text",
     .choices = log_formats, .help = "lines for people or JSON objects"},
    OPT_END,
};
