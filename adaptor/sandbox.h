/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sandboxes: one pod, one VM. See sandbox.c for the life of one, record.h for its states.
 * Everything on the loop.
 */
#pragma once

#include "adaptor/adaptor.h"
#include "adaptor/metrics.h"
#include "adaptor/podspec.h"
#include "adaptor/record.h"
#include "relay/tunnel.h"

#define SANDBOX_SECRET_SIZE 32

struct apf;
struct shimconn;
struct plainmode;

/* Somebody who waits for an outcome. Embedded in what the waiter allocates; done is called exactly
 * once (err NULL: success) unless the waiter was taken back. */
struct waiter {
    struct waiter *next;
    void (*done)(struct waiter *w, const struct err *err);
};

struct sandbox {
    struct sandbox *next;
    struct adaptor *adaptor;
    struct record record;
    int dir; /* of its state */
    char socket_path[108];
    struct tls_identity *identity;
    uint8_t secret[SANDBOX_SECRET_SIZE]; /* enrolment; all zero once enrolled */
    int listen_fd;
    uv_poll_t *listen_poll;
    uv_timer_t accept_again;
    struct shimconn *conns;
    struct tunnel *tunnel;   /* native mode */
    struct plainmode *plain; /* plain mode (record.plain) */
    bool tunnel_up, agent_ready;
    bool resuming;               /* found running at start; its tunnel has not been up since */
    uint64_t bytes_tx, bytes_rx; /* of tunnels that are no more */
    struct job *job;             /* the one in flight: create, wait or delete */
    struct waiter *starters;     /* StartVM calls */
    struct waiter *enders;       /* wait until a DELETING sandbox has gone */
    uv_timer_t timer; /* CREATED: grace; STARTING: deadline; RUNNING: shim gone; DELETING: retry */
    uv_timer_t watch; /* STARTING; RUNNING with the tunnel down */
    int64_t tunnel_down_ms;
    bool netns_seen;               /* by this process */
    int64_t netns_gone_ms;         /* since when; 0: it is there, or nobody knows */
    unsigned handles;              /* that are not closed yet */
    char waits_for[JOB_WORDS_MAX]; /* of the job, as control.c last asked it */
    const char *step;              /* of STARTING, for people: "waiting for the forwarder" */
    struct start_clock start_clock;
    bool create_unsure; /* our predecessor's call may still be under way at the provider */
    unsigned delete_tries;
    int64_t start_began_ms, start_deadline_ms; /* monotonic */
};

/* -- registry (sandbox.c) -- */

/* NULL when there is none. Exact. */
struct sandbox *sandbox_find(struct adaptor *a, const char *id);
struct sandbox *sandbox_find_token(struct adaptor *a, const char *token);
/* A new sandbox in state CREATED, with its state on disk and its socket listening. */
int sandbox_create(struct adaptor *a, const struct podspec *spec, struct sandbox **ret,
                   struct err *err);
/* -EPROTONOSUPPORT: a record or a file in that directory is of a newer major version; else 0. Only
 * looks. */
int sandbox_check_format(struct adaptor *a, const char *name, struct err *err);
/* At start: the sandbox that lies in this directory of the state; 0 also when there is nothing to
 * take over. Negative: the start must fail, and nothing is lost; the keeper's next try finds it
 * better or says the same. */
int sandbox_recover(struct adaptor *a, const char *name, struct err *err);
/* Is a failure the machine's, short of memory or descriptors for the moment, and not that of what
 * was read? To give a sandbox up for it would be to end a pod that runs. */
bool sandbox_is_trouble(int r);
int sandbox_save(struct sandbox *sb, struct err *err);
/* Remembers for status and logs; does not save. */
void sandbox_note_error(struct sandbox *sb, const char *step, const struct err *err);
void sandbox_arm(struct sandbox *sb, int64_t ms, uv_timer_cb fn);
void sandbox_disarm(struct sandbox *sb);
/* Ends the listener, connections and tunnel; the shim sees end of file at once. */
void sandbox_close_streams(struct sandbox *sb);
/* Takes it out of the registry and frees it. Its state is untouched. */
void sandbox_free(struct sandbox *sb);
void waiter_add(struct waiter **list, struct waiter *w);
bool waiter_remove(struct waiter **list, struct waiter *w);
void waiters_done(struct waiter **list, const struct err *err);

