/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Each object of apf.json is a table of fields: key, kind, and where in the struct it lives. The
 * kind knows how to read a JSON value into the struct, and how to write it back; so reader and
 * writer cannot drift apart, and the limits are checked by the same code on both sides (the daemon
 * must not make what the forwarder refuses).
 *
 * Model of a field: text in a fixed array passes through its kind's check, which may rewrite it in
 * canonical form (addresses). "" and null are absent, and absent fields are not written: the stock
 * forwarder reads an absent key as Go's zero value, but refuses "" as the name of a protocol.
 *
 * Reading: json-c has done the syntax. An object is walked in the order of the text; each key is
 * looked up without regard to case, as Go's reader does it; unknown keys are skipped; the same key
 * in two spellings is refused, because readers differ in which one wins.
 *
 * Failures name the key with its path ("pod-network.routes[3].gw") and what is allowed. Values are
 * quoted only where they are addresses or names, never from the fields marked secret.
 */
#include "guest/apf.h"

#include <arpa/inet.h>
#include <errno.h>
#include <strings.h>

#include "base/json.h"
#include "base/str.h"

#define CIPHER_NAME_MAX 64
#define TLS_VERSION_MAX 32
#define NATIVE_WORD "native"
#define PATH_SIZE 96

struct field;

/* Where we are, for errors. */
struct where {
    char path[PATH_SIZE];
    struct err *err;
};

typedef int read_fn(struct where *w, const struct field *f, struct json_object *v, void *to);
typedef int write_fn(struct where *w, const struct field *f, const void *from,
                     struct json_object **ret);

struct kind {
    read_fn *read;
    write_fn *write; /* *ret stays NULL: absent */
};

struct field {
    const char *key;
    const struct kind *kind;
    size_t offset;
    size_t max;                            /* bytes of text with its NUL, or the largest number */
    const char *const *words;              /* kind word */
    int (*check)(char *text, size_t size); /* kind text: 0, or -EINVAL */
    const char *allowed;                   /* for the error */
};

/* ---- errors and paths ---- */

/* Goes down into key (or element i when key is NULL); the caller keeps the old length. */
static size_t enter(struct where *w, const char *key, size_t i)
{
    size_t len = strlen(w->path);

    if (key)
        snprintf(w->path + len, sizeof(w->path) - len, "%s%s", len ? "." : "", key);
    else
        snprintf(w->path + len, sizeof(w->path) - len, "[%zu]", i);
    return len;
}

static void leave(struct where *w, size_t len)
{
    w->path[len] = 0;
}

#define refuse(w, what, ...)                                                                       \
    err_set((w)->err, -EINVAL, "apf.json: %s " what, (w)->path, ##__VA_ARGS__)

static int type_error(struct where *w, struct json_object *v, const char *expected)
{
    return refuse(w, "is %s; %s is expected", json_type_to_name(json_object_get_type(v)), expected);
}

/* The text of a JSON string without NULs, at most max bytes. Borrowed. */
static int get_text(struct where *w, struct json_object *v, size_t max, const char **ret)
{
    const char *s = NULL;

    if (!json_object_is_type(v, json_type_string))
        return type_error(w, v, "a string");
    s = json_object_get_string(v);
    if (strlen(s) != (size_t)json_object_get_string_len(v))
        return refuse(w, "holds a NUL character");
    if (strlen(s) > max)
        return refuse(w, "is %zu bytes long; at most %zu are allowed", strlen(s), max);
    *ret = s;
    return 0;
}

/* ---- objects ---- */

static const struct field *find_field(const struct field *fields, const char *key, size_t *ret_i)
{
    for (size_t i = 0; fields[i].key; i++) {
        if (strcasecmp(fields[i].key, key) == 0) {
            *ret_i = i;
            return &fields[i];
        }
    }
    return NULL;
}

static int read_object(struct where *w, const struct field *fields, struct json_object *o, void *to)
{
    uint64_t seen = 0;

    if (!json_object_is_type(o, json_type_object))
        return type_error(w, o, "an object");
    json_object_object_foreach(o, key, v)
    {
        size_t i = 0, old;
        const struct field *f = find_field(fields, key, &i);
        int r;

        if (!f)
            continue;
        old = enter(w, f->key, 0);
        if (seen & 1ULL << i)
            return refuse(w, "stands there twice, in different spellings");
        seen |= 1ULL << i;
        r = v ? f->kind->read(w, f, v, (char *)to + f->offset) : 0;
        if (r < 0)
            return r;
        leave(w, old);
    }
    return 0;
}

static int write_object(struct where *w, const struct field *fields, const void *from,
                        struct json_object **ret)
{
    struct json_object *o = json_object_new_object();

    for (const struct field *f = fields; f->key; f++) {
        struct json_object *v = NULL;
        size_t old = enter(w, f->key, 0);
        int r = f->kind->write(w, f, (const char *)from + f->offset, &v);

        if (r < 0) {
            json_put(o);
            return r;
        }
        if (v)
            json_object_object_add(o, f->key, v);
        leave(w, old);
    }
    *ret = o;
    return 0;
}

/* ---- kinds of fields ---- */

/* char[max], checked. */
static int check_text(struct where *w, const struct field *f, char *text)
{
    if (*text && f->check && f->check(text, f->max) < 0)
        return refuse(w, "is \"%s\"; %s", text, f->allowed);
    return 0;
}

static int text_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    const char *s = NULL;
    int r = get_text(w, v, f->max - 1, &s);

    if (r < 0)
        return r;
    snprintf(to, f->max, "%s", s);
    return check_text(w, f, to);
}

