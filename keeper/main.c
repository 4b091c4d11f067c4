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
    char *socket;
    int64_t restart_min, restart_max, settled;
    char *log_level, *log_format;
    bool help, version;
};

static const char *const levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const formats[] = {"text", "json", NULL};

static const struct opt table[] = {
    {.flag = "socket",
     .type = OPT_STRING,
     .offset = offsetof(struct options, socket),
     .help = "Socket for the hand-over between keepers; reserved, refused by this version"},
    {.flag = "restart-min",
     .type = OPT_DURATION,
     .offset = offsetof(struct options, restart_min),
     .def = "10ms",
     .flags = OPT_POSITIVE,
     .help = "Pause before the command is started again; doubled each time"},
    {.flag = "restart-max",
     .type = OPT_DURATION,
     .offset = offsetof(struct options, restart_max),
     .def = "5s",
     .flags = OPT_POSITIVE,
     .help = "Longest pause"},
    {.flag = "settled",
     .type = OPT_DURATION,
     .offset = offsetof(struct options, settled),
     .def = "10s",
     .flags = OPT_POSITIVE,
     .help = "A command that has run for so long starts the pauses from the shortest again"},
    {.flag = "log-level",
     .type = OPT_STRING,
     .offset = offsetof(struct options, log_level),
     .def = "info",
     .choices = levels,
     .help = "Least level that is logged"},
    {.flag = "log-format",
     .type = OPT_STRING,
     .offset = offsetof(struct options, log_format),
     .def = "text",
     .choices = formats,
     .help = "Lines or JSON objects"},
    {.flag = "help",
     .type = OPT_BOOL,
     .offset = offsetof(struct options, help),
     .help = "Show this text"},
    {.flag = "version",
     .type = OPT_BOOL,
     .offset = offsetof(struct options, version),
     .help = "Show the version"},
    OPT_END,
};

static void print_help(const struct opt_set *sets)
{
    struct buf out = BUF_INIT(0);

    buf_adds(&out, "Usage: peerpod-keeper [OPTIONS] -- COMMAND [ARGUMENTS]\n\n"
                   "Runs COMMAND, starts it again when it dies, and keeps the descriptors that it "
                   "stores\nmeanwhile (NOTIFY_SOCKET, LISTEN_FDS, as systemd does).\n\n");
    opt_help(sets, &out);
    fputs(out.data, stdout);
    buf_done(&out);
}

static int run(const struct options *o, char *const *command)
{
    const struct keeper_config config = {
        .argv = command,
        .restart_min_ms = MAX(o->restart_min / MS, 1),
        .restart_max_ms = MAX(o->restart_max / MS, 1),
        .settled_ms = MAX(o->settled / MS, 1),
    };
    enum log_level level = LOG_LEVEL_INFO;
    enum log_format format = LOG_FORMAT_TEXT;
    struct err err = ERR_INIT;
    int status = EXIT_FAILURE;

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

static int usage_error(const char *text)
{
    fprintf(stderr, "peerpod-keeper: %s\nTry 'peerpod-keeper --help'.\n", text);
    return EXIT_USAGE;
}

static int choose(const struct opt_set *sets, const struct options *o, char *const *command)
{
    if (o->help) {
        print_help(sets);
        return EXIT_SUCCESS;
    }
    if (o->version) {
        puts("peerpod-keeper " PP_VERSION);
        return EXIT_SUCCESS;
    }
    if (!str_empty(o->socket))
        return usage_error("--socket: the hand-over between keepers is not in this version; "
                           "start it without");
    if (command == NULL || command[0] == NULL)
        return usage_error("no command given");
    return run(o, command);
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct opt_set sets[] = {{.title = "peerpod-keeper", .opts = table, .target = &o}, {0}};
    _cleanup_free_ char **rest = NULL;
    struct err err = ERR_INIT;
    int status;

    harden_no_dumps();
    if (opt_parse(sets, argv + MIN(argc, 1), NULL, &rest, &err) < 0)
        status = usage_error(err_text(&err));
    else
        status = choose(sets, &o, rest);
    opt_done(sets);
    return status;
}
