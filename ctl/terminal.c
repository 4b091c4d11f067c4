/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The settings found at the start are kept; terminal_restore puts them back and may be called any
 * number of times, from any thread, and by exit(3).
 */
#include "ctl/terminal.h"

#include <errno.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <termios.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct termios saved; /* lock */
static bool is_raw;          /* lock */

int terminal_raw(struct err *err)
{
    struct termios raw;

    if (!isatty(STDIN_FILENO))
        return 0;
    pthread_mutex_lock(&lock);
    int r = tcgetattr(STDIN_FILENO, &saved) < 0 ? -errno : 0;
    raw = saved;
    cfmakeraw(&raw);
    if (r == 0) {
        atexit(terminal_restore);
        r = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) < 0 ? -errno : 0;
        is_raw = r == 0;
    }
    pthread_mutex_unlock(&lock);
    return r < 0 ? err_errno(err, r, "the terminal's settings") : 0;
}

void terminal_restore(void)
{
    pthread_mutex_lock(&lock);
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
    is_raw = false;
    pthread_mutex_unlock(&lock);
}

bool terminal_size(unsigned short *ret_rows, unsigned short *ret_columns)
{
    struct winsize ws;

    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &ws) < 0 || ws.ws_row == 0 || ws.ws_col == 0)
        return false;
    *ret_rows = ws.ws_row;
    *ret_columns = ws.ws_col;
    return true;
}
