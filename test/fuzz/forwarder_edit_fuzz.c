/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile shim's stream through the edit, in pieces, with a successor taking over in between,
 * against the same stream judged whole: frame by frame with splice_peek and splice_frame. The agent
 * sends the same bytes, so the walker sees hostile headers. The first byte is the size of a piece,
 * the second how often a successor takes over.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "forwarder/edit.h"

#define NETNS "/run/netns/podns"
#define INPUT_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct splice_rules rules = {.netns_path = NETNS, .clear_dns = true};

struct run {
    int dir, ours, theirs;
    struct relay *relay;
    struct edit *edit;
    struct buf got;
    const uint8_t *stream;
    size_t len, sent;
};

static void check(bool ok)
{
    if (!ok)
        abort();
}

static int copy_of(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static void begin(struct run *x)
{
    int s[2];
    signal(SIGPIPE, SIG_IGN);
    x->dir = open(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp",
                  O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(x->dir >= 0 &&
          socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) == 0);
    x->ours = s[0];
    x->theirs = s[1];
    char names[2][64];
    snprintf(names[0], sizeof(names[0]), "fuzz_edit.%d.relay", (int)getpid());
    snprintf(names[1], sizeof(names[1]), "fuzz_edit.%d.edit", (int)getpid());
    unlinkat(x->dir, names[0], 0);
    unlinkat(x->dir, names[1], 0);
    check(relay_create(x->dir, names[0], copy_of(x->ours), 32U << 10, &x->relay, NULL) == 0);
    check(edit_create(x->dir, names[1], 32U << 10, x->relay, &rules, &x->edit, NULL) == 0);
}

static void take_over(struct run *x)
{
    char names[2][64];
    snprintf(names[0], sizeof(names[0]), "fuzz_edit.%d.relay", (int)getpid());
    snprintf(names[1], sizeof(names[1]), "fuzz_edit.%d.edit", (int)getpid());
    edit_close(x->edit);
    relay_close(x->relay);
    check(relay_recover(x->dir, names[0], copy_of(x->ours), &x->relay, NULL) == 0);
    check(edit_recover(x->dir, names[1], x->relay, &rules, &x->edit, NULL) == 0);
}

static void finish(struct run *x)
{
    char name[64];
    edit_close(x->edit);
    relay_close(x->relay);
    snprintf(name, sizeof(name), "fuzz_edit.%d.relay", (int)getpid());
    unlinkat(x->dir, name, 0);
    snprintf(name, sizeof(name), "fuzz_edit.%d.edit", (int)getpid());
    unlinkat(x->dir, name, 0);
    close(x->ours);
    close(x->theirs);
    close(x->dir);
    buf_done(&x->got);
}

/* What the agent must get of the whole stream, followed by its end. */
static void judge(const uint8_t *p, size_t len, struct buf *ret)
{
    while (len > 0) {
        struct ttrpc_header h;
        enum splice_verdict v = splice_peek(p, len);
        if (v == SPLICE_MORE) {
            buf_add(ret, p, len);
            return;
        }
        ttrpc_header_decode(p, &h);
        uint64_t whole = (uint64_t)TTRPC_HEADER_SIZE + h.length;
        size_t n = (size_t)MIN(whole, (uint64_t)len);
        if (v == SPLICE_PASS)
            buf_add(ret, p, n);
        else if (n == whole)
            (void)splice_frame(p, n, &rules, ret, NULL);
        p += n;
        len -= n;
    }
}

static void drain_agent(struct run *x)
{
    char bytes[4096];
    ssize_t n;
    while ((n = recv(x->theirs, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
        buf_add(&x->got, bytes, (size_t)n);
    if (x->sent < x->len) {
        n = send(x->theirs, x->stream + x->sent, MIN(x->len - x->sent, (size_t)999),
                 MSG_DONTWAIT | MSG_NOSIGNAL);
        x->sent += n > 0 ? (size_t)n : 0;
    } else {
        shutdown(x->theirs, SHUT_WR); /* who stops inside a frame for ever gets no answer of ours */
    }
}

static void move(struct run *x, size_t piece)
{
    uint8_t *to;
    size_t held = (size_t)edit_rx_held(x->edit);
    ssize_t room = edit_rx_space(x->edit, &to);
    if (held < x->len && room > 0) {
        size_t n = MIN(MIN((size_t)room, piece), x->len - held);
        memcpy(to, x->stream + held, n);
        edit_rx_commit(x->edit, n);
    } else if (held == x->len) {
        edit_rx_fin(x->edit);
    }
    check(edit_run(x->edit) == 0);
    int r = relay_out_flush(x->relay);
    check(r == 0 || r == -EAGAIN);
    drain_agent(x);
    check(relay_in_take(x->relay) == 0);
    relay_in_read(x->relay, edit_in_limit(x->edit));
    check(edit_run(x->edit) == 0);
    check(edit_in_ack(x->edit, relay_in_head(x->relay)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > INPUT_MAX)
        return 0;
    struct run x = {.stream = data + 2, .len = size - 2};
    struct buf expected = {0};
    size_t piece = 1 + MAX((size_t)data[0] * 16, (size - 2) / 100); /* bounded rounds */
    unsigned rounds = 0;
    begin(&x);
    judge(x.stream, x.len, &expected);
    while (!relay_out_finished(x.relay)) {
        move(&x, piece);
        check(++rounds < 200000);
        if (data[1] > 0 && rounds % data[1] == 0 && rounds < 100)
            take_over(&x);
    }
    drain_agent(&x);
    check(x.got.len == expected.len);
    check(x.got.len == 0 || memcmp(x.got.data, expected.data, expected.len) == 0);
    buf_done(&expected);
    finish(&x);
    return 0;
}
