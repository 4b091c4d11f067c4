/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local provider against the real kernel, in a world of its own: what it makes, that it makes
 * it once, and that it leaves nothing. The guest programs are small shell scripts here; the chain
 * tests run the real ones.
 */
#include "unit/check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "providers/local/config.h"
#include "providers/provider.h"
#include "stepfault/world.h"

#define TOKEN "0123456789abcdef0123456789abcdef"

static char registry[PATH_MAX], guest[PATH_MAX], logs[PATH_MAX];
static const char *watched[] = {registry, NULL};

struct fixture {
    struct local_config config;
    struct opt_set sets[2];
    struct provider *p;
};

/* flags: NULL-terminated, beside those of the directories. */
static void open_provider(struct fixture *f, const char *const *flags)
{
    const char *argv[32] = {"-local-registry-dir", registry,     "-local-guest-dir", guest,
                            "-local-agent",        "sleep 1000", "-vm-log-dir",      logs};
    struct err err = ERR_INIT;
    size_t n = 8;

    memset(f, 0, sizeof(*f));
    f->sets[0] = (struct opt_set){"local", provider_type_find("local")->opts, &f->config, NULL};
    for (; flags && *flags; flags++)
        argv[n++] = *flags;
    if (opt_parse(f->sets, (char *const *)(uintptr_t)argv, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    if (provider_type_find("local")->open(&f->config, &f->p, &err) < 0)
        fail_msg("%s", err.text);
}

static void close_provider(struct fixture *f)
{
    f->p->type->close(f->p);
    opt_done(f->sets);
}

static int create_named(struct provider *p, const char *token, const char *sandbox,
                        struct instance *ret, struct err *err)
{
    const struct tag tags[] = {{TAG_SANDBOX, sandbox}, {TAG_NODE, "node-1"}, {0}};
    const struct instance_request q = {.name = "podvm-x-01234567",
                                       .token = token,
                                       .tags = tags,
                                       .user_data = "#cloud-config\n",
                                       .user_data_len = 14};
    struct job *job = job_new_inline(60000);
    int r = p->type->create(p, job, &q, ret, err);

    job_free_inline(job);
    return r;
}

static void create_ok(struct provider *p, const char *token, const char *sandbox,
                      struct instance *ret)
{
    struct err err = ERR_INIT;

    if (create_named(p, token, sandbox, ret, &err) < 0)
        fail_msg("%s", err.text);
}

static int delete_it(struct provider *p, const struct instance *i, struct err *err)
{
    struct job *job = job_new_inline(60000);
    int r = p->type->delete (p, job, i, err);

    job_free_inline(job);
    return r;
}

static void delete_ok(struct provider *p, const struct instance *i)
{
    struct err err = ERR_INIT;

    if (delete_it(p, i, &err) < 0)
        fail_msg("%s", err.text);
}

static size_t count_all(struct provider *p)
{
    struct job *job = job_new_inline(60000);
    struct instance *list;
    struct err err = ERR_INIT;
    size_t n;

    if (p->type->list(p, job, NULL, &list, &n, &err) < 0)
        fail_msg("%s", err.text);
    free(list);
    job_free_inline(job);
    return n;
}

/* Waits until the VM's console holds text. */
static void expect_log(const struct instance *i, const char *text)
{
    char path[PATH_MAX + 100];
    int64_t until = clock_mono_ms() + 10000;

    (void)str_format(path, sizeof(path), "%s/%s.log", logs, i->id);
    for (;;) {
        _cleanup_free_ char *log = NULL;
        if (fs_read(AT_FDCWD, path, 4 << 20, &log, NULL, NULL) == 0 && strstr(log, text))
            return;
        if (clock_mono_ms() > until)
            fail_msg("no '%s' in %s: %s", text, path, log ? log : "(none)");
        (void)poll(NULL, 0, 5);
    }
}

/* ---- one VM ---- */

static void test_life(void **state)
{
    _cleanup_free_ char *before = world_snapshot(watched);
    struct job *job = job_new_inline(60000);
    struct instance i, found, *list;
    struct err err = ERR_INIT;
    struct fixture f;
    size_t n;

    open_provider(&f, NULL);
    assert_int_equal(f.p->type->verify(f.p, job, &err), 0);
    create_ok(f.p, TOKEN, "sandbox-1", &i);
    assert_string_equal(i.sandbox, "sandbox-1");
    assert_int_equal(f.p->type->find(f.p, job, "sandbox-1", &found, &err), 0);
    assert_string_equal(found.id, i.id);
    assert_string_equal(found.name, "podvm-x-01234567");
    assert_false(found.gone);
    assert_int_equal(f.p->type->find(f.p, job, "sandbox-2", &found, &err), -ENOENT);
    const struct tag mine[] = {{TAG_NODE, "node-1"}, {0}}, others[] = {{TAG_NODE, "node-2"}, {0}};
    err_clear(&err);
    assert_int_equal(f.p->type->list(f.p, job, mine, &list, &n, &err), 0);
    assert_int_equal(n, 1);
    free(list);
    assert_int_equal(f.p->type->list(f.p, job, others, &list, &n, &err), 0);
    assert_int_equal(n, 0);
    free(list);
    assert_int_equal(f.p->type->wait_addresses(f.p, job, &i, &err), 0);
    assert_true(str_starts(i.addresses[0], "198.1"));
    expect_log(&i, "forwarder of podvm-x-01234567: #cloud-config, podns, root read-only");
    delete_ok(f.p, &i);
    delete_ok(f.p, &i);
    close_provider(&f);
    job_free_inline(job);
    assert_int_equal(world_settle(before, watched, 2000), 0);
}

static int dial(const char *address, char *got, size_t size)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(15150)};
    int r = -1;

    assert_int_equal(inet_pton(AF_INET, address, &a.sin_addr), 1);
    for (int i = 0; i < 200 && r < 0; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        r = connect(fd, (struct sockaddr *)&a, sizeof(a));
        if (r == 0) {
            ssize_t n = read(fd, got, size - 1);
            got[n > 0 ? n : 0] = '\0';
        }
        close(fd);
        if (r < 0)
            (void)poll(NULL, 0, 10);
    }
    return r;
}