static int text_write(struct where *w, const struct field *f, const void *from,
                      struct json_object **ret)
{
    char copy[256];
    int r;

    if (f->max > sizeof(copy) || strnlen(from, f->max) == f->max)
        return refuse(w, "is longer than the %zu bytes allowed", f->max - 1);
    snprintf(copy, sizeof(copy), "%s", (const char *)from);
    r = check_text(w, f, copy);
    if (r == 0 && *copy)
        *ret = json_object_new_string(copy);
    return r;
}

static const struct kind kind_text = {text_read, text_write};

/* char[APF_WORD_SIZE], one of words. */
static int check_word(struct where *w, const struct field *f, const char *word)
{
    char list[160] = "";

    for (const char *const *p = f->words; *p; p++) {
        size_t n = strlen(list);

        if (str_eq(word, *p))
            return 0;
        snprintf(list + n, sizeof(list) - n, "%s%s", n ? ", " : "", *p);
    }
    return *word ? refuse(w, "is \"%s\"; allowed are %s", word, list) : 0;
}

static int word_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    const char *s = NULL;
    int r = get_text(w, v, APF_WORD_SIZE - 1, &s);

    if (r < 0)
        return r;
    snprintf(to, APF_WORD_SIZE, "%s", s);
    return check_word(w, f, to);
}

static int word_write(struct where *w, const struct field *f, const void *from,
                      struct json_object **ret)
{
    int r;

    if (strnlen(from, APF_WORD_SIZE) == APF_WORD_SIZE)
        return refuse(w, "is longer than the %d bytes allowed", APF_WORD_SIZE - 1);
    r = check_word(w, f, from);
    if (r == 0 && *(const char *)from)
        *ret = json_object_new_string(from);
    return r;
}

static const struct kind kind_word = {word_read, word_write};

/* char *, at most max bytes; may be secret. */
static int owned_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    const char *s = NULL;
    int r = get_text(w, v, f->max, &s);

    if (r == 0 && *s)
        *(char **)to = xstrdup(s);
    return r;
}

static int owned_write(struct where *w, const struct field *f, const void *from,
                       struct json_object **ret)
{
    const char *s = *(char *const *)from;

    if (str_empty(s))
        return 0;
    if (strlen(s) > f->max)
        return refuse(w, "is %zu bytes long; at most %zu are allowed", strlen(s), f->max);
    *ret = json_object_new_string(s);
    return 0;
}

static const struct kind kind_owned = {owned_read, owned_write};

