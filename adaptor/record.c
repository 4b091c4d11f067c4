/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records. JSON, because an operator reads them in an emergency, and because unknown fields keep
 * themselves: what a record holds beyond the fields that we know is kept as the JSON object it was,
 * and written back with them. So a newer daemon's additions survive an older one (a raised minor
 * version), and up, down, up loses no pod. A raised major version is refused: the
 * older daemon ends with a message, and the keeper goes on holding the descriptors.
 *
 * Who adds a field raises the minor version, and gives it a meaning when it is missing (an older
 * daemon made the record) or stale (an older daemon has changed others since). Who changes what a
 * field means raises the major version, reads both, and goes on writing the old one as long as the
 * daemon that it has taken over from lives (takeover.c): that one may have to go on.
 *
 * Written by rename (fs_write_atomic): a reader sees the old or the new record. No fsync: a reboot
 * ends every sandbox anyway, and `boot` tells.
 *
 * Everything read is checked as if it came from outside: sizes, ranges, character sets.
 */
#include "adaptor/record.h"

#include <errno.h>

static const char *const state_names[] = {"created", "starting", "running", "deleting"};

const char *sandbox_state_name(enum sandbox_state state)
{
    return state_names[state];
}

/* -- reading -- */

static int get_text(struct json_object *o, const char *key, char *out, size_t size, bool required,
                    struct err *err)
{
    const char *s;
    int r = json_get_string(o, key, &s, err);
    if (r == -ENOENT && !required)
        return 0;
    if (r == -ENOENT)
        return err_set(err, -EBADMSG, "key \"%s\" is missing", key);
    if (r < 0)
        return r;
    if (str_format(out, size, "%s", s) < 0)
        return err_set(err, -EBADMSG, "key \"%s\" is longer than %zu", key, size - 1);
    return 0;
}

static int get_number(struct json_object *o, const char *key, int64_t max, int64_t *ret,
                      struct err *err)
{
    int64_t value = 0;
    int r = json_get_i64(o, key, &value, err);
    if (r < 0 && r != -ENOENT)
        return r;
    if (value < 0 || value > max)
        return err_set(err, -EBADMSG, "key \"%s\" is out of range", key);
    *ret = value;
    return 0;
}

static int get_state(struct json_object *o, struct record *r, struct err *err)
{
    char word[16] = "";
    int e = get_text(o, "state", word, sizeof(word), true, err);
    if (e < 0)
        return e;
    for (size_t i = 0; i < ARRAY_SIZE(state_names); i++)
        if (str_eq(word, state_names[i])) {
            r->state = (enum sandbox_state)i;
            return 0;
        }
    return err_set(err, -EBADMSG, "key \"state\" is '%s'", word);
}

static int get_spec(struct json_object *o, struct record *r, struct err *err)
{
    int64_t vcpus = 0, memory = 0, gpus = 0;
    int e = get_number(o, "vcpus", UINT32_MAX, &vcpus, err);
    if (e == 0)
        e = get_number(o, "memory_mib", INT64_MAX, &memory, err);
    if (e == 0)
        e = get_number(o, "gpus", UINT32_MAX, &gpus, err);
    if (e == 0)
        e = get_text(o, "instance_type", r->spec.type, sizeof(r->spec.type), false, err);
    if (e == 0)
        e = get_text(o, "image", r->spec.image, sizeof(r->spec.image), false, err);
    if (e == 0)
        e = get_text(o, "spec_digest", r->spec_digest, sizeof(r->spec_digest), false, err);
    r->spec.vcpus = (uint32_t)vcpus;
    r->spec.memory_mib = (uint64_t)memory;
    r->spec.gpus = (uint32_t)gpus;
    return e;
}

static int get_addresses(struct json_object *o, struct instance *instance, struct err *err)
{
    struct json_object *list;
    int e = json_get_array(o, "addresses", &list, err);
    if (e == -ENOENT)
        return 0;
    if (e < 0)
        return e;
    size_t n = json_object_array_length(list);
    if (n > INSTANCE_ADDRESSES_MAX)
        return err_set(err, -EBADMSG, "key \"addresses\" has %zu entries", n);
    for (size_t i = 0; i < n; i++) {
        struct json_object *v = json_object_array_get_idx(list, i);
        if (!json_object_is_type(v, json_type_string) ||
            str_format(instance->addresses[i], INSTANCE_ADDRESS_SIZE, "%s",
                       json_object_get_string(v)) < 0)
            return err_set(err, -EBADMSG, "key \"addresses\" has a malformed entry");
    }
    instance->n_addresses = n;
    return 0;
}

