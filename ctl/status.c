/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `status` and `inspect`.
 *
 * Both ask the daemon over control.sock. When it does not answer they read the records that it has
 * left in the pods directory and say so: the operator who needs this most has a daemon that does
 * not run. Either way a sandbox becomes one JSON object with the same keys (those of
 * control.proto), and the table is made from that: one way to show things.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/str.h"
#include "control.pb-c.h"
#include "ctl/ctl.h"
#include "wire/ttrpc_client.h"

#define CALL_TIMEOUT_MS 10000
#define CONNECT_TIMEOUT_MS 2000
#define RECORD_MAX (1U << 20)
#define SANDBOXES_MAX 100000
#define CELL_MAX 64

struct config {
    char *control, *pods_dir, *output;
    bool help;
};

static const char *const outputs[] = {"table", "json", NULL};
/* inspect has all but the first. */
static const struct opt options[] = {
    {.flag = "o",
     .offset = offsetof(struct config, output),
     .def = "table",
     .choices = outputs,
     .help = "form of the output"},
    {.flag = "control-socket",
     .offset = offsetof(struct config, control),
     .def = CTL_CONTROL_SOCKET,
     .help = "the daemon's control socket"},
    {.flag = "pods-dir",
     .offset = offsetof(struct config, pods_dir),
     .def = CTL_PODS_DIR,
     .help = "where to read the records when the daemon does not answer"},
    {.flag = "help",
     .type = OPT_BOOL,
     .offset = offsetof(struct config, help),
     .help = "this text"},
    OPT_END,
};

/* -------- messages to JSON -------- */

enum kind { TEXT, U64, I64, U32, FLAG };
struct key {
    const char *name;
    enum kind kind;
    size_t offset;
};

#define SANDBOX(name, kind)                                                                        \
    {                                                                                              \
#name, kind, offsetof(Peerpod__SandboxStatus, name)                                        \
    }
static const struct key sandbox_keys[] = {
    SANDBOX(id, TEXT),
    SANDBOX(pod, TEXT),
    {"namespace", TEXT, offsetof(Peerpod__SandboxStatus, namespace_)},
    SANDBOX(state, TEXT),
    SANDBOX(instance_id, TEXT),
    SANDBOX(instance_name, TEXT),
    SANDBOX(instance_type, TEXT),
    SANDBOX(address, TEXT),
    SANDBOX(tunnel, TEXT),
    SANDBOX(reconnects, U64),
    SANDBOX(shim_connections, U32),
    SANDBOX(bytes_in, U64),
    SANDBOX(bytes_out, U64),
    SANDBOX(created_unix_ms, I64),
    SANDBOX(started_unix_ms, I64),
    SANDBOX(generation, U64),
    SANDBOX(netns, TEXT),
    SANDBOX(agent_socket, TEXT),
    SANDBOX(waits_for, TEXT),
    SANDBOX(last_error, TEXT),
};

#define DAEMON(name, kind)                                                                         \
    {                                                                                              \
#name, kind, offsetof(Peerpod__DaemonInfo, name)                                           \
    }
static const struct key daemon_keys[] = {
    DAEMON(version, TEXT), DAEMON(provider, TEXT),         DAEMON(generation, U64),
    DAEMON(pid, I64),      DAEMON(started_unix_ms, I64),   DAEMON(keeper, FLAG),
    DAEMON(boot_id, TEXT), DAEMON(forwarder_compat, TEXT),
};

static struct json_object *message_json(const void *message, const struct key *keys, size_t n)
{
    struct json_object *o = json_object_new_object();

    for (const struct key *k = keys; k < keys + n; k++) {
        const void *field = (const char *)message + k->offset;

        if (k->kind == TEXT)
            json_add_string(o, k->name, *(char *const *)field);
        else if (k->kind == U64)
            json_add_i64(o, k->name, (int64_t)MIN(*(const uint64_t *)field, (uint64_t)INT64_MAX));
        else if (k->kind == I64)
            json_add_i64(o, k->name, *(const int64_t *)field);
        else if (k->kind == U32)
            json_add_i64(o, k->name, *(const uint32_t *)field);
        else
            json_add_bool(o, k->name, *(const protobuf_c_boolean *)field != 0);
    }
    return o;
}

static int daemon_call(const struct config *c, const char *method, const ProtobufCMessage *request,
                       const ProtobufCMessageDescriptor *reply, ProtobufCMessage **ret,
                       struct err *err)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *client = NULL;
    int r = ttrpc_client_connect(c->control, CONNECT_TIMEOUT_MS, &client, err);

    return r < 0 ? r
                 : ttrpc_client_call(client, "peerpod.Control", method, request, reply,
                                     CALL_TIMEOUT_MS, ret, NULL, err);
}

