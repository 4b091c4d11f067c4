/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What PID 1 of a VM does: what the image's units do in a real one, in their order.
 *
 *   boot delay, process-user-data provision-files, the agent, then exec of peerpod-keeper, which
 *   runs the forwarder and starts it again when it dies (in the image that is systemd).
 *
 * When PID 1 ends, so does the VM: a failed process-user-data powers it off, which is told apart
 * from a forwarder that is slow. Everything that is said goes to the VM's console.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "base/fs.h"
#include "base/str.h"
#include "providers/local/vm/vm.h"

#define FORWARDER_PORT 15150

static const char *const environment[] = {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8",
    "container=peerpod-local", NULL};

static char **guest_environment(void)
{
    return (char **)(uintptr_t)environment;
}

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vdprintf(2, fmt, ap);
    va_end(ap);
}

static void wait_ms(int64_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        continue;
}

static pid_t start(const char *path, const char *const *argv)
{
    pid_t pid = fork();

    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        execve(path, (char **)(uintptr_t)argv, guest_environment());
        say("local VM: %s: %s\n", path, strerror(errno));
        _exit(127);
    }
    if (pid < 0)
        say("local VM: starting %s: %s\n", path, strerror(errno));
    return pid;
}

/* Waits for one process and reaps all others that end meanwhile: we are PID 1. */
static int await(pid_t pid)
{
    int status = -1;
    pid_t got;

    do
        got = wait(&status);
    while (got != pid && (got > 0 || errno == EINTR));
    return got == pid ? status : -1;
}

_noreturn_ static void idle(void)
{
    for (;;)
        if (wait(NULL) < 0)
            wait_ms(1000);
}

static void provision(const struct guest *g)
{
    _cleanup_free_ char *path = str_asprintf("%s/process-user-data", g->guest_dir);
    const char *const argv[] = {"process-user-data", "provision-files", NULL};
    pid_t pid = start(path, argv);
    int status = pid > 0 ? await(pid) : -1;

    if (status == 0)
        return;
    say("local VM: process-user-data failed (status 0x%x), powering off\n", (unsigned)status);
    _exit(1);
}

static void start_agent(const struct guest *g)
{
    _cleanup_free_ char *own = str_asprintf("%s/test-agent", g->guest_dir);
    _cleanup_free_ char *command = str_asprintf("exec %s", g->agent);
    const char *const own_argv[] = {"test-agent", NULL};
    const char *const argv[] = {"sh", "-c", command, NULL};
    struct err err = ERR_INIT;

    if (fs_mkdir_p("/run/kata-containers", 0755, &err) < 0)
        say("local VM: %s\n", err.text);
    /* Ours without a shell: its path may hold a space. */
    if (g->agent[0] == '\0')
        (void)start(own, own_argv);
    else
        (void)start("/bin/sh", argv);
}

/* -guest-fault=no-tls: something answers on the port, and it is not TLS. */
_noreturn_ static void answer_without_tls(void)
{
    const struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(FORWARDER_PORT)};
    static const char words[] = "HTTP/1.0 400 this is not TLS\r\n\r\n";
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (const struct sockaddr *)&any, sizeof(any)) < 0 || listen(fd, 16) < 0) {
        say("local VM: listening on port %d: %s\n", FORWARDER_PORT, strerror(errno));
        idle();
    }
    for (;;) {
        int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (c < 0)
            continue;
        ssize_t n = write(c, words, sizeof(words) - 1);
        if (n < 0)
            say("local VM: writing: %s\n", strerror(errno));
        shutdown(c, SHUT_WR);
        close(c);
    }
}

/* Never returns but when there is no keeper. Pauses as systemd's in a real VM: RestartSec=100ms, and
 * never longer. */
static void become_keeper(const struct guest *g)
{
    _cleanup_free_ char *keeper = str_asprintf("%s/peerpod-keeper", g->guest_dir);
    _cleanup_free_ char *forwarder = str_asprintf("%s/agent-protocol-forwarder", g->guest_dir);
    const char *const argv[] = {"peerpod-keeper", "-restart-min", "100ms",   "-restart-max",
                                "100ms",          "--",           forwarder, NULL};

    if (access(keeper, X_OK) < 0)
        return;
    execve(keeper, (char **)(uintptr_t)argv, guest_environment());
    say("local VM: %s: %s\n", keeper, strerror(errno));
    _exit(1);
}

/* Without a keeper beside the guest programs the forwarder is started again, but loses what a
 * descriptor store would have kept. */
_noreturn_ static void be_keeper(const struct guest *g)
{
    _cleanup_free_ char *path = str_asprintf("%s/agent-protocol-forwarder", g->guest_dir);
    const char *const argv[] = {"agent-protocol-forwarder", NULL};

    say("local VM: no peerpod-keeper in %s, a restart of the forwarder loses its connections\n",
        g->guest_dir);
    for (;;) {
        pid_t pid = start(path, argv);
        int status = pid > 0 ? await(pid) : -1;
        say("local VM: the forwarder ended (status 0x%x)\n", (unsigned)status);
        wait_ms(100);
    }
}

void guest_boot(const struct guest *g)
{
    if (str_eq(g->fault, "no-boot"))
        idle();
    wait_ms(g->boot_delay_ms);
    provision(g);
    start_agent(g);
    if (str_eq(g->fault, "no-forwarder"))
        idle();
    if (str_eq(g->fault, "no-tls"))
        answer_without_tls();
    become_keeper(g);
    be_keeper(g);
}
