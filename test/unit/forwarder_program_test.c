/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real forwarder under the real keeper: the daemon's end of the tunnel on this process's loop,
 * a stub agent on a thread, streams of some megabytes both ways, and kills of the forwarder in the
 * middle. What the agent gets is every frame once, edited where due; what the daemon gets is every
 * frame of the agent's once, and one answer for each refused request.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "guest/apf.h"
#include "relay/tunnel.h"
#include "unit/forwarder_script.h"

#define CONNECTIONS 4
#define WINDOW (1U << 20)
#define SANDBOX "0123456789abcdef"

/* -- the agent, on its thread -- */

struct agent_connection {
    int fd;
    struct buf got;
    size_t sent;
    bool eof, shut;
    int script; /* -1: has not said a byte */
};

struct agent {
    pthread_t thread;
    pthread_mutex_t lock;
    char path[108];
    int listener;
    bool stop;
    const struct script *scripts; /* in the order in which connections speak */
    int spoken;
    unsigned silent; /* connections that closed without a byte */
    struct agent_connection c[CONNECTIONS];
};

static void agent_accept(struct agent *a)
{
    int fd = accept4(a->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    for (int i = 0; fd >= 0 && i < CONNECTIONS; i++) {
        if (a->c[i].fd < 0 && a->c[i].script < 0 && !a->c[i].eof) {
            a->c[i] =
                (struct agent_connection){.fd = fd, .script = -1, .got = BUF_INIT(STREAM_MAX)};
            return;
        }
    }
    closep(&fd);
}

static void agent_read(struct agent *a, struct agent_connection *c)
{
    char bytes[65536];
    ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n > 0) {
        if (c->script < 0)
            c->script = a->spoken++;
        buf_add(&c->got, bytes, (size_t)n);
        /* The real one removes its own socket at CreateSandbox. */
        if (memmem(c->got.data, least(c->got.len, 1000), "CreateSandbox", 13))
            unlink(a->path);
    } else if (n == 0) {
        c->eof = true;
    }
    if (c->eof && c->script < 0) {
        a->silent++;
        c->eof = false;
        close(TAKE_FD(c->fd));
    }
}

static void agent_write(struct agent *a, struct agent_connection *c)
{
    const struct buf *out = &a->scripts[c->script].agent;
    if (c->sent < out->len) {
        ssize_t n =
            send(c->fd, out->data + c->sent, out->len - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0)
            c->sent += (size_t)n;
    } else if (c->eof && !c->shut) {
        c->shut = true;
        close(TAKE_FD(c->fd));
    }
}

static bool agent_stopped(struct agent *a)
{
    pthread_mutex_lock(&a->lock);
    bool stop = a->stop;
    pthread_mutex_unlock(&a->lock);
    return stop;
}

static void *agent_main(void *arg)
{
    struct agent *a = arg;
    while (!agent_stopped(a)) {
        struct pollfd p[1 + CONNECTIONS] = {{.fd = a->listener, .events = POLLIN}};
        for (int i = 0; i < CONNECTIONS; i++) {
            struct agent_connection *c = &a->c[i];
            bool out = c->fd >= 0 && c->script >= 0 &&
                       (c->sent < a->scripts[c->script].agent.len || c->eof);
            p[1 + i] = (struct pollfd){
                .fd = c->fd, .events = (short)((c->eof ? 0 : POLLIN) | (out ? POLLOUT : 0))};
        }
        poll(p, ARRAY_SIZE(p), 20);
        pthread_mutex_lock(&a->lock);
        if (p[0].revents)
            agent_accept(a);
        for (int i = 0; i < CONNECTIONS; i++) {
            struct agent_connection *c = &a->c[i];
            if (c->fd >= 0 && (p[1 + i].revents & (POLLIN | POLLHUP)) && !c->eof)
                agent_read(a, c);
            if (c->fd >= 0 && c->script >= 0 && (p[1 + i].revents & POLLOUT))
                agent_write(a, c);
        }
        pthread_mutex_unlock(&a->lock);
    }
    return NULL;
}

