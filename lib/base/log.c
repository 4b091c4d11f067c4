/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logging. An entry is built on the stack and written with one write(2), so entries of several
 * threads and processes never mix. No lock: the settings are written once, before the threads.
 *
 *   text: 2026-11-23T14:35:17.123Z WARN cloud-api-adaptor sandbox=abc step=create: message
 *   json: {"time":"...","level":"warn","program":"...","sandbox":"...","step":"...","msg":"..."}
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "base/str.h"

const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
const char *const log_formats[] = {"text", "json", NULL};
static const char *const level_marks[] = {"ERROR", "WARN", "INFO", "DEBUG"};
static const char *log_program = "peerpod";
static enum log_level log_level = LOG_LEVEL_INFO;
static enum log_format log_format = LOG_FORMAT_TEXT;

void log_init(const char *program, enum log_level level, enum log_format format)
{
    log_program = program;
    log_level = level;
    log_format = format;
    /* What the C library reads, and keeps in memory of its own, with the first time stamp: now, so
     * that entries need no memory (peerpod-keeper). */
    tzset();
}

int log_level_parse(const char *word, enum log_level *ret)
{
    for (size_t i = 0; log_levels[i]; i++)
        if (str_eq(word, log_levels[i])) {
            *ret = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

int log_format_parse(const char *word, enum log_format *ret)
{
    for (size_t i = 0; log_formats[i]; i++)
        if (str_eq(word, log_formats[i])) {
            *ret = (enum log_format)i;
            return 0;
        }
    return -EINVAL;
}

void log_init_words(const char *program, const char *level_word, const char *format_word)
{
    enum log_level level = LOG_LEVEL_INFO;
    enum log_format format = LOG_FORMAT_TEXT;

    log_level_parse(level_word, &level);
    log_format_parse(format_word, &format);
    log_init(program, level, format);
}

bool log_enabled(enum log_level level)
{
    return level <= log_level;
}

struct line {
    char text[LOG_ENTRY_MAX];
    size_t len;
};

static void put(struct line *l, const char *s, size_t n)
{
    size_t room = sizeof(l->text) - 8 - l->len; /* 8: what closes an entry, and a cut mark */
    n = MIN(n, room);
    memcpy(l->text + l->len, s, n);
    l->len += n;
}

static void puts_(struct line *l, const char *s)
{
    put(l, s, strlen(s));
}

/* Control characters would let one entry look like two; JSON needs quotes escaped as well. */
static void put_escaped(struct line *l, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        char escaped[8];
        if (c < 0x20 || c == 0x7f)
            snprintf(escaped, sizeof(escaped), "\\u%04x", c);
        else if (log_format == LOG_FORMAT_JSON && (c == '"' || c == '\\'))
            snprintf(escaped, sizeof(escaped), "\\%c", c);
        else {
            put(l, s, 1);
            continue;
        }
        puts_(l, escaped);
    }
}

static void put_json_field(struct line *l, const char *key, const char *value)
{
    if (!value)
        return;
    puts_(l, l->len ? ",\"" : "{\"");
    puts_(l, key);
    puts_(l, "\":\"");
    put_escaped(l, value);
    puts_(l, "\"");
}

static void put_text_field(struct line *l, const char *key, const char *value)
{
    if (!value)
        return;
    puts_(l, " ");
    puts_(l, key);
    puts_(l, "=");
    put_escaped(l, value);
}

void log_entry(enum log_level level, const char *sandbox, const char *step, const char *fmt, ...)
{
    if (level > log_level)
        return;
    int saved = errno;
    char message[LOG_ENTRY_MAX / 2], time[CLOCK_RFC3339_SIZE];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    clock_rfc3339(clock_real_ms(), time);

    struct line l = {.len = 0};
    if (log_format == LOG_FORMAT_JSON) {
        put_json_field(&l, "time", time);
        put_json_field(&l, "level", log_levels[level]);
        put_json_field(&l, "program", log_program);
        put_json_field(&l, "sandbox", sandbox);
        put_json_field(&l, "step", step);
        put_json_field(&l, "msg", message);
        l.text[l.len++] = '}';
    } else {
        puts_(&l, time);
        puts_(&l, " ");
        puts_(&l, level_marks[level]);
        puts_(&l, " ");
        puts_(&l, log_program);
        put_text_field(&l, "sandbox", sandbox);
        put_text_field(&l, "step", step);
        puts_(&l, ": ");
        put_escaped(&l, message);
    }
    l.text[l.len++] = '\n';
    ssize_t n = write(STDERR_FILENO, l.text, l.len);
    (void)n; /* there is nowhere to say that the log is gone */
    errno = saved;
}
