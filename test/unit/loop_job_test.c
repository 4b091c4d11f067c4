/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs: order, limits, cancel at every stage, deadlines, and the end of a pool with jobs in it. */
#include "unit/check.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "loop/job.h"

static const unsigned limits[JOB_CLASSES] = {2, 1, 64};

struct fixture {
    uv_loop_t loop;
    struct job_pool *pool;
};

struct task {
    struct fixture *f;
    struct job *job;
    int64_t wait_ms;
    int fd;
    int result; /* of the job's wait */
    bool ran, done, cancel_self;
    unsigned order; /* of the done callbacks */
    atomic_int *at_once, *peak;
    pthread_t thread;
};

static unsigned next_order;

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct err err = ERR_INIT;
    next_order = 0;
    assert_int_equal(uv_loop_init(&f->loop), 0);
    assert_int_equal(job_pool_new(&f->loop, limits, &f->pool, &err), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    job_pool_free(f->pool);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    free(f);
    return 0;
}

static void enter(struct task *t)
{
    int now, peak;
    if (!t->at_once)
        return;
    now = atomic_fetch_add(t->at_once, 1) + 1;
    peak = atomic_load(t->peak);
    while (now > peak && !atomic_compare_exchange_weak(t->peak, &peak, now))
        ;
}

static void run_sleep(struct job *job, void *arg)
{
    struct task *t = arg;
    t->thread = pthread_self();
    enter(t);
    if (t->cancel_self)
        job_cancel(job);
    t->result = job_sleep(job, t->wait_ms);
    if (t->at_once)
        atomic_fetch_sub(t->at_once, 1);
}

static void run_poll(struct job *job, void *arg)
{
    struct task *t = arg;
    short events = 0;
    t->result = job_poll(job, t->fd, POLLIN, t->wait_ms, &events);
    if (t->result == 0)
        t->result = events;
}

static void on_done(void *arg, bool ran)
{
    struct task *t = arg;
    assert_false(t->done);
    t->done = true;
    t->ran = ran;
    t->order = ++next_order;
    t->job = NULL;
}

static void start_in(struct fixture *f, struct task *t, enum job_class class, int64_t deadline_ms,
                     job_run_fn *run)
{
    struct err err = ERR_INIT;
    t->f = f;
    assert_int_equal(
        job_start(f->pool, class, "a test's job", deadline_ms, run, on_done, t, &t->job, &err), 0);
}

static void drain(struct fixture *f)
{
    uv_run(&f->loop, UV_RUN_DEFAULT); /* ends when no job is left: an idle pool holds no loop */
}