/* uint32_t up to max. */
static int number_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    int64_t n;

    if (!json_object_is_type(v, json_type_int))
        return type_error(w, v, "an integer");
    n = json_object_get_int64(v);
    if (n < 0 || (uint64_t)n > f->max)
        return refuse(w, "is %lld; 0 to %zu are allowed", (long long)n, f->max);
    *(uint32_t *)to = (uint32_t)n;
    return 0;
}

static int number_write(struct where *w, const struct field *f, const void *from,
                        struct json_object **ret)
{
    uint32_t n = *(const uint32_t *)from;

    if (n > f->max)
        return refuse(w, "is %u; 0 to %zu are allowed", n, f->max);
    *ret = json_object_new_int64(n);
    return 0;
}

static const struct kind kind_number = {number_read, number_write};

/* As number, but 0 is not written. */
static int optional_write(struct where *w, const struct field *f, const void *from,
                          struct json_object **ret)
{
    return *(const uint32_t *)from ? number_write(w, f, from, ret) : 0;
}

static const struct kind kind_optional = {number_read, optional_write};

static int bool_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    (void)f;
    if (!json_object_is_type(v, json_type_boolean))
        return type_error(w, v, "true or false");
    *(bool *)to = json_object_get_boolean(v);
    return 0;
}

static int bool_write(struct where *w, const struct field *f, const void *from,
                      struct json_object **ret)
{
    (void)w;
    (void)f;
    *ret = json_object_new_boolean(*(const bool *)from);
    return 0;
}

static const struct kind kind_bool = {bool_read, bool_write};

/* ---- checks of text, which leave the canonical form behind ---- */

static int check_address(char *text, size_t size)
{
    unsigned char bytes[16];
    int family = strchr(text, ':') ? AF_INET6 : AF_INET;

    if (inet_pton(family, text, bytes) != 1)
        return -EINVAL;
    return inet_ntop(family, bytes, text, (socklen_t)size) ? 0 : -EINVAL;
}

static int check_prefix(char *text, size_t size)
{
    char address[APF_ADDRESS_SIZE];
    char *slash = strchr(text, '/');
    uint64_t bits;
    size_t n;

    if (!slash)
        return -EINVAL;
    n = (size_t)(slash - text);
    if (n >= sizeof(address) || str_to_u64(slash + 1, memchr(text, ':', n) ? 128 : 32, &bits) < 0)
        return -EINVAL;
    memcpy(address, text, n);
    address[n] = 0;
    if (check_address(address, sizeof(address)) < 0)
        return -EINVAL;
    return str_format(text, size, "%s/%u", address, (unsigned)bits) < 0 ? -EINVAL : 0;
}

/* The kernel's rule for names of links (dev_valid_name), and nothing unprintable. */
static int check_ifname(char *text, size_t size)
{
    (void)size;
    if (str_eq(text, ".") || str_eq(text, ".."))
        return -EINVAL;
    for (const char *p = text; *p; p++)
        if (*p <= ' ' || *p > '~' || *p == '/' || *p == ':')
            return -EINVAL;
    return 0;
}

/* Pairs of hex digits with colons between them; lower case. */
static int check_hw_addr(char *text, size_t size)
{
    size_t n = strlen(text);

    (void)size;
    if (n < 17 || n % 3 != 2)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (text[i] >= 'A' && text[i] <= 'F')
            text[i] = (char)(text[i] - 'A' + 'a');
        if (i % 3 == 2 ? text[i] != ':' : !strchr("0123456789abcdef", text[i]))
            return -EINVAL;
    }
    return 0;
}

static int check_sandbox_id(char *text, size_t size)
{
    const char *why;

    (void)size;
    return str_check_sandbox_id(text, &why);
}

#define AN_ADDRESS "a numeric address is expected"
#define A_PREFIX "an address with its prefix length is expected, as in 10.244.1.7/24"
#define AN_IFNAME "the name of a network interface is expected"
#define A_HW_ADDR "a hardware address is expected, as in 02:42:ac:11:00:02"

#define PREFIX(key, type, member)                                                                  \
    {                                                                                              \
        key, &kind_text, offsetof(type, member), APF_PREFIX_SIZE, NULL, check_prefix, A_PREFIX     \
    }
