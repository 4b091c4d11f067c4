/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the provider (or test/cloud-boot, which boots what a cloud's test double has made) and its
 * helper: the argument vector, whose order is the enum's, and descriptors 0 (null), 1 (pipe for one
 * error text), 2 (the VM's log), 3 (the instance's lock).
 */
#pragma once

#define VM_HELPER "peerpod-local-vm"
#define VM_HELPER_SECONDS 20 /* the helper ends itself after that */

enum vm_arg {
    VM_ARG_PROGRAM,
    VM_ARG_DIR, /* of the instance in the registry */
    VM_ARG_INDEX,
    VM_ARG_TOKEN,
    VM_ARG_NAME, /* host name */
    VM_ARG_GUEST_DIR,
    VM_ARG_AGENT, /* a command for /bin/sh */
    VM_ARG_BOOT_DELAY_MS,
    VM_ARG_OUTER,   /* "1": with a second interface, "0": without */
    VM_ARG_FAULT,   /* "", "no-boot", "no-forwarder", "no-tls" */
    VM_ARG_ADDRESS, /* IPv4 beside the link's own, reached from the worker; "": none */
    VM_ARGS,
};

#define VM_FD_REPORT 1
#define VM_FD_LOG 2
#define VM_FD_LOCK 3
