/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json-c with limits and errors that name the key. Getters return 0, -ENOENT when the key is absent
 * (no err set: the caller decides), -EINVAL with err set when it has another type.
 */
#pragma once

#include <json-c/json.h>

#include "base/err.h"

#define JSON_DEPTH_MAX 32

/* Strict: one value, nothing behind it, no duplicate-key tricks relied on. Owned: json_put.
 * -EINVAL names line-free offset and reason. */
int json_parse(const char *text, size_t len, struct json_object **ret, struct err *err);
void json_put(struct json_object *o);
DEFINE_CLEANUP(struct json_object, json_put)

/* Borrowed from o. */
int json_get_string(struct json_object *o, const char *key, const char **ret, struct err *err);
int json_get_i64(struct json_object *o, const char *key, int64_t *ret, struct err *err);
int json_get_bool(struct json_object *o, const char *key, bool *ret, struct err *err);
int json_get_object(struct json_object *o, const char *key, struct json_object **ret,
                    struct err *err);
int json_get_array(struct json_object *o, const char *key, struct json_object **ret,
                   struct err *err);

/* NULL values are left out. */
void json_add_string(struct json_object *o, const char *key, const char *value);
void json_add_i64(struct json_object *o, const char *key, int64_t value);
void json_add_bool(struct json_object *o, const char *key, bool value);
