/* SPDX-License-Identifier: Apache-2.0 */
/* json-c with limits, strictness and errors that name the key. */
#include "base/json.h"

#include <errno.h>
#include <limits.h>

int json_parse(const char *text, size_t len, struct json_object **ret, struct err *err)
{
    if (len > INT_MAX)
        return err_set(err, -EFBIG, "JSON of %zu bytes is too long", len);
    struct json_tokener *t = json_tokener_new_ex(JSON_DEPTH_MAX);
    if (!t)
        return err_set(err, -ENOMEM, "out of memory for JSON");
    json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    struct json_object *o = json_tokener_parse_ex(t, text, (int)len);
    enum json_tokener_error e = json_tokener_get_error(t);
    size_t end = json_tokener_get_parse_end(t);
    json_tokener_free(t);
    while (e == json_tokener_success && end < len && strchr(" \t\r\n", text[end]) && text[end])
        end++;
    if (e != json_tokener_success || end != len) {
        json_object_put(o);
        return err_set(err, -EINVAL, "not valid JSON at offset %zu: %s", end,
                       e == json_tokener_success    ? "something stands behind the value"
                       : e == json_tokener_continue ? "it ends too early"
                                                    : json_tokener_error_desc(e));
    }
    *ret = o;
    return 0;
}

void json_put(struct json_object *o)
{
    json_object_put(o);
}

static int get(struct json_object *o, const char *key, enum json_type type,
               struct json_object **ret, struct err *err)
{
    struct json_object *v = NULL;
    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v) || !v)
        return -ENOENT;
    if (!json_object_is_type(v, type))
        return err_set(err, -EINVAL, "key \"%s\" is %s, not %s", key,
                       json_type_to_name(json_object_get_type(v)), json_type_to_name(type));
    *ret = v;
    return 0;
}

int json_get_string(struct json_object *o, const char *key, const char **ret, struct err *err)
{
    struct json_object *v = NULL;
    int r = get(o, key, json_type_string, &v, err);
    if (r < 0)
        return r;
    const char *s = json_object_get_string(v);
    if (strlen(s) != (size_t)json_object_get_string_len(v))
        return err_set(err, -EINVAL, "key \"%s\" holds a NUL character", key);
    *ret = s;
    return 0;
}

int json_get_i64(struct json_object *o, const char *key, int64_t *ret, struct err *err)
{
    struct json_object *v = NULL;
    int r = get(o, key, json_type_int, &v, err);
    if (r == 0)
        *ret = json_object_get_int64(v);
    return r;
}

int json_get_bool(struct json_object *o, const char *key, bool *ret, struct err *err)
{
    struct json_object *v = NULL;
    int r = get(o, key, json_type_boolean, &v, err);
    if (r == 0)
        *ret = json_object_get_boolean(v);
    return r;
}

int json_get_object(struct json_object *o, const char *key, struct json_object **ret,
                    struct err *err)
{
    return get(o, key, json_type_object, ret, err);
}

int json_get_array(struct json_object *o, const char *key, struct json_object **ret,
                   struct err *err)
{
    return get(o, key, json_type_array, ret, err);
}

void json_add_string(struct json_object *o, const char *key, const char *value)
{
    if (value)
        json_object_object_add(o, key, json_object_new_string(value));
}

void json_add_i64(struct json_object *o, const char *key, int64_t value)
{
    json_object_object_add(o, key, json_object_new_int64(value));
}

void json_add_bool(struct json_object *o, const char *key, bool value)
{
    json_object_object_add(o, key, json_object_new_boolean(value));
}
