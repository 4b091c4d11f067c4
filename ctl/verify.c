/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `verify PROVIDER`: would a pod start here? With the provider's own options, as the daemon takes them
 * (flags, environment, /etc/peerpod/PROVIDER.conf), and without the daemon: it is for before there is
 * one. The provider's code finds; this prints. Nothing is made.
 */
#include <errno.h>

#include "base/json.h"
#include "base/str.h"
#include "ctl/ctl.h"
#include "providers/provider.h"

#define CONFIG_DIR "/etc/peerpod"

struct config {
    char *output;
    int64_t timeout_ns;
    bool help;
};

static const char *const outputs[] = {"table", "json", NULL};
static const struct opt options[] = {
    {"o", NULL, OPT_STRING, offsetof(struct config, output), .def = "table", .choices = outputs,
     .help = "form of the output"},
    {"timeout", NULL, OPT_DURATION, offsetof(struct config, timeout_ns), .def = "2m",
     .flags = OPT_POSITIVE, .help = "limit for all of it"},
    {"help", NULL, OPT_BOOL, offsetof(struct config, help), .help = "this text"},
    OPT_END,
};

static const char *const words[] = {
    [FINDING_OK] = "ok", [FINDING_NOTE] = "note", [FINDING_BAD] = "bad"};

struct output {
    struct json_object *list; /* NULL: a line each */
};

static void show(enum finding kind, const char *what, const char *text, void *arg)
{
    struct output *out = arg;

    if (!out->list) {
        printf("%-4s  %s: %s\n", words[kind], what, text);
        fflush(stdout);
        return;
    }
    struct json_object *o = json_object_new_object();
    json_add_string(o, "result", words[kind]);
    json_add_string(o, "what", what);
    json_add_string(o, "text", text);
    json_object_array_add(out->list, o);
}

static int examine(const struct config *c, struct provider *p)
{
    const struct provider_type *type = p->type;
    struct job *job = job_new_inline(c->timeout_ns / 1000000);
    _cleanup_(json_putp) struct json_object *list =
        str_eq(c->output, "json") ? json_object_new_array() : NULL;
    struct output out = {list};
    struct err err = ERR_INIT;
    int r;

    if (type->diagnose)
        r = type->diagnose(p, job, show, &out);
    else {
        r = type->verify(p, job, &err);
        show(r < 0 ? FINDING_BAD : FINDING_OK, type->name,
             r < 0 ? err_text(&err) : "the configuration is good", &out);
    }
    job_free_inline(job);
    if (list)
        puts(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PRETTY));
    return r;
}

static int verify(const struct provider_type *type, char *const *argv)
{
    static const char about[] =
        "Checks, without making anything, what pods on this provider need: identity, image,\n"
        "sizes, network, permissions. Exit status 1 when a pod would not start.";
    struct config c = {0};
    _cleanup_free_ void *config = xcalloc(1, type->config_size);
    _cleanup_free_ char *synopsis = str_asprintf("verify %s [-o table|json] [OPTIONS]", type->name);
    struct opt_set sets[] = {{.title = "verify", .opts = options, .target = &c},
                             {.title = type->name, .opts = type->opts, .target = config},
                             {0}};
    struct provider *p = NULL;
    struct err err = ERR_INIT;
    const char *dir = getenv("PEERPOD_CONFIG_DIR");
    _cleanup_free_ char *file = str_asprintf("%s/%s.conf", dir ? dir : CONFIG_DIR, type->name);
    int status = 0;

    int r = ctl_parse_file(sets, argv, file, synopsis, about, &c.help, NULL, &status);
    if (r == 0 && (opt_check_required(sets, &err) < 0 || type->open(config, &p, &err) < 0)) {
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
        status = CTL_USAGE;
    } else if (r == 0)
        status = examine(&c, p) < 0 ? CTL_FAILED : 0;
    if (p)
        type->close(p);
    opt_done(sets);
    return status;
}

int ctl_verify(char *const *argv)
{
    const struct provider_type *type = *argv ? provider_type_find(*argv) : NULL;

    if (type)
        return verify(type, argv + 1);
    fputs("usage: peerpodctl verify PROVIDER [OPTIONS]\nproviders:", stderr);
    for (const struct provider_type *const *t = provider_types; *t; t++)
        fprintf(stderr, " %s", (*t)->name);
    fputc('\n', stderr);
    return CTL_USAGE;
}
