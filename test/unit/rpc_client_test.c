/* SPDX-License-Identifier: Apache-2.0 */
/* The blocking client against the test server (argument 1) and against servers that misbehave. */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "wire/ttrpc_client.h"

static const char *server_program;
static char dir[] = "/tmp/pp-rpc-XXXXXX";
static char *socket_path;
static pid_t server_pid;

static void sleep_ms(int64_t ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static struct ttrpc_client *client_new(void)
{
    struct ttrpc_client *c = NULL;
    struct err err = ERR_INIT;
    if (ttrpc_client_connect(socket_path, 5000, &c, &err) < 0)
        fail_msg("%s", err_text(&err));
    return c;
}

static int start_server(void **state)
{
    struct err err = ERR_INIT;
    struct ttrpc_client *c = NULL;
    assert_non_null(mkdtemp(dir));
    socket_path = str_asprintf("%s/s", dir);
    server_pid = fork();
    if (server_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(server_program, server_program, socket_path, NULL);
        _exit(127);
    }
    for (int i = 0; i < 500 && !c; i++, err_clear(&err), sleep_ms(10))
        (void)ttrpc_client_connect(socket_path, 1000, &c, &err);
    assert_non_null(c);
    ttrpc_client_free(c);
    return 0;
}

static int stop_server(void **state)
{
    int status;
    kill(server_pid, SIGTERM);
    assert_int_equal(waitpid(server_pid, &status, 0), server_pid);
    fs_remove_tree(AT_FDCWD, dir, NULL);
    free(socket_path);
    assert_int_equal(status, 0);
    return 0;
}

/* The value of the answer, owned; NULL on failure, with code and err. */
static char *echo_call(struct ttrpc_client *c, const char *method, const char *key,
                       const char *value, int64_t timeout_ms, int *ret_code, struct err *err)
{
    Ttrpc__KeyValue q = TTRPC__KEY_VALUE__INIT;
    ProtobufCMessage *reply;
    char *text;
    q.key = (char *)(uintptr_t)key;
    q.value = (char *)(uintptr_t)value;
    if (ttrpc_client_call(c, "test.Echo", method, &q.base, &ttrpc__key_value__descriptor,
                          timeout_ms, &reply, ret_code, err) < 0)
        return NULL;
    text = xstrdup(((Ttrpc__KeyValue *)reply)->value);
    protobuf_c_message_free_unpacked(reply, NULL);
    return text;
}

static void check_echo(struct ttrpc_client *c, const char *value)
{
    struct err err = ERR_INIT;
    _cleanup_free_ char *got = echo_call(c, "Echo", "k", value, 10000, NULL, &err);
    if (!got)
        fail_msg("%s", err_text(&err));
    assert_string_equal(got, value);
}

static void calls_one_after_another(void **state)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = client_new();
    char *large = xcalloc(1, 3000001);
    for (int i = 0; i < 100; i++)
        check_echo(c, i % 2 ? "odd" : "");
    memset(large, 'x', 3000000);
    check_echo(c, large);
    free(large);
}

static void errors_have_code_and_text(void **state)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = client_new();
    struct err err = ERR_INIT;
    int code = 0;
    assert_null(echo_call(c, "Error", "5", "no such thing", 10000, &code, &err));
    assert_int_equal(err.code, -EREMOTEIO);
    assert_int_equal(code, TTRPC_NOT_FOUND);
    assert_string_equal(err_text(&err), "Error: NotFound: no such thing");
    err_clear(&err);
    assert_null(echo_call(c, "Nothing", "", "", 10000, &code, &err));
    assert_int_equal(code, TTRPC_UNIMPLEMENTED);
    check_echo(c, "alive");
}

static void the_server_is_told_the_timeout(void **state)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = client_new();
    struct err err = ERR_INIT;
    _cleanup_free_ char *with = echo_call(c, "Timeout", "", "", 1500, NULL, &err);
    _cleanup_free_ char *without = echo_call(c, "Timeout", "", "", 0, NULL, &err);
    assert_string_equal(with, "1500000000");
    assert_string_equal(without, "0");
}

static void a_late_answer_is_dropped(void **state)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = client_new();
    _cleanup_free_ char *released = NULL;
    struct err err = ERR_INIT;
    int64_t began = clock_mono_ms();
    assert_null(echo_call(c, "Block", "late", "", 100, NULL, &err));
    assert_int_equal(err.code, -ETIMEDOUT);
    assert_in_range(clock_mono_ms() - began, 100, 5000);
    err_clear(&err);
    released = echo_call(c, "Release", "late", "", 10000, NULL, &err);
    assert_string_equal(released, "1");
    check_echo(c, "alive");
}

struct worker {
    struct ttrpc_client *client;
    pthread_t thread;
    unsigned number;
    bool blocks;
    int result;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    struct err err = ERR_INIT;
    for (unsigned i = 0; i < (w->blocks ? 1 : 50); i++) {
        _cleanup_free_ char *value = str_asprintf("%u.%u", w->number, i);
        _cleanup_free_ char *got = echo_call(w->client, w->blocks ? "Block" : "Echo", "together",
                                             value, 20000, NULL, &err);
        if (!got || (!w->blocks && !str_eq(got, value))) {
            w->result = err.code ? err.code : -EIO;
            return NULL;
        }
    }
    w->result = 1;
    return NULL;
}

static void start_workers(struct worker *w, size_t n, struct ttrpc_client *c, bool blocks)
{
    for (size_t i = 0; i < n; i++) {
        w[i] = (struct worker){.client = c, .number = (unsigned)i, .blocks = blocks};
        assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
    }
}

