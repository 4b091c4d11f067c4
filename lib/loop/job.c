/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: one thread each, one result each, applied by the loop.
 *
 * Model: job_start puts a job behind its class's queue, and the queue's head gets a thread as soon
 * as the class has a free place. The thread runs `run`, puts the job on the pool's list of finished
 * ones and rings the loop (uv_async). The loop joins the thread, gives its place to the next in the
 * queue and calls `done`. A job that is cancelled while it waits goes to the finished list
 * directly and its `done` is called from the loop's next turn as well, never from inside
 * job_cancel, so that a caller may cancel while it walks its own tables.
 *
 * A job is QUEUED (it may be cancelled away), RUNNING (its thread owns it; others may only set its
 * cancel), then FINISHED (it waits for the loop), then freed behind `done`. The pool's lock guards
 * these states and lists; the counters of running jobs belong to the loop.
 *
 * Cancel: a flag for those who look and an eventfd for those who sleep; nothing is interrupted.
 * The eventfd is made when the thread is, so that thousands of queued deletes cost no descriptors.
 * Deadlines run from job_start on, the time in the queue included. A queued job whose deadline
 * passes still gets its turn and then sees -ETIMEDOUT at its first check: there is one way out.
 *
 * Failures: no thread or descriptor for a job that was queued: it ends as a cancelled one (ran is
 * false) with a line in the log; at job_start it is an error of that call.
 *
 * Job threads block all signals: they belong to the loop's thread, and SIGPIPE from a library's
 * write stays a mere error. Who starts a child from a job must reset its mask.
 *
 * Stacks: an HTTPS request (libcurl, OpenSSL with verification) touches 16 KiB (loop.http measures
 * it), a provider's own buffers and XML come on top. Sanitizers multiply frames.
 */
#include "loop/job.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STACK_SIZE (2U << 20)
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define STACK_SIZE (2U << 20)
#endif
#endif
#ifndef STACK_SIZE
#define STACK_SIZE (256U << 10)
#endif

enum job_state { STATE_QUEUED, STATE_RUNNING, STATE_FINISHED };

struct job {
    struct job_pool *pool;                /* NULL: inline */
    struct job *next;                     /* lock: in its class's queue, or in the finished list */
    struct job *alive_next, **alive_prev; /* lock: in the pool's list of jobs not yet done */
    enum job_state state;                 /* lock */
    enum job_class class;
    char *name;
    int64_t deadline_ms; /* CLOCK_MONOTONIC; 0: none */
    job_run_fn *run;
    job_done_fn *done;
    void *arg;
    pthread_t thread; /* loop, once there is one */
    bool has_thread;  /* loop */
    _Atomic bool cancelled;
    int cancel_fd;  /* lock; -1 while queued, then fixed */
    void *attached; /* job */
    void (*attached_free)(void *);
    char *sandbox;             /* job */
    char words[JOB_WORDS_MAX]; /* words_lock */
};

/* One for all jobs: it is held for a copy, and inline jobs have no pool. */
static pthread_mutex_t words_lock = PTHREAD_MUTEX_INITIALIZER;

struct job_queue {
    struct job *head, **tail;
};

struct job_pool {
    uv_loop_t *loop;
    uv_async_t async;
    unsigned limits[JOB_CLASSES];
    unsigned running[JOB_CLASSES]; /* loop */
    unsigned known;                /* loop: started and not yet done */
    bool closing;                  /* loop */
    pthread_mutex_t lock;
    struct job_queue waiting[JOB_CLASSES]; /* lock */
    struct job_queue finished;             /* lock */
    struct job *alive;                     /* lock: started and not yet done */
    pthread_cond_t finish;                 /* a job was finished; for job_pool_free */
};

static void queue_init(struct job_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
}

static void queue_push(struct job_queue *q, struct job *job)
{
    job->next = NULL;
    *q->tail = job;
    q->tail = &job->next;
}

static struct job *queue_pop(struct job_queue *q)
{
    struct job *job = q->head;

    if (!job)
        return NULL;
    q->head = job->next;
    if (!q->head)
        q->tail = &q->head;
    return job;
}

static void queue_remove(struct job_queue *q, struct job *job)
{
    struct job **at = &q->head;

    while (*at != job)
        at = &(*at)->next;
    *at = job->next;
    if (!*at)
        q->tail = at;
}

