/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few macros that every file uses: cleanup attributes, hand-over, sizes.
 *
 * A local that owns something is declared with `_cleanup_(fn)`, where fn takes a pointer to the
 * variable; TAKE_PTR and TAKE_FD hand the ownership on and leave the empty value behind.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h> /* MIN, MAX: uv.h includes it, so these are the only ones possible */
#include <unistd.h>

#include "base/poison.h"

#define _cleanup_(fn) __attribute__((cleanup(fn)))
#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _unused_ __attribute__((unused))
#define _noreturn_ __attribute__((noreturn))
#define _warn_unused_ __attribute__((warn_unused_result))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define TAKE_PTR(p)                                                                                \
    __extension__({                                                                                \
        __typeof__(p) _taken = (p);                                                                \
        (p) = NULL;                                                                                \
        _taken;                                                                                    \
    })
#define TAKE_FD(fd)                                                                                \
    __extension__({                                                                                \
        int _taken = (fd);                                                                         \
        (fd) = -1;                                                                                 \
        _taken;                                                                                    \
    })

/* Defines `namep(T **)`, the cleanup form of a free function that accepts NULL. */
#define DEFINE_CLEANUP(T, free_fn)                                                                 \
    static inline _unused_ void free_fn##p(T **p)                                                  \
    {                                                                                              \
        free_fn(*p);                                                                               \
    }

static inline void freep(void *p)
{
    free(*(void **)p);
}

static inline void closep(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/* Aborts on exhaustion: a daemon that cannot get a few bytes has nothing better to do than to be
 * started again (crash-only). Never for sizes that come from outside. */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
