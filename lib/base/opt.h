/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: one table per module, from which come parsing, --help, --print-config and the man page.
 *
 * A table names for each option its flag, environment variable, type, default, and where in the
 * module's config struct the value goes. Sources, strongest first: flag, environment, config file
 * (KEY=value, the keys are the environment names), default. Go's flag syntax: -flag value,
 * -flag=value, one dash or two; booleans -flag or -flag=false.
 *
 * Bad values: in a flag or in our file an error that names where and what is allowed; in the
 * environment a loud warning and the default (existing ConfigMaps hold such values). An unknown
 * flag or file key is an error; an unknown variable is not.
 */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "base/log.h"

enum opt_type {
    OPT_STRING,   /* char *, owned, never NULL: "" when unset */
    OPT_BOOL,     /* bool */
    OPT_INT,      /* int64_t, bounded by min..max when they differ */
    OPT_DOUBLE,   /* double */
    OPT_DURATION, /* int64_t nanoseconds, Go syntax */
    OPT_LIST,     /* char **, owned, NULL-terminated, never NULL; comma separated */
    OPT_MAP,      /* as OPT_LIST, every item k=v with a non-empty k */
};

enum opt_flags {
    OPT_REQUIRED = 1, /* empty after all sources: an error that names flag and variable */
    OPT_SECRET = 2,   /* --print-config shows "(set)" or "(unset)" */
    OPT_HIDDEN = 4,   /* for tests; not in --help */
    OPT_POSITIVE = 8, /* durations: must be > 0 */
};

struct opt {
    const char *flag; /* without dashes */
    const char *env;  /* may be NULL */
    enum opt_type type;
    size_t offset;   /* offsetof(struct the_config, field) */
    const char *def; /* as text, may be NULL for "" / false / 0 */
    unsigned flags;
    const char *help;           /* one line, no full stop */
    int64_t min, max;           /* OPT_INT */
    const char *const *choices; /* OPT_STRING: NULL-terminated allowed values; "" is always allowed
                                   when it is the default */
};

#define OPT_END ((struct opt){0})

/* One table with the struct it fills. */
struct opt_set {
    const char *title;      /* heading in --help: "common", "local provider" */
    const struct opt *opts; /* ends with OPT_END */
    void *target;
    unsigned char *source; /* owned by opt_parse/opt_done: where each value came from */
};

/*
 * Fills every target of `sets` (ends with a set whose opts is NULL) from all sources. Targets must
 * be zeroed; on failure as on success they are released with opt_done. argv starts behind the
 * program's (and sub-command's) words. config_path: the file, or NULL; a missing file is fine.
 * Words that are no flags go to ret_rest (borrowed from argv, NULL-terminated array owned by the
 * caller) when it is not NULL, else they are an error; "--" ends the flags.
 */
int opt_parse(struct opt_set *sets, char *const *argv, const char *config_path, char ***ret_rest,
              struct err *err);
/* Checks OPT_REQUIRED; separate, so that --print-config works on a half-made configuration. */
int opt_check_required(const struct opt_set *sets, struct err *err);
void opt_done(struct opt_set *sets);

void opt_help(const struct opt_set *sets, struct buf *out);

/* What a program with one table has beside its own: its last rows. */
struct opt_program {
    char *log_level, *log_format;
    bool help, version;
};

#define OPT_PROGRAM_ROW(kind, word, field) .flag = word, .type = OPT_##kind, .offset = field
#define OPT_PROGRAM_ROWS(at, level_env, format_env)                                                \
    {OPT_PROGRAM_ROW(STRING, "log-level", (at) + offsetof(struct opt_program, log_level)),         \
     .env = (level_env), .def = "info", .choices = log_levels,                                     \
     .help = "Least level that is logged"},                                                        \
        {OPT_PROGRAM_ROW(STRING, "log-format", (at) + offsetof(struct opt_program, log_format)),   \
         .env = (format_env), .def = "text", .choices = log_formats,                               \
         .help = "Lines or JSON objects"},                                                         \
        {OPT_PROGRAM_ROW(BOOL, "help", (at) + offsetof(struct opt_program, help)),                 \
         .help = "Show this text"},                                                                \
    {                                                                                              \
        OPT_PROGRAM_ROW(BOOL, "version", (at) + offsetof(struct opt_program, version)),            \
            .help = "Show the version"                                                             \
    }

#define OPT_EXIT_USAGE 2

/* Parses as opt_parse, answers -help (usage, then the table) and -version, sets up the log.
 * -1: go on; else the program's exit status. */
int opt_begin(const char *program, const char *usage, struct opt_set *sets,
              const struct opt_program *o, char *const *argv, char ***ret_rest);
/* KEY=value lines, in the form of the config file, secrets redacted, with the source of each. */
void opt_print_config(const struct opt_set *sets, struct buf *out);
/* Man page section (Markdown) from the same tables. */
void opt_man(const struct opt_set *sets, struct buf *out);
