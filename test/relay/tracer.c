/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Nobody lists the steps: the worker runs under ptrace and shows them.
 *
 * - System calls: the kernel stops the worker at entry (killed there, the call never happens) and
 *   at exit (it has happened, and the worker has not seen the result). A step is named after the
 *   call and what its first descriptor is ("splice(pipe) exit").
 * - Stores to a header: when the worker has mapped a relay's file, we let it call mprotect (system
 *   calls are injected where it stands: registers changed, one step, registers restored) and make
 *   the header's page read-only. Every store then faults. We learn the address, so the field; may
 *   kill before; make the page writable, let the one instruction run, may kill after, and protect
 *   the page again. The compiler's stores are what is caught, wherever they come from. Only behind
 *   a store to a message's header the page stays writable up to the end of the next system call,
 *   the sendmmsg in which the kernel writes to it.
 *
 * Where to kill: at a step that was never killed at, at once; else the less probably the more often
 * it was, 1/(1 + 4 kills^2), at least 1/200. So all steps get their share, rare ones first, and
 * lives last long enough to reach those behind recovery.
 *
 * A worker that stops in a way that we do not understand gets its signal and dies of it, which
 * the caller reports.
 */
#include "relay/tracer.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "relay/relay_file.h"
#include "relay/stream.h"

void tracer_name(struct tracer *t, int fd, const char *name)
{
    char path[64];
    struct tracer_object *o = &t->objects[t->n_objects++];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, o->link, sizeof(o->link) - 1);
    o->link[MAX(n, 0)] = '\0';
    o->name = name;
}

void tracer_name_path(struct tracer *t, const char *path, const char *name)
{
    struct tracer_object *o = &t->objects[t->n_objects++];

    snprintf(o->link, sizeof(o->link), "%s", path);
    o->name = name;
}

void tracer_join(void)
{
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
}

#ifdef __x86_64__

#define PAGE 4096U
#define HEADERS_MAX 4
#define WORST 200 /* a step is killed at with 1/WORST at least */

struct life {
    struct tracer *t;
    pid_t pid;
    uint64_t headers[HEADERS_MAX]; /* addresses in the worker */
    size_t n_headers;
    uint64_t writable;   /* one of them, up to the end of the next call; else 0 */
    uint64_t syscall_at; /* address of a syscall instruction */
    long nr;             /* of the call that was entered */
    uint64_t args[6];
    char name[REPORT_NAME_MAX - 8];
    bool dead; /* by our hand */
};

int tracer_check(void)
{
    int status;
    pid_t pid = fork();

    if (pid < 0)
        return -errno;
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(1);
        raise(SIGSTOP);
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
        return -EPERM;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return 0;
}

/* -- names -- */

static const char *call_name(long nr)
{
    static const struct {
        long nr;
        const char *name;
    } calls[] = {
        {SYS_recvfrom, "recv"},         {SYS_write, "write"},
        {SYS_sendmmsg, "sendmmsg"},     {SYS_getsockopt, "getsockopt"},
        {SYS_setsockopt, "setsockopt"}, {SYS_ioctl, "ioctl"},
        {SYS_openat, "openat"},         {SYS_pread64, "pread"},
        {SYS_newfstatat, "fstat"},      {SYS_fstat, "fstat"},
        {SYS_fallocate, "fallocate"},   {SYS_mmap, "mmap"},
        {SYS_munmap, "munmap"},         {SYS_fcntl, "fcntl"},
        {SYS_close, "close"},           {SYS_poll, "poll"},
        {SYS_shutdown, "shutdown"},     {SYS_brk, "brk"},
        {SYS_getpid, "getpid"},         {SYS_exit_group, "exit_group"},
        {SYS_geteuid, "geteuid"},       {SYS_prctl, "prctl"},
        {SYS_tgkill, "tgkill"},         {SYS_mprotect, "mprotect"},
        {SYS_getppid, "getppid"},       {SYS_unlinkat, "unlinkat"},
        {SYS_ftruncate, "ftruncate"},   {SYS_madvise, "madvise"},
        {SYS_futex, "futex"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
        if (calls[i].nr == nr)
            return calls[i].name;
    return NULL;
}

/* The name of the worker's descriptor, or NULL. */
static const char *object_name(const struct life *l, uint64_t fd)
{
    char path[64], link[64];

    if (fd > INT32_MAX)
        return NULL;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)l->pid, (int)fd);
    ssize_t n = readlink(path, link, sizeof(link) - 1);
    link[MAX(n, 0)] = '\0';
    for (size_t i = 0; n > 0 && i < l->t->n_objects; i++)
        if (strcmp(l->t->objects[i].link, link) == 0)
            return l->t->objects[i].name;
    return NULL;
}

static void name_call(struct life *l)
{
    const char *call = call_name(l->nr);
    const char *object = object_name(l, l->args[l->nr == SYS_mmap ? 4 : 0]);
    char number[32];

    snprintf(number, sizeof(number), "call-%ld", l->nr);
    snprintf(l->name, sizeof(l->name), "%s%s%s%s", call ? call : number, object ? "(" : "",
             object ? object : "", object ? ")" : "");
}