static int daemon_status(const struct config *c, struct json_object **ret, struct err *err)
{
    Peerpod__StatusRequest q = PEERPOD__STATUS_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    int r = daemon_call(c, "Status", &q.base, &peerpod__status_response__descriptor, &m, err);

    if (r < 0)
        return r;
    const Peerpod__StatusResponse *s = (const Peerpod__StatusResponse *)m;
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();
    if (s->daemon)
        json_object_object_add(o, "daemon",
                               message_json(s->daemon, daemon_keys, ARRAY_SIZE(daemon_keys)));
    for (size_t i = 0; i < s->n_sandboxes; i++)
        json_object_array_add(
            list, message_json(s->sandboxes[i], sandbox_keys, ARRAY_SIZE(sandbox_keys)));
    json_object_object_add(o, "sandboxes", list);
    protobuf_c_message_free_unpacked(m, NULL);
    *ret = o;
    return 0;
}

/* -------- records -------- */

static struct json_object *record_json(const char *dir, const char *id, struct err *err)
{
    _cleanup_free_ char *path = str_asprintf("%s/%s/sandbox.json", dir, id), *text = NULL;
    struct json_object *o = NULL, *addresses;
    size_t len;

    if (fs_read(AT_FDCWD, path, RECORD_MAX, &text, &len, err) < 0 ||
        json_parse(text, len, &o, err) < 0)
        return NULL;
    if (!json_object_is_type(o, json_type_object)) {
        json_put(o);
        err_set(err, -EBADMSG, "%s is not an object", path);
        return NULL;
    }
    if (json_get_array(o, "addresses", &addresses, NULL) == 0 &&
        json_object_array_length(addresses) > 0)
        json_add_string(o, "address",
                        json_object_get_string(json_object_array_get_idx(addresses, 0)));
    if (!json_object_object_get(o, "id"))
        json_add_string(o, "id", id);
    return o;
}

/* What is unreadable is shown with its error rather than left out. */
static struct json_object *record_entry(const char *dir, const char *id)
{
    struct err err = ERR_INIT;
    struct json_object *o = record_json(dir, id, &err);

    if (o)
        return o;
    o = json_object_new_object();
    json_add_string(o, "id", id);
    json_add_string(o, "state", "unreadable");
    json_add_string(o, "last_error", err_text(&err));
    return o;
}

static int records_status(const char *dir, struct json_object **ret, struct err *err)
{
    DIR *d = opendir(dir ? dir : "");
    const char *why;

    if (!d)
        return err_errno(err, -errno, "reading the records in %s", dir);
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();
    for (struct dirent *e; (e = readdir(d)) && json_object_array_length(list) < SANDBOXES_MAX;)
        if (str_check_sandbox_id(e->d_name, &why) == 0)
            json_object_array_add(list, record_entry(dir, e->d_name));
    closedir(d);
    json_object_object_add(o, "sandboxes", list);
    *ret = o;
    return 0;
}

/* -------- the table -------- */

static const char *text_of(struct json_object *o, const char *key)
{
    const char *s;

    return json_get_string(o, key, &s, NULL) == 0 && *s ? s : "-";
}

static int64_t number_of(struct json_object *o, const char *key)
{
    int64_t n;

    return json_get_i64(o, key, &n, NULL) == 0 ? n : 0;
}

static void age_format(int64_t since_ms, char out[CELL_MAX])
{
    int64_t s = since_ms > 0 ? MAX(clock_real_ms() - since_ms, 0) / 1000 : -1;

    if (s < 0)
        snprintf(out, CELL_MAX, "-");
    else if (s < 120)
        snprintf(out, CELL_MAX, "%llds", (long long)s);
    else if (s < 7200)
        snprintf(out, CELL_MAX, "%lldm", (long long)s / 60);
    else if (s < 172800)
        snprintf(out, CELL_MAX, "%lldh", (long long)s / 3600);
    else
        snprintf(out, CELL_MAX, "%lldd", (long long)s / 86400);
}

static void bytes_format(int64_t n, char out[CELL_MAX])
{
    static const char units[] = "BKMGTPE";
    double v = (double)n;
    size_t u = 0;

    while (v >= 1000 && units[u + 1]) {
        v /= 1024;
        u++;
    }
    snprintf(out, CELL_MAX, u == 0 || v >= 100 ? "%.0f%c" : "%.1f%c", v, units[u]);
}

