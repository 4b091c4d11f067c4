/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the keeper's tests share: real keepers, each with a child that does what it is told.
 *
 * The child is the test program again ("child SOCKET"): each of its lives connects to the test's
 * socket, says what it was given, and obeys one-line commands. All of them die with the test: the
 * keeper has a parent-death signal, the child sees the end of its connection.
 */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"
#include "relay/fdstore.h"

#define MESSAGE 60000
#define WAIT_MS 15000
#define NOBODY 65534

/* Not every test needs everything. */
#pragma GCC diagnostic ignored "-Wunused-function"

static const char *keeper_path, *self_path, *preload;

/* -- the child -- */

static int child_socket;

static void say(const char *fmt, ...) _printf_(1, 2);

static void say(const char *fmt, ...)
{
    static char text[MESSAGE];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (send(child_socket, text, (size_t)n, MSG_NOSIGNAL) != n)
        _exit(99);
}

/* Signals come as messages too, so that a sanitizer has no handler to delay. */
static int open_signals(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaddset(&set, signals[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

static void pass_signal(int fd)
{
    struct signalfd_siginfo info;

    if (read(fd, &info, sizeof(info)) == sizeof(info))
        say("signal %d", (int)info.ssi_signo);
}

static int make_content(const char *content)
{
    int fd = memfd_create("content", MFD_CLOEXEC);

    if (fd < 0 || write(fd, content, strlen(content)) < 0)
        _exit(98);
    return fd;
}

static void add(const char *name, const char *content)
{
    struct err err = ERR_INIT;
    _cleanup_close_ int fd = make_content(content);

    if (fdstore_add(name, fd, &err) < 0)
        say("error %s", err_text(&err));
}

static void list_one(const char *name, int fd, void *arg)
{
    struct buf *out = arg;
    char content[64] = "";

    if (pread(fd, content, sizeof(content) - 1, 0) < 0)
        snprintf(content, sizeof(content), "!%d", errno);
    buf_addf(out, "%s%s=%s%s", out->len ? " " : "", name, content,
             fcntl(fd, F_GETFD) == FD_CLOEXEC ? "" : "!cloexec");
}

/* A grandchild whose parent is gone: the keeper's to reap. */
static void make_orphan(void)
{
    pid_t middle = fork();

    if (middle == 0) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        say("orphan %d", (int)pid);
        _exit(0);
    }
    waitpid(middle, NULL, 0);
}

/* Connected as ourselves (the directory lets nobody else in), sent as somebody else. */
static void add_as(uid_t uid, const char *name, const char *notify_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    pid_t pid = fork();

    if (pid == 0) {
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        int rights = make_content("foreign");
        char text[64], control[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec iov = {.iov_base = text};
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        *c = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &rights, sizeof(int));
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", notify_path);
        iov.iov_len = (size_t)snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || setuid(uid) < 0 ||
            sendmsg(fd, &msg, 0) < 0)
            _exit(1);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    say("sent %d", status);
}

static void obey(const char *command, const char *notify_path)
{
    char name[32], content[32];
    struct err err = ERR_INIT;
    int n, from;

    if (sscanf(command, "add %31s %31s", name, content) == 2) {
        add(name, content);
        say("ok");
    } else if (sscanf(command, "many %d %d", &from, &n) == 2) {
        for (int i = from; i < from + n; i++) {
            snprintf(name, sizeof(name), "name-of-20-chars%04d", i);
            snprintf(content, sizeof(content), "%d", i);
            add(name, content);
        }
        say("ok");
    } else if (sscanf(command, "last-add %31s %31s", name, content) == 2) {
        add(name, content);
        kill(getpid(), SIGKILL);
    } else if (sscanf(command, "last-words %31s %31s", name, content) == 2) {
        add(name, content); /* and the keeper with us, before it can do a thing */
        kill(getppid(), SIGKILL);
        kill(getpid(), SIGKILL);
    } else if (str_eq(command, "ready")) {
        fdstore_notify("READY=1", &err);
        say("ok");
    } else if (sscanf(command, "remove %31s", name) == 1) {
        fdstore_remove(name, &err);
        say("ok");
    } else if (sscanf(command, "exit %d", &n) == 1) {
        _exit(n);
    } else if (str_eq(command, "orphan")) {
        make_orphan();
    } else if (sscanf(command, "as %d %31s", &n, name) == 2) {
        add_as((uid_t)n, name, notify_path);
    } else if (str_eq(command, "env")) {
        say("%s %s %s %s", getenv("LISTEN_FDS") ?: "-", getenv("LISTEN_PID") ?: "-",
            getenv("LISTEN_FDNAMES") ?: "-", getenv("NOTIFY_SOCKET") ?: "-");
    } else {
        say("what is '%s'?", command);
    }
}

static void say_hello(void)
{
    struct buf list = BUF_INIT(MESSAGE - 100);

    fdstore_each("", list_one, &list);
    say("hello %d %s", (int)getpid(), list.data ? list.data : "");
    buf_done(&list);
}

static int child_main(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char command[128], notify_path[100];
    struct err err = ERR_INIT;
    ssize_t n;

    snprintf(notify_path, sizeof(notify_path), "%s", getenv("NOTIFY_SOCKET") ?: "");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int r = fdstore_init(&err);
    child_socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(child_socket, (struct sockaddr *)&address, sizeof(address)) < 0)
        return 97;
    if (r < 0)
        say("error %s", err_text(&err));
    struct pollfd fds[] = {{.fd = child_socket, .events = POLLIN},
                           {.fd = open_signals(), .events = POLLIN}};
    say_hello();
    while (poll(fds, ARRAY_SIZE(fds), -1) > 0) {
        if (fds[1].revents)
            pass_signal(fds[1].fd);
        if (!fds[0].revents)
            continue;
        n = recv(child_socket, command, sizeof(command) - 1, 0);
        if (n <= 0)
            break;
        command[n] = '\0';
        obey(command, notify_path);
    }
    return 0;
}

/* -- the test's side -- */

struct fixture {
    char dir[64], path[96];
    int listener, conn;
    pid_t keeper, child;
    int status; /* of the keeper, once ended() is true */
    int log;    /* its standard error; 0: ours */
    char reply[MESSAGE];
    char store[MESSAGE]; /* what the last hello said */
};

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(f->dir, sizeof(f->dir), "/tmp/keeper-test.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/sock", f->dir);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", f->path);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(f->listener, 8), 0);
    f->conn = -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    closep(&f->conn);
    close(f->listener);
    if (f->keeper > 0) {
        kill(f->keeper, SIGTERM);
        waitpid(f->keeper, NULL, 0);
    }
    fs_remove_tree(AT_FDCWD, f->dir, NULL);
    free(f);
    return 0;
}

