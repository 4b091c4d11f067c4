/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cloud-api-adaptor PROVIDER [flags] | help | version
 *
 * Parses, builds, runs, frees. Exit status: 0 ended by SIGTERM or SIGINT, 1 could not run, 2 bad
 * command line or configuration, 79 handed over to a successor (takeover.c).
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>

#include <curl/curl.h>

#include "adaptor/adaptor.h"
#include "adaptor/confine.h"
#include "adaptor/plainmode.h"
#include "base/harden.h"
#include "base/log.h"
#include "base/str.h"
#include "relay/fdstore.h"

#define EXIT_USAGE 2

static void print_usage(FILE *out)
{
    fprintf(out, "usage: cloud-api-adaptor PROVIDER [flags]\n"
                 "       cloud-api-adaptor PROVIDER --help | --print-config\n"
                 "       cloud-api-adaptor help | version\n\nproviders:\n");
    for (size_t i = 0; provider_types[i]; i++)
        fprintf(out, "  %-10s %s%s%s%s\n", provider_types[i]->name, provider_types[i]->summary,
                provider_types[i]->warning ? " (" : "",
                provider_types[i]->warning ? provider_types[i]->warning : "",
                provider_types[i]->warning ? ")" : "");
}

static int print_options(struct opt_set *sets, void (*fn)(const struct opt_set *, struct buf *))
{
    struct buf out = BUF_INIT(0);
    fn(sets, &out);
    fputs(out.data ? out.data : "", stdout);
    buf_done(&out);
    return EXIT_SUCCESS;
}

static bool has_word(char *const *argv, const char *word)
{
    for (; *argv; argv++)
        if (str_eq(*argv, word) || (str_starts(*argv, "-") && str_eq(*argv + 1, word)))
            return true;
    return false;
}

/* Takes the words that are not options out of argv. */
static char **without(char *const *argv, const char *word)
{
    size_t n = 0;
    char **rest = xcalloc(strv_len(argv) + 1, sizeof(*rest));
    for (; *argv; argv++)
        if (!str_eq(*argv, word) && !(str_starts(*argv, "-") && str_eq(*argv + 1, word)))
            rest[n++] = *argv;
    return rest;
}

static void stop_loop(uv_signal_t *handle, int signum)
{
    log_info("signal %d: ending; pods and their VMs go on", signum);
    uv_stop(handle->loop);
}

static int run(const struct adaptor_config *config, struct provider *provider)
{
    struct err err = ERR_INIT;
    struct adaptor *adaptor = NULL;
    uv_loop_t loop;
    uv_signal_t term, interrupt;
    uv_loop_init(&loop);
    int r = fdstore_init(&err);
    if (r == 0)
        r = adaptor_new(&loop, config, provider, &adaptor, &err);
    if (r == 0) {
        uv_signal_init(&loop, &term);
        uv_signal_init(&loop, &interrupt);
        uv_signal_start(&term, stop_loop, SIGTERM);
        uv_signal_start(&interrupt, stop_loop, SIGINT);
        uv_run(&loop, UV_RUN_DEFAULT);
        /* A provider's call may take minutes, and until we are gone nobody serves the tunnels: the
         * successor finds what it made, as after any other death. */
        if (adaptor_abandon(adaptor))
            _exit(EXIT_SUCCESS);
        uv_close((uv_handle_t *)&term, NULL);
        uv_close((uv_handle_t *)&interrupt, NULL);
    } else {
        log_error("%s", err_text(&err));
    }
    adaptor_free(adaptor);
    uv_run(&loop, UV_RUN_NOWAIT);
    uv_loop_close(&loop);
    fdstore_done();
    if (r == -EALREADY)
        return FDSTORE_EXIT_HANDED_OVER;
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int check_mode(const struct adaptor_config *config, struct err *err)
{
    if (str_eq(config->forwarder_compat, "upstream"))
        return plainmode_check(config, err);
    plainmode_tell_unused(config);
    return 0;
}

static int open_and_run(const struct provider_type *type, const struct adaptor_config *config,
                        const void *provider_config)
{
    struct err err = ERR_INIT;
    struct provider *provider = NULL;
    if (type->warning)
        log_warn("provider %s: %s", type->name, type->warning);
    if (type->open(provider_config, &provider, &err) < 0) {
        log_error("provider %s: %s", type->name, err_text(&err));
        return EXIT_USAGE;
    }
    int status = run(config, provider);
    type->close(provider);
    return status;
}

static void set_node_name(struct adaptor_config *config)
{
    char name[256] = "";
    if (*config->node_name)
        return;
    gethostname(name, sizeof(name) - 1);
    free(config->node_name);
    config->node_name = xstrdup(name);
}

static int configure_and_run(const struct provider_type *type, char *const *argv)
{
    struct err err = ERR_INIT;
    struct adaptor_config config = {0};
    _cleanup_free_ void *provider_config = xcalloc(1, type->config_size);
    const char *dir = getenv("PEERPOD_CONFIG_DIR");
    _cleanup_free_ char *file =
        str_asprintf("%s/%s.conf", str_empty(dir) ? "/etc/peerpod" : dir, type->name);
    _cleanup_free_ char **words = without(argv, "-print-config");
    struct opt_set sets[] = {
        {.title = "common", .opts = adaptor_options, .target = &config},
        {.title = type->name, .opts = type->opts, .target = provider_config},
        {0},
    };
    int status = EXIT_SUCCESS;
    if (has_word(argv, "-help") || has_word(argv, "-h")) {
        print_usage(stdout);
        return print_options(sets, opt_help);
    }
    int r = opt_parse(sets, words, file, NULL, &err);
    confine_forget_secrets();
    if (r == 0 && has_word(argv, "-print-config")) {
        status = print_options(sets, opt_print_config);
    } else {
        if (r == 0)
            r = opt_check_required(sets, &err);
        if (r == 0)
            r = check_mode(&config, &err);
        if (r == 0) {
            log_init_words("cloud-api-adaptor", config.log_level, config.log_format);
            set_node_name(&config);
            confine_daemon(type);
            status = open_and_run(type, &config, provider_config);
        } else {
            fprintf(stderr, "cloud-api-adaptor: %s\n", err_text(&err));
            status = EXIT_USAGE;
        }
    }
    opt_done(sets);
    return status;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : NULL;
    signal(SIGPIPE, SIG_IGN);
    harden_no_dumps(); /* keys and agent traffic never reach a core */
    /* One heap for the loop and all jobs: by default a storm of starts would leave 16 behind, of half
     * a MiB each. What threads allocate most is in caches of their own. */
    mallopt(M_ARENA_MAX, 1);
    log_init("cloud-api-adaptor", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (str_eq(word, "version") || str_eq(word, "-version") || str_eq(word, "--version")) {
        printf("cloud-api-adaptor %s\n", PP_VERSION);
        return EXIT_SUCCESS;
    }
    if (str_eq(word, "help") || str_eq(word, "-h") || str_eq(word, "-help") ||
        str_eq(word, "--help")) {
        print_usage(stdout);
        return EXIT_SUCCESS;
    }
    const struct provider_type *type = word ? provider_type_find(word) : NULL;
    if (!type) {
        fprintf(stderr, "cloud-api-adaptor: %s%.64s%s\n", word ? "no provider '" : "a provider",
                word ? word : "", word ? "' in this program" : " is needed");
        print_usage(stderr);
        return EXIT_USAGE;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    int status = configure_and_run(type, argv + 2);
    curl_global_cleanup();
    return status;
}
