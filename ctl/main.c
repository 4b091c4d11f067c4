/* SPDX-License-Identifier: Apache-2.0 */
/* peerpodctl: picks the command. */
#include "base/harden.h"
#include "base/log.h"
#include "base/str.h"
#include "ctl/ctl.h"

static const struct {
    const char *name;
    int (*run)(char *const *argv);
    const char *help;
} commands[] = {
    {"status", ctl_status, "list the daemon and its sandboxes"},
    {"inspect", ctl_inspect, "show one sandbox and its record"},
    {"orphans", ctl_orphans, "list or delete instances that belong to no sandbox"},
    {"run", ctl_run, "run one pod with one container, as the kata shim would"},
    {"verify", ctl_verify, "check a provider's configuration, permissions and network"},
    {"logs", ctl_logs, "reserved: the log of a pod VM's guest programs"},
};

static int help(FILE *out)
{
    fputs("usage: peerpodctl COMMAND [OPTIONS]\n\nCommands:\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        fprintf(out, "    %-9s %s\n", commands[i].name, commands[i].help);
    fputs("    version   show the version\n"
          "    help      show this text\n\n"
          "peerpodctl COMMAND --help lists the options of a command.\n",
          out);
    return out == stdout ? 0 : CTL_USAGE;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";

    harden_no_dumps();
    log_init("peerpodctl", LOG_LEVEL_WARN, LOG_FORMAT_TEXT);
    if (str_eq(word, "help") || str_eq(word, "--help") || str_eq(word, "-help") ||
        str_eq(word, "-h"))
        return help(stdout);
    if (str_eq(word, "version") || str_eq(word, "--version") || str_eq(word, "-version")) {
        puts("peerpodctl " PP_VERSION);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (str_eq(commands[i].name, word))
            return commands[i].run(argv + 2);
    if (*word)
        fprintf(stderr, "peerpodctl: unknown command '%.64s'\n", word);
    return help(stderr);
}
