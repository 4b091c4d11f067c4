/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functions that this project does not use, refused by the compiler: unbounded copies, and number
 * parsers that do not report errors. Use base/str.h instead.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* With checked calls and clang, libc has macros by these names. */
#undef sprintf
#undef vsprintf

#pragma GCC poison strcpy strcat sprintf vsprintf strtok atoi atol atoll gets
