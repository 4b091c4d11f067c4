/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logging to stderr, as lines or as JSON objects, one write(2) each, from any thread.
 *
 * Every entry has time, level, program, message, and optionally the sandbox it is about and the
 * step that was under way. Control characters are escaped, entries are cut at LOG_ENTRY_MAX.
 * Secrets never get here: pass names and sizes, not values.
 */
#pragma once

#include "base/macros.h"

#define LOG_ENTRY_MAX 4096

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

/* program: borrowed for the process's life. Call once, before the first thread. */
void log_init(const char *program, enum log_level level, enum log_format format);
/* NULL-terminated, for option tables; and log_init by such words. */
extern const char *const log_levels[], *const log_formats[];
void log_init_words(const char *program, const char *level, const char *format);
/* 0, or -EINVAL for an unknown word; the words are error, warn, info, debug and text, json. */
int log_level_parse(const char *word, enum log_level *ret);
int log_format_parse(const char *word, enum log_format *ret);
bool log_enabled(enum log_level level);

/* sandbox and step may be NULL. */
void log_entry(enum log_level level, const char *sandbox, const char *step, const char *fmt, ...)
    _printf_(4, 5);

#define log_error(...) log_entry(LOG_LEVEL_ERROR, NULL, NULL, __VA_ARGS__)
#define log_warn(...) log_entry(LOG_LEVEL_WARN, NULL, NULL, __VA_ARGS__)
#define log_info(...) log_entry(LOG_LEVEL_INFO, NULL, NULL, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                          \
            log_entry(LOG_LEVEL_DEBUG, NULL, NULL, __VA_ARGS__);                                   \
    } while (0)