static void test_reachable_and_no_tls(void **state)
{
    struct fixture f;
    struct instance i;
    char got[64] = "";

    open_provider(&f, (const char *const[]){"-guest-fault", "no-tls", NULL});
    create_ok(f.p, TOKEN, "s", &i);
    assert_int_equal(dial(i.addresses[0], got, sizeof(got)), 0);
    assert_text_has(got, "not TLS");
    delete_ok(f.p, &i);
    close_provider(&f);
}

static void test_same_token_same_vm(void **state)
{
    struct fixture f;
    struct instance a, b;

    open_provider(&f, NULL);
    create_ok(f.p, TOKEN, "s", &a);
    create_ok(f.p, TOKEN, "s", &b);
    assert_string_equal(a.id, b.id);
    assert_string_equal(a.addresses[0], b.addresses[0]);
    assert_int_equal(count_all(f.p), 1);
    delete_ok(f.p, &a);
    assert_int_equal(count_all(f.p), 0);
    close_provider(&f);
}

static void kill_vm(const struct instance *i)
{
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX + 100], boot[64];
    int pid;

    (void)str_format(path, sizeof(path), "%s/instances/%s/init", registry, i->id);
    assert_int_equal(fs_read(AT_FDCWD, path, 256, &text, NULL, NULL), 0);
    assert_int_equal(sscanf(text, "%63s %d", boot, &pid), 2);
    assert_int_equal(kill(pid, SIGKILL), 0);
    while (kill(pid, 0) == 0) {
        (void)waitpid(pid, NULL, WNOHANG);
        (void)poll(NULL, 0, 2);
    }
}

static void test_vm_that_ended(void **state)
{
    struct job *job = job_new_inline(60000);
    struct err err = ERR_INIT;
    struct fixture f;
    struct instance i, found;

    open_provider(&f, NULL);
    create_ok(f.p, TOKEN, "s", &i);
    kill_vm(&i);
    assert_int_equal(f.p->type->find(f.p, job, "s", &found, &err), 0);
    assert_true(found.gone);
    assert_int_equal(f.p->type->wait_addresses(f.p, job, &i, &err), -EHOSTDOWN);
    assert_text_has(err.text, "has ended");
    delete_ok(f.p, &i);
    job_free_inline(job);
    close_provider(&f);
}

/* ---- many ---- */