static void join_workers(struct worker *w, size_t n, int want)
{
    for (size_t i = 0; i < n; i++)
        pthread_join(w[i].thread, NULL);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(w[i].result, want);
}

static void wait_parked(struct ttrpc_client *c, unsigned want)
{
    struct err err = ERR_INIT;
    unsigned seen = 0;
    for (int i = 0; i < 1000 && seen < want; i++) {
        _cleanup_free_ char *n = echo_call(c, "Parked", "together", "", 10000, NULL, &err);
        uint64_t v = 0;
        assert_non_null(n);
        assert_int_equal(str_to_u64(n, UINT32_MAX, &v), 0);
        seen = (unsigned)v;
        if (seen < want)
            sleep_ms(10);
    }
    assert_int_equal(seen, want);
}

static void many_threads_share_a_connection(void **state)
{
    _cleanup_(ttrpc_client_freep) struct ttrpc_client *c = client_new();
    _cleanup_free_ char *released = NULL;
    struct worker blocked[20], quick[10];
    struct err err = ERR_INIT;
    start_workers(blocked, 20, c, true);
    start_workers(quick, 10, c, false);
    join_workers(quick, 10, 1); /* while twenty calls are held */
    wait_parked(c, 20);
    released = echo_call(c, "Release", "together", "", 10000, NULL, &err);
    assert_string_equal(released, "20");
    join_workers(blocked, 20, 1);
}

static void freeing_fails_the_calls_under_way(void **state)
{
    struct ttrpc_client *c = client_new(), *other = client_new();
    struct worker blocked[5];
    start_workers(blocked, 5, c, true);
    wait_parked(other, 5);
    ttrpc_client_free(c);
    join_workers(blocked, 5, -ESHUTDOWN);
    ttrpc_client_free(other);
    ttrpc_client_free(NULL);
}

static void connecting_fails_with_advice(void **state)
{
    _cleanup_free_ char *absent = str_asprintf("%s/absent", dir);
    _cleanup_free_ char *stale = str_asprintf("%s/stale", dir);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct ttrpc_client *c = NULL;
    struct err err = ERR_INIT;
    char longer[200];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(str_format(a.sun_path, sizeof(a.sun_path), "%s", stale), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    close(fd);
    assert_int_equal(ttrpc_client_connect(absent, 1000, &c, &err), -ENOENT);
    assert_text_has(err_text(&err), absent);
    assert_text_has(err_text(&err), "is the daemon running");
    err_clear(&err);
    assert_int_equal(ttrpc_client_connect(stale, 1000, &c, &err), -ECONNREFUSED);
    assert_text_has(err_text(&err), "is gone: start it");
    err_clear(&err);
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(ttrpc_client_connect(longer, 1000, &c, &err), -ENAMETOOLONG);
}

/* ---- servers that misbehave ---- */

struct bad_server {
    const char *bytes;
    size_t len;
    int listener;
    pthread_t thread;
};

static void *bad_server_main(void *arg)
{
    struct bad_server *s = arg;
    char part[1000];
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
    if (recv(fd, part, sizeof(part), 0) > 0)
        (void)!send(fd, s->bytes, s->len, MSG_NOSIGNAL);
    close(fd);
    return NULL;
}

static int call_bad_server(const char *bytes, size_t len, struct err *err)
{
    struct bad_server s = {.bytes = bytes, .len = len};
    _cleanup_free_ char *path = str_asprintf("%s/bad", dir);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct ttrpc_client *c = NULL;
    assert_int_equal(str_format(a.sun_path, sizeof(a.sun_path), "%s", path), 0);
    s.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s.listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(s.listener, 1), 0);
    assert_int_equal(pthread_create(&s.thread, NULL, bad_server_main, &s), 0);
    assert_int_equal(ttrpc_client_connect(path, 1000, &c, err), 0);
    assert_null(echo_call(c, "Echo", "", "", 10000, NULL, err));
    pthread_join(s.thread, NULL);
    ttrpc_client_free(c);
    close(s.listener);
    unlink(path);
    return err->code;
}

static void bad_servers(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        int want;
    } cases[] = {
        {"", 0, -ECONNRESET},                                          /* closes at once */
        {"\0\0\0\5", 4, -ECONNRESET},                                  /* half a header */
        {"\0\0\0\5\0\0\0\1\2\0ab", 12, -ECONNRESET},                   /* half a body */
        {"\xff\xff\xff\xff\0\0\0\1\2\0", 10, -EPROTO},                 /* too long */
        {"\0\0\0\1\0\0\0\1\2\0\xff", 11, -EBADMSG},                    /* no Response */
        {"\0\0\0\3\0\0\0\1\2\0\x12\1\xff", 13, -EBADMSG},              /* no KeyValue */
        {"\0\0\0\0\0\0\0\3\2\0\0\0\0\0\0\0\0\1\3\0", 20, -ECONNRESET}, /* others' answers */
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = ERR_INIT;
        assert_int_equal(call_bad_server(cases[i].bytes, cases[i].len, &err), cases[i].want);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_one_after_another),
        cmocka_unit_test(errors_have_code_and_text),
        cmocka_unit_test(the_server_is_told_the_timeout),
        cmocka_unit_test(a_late_answer_is_dropped),
        cmocka_unit_test(many_threads_share_a_connection),
        cmocka_unit_test(freeing_fails_the_calls_under_way),
        cmocka_unit_test(connecting_fails_with_advice),
        cmocka_unit_test(bad_servers),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s RPC_TEST_SERVER\n", argv[0]);
        return 2;
    }
    server_program = argv[1];
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