static const char *field_name(uint64_t offset, char *other, size_t size)
{
    static const struct {
        size_t at, len;
        const char *name;
    } fields[] = {
#define FIELD(f) {offsetof(struct relay_file, f), sizeof(((struct relay_file *)NULL)->f), #f}
        FIELD(magic),
        FIELD(major),
        FIELD(minor),
        FIELD(ring_size),
        FIELD(header_size),
        FIELD(in_base),
        FIELD(in_taking),
        FIELD(in_tail),
        FIELD(in_eof),
        FIELD(out_fin),
        FIELD(out_slot),
        FIELD(out_call),
        FIELD(slot[0].head),
        FIELD(slot[0].user),
        FIELD(slot[1].head),
        FIELD(slot[1].user),
        FIELD(call[0].base),
        FIELD(call[1].base),
        FIELD(call[0].msg.msg_len),
        FIELD(call[1].msg.msg_len),
        FIELD(call[0].msg.msg_hdr),
        FIELD(call[1].msg.msg_hdr),
#undef FIELD
    };

    for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
        if (offset >= fields[i].at && offset < fields[i].at + fields[i].len)
            return fields[i].name;
    snprintf(other, size, "offset-%llu", (unsigned long long)offset);
    return other;
}

/* -- the worker's steps -- */

static void kill_now(struct life *l)
{
    kill(l->pid, SIGKILL);
    l->dead = true;
}

static void step(struct life *l, const char *name, const char *when)
{
    char full[REPORT_NAME_MAX];

    snprintf(full, sizeof(full), "%.54s %s", name, when);
    struct step *s = report_step(l->t->report, full);
    s->seen++;
    uint64_t odds = MIN(1 + 4 * s->killed * s->killed, WORST);
    if ((l->t->spare && s->killed > 0) || stream_below(&l->t->random, odds) != 0)
        return;
    s->killed++;
    kill_now(l);
}

/* One instruction. false: the worker did not stop as it should. */
static bool single_step(struct life *l)
{
    int status;

    return ptrace(PTRACE_SINGLESTEP, l->pid, NULL, NULL) == 0 &&
           waitpid(l->pid, &status, 0) == l->pid && WIFSTOPPED(status) &&
           WSTOPSIG(status) == SIGTRAP;
}

static bool protect(struct life *l, uint64_t page, unsigned protection)
{
    struct user_regs_struct saved, regs;

    if (ptrace(PTRACE_GETREGS, l->pid, NULL, &saved) < 0)
        return false;
    regs = saved;
    regs.rip = l->syscall_at;
    regs.rax = SYS_mprotect;
    regs.orig_rax = (unsigned long long)-1;
    regs.rdi = page;
    regs.rsi = PAGE;
    regs.rdx = protection;
    if (ptrace(PTRACE_SETREGS, l->pid, NULL, &regs) < 0 || !single_step(l) ||
        ptrace(PTRACE_GETREGS, l->pid, NULL, &regs) < 0)
        return false;
    bool done = regs.rax == 0;
    return ptrace(PTRACE_SETREGS, l->pid, NULL, &saved) == 0 && done;
}

static void on_call(struct life *l)
{
    struct __ptrace_syscall_info info;

    if (ptrace(PTRACE_GET_SYSCALL_INFO, l->pid, sizeof(info), &info) <= 0)
        return;
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        l->nr = (long)info.entry.nr;
        for (size_t i = 0; i < ARRAY_SIZE(l->args); i++)
            l->args[i] = info.entry.args[i];
        name_call(l);
        step(l, l->name, "entry");
        return;
    }
    l->syscall_at = info.instruction_pointer - 2;
    step(l, l->name, "exit");
    if (!l->dead && l->writable && !protect(l, l->writable, PROT_READ))
        report_fail(l->t->report, "the tracer could not protect a header");
    l->writable = 0;
    if (l->dead || l->nr != SYS_mmap || info.exit.is_error)
        return;
    const char *object = object_name(l, l->args[4]);
    if (object && strcmp(object, "file") == 0 && l->n_headers < HEADERS_MAX) {
        uint64_t page = (uint64_t)info.exit.rval;
        l->headers[l->n_headers++] = page;
        if (!protect(l, page, PROT_READ))
            report_fail(l->t->report, "the tracer could not protect a header");
    }
}

/* false: a fault of the worker's own. */
static bool on_fault(struct life *l)
{
    char name[REPORT_NAME_MAX - 8], other[32];
    siginfo_t info;

    if (ptrace(PTRACE_GETSIGINFO, l->pid, NULL, &info) < 0)
        return false;
    uint64_t at = (uint64_t)(uintptr_t)info.si_addr, page = at & ~(uint64_t)(PAGE - 1);
    for (size_t i = 0; i < l->n_headers; i++) {
        if (l->headers[i] != page)
            continue;
        snprintf(name, sizeof(name), "store %s", field_name(at - page, other, sizeof(other)));
        step(l, name, "before");
        if (l->dead)
            return true;
        if (!protect(l, page, PROT_READ | PROT_WRITE) || !single_step(l))
            return false;
        step(l, name, "after");
        if (strstr(name, "msg_hdr"))
            l->writable = page;
        return l->dead || l->writable == page || protect(l, page, PROT_READ);
    }
    return false;
}

bool tracer_run(struct tracer *t, pid_t pid, int *ret_status)
{
    struct life l = {.t = t, .pid = pid};
    int status, sig = 0;
    unsigned stops = 0;

    waitpid(pid, &status, 0);
    if (!WIFSTOPPED(status)) {
        *ret_status = status;
        return false;
    }
    ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    while (!l.dead) {
        if (++stops % 1024 == 0 && t->give_up(t->give_up_arg)) {
            kill_now(&l);
            break;
        }
        ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(uintptr_t)sig);
        sig = 0;
        if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) {
            *ret_status = status;
            return false;
        }
        if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            on_call(&l);
        else if (WSTOPSIG(status) != SIGSEGV || !on_fault(&l))
            sig = WSTOPSIG(status);
    }
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
        ;
    *ret_status = status;
    return true;
}

#else

int tracer_check(void)
{
    return -ENOSYS;
}

bool tracer_run(struct tracer *t, pid_t pid, int *ret_status)
{
    (void)t;
    waitpid(pid, ret_status, 0);
    return false;
}

#endif
