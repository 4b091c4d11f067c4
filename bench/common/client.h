/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim of the benchmarks: one connection, blocking, any number of calls at once, answers in the
 * order of their arrival. One thread may send while another receives.
 */
#pragma once

#include "base/err.h"
#include "bench/common/traffic.h"

struct client {
    int fd;
    uint32_t next_stream;
    uint8_t *in;
    size_t at, have;
};

struct reply {
    uint32_t stream;
    int code;
    const uint8_t *data; /* field 1 of the payload; until the next client_receive */
    size_t len;
};

int client_open(struct client *c, const char *path, struct err *err);
void client_close(struct client *c);

/* Each returns the stream id, or a negative errno. */
int64_t client_check(struct client *c);
int64_t client_read(struct client *c, uint32_t stream, size_t len);
int64_t client_copy(struct client *c, uint32_t stream, uint64_t offset, uint64_t size);
int64_t client_create(struct client *c, uint32_t number);
/* WaitProcess of process `number`: answered, with the number as 8 bytes, when client_end was called
 * for it. */
int64_t client_wait(struct client *c, uint32_t number);
int64_t client_end(struct client *c, uint32_t number);
int64_t client_counters(struct client *c);

/* -ETIMEDOUT after client_timeout, -ECONNRESET at the end, -EPROTO. */
int client_receive(struct client *c, struct reply *ret);
int client_timeout(struct client *c, int64_t ms);
