/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each slot has one call under way at most and sends the next when it is answered, so that all
 * streams are sequential and their bytes can be foretold on both sides, while frames of every kind
 * and size lie between each other on the wire. One thread sends and receives: what is under way in
 * the direction of the shim is less than the rings hold, so that a write never waits for a reader
 * that waits for it.
 */
#include "blackout/load.h"

#include <errno.h>

#include "base/clock.h"

#define CALL_TIMEOUT_MS 60000
#define HOLD_MS 1500      /* of a WaitProcess, times 1 to LOAD_WAITS */
#define BURST 8           /* CopyFile calls */
#define BURST_PAUSE_MS 50 /* times 0 to 15, and the connection's other calls go on */

enum kind { KIND_READ, KIND_COPY, KIND_CREATE, KIND_CHECK, KIND_WAIT };

static const struct load_slot initial[LOAD_SLOTS] = {
    {.kind = KIND_READ, .number = 0},   {.kind = KIND_READ, .number = 1},
    {.kind = KIND_READ, .number = 2},   {.kind = KIND_READ, .number = 3},
    {.kind = KIND_COPY, .number = 0},   {.kind = KIND_COPY, .number = 1},
    {.kind = KIND_CREATE, .number = 0}, {.kind = KIND_CHECK, .number = 0},
};

int load_open(struct load *l, const char *socket, struct err *err)
{
    *l = (struct load){.calls = 0};
    memcpy(l->slots, initial, sizeof(initial));
    l->n_slots = LOAD_SLOTS;
    int r = client_open(&l->client, socket, err);
    return r < 0 ? r : client_timeout(&l->client, CALL_TIMEOUT_MS);
}

void load_blocking(struct load *l)
{
    l->bursts = true;
    for (uint32_t i = 0; i < LOAD_WAITS; i++)
        l->slots[l->n_slots++] = (struct load_slot){.kind = KIND_WAIT, .number = i};
}

void load_close(struct load *l)
{
    client_close(&l->client);
}

/* Each process is waited for once. */
static uint32_t process_of(const struct load_slot *s)
{
    return (uint32_t)s->offset * LOAD_WAITS + s->number;
}

static int slot_send(struct load *l, struct load_slot *s)
{
    int64_t r = -EINVAL;
    switch ((enum kind)s->kind) {
    case KIND_READ:
        r = client_read(&l->client, s->number, TRAFFIC_READ);
        break;
    case KIND_COPY:
        r = client_copy(&l->client, s->number, s->offset, UINT64_MAX >> 1);
        break;
    case KIND_CREATE:
        r = client_create(&l->client, (uint32_t)s->offset);
        break;
    case KIND_CHECK:
        r = client_check(&l->client);
        break;
    case KIND_WAIT:
        r = client_wait(&l->client, process_of(s));
        s->due_ms = clock_mono_ms() + (int64_t)HOLD_MS * (s->number + 1);
        break;
    }
    if (r < 0)
        return (int)r;
    s->stream = r;
    return 0;
}

static void wait_answered(struct load *l, struct load_slot *s, const struct reply *reply)
{
    uint64_t status = UINT64_MAX;
    if (reply->len == sizeof(status))
        memcpy(&status, reply->data, sizeof(status));
    l->wrong += status != process_of(s);
    l->wrong += !s->ender; /* not before its end */
    s->offset++;
    l->waits++;
}

static void slot_answered(struct load *l, struct load_slot *s, const struct reply *reply)
{
    l->calls++;
    l->failed += reply->code != 0;
    if (s->ender == (int64_t)reply->stream) {
        s->ender = 0;
        return;
    }
    s->stream = 0;
    switch ((enum kind)s->kind) {
    case KIND_READ:
        if (reply->len != TRAFFIC_READ ||
            memcmp(reply->data, traffic_bytes(s->number, s->offset), TRAFFIC_READ) != 0)
            l->wrong++;
        s->offset += TRAFFIC_READ;
        l->read_bytes += TRAFFIC_READ;
        l->reads++;
        break;
    case KIND_COPY:
        s->offset += TRAFFIC_COPY;
        l->copy_bytes += TRAFFIC_COPY;
        l->copies++;
        if (l->bursts && l->copies % BURST == 0)
            s->due_ms = clock_mono_ms() + BURST_PAUSE_MS * (int64_t)(l->copies / BURST * 7 % 16);
        break;
    case KIND_CREATE:
        s->offset++;
        l->creates++;
        break;
    case KIND_CHECK:
        l->checks++;
        break;
    case KIND_WAIT:
        wait_answered(l, s, reply);
        break;
    }
}

