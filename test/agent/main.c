/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test-agent: a stand-in for kata-agent with real processes. It listens, hands connections to the
 * server, and ends on SIGTERM, SIGINT or after DestroySandbox, as the real one does.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "container.h"
#include "jail.h"
#include "server.h"
#include "service.h"

#define BACKLOG 128

struct options {
    const char *socket, *run_dir, *journal, *bodies;
};

static const char usage[] =
    "usage: test-agent [--socket PATH] [--run-dir DIR] [--journal FILE] [--bodies DIR]\n"
    "A stand-in for kata-agent, for tests and the local provider. Runs as root.\n"
    "  --socket PATH   where to listen (/run/kata-containers/agent.sock)\n"
    "  --run-dir DIR   what CreateSandbox empties, socket included (/run/kata-containers)\n"
    "  --journal FILE  append one JSON line per request: conn, sid, service, method, len, sha256\n"
    "  --bodies DIR    keep the body of each request as DIR/NUMBER\n";

static int end_event = -1;

static void on_end(void)
{
    static const uint64_t one = 1;

    if (write(end_event, &one, sizeof one) < 0)
        abort();
}

static int options_parse(int argc, char **argv, struct options *ret)
{
    static const struct option table[] = {
        {"socket", required_argument, NULL, 's'},  {"run-dir", required_argument, NULL, 'r'},
        {"journal", required_argument, NULL, 'j'}, {"bodies", required_argument, NULL, 'b'},
        {"help", no_argument, NULL, 'h'},          {0},
    };
    int c;

    *ret = (struct options){.socket = "/run/kata-containers/agent.sock",
                            .run_dir = "/run/kata-containers"};
    while ((c = getopt_long(argc, argv, "h", table, NULL)) >= 0) {
        switch (c) {
        case 's':
            ret->socket = optarg;
            break;
        case 'r':
            ret->run_dir = optarg;
            break;
        case 'j':
            ret->journal = optarg;
            break;
        case 'b':
            ret->bodies = optarg;
            break;
        default:
            return -EINVAL;
        }
    }
    return optind == argc ? 0 : -EINVAL;
}

/* The directory is emptied later: never on a worker, whose shims and CSI drivers live there. */
static int run_dir_check(const char *dir, struct err *err)
{
    _cleanup_free_ char *volumes = str_asprintf("%s/shared/direct-volumes", dir);
    _cleanup_free_ char *sandboxes = str_asprintf("%s/shared/sandboxes", dir);

    if (dir[0] != '/' || str_eq(dir, "/"))
        return err_set(err, -EINVAL, "--run-dir needs an absolute path");
    if (access(volumes, F_OK) == 0 || access(sandboxes, F_OK) == 0)
        return err_set(err, -EPERM,
                       "%s belongs to a worker node; the test agent would empty it. Give it a /run "
                       "of its own, or --run-dir",
                       dir);
    return fs_mkdir_p(dir, 0755, err);
}

static int listen_on(const char *path, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return err_errno(err, -errno, "a socket");
    if (str_format(addr.sun_path, sizeof addr.sun_path, "%s", path) < 0)
        return err_set(err, -ENAMETOOLONG, "socket path %s is too long", path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, BACKLOG) < 0)
        return err_errno(err, -errno, "listening on %s", path);
    return TAKE_FD(fd);
}

static int signals_open(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Whether one of the pending signals means the end. */
static bool signals_take(int signals)
{
    struct signalfd_siginfo info;
    bool end = false;

    while (read(signals, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo == SIGCHLD)
            sandbox_reap();
        else
            end = true;
    return end;
}

static void serve(struct server *s, int listener, int signals)
{
    struct pollfd p[] = {{.fd = listener, .events = POLLIN},
                         {.fd = signals, .events = POLLIN},
                         {.fd = end_event, .events = POLLIN}};

    for (;;) {
        if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
            return;
        if (p[2].revents || (p[1].revents && signals_take(signals)))
            return;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            server_add(s, fd);
    }
}

static int run(const struct options *o, struct err *err)
{
    struct server_config config = {
        .journal = o->journal, .bodies = o->bodies, .methods = service_methods(o->run_dir, on_end)};
    _cleanup_(server_freep) struct server *s = NULL;
    int r = run_dir_check(o->run_dir, err);

    if (r < 0)
        return r;
    _cleanup_close_ int signals = signals_open();
    end_event = eventfd(0, EFD_CLOEXEC);
    if (signals < 0 || end_event < 0)
        return err_errno(err, -errno, "signals");
    _cleanup_close_ int listener = listen_on(o->socket, err);
    if (listener < 0)
        return listener;
    r = server_new(&config, &s, err);
    if (r < 0)
        return r;
    sandbox_init(&(struct sandbox_config){.run_dir = o->run_dir});
    log_info("listening on %s", o->socket);
    serve(s, listener, signals);
    return 0;
}

int main(int argc, char **argv)
{
    struct options options;
    struct err err = ERR_INIT;

    if (argc == 3 && str_eq(argv[1], "--jail"))
        return jail_main(argv[2]);
    log_init("test-agent", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (options_parse(argc, argv, &options) < 0) {
        fputs(usage, stderr);
        return 2;
    }
    if (run(&options, &err) < 0) {
        log_error("%s", err_text(&err));
        return 1;
    }
    sandbox_done();
    return 0;
}
