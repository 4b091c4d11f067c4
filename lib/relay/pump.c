/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A relay on the loop.
 *
 * Model: run() does what can be done now: flush the out ring, read into the in ring. It is called
 * when the socket polls ready and, behind the poll, once for any number of kicks; so bytes that
 * arrive in many small commits leave in one write, and no callback ever comes from inside a kick.
 * A kick with nothing to flush, and none of our side in the way of reading, is no turn of the loop:
 * each message would cost a second one. What was read is taken out of the socket right before the
 * next poll, when it has been sent on (relay.c says why). Behind a flush it reads without being
 * told to: the kernel runs a peer at once that was woken on this processor, so the next request
 * often lies there when the answer's write returns, and a turn of the loop is saved. Which readiness
 * is polled for follows from the last attempt: READABLE unless reading is blocked by our side (ring
 * full, the owner's limit, no disk blocks: then a kick or the timer tries again), WRITABLE while the
 * socket takes no more.
 *
 * The end: libuv has no event for POLLHUP alone, but reports it as any event that was asked for.
 * PRIORITIZED is always asked for and means "look": poll(2) then tells whether both directions are
 * closed. A socket in that state would be ready for ever; so from there on it is not polled, and
 * reading goes on by itself until the peer's last byte is in the ring. `broken` comes behind that
 * byte, also when writing has failed long before. What else is PRIORITIZED is an out-of-band byte
 * (from Linux 5.15 on): no peek reads it, the socket would be ready as long as it lies there, and no
 * peer of ours sends one. That is the end at once.
 *
 * Callbacks may stop the pump: behind each, `stopped` is looked at. The memory goes with the last
 * handle.
 */
#include "relay/pump.h"

#include <errno.h>
#include <poll.h>

#include "base/clock.h"

#define TRIM_MS 1000
#define NOSPC_MS 250

struct pump {
    struct relay *relay;
    const struct pump_ops *ops;
    void *owner;
    uv_poll_t poll;
    uv_check_t check; /* active with idle: a run is due behind the next poll */
    uv_idle_t idle;
    uv_prepare_t take; /* active while read bytes are still in the socket */
    uv_timer_t timer;  /* trims; after -ENOSPC tries again */
    unsigned handles;
    int events;
    int64_t active_at;
    bool stopped, broken;
    bool read_blocked; /* by us: ring, limit or blocks */
    bool no_space;
    bool hung_up; /* closed both ways or in error: not polled any more */
    bool eof_told;
    int write_error; /* nothing more goes out */
};

static void run(struct pump *p, bool readable);

static void on_poll(uv_poll_t *poll, int status, int events);

static void poll_for(struct pump *p, int events)
{
    if (p->stopped || events == p->events)
        return;
    p->events = events;
    if (events)
        uv_poll_start(&p->poll, events, on_poll);
    else
        uv_poll_stop(&p->poll);
}

static void on_idle(uv_idle_t *handle _unused_)
{
}

static void on_check(uv_check_t *handle)
{
    struct pump *p = handle->data;
    uv_check_stop(&p->check);
    uv_idle_stop(&p->idle);
    run(p, p->read_blocked || p->hung_up);
}

static void run_soon(struct pump *p)
{
    uv_check_start(&p->check, on_check);
    uv_idle_start(&p->idle, on_idle);
}

/* While the socket takes no more, its poll tells when it does. */
static bool due(const struct pump *p)
{
    return p->read_blocked || p->hung_up || p->write_error ||
           (!(p->events & UV_WRITABLE) && relay_out_waits(p->relay));
}

void pump_kick(struct pump *p)
{
    if (!p->stopped && !p->broken && due(p))
        run_soon(p);
}

static void on_timer(uv_timer_t *timer)
{
    struct pump *p = timer->data;
    if (p->no_space) {
        run(p, true);
        return;
    }
    bool quiet = relay_in_tail(p->relay) == relay_in_head(p->relay) &&
                 relay_out_done(p->relay) == relay_out_head(p->relay);
    int64_t since = clock_mono_ms() - p->active_at;
    if (quiet && since >= TRIM_MS)
        relay_trim(p->relay);
    else
        uv_timer_start(timer, on_timer, TRIM_MS, 0);
}

static void timer_need(struct pump *p)
{
    p->active_at = clock_mono_ms();
    if (p->no_space)
        uv_timer_start(&p->timer, on_timer, NOSPC_MS, 0);
    else if (!uv_is_active((uv_handle_t *)&p->timer))
        uv_timer_start(&p->timer, on_timer, TRIM_MS, 0);
}

static void break_off(struct pump *p, int error)
{
    p->broken = true;
    poll_for(p, 0);
    uv_timer_stop(&p->timer);
    p->ops->broken(p->owner, error);
}

static void on_take(uv_prepare_t *handle)
{
    struct pump *p = handle->data;
    uv_prepare_stop(&p->take);
    int r = relay_in_take(p->relay);
    if (r < 0 && !p->broken)
        break_off(p, r);
}

static void take_soon(struct pump *p)
{
    if (relay_in_untaken(p->relay) > 0)
        uv_prepare_start(&p->take, on_take);
}

static int look(struct pump *p)
{
    struct pollfd fd = {.fd = relay_socket(p->relay), .events = POLLPRI};
    return poll(&fd, 1, 0) > 0 ? fd.revents : 0;
}

/* Both directions closed, or an error that recv will tell. */
static bool look_hung_up(struct pump *p)
{
    return look(p) & (POLLHUP | POLLERR);
}

/* Whether bytes have left. */
static bool flush(struct pump *p)
{
    if (p->write_error)
        return false;
    uint64_t before = relay_out_done(p->relay);
    bool finished = relay_out_finished(p->relay);
    int r = relay_out_flush(p->relay);
    if (r < 0 && r != -EAGAIN)
        p->write_error = r;
    int want = r == -EAGAIN ? UV_WRITABLE : 0;
    poll_for(p, p->hung_up ? 0 : (p->events & ~UV_WRITABLE) | want);
    bool left = relay_out_done(p->relay) != before;
    if (left || relay_out_finished(p->relay) != finished)
        p->ops->out_room(p->owner);
    return left;
}

/* The peer's bytes have all been read. */
static void at_eof(struct pump *p)
{
    if (!p->eof_told) {
        p->eof_told = true;
        p->ops->in_ready(p->owner);
    }
    if (p->stopped)
        return;
    if (p->hung_up || look_hung_up(p))
        break_off(p, 0);
    else if (p->write_error)
        break_off(p, p->write_error);
    else
        poll_for(p, p->events & ~UV_READABLE); /* a half-close: the reply is still due */
}

static void read_some(struct pump *p)
{
    size_t limit = p->ops->in_limit ? p->ops->in_limit(p->owner) : SIZE_MAX;
    ssize_t n = limit ? relay_in_read(p->relay, limit) : -ENOBUFS;
    take_soon(p);
    p->no_space = n == -ENOSPC;
    p->read_blocked = n == -ENOBUFS || n == -ENOSPC;
    if (n == 0) {
        at_eof(p);
    } else if (n > 0) {
        poll_for(p, p->hung_up ? 0 : p->events | UV_READABLE);
        if (p->hung_up)
            run_soon(p); /* nobody else tells that there is more */
        p->ops->in_ready(p->owner);
    } else if (n == -EAGAIN && p->write_error) {
        break_off(p, p->write_error);
    } else if (n == -EAGAIN && !(p->hung_up && look_hung_up(p))) {
        p->hung_up = false;
        poll_for(p, p->events | UV_READABLE | UV_PRIORITIZED);
    } else if (!p->read_blocked) {
        break_off(p, n == -EAGAIN ? -ECONNRESET : (int)n);
    } else {
        poll_for(p, p->events & ~UV_READABLE);
    }
}

static void run(struct pump *p, bool readable)
{
    if (p->stopped || p->broken)
        return;
    bool answered = flush(p);
    if (!p->stopped && (readable || answered || p->write_error))
        read_some(p);
    if (!p->stopped && !p->broken)
        timer_need(p);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct pump *p = poll->data;
    if (status < 0)
        p->events = 0; /* libuv has stopped it */
    if (relay_in_untaken(p->relay) > 0)
        on_take(&p->take); /* more sockets are ready than libuv asks for at once: it polls again */
    if (p->stopped || p->broken)
        return;
    if (status < 0 || (events & UV_PRIORITIZED)) {
        int seen = look(p);
        p->hung_up = seen & (POLLHUP | POLLERR);
        if (!p->hung_up && (seen & POLLPRI)) {
            break_off(p, -EPROTO);
            return;
        }
        if (p->hung_up)
            poll_for(p, 0);
        else
            poll_for(p, p->events | UV_PRIORITIZED);
    }
    run(p, p->hung_up || (events & UV_READABLE));
}

int pump_start(uv_loop_t *loop, struct relay *relay, const struct pump_ops *ops, void *owner,
               struct pump **ret, struct err *err)
{
    struct pump *p = xcalloc(1, sizeof(*p));
    *p = (struct pump){.relay = relay, .ops = ops, .owner = owner};
    int r = uv_poll_init(loop, &p->poll, relay_socket(relay));
    if (r < 0) {
        free(p);
        return err_errno(err, r, "polling a connection");
    }
    uv_check_init(loop, &p->check);
    uv_idle_init(loop, &p->idle);
    uv_prepare_init(loop, &p->take);
    uv_timer_init(loop, &p->timer);
    uv_unref((uv_handle_t *)&p->timer);
    p->handles = 5;
    p->poll.data = p->check.data = p->idle.data = p->take.data = p->timer.data = p;
    poll_for(p, UV_READABLE | UV_PRIORITIZED);
    run_soon(p);  /* a recovered out ring may hold bytes */
    take_soon(p); /* and a predecessor may have read without taking */
    *ret = p;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    struct pump *p = handle->data;
    if (--p->handles == 0)
        free(p);
}

void pump_stop(struct pump *p)
{
    if (!p || p->stopped)
        return;
    p->stopped = true;
    relay_in_take(p->relay); /* whatever it says: nobody reads any more */
    uv_close((uv_handle_t *)&p->poll, on_closed);
    uv_close((uv_handle_t *)&p->check, on_closed);
    uv_close((uv_handle_t *)&p->idle, on_closed);
    uv_close((uv_handle_t *)&p->take, on_closed);
    uv_close((uv_handle_t *)&p->timer, on_closed);
}
