/* SPDX-License-Identifier: Apache-2.0 */
/* Our own terminal in raw mode, restored however the program ends (SIGKILL excepted). */
#pragma once

#include "base/err.h"

/* No-op when stdin is no terminal. Any thread; once per process. */
int terminal_raw(struct err *err);
void terminal_restore(void);
/* false: no terminal. */
bool terminal_size(unsigned short *ret_rows, unsigned short *ret_columns);
