/* SPDX-License-Identifier: Apache-2.0 */
/* The three streams between us and the container, each on a thread of its own. */
#pragma once

#include <pthread.h>

#include "wire/ttrpc_client.h"

struct stdio {
    struct ttrpc_client *agent; /* borrowed */
    const char *container;      /* borrowed */
    bool terminal, forward_stdin;
    int stop; /* eventfd for the stdin thread */
    pthread_t in, out, error;
    bool has_in, has_error;
    struct err err; /* why output ended early; read after stdio_output_end */
    pthread_mutex_t lock;
};

int stdio_start(struct stdio *s, struct ttrpc_client *agent, const char *container, bool terminal,
                bool forward_stdin, struct err *err);
/* Returns when both output streams have ended, as the shim does before it waits for the process. */
void stdio_output_end(struct stdio *s);
/* Ends the stdin thread and frees. The agent's connection must answer or be shut down. */
void stdio_done(struct stdio *s);
