/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all tunnels of one loop share: one tick, one timer for late acknowledgements, one queue.
 *
 * Model: a thousand idle tunnels must cost next to nothing, so none of them has a timer that runs.
 * One tick every 250 ms walks the sessions; one timer of 50 ms runs only while somewhere an
 * acknowledgement is owed, and is stopped when the last one has ridden on data: a poll that waits
 * for less than the kernel's own tick has to set the clock's hardware each time. Kicks put a
 * session into a queue that is run once behind each poll, so that a burst of kicks is one flush; what
 * timers kick is run before the next poll. While something is left in the queue an idle handle keeps
 * that poll from waiting.
 *
 * Invariants: session_run is called from the queue and from the session's own poll alone, never
 * from inside a kick, so an owner may kick from any callback. Channels that were removed while a
 * stack still holds them lie in the grave until the next turn of the loop.
 *
 * The list of hubs is under a lock, because tests run a loop per thread; all else is the loop's.
 */
#include <pthread.h>

#include "relay/tunnel_int.h"

static pthread_mutex_t hubs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct hub *hubs;

static void empty_grave(struct hub *hub)
{
    while (hub->grave) {
        struct channel *ch = hub->grave;
        hub->grave = ch->next;
        free(ch);
    }
}

static void on_idle(uv_idle_t *handle _unused_)
{
}

static void run_queue(struct hub *hub)
{
    empty_grave(hub);
    /* What is queued meanwhile has its turn next time, or a busy session would starve poll. */
    struct link now;
    link_init(&now);
    while (!link_empty(&hub->queue)) {
        struct link *l = hub->queue.next;
        link_remove(l);
        link_append(&now, l);
    }
    while (!link_empty(&now)) {
        struct session *s = container_of(now.next, struct session, in_queue);
        link_remove(&s->in_queue);
        session_run(s);
    }
    if (link_empty(&hub->queue))
        uv_idle_stop(&hub->idle);
    else
        uv_idle_start(&hub->idle, on_idle);
}

static void on_check(uv_check_t *handle)
{
    run_queue(handle->data);
}

static void on_prepare(uv_prepare_t *handle)
{
    struct hub *hub = handle->data;
    if (!link_empty(&hub->queue))
        run_queue(hub);
}

/* Sessions end inside the walk, and then others of the same tunnel may: start again from a copy of
 * the position that stays valid, by rotating each visited session to the end. */
static void each_session(struct hub *hub, void (*visit)(struct session *s, int64_t now))
{
    int64_t now = clock_mono_ms();
    struct link todo;
    link_init(&todo);
    while (!link_empty(&hub->sessions)) {
        struct link *l = hub->sessions.next;
        link_remove(l);
        link_append(&todo, l);
    }
    while (!link_empty(&todo)) {
        struct session *s = container_of(todo.next, struct session, in_hub);
        link_remove(&s->in_hub);
        link_append(&hub->sessions, &s->in_hub);
        visit(s, now);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct hub *hub = timer->data;
    /* After a stop of our own (SIGSTOP, a frozen container) every peer looks silent: the answers
     * lie unread in the sockets. Such time does not count. */
    int64_t now = clock_mono_ms(), gap = now - hub->ticked_at;
    hub->late = gap > 4 * TUNNEL_TICK_MS ? gap : 0;
    hub->ticked_at = now;
    each_session(hub, session_tick);
    if (link_empty(&hub->sessions))
        uv_timer_stop(timer);
}

static void visit_ack(struct session *s, int64_t now _unused_)
{
    session_ack_timer(s);
}

static void on_ack_timer(uv_timer_t *timer)
{
    each_session(timer->data, visit_ack);
}

void hub_owe_ack(struct hub *hub, struct channel *ch)
{
    if (!ch->ack_pending)
        hub->owing++;
    ch->ack_pending = true;
    if (!uv_is_active((uv_handle_t *)&hub->ack_timer))
        uv_timer_start(&hub->ack_timer, on_ack_timer, TUNNEL_ACK_MS, 0);
}

void hub_settle_ack(struct hub *hub, struct channel *ch)
{
    if (ch->ack_pending && --hub->owing == 0)
        uv_timer_stop(&hub->ack_timer);
    ch->ack_pending = false;
}

void hub_add_session(struct hub *hub, struct session *s)
{
    link_append(&hub->sessions, &s->in_hub);
    if (uv_is_active((uv_handle_t *)&hub->tick))
        return;
    hub->ticked_at = clock_mono_ms();
    uv_timer_start(&hub->tick, on_tick, TUNNEL_TICK_MS, TUNNEL_TICK_MS);
}

void hub_queue(struct session *s)
{
    struct hub *hub = s->t->hub;
    if (s->state == SESSION_DEAD || !link_empty(&s->in_queue))
        return;
    link_append(&hub->queue, &s->in_queue);
}

void hub_bury(struct hub *hub, struct channel *ch)
{
    hub_settle_ack(hub, ch);
    ch->gone = true;
    ch->next = hub->grave;
    hub->grave = ch;
}

static struct hub *hub_new(uv_loop_t *loop)
{
    struct hub *hub = xcalloc(1, sizeof(*hub));
    hub->loop = loop;
    link_init(&hub->sessions);
    link_init(&hub->queue);
    uv_timer_init(loop, &hub->tick);
    uv_timer_init(loop, &hub->ack_timer);
    uv_prepare_init(loop, &hub->prepare);
    uv_check_init(loop, &hub->check);
    uv_idle_init(loop, &hub->idle);
    hub->handles = 5;
    hub->tick.data = hub->ack_timer.data = hub->idle.data = hub;
    hub->prepare.data = hub->check.data = hub;
    uv_prepare_start(&hub->prepare, on_prepare);
    uv_check_start(&hub->check, on_check);
    /* Sessions keep the loop alive, the hub does not. */
    uv_unref((uv_handle_t *)&hub->tick);
    uv_unref((uv_handle_t *)&hub->prepare);
    uv_unref((uv_handle_t *)&hub->check);
    return hub;
}

struct hub *hub_get(uv_loop_t *loop)
{
    pthread_mutex_lock(&hubs_lock);
    struct hub *hub = hubs;
    while (hub && hub->loop != loop)
        hub = hub->next;
    if (!hub) {
        hub = hub_new(loop);
        hub->next = hubs;
        hubs = hub;
    }
    hub->users++;
    pthread_mutex_unlock(&hubs_lock);
    return hub;
}

static void on_closed(uv_handle_t *handle)
{
    struct hub *hub = handle->data;
    if (--hub->handles > 0)
        return;
    empty_grave(hub);
    free(hub);
}

void hub_put(struct hub *hub)
{
    pthread_mutex_lock(&hubs_lock);
    bool last = --hub->users == 0;
    for (struct hub **p = &hubs; last && *p; p = &(*p)->next)
        if (*p == hub) {
            *p = hub->next;
            break;
        }
    pthread_mutex_unlock(&hubs_lock);
    if (!last)
        return;
    uv_close((uv_handle_t *)&hub->tick, on_closed);
    uv_close((uv_handle_t *)&hub->ack_timer, on_closed);
    uv_close((uv_handle_t *)&hub->prepare, on_closed);
    uv_close((uv_handle_t *)&hub->check, on_closed);
    uv_close((uv_handle_t *)&hub->idle, on_closed);
}
