/* SPDX-License-Identifier: Apache-2.0 */
/* peerpod-keeper: parses its options and runs the keeper (docs/man/peerpod-keeper.8.md). */
#include <stdio.h>

#include "base/harden.h"
#include "base/log.h"
#include "base/opt.h"
#include "base/str.h"
#include "keeper/keeper.h"

#define EXIT_USAGE 2
#define MS 1000000 /* in nanoseconds */

struct options {
    char *socket, *log_level, *log_format;
    int64_t restart_min, restart_max, settled;
    bool help, version;
};

static const char *const levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const formats[] = {"text", "json", NULL};

#define ROW(name, kind, ...) .flag = name, .type = OPT_##kind, __VA_ARGS__
#define AT(field) .offset = offsetof(struct options, field)

static const struct opt table[] = {
    {ROW("socket", STRING, AT(socket),
         .help = "Where keepers meet and hand over; none when empty")},
    {ROW("restart-min", DURATION, AT(restart_min), .def = "10ms", .flags = OPT_POSITIVE,
         .help = "Pause before the command is started again; doubled each time")},
    {ROW("restart-max", DURATION, AT(restart_max), .def = "5s", .flags = OPT_POSITIVE,
         .help = "Longest pause")},
    {ROW("settled", DURATION, AT(settled), .def = "10s", .flags = OPT_POSITIVE,
         .help = "A command that has run for so long starts the pauses from the shortest again")},
    {ROW("log-level", STRING, AT(log_level), .def = "info", .choices = levels,
         .help = "Least level that is logged")},
    {ROW("log-format", STRING, AT(log_format), .def = "text", .choices = formats,
         .help = "Lines or JSON objects")},
    {ROW("help", BOOL, AT(help), .help = "Show this text")},
    {ROW("version", BOOL, AT(version), .help = "Show the version")},
    OPT_END,
};

static int print_help(const struct opt_set *sets)
{
    struct buf out = BUF_INIT(0);

    buf_adds(&out,
             "Usage: peerpod-keeper [OPTIONS] -- COMMAND [ARGUMENTS]\n"
             "       peerpod-keeper [OPTIONS] -socket PATH\n\n"
             "Runs COMMAND, starts it again when it dies, and keeps the descriptors that it "
             "stores\nmeanwhile (NOTIFY_SOCKET, LISTEN_FDS, as systemd does); without COMMAND "
             "keeps those of the\nkeepers that come to PATH.\n\n");
    opt_help(sets, &out);
    fputs(out.data, stdout);
    buf_done(&out);
    return EXIT_SUCCESS;
}

static int run(const struct options *o, char *const *command)
{
    const struct keeper_config config = {
        .argv = command && command[0] ? command : NULL,
        .socket = str_empty(o->socket) ? NULL : o->socket,
        .restart_min_ms = MAX(o->restart_min / MS, 1),
        .restart_max_ms = MAX(o->restart_max / MS, 1),
        .settled_ms = MAX(o->settled / MS, 1),
    };
    enum log_level level = LOG_LEVEL_INFO;
    enum log_format format = LOG_FORMAT_TEXT;
    struct err err = ERR_INIT;
    int status = EXIT_FAILURE;

    if (!config.argv && !config.socket) {
        fprintf(stderr, "peerpod-keeper: no command given, and no -socket\n");
        return EXIT_USAGE;
    }
    log_level_parse(o->log_level, &level);
    log_format_parse(o->log_format, &format);
    log_init("peerpod-keeper", level, format);
    /* A child that is root gets everything back by its exec. */
    if (geteuid() == 0 && harden_capabilities(0, true, &err) < 0)
        log_warn("going on with more rights than are needed: %s", err_text(&err));
    err_clear(&err);
    if (keeper_run(&config, &status, &err) < 0) {
        log_error("%s", err_text(&err));
        return EXIT_FAILURE;
    }
    return status;
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct opt_set sets[] = {{.title = "peerpod-keeper", .opts = table, .target = &o}, {0}};
    _cleanup_free_ char **rest = NULL;
    struct err err = ERR_INIT;
    int status;

    harden_no_dumps();
    if (opt_parse(sets, argv + MIN(argc, 1), NULL, &rest, &err) < 0) {
        fprintf(stderr, "peerpod-keeper: %s\nTry 'peerpod-keeper --help'.\n", err_text(&err));
        status = EXIT_USAGE;
    } else if (o.help) {
        status = print_help(sets);
    } else if (o.version) {
        status = puts("peerpod-keeper " PP_VERSION) < 0;
    } else {
        status = run(&o, rest);
    }
    opt_done(sets);
    return status;
}
