/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up rights, each case in a child of its own: what is allowed goes on, what is not fails with the
 * errno that was promised or ends the child.
 */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/harden.h"
#include "base/str.h"

#define UNSUPPORTED 77

/* The status of a child that runs fn, which returns its exit status. */
static int in_child(int (*fn)(void))
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0)
        _exit(fn());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void assert_exits(int (*fn)(void), int expected)
{
    int status = in_child(fn);
    if (WIFEXITED(status) && WEXITSTATUS(status) == UNSUPPORTED)
        return; /* a sanitizer: said in `install` */
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), expected);
}

static void assert_killed(int (*fn)(void))
{
    int status = in_child(fn);
    if (WIFEXITED(status) && WEXITSTATUS(status) == UNSUPPORTED)
        return;
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* -- dumps -- */

static int no_dumps(void)
{
    struct rlimit limit;
    harden_no_dumps();
    getrlimit(RLIMIT_CORE, &limit);
    return limit.rlim_cur != 0 || limit.rlim_max != 0 || prctl(PR_GET_DUMPABLE) != 0;
}

static void dumps(void **state)
{
    assert_exits(no_dumps, 0);
}

/* -- the environment -- */

static void variables(void **state)
{
    setenv("HARDEN_SECRET", "abcdef", 1);
    setenv("HARDEN_SECRET2", "kept", 1);
    const char *value = getenv("HARDEN_SECRET");
    harden_forget_variable("HARDEN_SECRET");
    assert_null(getenv("HARDEN_SECRET"));
    assert_memory_equal(value, "\0\0\0\0\0\0", 6);
    assert_string_equal(getenv("HARDEN_SECRET2"), "kept");
    harden_forget_variable("HARDEN_SECRET");
}

/* -- capabilities -- */

static uint64_t effective(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    syscall(SYS_capget, &header, data);
    return (uint64_t)data[1].effective << 32 | data[0].effective;
}

static int drop_for_good(void)
{
    struct err err = ERR_INIT;
    uint64_t keep = HARDEN_CAP(CAP_NET_ADMIN) | HARDEN_CAP(CAP_CHECKPOINT_RESTORE);
    uint64_t had = effective();
    if (harden_capabilities(keep, false, &err) < 0)
        return 1;
    if (effective() != (had & keep))
        return 2;
    if (had & HARDEN_CAP(CAP_SETPCAP))
        for (int cap = 0; cap < 40; cap++)
            if (prctl(PR_CAPBSET_READ, cap) == 1 && !(keep & HARDEN_CAP(cap)))
                return 3;
    return harden_capabilities(0, false, &err) < 0 || effective() != 0 ? 4 : 0;
}

static int drop_but_not_children(void)
{
    struct err err = ERR_INIT;
    int before = prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN);
    if (harden_capabilities(0, true, &err) < 0 || effective() != 0)
        return 1;
    return prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN) == before ? 0 : 2;
}

static void capabilities(void **state)
{
    assert_exits(drop_for_good, 0);
    assert_exits(drop_but_not_children, 0);
}

/* -- the filter -- */

static void install(void)
{
    static const int calls[] = {SYS_getppid, -1};
    struct err err = ERR_INIT;
    if (harden_no_new_privs(&err) < 0)
        _exit(100);
    int r = harden_syscalls(calls, ARRAY_SIZE(calls), &err);
    if (r < 0)
        _exit(r == -ENOTSUP ? UNSUPPORTED : 101);
}

static int honest(void)
{
    install();
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_READ) < 0 || munmap(p, 4096) < 0)
        return 1;
    if (getppid() <= 0 || !malloc(1 << 20))
        return 2;
    for (int family = AF_UNIX; family <= AF_INET; family++)
        if (socket(family, SOCK_STREAM, 0) < 0)
            return 3;
    return socket(AF_INET6, SOCK_STREAM, 0) < 0 && errno != EAFNOSUPPORT ? 4 : 0;
}

static int unknown_calls(void)
{
    install();
    errno = 0;
    if (syscall(SYS_mkdirat, AT_FDCWD, "/tmp/never", 0) != -1 || errno != ENOSYS)
        return 1;
    if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) != -1 || errno != ENOSYS)
        return 2;
    if (syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY) != -1 || errno != ENOSYS)
        return 3;
    return syscall(5000) != -1 || errno != ENOSYS ? 4 : 0;
}

static int executable_memory(void)
{
    install();
    errno = 0;
    if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED ||
        errno != EPERM)
        return 1;
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(p, 4096, PROT_READ | PROT_EXEC) != -1 || errno != EPERM ? 2 : 0;
}

static int other_sockets(void)
{
    static const int families[] = {AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK};
    install();
    for (size_t i = 0; i < ARRAY_SIZE(families); i++)
        if (socket(families[i], SOCK_RAW, 0) != -1 || errno != EAFNOSUPPORT)
            return (int)i + 1;
    return 0;
}

static int exec(void)
{
    char *const argv[] = {(char[]){"true"}, NULL};
    install();
    execv("/bin/true", argv);
    return 1;
}

static int trace(void)
{
    install();
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    return 1;
}

static int namespaces(void)
{
    install();
    unshare(CLONE_NEWUSER);
    return 1;
}

static void filter(void **state)
{
    assert_exits(honest, 0);
    assert_exits(unknown_calls, 0);
    assert_exits(executable_memory, 0);
    assert_exits(other_sockets, 0);
    assert_killed(exec);
    assert_killed(trace);
    assert_killed(namespaces);
}

#ifdef __x86_64__
static int x32(void)
{
    install();
    errno = 0;
    return syscall(0x40000000L | SYS_execve, NULL, NULL, NULL) != -1 || errno != ENOSYS;
}

static int old_abi(void)
{
    long r = 11; /* execve of i386 */
    install();
    __asm__ volatile("int $0x80" : "+a"(r) : "b"(0), "c"(0), "d"(0) : "memory");
    return 1;
}

static void other_architectures(void **state)
{
    assert_exits(x32, 0);
    assert_killed(old_abi);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dumps),
        cmocka_unit_test(variables),
        cmocka_unit_test(capabilities),
        cmocka_unit_test(filter),
#ifdef __x86_64__
        cmocka_unit_test(other_architectures),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
