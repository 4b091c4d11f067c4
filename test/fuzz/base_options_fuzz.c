/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's options from any text: the first byte says as what, the config file, flags (a word in
 * each line) or the environment. What was accepted is printed as a config file, read again, and
 * must then be printed the same.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "adaptor/config.h"
#include "base/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (300U << 10)
#define FILE_MAX (256U << 10) /* as in opt.c */
#define WORDS_MAX 64

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* /dev/fd/N of a file with that content. */
static int make_file(const char *text, size_t len, char *path, size_t path_size)
{
    int fd = memfd_create("options", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, text, len) == (ssize_t)len && lseek(fd, 0, SEEK_SET) == 0);
    snprintf(path, path_size, "/proc/self/fd/%d", fd);
    return fd;
}

/* Without the comments: they name the source, which differs. */
static void print(const struct opt_set *sets, struct buf *out)
{
    struct buf text = BUF_INIT(4U << 20);
    opt_print_config(sets, &text);
    for (char *line = text.data, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        if (*line != '#')
            buf_addf(out, "%s\n", line);
    }
    buf_done(&text);
}

/* exact: a file holds no newlines within a value. */
static void round_trip(const struct opt_set *first, bool exact)
{
    struct adaptor_config config = {0};
    struct opt_set sets[] = {{"common", adaptor_options, &config, NULL}, {NULL, NULL, NULL, NULL}};
    struct buf one = BUF_INIT(4U << 20), two = BUF_INIT(4U << 20);
    char *none[] = {NULL}, path[32];
    struct err err = ERR_INIT;
    print(first, &one);
    if (exact && one.len <= FILE_MAX) {
        int fd = make_file(one.data, one.len, path, sizeof(path));
        check(opt_parse(sets, none, path, NULL, &err) == 0);
        close(fd);
        print(sets, &two);
        check(one.len == two.len && memcmp(one.data, two.data, one.len) == 0);
        opt_done(sets);
    }
    buf_done(&one);
    buf_done(&two);
}

static size_t split(char *text, char *words[WORDS_MAX + 1])
{
    size_t n = 0;
    for (char *next; text && n < WORDS_MAX; text = next) {
        next = strchr(text, '\n');
        if (next)
            *next++ = '\0';
        words[n++] = text;
    }
    words[n] = NULL;
    return n;
}

static bool parse_file(struct opt_set *sets, const char *text, size_t len, struct err *err)
{
    char *none[] = {NULL}, path[32];
    int fd = make_file(text, len, path, sizeof(path));
    bool ok = opt_parse(sets, none, path, NULL, err) == 0;
    close(fd);
    return ok;
}

static bool parse_flags(struct opt_set *sets, char *text, bool more, struct err *err)
{
    char *words[WORDS_MAX + 1], **rest = NULL;
    split(text, words);
    bool ok = opt_parse(sets, words, "/nonexistent", more ? &rest : NULL, err) == 0;
    free(rest);
    return ok;
}

static bool parse_environment(struct opt_set *sets, char *text, struct err *err)
{
    char *words[WORDS_MAX + 1], *none[] = {NULL};
    size_t n = split(text, words);
    for (size_t i = 0; i < n; i++) {
        char *value = strchr(words[i], '=');
        if (!value || value == words[i])
            continue;
        *value++ = '\0';
        setenv(words[i], value, 1);
    }
    bool ok = opt_parse(sets, none, NULL, NULL, err) == 0;
    clearenv();
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct adaptor_config config = {0};
    struct opt_set sets[] = {{"common", adaptor_options, &config, NULL}, {NULL, NULL, NULL, NULL}};
    struct err err = ERR_INIT;
    bool ok;
    if (size < 1 || size > INPUT_MAX)
        return 0;
    log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    clearenv();
    char *text = xcalloc(1, size);
    memcpy(text, data + 1, size - 1);
    if (data[0] % 3 == 0)
        ok = parse_file(sets, text, size - 1, &err);
    else if (data[0] % 3 == 1)
        ok = parse_flags(sets, text, data[0] & 64, &err);
    else
        ok = parse_environment(sets, text, &err);
    check(ok == (err.code == 0) && (ok || data[0] % 3 != 2));
    if (ok) {
        opt_check_required(sets, &err);
        round_trip(sets, data[0] % 3 == 0);
    }
    opt_done(sets);
    free(text);
    return 0;
}
