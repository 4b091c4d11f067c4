/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Step faults of the local provider: create and delete, each outside step of them failing,
 * cancelled and killed, in the provider, its helper and the VM's PID 1 alike; and pairs, a second
 * fault while the first is cleaned up after. Sampled; STEPFAULT_STRIDE=1 tries all.
 *
 * usage: local_step_faults [create|delete [fail|kill|cancel|MODE+fail|MODE+kill [FIRST]]]
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/str.h"
#include "providers/local/config.h"
#include "providers/provider.h"
#include "stepfault/stepfault.h"
#include "stepfault/world.h"

#define TOKEN "0123456789abcdef0123456789abcdef"
#define SANDBOX "sandbox-1"
#define STRIDE 5
#define PAIR_STRIDE 149

static char registry[PATH_MAX], guest[PATH_MAX];
static const char *const watched[] = {registry, NULL};

struct subject {
    struct local_config config;
    struct opt_set sets[2];
    struct provider *p;
    struct instance instance;
    pthread_mutex_t mutex;
    struct job *job; /* lock: mutex */
};

/* A fresh job, before the steps are counted: making it is its caller's step. */
static int prepare(void *arg, _unused_ struct err *err)
{
    struct subject *s = arg;

    pthread_mutex_lock(&s->mutex);
    job_free_inline(s->job);
    s->job = job_new_inline(20000);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

static void cancel(void *arg)
{
    struct subject *s = arg;

    pthread_mutex_lock(&s->mutex);
    job_cancel(s->job);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- the operations ---- */

static int create(void *arg, struct err *err)
{
    static const struct tag tags[] = {{TAG_SANDBOX, SANDBOX}, {0}};
    static const struct instance_request request = {.name = "podvm-x-01234567",
                                                    .token = TOKEN,
                                                    .tags = tags,
                                                    .user_data = "#cloud-config\n",
                                                    .user_data_len = 14};
    struct subject *s = arg;

    return s->p->type->create(s->p, s->job, &request, &s->instance, err);
}

static int delete (void *arg, struct err *err)
{
    struct subject *s = arg;

    return s->p->type->delete (s->p, s->job, &s->instance, err);
}

/* Looks by tag, as a new process does, who knows no more; -ENOENT: there is none. */
static int look(struct subject *s, struct err *err)
{
    struct err e = ERR_INIT;
    int r = s->p->type->find(s->p, s->job, SANDBOX, &s->instance, &e);

    return r < 0 && r != -ENOENT ? err_set(err, r, "%s", e.text) : r;
}

/* What the daemon does about a create: deletes what it was told of; after a crash it looks by tag,
 * and sends the same request again when it finds nothing. */
static int recover_create(void *arg, int result, struct err *err)
{
    struct subject *s = arg;

    if (result == -EOWNERDEAD) {
        int r = look(s, err);
        if (r == -ENOENT)
            r = create(s, err);
        if (r < 0)
            return r;
    }
    return s->instance.id[0] ? delete (s, err) : 0;
}

/* A delete that failed is repeated; then the next round's instance is made. */
static int recover_delete(void *arg, int result, struct err *err)
{
    struct subject *s = arg;
    int r = result == -EOWNERDEAD ? look(s, err) : 0;

    if (r == 0)
        r = delete (s, err);
    return r < 0 && r != -ENOENT ? r : create(s, err);
}

/* ---- set-up ---- */

static int die(const char *what)
{
    fprintf(stderr, "local_step_faults: %s\n", what);
    exit(1);
}

static void script(const char *name)
{
    static const char text[] = "#!/bin/sh\nexec sleep 1000\n";
    char path[PATH_MAX + 64];

    (void)snprintf(path, sizeof(path), "%s/%s", guest, name);
    if (fs_write_atomic(AT_FDCWD, path, text, strlen(text), 0755, NULL) < 0)
        die("writing the guest programs");
}

/* One control block for us, the helper and PID 1: the helper looks for it beside its program. */
static void share_control(void)
{
    char path[PATH_MAX], block[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    (void)snprintf(block, sizeof(block), "%s/control", world_dir());
    if (!slash || !stepfault_share(block))
        die("making the control block");
    (void)snprintf(slash, sizeof(path) - (size_t)(slash - path), "/peerpod-local-vm.stepfault");
    if (mount(block, path, NULL, MS_BIND, NULL) < 0)
        die("binding the control block");
}

static void setup(struct subject *s)
{
    struct err err = ERR_INIT;

    (void)snprintf(registry, sizeof(registry), "%s/registry", world_dir());
    (void)snprintf(guest, sizeof(guest), "%s/guest", world_dir());
    if (mkdir(guest, 0755) < 0)
        die("making directories");
    script("process-user-data");
    script("agent-protocol-forwarder");
    share_control();
    const char *argv[] = {
        "-local-registry-dir", registry,       "-local-guest-dir", guest, "-local-agent",
        "sleep 1000",          "-guest-fault", "no-boot",          NULL};
    s->sets[0] = (struct opt_set){"local", provider_type_find("local")->opts, &s->config, NULL};
    if (opt_parse(s->sets, (char *const *)(uintptr_t)argv, NULL, NULL, &err) < 0 ||
        provider_type_find("local")->open(&s->config, &s->p, &err) < 0)
        die(err.text);
}

static const struct faults {
    const char *word;
    enum stepfault_mode mode, pair;
} faults[] = {
    {"fail", STEPFAULT_FAIL, STEPFAULT_OFF},
    {"cancel", STEPFAULT_CANCEL, STEPFAULT_OFF},
    {"kill", STEPFAULT_KILL, STEPFAULT_OFF},
    {"fail+fail", STEPFAULT_FAIL, STEPFAULT_FAIL},
    {"fail+kill", STEPFAULT_FAIL, STEPFAULT_KILL},
    {"kill+fail", STEPFAULT_KILL, STEPFAULT_FAIL},
    {"kill+kill", STEPFAULT_KILL, STEPFAULT_KILL},
    {"cancel+fail", STEPFAULT_CANCEL, STEPFAULT_FAIL},
};

static unsigned run(struct subject *s, bool creating, const struct faults *f, uint64_t first)
{
    bool pairs = f->pair != STEPFAULT_OFF;
    char name[64];
    struct err err = ERR_INIT;
    struct stepfault_case c = {.name = name,
                               .mode = f->mode,
                               .pair = f->pair,
                               .pair_stride = pairs ? stepfault_stride(PAIR_STRIDE) : 0,
                               .dirs = watched,
                               .prepare = prepare,
                               .run = creating ? create : delete,
                               .recover = creating ? recover_create : recover_delete,
                               .cancel = cancel,
                               .fork_run = f->mode == STEPFAULT_KILL || f->pair == STEPFAULT_KILL,
                               .first = (unsigned)first,
                               .stride = stepfault_stride(pairs ? PAIR_STRIDE : STRIDE)};

    prepare(s, NULL);
    (void)snprintf(name, sizeof(name), "local %s, %s", creating ? "create" : "delete", f->word);
    if (create(s, &err) < 0 || (creating && delete (s, &err) < 0))
        die(err.text);
    unsigned wrong = stepfault_run(&c, s);
    if (!creating && delete (s, &err) < 0)
        die(err.text);
    return wrong;
}

int main(int argc, char **argv)
{
    static struct subject s = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    unsigned wrong = 0;
    uint64_t first = 1;

    world_enter();
    setup(&s);
    if (argc > 3 && str_to_u64(argv[3], 100000, &first) < 0)
        return 2;
    for (int creating = 1; creating >= 0; creating--)
        for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
            if ((argc < 2 || str_eq(argv[1], creating ? "create" : "delete")) &&
                (argc < 3 || str_eq(argv[2], faults[i].word)))
                wrong += run(&s, creating, &faults[i], first);
    job_free_inline(s.job);
    s.p->type->close(s.p);
    opt_done(s.sets);
    return wrong ? 1 : 0;
}
