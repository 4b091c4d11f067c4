/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: operations that block (a cloud's API, libvirt, a network namespace, a child process) run
 * on a thread of their own, straight-line, on private copies of their inputs, with one result that
 * the loop applies.
 *
 * A job waits only in helpers that honour its deadline and its cancel: job_sleep, job_poll,
 * job_http. They return -ECANCELED after job_cancel and -ETIMEDOUT after the deadline. A call that
 * changes the world is never cut short: it is finished, then undone by its caller.
 *
 * `struct job *` belongs to the pool; it is valid until its done callback has returned. Cancel it
 * as often as you like before then. Jobs over their class's limit wait in order of start.
 */
#pragma once

#include <uv.h>

#include "base/err.h"

enum job_class { JOB_CREATE, JOB_DELETE, JOB_OTHER, JOB_CLASSES };

struct job;
struct job_pool;

/* On the job's thread. */
typedef void job_run_fn(struct job *job, void *arg);
/* On the loop, exactly once for each started job, also when it was cancelled before it ran (ran is
 * false then). Frees arg. */
typedef void job_done_fn(void *arg, bool ran);

/* limits: jobs at once for each class, at least 1. Owned: job_pool_free, which cancels all jobs and
 * waits for their threads (done callbacks run inside it; it is not called from one). The last of
 * the pool's memory goes with the loop's next turn: run it once more before uv_loop_close. */
int job_pool_new(uv_loop_t *loop, const unsigned limits[JOB_CLASSES], struct job_pool **ret,
                 struct err *err);
void job_pool_free(struct job_pool *pool);
unsigned job_pool_running(const struct job_pool *pool); /* loop */
/* The process is about to _exit with jobs under way: nobody will join their threads. */
void job_pool_abandon(struct job_pool *pool); /* loop */

/* deadline_ms: from now, 0 for none. name: for logs and the thread's name, copied. */
int job_start(struct job_pool *pool, enum job_class class, const char *name, int64_t deadline_ms,
              job_run_fn *run, job_done_fn *done, void *arg, struct job **ret, struct err *err);
void job_cancel(struct job *job); /* any thread; an inline job's also from a signal handler */

/* A job for a program that has no loop (process-user-data, tests): runs on the caller's thread. */
struct job *job_new_inline(int64_t deadline_ms);
void job_free_inline(struct job *job);
DEFINE_CLEANUP(struct job, job_free_inline)

/* Any thread. -1: no deadline; else >= 0. */
int64_t job_remaining_ms(const struct job *job);
bool job_cancelled(const struct job *job);
/* 0 while the job may go on; else -ECANCELED or -ETIMEDOUT. */
int job_check(const struct job *job);
/* job thread. Limits of one wait: the shorter of timeout_ms (-1: none) and the deadline. */
int job_sleep(struct job *job, int64_t ms);
/* 0 ready (revents in *ret), -EAGAIN after timeout_ms, -ECANCELED, -ETIMEDOUT. */
int job_poll(struct job *job, int fd, short events, int64_t timeout_ms, short *ret);

/* For libraries that poll by themselves: readable once the job is cancelled. Borrowed. */
int job_cancel_fd(const struct job *job);
/* job thread. One thing that lives as long as the job's thread works (job_http's connections); it
 * is freed there. A second one replaces the first. */
void job_attach(struct job *job, void *thing, void (*free_fn)(void *));
void *job_attached(const struct job *job);

/*
 * What a job is about and what it waits for, for logs and for the operator. job_about: job thread;
 * the id is copied. job_say: any thread, NULL or "" when it waits no more; job_words: any thread.
 */
#define JOB_WORDS_MAX 256
void job_about(struct job *job, const char *sandbox);
const char *job_sandbox(const struct job *job); /* job thread; NULL when not said */
void job_say(struct job *job, const char *fmt, ...) _printf_(2, 3);
void job_words(struct job *job, char ret[JOB_WORDS_MAX]);
