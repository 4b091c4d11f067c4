/* SPDX-License-Identifier: Apache-2.0 */
/*
 * provider_tool: a provider's functions from the command line, for tests.
 *
 *   provider_tool PROVIDER [FLAGS] create NAME SANDBOX [KEY=VALUE...]
 *                                  find SANDBOX | list [TAG=VALUE...] | wait ID SANDBOX
 *                                  delete ID SANDBOX | life COUNT | verify
 *
 * Flags are the provider's own, as the daemon takes them (the environment too). KEY of create: token,
 * type, image, vcpus, memory, gpus, data (a file with user data), external, timeout (ms), and tag
 * names. Results are one JSON object a line on stdout, also of a failure (code, error): what create
 * reports together with an error is part of what is tested. `life` makes COUNT instances at once, each
 * on a thread of its own: create, wait, find, delete. Exit status: 0, 1 failed, 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "providers/provider.h"

#define DATA_MAX (8U << 20)
#define STACK (256U << 10)
#define COUNT_MAX 1000

static struct job *current; /* for the signal handler */

static void cancel(_unused_ int signal)
{
    if (current)
        job_cancel(current);
}

static int print(struct json_object *o)
{
    printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    fflush(stdout);
    json_put(o);
    return 0;
}

static struct json_object *describe(const struct instance *i)
{
    struct json_object *o = json_object_new_object(), *addresses = json_object_new_array();

    json_add_string(o, "id", i->id);
    json_add_string(o, "name", i->name);
    json_add_string(o, "sandbox", i->sandbox);
    json_add_string(o, "boot", i->boot);
    json_add_bool(o, "gone", i->gone);
    for (size_t k = 0; k < i->n_addresses; k++)
        json_object_array_add(addresses, json_object_new_string(i->addresses[k]));
    json_object_object_add(o, "addresses", addresses);
    return o;
}

static int report(int r, const struct instance *i, const struct err *err)
{
    struct json_object *o = describe(i);

    json_add_i64(o, "code", r);
    if (r < 0)
        json_add_string(o, "error", err_text(err));
    print(o);
    return r;
}

/* ---- create ---- */

struct wanted {
    struct instance_request request;
    struct tag tags[INSTANCE_TAGS_MAX + 1];
    size_t n_tags;
    char *data;
    int64_t timeout_ms;
};

static const char *value_of(const char *word, const char *key)
{
    size_t len = strlen(key);

    return strncmp(word, key, len) == 0 && word[len] == '=' ? word + len + 1 : NULL;
}

static int take_number(const char *word, const char *key, uint64_t max, uint64_t *ret)
{
    const char *v = value_of(word, key);

    return v && str_to_u64(v, max, ret) == 0;
}

static int take_word(struct wanted *w, char *word, struct err *err)
{
    const char *v;
    uint64_t n;

    if ((v = value_of(word, "token")))
        w->request.token = v;
    else if ((v = value_of(word, "type")))
        return str_format(w->request.spec.type, INSTANCE_TYPE_MAX, "%s", v);
    else if ((v = value_of(word, "image")))
        return str_format(w->request.spec.image, INSTANCE_IMAGE_MAX, "%s", v);
    else if ((v = value_of(word, "data")))
        return fs_read(AT_FDCWD, v, DATA_MAX, &w->data, &w->request.user_data_len, err);
    else if (take_number(word, "vcpus", UINT32_MAX, &n))
        w->request.spec.vcpus = (uint32_t)n;
    else if (take_number(word, "memory", UINT64_MAX, &n))
        w->request.spec.memory_mib = n;
    else if (take_number(word, "gpus", UINT32_MAX, &n))
        w->request.spec.gpus = (uint32_t)n;
    else if (take_number(word, "timeout", INT32_MAX, &n))
        w->timeout_ms = (int64_t)n;
    else if (str_eq(word, "external"))
        w->request.external_network = true;
    else if (strchr(word, '=') && w->n_tags < INSTANCE_TAGS_MAX) {
        char *eq = strchr(word, '=');
        *eq = '\0';
        w->tags[w->n_tags++] = (struct tag){word, eq + 1};
    } else
        return err_set(err, -EINVAL, "what is '%s'?", word);
    return 0;
}

static int create(struct provider *p, char **words)
{
    static char plain[] = "#cloud-config\n";
    struct wanted w = {.request = {.name = words[1],
                                   .token = "0123456789abcdef0123456789abcdef",
                                   .user_data_len = sizeof(plain) - 1}};
    struct instance made = {0};
    struct err err = ERR_INIT;
    int r = 0;

    w.tags[w.n_tags++] = (struct tag){TAG_CREATOR, "cloud-api-adaptor"};
    w.tags[w.n_tags++] = (struct tag){TAG_SANDBOX, words[2]};
    for (char **word = words + 3; *word && r == 0; word++)
        r = take_word(&w, *word, &err);
    if (r == 0) {
        current = job_new_inline(w.timeout_ms);
        w.request.tags = w.tags;
        w.request.user_data = w.data ? w.data : plain;
        r = p->type->create(p, current, &w.request, &made, &err);
    }
    free(w.data);
    return report(r, &made, &err);
}

/* ---- the rest ---- */

static int list(struct provider *p, char **words)
{
    struct tag tags[INSTANCE_TAGS_MAX + 1] = {0};
    _cleanup_free_ struct instance *all = NULL;
    struct err err = ERR_INIT;
    size_t n = 0;

    for (size_t i = 0; words[i + 1] && i < INSTANCE_TAGS_MAX; i++) {
        char *eq = strchr(words[i + 1], '=');
        if (!eq)
            return -EINVAL;
        *eq = '\0';
        tags[i] = (struct tag){words[i + 1], eq + 1};
    }
    int r = p->type->list(p, current, tags, &all, &n, &err);
    for (size_t i = 0; r == 0 && i < n; i++)
        print(describe(&all[i]));
    return r < 0 ? report(r, &(struct instance){0}, &err) : 0;
}