static int get_tunnel(struct json_object *o, struct record *r, struct err *err)
{
    char pin[2 * TLS_PIN_SIZE + 1] = "";
    int64_t next = 1;
    int e = get_text(o, "peer_pin", pin, sizeof(pin), false, err);
    if (e == 0)
        e = get_number(o, "next_channel", UINT32_MAX, &next, err);
    if (e == 0)
        e = json_get_bool(o, "plain", &r->plain, err);
    if (e < 0 && e != -ENOENT)
        return e;
    r->enrolled = *pin;
    r->next_channel = (uint32_t)MAX(next, 1);
    if (*pin && str_unhex(pin, r->peer_pin, TLS_PIN_SIZE) < 0)
        return err_set(err, -EBADMSG, "key \"peer_pin\" is not %d bytes in hex", TLS_PIN_SIZE);
    return 0;
}

static int get_network(struct json_object *o, struct record *r, struct err *err)
{
    int64_t id = 0;
    int e = get_number(o, "vxlan_id", (1 << 24) - 1, &id, err);
    if (e == 0)
        e = get_text(o, "pod_interface", r->pod_interface, sizeof(r->pod_interface), false, err);
    r->vxlan_id = (uint32_t)id;
    return e;
}

static int get_error(struct json_object *o, struct record *r, struct err *err)
{
    char text[ERR_TEXT_MAX] = "";
    int e = get_text(o, "last_error", text, sizeof(text), false, err);
    if (e == 0 && *text)
        r->last_error = xstrdup(text);
    return e;
}

static int get_all(struct json_object *o, struct record *r, struct err *err)
{
    int e = get_text(o, "id", r->id, sizeof(r->id), true, err);
    if (e == 0)
        e = get_text(o, "pod", r->pod, sizeof(r->pod), false, err);
    if (e == 0)
        e = get_text(o, "namespace", r->namespace, sizeof(r->namespace), false, err);
    if (e == 0)
        e = get_text(o, "netns", r->netns, sizeof(r->netns), false, err);
    if (e == 0)
        e = get_text(o, "boot", r->boot, sizeof(r->boot), true, err);
    if (e == 0)
        e = get_text(o, "node", r->node, sizeof(r->node), false, err);
    if (e == 0)
        e = get_text(o, "token", r->token, sizeof(r->token), true, err);
    if (e == 0)
        e = get_text(o, "key", r->key, sizeof(r->key), true, err);
    if (e == 0)
        e = get_text(o, "instance_id", r->instance.id, sizeof(r->instance.id), false, err);
    if (e == 0)
        e = get_text(o, "instance_name", r->instance.name, sizeof(r->instance.name), false, err);
    if (e == 0)
        e = get_error(o, r, err);
    if (e == 0)
        e = get_number(o, "created_unix_ms", INT64_MAX, &r->created_ms, err);
    if (e == 0)
        e = get_number(o, "started_unix_ms", INT64_MAX, &r->started_ms, err);
    return e;
}

static int get_version(struct json_object *o, struct record *r, struct err *err)
{
    int64_t major = 0;
    int e = get_number(o, "version_major", INT32_MAX, &major, err);
    if (e < 0)
        return e;
    if (major > RECORD_MAJOR)
        return err_set(err, -EPROTONOSUPPORT,
                       "it is of format %lld, this program knows up to %d: use the newer version",
                       (long long)major, RECORD_MAJOR);
    if (major < 1)
        return err_set(err, -EBADMSG, "key \"version_major\" is missing");
    (void)json_get_i64(o, "version_minor", &r->minor, NULL);
    return 0;
}

static bool is_hex(const char *s, size_t len)
{
    return strlen(s) == len && strspn(s, "0123456789abcdef") == len;
}

/* What names the sandbox to the provider, and its descriptors to the store. */
static int check_words(const struct record *r, struct err *err)
{
    if (!is_hex(r->token, RECORD_TOKEN_LEN))
        return err_set(err, -EBADMSG, "key \"token\" is not %d hex digits", RECORD_TOKEN_LEN);
    if (!is_hex(r->key, RECORD_KEY_LEN))
        return err_set(err, -EBADMSG, "key \"key\" is not %d hex digits", RECORD_KEY_LEN);
    return 0;
}

/* -- writing -- */