/* Words end with NULL. flags: of clone(2). */
static void start_keeper_in(struct fixture *f, const char *const *words, unsigned long flags)
{
    const char *argv[32] = {keeper_path};
    size_t n = 1;
    pid_t parent = getpid();

    for (; *words; words++)
        argv[n++] = *words;
    f->keeper = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
    assert_true(f->keeper >= 0);
    if (f->keeper == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent && getppid() != 0) /* 0: in another pid namespace */
            _exit(1);
        if (f->log > 0)
            dup2(f->log, STDERR_FILENO);
        if (preload)
            setenv("LD_PRELOAD", preload, 1);
        setenv("LISTEN_FDS", "7", 1); /* not the child's business */
        execv(keeper_path, (char *const *)(uintptr_t)argv);
        _exit(96);
    }
}

static void start_keeper(struct fixture *f, const char *const *words)
{
    start_keeper_in(f, words, 0);
}

static void start_with_child(struct fixture *f)
{
    const char *const words[] = {"-log-level", "error", "-restart-max", "200ms", "-settled",
                                 "10s",        "--",    self_path,      "child", f->path,
                                 NULL};
    start_keeper(f, words);
}

static void wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
}

static const char *hear(struct fixture *f)
{
    wait_readable(f->conn);
    ssize_t n = recv(f->conn, f->reply, sizeof(f->reply) - 1, 0);
    assert_true(n > 0);
    f->reply[n] = '\0';
    return f->reply;
}

