/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Read before every file by clang-tidy alone: tells its analyzer what base/err.h and base/macros.h
 * promise, a negative errno and a pointer that is not NULL. Without it, it follows paths on which a
 * failed call looks like a success.
 */
#pragma once

#include "base/err.h"

#define NEGATIVE(call)                                                                             \
    __extension__({                                                                                \
        int _negative = (call);                                                                    \
        if (_negative >= 0)                                                                        \
            __builtin_unreachable();                                                               \
        _negative;                                                                                 \
    })
#define err_set(...) NEGATIVE((err_set)(__VA_ARGS__))
#define err_wrap(...) NEGATIVE((err_wrap)(__VA_ARGS__))
#define err_errno(...) NEGATIVE((err_errno)(__VA_ARGS__))

#define NOT_NULL(call)                                                                             \
    __extension__({                                                                                \
        __typeof__(call) _not_null = (call);                                                       \
        if (!_not_null)                                                                            \
            __builtin_unreachable();                                                               \
        _not_null;                                                                                 \
    })
#define xcalloc(n, size) NOT_NULL((xcalloc)(n, size))
#define xrealloc(p, size) NOT_NULL((xrealloc)(p, size))
#define xstrdup(s) NOT_NULL((xstrdup)(s))
