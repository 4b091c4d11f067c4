/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pod's network in the course of StartVM: two jobs around podnet.c.
 *
 *   before user data   inspect: what the VM is told (apf.json)
 *   behind the address inspect again and set up: the link to the VM. Again, because a new process
 *                      that goes on with a StartVM has nothing but the record.
 *
 * The VXLAN id is the sandbox's from StartVM until its directory goes, which is behind teardown
 * (stop.c): it is in the record before anything uses it, and no two records of this node have the
 * same. Ids go round instead of the lowest free one being taken: where something foreign holds an
 * id (links of a Go daemon before us, or of pods whose state was lost), the next try gets another. Such
 * ids come in runs, so it gets one well behind: each try is a failed StartVM.
 *
 * Nothing is repeated while the pod runs: link and filters live in the kernel, whatever becomes of
 * this process.
 */
#include <errno.h>

#include "adaptor/podnet.h"
#include "adaptor/sandbox.h"
#include "base/log.h"

#define VNI_END (1U << 24)
#define FOREIGN_RUN 64U

struct net_job {
    struct adaptor *adaptor; /* loop only */
    char token[RECORD_TOKEN_LEN + 1];
    char netns[sizeof(((struct record *)0)->netns)];
    struct podnet_config config;
    struct instance instance; /* set up: its addresses */
    bool setup;
    sandbox_network_fn *next; /* loop only */
    struct apf apf;           /* out: its network */
    int result;
    struct err err;
};

static bool vni_taken(const struct adaptor *a, uint32_t vni)
{
    for (const struct sandbox *sb = a->sandboxes; sb; sb = sb->next)
        if (sb->record.vxlan_id == vni)
            return true;
    return false;
}

int sandbox_network_reserve(struct sandbox *sb, struct err *err)
{
    struct adaptor *a = sb->adaptor;
    uint32_t min = (uint32_t)a->config->vxlan_min_id, range = VNI_END - min;
    if (sb->record.vxlan_id)
        return 0;
    for (uint32_t i = 0; i < MIN(range, a->n_sandboxes + 1); i++) {
        uint32_t vni = min + a->next_vxlan++ % range;
        if (vni_taken(a, vni))
            continue;
        sb->record.vxlan_id = vni;
        return 0;
    }
    return err_set(err, -ENOSPC, "all VXLAN ids from %u (-vxlan-min-id) are in use", min);
}

static void run(struct job *job, void *arg)
{
    struct net_job *j = arg;
    const char *addresses[INSTANCE_ADDRESSES_MAX];
    struct net_address remote;
    (void)job;
    j->result = podnet_inspect(&j->config, &j->apf.network, &j->err);
    if (j->result < 0 || !j->setup)
        return;
    for (size_t i = 0; i < j->instance.n_addresses; i++)
        addresses[i] = j->instance.addresses[i];
    j->result =
        podnet_remote(&j->apf.network, addresses, j->instance.n_addresses, &remote, &j->err);
    if (j->result == 0)
        j->result = podnet_setup(j->netns, &j->apf.network, &remote, &j->err);
}

static void done(void *arg, bool ran)
{
    struct net_job *j = arg;
    struct sandbox *sb = sandbox_find_token(j->adaptor, j->token);
    struct err err = ERR_INIT;
    sb->job = NULL;
    if (sb->adaptor->ending) {
        /* the next process goes on from the record */
    } else if (sb->record.state == SANDBOX_DELETING) {
        sandbox_delete_continue(sb);
    } else if (!ran || j->result < 0) {
        if (!ran)
            err_set(&j->err, -ECANCELED, "the job of the pod's network did not run");
        if (j->result == -EEXIST)
            sb->adaptor->next_vxlan += FOREIGN_RUN;
        sandbox_start_fail(sb, "network", &j->err);
    } else {
        sb->netns_seen = true;
        memcpy(sb->record.pod_interface, j->apf.network.interface,
               sizeof(sb->record.pod_interface));
        if (j->next(sb, &j->apf, &err) < 0)
            sandbox_start_fail(sb, "start", &err);
    }
    apf_done(&j->apf);
    free(j);
}

int sandbox_network_begin(struct sandbox *sb, bool setup, sandbox_network_fn *next, struct err *err)
{
    const struct adaptor_config *config = sb->adaptor->config;
    struct net_job *j = xcalloc(1, sizeof(*j));
    j->adaptor = sb->adaptor;
    memcpy(j->token, sb->record.token, sizeof(j->token));
    memcpy(j->netns, sb->record.netns, sizeof(j->netns));
    j->instance = sb->record.instance;
    j->setup = setup;
    j->next = next;
    j->config = (struct podnet_config){
        .netns = j->netns,
        .host_interface = config->host_interface,
        .metadata_address = config->pod_metadata_address,
        .pod_subnets = config->pod_subnet_cidrs,
        .index = sb->record.vxlan_id - MIN((uint32_t)config->vxlan_min_id, sb->record.vxlan_id),
        .vni = sb->record.vxlan_id,
        .port = (uint16_t)config->vxlan_port,
        .point_to_point = sb->adaptor->provider->type->point_to_point,
        .ipv4_only = sb->record.plain,
        .external_net_via_pod_vm = config->ext_network_via_podvm,
    };
    int r = job_start(sb->adaptor->jobs, JOB_CREATE, "network", 0, run, done, j, &sb->job, err);
    if (r < 0)
        free(j);
    return r;
}