static void put_all(const struct record *r, struct json_object *o)
{
    json_add_i64(o, "version_major", RECORD_MAJOR);
    json_add_i64(o, "version_minor", MAX(r->minor, (int64_t)RECORD_MINOR));
    json_add_string(o, "id", r->id);
    json_add_string(o, "pod", r->pod);
    json_add_string(o, "namespace", r->namespace);
    json_add_string(o, "netns", r->netns);
    json_add_string(o, "boot", r->boot);
    json_add_string(o, "node", r->node);
    json_add_string(o, "state", sandbox_state_name(r->state));
    json_add_i64(o, "created_unix_ms", r->created_ms);
    json_add_i64(o, "started_unix_ms", r->started_ms);
    json_add_i64(o, "vcpus", r->spec.vcpus);
    json_add_i64(o, "memory_mib", (int64_t)r->spec.memory_mib);
    json_add_i64(o, "gpus", r->spec.gpus);
    json_add_string(o, "instance_type", r->spec.type);
    json_add_string(o, "image", r->spec.image);
    json_add_string(o, "spec_digest", r->spec_digest);
    json_add_string(o, "token", r->token);
    json_add_string(o, "key", r->key);
    json_add_string(o, "instance_id", r->instance.id);
    json_add_string(o, "instance_name", r->instance.name);
    json_add_i64(o, "next_channel", r->next_channel);
    json_add_bool(o, "plain", r->plain);
    json_add_i64(o, "vxlan_id", r->vxlan_id);
    json_add_string(o, "pod_interface", r->pod_interface);
    json_add_string(o, "last_error", r->last_error ? r->last_error : "");
}

static void put_lists(const struct record *r, struct json_object *o)
{
    struct json_object *list = json_object_new_array();
    char pin[2 * TLS_PIN_SIZE + 1] = "";
    for (size_t i = 0; i < r->instance.n_addresses; i++)
        json_object_array_add(list, json_object_new_string(r->instance.addresses[i]));
    json_object_object_add(o, "addresses", list);
    if (r->enrolled)
        str_hex(r->peer_pin, TLS_PIN_SIZE, pin);
    json_add_string(o, "peer_pin", pin);
}

char *record_text(const struct record *r)
{
    _cleanup_(json_putp) struct json_object *o = json_object_new_object();
    put_all(r, o);
    put_lists(r, o);
    if (r->unknown) {
        json_object_object_foreach(r->unknown, key, value)
        {
            json_object_object_add(o, key, json_object_get(value));
        }
    }
    return xstrdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
}

int record_write(int dirfd, const struct record *r, struct err *err)
{
    _cleanup_free_ char *text = record_text(r);
    return fs_write_atomic(dirfd, RECORD_FILE, text, strlen(text), 0600, err);
}

/* -- reading the whole -- */

/* What put_all and put_lists do not write themselves. */
static void keep_unknown(struct record *r, struct json_object *o)
{
    _cleanup_(json_putp) struct json_object *known = json_object_new_object();
    put_all(r, known);
    put_lists(r, known);
    json_object_object_foreach(known, key, value)
    {
        (void)value;
        json_object_object_del(o, key);
    }
    if (json_object_object_length(o) > 0)
        r->unknown = json_object_get(o);
}

int record_read(int dirfd, struct record *ret, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    struct record r = {0};
    size_t len;
    int e = fs_read(dirfd, RECORD_FILE, RECORD_MAX, &text, &len, err);
    if (e < 0)
        return e;
    _cleanup_(json_putp) struct json_object *o = NULL;
    e = json_parse(text, len, &o, err);
    if (e < 0)
        return err_wrap(err, -EBADMSG, "reading the record %s", RECORD_FILE);
    e = get_version(o, &r, err);
    if (e == 0)
        e = get_all(o, &r, err);
    if (e == 0)
        e = get_state(o, &r, err);
    if (e == 0)
        e = get_spec(o, &r, err);
    if (e == 0)
        e = get_addresses(o, &r.instance, err);
    if (e == 0)
        e = get_tunnel(o, &r, err);
    if (e == 0)
        e = check_words(&r, err);
    if (e == 0)
        e = get_network(o, &r, err);
    const char *why;
    if (e == 0 && str_check_sandbox_id(r.id, &why) < 0)
        e = err_set(err, -EBADMSG, "key \"id\" is not a sandbox id: %s", why);
    if (e < 0) {
        record_done(&r);
        return err_wrap(err, e == -EPROTONOSUPPORT ? e : -EBADMSG, "reading the record %s",
                        RECORD_FILE);
    }
    memcpy(r.instance.sandbox, r.id, sizeof(r.id));
    keep_unknown(&r, o);
    *ret = r;
    return 0;
}

void record_done(struct record *r)
{
    json_put(r->unknown);
    r->unknown = NULL;
    free(TAKE_PTR(r->last_error));
}