enum column {
    SANDBOX_ID,
    POD,
    STATE,
    INSTANCE,
    ADDRESS,
    TUNNEL,
    BYTES_IN,
    BYTES_OUT,
    AGE,
    COLUMNS
};
static const char *const titles[COLUMNS] = {"SANDBOX", "POD", "STATE", "INSTANCE", "ADDRESS",
                                            "TUNNEL",  "IN",  "OUT",   "AGE"};
typedef char row[COLUMNS][CELL_MAX];

/* A text for people: no control characters of others on their terminal. */
static void cell_copy(char out[CELL_MAX], const char *text)
{
    size_t i = 0;

    for (; text[i] && i < CELL_MAX - 1; i++)
        out[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    out[i] = '\0';
}

static void row_fill(row r, struct json_object *o)
{
    _cleanup_free_ char *pod = str_asprintf("%s/%s", text_of(o, "namespace"), text_of(o, "pod"));
    const char *instance = text_of(o, "instance_name");

    cell_copy(r[SANDBOX_ID], text_of(o, "id"));
    r[SANDBOX_ID][12] = '\0';
    cell_copy(r[POD], pod);
    cell_copy(r[STATE], text_of(o, "state"));
    cell_copy(r[INSTANCE], *instance == '-' ? text_of(o, "instance_id") : instance);
    cell_copy(r[ADDRESS], text_of(o, "address"));
    cell_copy(r[TUNNEL], text_of(o, "tunnel"));
    bytes_format(number_of(o, "bytes_in"), r[BYTES_IN]);
    bytes_format(number_of(o, "bytes_out"), r[BYTES_OUT]);
    age_format(number_of(o, "created_unix_ms"), r[AGE]);
}

static void table_show(struct json_object *list)
{
    size_t n = json_object_array_length(list), width[COLUMNS];
    _cleanup_free_ row *rows = xcalloc(n + 1, sizeof *rows);

    for (size_t k = 0; k < COLUMNS; k++)
        width[k] = strlen(titles[k]);
    for (size_t i = 0; i < n; i++) {
        row_fill(rows[i], json_object_array_get_idx(list, i));
        for (size_t k = 0; k < COLUMNS; k++)
            width[k] = MAX(width[k], strlen(rows[i][k]));
    }
    for (size_t k = 0; k < COLUMNS; k++)
        printf("%-*s  ", (int)width[k], titles[k]);
    puts("WAITS FOR, LAST ERROR");
    for (size_t i = 0; i < n; i++) {
        char error[CELL_MAX];

        for (size_t k = 0; k < COLUMNS; k++)
            printf("%-*s  ", (int)width[k], rows[i][k]);
        struct json_object *o = json_object_array_get_idx(list, i);
        const char *waits = text_of(o, "waits_for");
        cell_copy(error, !str_eq(waits, "-") ? waits : text_of(o, "last_error"));
        puts(error);
    }
}

static void daemon_show(struct json_object *status)
{
    struct json_object *d;
    char age[CELL_MAX];
    bool keeper = false;

    if (json_get_object(status, "daemon", &d, NULL) < 0)
        return;
    age_format(number_of(d, "started_unix_ms"), age);
    (void)json_get_bool(d, "keeper", &keeper, NULL);
    printf("cloud-api-adaptor %s, provider %s, generation %lld, up %s, %s\n", text_of(d, "version"),
           text_of(d, "provider"), (long long)number_of(d, "generation"), age,
           keeper ? "kept" : "WITHOUT A KEEPER: a restart ends the pods");
}

static void json_show(struct json_object *o)
{
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                               JSON_C_TO_STRING_NOSLASHESCAPE));
}

static int id_compare(const void *a, const void *b)
{
    struct json_object *x = *(struct json_object *const *)a, *y = *(struct json_object *const *)b;
    int64_t p = number_of(x, "created_unix_ms"), q = number_of(y, "created_unix_ms");

    return p != q ? (p > q) - (p < q) : strcmp(text_of(x, "id"), text_of(y, "id"));
}

static int status_show(const struct config *c)
{
    struct err err = ERR_INIT, second = ERR_INIT;
    _cleanup_(json_putp) struct json_object *status = NULL;
    struct json_object *list;
    bool answered = daemon_status(c, &status, &err) == 0;

    if (!answered) {
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
        if (records_status(c->pods_dir, &status, &second) < 0) {
            fprintf(stderr, "peerpodctl: %s\n", err_text(&second));
            return CTL_FAILED;
        }
        fprintf(stderr,
                "peerpodctl: the daemon does not answer: this is what its records in %s "
                "say, which may be out of date\n",
                c->pods_dir);
    }
    json_object_object_add(status, "daemon_answers", json_object_new_boolean(answered));
    if (json_get_array(status, "sandboxes", &list, NULL) == 0)
        json_object_array_sort(list, id_compare);
    if (str_eq(c->output, "json")) {
        json_show(status);
    } else {
        daemon_show(status);
        table_show(list);
    }
    return answered ? 0 : CTL_FAILED;
}