static void sleep_ms(int64_t ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void a_job_runs_on_a_thread_and_is_done_on_the_loop(void **state)
{
    struct task t = {.wait_ms = 1, .result = 1};
    start_in(*state, &t, JOB_OTHER, 0, run_sleep);
    assert_false(t.done); /* never from inside job_start */
    assert_int_equal(job_pool_running(((struct fixture *)*state)->pool), 1);
    drain(*state);
    assert_true(t.done && t.ran);
    assert_int_equal(t.result, 0);
    assert_int_equal(job_pool_running(((struct fixture *)*state)->pool), 0);
    assert_false(pthread_equal(t.thread, pthread_self()));
}

static void limits_hold_for_each_class(void **state)
{
    atomic_int at_once[JOB_CLASSES] = {0}, peak[JOB_CLASSES] = {0};
    struct task t[JOB_CLASSES][12];
    memset(t, 0, sizeof(t));
    for (size_t i = 0; i < 12; i++)
        for (size_t c = 0; c < JOB_CLASSES; c++) {
            t[c][i].at_once = &at_once[c];
            t[c][i].peak = &peak[c];
            t[c][i].wait_ms = 10;
            start_in(*state, &t[c][i], (enum job_class)c, 0, run_sleep);
        }
    drain(*state);
    assert_int_equal(peak[JOB_CREATE], 2);
    assert_int_equal(peak[JOB_DELETE], 1);
    assert_true(peak[JOB_OTHER] > 4);
    for (size_t i = 0; i < 12; i++)
        assert_true(t[JOB_DELETE][i].done && t[JOB_CREATE][i].done && t[JOB_OTHER][i].done);
    for (size_t i = 1; i < 12; i++) /* one at a time: in the order of their start */
        assert_true(t[JOB_DELETE][i].order > t[JOB_DELETE][i - 1].order);
}

static void deletes_do_not_queue_behind_creates(void **state)
{
    struct task create[5], delete = {.wait_ms = 1};
    memset(create, 0, sizeof(create));
    for (size_t i = 0; i < 5; i++) {
        create[i].wait_ms = 60000;
        start_in(*state, &create[i], JOB_CREATE, 0, run_sleep);
    }
    start_in(*state, &delete, JOB_DELETE, 0, run_sleep);
    while (!delete.done)
        uv_run(&((struct fixture *)*state)->loop, UV_RUN_ONCE);
    assert_false(create[0].done);
    for (size_t i = 0; i < 5; i++)
        job_cancel(create[i].job);
    drain(*state);
    assert_true(create[0].ran && create[1].ran && !create[2].ran && !create[4].ran);
}

static void cancel_before_it_runs(void **state)
{
    struct task busy = {.wait_ms = 50}, waiting = {.wait_ms = 60000}, last = {.wait_ms = 1};
    start_in(*state, &busy, JOB_DELETE, 0, run_sleep);
    start_in(*state, &waiting, JOB_DELETE, 0, run_sleep);
    start_in(*state, &last, JOB_DELETE, 0, run_sleep);
    job_cancel(waiting.job);
    job_cancel(waiting.job);
    assert_false(waiting.done); /* never from inside job_cancel */
    drain(*state);
    assert_true(waiting.done && !waiting.ran);
    assert_true(busy.ran && busy.result == 0 && last.ran && last.result == 0);
    assert_int_equal(waiting.order, 1);
}

static void cancel_in_sleep_is_seen_at_once(void **state)
{
    struct task t = {.wait_ms = 60000};
    int64_t began = clock_mono_ms();
    start_in(*state, &t, JOB_CREATE, 0, run_sleep);
    sleep_ms(20);
    job_cancel(t.job);
    drain(*state);
    assert_true(t.ran);
    assert_int_equal(t.result, -ECANCELED);
    assert_true(clock_mono_ms() - began < 5000);
}

static void a_job_cancels_itself(void **state)
{
    struct task t = {.wait_ms = 60000, .cancel_self = true};
    start_in(*state, &t, JOB_CREATE, 0, run_sleep);
    drain(*state);
    assert_int_equal(t.result, -ECANCELED);
}

static void *cancel_from_elsewhere(void *arg)
{
    job_cancel(arg);
    return NULL;
}

static void another_thread_cancels(void **state)
{
    struct task t[20];
    memset(t, 0, sizeof(t));
    for (size_t i = 0; i < 20; i++) {
        pthread_t thread;
        t[i].wait_ms = 60000;
        start_in(*state, &t[i], JOB_CREATE, 0, run_sleep);
        assert_int_equal(pthread_create(&thread, NULL, cancel_from_elsewhere, t[i].job), 0);
        pthread_join(thread, NULL);
    }
    drain(*state);
    for (size_t i = 0; i < 20; i++)
        assert_true(t[i].done && (!t[i].ran || t[i].result == -ECANCELED));
}

static void a_deadline_ends_a_sleep(void **state)
{
    struct task t = {.wait_ms = 60000};
    int64_t began = clock_mono_ms();
    start_in(*state, &t, JOB_CREATE, 50, run_sleep);
    drain(*state);
    assert_int_equal(t.result, -ETIMEDOUT);
    assert_in_range(clock_mono_ms() - began, 50, 5000);
}

static void a_deadline_counts_the_time_in_the_queue(void **state)
{
    struct task busy = {.wait_ms = 80}, late = {.wait_ms = 60000};
    start_in(*state, &busy, JOB_DELETE, 0, run_sleep);
    start_in(*state, &late, JOB_DELETE, 40, run_sleep);
    drain(*state);
    assert_true(late.ran);
    assert_int_equal(late.result, -ETIMEDOUT);
}

static void poll_tells_ready_late_and_cancelled_apart(void **state)
{
    int fd = eventfd(0, EFD_CLOEXEC);
    struct task ready = {.fd = fd, .wait_ms = -1}, late = {.fd = -1, .wait_ms = 30},
                cancelled = {.fd = -1, .wait_ms = -1}, timed_out = {.fd = -1, .wait_ms = -1};
    start_in(*state, &ready, JOB_OTHER, 60000, run_poll);
    start_in(*state, &late, JOB_OTHER, 60000, run_poll);
    start_in(*state, &cancelled, JOB_OTHER, 60000, run_poll);
    start_in(*state, &timed_out, JOB_OTHER, 30, run_poll);
    sleep_ms(10);
    assert_int_equal(write(fd, &(uint64_t){1}, 8), 8);
    job_cancel(cancelled.job);
    drain(*state);
    assert_int_equal(ready.result, POLLIN);
    assert_int_equal(late.result, -EAGAIN);
    assert_int_equal(cancelled.result, -ECANCELED);
    assert_int_equal(timed_out.result, -ETIMEDOUT);
    close(fd);
}

static void freeing_the_pool_ends_all(void **state)
{
    struct fixture f;
    struct err err = ERR_INIT;
    struct task t[30];
    memset(t, 0, sizeof(t));
    assert_int_equal(uv_loop_init(&f.loop), 0);
    assert_int_equal(job_pool_new(&f.loop, limits, &f.pool, &err), 0);
    for (size_t i = 0; i < 30; i++) {
        t[i].wait_ms = i % 7 == 0 ? 0 : 60000; /* some are finished already, unknown to the loop */
        start_in(&f, &t[i], (enum job_class)(i % JOB_CLASSES), 0, run_sleep);
    }
    sleep_ms(20);
    job_pool_free(f.pool);
    for (size_t i = 0; i < 30; i++)
        assert_true(t[i].done);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f.loop), 0);
}

