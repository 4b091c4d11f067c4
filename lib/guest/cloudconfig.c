/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The grammar that we accept is so small that it is written down as functions over libyaml's
 * events, one for each production:
 *
 *     document:  "#cloud-config" line, then { write_files: [entry...] }
 *     entry:     { path: scalar, content: scalar }       content may be missing or null
 *
 * Invariants: `event` is the one event under consideration; `next` alone replaces it, and refuses
 * anchors, aliases, tags and errors of the YAML itself on the way, so that no production has to.
 * The recursion of the data is bounded by the grammar: we stop at the first event that does not
 * fit, and libyaml reads no further than we ask.
 *
 * What is read is owned by `cc` at once, so that a failure anywhere ends in one cloudconfig_done.
 *
 * Why so strict: the document tells a confidential VM what to run with, and it comes through the
 * host. cloud-init's other keys (users, runcmd) do nothing here; a document that has them was meant
 * for somebody else, and saying so beats ignoring it.
 *
 * Errors name line and key; a key is cut at KEY_SHOWN bytes, a value is never shown.
 */
#include "guest/cloudconfig.h"

#include <errno.h>
#include <yaml.h>

#include "base/str.h"

#define KEY_SHOWN 64
#define FIRST_LINE "#cloud-config"

struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    struct cloudconfig cc;
    struct err *err;
};

static unsigned line_of(const struct reader *rd)
{
    return (unsigned)rd->event.start_mark.line + 1;
}