int ctl_status(char *const *argv)
{
    struct config c = {0};
    struct opt_set sets[] = {{.title = "status", .opts = options, .target = &c}, {0}};
    int status = 0;

    if (ctl_parse(sets, argv, "status [-o table|json]",
                  "Lists the daemon and its sandboxes. When the daemon does not answer, what its\n"
                  "records say, and the exit status is 1.",
                  &c.help, NULL, &status) == 0)
        status = status_show(&c);
    opt_done(sets);
    return status;
}

/* -------- inspect -------- */

static int inspect_daemon(const struct config *c, const char *id, struct json_object **ret,
                          bool *ret_answered, struct err *err)
{
    Peerpod__InspectRequest q = PEERPOD__INSPECT_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    struct json_object *record = NULL;

    q.id = (char *)(uintptr_t)id;
    int r = daemon_call(c, "Inspect", &q.base, &peerpod__inspect_response__descriptor, &m, err);
    *ret_answered = r == 0 || r == -EREMOTEIO;
    if (r < 0)
        return r;
    const Peerpod__InspectResponse *s = (const Peerpod__InspectResponse *)m;
    struct json_object *o = s->sandbox
                                ? message_json(s->sandbox, sandbox_keys, ARRAY_SIZE(sandbox_keys))
                                : json_object_new_object();
    if (!str_empty(s->record) && json_parse(s->record, strlen(s->record), &record, NULL) == 0)
        json_object_object_add(o, "record", record);
    protobuf_c_message_free_unpacked(m, NULL);
    *ret = o;
    return 0;
}

static int inspect_records(const struct config *c, const char *id, struct json_object **ret,
                           struct err *err)
{
    _cleanup_(json_putp) struct json_object *status = NULL;
    struct json_object *list, *found = NULL;
    int r = records_status(c->pods_dir, &status, err);

    if (r < 0 || (r = json_get_array(status, "sandboxes", &list, err)) < 0)
        return r;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *o = json_object_array_get_idx(list, i);

        if (!str_starts(text_of(o, "id"), id))
            continue;
        if (found)
            return err_set(err, -EINVAL, "more than one sandbox begins with %.64s", id);
        found = o;
    }
    if (!found)
        return err_set(err, -ENOENT, "no sandbox begins with %.64s", id);
    *ret = json_object_get(found);
    return 0;
}

static int inspect_show(const struct config *c, const char *id)
{
    _cleanup_(json_putp) struct json_object *o = NULL;
    struct err err = ERR_INIT, second = ERR_INIT;
    bool answered;

    if (inspect_daemon(c, id, &o, &answered, &err) < 0) {
        fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
        if (answered)
            return CTL_FAILED;
        if (inspect_records(c, id, &o, &second) < 0) {
            fprintf(stderr, "peerpodctl: %s\n", err_text(&second));
            return CTL_FAILED;
        }
        fprintf(stderr, "peerpodctl: the daemon does not answer: this is its record\n");
    }
    json_show(o);
    return answered ? 0 : CTL_FAILED;
}

int ctl_inspect(char *const *argv)
{
    static const char synopsis[] = "inspect ID";
    struct config c = {0};
    struct opt_set sets[] = {{.title = "inspect", .opts = options + 1, .target = &c}, {0}};
    _cleanup_free_ char **rest = NULL;
    int status = 0;

    if (ctl_parse(sets, argv, synopsis,
                  "Shows one sandbox and its record as JSON. ID is its id or any beginning of it\n"
                  "that only one sandbox has.",
                  &c.help, &rest, &status) == 0) {
        if (strv_len(rest) != 1 || str_empty(rest[0])) {
            fprintf(stderr, "peerpodctl: inspect needs one ID\nusage: peerpodctl %s\n", synopsis);
            status = CTL_USAGE;
        } else {
            status = inspect_show(&c, rest[0]);
        }
    }
    opt_done(sets);
    return status;
}

int ctl_logs(char *const *argv)
{
    if (argv[0] && (str_eq(argv[0], "--help") || str_eq(argv[0], "-help"))) {
        puts("usage: peerpodctl logs ID\n\nReserved: the log of a pod VM's guest programs.");
        return 0;
    }
    fputs("peerpodctl: logs is reserved and does nothing yet: this version's tunnel carries no "
          "guest logs. A container's own output is in `kubectl logs`, the provider's console log "
          "has the rest\n",
          stderr);
    return CTL_FAILED;
}
