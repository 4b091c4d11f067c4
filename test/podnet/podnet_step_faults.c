/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Step faults of the pod's network: set-up and teardown of both ends, in the VM with its second
 * interface and the metadata address as well, each outside step (netlink calls above all) failing and
 * killed, and pairs: a second fault while the first is cleaned up after. Afterwards, behind the
 * caller's teardown, the namespaces look as before, as iproute2 and nft show them.
 *
 * STEPFAULT_STRIDE=1: every step. Else one in three; the three builds of CI that test begin with
 * another one each (FIRST_STEP), so that together they take all.
 *
 * usage: podnet_step_faults [worker-up|worker-down|guest-up|guest-down
 *                            [fail|kill|fail+fail|kill+fail|kill+kill [FIRST]]]
 */
#include <errno.h>
#include <stdio.h>
#include <sys/mount.h>

#include "adaptor/podnet.h"
#include "base/log.h"
#include "base/str.h"
#include "forwarder/podnet.h"
#include "stepfault/stepfault.h"
#include "stepfault/world.h"

#define VNI 555000U
#define STRIDE 3
#define PAIR_STRIDE 61

static char pod[PATH_MAX], podns[PATH_MAX];
static const char *const nothing[] = {NULL};

struct subject {
    struct apf apf;
    struct podnet_guest guest;
};

static int die(const char *what)
{
    fprintf(stderr, "podnet_step_faults: %s\n", what);
    exit(1);
}

/* ---- the operations ---- */

static int worker_up(void *arg, struct err *err)
{
    const struct subject *s = arg;
    const char *const address = "198.18.0.3";
    struct net_address remote;
    struct apf inspected = {0};
    const struct podnet_config config = {
        .netns = pod, .host_interface = "under", .metadata_address = "", .vni = VNI, .port = 4789};
    int r = podnet_inspect(&config, &inspected.network, err);

    apf_done(&inspected);
    r = r < 0 ? r : podnet_remote(&s->apf.network, &address, 1, &remote, err);
    return r < 0 ? r : podnet_setup(pod, &s->apf.network, &remote, err);
}

static int worker_down(_unused_ void *arg, struct err *err)
{
    return podnet_teardown(pod, "eth0", VNI, err);
}

static int guest_up(void *arg, struct err *err)
{
    const struct subject *s = arg;

    return podnet_guest_setup(&s->apf.network, &s->guest, err);
}

static int guest_down(void *arg, struct err *err)
{
    const struct subject *s = arg;

    return podnet_guest_teardown(&s->apf.network, &s->guest, err);
}

/* What the callers do: a set-up that failed has undone itself already, one that was killed is taken
 * down by the next process. */
static int recover_worker_up(void *arg, int result, struct err *err)
{
    return result < 0 && result != -EOWNERDEAD ? 0 : worker_down(arg, err);
}

static int recover_guest_up(void *arg, int result, struct err *err)
{
    if (result < 0 && result != -EOWNERDEAD)
        return 0;
    int r = guest_up(arg, err); /* the forwarder starts again */
    return r < 0 ? r : guest_down(arg, err);
}

static int recover_worker_down(void *arg, _unused_ int result, struct err *err)
{
    int r = worker_down(arg, err);

    return r < 0 ? r : worker_up(arg, err);
}

static int recover_guest_down(void *arg, _unused_ int result, struct err *err)
{
    int r = guest_down(arg, err);

    return r < 0 ? r : guest_up(arg, err);
}

/* ---- the world, as iproute2 and nft see it ---- */

/* Sorted, less what the kernel chooses anew or changes in its own time. */
static char *snapshot(_unused_ void *arg)
{
    static const char look[] =
        "see() { echo \"-- $1\"; { "
        "printf 'link\naddr\nroute\nneigh show nud permanent\n' | nsenter --net=$1 ip -o -b -; "
        "nsenter --net=$1 ip -o -6 route; $2; } | sed -e 's/^[0-9]*: //' -e 's/@if[0-9]*//' "
        "-e '/^vxlan1/s/ether [0-9a-f:]*//' -e '/fe80/d' -e 's/index [0-9]* ref/ref/' | sort; }; "
        "filters() { printf 'qdisc\nfilter show dev eth0 parent ffff:\n"
        "filter show dev vxlan1 parent ffff:\n' | "
        "nsenter --net=/run/netns/pod tc -force -b - 2>/dev/null || :; }; "
        "see /proc/1/ns/net 'nft list ruleset'; see /run/netns/pod filters; see /run/netns/podns :";
    static char out[4 * 65536];
    _cleanup_free_ char *base = world_snapshot(nothing);
    FILE *f = popen(look, "re");
    size_t n = f ? fread(out, 1, sizeof(out) - 1, f) : 0;

    out[n] = '\0';
    if (!f || pclose(f) != 0)
        die("looking at the namespaces");
    if (getenv("STEPFAULT_SHOW"))
        fputs(out, stderr);
    return str_asprintf("%s%s", base, out);
}

/* ---- set-up ---- */

static void command(const char *text)
{
    if (system(text) != 0)
        die(text);
}