static struct load_slot *slot_of(struct load *l, uint32_t stream)
{
    for (size_t i = 0; i < l->n_slots; i++)
        if (l->slots[i].stream == (int64_t)stream || l->slots[i].ender == (int64_t)stream)
            return &l->slots[i];
    return NULL;
}

static bool all_answered(const struct load *l)
{
    for (size_t i = 0; i < l->n_slots; i++)
        if (l->slots[i].stream || l->slots[i].ender)
            return false;
    return true;
}

static int send_idle(struct load *l, struct err *err)
{
    int64_t now = clock_mono_ms();
    for (size_t i = 0; i < l->n_slots; i++) {
        struct load_slot *s = &l->slots[i];
        bool due = s->kind != (int)KIND_COPY || now >= s->due_ms;
        int r = s->stream || s->ender || !due ? 0 : slot_send(l, s);
        if (r < 0)
            return err_errno(err, r, "the shim's connection, sending call %zu", i);
    }
    return 0;
}

/* Of WaitProcess calls that have been held for long enough, or all. */
static int send_enders(struct load *l, bool all, struct err *err)
{
    int64_t now = clock_mono_ms();
    for (size_t i = 0; i < l->n_slots; i++) {
        struct load_slot *s = &l->slots[i];
        if (s->kind != (int)KIND_WAIT || !s->stream || s->ender || (!all && now < s->due_ms))
            continue;
        s->ender = client_end(&l->client, process_of(s));
        if (s->ender < 0)
            return err_errno(err, (int)s->ender, "the shim's connection, ending a wait");
    }
    return 0;
}

static int receive_one(struct load *l, struct err *err)
{
    struct reply reply;
    int r = client_receive(&l->client, &reply);
    if (r < 0)
        return err_errno(err, r, "the shim's connection, after %llu calls",
                         (unsigned long long)l->calls);
    int64_t now = clock_mono_ms();
    l->longest_silence_ms = MAX(l->longest_silence_ms, now - l->answered_at);
    l->answered_at = now;
    struct load_slot *s = slot_of(l, reply.stream);
    if (!s)
        return err_set(err, -EPROTO, "an answer on stream %u, where no call is", reply.stream);
    slot_answered(l, s, &reply);
    return 0;
}

int load_run(struct load *l, uint64_t bytes, int64_t min_ms, struct err *err)
{
    uint64_t read_goal = l->read_bytes + bytes, copy_goal = l->copy_bytes + bytes;
    int64_t end = clock_mono_ms() + min_ms;
    int r = 0;
    l->longest_silence_ms = 0;
    l->answered_at = clock_mono_ms();
    for (;;) {
        bool more = l->read_bytes < read_goal || l->copy_bytes < copy_goal ||
                    clock_mono_ms() < end || __atomic_load_n(&l->go_on, __ATOMIC_RELAXED);
        if (more)
            r = send_idle(l, err);
        if (r == 0)
            r = send_enders(l, !more, err);
        if (r < 0 || (!more && all_answered(l)))
            return r;
        r = receive_one(l, err);
        if (r < 0)
            return r;
    }
}

int load_settle(struct load *l, struct traffic_counters *ret, struct err *err)
{
    struct reply reply;
    int64_t sent = client_counters(&l->client);
    int r = sent < 0 ? (int)sent : client_receive(&l->client, &reply);
    if (r < 0 || reply.len != sizeof(*ret))
        return err_errno(err, r < 0 ? r : -EPROTO, "asking the agent what it has executed");
    memcpy(ret, reply.data, sizeof(*ret));
    if (ret->twice || ret->creates != l->creates || ret->copies != l->copies ||
        ret->reads != l->reads || ret->checks != l->checks || ret->waits != l->waits)
        return err_set(err, -EPROTO,
                       "answered / executed: reads %llu/%llu, copies %llu/%llu, creates %llu/%llu "
                       "(%llu twice), checks %llu/%llu, waits %llu/%llu",
                       (unsigned long long)l->reads, (unsigned long long)ret->reads,
                       (unsigned long long)l->copies, (unsigned long long)ret->copies,
                       (unsigned long long)l->creates, (unsigned long long)ret->creates,
                       (unsigned long long)ret->twice, (unsigned long long)l->checks,
                       (unsigned long long)ret->checks, (unsigned long long)l->waits,
                       (unsigned long long)ret->waits);
    return 0;
}
