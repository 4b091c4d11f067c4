/* SPDX-License-Identifier: Apache-2.0 */
/* agent-protocol-forwarder: parses, builds, runs, frees (docs/man/agent-protocol-forwarder.8.md).
 */
#include <signal.h>
#include <stdio.h>

#include "base/harden.h"
#include "base/log.h"
#include "forwarder/confine.h"
#include "forwarder/forwarder.h"
#include "relay/fdstore.h"
#include "relay/relay.h"

#define PROGRAM "agent-protocol-forwarder"
#define EXIT_USAGE 2

static void on_signal(uv_signal_t *handle, int signum)
{
    log_info("ended by signal %d; connections are kept for the next start", signum);
    uv_stop(handle->loop);
}

static void warn_if_mortal(void)
{
    struct err err = ERR_INIT;
    if (relay_selftest(&err) < 0)
        log_warn("%s", err_text(&err));
    else if (!fdstore_available())
        log_warn("no descriptor store (NOTIFY_SOCKET): a restart of this program will end the pod");
}

static int run(const struct forwarder_options *options)
{
    struct err err = ERR_INIT;
    struct forwarder *f = NULL;
    uv_loop_t loop;
    uv_signal_t term, interrupt;

    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&loop);
    if (fdstore_init(&err) < 0 || forwarder_new(&loop, options, &f, &err) < 0) {
        log_error("%s", err_text(&err));
        return EXIT_FAILURE;
    }
    warn_if_mortal();
    confine();
    uv_signal_init(&loop, &term);
    uv_signal_init(&loop, &interrupt);
    uv_signal_start(&term, on_signal, SIGTERM);
    uv_signal_start(&interrupt, on_signal, SIGINT);
    uv_run(&loop, UV_RUN_DEFAULT);
    forwarder_free(f);
    uv_close((uv_handle_t *)&term, NULL);
    uv_close((uv_handle_t *)&interrupt, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    fdstore_done();
    return EXIT_SUCCESS;
}

static int choose(const struct opt_set *sets, const struct forwarder_options *o)
{
    if (o->help) {
        opt_print_help("Usage: " PROGRAM " [OPTIONS]\n\n"
                       "Ends the daemon's tunnel in a pod VM and carries the shim's calls to the "
                       "kata-agent.\n\n",
                       sets);
        return EXIT_SUCCESS;
    }
    if (o->version) {
        puts(PROGRAM " " PP_VERSION);
        return EXIT_SUCCESS;
    }
    log_init_words(PROGRAM, o->log_level, o->log_format);
    return run(o);
}

int main(int argc, char **argv)
{
    struct forwarder_options options = {0};
    struct opt_set sets[] = {{.title = "forwarder", .opts = forwarder_options, .target = &options},
                             {0}};
    struct err err = ERR_INIT;
    int status = EXIT_USAGE;

    (void)argc;
    harden_no_dumps();
    if (opt_parse(sets, argv + 1, NULL, NULL, &err) < 0)
        fprintf(stderr, PROGRAM ": %s\nTry '" PROGRAM " --help'.\n", err_text(&err));
    else
        status = choose(sets, &options);
    opt_done(sets);
    return status;
}
