/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `orphans`: instances that carry this node's tags and belong to no sandbox, what the daemon does
 * about each and why, and the operator's word that they may go. Only the daemon can say: without it
 * there is nothing to read.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "control.pb-c.h"
#include "ctl/ctl.h"
#include "wire/ttrpc_client.h"

#define CALL_TIMEOUT_MS 10000
#define CONNECT_TIMEOUT_MS 2000

struct config {
    char *control, *output;
    bool delete, help;
};

static const char *const outputs[] = {"table", "json", NULL};
static const struct opt options[] = {
    {"o", NULL, OPT_STRING, offsetof(struct config, output), .def = "table", .choices = outputs,
     .help = "form of the output"},
    {"delete", NULL, OPT_BOOL, offsetof(struct config, delete),
     .help = "delete them now: the one of the ID given, or all"},
    {"control-socket", NULL, OPT_STRING, offsetof(struct config, control),
     .def = CTL_CONTROL_SOCKET, .help = "the daemon's control socket"},
    {"help", NULL, OPT_BOOL, offsetof(struct config, help), .help = "this text"},
    OPT_END,
};

static void show_json(const Peerpod__OrphansResponse *s)
{
    _cleanup_(json_putp) struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < s->n_orphans; i++) {
        struct json_object *o = json_object_new_object();
        json_add_string(o, "instance_id", s->orphans[i]->instance_id);
        json_add_string(o, "instance_name", s->orphans[i]->instance_name);
        json_add_string(o, "sandbox", s->orphans[i]->sandbox);
        json_add_string(o, "boot_id", s->orphans[i]->boot_id);
        json_add_i64(o, "first_seen_unix_ms", s->orphans[i]->first_seen_unix_ms);
        json_add_bool(o, "deleting", s->orphans[i]->deleting);
        json_add_string(o, "verdict", s->orphans[i]->verdict);
        json_object_array_add(list, o);
    }
    puts(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PRETTY));
}

static void show_table(const Peerpod__OrphansResponse *s)
{
    if (s->n_orphans == 0)
        puts("no orphans: each instance with this node's tags belongs to a sandbox");
    for (size_t i = 0; i < s->n_orphans; i++)
        printf("%s  %s\n    %s%s\n", s->orphans[i]->instance_id, s->orphans[i]->instance_name,
               s->orphans[i]->deleting ? "being deleted; " : "", s->orphans[i]->verdict);
    if (s->deleting)
        printf("%u deletions have begun\n", s->deleting);
}

static int ask(const struct config *c, const char *id, struct err *err)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *client = NULL;
    Peerpod__OrphansRequest q = PEERPOD__ORPHANS_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    q.delete_ = c->delete;
    q.id = (char *)(uintptr_t)(id ? id : "");
    int r = ttrpc_client_connect(c->control, CONNECT_TIMEOUT_MS, &client, err);
    if (r == 0)
        r = ttrpc_client_call(client, "peerpod.Control", "Orphans", &q.base,
                              &peerpod__orphans_response__descriptor, CALL_TIMEOUT_MS, &m, NULL,
                              err);
    if (r < 0)
        return r;
    const Peerpod__OrphansResponse *s = (const Peerpod__OrphansResponse *)m;
    if (!s->looked_unix_ms) /* which is not "none" */
        r = err_set(err, -EAGAIN, "not known yet: the daemon has not read the provider's list%s%s",
                    *s->trouble ? ": " : "", s->trouble);
    else if (*s->trouble)
        fprintf(stderr, "as of %lld s ago; since then the provider's list could not be read: %s\n",
                (long long)(clock_real_ms() - s->looked_unix_ms) / 1000, s->trouble);
    if (r == 0 && str_eq(c->output, "json"))
        show_json(s);
    else if (r == 0)
        show_table(s);
    if (r == 0 && id && c->delete &&s->deleting == 0)
        r = err_set(err, -ENOENT, "no orphan has the instance id %.200s", id);
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

int ctl_orphans(char *const *argv)
{
    static const char synopsis[] = "orphans [-o table|json] [-delete [INSTANCE-ID]]";
    struct config c = {0};
    struct err err = ERR_INIT;
    struct opt_set sets[] = {{.title = "orphans", .opts = options, .target = &c}, {0}};
    _cleanup_free_ char **rest = NULL;
    int status = 0;
    if (ctl_parse(sets, argv, synopsis,
                  "Lists instances at the provider that carry this node's tags and belong to no\n"
                  "sandbox, with what the daemon does about each and why.",
                  &c.help, &rest, &status) == 0) {
        if (strv_len(rest) > (c.delete ? 1U : 0U)) {
            fprintf(stderr, "peerpodctl: unexpected '%.64s'\nusage: peerpodctl %s\n",
                    rest[c.delete ? 1 : 0], synopsis);
            status = CTL_USAGE;
        } else if (ask(&c, rest[0], &err) < 0) {
            fprintf(stderr, "peerpodctl: %s\n", err_text(&err));
            status = CTL_FAILED;
        }
    }
    opt_done(sets);
    return status;
}