#define ADDRESS(key, type, member)                                                                 \
    {                                                                                              \
        key, &kind_text, offsetof(type, member), APF_ADDRESS_SIZE, NULL, check_address, AN_ADDRESS \
    }
#define IFNAME(key, type, member)                                                                  \
    {                                                                                              \
        key, &kind_text, offsetof(type, member), IFNAMSIZ, NULL, check_ifname, AN_IFNAME           \
    }
#define HW_ADDR(key, type, member)                                                                 \
    {                                                                                              \
        key, &kind_text, offsetof(type, member), APF_HW_ADDR_SIZE, NULL, check_hw_addr, A_HW_ADDR  \
    }
#define WORD(key, type, member, choices)                                                           \
    {                                                                                              \
        key, &kind_word, offsetof(type, member), APF_WORD_SIZE, choices, NULL, NULL                \
    }
#define PLAIN(key, kind, type, member, max)                                                        \
    {                                                                                              \
        key, &kind, offsetof(type, member), max, NULL, NULL, NULL                                  \
    }

/* ---- routes and neighbours ---- */

static const char *const protocols[] = {"static", "boot", "dhcp", "kernel", NULL};
static const char *const scopes[] = {"universe", "site", "link", "host", "nowhere", NULL};
static const char *const states[] = {"permanent", "reachable", "stale",      "delay", "probe",
                                     "failed",    "noarp",     "incomplete", "none",  NULL};
static const char *const tunnel_types[] = {"vxlan", "routing", NULL};

static const struct field route_fields[] = {
    PREFIX("dst", struct apf_route, dst),
    ADDRESS("gw", struct apf_route, gw),
    IFNAME("dev", struct apf_route, dev),
    WORD("protocol", struct apf_route, protocol, protocols),
    WORD("scope", struct apf_route, scope, scopes),
    {0},
};

static const struct field neighbor_fields[] = {
    ADDRESS("ip", struct apf_neighbor, ip),
    IFNAME("dev", struct apf_neighbor, dev),
    HW_ADDR("hw-addr", struct apf_neighbor, hw_addr),
    WORD("state", struct apf_neighbor, state, states),
    {0},
};

/* An array of objects of `size` bytes each; *ret is owned. Null elements are skipped, as Go does.
 */
static int read_objects(struct where *w, struct json_object *v, const struct field *fields,
                        size_t size, size_t max, void **ret, size_t *ret_n)
{
    size_t n;

    if (!json_object_is_type(v, json_type_array))
        return type_error(w, v, "an array");
    n = json_object_array_length(v);
    if (n > max)
        return refuse(w, "has %zu elements; at most %zu are allowed", n, max);
    *ret = xcalloc(n, size);
    for (size_t i = 0; i < n; i++) {
        struct json_object *o = json_object_array_get_idx(v, i);
        size_t old = enter(w, NULL, i);
        int r = o ? read_object(w, fields, o, (char *)*ret + *ret_n * size) : 0;

        if (r < 0)
            return r;
        *ret_n += o != NULL;
        leave(w, old);
    }
    return 0;
}

static int write_objects(struct where *w, const struct field *fields, size_t size, size_t max,
                         const void *items, size_t n, struct json_object **ret)
{
    struct json_object *array;

    if (n > max)
        return refuse(w, "has %zu elements; at most %zu are allowed", n, max);
    array = json_object_new_array();
    for (size_t i = 0; i < n; i++) {
        struct json_object *o = NULL;
        size_t old = enter(w, NULL, i);
        int r = write_object(w, fields, (const char *)items + i * size, &o);

        if (r < 0) {
            json_put(array);
            return r;
        }
        json_object_array_add(array, o);
        leave(w, old);
    }
    *ret = array;
    return 0;
}

/* These three stand at offset 0 of the network: an array and its length are two members. */
static int routes_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    struct apf_network *net = to;

    return read_objects(w, v, route_fields, sizeof(*net->routes), f->max, (void **)&net->routes,
                        &net->n_routes);
}

static int routes_write(struct where *w, const struct field *f, const void *from,
                        struct json_object **ret)
{
    const struct apf_network *net = from;

