/* SPDX-License-Identifier: Apache-2.0 */
/* A table in order of appearance; see report.h. */
#include "relay/report.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/json.h"

#define PROGRESS_MS 5000

struct step *report_step(struct report *r, const char *name)
{
    for (size_t i = 0; i < r->n_steps; i++)
        if (strcmp(r->steps[i].name, name) == 0)
            return &r->steps[i];
    if (r->n_steps == REPORT_STEPS_MAX)
        abort();
    struct step *s = &r->steps[r->n_steps++];
    snprintf(s->name, sizeof(s->name), "%s", name);
    return s;
}

void report_fail(struct report *r, const char *fmt, ...)
{
    va_list ap;

    if (r->message[0])
        return;
    va_start(ap, fmt);
    vsnprintf(r->message, sizeof(r->message), fmt, ap);
    va_end(ap);
}

void report_progress(struct report *r)
{
    int64_t now = clock_mono_ms();

    if (now - r->told_at < PROGRESS_MS)
        return;
    r->told_at = now;
    fprintf(stderr, "kill_loop: %" PRIu64 " kills, %" PRIu64 " rounds, %zu steps\n", r->kills,
            r->rounds, r->n_steps);
}

void report_print(const struct report *r, double seconds)
{
    struct json_object *o = json_object_new_object(), *steps = json_object_new_object();

    json_add_string(o, "name", "kill-loop");
    json_add_bool(o, "pass", r->message[0] == '\0');
    json_add_string(o, "error", r->message[0] ? r->message : NULL);
    json_add_i64(o, "kills", (int64_t)r->kills);
    json_add_i64(o, "bytes", (int64_t)r->bytes);
    json_add_i64(o, "wrong", (int64_t)r->wrong);
    json_add_i64(o, "rounds", (int64_t)r->rounds);
    json_add_i64(o, "seconds", (int64_t)(seconds + 0.5));
    for (size_t i = 0; i < r->n_steps; i++)
        json_add_i64(steps, r->steps[i].name, (int64_t)r->steps[i].killed);
    json_object_object_add(o, "steps", steps);
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_put(o);
}
