/* SPDX-License-Identifier: Apache-2.0 */
/* peerpod-keeper: parses its options and runs the keeper (docs/man/peerpod-keeper.8.md). */
#include <stdio.h>

#include "base/harden.h"
#include "base/opt.h"
#include "base/str.h"
#include "keeper/keeper.h"

#define PROGRAM "peerpod-keeper"

struct options {
    struct keeper_config keeper;
    struct opt_program program;
};

#define ROW(name, kind, field)                                                                     \
    .flag = name, .type = OPT_##kind, .offset = offsetof(struct options, field)
#define TIME(value) .def = value, .flags = OPT_POSITIVE

static const struct opt table[] = {
    {ROW("socket", STRING, keeper.socket),
     .help = "Where keepers meet and hand over; none when empty"},
    {ROW("restart-min", DURATION, keeper.restart_min), TIME("10ms"),
     .help = "Pause before the command is started again; doubled each time"},
    {ROW("restart-max", DURATION, keeper.restart_max), TIME("5s"), .help = "Longest pause"},
    {ROW("settled", DURATION, keeper.settled), TIME("10s"),
     .help = "A command that has run for so long starts the pauses from the shortest again"},
    OPT_PROGRAM_ROWS(offsetof(struct options, program), NULL, NULL),
    OPT_END,
};

static const char usage[] =
    "Usage: " PROGRAM " [OPTIONS] -- COMMAND [ARGUMENTS]\n"
    "       " PROGRAM " [OPTIONS] -socket PATH\n\n"
    "Runs COMMAND, starts it again when it dies, and keeps the descriptors it stores, as systemd\n"
    "does; without COMMAND keeps those of the keepers that come to PATH.\n\n";

int main(int argc _unused_, char **argv)
{
    struct options o = {0};
    struct opt_set sets[] = {{.title = PROGRAM, .opts = table, .target = &o}, {0}};
    _cleanup_free_ char **rest = NULL;
    harden_no_dumps();
    int status = opt_begin(PROGRAM, usage, sets, &o.program, argv, &rest);
    o.keeper.argv = rest && rest[0] ? rest : NULL;
    if (status < 0 && !o.keeper.argv && str_empty(o.keeper.socket)) {
        fprintf(stderr, PROGRAM ": no command given, and no -socket\n");
        status = OPT_EXIT_USAGE;
    }
    status = status < 0 ? keeper_run(&o.keeper) : status;
    opt_done(sets);
    return status;
}
