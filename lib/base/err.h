/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An error as a value: a negative errno and the sentence a person reads.
 *
 * Functions return 0 or a negative errno; where a reader needs more, their last parameter is
 * `struct err *err` (may be NULL). It is written on failure only. Setting a set error is a bug and
 * asserts; err_wrap puts context in front of what is there. Texts become ttrpc error messages and
 * so `kubectl describe pod` lines: name the step, the other side's words, the way out; no secrets.
 */
#pragma once

#include "base/macros.h"

#define ERR_TEXT_MAX 1024 /* longer texts are cut at a UTF-8 boundary and end in "..." */

struct err {
    int code; /* negative errno; 0: not set */
    char text[ERR_TEXT_MAX];
};

#define ERR_INIT ((struct err){.code = 0})

/* Both return `code` (must be negative), so that a caller can `return err_set(...)`. */
int err_set(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);
/* "CONTEXT: old text"; sets the text from strerror(code) when err holds none. */
int err_wrap(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);
/* As err_set with ": strerror(-code)" behind. */
int err_errno(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);
void err_clear(struct err *err);
/* The text, never NULL; "no error" when not set. Borrowed from err. */
const char *err_text(const struct err *err);