static void agent_listen(struct agent *a, const char *path, const struct script *scripts)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *a = (struct agent){.scripts = scripts, .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < CONNECTIONS; i++)
        a->c[i] = (struct agent_connection){.fd = -1, .script = -1};
    snprintf(a->path, sizeof(a->path), "%s", path);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    a->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(a->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(a->listener, 8), 0);
    assert_int_equal(pthread_create(&a->thread, NULL, agent_main, a), 0);
}

static void agent_end(struct agent *a)
{
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    for (int i = 0; i < CONNECTIONS; i++) {
        closep(&a->c[i].fd);
        buf_done(&a->c[i].got);
    }
    close(a->listener);
}

/* What the connection that spoke as n-th has got; waits for its end. */
static void agent_check(struct agent *a, int n)
{
    const struct script *s = &a->scripts[n];
    pthread_mutex_lock(&a->lock);
    struct agent_connection *c = NULL;
    for (int i = 0; i < CONNECTIONS; i++) {
        if (a->c[i].script == n)
            c = &a->c[i];
    }
    assert_non_null(c);
    assert_int_equal(c->got.len, s->expected.len);
    assert_memory_equal(c->got.data, s->expected.data, c->got.len);
    pthread_mutex_unlock(&a->lock);
}

/* -- the daemon -- */

struct ep {
    const struct buf *tx;
    uint64_t tx_limit, acked; /* the shim has sent tx_limit bytes so far */
    struct buf rx;
    bool rx_fin, fin_acked;
    uint32_t id;
    char gone[256];
};

static uint64_t ep_tx_head(void *arg)
{
    const struct ep *e = arg;
    return e->tx_limit;
}

static bool ep_tx_fin(void *arg)
{
    const struct ep *e = arg;
    return e->tx_limit == e->tx->len;
}

static uint64_t ep_tx_tail(void *arg)
{
    const struct ep *e = arg;
    return e->acked;
}

static size_t ep_tx_peek(void *arg, uint64_t offset, const uint8_t **ret)
{
    const struct ep *e = arg;
    *ret = (const uint8_t *)e->tx->data + offset;
    return (size_t)(e->tx_limit - offset);
}

static int ep_tx_acked(void *arg, uint64_t offset)
{
    struct ep *e = arg;
    e->acked = MAX(e->acked, offset);
    return offset > e->tx_limit ? -ERANGE : 0;
}

static uint64_t ep_rx_held(void *arg)
{
    const struct ep *e = arg;
    return e->rx.len;
}

static uint64_t ep_rx_limit(void *arg)
{
    const struct ep *e = arg;
    return e->rx.len + WINDOW;
}

static ssize_t ep_rx_space(void *arg, uint8_t **ret)
{
    struct ep *e = arg;
    if (buf_reserve(&e->rx, 65536) < 0)
        return -ENOSPC;
    *ret = (uint8_t *)e->rx.data + e->rx.len;
    return 65536;
}

static void ep_rx_commit(void *arg, size_t n)
{
    struct ep *e = arg;
    buf_grown(&e->rx, n);
}

static void ep_rx_fin(void *arg)
{
    struct ep *e = arg;
    e->rx_fin = true;
}

static bool ep_rx_has_fin(void *arg)
{
    const struct ep *e = arg;
    return e->rx_fin;
}

static void ep_tx_fin_acked(void *arg)
{
    struct ep *e = arg;
    e->fin_acked = true;
}

static void ep_gone(void *arg, const char *reason)
{
    struct ep *e = arg;
    snprintf(e->gone, sizeof(e->gone), "%s", reason);
}

static const struct channel_ops ep_ops = {
    .tx_head = ep_tx_head,
    .tx_fin = ep_tx_fin,
    .tx_tail = ep_tx_tail,
    .tx_peek = ep_tx_peek,
    .tx_acked = ep_tx_acked,
    .rx_held = ep_rx_held,
    .rx_limit = ep_rx_limit,
    .rx_space = ep_rx_space,
    .rx_commit = ep_rx_commit,
    .rx_fin = ep_rx_fin,
    .rx_has_fin = ep_rx_has_fin,
    .tx_fin_acked = ep_tx_fin_acked,
    .gone = ep_gone,
};

/* -- the world -- */

