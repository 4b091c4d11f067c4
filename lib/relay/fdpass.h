/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages with descriptors over unix sockets: lines of KEY=value, as sd_notify(3) has them.
 */
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include "base/err.h"

#define FDPASS_TEXT_MAX 4096
#define FDPASS_FDS_MAX 253 /* SCM_MAX_FD */

struct fdpass {
    char text[FDPASS_TEXT_MAX];
    size_t len;
    int fds[FDPASS_FDS_MAX];
    size_t n_fds;
    struct ucred sender; /* where SO_PASSCRED is set; uid -1: nobody said */
    bool cut;            /* by the kernel: too long, or no descriptor left; not to be used */
};

/* path may begin with '@' (the abstract namespace). */
int fdpass_address(const char *path, struct sockaddr_un *ret, socklen_t *ret_len, struct err *err);
/* 0 when it is in the queue of who is connected; fds stay the caller's. */
int fdpass_send(int fd, const char *text, size_t len, const int *fds, size_t n_fds);
/* The same to an address. */
int fdpass_send_to(int fd, const struct sockaddr_un *to, socklen_t to_len, const char *text,
                   const int *fds, size_t n_fds);
/* 1: a message, its descriptors are the caller's, as numbers that rise; 0: the end of a
 * connection, or an empty message; or a negative errno. With MSG_PEEK it stays in the queue. */
int fdpass_receive(int fd, int flags, struct fdpass *m);
void fdpass_close(struct fdpass *m);
/* The value of the first line KEY=..., not terminated; NULL: no such line. */
const char *fdpass_value(const struct fdpass *m, const char *key, size_t *ret_len);
/* Whether there is a line KEY=1. */
bool fdpass_has(const struct fdpass *m, const char *key);
/* Waits for one message; on failure (the end, a time-out, one that was cut) m holds nothing. */
int fdpass_hear(int fd, struct fdpass *m, struct err *err);

#define FDPASS_QUEUE_PATH_MAX 64
/* A datagram socket (SO_PASSCRED) at DIR/notify, DIR a new private directory, in /run or /tmp. */
int fdpass_open_queue(char ret_dir[FDPASS_QUEUE_PATH_MAX], char ret_path[FDPASS_QUEUE_PATH_MAX],
                      int *ret_fd, struct err *err);

/* ---- seqpacket sockets at a path, for two processes of one user (or root) ---- */

/* Root or our own user. */
bool fdpass_trusted(const struct ucred *who);
/* 0: whole, and from such a sender. */
int fdpass_check(const struct fdpass *m, struct err *err);
/* Connects to who listens at path, or, where nobody does, listens there (0600); of several that
 * come at once exactly one listens. Sets one of the two. -EPERM: somebody else's. */
int fdpass_meet(const char *path, int64_t timeout_ms, int *ret_fd, int *ret_listener,
                struct err *err);
/* Listens at path, in the place of who does so now: at no moment does nobody. */
int fdpass_listen(const char *path, int *ret_fd, struct err *err);
/* A connection, each send and receive bounded by timeout_ms (then -EAGAIN). */
int fdpass_accept(int listener, int64_t timeout_ms, int *ret_fd, struct err *err);