    return write_objects(w, route_fields, sizeof(*net->routes), f->max, net->routes, net->n_routes,
                         ret);
}

static const struct kind kind_routes = {routes_read, routes_write};

static int neighbors_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    struct apf_network *net = to;

    return read_objects(w, v, neighbor_fields, sizeof(*net->neighbors), f->max,
                        (void **)&net->neighbors, &net->n_neighbors);
}

static int neighbors_write(struct where *w, const struct field *f, const void *from,
                           struct json_object **ret)
{
    const struct apf_network *net = from;

    return write_objects(w, neighbor_fields, sizeof(*net->neighbors), f->max, net->neighbors,
                         net->n_neighbors, ret);
}

static const struct kind kind_neighbors = {neighbors_read, neighbors_write};

static const struct field podip_element = PREFIX("podips", struct apf_network, podip);

static int podips_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    struct apf_network *net = to;

    if (!json_object_is_type(v, json_type_array))
        return type_error(w, v, "an array");
    if (json_object_array_length(v) > f->max)
        return refuse(w, "has %zu elements; at most %zu are allowed", json_object_array_length(v),
                      f->max);
    for (size_t i = 0; i < json_object_array_length(v); i++) {
        struct json_object *o = json_object_array_get_idx(v, i);
        size_t old = enter(w, NULL, i);
        int r = text_read(w, &podip_element, o, net->podips[net->n_podips]);

        if (r < 0)
            return r;
        net->n_podips += net->podips[net->n_podips][0] != 0;
        leave(w, old);
    }
    return 0;
}

static int podips_write(struct where *w, const struct field *f, const void *from,
                        struct json_object **ret)
{
    const struct apf_network *net = from;

    if (net->n_podips == 0)
        return 0;
    if (net->n_podips > f->max)
        return refuse(w, "has %zu elements; at most %zu are allowed", net->n_podips, f->max);
    *ret = json_object_new_array();
    for (size_t i = 0; i < net->n_podips; i++) {
        struct json_object *o = NULL;
        size_t old = enter(w, NULL, i);
        int r = text_write(w, &podip_element, net->podips[i], &o);

        if (r < 0) {
            json_put(TAKE_PTR(*ret));
            return r;
        }
        json_object_array_add(*ret, o);
        leave(w, old);
    }
    return 0;
}

static const struct kind kind_podips = {podips_read, podips_write};

/* ---- pod-network ---- */

#define VNI_MAX 0xffffff

static const struct field network_fields[] = {
    PREFIX("podip", struct apf_network, podip),
    {"podips", &kind_podips, 0, APF_PODIPS_MAX, NULL, NULL, NULL},
    HW_ADDR("pod-hw-addr", struct apf_network, pod_hw_addr),
    IFNAME("interface", struct apf_network, interface),
    PREFIX("worker-node-ip", struct apf_network, worker_node_ip),
    WORD("tunnel-type", struct apf_network, tunnel_type, tunnel_types),
    {"routes", &kind_routes, 0, APF_ROUTES_MAX, NULL, NULL, NULL},
    {"neighbors", &kind_neighbors, 0, APF_NEIGHBORS_MAX, NULL, NULL, NULL},
    PLAIN("mtu", kind_number, struct apf_network, mtu, 65536),
    PLAIN("index", kind_number, struct apf_network, index, INT32_MAX),
    PLAIN("vxlan-port", kind_optional, struct apf_network, vxlan_port, 65535),
    PLAIN("vxlan-id", kind_optional, struct apf_network, vxlan_id, VNI_MAX),
    PLAIN("dedicated", kind_bool, struct apf_network, dedicated, 0),
    PLAIN("external-net-via-pod-vm", kind_bool, struct apf_network, external_net_via_pod_vm, 0),
    ADDRESS("metadata-address", struct apf_network, metadata_address),
    {0},
};

static int network_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    struct apf *apf = to;

    (void)f;
    apf->has_network = true;
    return read_object(w, network_fields, v, &apf->network);
}

static int network_write(struct where *w, const struct field *f, const void *from,
                         struct json_object **ret)
{
    const struct apf *apf = from;

