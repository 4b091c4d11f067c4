/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory is overwritten when it is freed.
 *
 * Secrets pass through libraries that copy: json-c reads a key into a buffer that grows, OpenSSL
 * decodes PEM in steps, libcurl keeps headers. Wiping what is ours leaves those copies in the heap
 * for as long as nobody happens to use the place. So every program of ours defines `free` and
 * `realloc`, which the libraries call as well, and they clear the whole block first.
 *
 * The allocator stays the one that is there (libc's, or a preloaded one): only the two functions that
 * give memory back are wrapped. Realloc keeps a block that fits; else it is a new block, a copy, and
 * a free. Cost: a memset for each free, some ns for what is small.
 *
 * Linked into programs, not into the libraries: a test or a sanitizer has its own idea of free.
 * Stacks are not covered; what lies there is wiped by hand (secret_wipe).
 */
#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

typedef void free_fn(void *);

static free_fn *next_free(void)
{
    static free_fn *next; /* two threads may both look it up and find the same */
    free_fn *f = __atomic_load_n(&next, __ATOMIC_RELAXED);
    if (!f) {
        f = __extension__(free_fn *) dlsym(RTLD_NEXT, "free");
        __atomic_store_n(&next, f, __ATOMIC_RELAXED);
    }
    return f;
}

__attribute__((visibility("default"))) void free(void *p)
{
    if (!p)
        return;
    explicit_bzero(p, malloc_usable_size(p));
    next_free()(p);
}

__attribute__((visibility("default"))) void *realloc(void *p, size_t size)
{
    size_t old = p ? malloc_usable_size(p) : 0;
    if (p && size == 0) {
        free(p);
        return NULL;
    }
    if (p && size <= old && size >= old / 2)
        return p;
    void *q = malloc(size);
    if (q && p) {
        memcpy(q, p, old < size ? old : size);
        free(p);
    }
    return q;
}