struct world {
    char dir[64], socket[108];
    uv_loop_t loop;
    uv_timer_t timer;
    struct tls_identity *self;
    struct tls_ctx *ctx;
    struct tunnel *tunnel;
    struct apf apf;
    pid_t keeper;
    uint16_t port;
    uint8_t pin[TLS_PIN_SIZE];
    bool up, agent_ready, enrolled;
    char refused[ERR_TEXT_MAX];
};

static void on_up(void *owner, bool first)
{
    struct world *w = owner;
    w->up = true;
}

static void on_down(void *owner, const struct err *why)
{
    struct world *w = owner;
    w->up = false;
}

static void on_refused(void *owner, const struct err *why)
{
    struct world *w = owner;
    snprintf(w->refused, sizeof(w->refused), "%s", err_text(why));
}

static void on_agent_ready(void *owner, bool ready)
{
    struct world *w = owner;
    w->agent_ready = ready;
}

static int on_enrolled(void *owner, const uint8_t pin[TLS_PIN_SIZE])
{
    struct world *w = owner;
    memcpy(w->pin, pin, TLS_PIN_SIZE);
    w->enrolled = true;
    return 0;
}

static const struct tunnel_ops tunnel_ops = {
    .up = on_up,
    .down = on_down,
    .refused = on_refused,
    .agent_ready = on_agent_ready,
    .enrolled = on_enrolled,
};

static void on_timer(uv_timer_t *timer)
{
    (void)timer;
}

/* Runs the loop until the condition holds. */
static bool wait_until(struct world *w, bool (*condition)(struct world *w, void *arg), void *arg,
                       int64_t ms)
{
    int64_t end = clock_mono_ms() + ms;
    while (!condition(w, arg)) {
        if (clock_mono_ms() > end)
            return false;
        uv_run(&w->loop, UV_RUN_ONCE);
    }
    return true;
}

static bool is_up(struct world *w, void *arg)
{
    return w->up;
}

static bool is_agent_ready(struct world *w, void *arg)
{
    return w->up && w->agent_ready;
}

static bool is_refused(struct world *w, void *arg)
{
    return w->refused[0] != '\0';
}

static uint16_t free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static char *in_dir(const struct world *w, const char *name)
{
    return str_asprintf("%s/%s", w->dir, name);
}

static void write_apf(struct world *w)
{
    struct err err = ERR_INIT;
    char *key, *text;
    size_t len;
    assert_int_equal(tls_identity_new("daemon", &w->self, &err), 0);
    assert_int_equal(tls_identity_pem(w->self, &key, &w->apf.tls_client_ca, &err), 0);
    free(key);
    w->apf.tunnel = APF_TUNNEL_NATIVE;
    snprintf(w->apf.sandbox_id, sizeof(w->apf.sandbox_id), SANDBOX);
    w->apf.enrolment_secret_len = 32;
    memset(w->apf.enrolment_secret, 's', 32);
    assert_int_equal(apf_build(&w->apf, &text, &len, &err), 0);
    _cleanup_free_ char *path = in_dir(w, "apf.json");
    assert_int_equal(fs_write_atomic(AT_FDCWD, path, text, len, 0600, &err), 0);
    free(text);
}

static void start_keeper(struct world *w)
{
    char listen[32];
    const char *bin = getenv("PEERPOD_BIN");
    bin = bin ? bin : PP_BIN;
    _cleanup_free_ char *keeper = str_asprintf("%s/peerpod-keeper", bin);
    _cleanup_free_ char *forwarder = str_asprintf("%s/agent-protocol-forwarder", bin);
    _cleanup_free_ char *config = in_dir(w, "apf.json");
    _cleanup_free_ char *state = in_dir(w, "state");
    snprintf(listen, sizeof(listen), "127.0.0.1:%u", w->port);
    w->keeper = fork();
    assert_true(w->keeper >= 0);
    if (w->keeper == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* it ends its child, too */
        execl(keeper, keeper, "-settled", "1ms", "--", forwarder, "-config", config, "-listen",
              listen, "-kata-agent-socket", w->socket, "-state-dir", state, "-log-level", "warn",
              (char *)NULL);
        _exit(127);
    }
}

