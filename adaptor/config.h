/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's common options (compat.md "common", and ours), from one table. */
#pragma once

#include "base/opt.h"

struct adaptor_config {
    /* as the Go program's */
    char *socket, *pods_dir, *pause_image, *forwarder_port;
    char *ca_cert_file, *cert_file, *cert_key, *tls_min_version;
    char **tls_cipher_suites;
    bool tls_skip_verify, disable_tls;
    int64_t proxy_timeout_ns;
    char *tunnel_type, *host_interface;
    int64_t vxlan_port, vxlan_min_id;
    char *initdata;
    bool cloud_config_verify, enable_scratch_space, ext_network_via_podvm;
    int64_t peerpods_limit;
    char **pod_subnet_cidrs;
    /* ours */
    char *pod_metadata_address;
    char *forwarder_compat, *cluster_uid, *node_name, *control_socket, *log_level, *log_format;
    int64_t start_timeout_ns, grace_unstarted_ns, grace_shim_gone_ns, grace_netns_gone_ns;
    int64_t tunnel_hold_ns;
    int64_t reconcile_interval_ns, orphan_grace_ns, orphan_boot_grace_ns;
    char *probe_address;
    int64_t probe_port;
    int64_t max_creates, max_deletes, max_sandboxes;
    int64_t tunnel_feature_mask;
};

extern const struct opt adaptor_options[];