#define refuse(rd, what, ...)                                                                      \
    err_set((rd)->err, -EINVAL, "cloud-config line %u: " what, line_of(rd), ##__VA_ARGS__)

static int yaml_failed(struct reader *rd)
{
    const yaml_parser_t *p = &rd->parser;
    const char *problem = p->problem ? p->problem : "not YAML";

    if (p->error == YAML_MEMORY_ERROR)
        return err_set(rd->err, -ENOMEM, "no memory to read cloud-config");
    if (p->error == YAML_READER_ERROR)
        return err_set(rd->err, -EINVAL, "cloud-config offset %zu: %s", p->problem_offset, problem);
    return err_set(rd->err, -EINVAL, "cloud-config line %zu: %s", p->problem_mark.line + 1,
                   problem);
}

/* What YAML allows and we do not, on any event. */
static int check_plain(struct reader *rd)
{
    const yaml_event_t *e = &rd->event;
    const void *anchor = NULL, *tag = NULL;

    if (e->type == YAML_ALIAS_EVENT)
        return refuse(rd, "aliases are not allowed");
    if (e->type == YAML_SCALAR_EVENT) {
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
    } else if (e->type == YAML_SEQUENCE_START_EVENT) {
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
    } else if (e->type == YAML_MAPPING_START_EVENT) {
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
    } else if (e->type == YAML_DOCUMENT_START_EVENT) {
        tag = e->data.document_start.tag_directives.start;
        if (e->data.document_start.version_directive)
            return refuse(rd, "a %%YAML directive is not allowed");
    }
    if (anchor)
        return refuse(rd, "anchors are not allowed");
    return tag ? refuse(rd, "tags are not allowed") : 0;
}

static int next(struct reader *rd)
{
    yaml_event_delete(&rd->event);
    if (!yaml_parser_parse(&rd->parser, &rd->event)) {
        memset(&rd->event, 0, sizeof(rd->event));
        return yaml_failed(rd);
    }
    return check_plain(rd);
}

static int expect(struct reader *rd, yaml_event_type_t type, const char *what)
{
    int r = next(rd);

    if (r < 0)
        return r;
    return rd->event.type == type ? 0 : refuse(rd, "%s is expected here", what);
}

static const char *scalar(const struct reader *rd)
{
    return (const char *)rd->event.data.scalar.value;
}

static bool is_null(const struct reader *rd)
{
    const char *s = scalar(rd);

    return rd->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (str_empty(s) || str_eq(s, "~") || str_eq(s, "null") || str_eq(s, "Null") ||
            str_eq(s, "NULL"));
}

/* The value of `key` into *ret; NULL for YAML's null. */
static int read_value(struct reader *rd, const char *key, char **ret, size_t *ret_len)
{
    size_t len;
    int r = next(rd);

    if (r < 0)
        return r;
    if (rd->event.type != YAML_SCALAR_EVENT)
        return refuse(rd, "the value of \"%s\" must be a string", key);
    len = rd->event.data.scalar.length;
    if (memchr(scalar(rd), 0, len))
        return refuse(rd, "the value of \"%s\" holds a NUL character", key);
    if (is_null(rd))
        return 0;
    *ret = xcalloc(1, len + 1);
    memcpy(*ret, scalar(rd), len);
    *ret_len = len;
    return 0;
}

static int check_entry(struct reader *rd, const struct cloudconfig_file *f, bool has_path)
{
    if (!has_path || str_empty(f->path))
        return refuse(rd, "this entry of write_files has no \"path\"");
    if (strlen(f->path) > CLOUDCONFIG_PATH_MAX)
        return refuse(rd, "path of %zu bytes; at most %d are allowed", strlen(f->path),
                      CLOUDCONFIG_PATH_MAX);
    for (size_t i = 0; i + 1 < rd->cc.n; i++)
        if (str_eq(rd->cc.files[i].path, f->path))
            return refuse(rd, "path %s stands in write_files twice", f->path);
    return 0;
}

/* One key of an entry with its value. */
static int read_pair(struct reader *rd, struct cloudconfig_file *f, bool *has_path,
                     bool *has_content)
{
    bool is_path, is_content;
    size_t len = 0;

    if (rd->event.type != YAML_SCALAR_EVENT)
        return refuse(rd, "a key of write_files must be a word; allowed are path and content");
    is_path = str_eq(scalar(rd), "path");
    is_content = str_eq(scalar(rd), "content");
    if (!is_path && !is_content)
        return refuse(rd, "unknown key \"%.*s\" in write_files; allowed are path and content",
                      KEY_SHOWN, scalar(rd));
    if (is_path ? *has_path : *has_content)
        return refuse(rd, "key \"%s\" stands twice in one entry", scalar(rd));
    if (is_path) {
        *has_path = true;
        return read_value(rd, "path", &f->path, &len);
    }
    *has_content = true;
    return read_value(rd, "content", &f->content, &f->len);
}

/* The event is the entry's first. */
static int read_entry(struct reader *rd)
{
    bool has_path = false, has_content = false;
    struct cloudconfig_file *f;
    int r;

    if (rd->event.type != YAML_MAPPING_START_EVENT)
        return refuse(rd, "an entry of write_files must be a mapping with path and content");
    if (rd->cc.n == CLOUDCONFIG_FILES_MAX)
        return refuse(rd, "more than %d files", CLOUDCONFIG_FILES_MAX);
    rd->cc.files = xrealloc(rd->cc.files, (rd->cc.n + 1) * sizeof(*f));
    f = &rd->cc.files[rd->cc.n++];
    *f = (struct cloudconfig_file){0};
    for (;;) {
        r = next(rd);
        if (r < 0)
            return r;
        if (rd->event.type == YAML_MAPPING_END_EVENT)
            return check_entry(rd, f, has_path);
        r = read_pair(rd, f, &has_path, &has_content);
        if (r < 0)
            return r;
    }
}

static int read_write_files(struct reader *rd)
{
    int r = expect(rd, YAML_SEQUENCE_START_EVENT, "the list of write_files");

    while (r == 0) {
        r = next(rd);
        if (r == 0 && rd->event.type == YAML_SEQUENCE_END_EVENT)
            return 0;
        if (r == 0)
            r = read_entry(rd);
    }
    return r;
}

static int read_top(struct reader *rd)
{
    bool seen = false;
    int r = expect(rd, YAML_MAPPING_START_EVENT, "a mapping with the key write_files");

    while (r == 0) {
        r = next(rd);
        if (r < 0)
            return r;
        if (rd->event.type == YAML_MAPPING_END_EVENT)
            return seen ? 0 : refuse(rd, "write_files is missing");
        if (rd->event.type != YAML_SCALAR_EVENT || !str_eq(scalar(rd), "write_files"))
            return refuse(rd, "unknown key \"%.*s\"; allowed is write_files", KEY_SHOWN,
                          rd->event.type == YAML_SCALAR_EVENT ? scalar(rd) : "?");
        if (seen)
            return refuse(rd, "write_files stands twice");
        seen = true;
        r = read_write_files(rd);
    }
    return r;
}

static int read_stream(struct reader *rd)
{
    int r = expect(rd, YAML_STREAM_START_EVENT, "the beginning");

    if (r == 0)
        r = expect(rd, YAML_DOCUMENT_START_EVENT, "a mapping with the key write_files");
    if (r == 0)
        r = read_top(rd);
    if (r == 0)
        r = expect(rd, YAML_DOCUMENT_END_EVENT, "the end of the document");
    if (r == 0)
        r = expect(rd, YAML_STREAM_END_EVENT, "the end (one document only)");
    return r;
}

static int check_first_line(const char *text, size_t len, struct err *err)
{
    size_t n = strlen(FIRST_LINE);

    if (len > CLOUDCONFIG_MAX)
        return err_set(err, -E2BIG, "cloud-config of %zu bytes; at most %u are allowed", len,
                       CLOUDCONFIG_MAX);
    if (len < n || memcmp(text, FIRST_LINE, n) != 0 ||
        (len > n && (text[n] == 0 || !strchr("\n\r \t", text[n]))))
        return err_set(err, -EINVAL,
                       "cloud-config line 1: must be \"" FIRST_LINE "\"; this is something else");
    return 0;
}

int cloudconfig_parse(const char *text, size_t len, struct cloudconfig *ret, struct err *err)
{
    struct reader rd = {.err = err};
    int r = check_first_line(text, len, err);

    if (r < 0)
        return r;
    if (!yaml_parser_initialize(&rd.parser))
        return err_set(err, -ENOMEM, "no memory to read cloud-config");
    yaml_parser_set_encoding(&rd.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&rd.parser, (const unsigned char *)text, len);
    r = read_stream(&rd);
    yaml_event_delete(&rd.event);
    yaml_parser_delete(&rd.parser);
    if (r < 0)
        cloudconfig_done(&rd.cc);
    else
        *ret = rd.cc;
    return r;
}

void cloudconfig_done(struct cloudconfig *c)
{
    for (size_t i = 0; i < c->n; i++) {
        if (c->files[i].content)
            secret_wipe(c->files[i].content, c->files[i].len);
        free(c->files[i].content);
        free(c->files[i].path);
    }
    free(c->files);
    *c = (struct cloudconfig){0};
}
