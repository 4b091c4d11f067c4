/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options. Values are applied from the weakest source to the strongest, each overwriting the one
 * before, so the precedence (flag, environment, file, default) is the order of four passes. The
 * source of each value is remembered for --print-config.
 *
 * A value is always checked whole before the target is touched, so a bad one leaves the weaker
 * source's value in place: that is what "a warning and the default" means for the environment.
 */
#include "base/opt.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

#define OPT_FILE_MAX (256U << 10)
#define OPT_VALUE_MAX (64U << 10)

enum opt_source { FROM_DEFAULT, FROM_FILE, FROM_ENV, FROM_FLAG };
static const char *const source_names[] = {"default", "file", "environment", "flag"};

static void *field(const struct opt_set *set, const struct opt *o)
{
    return (char *)set->target + o->offset;
}

/* -- one value -- */

static int check_choice(const struct opt *o, const char *value, struct err *err)
{
    struct buf allowed = BUF_INIT(4096);
    if (!o->choices || (str_empty(value) && str_empty(o->def)))
        return 0;
    for (size_t i = 0; o->choices[i]; i++) {
        if (str_eq(o->choices[i], value)) {
            buf_done(&allowed);
            return 0;
        }
        buf_addf(&allowed, "%s%s", i ? ", " : "", o->choices[i]);
    }
    int r = err_set(err, -EINVAL, "'%.64s' is not one of: %s", value, allowed.data);
    buf_done(&allowed);
    return r;
}

static int set_string(const struct opt *o, char **target, const char *value, struct err *err)
{
    int r = check_choice(o, value, err);
    if (r < 0)
        return r;
    free(*target);
    *target = xstrdup(value);
    return 0;
}

static int set_int(const struct opt *o, int64_t *target, const char *value, struct err *err)
{
    int64_t min = o->min == o->max ? INT64_MIN : o->min,
            max = o->min == o->max ? INT64_MAX : o->max;
    int r = str_to_i64(value, min, max, target);
    if (r == -ERANGE)
        return err_set(err, r, "'%.64s' is out of range: %lld to %lld are allowed", value,
                       (long long)min, (long long)max);
    return r < 0 ? err_set(err, r, "'%.64s' is not a whole number", value) : 0;
}

static int set_duration(const struct opt *o, int64_t *target, const char *value, struct err *err)
{
    int64_t ns;
    int r = str_to_duration(value, &ns);
    if (r < 0)
        return err_set(err, r, "'%.64s' is not a duration such as 90s, 5m or 1h30m", value);
    if (ns < 0 || (ns == 0 && (o->flags & OPT_POSITIVE)))
        return err_set(err, -ERANGE, "'%.64s' is not a positive duration", value);
    *target = ns;
    return 0;
}

static int set_list(const struct opt *o, char ***target, const char *value, struct err *err)
{
    char **items = str_split(value, ',');
    for (size_t i = 0; o->type == OPT_MAP && items[i]; i++) {
        const char *equals = strchr(items[i], '=');
        if (!equals || equals == items[i]) {
            int r = err_set(err, -EINVAL, "'%.64s' is not of the form key=value", items[i]);
            strv_free(items);
            return r;
        }
    }
    strv_free(*target);
    *target = items;
    return 0;
}

static int set_value(const struct opt *o, void *target, const char *value, struct err *err)
{
    if (strlen(value) > OPT_VALUE_MAX)
        return err_set(err, -E2BIG, "a value of %zu bytes is longer than %u", strlen(value),
                       OPT_VALUE_MAX);
    switch (o->type) {
    case OPT_STRING:
        return set_string(o, target, value, err);
    case OPT_BOOL:
        if (str_to_bool(value, target) < 0)
            return err_set(err, -EINVAL, "'%.64s' is not true or false", value);
        return 0;
    case OPT_INT:
        return set_int(o, target, value, err);
    case OPT_DOUBLE:
        if (str_to_double(value, target) < 0)
            return err_set(err, -EINVAL, "'%.64s' is not a number", value);
        return 0;
    case OPT_DURATION:
        return set_duration(o, target, value, err);
    case OPT_LIST:
    case OPT_MAP:
        return set_list(o, target, value, err);
    }
    return err_set(err, -EINVAL, "option of unknown type");
}

/* A secret's wrong value must not be quoted in the error. */
static int set_from(struct opt_set *set, size_t i, enum opt_source source, const char *value,
                    struct err *err)
{
    const struct opt *o = &set->opts[i];
    struct err local = ERR_INIT;
    int r = set_value(o, field(set, o), value, &local);
    if (r < 0)
        return err_set(err, r, "%s", o->flags & OPT_SECRET ? "malformed value" : local.text);
    set->source[i] = (unsigned char)source;
    return 0;
}