struct worker {
    pthread_t thread;
    struct provider *p;
    char token[33], sandbox[32];
    struct instance instance;
    struct err err;
    int result;
};

static void *worker_run(void *arg)
{
    struct worker *w = arg;

    w->err = ERR_INIT;
    w->result = create_named(w->p, w->token, w->sandbox, &w->instance, &w->err);
    return NULL;
}

static void *worker_delete(void *arg)
{
    struct worker *w = arg;

    w->err = ERR_INIT;
    w->result = delete_it(w->p, &w->instance, &w->err);
    return NULL;
}

static void run_all(struct worker *w, size_t n, void *(*fn)(void *))
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&w[i].thread, NULL, fn, &w[i]), 0);
    for (size_t i = 0; i < n; i++)
        pthread_join(w[i].thread, NULL);
    for (size_t i = 0; i < n; i++)
        if (w[i].result < 0)
            fail_msg("%zu: %s", i, w[i].err.text);
}

static void test_parallel(void **state)
{
    enum { N = 20 };
    static struct worker w[N];
    _cleanup_free_ char *before = world_snapshot(watched);
    struct fixture f;

    open_provider(&f, NULL);
    for (size_t i = 0; i < N; i++) {
        w[i].p = f.p;
        (void)snprintf(w[i].token, sizeof(w[i].token), "%08x%024zx", 7, i); /* one first index */
        (void)snprintf(w[i].sandbox, sizeof(w[i].sandbox), "s%zu", i);
    }
    int64_t start = clock_mono_ms();
    run_all(w, N, worker_run);
    print_message("%d VMs at once made in %lld ms\n", N, (long long)(clock_mono_ms() - start));
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(w[i].instance.addresses[0], w[j].instance.addresses[0]);
    assert_int_equal(count_all(f.p), N);
    start = clock_mono_ms();
    run_all(w, N, worker_delete);
    print_message("%d VMs at once deleted in %lld ms\n", N, (long long)(clock_mono_ms() - start));
    close_provider(&f);
    assert_int_equal(world_settle(before, watched, 2000), 0);
}

static void test_parallel_same_token(void **state)
{
    enum { N = 8 };
    static struct worker w[N];
    struct fixture f;

    open_provider(&f, NULL);
    for (size_t i = 0; i < N; i++) {
        w[i].p = f.p;
        (void)snprintf(w[i].token, sizeof(w[i].token), "%s", TOKEN);
        (void)snprintf(w[i].sandbox, sizeof(w[i].sandbox), "s");
    }
    run_all(w, N, worker_run);
    for (size_t i = 1; i < N; i++)
        assert_string_equal(w[i].instance.id, w[0].instance.id);
    assert_int_equal(count_all(f.p), 1);
    run_all(w, N, worker_delete);
    assert_int_equal(count_all(f.p), 0);
    close_provider(&f);
}

/* ---- told to fail ---- */

static void test_failure_options(void **state)
{
    _cleanup_free_ char *before = world_snapshot(watched);
    struct job *job = job_new_inline(200);
    struct err err = ERR_INIT;
    struct fixture f;
    struct instance i, *list;
    size_t n;

    open_provider(&f, (const char *const[]){"-fail-create", "before", NULL});
    assert_int_equal(create_named(f.p, TOKEN, "s", &i, &err), -EIO);
    assert_string_equal(i.id, "");
    close_provider(&f);

    open_provider(&f, (const char *const[]){"-fail-create", "after", "-fail-deletes", "2",
                                            "-fail-addresses", NULL});
    err_clear(&err);
    assert_int_equal(create_named(f.p, TOKEN, "s", &i, &err), -EIO);
    assert_string_not_equal(i.id, "");
    err_clear(&err);
    assert_int_equal(f.p->type->wait_addresses(f.p, job, &i, &err), -ETIMEDOUT);
    for (int k = 0; k < 2; k++) {
        err_clear(&err);
        assert_int_equal(delete_it(f.p, &i, &err), -EIO);
    }
    assert_int_equal(count_all(f.p), 1);
    delete_ok(f.p, &i);
    close_provider(&f);

    open_provider(&f, (const char *const[]){"-fail-list", NULL});
    err_clear(&err);
    assert_int_equal(f.p->type->list(f.p, job, NULL, &list, &n, &err), -EIO);
    close_provider(&f);
    job_free_inline(job);
    assert_int_equal(world_settle(before, watched, 2000), 0);
}