    (void)f;
    return apf->has_network ? write_object(w, network_fields, &apf->network, ret) : 0;
}

static const struct kind kind_network = {network_read, network_write};

/* ---- the document ---- */

static int ciphers_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    char **list;
    size_t n;

    if (!json_object_is_type(v, json_type_array))
        return type_error(w, v, "an array");
    n = json_object_array_length(v);
    if (n > f->max)
        return refuse(w, "has %zu elements; at most %zu are allowed", n, f->max);
    if (n == 0)
        return 0;
    list = *(char ***)to = xcalloc(n + 1, sizeof(*list));
    for (size_t i = 0; i < n; i++) {
        size_t old = enter(w, NULL, i);
        const char *s = NULL;
        int r = get_text(w, json_object_array_get_idx(v, i), CIPHER_NAME_MAX, &s);

        if (r < 0)
            return r;
        list[i] = xstrdup(s);
        leave(w, old);
    }
    return 0;
}

static int ciphers_write(struct where *w, const struct field *f, const void *from,
                         struct json_object **ret)
{
    char *const *list = *(char **const *)from;
    size_t n = list ? strv_len(list) : 0;

    if (n > f->max)
        return refuse(w, "has %zu elements; at most %zu are allowed", n, f->max);
    for (size_t i = 0; i < n; i++)
        if (strlen(list[i]) > CIPHER_NAME_MAX)
            return refuse(w, "has a name longer than %d bytes", CIPHER_NAME_MAX);
    if (n)
        *ret = json_object_new_array();
    for (size_t i = 0; i < n; i++)
        json_object_array_add(*ret, json_object_new_string(list[i]));
    return 0;
}

static const struct kind kind_ciphers = {ciphers_read, ciphers_write};

static int tunnel_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    const char *s = NULL;
    int r = get_text(w, v, f->max, &s);

    if (r < 0)
        return r;
    if (*s && !str_eq(s, NATIVE_WORD))
        return refuse(w, "is \"%s\"; allowed is " NATIVE_WORD, s);
    *(enum apf_tunnel *)to = *s ? APF_TUNNEL_NATIVE : APF_TUNNEL_UPSTREAM;
    return 0;
}

static int tunnel_write(struct where *w, const struct field *f, const void *from,
                        struct json_object **ret)
{
    (void)w;
    (void)f;
    if (*(const enum apf_tunnel *)from == APF_TUNNEL_NATIVE)
        *ret = json_object_new_string(NATIVE_WORD);
    return 0;
}

static const struct kind kind_tunnel = {tunnel_read, tunnel_write};

#define SECRET_ALLOWED "must be %d to %d hexadecimal digits, an even number"

static int secret_read(struct where *w, const struct field *f, struct json_object *v, void *to)
{
    struct apf *apf = to;
    const char *s = NULL;
    int r = get_text(w, v, f->max, &s);

    if (r < 0 || !*s)
        return r;
    if (strlen(s) % 2 || strlen(s) < 2 * APF_SECRET_MIN ||
        str_unhex(s, apf->enrolment_secret, strlen(s) / 2) < 0)
        return refuse(w, SECRET_ALLOWED, 2 * APF_SECRET_MIN, 2 * APF_SECRET_MAX);
    apf->enrolment_secret_len = strlen(s) / 2;
    return 0;
}

static int secret_write(struct where *w, const struct field *f, const void *from,
                        struct json_object **ret)
{
    const struct apf *apf = from;
    char hex[2 * APF_SECRET_MAX + 1];
    size_t n = apf->enrolment_secret_len;

    (void)f;
    if (n == 0)
        return 0;
    if (n < APF_SECRET_MIN || n > APF_SECRET_MAX)
        return refuse(w, SECRET_ALLOWED, 2 * APF_SECRET_MIN, 2 * APF_SECRET_MAX);
    str_hex(apf->enrolment_secret, n, hex);
    *ret = json_object_new_string(hex);
    secret_wipe(hex, sizeof(hex));
    return 0;
}

static const struct kind kind_secret = {secret_read, secret_write};

