/* SPDX-License-Identifier: Apache-2.0 */
/* peerpodctl's commands and what they share. */
#pragma once

#include "base/opt.h"

#define CTL_HYPERVISOR_SOCKET "/run/peerpod/hypervisor.sock"
#define CTL_CONTROL_SOCKET "/run/peerpod/control.sock"
#define CTL_PODS_DIR "/run/peerpod/pods"

/* Exit statuses of peerpodctl itself; `run` otherwise exits with the command's. */
#define CTL_FAILED 1
#define CTL_USAGE 2
#define CTL_RUN_FAILED 125 /* the pod could not be run: as docker and podman do */

/* Each takes the words behind its own name and returns an exit status. */
int ctl_status(char *const *argv);
int ctl_inspect(char *const *argv);
int ctl_logs(char *const *argv);
int ctl_orphans(char *const *argv);
int ctl_run(char *const *argv);
int ctl_verify(char *const *argv);

/* Parses `sets`; handles -help. Returns 0 to go on, else *ret_exit holds the exit status. synopsis:
 * "status [-o json]"; about: what stands below it in the help. */
int ctl_parse(struct opt_set *sets, char *const *argv, const char *synopsis, const char *about,
              const bool *help, char ***ret_rest, int *ret_exit);
/* With a config file below flags and environment; NULL: none. */
int ctl_parse_file(struct opt_set *sets, char *const *argv, const char *file, const char *synopsis,
                   const char *about, const bool *help, char ***ret_rest, int *ret_exit);