/* By iproute2: one namespace plays worker and VM, the way to the "VM" is a veth. */
static void make_world(struct subject *s)
{
    static const char json[] =
        "{\"pod-network\":{\"podip\":\"10.244.1.7/24\",\"podips\":[\"fd00:1::7/64\"],"
        "\"pod-hw-addr\":\"02:00:00:00:00:07\",\"interface\":\"eth0\",\"worker-node-ip\":"
        "\"198.18.0.3/31\",\"tunnel-type\":\"vxlan\",\"routes\":[{\"dst\":\"0.0.0.0/0\",\"gw\":"
        "\"10.244.1.1\",\"dev\":\"eth0\"},{\"dst\":\"10.244.1.0/24\",\"dev\":\"eth0\",\"scope\":"
        "\"link\",\"protocol\":\"kernel\"},{\"dst\":\"::/0\",\"gw\":\"fe80::1\",\"dev\":\"eth0\"}],"
        "\"neighbors\":[{\"ip\":\"10.244.1.1\",\"dev\":\"eth0\",\"hw-addr\":\"02:00:00:00:00:01\","
        "\"state\":\"permanent\"}],\"mtu\":1450,\"index\":0,\"vxlan-id\":555000,"
        "\"external-net-via-pod-vm\":true}}";
    struct err err = ERR_INIT;

    command("mount -t tmpfs tmpfs /run && ip link set lo up && ip netns add pod && "
            "ip netns add podns && ip -n podns link set lo up && "
            "ip link add under type veth peer name over && ip link set over up && "
            "ip addr add 198.18.0.2/31 dev under && ip link set under up && "
            "ip -n pod link add eth0 type veth peer name gw && ip -n pod link set gw up && "
            "ip -n pod addr add 10.244.1.7/24 dev eth0 && ip -n pod link set eth0 up && "
            "ip -n pod route add default via 10.244.1.1 && "
            "ip route add default via 198.18.0.3 dev under && "
            "ip link add ext type veth peer name beyond && ip link set beyond up && "
            "ip addr add 203.0.113.7/24 dev ext && ip addr add 2001:db8::7/64 dev ext nodad && "
            "ip link set ext up && "
            "ip route add default via 203.0.113.1 dev ext metric 200 proto dhcp");
    (void)snprintf(pod, sizeof(pod), "/run/netns/pod");
    (void)snprintf(podns, sizeof(podns), "/run/netns/podns");
    if (apf_parse(json, strlen(json), &s->apf, &err) < 0)
        die(err.text);
    s->guest = (struct podnet_guest){
        .netns = podns, .host_interface = "", .metadata = "169.254.169.254", .wait_ms = 5000};
}

static const struct operation {
    const char *word;
    int (*run)(void *arg, struct err *err);
    int (*recover)(void *arg, int result, struct err *err);
    int (*before)(void *arg, struct err *err); /* what a teardown takes down */
} operations[] = {
    {"worker-up", worker_up, recover_worker_up, NULL},
    {"worker-down", worker_down, recover_worker_down, worker_up},
    {"guest-up", guest_up, recover_guest_up, NULL},
    {"guest-down", guest_down, recover_guest_down, guest_up},
};

static const struct faults {
    const char *word;
    enum stepfault_mode mode, pair;
} faults[] = {
    {"fail", STEPFAULT_FAIL, STEPFAULT_OFF},       {"kill", STEPFAULT_KILL, STEPFAULT_OFF},
    {"fail+fail", STEPFAULT_FAIL, STEPFAULT_FAIL}, {"kill+fail", STEPFAULT_KILL, STEPFAULT_FAIL},
    {"kill+kill", STEPFAULT_KILL, STEPFAULT_KILL},
};

static unsigned run(struct subject *s, const struct operation *o, const struct faults *f,
                    unsigned first)
{
    bool pairs = f->pair != STEPFAULT_OFF;
    char name[64];
    struct err err = ERR_INIT;
    const struct stepfault_case c = {.name = name,
                                     .mode = f->mode,
                                     .pair = f->pair,
                                     .pair_stride = pairs ? stepfault_stride(PAIR_STRIDE) : 0,
                                     .run = o->run,
                                     .recover = o->recover,
                                     .fork_run = f->mode == STEPFAULT_KILL,
                                     .first = first,
                                     .stride = stepfault_stride(pairs ? PAIR_STRIDE : STRIDE),
                                     .snapshot = snapshot};

    (void)snprintf(name, sizeof(name), "podnet %s, %s", o->word, f->word);
    if (o->before && o->before(s, &err) < 0)
        die(err.text);
    unsigned wrong = stepfault_run(&c, s);
    if (o->before)
        (void)(o->before == worker_up ? worker_down : guest_down)(s, NULL);
    return wrong;
}

int main(int argc, char **argv)
{
    static struct subject s;
    struct err err = ERR_INIT;
    unsigned wrong = 0;
    uint64_t first = FIRST_STEP;

    log_init("podnet", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    world_enter();
    make_world(&s);
    if (argc > 3 && str_to_u64(argv[3], 100000, &first) < 0)
        return 2;
    /* Without faults: what stays here would be in all snapshots behind it. */
    _cleanup_free_ char *before = snapshot(NULL);
    if (worker_up(&s, &err) < 0 || worker_down(&s, &err) < 0 || guest_up(&s, &err) < 0 ||
        guest_down(&s, &err) < 0)
        die(err.text);
    _cleanup_free_ char *after = snapshot(NULL);
    if (world_diff(before, after) > 0)
        die("something is left without any fault");
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        for (size_t k = 0; k < ARRAY_SIZE(faults); k++)
            if ((argc < 2 || str_eq(argv[1], operations[i].word)) &&
                (argc < 3 || str_eq(argv[2], faults[k].word)))
                wrong += run(&s, &operations[i], &faults[k], (unsigned)first);
    apf_done(&s.apf);
    return wrong ? 1 : 0;
}