static void alive_add(struct job_pool *pool, struct job *job)
{
    job->alive_prev = &pool->alive;
    job->alive_next = pool->alive;
    if (pool->alive)
        pool->alive->alive_prev = &job->alive_next;
    pool->alive = job;
}

static void alive_remove(struct job *job)
{
    *job->alive_prev = job->alive_next;
    if (job->alive_next)
        job->alive_next->alive_prev = job->alive_prev;
}

static void job_detach(struct job *job)
{
    if (job->attached)
        job->attached_free(job->attached);
    job->attached = NULL;
}

static void job_free(struct job *job)
{
    int fd = job->cancel_fd;

    job_detach(job);
    if (fd >= 0)
        close(fd);
    free(job->sandbox);
    free(job->name);
    free(job);
}

/* lock */
static void finish_locked(struct job *job)
{
    job->state = STATE_FINISHED;
    queue_push(&job->pool->finished, job);
    pthread_cond_signal(&job->pool->finish);
    /* Under the lock: behind it the loop may already have freed the pool. */
    uv_async_send(&job->pool->async);
}

static void *job_thread(void *arg)
{
    struct job *job = arg;
    char name[16];

    snprintf(name, sizeof(name), "%s", job->name);
    pthread_setname_np(pthread_self(), name);
    job->run(job, job->arg);
    job_detach(job);
    pthread_mutex_lock(&job->pool->lock);
    finish_locked(job);
    pthread_mutex_unlock(&job->pool->lock);
    return NULL;
}

static int thread_create(struct job *job)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int r;

    r = pthread_attr_init(&attr);
    if (r != 0)
        return -r;
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&job->thread, &attr, job_thread, job);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return -r;
}

/* loop, lock. The job is in no list; on failure it is as it was. */
static int job_spawn(struct job *job, struct err *err)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), r;

    if (fd < 0)
        return err_errno(err, -errno, "no descriptor for job %s", job->name);
    job->cancel_fd = fd;
    job->state = STATE_RUNNING;
    job->has_thread = true;
    job->pool->running[job->class]++;
    r = thread_create(job);
    if (r == 0)
        return 0;
    job->pool->running[job->class]--;
    job->has_thread = false;
    job->state = STATE_QUEUED;
    job->cancel_fd = -1;
    close(fd);
    return err_errno(err, r, "no thread for job %s", job->name);
}

/* loop, lock. Gives free places of a class to the jobs that wait. */
static void pool_fill_locked(struct job_pool *pool, enum job_class class)
{
    while (!pool->closing && pool->running[class] < pool->limits[class]) {
        struct job *job = queue_pop(&pool->waiting[class]);
        struct err err = ERR_INIT;

        if (!job)
            return;
        if (job_spawn(job, &err) == 0)
            continue;
        log_error("%s; it ends as if cancelled", err_text(&err));
        atomic_store(&job->cancelled, true);
        finish_locked(job);
    }
}

/* loop */
static void job_complete(struct job_pool *pool, struct job *job)
{
    if (job->has_thread) {
        pthread_join(job->thread, NULL);
        pool->running[job->class]--;
        pthread_mutex_lock(&pool->lock);
        pool_fill_locked(pool, job->class);
        pthread_mutex_unlock(&pool->lock);
    }
    job->done(job->arg, job->has_thread);
    pthread_mutex_lock(&pool->lock);
    alive_remove(job);
    pthread_mutex_unlock(&pool->lock);
    if (--pool->known == 0 && !pool->closing)
        uv_unref((uv_handle_t *)&pool->async);
    job_free(job);
}

static struct job *pool_take_finished(struct job_pool *pool)
{
    struct job *job;

    pthread_mutex_lock(&pool->lock);
    job = queue_pop(&pool->finished);
    pthread_mutex_unlock(&pool->lock);
    return job;
}

static void pool_wakeup(uv_async_t *async)
{
    struct job_pool *pool = container_of(async, struct job_pool, async);
    struct job *job;

    while (!pool->closing && (job = pool_take_finished(pool)))
        job_complete(pool, job);
}

int job_pool_new(uv_loop_t *loop, const unsigned limits[JOB_CLASSES], struct job_pool **ret,
                 struct err *err)
{
    struct job_pool *pool = xcalloc(1, sizeof(*pool));
    int r = uv_async_init(loop, &pool->async, pool_wakeup);

