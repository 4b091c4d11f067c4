/* SPDX-License-Identifier: Apache-2.0 */
/* The forwarder's options (compat.md "Forwarder flags", and ours). */
#pragma once

#include "base/opt.h"

struct forwarder_options {
    char *config;                         /* apf.json */
    char *listen;                         /* HOST:PORT */
    char *agent_socket;                   /* of the kata-agent */
    char *pod_namespace;                  /* path of the pod's network namespace */
    char *host_interface;                 /* of the tunnel to the worker (issue 5) */
    char *metadata;                       /* address that containers reach; "": apf.json's word */
    char *ca_file, *cert_file, *key_file; /* plain mode (issue 4) */
    bool tls_skip_verify, disable_tls;    /* plain mode (issue 4) */
    char *state_dir;
    int64_t feature_mask;
    struct opt_program program;
};

extern const struct opt forwarder_options[];