static int by_id(struct provider *p, char **words)
{
    struct instance i = {0};
    struct err err = ERR_INIT;
    int r;

    (void)str_format(i.id, sizeof(i.id), "%s", words[1]);
    (void)str_format(i.sandbox, sizeof(i.sandbox), "%s", words[2]);
    if (str_eq(words[0], "wait"))
        r = p->type->wait_addresses(p, current, &i, &err);
    else
        r = p->type->delete (p, current, &i, &err);
    return report(r, &i, &err);
}

static int find(struct provider *p, char **words)
{
    struct instance i = {0};
    struct err err = ERR_INIT;
    int r = p->type->find(p, current, words[1], &i, &err);

    return report(r, &i, &err);
}

/* ---- life ---- */

struct life {
    struct provider *p;
    unsigned number;
    const char *step;
    int r;
    struct err err;
};

static void *live(void *arg)
{
    struct life *l = arg;
    const struct provider_type *type = l->p->type;
    struct job *job = job_new_inline(0);
    struct instance made = {0}, found = {0};
    char name[32], sandbox[32], token[33];
    const struct tag tags[] = {{TAG_SANDBOX, sandbox}, {TAG_NODE, "node"}, {0}};

    snprintf(name, sizeof(name), "podvm-life-%u", l->number);
    snprintf(sandbox, sizeof(sandbox), "life-%u", l->number);
    snprintf(token, sizeof(token), "%032x", l->number);
    const struct instance_request request = {.name = name,
                                             .token = token,
                                             .tags = tags,
                                             .user_data = "#cloud-config\n",
                                             .user_data_len = 14};
    l->step = "create";
    l->r = type->create(l->p, job, &request, &made, &l->err);
    if (l->r == 0 && (l->step = "wait"))
        l->r = type->wait_addresses(l->p, job, &made, &l->err);
    if (l->r == 0 && (l->step = "find"))
        l->r = type->find(l->p, job, sandbox, &found, &l->err);
    if (l->r == 0 && (!str_eq(found.id, made.id) || !made.n_addresses))
        l->r = err_set(&l->err, -EPROTO, "found '%s', made '%s'", found.id, made.id);
    if (l->r == 0 && (l->step = "delete"))
        l->r = type->delete (l->p, job, &made, &l->err);
    job_free_inline(job);
    return NULL;
}

static int life(struct provider *p, char **words)
{
    uint64_t n;
    int failed = 0;

    if (str_to_u64(words[1], COUNT_MAX, &n) < 0)
        return -EINVAL;
    _cleanup_free_ struct life *lives = xcalloc(n, sizeof(*lives));
    _cleanup_free_ pthread_t *threads = xcalloc(n, sizeof(*threads));
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    for (unsigned i = 0; i < n; i++) {
        lives[i] = (struct life){.p = p, .number = i};
        if (pthread_create(&threads[i], &attr, live, &lives[i]) != 0)
            return -EAGAIN;
    }
    for (unsigned i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        if (lives[i].r == 0)
            continue;
        struct json_object *o = json_object_new_object();
        json_add_string(o, "step", lives[i].step);
        json_add_string(o, "error", err_text(&lives[i].err));
        print(o);
        failed++;
    }
    pthread_attr_destroy(&attr);
    return failed ? -EIO : 0;
}

static int run(struct provider *p, char **words)
{
    struct err err = ERR_INIT;
    size_t n = strv_len(words);

    if (n >= 3 && str_eq(words[0], "create"))
        return create(p, words);
    current = job_new_inline(0);
    if (n == 2 && str_eq(words[0], "find"))
        return find(p, words);
    if (n >= 1 && str_eq(words[0], "list"))
        return list(p, words);
    if (n == 3 && (str_eq(words[0], "wait") || str_eq(words[0], "delete")))
        return by_id(p, words);
    if (n == 2 && str_eq(words[0], "life"))
        return life(p, words);
    if (n == 1 && str_eq(words[0], "verify"))
        return report(p->type->verify(p, current, &err), &(struct instance){0}, &err);
    fputs("provider_tool: what?\n", stderr);
    return -EINVAL;
}

int main(int argc, char **argv)
{
    const struct provider_type *type = argc > 1 ? provider_type_find(argv[1]) : NULL;
    struct provider *p = NULL;
    struct err err = ERR_INIT;
    _cleanup_free_ char **words = NULL;
    int r;

    if (!type) {
        fputs("usage: provider_tool PROVIDER [FLAGS] COMMAND [WORDS]\n", stderr);
        return 2;
    }
    log_init("provider_tool", getenv("PROVIDER_TOOL_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN,
             LOG_FORMAT_TEXT);
    _cleanup_free_ void *config = xcalloc(1, type->config_size);
    struct opt_set sets[] = {{.title = type->name, .opts = type->opts, .target = config}, {0}};
    signal(SIGTERM, cancel);
    r = opt_parse(sets, argv + 2, NULL, &words, &err);
    if (r == 0)
        r = opt_check_required(sets, &err);
    if (r == 0)
        r = type->open(config, &p, &err);
    if (r < 0)
        fprintf(stderr, "provider_tool: %s\n", err_text(&err));
    else
        r = run(p, words);
    type->close(p);
    opt_done(sets);
    if (current)
        job_free_inline(current);
    return r < 0 ? 1 : 0;
}
