/* SPDX-License-Identifier: Apache-2.0 */
/*
 * apf.json: what the forwarder in a pod VM is told by the daemon (docs/apf.md, compat.md
 * "apf.json"). One struct for both sides: the daemon fills it and builds, the forwarder parses.
 *
 * Keys match whatever their case, as Go's reader does it; unknown keys are skipped, so that an
 * older forwarder (and the stock Go one) reads what a newer daemon writes. Addresses are numeric
 * text in canonical form, "" when absent. The struct owns its strings: fill it with xstrdup, end
 * it with apf_done, which overwrites the secrets.
 */
#pragma once

#include <net/if.h>

#include "base/err.h"

#define APF_JSON_MAX (1U << 20)
#define APF_PEM_MAX (64U << 10)
#define APF_NAME_MAX 253 /* pod and namespace names */
#define APF_ROUTES_MAX 512
#define APF_NEIGHBORS_MAX 4096
#define APF_PODIPS_MAX 8 /* addresses beside podip */
#define APF_CIPHER_SUITES_MAX 32
#define APF_PREFIX_SIZE 50 /* "addr/len", IPv6 with a dotted tail included */
#define APF_ADDRESS_SIZE 46
#define APF_HW_ADDR_SIZE 64 /* "02:42:ac:11:00:02"; Infiniband's are longer */
#define APF_WORD_SIZE 16
#define APF_SANDBOX_ID_SIZE 65
#define APF_SECRET_MIN 16
#define APF_SECRET_MAX 64

struct apf_route {
    char dst[APF_PREFIX_SIZE]; /* "": the default route */
    char gw[APF_ADDRESS_SIZE]; /* "": none */
    char dev[IFNAMSIZ];
    char protocol[APF_WORD_SIZE]; /* "", static, boot, dhcp, kernel */
    char scope[APF_WORD_SIZE];    /* "", universe, site, link, host, nowhere */
};

struct apf_neighbor {
    char ip[APF_ADDRESS_SIZE];
    char dev[IFNAMSIZ];
    char hw_addr[APF_HW_ADDR_SIZE];
    char state[APF_WORD_SIZE]; /* "", permanent, reachable, ... (docs/apf.md) */
};

struct apf_network {
    char podip[APF_PREFIX_SIZE];
    char podips[APF_PODIPS_MAX][APF_PREFIX_SIZE]; /* further addresses of a dual-stack pod (ours) */
    size_t n_podips;
    char pod_hw_addr[APF_HW_ADDR_SIZE];
    char interface[IFNAMSIZ];
    char worker_node_ip[APF_PREFIX_SIZE];
    char tunnel_type[APF_WORD_SIZE];
    struct apf_route *routes; /* owned */
    size_t n_routes;
    struct apf_neighbor *neighbors; /* owned */
    size_t n_neighbors;
    uint32_t mtu;
    uint32_t index;
    uint32_t vxlan_port; /* 0: absent */
    uint32_t vxlan_id;   /* 0: absent */
    bool dedicated;
    bool external_net_via_pod_vm;
    char metadata_address[APF_ADDRESS_SIZE]; /* that containers may reach (ours); "": none */
};

enum apf_tunnel {
    APF_TUNNEL_UPSTREAM, /* key absent: plain ttrpc over TLS, as the Go programs speak */
    APF_TUNNEL_NATIVE,
};

struct apf {
    bool has_network; /* false: no pod-network; the caller says so if it needs one */
    struct apf_network network;
    char *pod_namespace, *pod_name; /* owned, NULL: absent */
    char *tls_server_key;           /* PEM, owned, NULL: absent; secret */
    char *tls_server_cert, *tls_client_ca;
    char *tls_min_version;    /* as the flag of that name: "VersionTLS12", "VersionTLS13" */
    char **tls_cipher_suites; /* NULL-terminated (strv_free) or NULL */
    /* Ours; all three or none (docs/apf.md). */
    enum apf_tunnel tunnel;
    char sandbox_id[APF_SANDBOX_ID_SIZE]; /* "": absent */
    uint8_t enrolment_secret[APF_SECRET_MAX];
    size_t enrolment_secret_len; /* 0: absent */
};

/* The JSON text, on one line, ends with a newline; byte-stable. Owned, secret (buf_done_secret's
 * care is the caller's). -EINVAL names the key that is out of bounds. */
int apf_build(const struct apf *apf, char **ret, size_t *ret_len, struct err *err);
/* ret is written on success only. Errors name the key and what is allowed, never a secret. */
int apf_parse(const char *text, size_t len, struct apf *ret, struct err *err);
/* Overwrites and frees; fine on a zeroed struct. */
void apf_done(struct apf *apf);