static void start_another(void *arg, bool ran)
{
    struct task *t = arg;
    struct err err = ERR_INIT;
    on_done(arg, ran);
    t->result = job_start(t->f->pool, JOB_CREATE, "next", 0, run_sleep, on_done, t, NULL, &err);
}

static void a_stopping_pool_takes_no_job(void **state)
{
    struct fixture f;
    struct err err = ERR_INIT;
    struct task t = {.f = &f, .wait_ms = 60000};
    assert_int_equal(uv_loop_init(&f.loop), 0);
    assert_int_equal(job_pool_new(&f.loop, limits, &f.pool, &err), 0);
    assert_int_equal(
        job_start(f.pool, JOB_CREATE, "x", 0, run_sleep, start_another, &t, NULL, &err), 0);
    job_pool_free(f.pool);
    assert_true(t.done);
    assert_int_equal(t.result, -ESHUTDOWN);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f.loop), 0);
}

static void many_jobs_come_and_go(void **state)
{
    struct task *t = xcalloc(2000, sizeof(*t));
    for (size_t i = 0; i < 2000; i++) {
        start_in(*state, &t[i], JOB_OTHER, 0, run_sleep);
        if (i % 3 == 0)
            job_cancel(t[i].job);
        if (i % 10 == 0)
            uv_run(&((struct fixture *)*state)->loop, UV_RUN_NOWAIT);
    }
    drain(*state);
    for (size_t i = 0; i < 2000; i++)
        assert_true(t[i].done);
    free(t);
}