static void test_missing_programs(void **state)
{
    struct job *job = job_new_inline(1000);
    struct err err = ERR_INIT;
    struct fixture f;
    struct instance i;

    open_provider(&f, (const char *const[]){"-local-guest-dir", "/nonexistent", NULL});
    assert_int_equal(f.p->type->verify(f.p, job, &err), -ENOENT);
    assert_text_has(err.text, "/nonexistent/process-user-data");
    assert_text_has(err.text, "-local-guest-dir");
    err_clear(&err);
    assert_int_equal(create_named(f.p, TOKEN, "s", &i, &err), -ENOENT);
    assert_string_equal(i.id, "");
    assert_int_equal(count_all(f.p), 0);
    close_provider(&f);
    job_free_inline(job);
}

/* ---- a maker that dies ---- */

_noreturn_ static void be_maker(void)
{
    struct fixture f;
    struct instance i;

    open_provider(&f, NULL);
    create_ok(f.p, TOKEN, "s", &i);
    _exit(0);
}

static void test_killed_maker(void **state)
{
    _cleanup_free_ char *before = world_snapshot(watched);
    struct fixture f;
    unsigned half = 0;

    open_provider(&f, NULL);
    for (unsigned k = 0; k < 60; k++) {
        struct instance i;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            be_maker();
        usleep(k * 700);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        half += count_all(f.p) > 0;
        if (k % 2) {
            create_ok(f.p, TOKEN, "s", &i);
        } else {
            struct job *job = job_new_inline(60000);
            struct err err = ERR_INIT;
            int r = f.p->type->find(f.p, job, "s", &i, &err);
            job_free_inline(job);
            if (r == -ENOENT)
                create_ok(f.p, TOKEN, "s", &i);
        }
        assert_true(count_all(f.p) <= 1);
        delete_ok(f.p, &i);
        assert_int_equal(count_all(f.p), 0);
    }
    close_provider(&f);
    print_message("60 makers killed, %u of them behind their record\n", half);
    assert_int_equal(world_settle(before, watched, 3000), 0);
}

/* ---- set-up ---- */

static void script(const char *name, const char *text)
{
    char path[PATH_MAX + 64];

    (void)snprintf(path, sizeof(path), "%s/%s", guest, name);
    assert_int_equal(fs_write_atomic(AT_FDCWD, path, text, strlen(text), 0755, NULL), 0);
}

static int setup(void **state)
{
    struct fixture f;

    (void)snprintf(registry, sizeof(registry), "%s/registry", world_dir());
    (void)snprintf(guest, sizeof(guest), "%s/guest", world_dir());
    (void)snprintf(logs, sizeof(logs), "%s/logs", world_dir());
    assert_int_equal(mkdir(guest, 0755), 0);
    script("process-user-data", "#!/bin/sh\n[ \"$1\" = provision-files ] || exit 9\n"
                                "cp /media/cidata/user-data /run/got\n");
    script("agent-protocol-forwarder",
           "#!/bin/sh\n[ -e /run/netns/podns ] && podns=podns\n"
           "touch /usr/x 2>/dev/null || ro='root read-only'\n"
           "echo forwarder of $(cat /etc/hostname): $(cat /run/got), $podns, $ro\n"
           "sleep 1000\n");
    open_provider(&f, NULL); /* makes the registry, which belongs to every later snapshot */
    struct job *job = job_new_inline(1000);
    struct err err = ERR_INIT;
    struct instance i;
    create_ok(f.p, TOKEN, "s", &i);
    assert_int_equal(f.p->type->delete (f.p, job, &i, &err), 0);
    job_free_inline(job);
    close_provider(&f);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_reachable_and_no_tls),
        cmocka_unit_test(test_same_token_same_vm),
        cmocka_unit_test(test_vm_that_ended),
        cmocka_unit_test(test_parallel),
        cmocka_unit_test(test_parallel_same_token),
        cmocka_unit_test(test_failure_options),
        cmocka_unit_test(test_missing_programs),
        cmocka_unit_test(test_killed_maker),
    };

    world_enter();
    return cmocka_run_group_tests(tests, setup, NULL);
}