    if (r < 0) {
        free(pool);
        return err_errno(err, r, "setting up the jobs");
    }
    uv_unref((uv_handle_t *)&pool->async); /* an idle pool does not keep a loop alive */
    pool->loop = loop;
    queue_init(&pool->finished);
    for (size_t i = 0; i < JOB_CLASSES; i++) {
        pool->limits[i] = MAX(limits[i], 1U);
        queue_init(&pool->waiting[i]);
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->finish, NULL);
    *ret = pool;
    return 0;
}

static void pool_closed(uv_handle_t *handle)
{
    struct job_pool *pool = container_of((uv_async_t *)handle, struct job_pool, async);

    pthread_cond_destroy(&pool->finish);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* lock. A job that waits is out at once; one that runs is told. */
static void cancel_locked(struct job *job)
{
    uint64_t one = 1;

    atomic_store(&job->cancelled, true);
    if (job->state == STATE_QUEUED) {
        queue_remove(&job->pool->waiting[job->class], job);
        finish_locked(job);
    } else if (job->state == STATE_RUNNING) {
        /* Fails only when the counter is full, and then nobody sleeps. */
        ssize_t n _unused_ = write(job->cancel_fd, &one, sizeof(one));
    }
}

void job_pool_abandon(struct job_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    for (struct job *job = pool->alive; job; job = job->alive_next)
        if (job->has_thread)
            pthread_detach(job->thread);
    pthread_mutex_unlock(&pool->lock);
}

static void pool_cancel_all(struct job_pool *pool)
{
    struct job *job;

    pthread_mutex_lock(&pool->lock);
    for (job = pool->alive; job; job = job->alive_next)
        cancel_locked(job);
    pthread_mutex_unlock(&pool->lock);
}

void job_pool_free(struct job_pool *pool)
{
    if (!pool)
        return;
    pool->closing = true;
    pool_cancel_all(pool);
    while (pool->known > 0) {
        struct job *job;

        pthread_mutex_lock(&pool->lock);
        while (!(job = queue_pop(&pool->finished)))
            pthread_cond_wait(&pool->finish, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
        job_complete(pool, job);
    }
    uv_close((uv_handle_t *)&pool->async, pool_closed);
}

unsigned job_pool_running(const struct job_pool *pool)
{
    unsigned n = 0;

    for (size_t i = 0; i < JOB_CLASSES; i++)
        n += pool->running[i];
    return n;
}

static struct job *job_new(const char *name, int64_t deadline_ms)
{
    struct job *job = xcalloc(1, sizeof(*job));

    job->name = xstrdup(name);
    job->cancel_fd = -1;
    job->deadline_ms = deadline_ms > 0 ? clock_mono_ms() + deadline_ms : 0;
    return job;
}

/* loop. Runs the job or queues it. */
static int pool_admit(struct job_pool *pool, struct job *job, struct err *err)
{
    int r = 0;

    pthread_mutex_lock(&pool->lock);
    if (pool->running[job->class] < pool->limits[job->class] && !pool->waiting[job->class].head)
        r = job_spawn(job, err);
    else
        queue_push(&pool->waiting[job->class], job);
    if (r == 0)
        alive_add(pool, job);
    pthread_mutex_unlock(&pool->lock);
    return r;
}

int job_start(struct job_pool *pool, enum job_class class, const char *name, int64_t deadline_ms,
              job_run_fn *run, job_done_fn *done, void *arg, struct job **ret, struct err *err)
{
    struct job *job;
    int r;

    if (pool->closing)
        return err_set(err, -ESHUTDOWN, "job %s: the daemon is stopping", name);
    job = job_new(name, deadline_ms);
    job->pool = pool;
    job->class = class;
    job->run = run;
    job->done = done;
    job->arg = arg;
    /* The thread may be through before this function is: who gets *ret must have it by then. */
    if (ret)
        *ret = job;
    r = pool_admit(pool, job, err);
    if (r < 0) {
        if (ret)
            *ret = NULL;
        job_free(job);
        return r;
    }
    if (pool->known++ == 0)
        uv_ref((uv_handle_t *)&pool->async);
    return 0;
}

void job_cancel(struct job *job)
{
    uint64_t one = 1;

    if (!job)
        return;
    if (job->pool) {
        pthread_mutex_lock(&job->pool->lock);
        cancel_locked(job);
        pthread_mutex_unlock(&job->pool->lock);
        return;
    }
    /* Inline: also from a signal handler, so nothing but a store and a write. */
    atomic_store(&job->cancelled, true);
    ssize_t n _unused_ = write(job->cancel_fd, &one, sizeof(one));
}

struct job *job_new_inline(int64_t deadline_ms)
{
    struct job *job = job_new("inline", deadline_ms);

    job->state = STATE_RUNNING;
    job->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->cancel_fd < 0) {
        log_error("no descriptor for a job: %s", strerror(errno));
        abort(); /* as for memory (macros.h): a program without descriptors cannot go on */
    }
    return job;
}

void job_free_inline(struct job *job)
{
    if (job)
        job_free(job);
}

int64_t job_remaining_ms(const struct job *job)
{
    if (job->deadline_ms == 0)
        return -1;
    return MAX(job->deadline_ms - clock_mono_ms(), 0);
}

bool job_cancelled(const struct job *job)
{
    return atomic_load(&job->cancelled);
}

int job_check(const struct job *job)
{
    if (job_cancelled(job))
        return -ECANCELED;
    return job_remaining_ms(job) == 0 ? -ETIMEDOUT : 0;
}

int job_cancel_fd(const struct job *job)
{
    return job->cancel_fd;
}

void *job_attached(const struct job *job)
{
    return job->attached;
}

void job_attach(struct job *job, void *thing, void (*free_fn)(void *))
{
    job_detach(job);
    job->attached = thing;
    job->attached_free = free_fn;
}

/* Time left of a wait that ends at `end` (-1: never), bounded by the job's deadline; for poll. */
static int wait_ms(const struct job *job, int64_t end)
{
    int64_t left = job_remaining_ms(job);

    if (end >= 0) {
        int64_t own = MAX(end - clock_mono_ms(), 0);

        left = left < 0 ? own : MIN(left, own);
    }
    return (int)MIN(left, INT32_MAX);
}

int job_poll(struct job *job, int fd, short events, int64_t timeout_ms, short *ret)
{
    int64_t end = timeout_ms < 0 ? -1 : clock_mono_ms() + timeout_ms;

    for (;;) {
        struct pollfd p[2] = {{.fd = job->cancel_fd, .events = POLLIN},
                              {.fd = fd, .events = events}};
        int r = job_check(job), n;

        if (r < 0)
            return r;
        n = poll(p, 2, wait_ms(job, end));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (job_cancelled(job))
            return -ECANCELED;
        if (n > 0 && p[1].revents) {
            if (ret)
                *ret = p[1].revents;
            return 0;
        }
        r = job_check(job);
        if (r < 0)
            return r;
        if (end >= 0 && clock_mono_ms() >= end)
            return -EAGAIN;
    }
}

int job_sleep(struct job *job, int64_t ms)
{
    int r = job_poll(job, -1, 0, MAX(ms, 0), NULL);

    return r == -EAGAIN ? 0 : r;
}

void job_about(struct job *job, const char *sandbox)
{
    free(job->sandbox);
    job->sandbox = sandbox ? xstrdup(sandbox) : NULL;
}

const char *job_sandbox(const struct job *job)
{
    return job->sandbox;
}

void job_say(struct job *job, const char *fmt, ...)
{
    va_list ap;

    pthread_mutex_lock(&words_lock);
    job->words[0] = '\0';
    if (fmt) {
        va_start(ap, fmt);
        vsnprintf(job->words, sizeof(job->words), fmt, ap);
        va_end(ap);
    }
    pthread_mutex_unlock(&words_lock);
}

static bool job_queued(struct job *job)
{
    struct job_pool *pool = job->pool;

    if (!pool)
        return false;
    pthread_mutex_lock(&pool->lock);
    bool queued = job->state == STATE_QUEUED;
    pthread_mutex_unlock(&pool->lock);
    return queued;
}

void job_words(struct job *job, char ret[JOB_WORDS_MAX])
{
    if (job_queued(job)) {
        snprintf(ret, JOB_WORDS_MAX, "its turn: %u of its kind are under way, the most at once",
                 job->pool->limits[job->class]);
        return;
    }
    pthread_mutex_lock(&words_lock);
    memcpy(ret, job->words, JOB_WORDS_MAX);
    pthread_mutex_unlock(&words_lock);
}