/* -- StartVM (start.c) -- */

/* Joins a start that is under way, succeeds at once for a running sandbox. timeout_ns 0: none. w's
 * done may be called before this returns. */
void sandbox_start(struct sandbox *sb, int64_t timeout_ns, struct waiter *w);
/* The waiter's client is gone: w is forgotten; the last one takes the start with it. */
void sandbox_start_abandon(struct sandbox *sb, struct waiter *w);
/* After our predecessor's death: goes on with a start that was under way. Its callers come back by
 * themselves (rpc.c); a start that nobody comes back for is taken back. */
void sandbox_start_resume(struct sandbox *sb);
/* The start has failed: says so to all who wait, and begins to delete what was made. */
void sandbox_start_fail(struct sandbox *sb, const char *step, const struct err *err);
/* Of the forwarder, from the record. */
int sandbox_address(struct sandbox *sb, struct sockaddr_storage *ret, socklen_t *ret_len,
                    struct err *err);
/* Its tunnel is up again, or it has ended: it is not waited for any more. */
void sandbox_resumed(struct sandbox *sb);
/* No sandbox that was found at start is waited for any more: for the log. */
void sandbox_all_resumed(const struct adaptor *a);
/* Makes the tunnel of a sandbox whose instance has an address, and dials. */
int sandbox_tunnel_open(struct sandbox *sb, struct err *err);

/* -- the pod's network in StartVM (network.c) -- */

/* Gives the sandbox a VXLAN id of its own; does not save. */
int sandbox_network_reserve(struct sandbox *sb, struct err *err);
/* On the loop, with the pod's network in apf->network, which it may take; negative fails StartVM. */
typedef int sandbox_network_fn(struct sandbox *sb, struct apf *apf, struct err *err);
/* Starts the job that inspects the pod's network, and sets it up when the VM's address is known.
 * Its failure, and StopVM, are seen to. */
int sandbox_network_begin(struct sandbox *sb, bool setup, sandbox_network_fn *next,
                          struct err *err);

/* -- StopVM (stop.c) -- */

/* Idempotent. On return the state is DELETING on disk, nothing is served any more, and deletion
 * goes on in the background until the provider confirms it. why: for the log. */
void sandbox_stop(struct sandbox *sb, const char *why);
/* The job in flight has ended while DELETING. */
void sandbox_delete_continue(struct sandbox *sb);
/* The same in the loop's next turn. */
void sandbox_delete_soon(struct sandbox *sb);

/* -- while it starts and runs (watch.c) -- */

/* Begins the questions about the VM and the callers of a sandbox in STARTING. */
void sandbox_watch_start(struct sandbox *sb);
/* Begins or ends the grace period, by whether a shim is connected. */
void sandbox_watch_shim(struct sandbox *sb);
/* Begins or ends the questions about the VM, by whether the tunnel is up. */
void sandbox_watch_tunnel(struct sandbox *sb);
/* Looks whether the network namespaces of all are still there. */
void sandbox_watch_netns(struct adaptor *a);

/* -- connections of the shim (shimconn.c) -- */

int shimconn_listen(struct sandbox *sb, struct err *err);
void shimconn_unlisten(struct sandbox *sb);
/* Takes over the connections that the state and the store hold. What is lost of them is only logged;
 * negative: nothing is (sandbox_is_trouble). */
int shimconn_recover_all(struct sandbox *sb, struct err *err);
void shimconn_close_all(struct sandbox *sb);
/* Frees listener and connections of this process only; the store and the files keep them. */
void shimconn_release_all(struct sandbox *sb);
/* Gives all of them to a new tunnel. */
void shimconn_attach_all(struct sandbox *sb);
unsigned shimconn_count(const struct sandbox *sb);
/* Is there one that has sent a byte (the ttrpc connection of the pod)? */
bool shimconn_has_control(const struct sandbox *sb);