static const struct field apf_fields[] = {
    {"pod-network", &kind_network, 0, 0, NULL, NULL, NULL},
    PLAIN("pod-namespace", kind_owned, struct apf, pod_namespace, APF_NAME_MAX),
    PLAIN("pod-name", kind_owned, struct apf, pod_name, APF_NAME_MAX),
    PLAIN("tls-server-key", kind_owned, struct apf, tls_server_key, APF_PEM_MAX),
    PLAIN("tls-server-cert", kind_owned, struct apf, tls_server_cert, APF_PEM_MAX),
    PLAIN("tls-client-ca", kind_owned, struct apf, tls_client_ca, APF_PEM_MAX),
    PLAIN("tls-min-version", kind_owned, struct apf, tls_min_version, TLS_VERSION_MAX),
    PLAIN("tls-cipher-suites", kind_ciphers, struct apf, tls_cipher_suites, APF_CIPHER_SUITES_MAX),
    PLAIN("tunnel", kind_tunnel, struct apf, tunnel, APF_WORD_SIZE),
    {"sandbox-id", &kind_text, offsetof(struct apf, sandbox_id), APF_SANDBOX_ID_SIZE, NULL,
     check_sandbox_id, "a sandbox id is expected"},
    {"enrolment-secret", &kind_secret, 0, 2 * APF_SECRET_MAX, NULL, NULL, NULL},
    {0},
};

/* Our three keys mean something together only. */
static int check_native(const struct apf *apf, struct err *err)
{
    bool native = apf->tunnel == APF_TUNNEL_NATIVE;

    if (native == (apf->sandbox_id[0] != 0) && native == (apf->enrolment_secret_len != 0))
        return 0;
    return err_set(err, -EINVAL,
                   "apf.json: tunnel \"" NATIVE_WORD "\", sandbox-id and enrolment-secret go "
                   "together; %s missing",
                   !native               ? "tunnel is"
                   : !apf->sandbox_id[0] ? "sandbox-id is"
                                         : "enrolment-secret is");
}

int apf_build(const struct apf *apf, char **ret, size_t *ret_len, struct err *err)
{
    struct where w = {.err = err};
    struct json_object *o = NULL;
    const char *text;
    size_t len;
    int r = check_native(apf, err);

    if (r == 0)
        r = write_object(&w, apf_fields, apf, &o);
    if (r < 0)
        return r;
    text = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
    if (len + 1 > APF_JSON_MAX) {
        json_put(o);
        return err_set(err, -E2BIG, "apf.json takes %zu bytes; at most %u are allowed", len + 1,
                       APF_JSON_MAX);
    }
    *ret = str_asprintf("%s\n", text);
    *ret_len = len + 1;
    json_put(o);
    return 0;
}

int apf_parse(const char *text, size_t len, struct apf *ret, struct err *err)
{
    struct where w = {.err = err};
    struct json_object *o = NULL;
    struct apf apf = {0};
    int r;

    if (len > APF_JSON_MAX)
        return err_set(err, -E2BIG, "apf.json is %zu bytes long; at most %u are allowed", len,
                       APF_JSON_MAX);
    r = json_parse(text, len, &o, err);
    if (r < 0)
        return err_wrap(err, r, "reading apf.json");
    if (!json_object_is_type(o, json_type_object))
        r = err_set(err, -EINVAL, "apf.json: an object is expected");
    else
        r = read_object(&w, apf_fields, o, &apf);
    json_put(o);
    if (r == 0)
        r = check_native(&apf, err);
    if (r < 0)
        apf_done(&apf);
    else
        *ret = apf;
    return r;
}

void apf_done(struct apf *apf)
{
    free(apf->network.routes);
    free(apf->network.neighbors);
    free(apf->pod_namespace);
    free(apf->pod_name);
    if (apf->tls_server_key)
        secret_wipe(apf->tls_server_key, strlen(apf->tls_server_key));
    free(apf->tls_server_key);
    free(apf->tls_server_cert);
    free(apf->tls_client_ca);
    free(apf->tls_min_version);
    strv_free(apf->tls_cipher_suites);
    secret_wipe(apf, sizeof(*apf));
}
