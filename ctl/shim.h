/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls of a kata Go shim, typed (kata-contract.md 2.1, 3.3): the hypervisor's on a connection
 * of their own each, the agent's on the one that the caller holds.
 */
#pragma once

#include "agent.pb-c.h"
#include "wire/ttrpc_client.h"

struct shim_vm {
    const char *socket; /* hypervisor.sock */
    const char *id, *pod, *namespace, *netns;
    const char *initdata;     /* text or NULL */
    char *const *annotations; /* key=value beyond or instead of the usual nine, or NULL */
};

/* ret_agent_socket: owned. */
int shim_create_vm(const struct shim_vm *vm, char **ret_agent_socket, struct err *err);
int shim_start_vm(const struct shim_vm *vm, int64_t timeout_ms, struct err *err);
int shim_stop_vm(const struct shim_vm *vm, struct err *err);

struct shim_container {
    const char *id, *sandbox, *pod, *namespace;
    const char *image; /* "pause" for the sandbox's own container */
    char *const *args; /* NULL-terminated */
    char *const *env;
    bool terminal;
    unsigned short rows, columns;
};

#define SHIM_COPY_PATH_MAX 256
/* Where the agent keeps the copy of a file of that container: "...-resolv.conf". */
void shim_copy_path(const char *container, const char *name, char out[SHIM_COPY_PATH_MAX]);

int shim_check(struct ttrpc_client *agent, struct err *err);
/* resolv: the lines for the sandbox's dns. */
int shim_create_sandbox(struct ttrpc_client *agent, const char *id, const char *hostname,
                        const char *resolv, struct err *err);
/* ret_version: owned. */
int shim_guest_details(struct ttrpc_client *agent, char **ret_version, struct err *err);
int shim_copy_file(struct ttrpc_client *agent, const char *path, const void *data, size_t len,
                   struct err *err);
int shim_create_container(struct ttrpc_client *agent, const struct shim_container *c,
                          struct err *err);
int shim_start_container(struct ttrpc_client *agent, const char *id, struct err *err);
int shim_remove_container(struct ttrpc_client *agent, const char *id, struct err *err);
int shim_destroy_sandbox(struct ttrpc_client *agent, struct err *err);

/* For the container's first process. */
int shim_signal(struct ttrpc_client *agent, const char *id, int signo, struct err *err);
/* Blocks. */
int shim_wait(struct ttrpc_client *agent, const char *id, int *ret_status, struct err *err);
/* Blocks. method: "ReadStdout" or "ReadStderr". ret: owned; *ret_len 0 is the stream's end, which
 * the agent may also tell by an error. */
int shim_read(struct ttrpc_client *agent, const char *id, const char *method, uint8_t **ret,
              size_t *ret_len, struct err *err);
int shim_write(struct ttrpc_client *agent, const char *id, const void *data, size_t len,
               struct err *err);
int shim_close_stdin(struct ttrpc_client *agent, const char *id, struct err *err);
int shim_resize(struct ttrpc_client *agent, const char *id, unsigned rows, unsigned columns,
                struct err *err);
/* Blocks. ret_container: owned. */
int shim_oom_event(struct ttrpc_client *agent, char **ret_container, struct err *err);
