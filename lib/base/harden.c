/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up rights.
 *
 * Everything here is a second line of defence: where it is refused (an old kernel, a container's own
 * filter, a user namespace) the program goes on, and its caller says so in the log.
 *
 * Capabilities: effective, permitted and inheritable are set to what is kept, the ambient set is
 * emptied, and unless children need more the bounding set too, so that no exec brings them back.
 * Raw system calls, because libcap would be one library more in the guest.
 *
 * The filter is a list of numbers in classic BPF, written by hand for the same reason: two
 * instructions for each call. The kernel keeps a bitmap of calls that are allowed whatever their
 * arguments, so the list's length costs nothing. A call that is not in the list gets ENOSYS rather
 * than a signal: a libc that learns a new call falls back to the old one, and a pod is not lost for
 * it. What no honest path of our programs leads to (exec above all) ends the process: then somebody
 * else is at the controls.
 */
#include "base/harden.h"

#include <endian.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/str.h"

/* -- dumps -- */

void harden_no_dumps(void)
{
    static const struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0); /* also against handlers (core_pattern), which no limit stops */
}

/* -- the environment -- */

extern char **environ;

void harden_forget_variable(const char *name)
{
    size_t len = strlen(name);
    for (char **e = environ; e && *e; e++)
        if (strncmp(*e, name, len) == 0 && (*e)[len] == '=')
            secret_wipe(*e + len + 1, strlen(*e + len + 1));
    unsetenv(name);
}

/* -- capabilities -- */

static int drop_bounding(uint64_t keep)
{
    for (int cap = 0; cap < 64; cap++) {
        int there = prctl(PR_CAPBSET_READ, cap);
        if (there < 0)
            return 0; /* beyond the kernel's last */
        if (there > 0 && !(keep & HARDEN_CAP(cap)) && prctl(PR_CAPBSET_DROP, cap) < 0)
            return -errno;
    }
    return 0;
}

int harden_capabilities(uint64_t keep, bool children, struct err *err)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &header, data) < 0)
        return err_errno(err, -errno, "reading our capabilities");
    if (!children && (data[0].permitted || data[1].permitted)) {
        /* Needs CAP_SETPCAP; who has none of it keeps a bounding set that is of no use to it. */
        int r = drop_bounding(keep);
        if (r < 0 && r != -EPERM)
            return err_errno(err, r, "dropping capabilities from the bounding set");
    }
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (size_t i = 0; i < ARRAY_SIZE(data); i++) {
        data[i].permitted &= (uint32_t)(keep >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        return err_errno(err, -errno, "dropping capabilities");
    return 0;
}

int harden_no_new_privs(struct err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_errno(err, -errno, "no_new_privs");
    return 0;
}

/* -- the filter -- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__s390x__)
#define ARCHITECTURE AUDIT_ARCH_S390X
#else
#define ARCHITECTURE 0
#endif

#define X32_BIT 0x40000000U
#define FILTER_MAX 1024
#define LOW_WORD (__BYTE_ORDER == __BIG_ENDIAN ? 4U : 0U)
#define ARGUMENT(n) ((uint32_t)offsetof(struct seccomp_data, args[n]) + LOW_WORD)

struct filter {
    struct sock_filter code[FILTER_MAX];
    unsigned short n;
};

static void add(struct filter *f, uint16_t code, uint8_t yes, uint8_t no, uint32_t k)
{
    if (f->n < FILTER_MAX)
        f->code[f->n++] = (struct sock_filter){code, yes, no, k};
}

static void add_load(struct filter *f, uint32_t offset)
{
    add(f, BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
}

static void add_return(struct filter *f, uint32_t action)
{
    add(f, BPF_RET | BPF_K, 0, 0, action);
}

static void add_call(struct filter *f, int nr, uint32_t action)
{
    if (nr < 0)
        return;
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)nr);
    add_return(f, action);
}

/* The call's memory may not be executable. On s390x mmap's arguments lie in memory, out of sight. */
static void add_memory_call(struct filter *f, int nr)
{
#ifdef __s390x__
    if (nr == SYS_mmap) {
        add_call(f, nr, SECCOMP_RET_ALLOW);
        return;
    }
#endif
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 4, (uint32_t)nr);
    add_load(f, ARGUMENT(2));
    add(f, BPF_JMP | BPF_JSET | BPF_K, 0, 1, PROT_EXEC);
    add_return(f, SECCOMP_RET_ERRNO | EPERM);
    add_return(f, SECCOMP_RET_ALLOW);
}