static void dial(struct world *w, struct tls_identity *self)
{
    struct err err = ERR_INIT;
    struct tunnel_config config = {.role = TUNNEL_DAEMON,
                                   .sandbox_id = SANDBOX,
                                   .self = self,
                                   .ctx = w->ctx,
                                   .generation = 1,
                                   .secret_len = 32};
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(w->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memset(config.secret, 's', 32);
    assert_int_equal(tunnel_new(&w->loop, &config, &tunnel_ops, w, &w->tunnel, &err), 0);
    assert_int_equal(tunnel_dial(w->tunnel, (struct sockaddr *)&address, sizeof(address)), 0);
}

static void world_begin(struct world *w)
{
    struct err err = ERR_INIT;
    *w = (struct world){.port = free_port()};
    snprintf(w->dir, sizeof(w->dir), "/tmp/forwarder_program.XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->socket, sizeof(w->socket), "%s/agent.sock", w->dir);
    uv_loop_init(&w->loop);
    uv_timer_init(&w->loop, &w->timer);
    uv_timer_start(&w->timer, on_timer, 5, 5);
    write_apf(w);
    assert_int_equal(tls_ctx_new(false, &w->ctx, &err), 0);
    start_keeper(w);
    dial(w, w->self);
}

static void world_end(struct world *w)
{
    int status;
    tunnel_free(w->tunnel);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    uv_loop_close(&w->loop);
    kill(w->keeper, SIGTERM);
    assert_int_equal(waitpid(w->keeper, &status, 0), w->keeper);
    tls_ctx_free(w->ctx);
    tls_identity_free(w->self);
    apf_done(&w->apf);
    fs_remove_tree(AT_FDCWD, w->dir, NULL);
}

/* -- kills -- */

static pid_t parent_of(const char *pid)
{
    char path[64], text[512];
    unsigned long ppid = 0;
    snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    closep(&fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    const char *behind = strrchr(text, ')');
    if (!behind || strlen(behind) < 5)
        return 0;
    ppid = strtoul(behind + 4, NULL, 10);
    return (pid_t)ppid;
}

/* The keeper's child; 0 while there is none. */
static pid_t forwarder_pid(const struct world *w)
{
    pid_t found = 0;
    const struct dirent *entry;
    DIR *dir = opendir("/proc");
    assert_non_null(dir);
    while (!found && (entry = readdir(dir))) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
            parent_of(entry->d_name) == w->keeper)
            found = (pid_t)strtoul(entry->d_name, NULL, 10);
    }
    closedir(dir);
    return found;
}

static void kill_forwarder(const struct world *w)
{
    pid_t pid = forwarder_pid(w);
    if (pid > 0)
        kill(pid, SIGKILL);
}

/* -- the tests -- */

static void check_answers(const struct ep *e, const struct script *s)
{
    size_t at = 0, theirs = 0;
    unsigned answers = 0;
    const uint8_t *all = (uint8_t *)e->rx.data;
    while (at < e->rx.len) {
        struct ttrpc_header h;
        assert_true(e->rx.len - at >= TTRPC_HEADER_SIZE);
        ttrpc_header_decode(all + at, &h);
        size_t frame = TTRPC_HEADER_SIZE + h.length;
        assert_true(frame <= e->rx.len - at);
        if (h.stream > 1000 && h.type == TTRPC_RESPONSE &&
            memmem(all + at, frame, "not a protobuf message", 22)) {
            assert_int_equal(h.stream, 1000 + ++answers);
        } else {
            assert_true(frame <= s->agent.len - theirs);
            assert_memory_equal(all + at, s->agent.data + theirs, frame);
            theirs += frame;
        }
        at += frame;
    }
    assert_int_equal(theirs, s->agent.len);
    assert_int_equal(answers, s->refused);
}

/* The shim's bytes come bit by bit. */
static bool streamed(struct world *w, void *arg)
{
    struct ep *e = arg;
    if (e->tx_limit < e->tx->len) {
        e->tx_limit = least(e->tx->len, (size_t)e->tx_limit + 1 + random_below(300000));
        tunnel_channel_kick(w->tunnel, e->id);
    }
    return (e->tx_limit == e->tx->len && e->acked == e->tx->len && e->rx_fin && e->fin_acked) ||
           e->gone[0];
}

static bool wait_killing(struct world *w, struct ep *e, unsigned kills, unsigned every_ms)
{
    for (unsigned i = 0; i < kills; i++) {
        if (wait_until(w, streamed, e, every_ms / 2 + (int64_t)random_below(every_ms)))
            break;
        kill_forwarder(w);
    }
    return wait_until(w, streamed, e, 60000);
}

static void begin_with_agent(struct world *w, struct agent *agent, const struct script *scripts)
{
    world_begin(w);
    assert_true(wait_until(w, is_up, NULL, 20000));
    assert_false(w->agent_ready);
    agent_listen(agent, w->socket, scripts);
    assert_true(wait_until(w, is_agent_ready, NULL, 20000));
    assert_true(w->enrolled);
}

/* One channel for the script, from its first byte to both ends of file. */
static void carry(struct world *w, struct agent *agent, int n, unsigned kills)
{
    const struct script *s = &agent->scripts[n];
    struct ep e = {.tx = &s->shim, .rx = BUF_INIT(STREAM_MAX), .id = (uint32_t)n + 1};
    assert_int_equal(tunnel_channel_add(w->tunnel, e.id, &ep_ops, &e), 0);
    assert_true(wait_killing(w, &e, kills, 60));
    assert_string_equal(e.gone, "");
    check_answers(&e, s);
    agent_check(agent, n);
    tunnel_channel_remove(w->tunnel, e.id, "the test is over");
    buf_done(&e.rx);
}

static void carry_two(unsigned kills, unsigned rounds)
{
    struct world w;
    struct agent agent;
    struct script scripts[2];
    script_long(&scripts[0], rounds);
    script_small(&scripts[1]);
    begin_with_agent(&w, &agent, scripts);
    carry(&w, &agent, 0, kills);
    assert_int_equal(access(w.socket, F_OK), -1); /* the agent has removed it */
    carry(&w, &agent, 1, 0);
    fprintf(stderr, "forwarder.program: %zu bytes to the agent, %zu from it, %u kills, %u probes\n",
            scripts[0].expected.len, scripts[0].agent.len, kills, agent.silent);
    world_end(&w);
    agent_end(&agent);
    for (int i = 0; i < 2; i++)
        script_done(&scripts[i]);
}

static void test_carries(void **state)
{
    carry_two(0, 6);
}

static void test_killed_in_the_middle(void **state)
{
    carry_two(12, 12);
}

/* What a real shim and a real agent have said, connection by connection. */
static void test_recording(void **state)
{
    struct script scripts[RECORDED_MAX];
    struct world w;
    struct agent agent;
    int n = script_recording(scripts, PP_CORPUS);
    if (n < 0) {
        const char *strict = getenv("STRICT");
        fprintf(stderr, "forwarder.program: the recording is absent: skipped\n");
        assert_false(strict && str_eq(strict, "1"));
        skip();
    }
    begin_with_agent(&w, &agent, scripts);
    for (int i = 0; i < n; i++)
        carry(&w, &agent, i, 2);
    fprintf(stderr, "forwarder.program: %d recorded connections, edits alone differ\n", n);
    world_end(&w);
    agent_end(&agent);
    for (int i = 0; i < n; i++)
        script_done(&scripts[i]);
}

static void put_bind(struct buf *spec, const char *type, const char *source)
{
    struct buf mount = {0};
    buf_adds(&mount, "\x0a\x01/\x12");
    char len = (char)strlen(source);
    buf_add(&mount, &len, 1);
    buf_adds(&mount, source);
    buf_adds(&mount, "\x1a");
    len = (char)strlen(type);
    buf_add(&mount, &len, 1);
    buf_adds(&mount, type);
    buf_adds(spec, "\x2a");
    len = (char)mount.len;
    buf_add(spec, &len, 1);
    buf_add(spec, mount.data, mount.len);
    buf_done(&mount);
}

static bool dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Missing bind sources are made before the agent sees the request; nothing else is touched. */
static void test_bind_sources(void **state)
{
    struct world w;
    struct agent agent;
    struct script script;
    struct buf spec = {0}, payload = {0};
    snprintf(w.dir, sizeof(w.dir), "/tmp/forwarder_sources.XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    char base[64];
    snprintf(base, sizeof(base), "%s", w.dir);
    _cleanup_free_ char *missing = str_asprintf("%s/a/b", base);
    _cleanup_free_ char *dots = str_asprintf("%s/x/../y", base);
    _cleanup_free_ char *other = str_asprintf("%s/tmpfs", base);
    put_bind(&spec, "bind", missing);
    put_bind(&spec, "bind", dots);
    put_bind(&spec, "tmpfs", other);
    put_bind(&spec, "bind", "relative");
    put_bind(&spec, "bind", base);
    add_tag(&payload, 0x32, spec.len);
    buf_add(&payload, spec.data, spec.len);
    script_init(&script);
    script_request(&script, "CreateContainer", payload.data, payload.len);
    begin_with_agent(&w, &agent, &script);
    carry(&w, &agent, 0, 0);
    assert_true(dir_exists(missing));
    assert_false(dir_exists(other));
    _cleanup_free_ char *y = str_asprintf("%s/y", base);
    _cleanup_free_ char *x = str_asprintf("%s/x", base);
    assert_false(dir_exists(x) || dir_exists(y));
    world_end(&w);
    agent_end(&agent);
    script_done(&script);
    buf_done(&spec);
    buf_done(&payload);
    fs_remove_tree(AT_FDCWD, base, NULL);
}

static bool is_agent_unready(struct world *w, void *arg)
{
    return w->up && !w->agent_ready;
}

/* Nobody listens any more: a new connection finds that out, and whoever listens next is taken. */
static void test_agent_restarts(void **state)
{
    struct world w;
    struct agent agent;
    struct script scripts[2];
    script_small(&scripts[0]);
    script_small(&scripts[1]);
    begin_with_agent(&w, &agent, scripts);
    carry(&w, &agent, 0, 0);
    agent_end(&agent);
    unlink(w.socket);
    struct ep e = {.tx = &scripts[0].shim, .rx = BUF_INIT(STREAM_MAX), .id = 2};
    assert_int_equal(tunnel_channel_add(w.tunnel, e.id, &ep_ops, &e), 0);
    assert_true(wait_until(&w, streamed, &e, 20000));
    assert_string_not_equal(e.gone, "");
    assert_true(wait_until(&w, is_agent_unready, NULL, 20000));
    agent_listen(&agent, w.socket, scripts);
    assert_true(wait_until(&w, is_agent_ready, NULL, 20000));
    e = (struct ep){.tx = &scripts[0].shim, .rx = BUF_INIT(STREAM_MAX), .id = 3};
    assert_int_equal(tunnel_channel_add(w.tunnel, e.id, &ep_ops, &e), 0);
    assert_true(wait_until(&w, streamed, &e, 20000));
    check_answers(&e, &scripts[0]);
    buf_done(&e.rx);
    world_end(&w);
    agent_end(&agent);
    script_done(&scripts[0]);
    script_done(&scripts[1]);
}

static bool file_is_there(struct world *w, void *arg)
{
    return access(arg, F_OK) == 0;
}

/* The same secret does not enrol a second daemon, over a restart neither; the key stays. */
static void test_secret_is_retired(void **state)
{
    struct world w;
    struct stat st;
    struct err err = ERR_INIT;
    struct tls_identity *other;
    world_begin(&w);
    assert_true(wait_until(&w, is_up, NULL, 20000));
    _cleanup_free_ char *key = in_dir(&w, "state/identity.pem");
    _cleanup_free_ char *retired = in_dir(&w, "state/retired");
    assert_true(wait_until(&w, file_is_there, retired, 5000));
    tunnel_free(w.tunnel);
    kill_forwarder(&w);
    w.up = w.enrolled = false;
    dial(&w, w.self); /* the same daemon, that has forgotten the pin */
    assert_true(wait_until(&w, is_refused, NULL, 20000));
    assert_false(w.up);
    tunnel_free(w.tunnel);
    w.refused[0] = '\0';
    assert_int_equal(tls_identity_new("other", &other, &err), 0);
    dial(&w, other);
    assert_true(wait_until(&w, is_refused, NULL, 20000));
    assert_false(w.up);
    assert_int_equal(stat(key, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    world_end(&w);
    tls_identity_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_carries),        cmocka_unit_test(test_killed_in_the_middle),
        cmocka_unit_test(test_recording),      cmocka_unit_test(test_bind_sources),
        cmocka_unit_test(test_agent_restarts), cmocka_unit_test(test_secret_is_retired),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
