/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The readers and the builder as a filter, for tests that compare them with other implementations.
 * Each request on stdin is a line "WORD LENGTH" and that many bytes; each answer on stdout is one
 * line of JSON, values in hex: {"error": text} or what was read.
 */
#include <stdio.h>

#include "base/json.h"
#include "base/str.h"
#include "guest/cloudconfig.h"
#include "guest/initdata.h"
#include "guest/toml.h"
#include "guest/userdata.h"

static void add_hex(struct json_object *o, const char *key, const char *data, size_t len)
{
    char *hex = xcalloc(1, 2 * len + 1);

    str_hex(data, len, hex);
    json_add_string(o, key, hex);
    free(hex);
}

/* Strings as hex, the others as they are, tables as objects. */
static struct json_object *table_json(const struct toml *t)
{
    struct json_object *o = json_object_new_object();

    for (size_t i = 0; i < t->n; i++) {
        const struct toml_entry *e = &t->entries[i];

        if (e->type == TOML_TABLE)
            json_object_object_add(o, e->key, table_json(e->table));
        else if (e->type == TOML_STRING)
            add_hex(o, e->key, e->string, e->len);
        else if (e->type == TOML_INTEGER)
            json_add_i64(o, e->key, e->integer);
        else
            json_add_bool(o, e->key, e->integer);
    }
    return o;
}

static int judge_toml(const char *text, size_t len, struct json_object **ret, struct err *err)
{
    struct toml *t;
    int r = toml_parse(text, len, &t, err);

    if (r < 0)
        return r;
    *ret = table_json(t);
    toml_free(t);
    return 0;
}

static int judge_cloudconfig(const char *text, size_t len, struct json_object **ret,
                             struct err *err)
{
    struct cloudconfig cc = {0};
    int r = cloudconfig_parse(text, len, &cc, err);

    if (r < 0)
        return r;
    *ret = json_object_new_object();
    for (size_t i = 0; i < cc.n; i++) {
        if (cc.files[i].content)
            add_hex(*ret, cc.files[i].path, cc.files[i].content, cc.files[i].len);
        else
            json_object_object_add(*ret, cc.files[i].path, NULL);
    }
    cloudconfig_done(&cc);
    return 0;
}

/* The bytes as content of two files with one between them. */
static int judge_build(const char *text, size_t len, struct json_object **ret, struct err *err)
{
    const struct userdata_file files[] = {{"/a", text, len}, {"/b", NULL, 0}, {"/c", text, len}};
    char *out;
    size_t out_len;
    int r = userdata_build(files, 3, 0, &out, &out_len, err);

    if (r < 0)
        return r;
    *ret = json_object_new_object();
    add_hex(*ret, "document", out, out_len);
    free(out);
    return 0;
}

static int judge_initdata(const char *text, size_t len, struct json_object **ret, struct err *err)
{
    struct initdata d;
    char *packed;
    int r = initdata_parse(text, len, &d, err);

    if (r < 0)
        return r;
    *ret = json_object_new_object();
    json_add_string(*ret, "digest", d.digest_hex);
    for (size_t i = 0; i < d.n_entries; i++)
        add_hex(*ret, d.entries[i].name, d.entries[i].value, d.entries[i].len);
    r = initdata_encode(d.toml, d.toml_len, &packed, &len, err);
    if (r == 0)
        json_add_string(*ret, "packed", packed);
    free(packed);
    initdata_done(&d);
    return r;
}

static const struct {
    const char *word;
    int (*judge)(const char *text, size_t len, struct json_object **ret, struct err *err);
} judges[] = {
    {"toml", judge_toml},
    {"cloudconfig", judge_cloudconfig},
    {"build", judge_build},
    {"initdata", judge_initdata},
};

static int judge(const char *word, const char *text, size_t len)
{
    struct json_object *o = NULL;
    struct err err = ERR_INIT;

    for (size_t i = 0; i < ARRAY_SIZE(judges); i++) {
        if (!str_eq(judges[i].word, word))
            continue;
        if (judges[i].judge(text, len, &o, &err) < 0) {
            o = json_object_new_object();
            json_add_string(o, "error", err.text);
        }
        puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
        json_put(o);
        return fflush(stdout);
    }
    return -1;
}

int main(void)
{
    char word[16];
    size_t len;

    while (scanf("%15s %zu", word, &len) == 2 && len < 1U << 24 && getchar() == '\n') {
        char *text = malloc(len ? len : 1); /* exactly, for the sanitizers */
        bool ok = text && fread(text, 1, len, stdin) == len && judge(word, text, len) == 0;

        free(text);
        if (!ok)
            return 1;
    }
    return feof(stdin) ? 0 : 1;
}
