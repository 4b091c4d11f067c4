/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS's shared files, read as its SDKs read them.
 *
 * A file is sections of `key = value`. The credentials file's sections are profiles; the config
 * file's are `[default]` and `[profile NAME]`, other kinds (sso-session, services) are skipped.
 * Comments are whole lines, or follow a blank within a line. An indented line belongs to the value
 * above it (nested settings: none that we use) and is skipped, as is a line without `=`: what the
 * SDKs tolerate in the files that users have, we tolerate.
 *
 * All is kept in one list: the files are small, read rarely, and bounded (PROFILE_FILE_MAX). The
 * credentials file is read first and wins.
 */
#include "providers/aws/profile.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/str.h"

#define ENTRIES_MAX 20000

struct entry {
    struct entry *next;
    char *profile, *key, *value; /* key NULL: the profile exists */
    bool config;
};

struct profiles {
    struct entry *entries;
    size_t count;
};

/* A piece of the text. */
struct span {
    const char *at;
    size_t len;
};

struct profiles *profiles_new(void)
{
    return xcalloc(1, sizeof(struct profiles));
}

void profiles_free(struct profiles *p)
{
    if (!p)
        return;
    for (struct entry *e = p->entries, *next; e; e = next) {
        next = e->next;
        if (e->value)
            secret_wipe(e->value, strlen(e->value));
        free(e->profile);
        free(e->key);
        free(e->value);
        free(e);
    }
    free(p);
}

static struct entry *find(const struct profiles *p, const char *profile, const char *key)
{
    for (struct entry *e = p->entries; e; e = e->next)
        if (str_eq(e->profile, profile) && str_eq(e->key, key))
            return e;
    return NULL;
}

bool profiles_has(const struct profiles *p, const char *profile)
{
    return find(p, profile, NULL) != NULL;
}

const char *profiles_get(const struct profiles *p, const char *profile, const char *key)
{
    const struct entry *e = find(p, profile, key);

    return e && e->value[0] ? e->value : NULL;
}

static struct span trim(struct span s)
{
    while (s.len > 0 && isspace((unsigned char)s.at[0])) {
        s.at++;
        s.len--;
    }
    while (s.len > 0 && isspace((unsigned char)s.at[s.len - 1]))
        s.len--;
    return s;
}

static char *copy(struct span s)
{
    char *text = xcalloc(1, s.len + 1);

    memcpy(text, s.at, s.len);
    return text;
}

static int keep(struct profiles *p, const char *profile, char *key, char *value, bool config,
                struct err *err)
{
    struct entry *e = find(p, profile, key);

    if (e && key && e->config == config) {
        free(e->value);
        e->value = TAKE_PTR(value);
    }
    if (e) {
        free(key);
        free(value);
        return 0;
    }
    if (p->count++ == ENTRIES_MAX) {
        free(key);
        free(value);
        return err_set(err, -EFBIG, "more than %d settings", ENTRIES_MAX);
    }
    e = xcalloc(1, sizeof(*e));
    *e = (struct entry){.next = p->entries,
                        .profile = xstrdup(profile),
                        .key = key,
                        .value = value,
                        .config = config};
    p->entries = e;
    return 0;
}

static struct span unquote(struct span s)
{
    if (s.len >= 2 && (s.at[0] == '"' || s.at[0] == '\'') && s.at[s.len - 1] == s.at[0]) {
        s.at++;
        s.len -= 2;
    }
    return s;
}

/* "[...": the profile's name into *ret (owned), NULL for a section of another kind. */
static int section(struct span line, bool config, char **ret, struct err *err)
{
    const char *end = memchr(line.at, ']', line.len);
    struct span name;

    *ret = NULL;
    if (!end)
        return err_set(err, -EINVAL, "a section without ']'");
    name = trim((struct span){line.at + 1, (size_t)(end - line.at) - 1});
    if (config && !(name.len == 7 && memcmp(name.at, "default", 7) == 0)) {
        if (name.len < 9 || memcmp(name.at, "profile", 7) != 0 ||
            !isspace((unsigned char)name.at[7]))
            return 0;
        name = trim((struct span){name.at + 8, name.len - 8});
    }
    name = unquote(name);
    if (name.len == 0 || name.len > PROFILE_NAME_MAX)
        return err_set(err, -EINVAL, "a profile's name has 1 to %d characters, not %zu",
                       PROFILE_NAME_MAX, name.len);
    *ret = copy(name);
    return 0;
}

