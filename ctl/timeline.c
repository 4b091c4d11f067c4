/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps are appended by the thread that runs the pod; the signal thread only reads the last one to
 * say that it still lasts. A run with more steps than there is room for drops the rest.
 */
#include "ctl/timeline.h"

#include "base/clock.h"
#include "base/json.h"

#define TELL_EVERY_US 5000000

void timeline_init(struct timeline *t, bool quiet)
{
    *t = (struct timeline){.start_us = clock_mono_us(), .quiet = quiet};
    pthread_mutex_init(&t->lock, NULL);
}

void timeline_done(struct timeline *t)
{
    pthread_mutex_destroy(&t->lock);
}

void timeline_begin(struct timeline *t, const char *name)
{
    int64_t now = clock_mono_us();

    pthread_mutex_lock(&t->lock);
    if (t->n < TIMELINE_STEPS_MAX)
        t->steps[t->n++] = (struct timeline_step){.name = name, .start_us = now - t->start_us};
    t->told_us = now;
    pthread_mutex_unlock(&t->lock);
    if (!t->quiet)
        fprintf(stderr, "peerpodctl: %s\n", name);
}

int timeline_end(struct timeline *t, int r)
{
    int64_t now = clock_mono_us() - t->start_us;

    pthread_mutex_lock(&t->lock);
    struct timeline_step *s = &t->steps[t->n - 1];
    s->took_us = now - s->start_us;
    s->ended = true;
    s->failed = r < 0;
    pthread_mutex_unlock(&t->lock);
    return r;
}

void timeline_tick(struct timeline *t)
{
    int64_t now = clock_mono_us();

    pthread_mutex_lock(&t->lock);
    const struct timeline_step *s = t->n > 0 ? &t->steps[t->n - 1] : NULL;
    if (!t->quiet && s && !s->ended && now - t->told_us >= TELL_EVERY_US) {
        t->told_us = now;
        fprintf(stderr, "peerpodctl: %s: waiting for %lld s\n", s->name,
                (long long)((now - t->start_us - s->start_us) / 1000000));
    }
    pthread_mutex_unlock(&t->lock);
}

static void show_json(const struct timeline *t, int64_t total, int exit_status)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    for (size_t i = 0; i < t->n; i++) {
        struct json_object *s = json_object_new_object();

        json_add_string(s, "step", t->steps[i].name);
        json_add_i64(s, "at_us", t->steps[i].start_us);
        json_add_i64(s, "took_us", t->steps[i].took_us);
        json_add_bool(s, "ok", !t->steps[i].failed);
        json_object_array_add(list, s);
    }
    json_add_i64(o, "total_us", total);
    json_add_i64(o, "exit_status", exit_status);
    json_object_object_add(o, "steps", list);
    fprintf(stderr, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
}

void timeline_show(struct timeline *t, bool json, int exit_status)
{
    int64_t total = clock_mono_us() - t->start_us;

    if (json) {
        show_json(t, total, exit_status);
        return;
    }
    fprintf(stderr, "\n%10s %12s  step\n", "at", "took");
    for (size_t i = 0; i < t->n; i++) {
        const struct timeline_step *s = &t->steps[i];

        fprintf(stderr, "%8.3f s %9.1f ms  %s%s\n", (double)s->start_us / 1e6,
                (double)s->took_us / 1e3, s->name, s->failed ? " (failed)" : "");
    }
    fprintf(stderr, "%8.3f s  in all, exit status %d\n", (double)total / 1e6, exit_status);
}