static size_t set_len(const struct opt_set *set)
{
    size_t n = 0;
    while (set->opts[n].flag)
        n++;
    return n;
}

/* -- the four passes -- */

static void apply_defaults(struct opt_set *sets)
{
    for (struct opt_set *set = sets; set->opts; set++) {
        set->source = xcalloc(set_len(set) + 1, 1);
        for (size_t i = 0; set->opts[i].flag; i++) {
            const struct opt *o = &set->opts[i];
            const char *def = o->def;
            struct err err = ERR_INIT;
            if (!def && o->type != OPT_STRING && o->type != OPT_LIST && o->type != OPT_MAP)
                continue; /* the zeroed target */
            int r = set_from(set, i, FROM_DEFAULT, def ? def : "", &err);
            assert(r == 0);
            (void)r;
        }
    }
}

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t')
        s++;
    size_t len = strlen(s);
    while (len && strchr(" \t\r", s[len - 1]))
        s[--len] = '\0';
    return s;
}

static char *unquote(char *s)
{
    size_t len = strlen(s);
    if (len >= 2 && (*s == '"' || *s == '\'') && s[len - 1] == *s) {
        s[len - 1] = '\0';
        return s + 1;
    }
    return s;
}

static int apply_file_line(struct opt_set *sets, const char *where, char *line, struct err *err)
{
    bool known = false;
    char *equals = strchr(line, '=');
    if (!equals)
        return err_set(err, -EINVAL, "%s: expected KEY=value", where);
    *equals = '\0';
    const char *key = trim(line);
    const char *value = unquote(trim(equals + 1));
    for (struct opt_set *set = sets; set->opts; set++)
        for (size_t i = 0; set->opts[i].flag; i++) {
            if (!str_eq(set->opts[i].env, key))
                continue;
            known = true;
            int r = *value ? set_from(set, i, FROM_FILE, value, err) : 0;
            if (r < 0)
                return err_wrap(err, r, "%s: %s", where, key);
        }
    if (!known)
        return err_set(err, -EINVAL,
                       "%s: unknown key %.64s; --help lists the keys (the environment variables)",
                       where, key);
    return 0;
}

static int apply_file(struct opt_set *sets, const char *path, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    struct err local = ERR_INIT;
    int r = path ? fs_read(AT_FDCWD, path, OPT_FILE_MAX, &text, &len, &local) : -ENOENT;
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return err_set(err, r, "%s", local.text);
    if (strlen(text) != len)
        return err_set(err, -EINVAL, "%s: holds a NUL character", path);
    unsigned number = 0;
    for (char *next = text; r == 0 && next;) {
        char *line = next, where[512];
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        number++;
        line = trim(line);
        snprintf(where, sizeof(where), "%.400s line %u", path, number);
        if (*line && *line != '#')
            r = apply_file_line(sets, where, line, err);
    }
    secret_wipe(text, len);
    return r;
}

static void apply_env(struct opt_set *sets)
{
    for (struct opt_set *set = sets; set->opts; set++)
        for (size_t i = 0; set->opts[i].flag; i++) {
            const struct opt *o = &set->opts[i];
            const char *value = o->env ? getenv(o->env) : NULL;
            struct err err = ERR_INIT;
            bool ignored;
            if (str_empty(value))
                continue;
            /* As the Go program: anything that is not a true word is false. */
            if (o->type == OPT_BOOL && str_to_bool(value, &ignored) < 0) {
                log_warn("environment: %s is '%.32s', taken as false; allowed are true and false",
                         o->env, value);
                value = "false";
            }
            if (set_from(set, i, FROM_ENV, value, &err) < 0)
                log_warn("environment: %s ignored, the %s holds: %s", o->env,
                         source_names[set->source[i]], err.text);
        }
}

/* Finds `name` (len bytes) in any set. */
static bool find_flag(struct opt_set *sets, const char *name, size_t len, struct opt_set **ret_set,
                      size_t *ret_i)
{
    for (struct opt_set *set = sets; set->opts; set++)
        for (size_t i = 0; set->opts[i].flag; i++)
            if (strlen(set->opts[i].flag) == len && !strncmp(set->opts[i].flag, name, len)) {
                *ret_set = set;
                *ret_i = i;
                return true;
            }
    return false;
}

