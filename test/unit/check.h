/* SPDX-License-Identifier: Apache-2.0 */
/* cmocka with the headers that it wants before it, and what most of our unit tests need. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define assert_text_has(text, part)                                                                \
    do {                                                                                           \
        if (!strstr((text), (part)))                                                               \
            fail_msg("\"%s\" does not hold \"%s\"", (text), (part));                               \
    } while (0)