/* Cuts a comment off that follows a blank. */
static struct span without_comment(struct span s)
{
    for (size_t i = 1; i < s.len; i++)
        if ((s.at[i] == '#' || s.at[i] == ';') && (s.at[i - 1] == ' ' || s.at[i - 1] == '\t')) {
            s.len = i;
            break;
        }
    return trim(s);
}

static int setting(struct profiles *p, const char *profile, struct span line, bool config,
                   struct err *err)
{
    const char *equals = memchr(line.at, '=', line.len);
    struct span key, value;
    char *name;

    if (!equals)
        return 0;
    key = trim((struct span){line.at, (size_t)(equals - line.at)});
    value = (struct span){equals + 1, line.len - (size_t)(equals - line.at) - 1};
    if (key.len == 0)
        return 0;
    name = copy(key);
    for (char *c = name; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    return keep(p, profile, name, copy(without_comment(value)), config, err);
}

static int line_add(struct profiles *p, char **profile, struct span line, bool config,
                    struct err *err)
{
    int r;

    if (line.len == 0 || isspace((unsigned char)line.at[0]))
        return 0;
    line = trim(line);
    if (line.len == 0 || line.at[0] == '#' || line.at[0] == ';')
        return 0;
    if (line.at[0] != '[')
        return *profile ? setting(p, *profile, line, config, err) : 0;
    free(TAKE_PTR(*profile));
    r = section(line, config, profile, err);
    if (r < 0 || !*profile)
        return r;
    return keep(p, *profile, NULL, NULL, config, err);
}

int profiles_add(struct profiles *p, const char *text, size_t len, bool config, struct err *err)
{
    _cleanup_free_ char *profile = NULL;
    unsigned n = 0;

    if (len > PROFILE_FILE_MAX)
        return err_set(err, -EFBIG, "more than %u bytes", PROFILE_FILE_MAX);
    if (memchr(text, '\0', len))
        return err_set(err, -EINVAL, "this is not a text file");
    for (const char *at = text, *end = text + len; at < end;) {
        const char *eol = memchr(at, '\n', (size_t)(end - at));
        struct span line = {at, (size_t)((eol ? eol : end) - at)};
        int r = line_add(p, &profile, line, config, err);

        n++;
        if (r < 0)
            return err_wrap(err, r, "line %u", n);
        at = eol ? eol + 1 : end;
    }
    return 0;
}

static int file_add(struct profiles *p, const char *variable, const char *name, bool config,
                    struct err *err)
{
    const char *set = getenv(variable), *home = getenv("HOME");
    _cleanup_free_ char *path = NULL, *text = NULL;
    size_t len;
    int r;

    if (str_empty(set) && str_empty(home))
        return 0;
    path = str_empty(set) ? str_asprintf("%s/.aws/%s", home, name) : xstrdup(set);
    if (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR))
        return 0;
    r = fs_read(AT_FDCWD, path, PROFILE_FILE_MAX, &text, &len, err);
    if (r < 0)
        return r;
    r = profiles_add(p, text, len, config, err);
    secret_wipe(text, len);
    return r < 0 ? err_wrap(err, r, "%s", path) : 0;
}

int profiles_load(struct profiles **ret, struct err *err)
{
    _cleanup_(profiles_freep) struct profiles *p = profiles_new();
    int r = file_add(p, "AWS_SHARED_CREDENTIALS_FILE", "credentials", false, err);

    if (r == 0)
        r = file_add(p, "AWS_CONFIG_FILE", "config", true, err);
    if (r == 0)
        *ret = TAKE_PTR(p);
    return r;
}

const char *aws_profile_name(const struct aws_config *config, bool *ret_asked)
{
    static const char *const variables[] = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"};
    const char *name = config->profile;

    for (size_t i = 0; str_empty(name) && i < ARRAY_SIZE(variables); i++)
        name = getenv(variables[i]);
    if (ret_asked)
        *ret_asked = !str_empty(name);
    return str_empty(name) ? "default" : name;
}

char *aws_profile_region(const struct aws_config *config)
{
    _cleanup_(profiles_freep) struct profiles *p = NULL;
    const char *region;

    if (profiles_load(&p, NULL) < 0)
        return NULL;
    region = profiles_get(p, aws_profile_name(config, NULL), "region");
    return region ? xstrdup(region) : NULL;
}