/* One flag at argv[0]; *ret_used counts the words it took. */
static int apply_flag(struct opt_set *sets, char *const *argv, size_t *ret_used, struct err *err)
{
    const char *name = argv[0] + 1 + (argv[0][1] == '-');
    const char *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name), i;
    const char *value = equals ? equals + 1 : NULL;
    struct opt_set *set;
    *ret_used = 1;
    if (!find_flag(sets, name, len, &set, &i))
        return err_set(err, -EINVAL, "unknown flag -%.*s; --help lists the flags",
                       (int)MIN(len, (size_t)64), name);
    if (!value && set->opts[i].type == OPT_BOOL) {
        value = "true";
    } else if (!value) {
        if (!argv[1])
            return err_set(err, -EINVAL, "flag -%s needs a value", set->opts[i].flag);
        value = argv[1];
        *ret_used = 2;
    }
    int r = set_from(set, i, FROM_FLAG, value, err);
    return r < 0 ? err_wrap(err, r, "flag -%s", set->opts[i].flag) : 0;
}

static int apply_flags(struct opt_set *sets, char *const *argv, char ***ret_rest, struct err *err)
{
    size_t n_rest = 0;
    char **rest = xcalloc(strv_len(argv) + 1, sizeof(*rest));
    bool flags = true;
    int r = 0;
    while (r == 0 && *argv) {
        size_t used = 1;
        if (flags && str_eq(*argv, "--"))
            flags = false;
        else if (flags && (*argv)[0] == '-' && (*argv)[1])
            r = apply_flag(sets, argv, &used, err);
        else if (ret_rest)
            rest[n_rest++] = *argv;
        else
            r = err_set(err, -EINVAL, "unexpected argument '%.64s'; flags begin with a dash",
                        *argv);
        argv += used;
    }
    if (r < 0 || !ret_rest)
        free(rest);
    else
        *ret_rest = rest;
    return r;
}

int opt_parse(struct opt_set *sets, char *const *argv, const char *config_path, char ***ret_rest,
              struct err *err)
{
    apply_defaults(sets);
    int r = apply_file(sets, config_path, err);
    if (r < 0)
        return r;
    apply_env(sets);
    return apply_flags(sets, argv, ret_rest, err);
}

static bool is_empty(const struct opt_set *set, const struct opt *o)
{
    const void *target = field(set, o);
    switch (o->type) {
    case OPT_STRING:
        return str_empty(*(char *const *)target);
    case OPT_LIST:
    case OPT_MAP:
        return strv_len(*(char **const *)target) == 0;
    default:
        return set->source[o - set->opts] == FROM_DEFAULT;
    }
}

int opt_check_required(const struct opt_set *sets, struct err *err)
{
    struct buf missing = BUF_INIT(8192);
    for (const struct opt_set *set = sets; set->opts; set++)
        for (const struct opt *o = set->opts; o->flag; o++)
            if ((o->flags & OPT_REQUIRED) && is_empty(set, o))
                buf_addf(&missing, "%s-%s%s%s%s", missing.len ? ", " : "", o->flag,
                         o->env ? " (" : "", o->env ? o->env : "", o->env ? ")" : "");
    int r = missing.len ? err_set(err, -EINVAL, "required and not set: %s", missing.data) : 0;
    buf_done(&missing);
    return r;
}

void opt_done(struct opt_set *sets)
{
    for (struct opt_set *set = sets; set->opts; set++) {
        for (const struct opt *o = set->opts; o->flag && set->source; o++) {
            if (o->type == OPT_STRING) {
                char **s = field(set, o);
                if (*s && (o->flags & OPT_SECRET))
                    secret_wipe(*s, strlen(*s));
                free(TAKE_PTR(*s));
            } else if (o->type == OPT_LIST || o->type == OPT_MAP) {
                char ***v = field(set, o);
                strv_free(TAKE_PTR(*v));
            }
        }
        free(TAKE_PTR(set->source));
    }
}

/* -- what people read -- */

static const char *type_word(enum opt_type type)
{
    static const char *const words[] = {
        [OPT_STRING] = "string", [OPT_BOOL] = "bool",         [OPT_INT] = "int",
        [OPT_DOUBLE] = "number", [OPT_DURATION] = "duration", [OPT_LIST] = "a,b,...",
        [OPT_MAP] = "k=v,...",
    };
    return words[type];
}

static void add_choices(const struct opt *o, struct buf *out)
{
    for (size_t i = 0; o->choices && o->choices[i]; i++)
        buf_addf(out, "%s%s", i ? "|" : "; one of ", o->choices[i]);
}

void opt_help(const struct opt_set *sets, struct buf *out)
{
    for (const struct opt_set *set = sets; set->opts; set++) {
        buf_addf(out, "\n%s options:\n", set->title);
        for (const struct opt *o = set->opts; o->flag; o++) {
            if (o->flags & OPT_HIDDEN)
                continue;
            buf_addf(out, "  -%s %s", o->flag, type_word(o->type));
            if (o->env)
                buf_addf(out, "  [%s]", o->env);
            buf_addf(out, "\n        %s", o->help ? o->help : "");
            add_choices(o, out);
            if (!str_empty(o->def))
                buf_addf(out, " (default %s)", o->def);
            buf_adds(out, o->flags & OPT_REQUIRED ? " (required)\n" : "\n");
        }
    }
}

