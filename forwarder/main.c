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

int main(int argc _unused_, char **argv)
{
    static const char usage[] = "Usage: " PROGRAM " [OPTIONS]\n\n"
                                "Ends the daemon's tunnel in a pod VM and carries the shim's calls "
                                "to the kata-agent.\n\n";
    struct forwarder_options o = {0};
    struct opt_set sets[] = {{.title = "forwarder", .opts = forwarder_options, .target = &o}, {0}};
    harden_no_dumps();
    int status = opt_begin(PROGRAM, usage, sets, &o.program, argv, NULL);
    status = status < 0 ? run(&o) : status;
    opt_done(sets);
    return status;
}
