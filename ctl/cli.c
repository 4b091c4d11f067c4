/* SPDX-License-Identifier: Apache-2.0 */
/* What all commands do with their words: parse, show the help, complain. */
#include "ctl/ctl.h"

#include "base/str.h"

static void show_help(const struct opt_set *sets, const char *synopsis, const char *about)
{
    struct buf out = BUF_INIT(0);

    buf_addf(&out, "usage: peerpodctl %s\n\n%s\n", synopsis, about);
    opt_help(sets, &out);
    fputs(out.data, stdout);
    buf_done(&out);
}

int ctl_parse(struct opt_set *sets, char *const *argv, const char *synopsis, const char *about,
              const bool *help, char ***ret_rest, int *ret_exit)
{
    return ctl_parse_file(sets, argv, NULL, synopsis, about, help, ret_rest, ret_exit);
}

int ctl_parse_file(struct opt_set *sets, char *const *argv, const char *file, const char *synopsis,
                   const char *about, const bool *help, char ***ret_rest, int *ret_exit)
{
    struct err err = ERR_INIT;
    int r = opt_parse(sets, argv, file, ret_rest, &err);

    if (r < 0) {
        fprintf(stderr, "peerpodctl: %s\nusage: peerpodctl %s\n", err_text(&err), synopsis);
        *ret_exit = CTL_USAGE;
        return r;
    }
    if (*help) {
        show_help(sets, synopsis, about);
        *ret_exit = 0;
        return 1;
    }
    return 0;
}
