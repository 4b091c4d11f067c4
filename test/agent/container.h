/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox's containers and their processes: one registry for the agent, one lock. A process is
 * used by calls through a reference and goes when the last one is dropped.
 */
#pragma once

#include "agent.pb-c.h"
#include "server.h"

struct process;

struct sandbox_config {
    const char *run_dir; /* "/run/kata-containers": what CreateSandbox empties */
};

void sandbox_init(const struct sandbox_config *config);
/* Kills and reaps all processes, undoes all mounts. */
void sandbox_done(void);

/* On SIGCHLD: a zombie in a pid namespace would keep its process 1 from ending. */
void sandbox_reap(void);

/* Handlers' work; each answers the call or returns a call_wait error. */
int sandbox_create(struct call *call, const Grpc__CreateSandboxRequest *q);
int container_create(struct call *call, const Grpc__CreateContainerRequest *q);
int container_start(struct call *call, const char *id);
int container_exec(struct call *call, const Grpc__ExecProcessRequest *q);
int container_remove(struct call *call, const char *id);
int process_signal(struct call *call, const char *id, const char *exec_id, int signo);
int process_wait(struct call *call, const char *id, const char *exec_id);
/* stream: 1 stdout, 2 stderr */
int process_read(struct call *call, const Grpc__ReadStreamRequest *q, int stream);
int process_write(struct call *call, const Grpc__WriteStreamRequest *q);
int process_close_stdin(struct call *call, const char *id, const char *exec_id);
int process_resize(struct call *call, const Grpc__TtyWinResizeRequest *q);
/* The container's first process and how many are known; -ENOENT. */
int container_pids(const char *id, pid_t *ret_pid, unsigned *ret_count);