static void add_socket_call(struct filter *f)
{
    static const uint32_t families[] = {AF_UNIX, AF_INET, AF_INET6};
    uint8_t n = ARRAY_SIZE(families);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)(n + 3), SYS_socket);
    add_load(f, ARGUMENT(0));
    for (uint8_t i = 0; i < n; i++)
        add(f, BPF_JMP | BPF_JEQ | BPF_K, (uint8_t)(n - i), 0, families[i]);
    add_return(f, SECCOMP_RET_ERRNO | EAFNOSUPPORT);
    add_return(f, SECCOMP_RET_ALLOW);
}

/* Computing, time, signals to itself, memory, ending, and the log. */
static const int common[] = {
    SYS_brk,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_futex,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_gettimeofday,
    SYS_nanosleep,
    SYS_getpid,
    SYS_gettid,
    SYS_tgkill,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_exit,
    SYS_exit_group,
    SYS_restart_syscall,
    SYS_sched_yield,
    SYS_getrandom,
    SYS_read,
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_fcntl,
    SYS_fstat,
    SYS_lseek,
    SYS_geteuid,
    SYS_getuid,
    SYS_getrusage,
    SYS_prlimit64,
    SYS_uname,
    SYS_sched_getaffinity,
#ifdef SYS_rseq
    SYS_rseq,
#endif
#ifdef SYS_time
    SYS_time,
#endif
};

static const int deadly[] = {
    SYS_execve,     SYS_execveat, SYS_ptrace,      SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_mount,      SYS_umount2,  SYS_pivot_root,  SYS_chroot,           SYS_setns,
    SYS_unshare,    SYS_bpf,      SYS_init_module, SYS_finit_module,     SYS_delete_module,
    SYS_kexec_load, SYS_keyctl,   SYS_add_key,     SYS_perf_event_open,  SYS_userfaultfd,
    SYS_setuid,     SYS_setgid,   SYS_setresuid,   SYS_setresgid,        SYS_open_by_handle_at,
    SYS_reboot,     SYS_swapon,   SYS_personality,
};

static int install(struct filter *f, struct err *err)
{
    const struct sock_fprog program = {.len = f->n, .filter = f->code};
    if (f->n == FILTER_MAX)
        return err_set(err, -E2BIG, "the list of system calls is too long");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return err_errno(err, -errno, "installing the filter of system calls");
    return 0;
}

int harden_syscalls(const int *allowed, size_t n, struct err *err)
{
    struct filter f = {.n = 0};
    if (ARCHITECTURE == 0 || SANITIZED)
        return err_set(err, -ENOTSUP, "no filter of system calls %s",
                       SANITIZED ? "together with a sanitizer" : "for this architecture");
    add_load(&f, offsetof(struct seccomp_data, arch));
    add(&f, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCHITECTURE);
    add_return(&f, SECCOMP_RET_KILL_PROCESS);
    add_load(&f, offsetof(struct seccomp_data, nr));
    add(&f, BPF_JMP | BPF_JGE | BPF_K, 0, 1, X32_BIT);
    add_return(&f, SECCOMP_RET_ERRNO | ENOSYS);
    for (size_t i = 0; i < ARRAY_SIZE(deadly); i++)
        add_call(&f, deadly[i], SECCOMP_RET_KILL_PROCESS);
    for (size_t i = 0; i < ARRAY_SIZE(common); i++)
        add_call(&f, common[i], SECCOMP_RET_ALLOW);
    for (size_t i = 0; i < n; i++)
        add_call(&f, allowed[i], SECCOMP_RET_ALLOW);
    add_memory_call(&f, SYS_mmap);
    add_memory_call(&f, SYS_mprotect);
    add_socket_call(&f);
    add_return(&f, SECCOMP_RET_ERRNO | ENOSYS);
    return install(&f, err);
}