/* In quotes where the file's reader would take something off. */
static void add_text(const char *text, struct buf *out)
{
    static const char taken[] = " \t\r\"'";
    size_t len = strlen(text);
    bool quote = len > 0 && (strchr(taken, text[0]) || strchr(taken, text[len - 1]));
    buf_addf(out, quote ? "\"%s\"" : "%s", text);
}

static void add_list(char *const *list, struct buf *out)
{
    struct buf text = BUF_INIT(OPT_VALUE_MAX + 1);
    for (size_t i = 0; list[i]; i++)
        buf_addf(&text, "%s%s", i > 0 ? "," : "", list[i]);
    add_text(text.data ? text.data : "", out);
    buf_done(&text);
}

static void print_help(const char *usage, const struct opt_set *sets)
{
    struct buf out = BUF_INIT(0);

    opt_help(sets, &out);
    printf("%s%s", usage, out.data ? out.data : "");
    buf_done(&out);
}

int opt_begin(const char *program, const char *usage, struct opt_set *sets,
              const struct opt_program *o, char *const *argv, char ***ret_rest)
{
    struct err err = ERR_INIT;
    if (opt_parse(sets, argv + (argv[0] ? 1 : 0), NULL, ret_rest, &err) < 0) {
        fprintf(stderr, "%s: %s\nTry '%s --help'.\n", program, err_text(&err), program);
        return OPT_EXIT_USAGE;
    }
    if (o->help)
        print_help(usage, sets);
    else if (o->version)
        printf("%s %s\n", program, PP_VERSION);
    else
        log_init_words(program, o->log_level, o->log_format);
    return o->help || o->version ? EXIT_SUCCESS : -1;
}

static void add_value(const struct opt_set *set, const struct opt *o, struct buf *out)
{
    const void *target = field(set, o);
    char text[64];
    if (o->flags & OPT_SECRET) {
        buf_adds(out, is_empty(set, o) ? "(unset)" : "(set)");
        return;
    }
    switch (o->type) {
    case OPT_STRING:
        add_text(*(char *const *)target, out);
        break;
    case OPT_BOOL:
        buf_adds(out, *(const bool *)target ? "true" : "false");
        break;
    case OPT_INT:
        buf_addf(out, "%lld", (long long)*(const int64_t *)target);
        break;
    case OPT_DOUBLE:
        buf_addf(out, "%g", *(const double *)target);
        break;
    case OPT_DURATION:
        str_from_duration(*(const int64_t *)target, text, sizeof(text));
        buf_adds(out, text);
        break;
    case OPT_LIST:
    case OPT_MAP:
        add_list(*(char **const *)target, out);
        break;
    }
}

void opt_print_config(const struct opt_set *sets, struct buf *out)
{
    for (const struct opt_set *set = sets; set->opts; set++) {
        buf_addf(out, "# %s\n", set->title);
        for (size_t i = 0; set->opts[i].flag; i++) {
            const struct opt *o = &set->opts[i];
            if (o->flags & OPT_HIDDEN && set->source[i] == FROM_DEFAULT)
                continue;
            /* What has no variable has no key in the file either: shown as the flag it is. */
            buf_addf(out, "# -%s, from %s\n", o->flag, source_names[set->source[i]]);
            buf_addf(out, "%s%s=", o->env ? "" : "#-", o->env ? o->env : o->flag);
            add_value(set, o, out);
            buf_adds(out, "\n");
        }
    }
}

void opt_man(const struct opt_set *sets, struct buf *out)
{
    for (const struct opt_set *set = sets; set->opts; set++) {
        buf_addf(out, "\n## %s options\n", set->title);
        for (const struct opt *o = set->opts; o->flag; o++) {
            if (o->flags & OPT_HIDDEN)
                continue;
            buf_addf(out, "\n**-%s** *%s*", o->flag, type_word(o->type));
            if (o->env)
                buf_addf(out, ", environment **%s**", o->env);
            buf_addf(out, "\n:   %s", o->help ? o->help : "");
            add_choices(o, out);
            buf_addf(out, ".%s%s%s%s\n",
                     str_empty(o->def) ? "" : " Default: ", str_empty(o->def) ? "" : o->def,
                     str_empty(o->def) ? "" : ".", o->flags & OPT_REQUIRED ? " Required." : "");
        }
    }
}