static const char *ask(struct fixture *f, const char *command)
{
    assert_true(send(f->conn, command, strlen(command), MSG_NOSIGNAL) > 0);
    return hear(f);
}

static void order(struct fixture *f, const char *command)
{
    assert_true(send(f->conn, command, strlen(command), MSG_NOSIGNAL) > 0);
}

/* The next life of the child. */
static void meet(struct fixture *f)
{
    int n = 0;

    closep(&f->conn);
    wait_readable(f->listener);
    f->conn = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(f->conn >= 0);
    hear(f);
    assert_int_equal(sscanf(f->reply, "hello %d %n", &f->child, &n), 1);
    snprintf(f->store, sizeof(f->store), "%s", f->reply + n);
}

static void kill_child(struct fixture *f)
{
    assert_int_equal(kill(f->child, SIGKILL), 0);
    meet(f);
}

static int keeper_status(struct fixture *f)
{
    int status;
    assert_int_equal(waitpid(f->keeper, &status, 0), f->keeper);
    f->keeper = 0;
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* As meet() and ask(), of a child that may die meanwhile. */
static bool try_meet(struct fixture *f)
{
    struct pollfd p = {.fd = f->listener, .events = POLLIN};
    int n = 0;

    if (poll(&p, 1, 0) != 1)
        return false;
    closep(&f->conn);
    f->conn = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
    ssize_t len = recv(f->conn, f->reply, sizeof(f->reply) - 1, 0);
    if (len <= 0)
        return false;
    f->reply[len] = '\0';
    assert_int_equal(sscanf(f->reply, "hello %d %n", &f->child, &n), 1);
    snprintf(f->store, sizeof(f->store), "%s", f->reply + n);
    return true;
}

static bool try_hear(struct fixture *f, int ms)
{
    struct pollfd p = {.fd = f->conn, .events = POLLIN};

    if (f->conn < 0 || poll(&p, 1, ms) != 1)
        return false;
    ssize_t len = recv(f->conn, f->reply, sizeof(f->reply) - 1, 0);
    f->reply[MAX(len, 0)] = '\0';
    if (len <= 0)
        close(TAKE_FD(f->conn));
    return len > 0;
}

static bool try_ask(struct fixture *f, const char *command)
{
    return f->conn >= 0 && send(f->conn, command, strlen(command), MSG_NOSIGNAL) > 0 &&
           try_hear(f, WAIT_MS);
}

/* Not by waitpid: that would take a stop away from the tracing thread. */
static bool is_alive(pid_t pid)
{
    char path[32], text[64] = "";

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    const char *state = n > 0 ? strchr(text, ')') : NULL;
    return state && state[2] != 'Z' && state[2] != 'X';
}

static bool ended(struct fixture *f)
{
    if (f->keeper > 0 && !is_alive(f->keeper)) {
        waitpid(f->keeper, &f->status, WNOHANG);
        f->keeper = 0;
    }
    return f->keeper == 0;
}

/* What main does in all of them; -1: run the tests. */
static int keeper_world_main(int argc, char **argv)
{
    static char real[4096];

    if (argc == 3 && str_eq(argv[1], "child"))
        return child_main(argv[2]);
    if (argc < 2) {
        fprintf(stderr, "usage: %s KEEPER [PRELOAD]\n", argv[0]);
        return 2;
    }
    keeper_path = argv[1];
    preload = argc > 2 ? argv[2] : NULL;
    self_path = real;
    /* A /run of our own, as root: killed keepers leave their folders there. */
    if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        mount("tmpfs", "/run", "tmpfs", 0, NULL);
    return readlink("/proc/self/exe", real, sizeof(real) - 1) < 0 ? 1 : -1;
}