/* From now on no new descriptor can be had; the old limit is returned. */
static struct rlimit exhaust_descriptors(void)
{
    struct rlimit old, none;
    int next = dup(0);
    assert_true(next >= 0);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = (struct rlimit){.rlim_cur = (rlim_t)next, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    return old;
}

static void without_descriptors_a_job_fails_cleanly(void **state)
{
    struct fixture *f = *state;
    struct task running = {.wait_ms = 20}, waiting = {.wait_ms = 1}, refused = {0}, later = {0};
    struct err err = ERR_INIT;
    struct rlimit old;
    start_in(f, &running, JOB_DELETE, 0, run_sleep);
    start_in(f, &waiting, JOB_DELETE, 0, run_sleep);
    old = exhaust_descriptors();
    assert_int_equal(job_start(f->pool, JOB_OTHER, "refused", 0, run_sleep, on_done, &refused,
                               &refused.job, &err),
                     -EMFILE);
    assert_null(refused.job);
    assert_text_has(err_text(&err), "refused");
    drain(f);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_true(running.ran && running.result == 0);
    assert_true(waiting.done && !waiting.ran && !refused.done);
    start_in(f, &later, JOB_DELETE, 0, run_sleep);
    drain(f);
    assert_true(later.ran);
}

static void *send_a_signal(void *arg)
{
    pthread_kill(*(pthread_t *)arg, SIGTERM); /* ends the process where it is not blocked */
    return NULL;
}

static void run_under_fire(struct job *job, void *arg)
{
    struct task *t = arg;
    pthread_t self = pthread_self(), other;
    sigset_t pending;
    assert_int_equal(pthread_create(&other, NULL, send_a_signal, &self), 0);
    pthread_join(other, NULL);
    sigpending(&pending);
    t->result = job_sleep(job, 10) == 0 && sigismember(&pending, SIGTERM);
}

static void job_threads_take_no_signals(void **state)
{
    struct task t = {0};
    start_in(*state, &t, JOB_OTHER, 0, run_under_fire);
    drain(*state);
    assert_int_equal(t.result, 1);
}

static void inline_jobs(void **state)
{
    _cleanup_(job_free_inlinep) struct job *job = job_new_inline(0);
    _cleanup_(job_free_inlinep) struct job *brief = job_new_inline(20);
    assert_int_equal(job_remaining_ms(job), -1);
    assert_int_equal(job_check(job), 0);
    assert_int_equal(job_sleep(job, 1), 0);
    assert_int_equal(job_poll(job, -1, 0, 1, NULL), -EAGAIN);
    assert_in_range(job_remaining_ms(brief), 1, 20);
    assert_int_equal(job_sleep(brief, 60000), -ETIMEDOUT);
    assert_int_equal(job_remaining_ms(brief), 0);
    assert_int_equal(job_check(brief), -ETIMEDOUT);
    job_cancel(brief);
    assert_int_equal(job_check(brief), -ECANCELED); /* a cancel wins over the deadline */
    job_cancel(job);
    job_cancel(NULL);
    assert_true(job_cancelled(job));
    assert_int_equal(job_sleep(job, 60000), -ECANCELED);
    job_free_inline(NULL);
}

static int freed;

static void free_counter(void *p)
{
    freed += *(int *)p;
    free(p);
}

static void what_is_attached_is_freed_with_the_job(void **state)
{
    struct job *job = job_new_inline(0);
    int *one = xcalloc(1, sizeof(int)), *two = xcalloc(1, sizeof(int));
    *one = 1;
    *two = 10;
    freed = 0;
    assert_null(job_attached(job));
    job_attach(job, one, free_counter);
    assert_ptr_equal(job_attached(job), one);
    job_attach(job, two, free_counter);
    assert_int_equal(freed, 1);
    job_free_inline(job);
    assert_int_equal(freed, 11);
}

#define pool_test(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        pool_test(a_job_runs_on_a_thread_and_is_done_on_the_loop),
        pool_test(limits_hold_for_each_class),
        pool_test(deletes_do_not_queue_behind_creates),
        pool_test(cancel_before_it_runs),
        pool_test(cancel_in_sleep_is_seen_at_once),
        pool_test(a_job_cancels_itself),
        pool_test(another_thread_cancels),
        pool_test(a_deadline_ends_a_sleep),
        pool_test(a_deadline_counts_the_time_in_the_queue),
        pool_test(poll_tells_ready_late_and_cancelled_apart),
        cmocka_unit_test(freeing_the_pool_ends_all),
        cmocka_unit_test(a_stopping_pool_takes_no_job),
        pool_test(many_jobs_come_and_go),
        pool_test(without_descriptors_a_job_fails_cleanly),
        pool_test(job_threads_take_no_signals),
        cmocka_unit_test(inline_jobs),
        cmocka_unit_test(what_is_attached_is_freed_with_the_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
