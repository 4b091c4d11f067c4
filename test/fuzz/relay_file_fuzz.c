/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile file through relay_recover, and what is left of it through every function of the relay.
 *
 * Input: 8 bytes (4: SO_PEEK_OFF, 2: bytes to be read, 1: 1 when the peer has closed, 1: unused),
 * then the beginning of the file; it is given the size that its header asks for, within limits.
 * Fields in host order.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "relay/relay.h"
#include "relay/relay_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CONTROL 8
#define INPUT_MAX 65536
#define SENT_MAX 4096

/* Its name lives for the length of one open. */
static void make_file(const uint8_t *data, size_t size, char *path, size_t path_size)
{
    struct relay_file f = {0};

    snprintf(path, path_size, "%s/relay-fuzz.%d",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (int)getpid());
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, data, size) < 0)
        abort();
    memcpy(&f, data, MIN(size, sizeof(f)));
    if (f.ring_size <= 4 * RELAY_RING_DEFAULT &&
        ftruncate(fd, (off_t)relay_file_size(f.ring_size)) < 0)
        abort();
}

static void use(struct relay *r)
{
    const uint8_t *data;
    uint8_t *space;
    uint64_t at = relay_in_tail(r);
    size_t n, sum = 0;

    while ((n = relay_in_peek(r, at, &data)) > 0) {
        for (size_t i = 0; i < n; i++)
            sum += data[i];
        at += n;
    }
    if (at != relay_in_head(r))
        abort();
    bool taken = relay_in_take(r) == 0;
    relay_in_read(r, SIZE_MAX);
    if (taken && relay_in_take(r) < 0)
        abort(); /* what was peeked at by ourselves is there */
    relay_in_inject(r, "inject", 6);
    if (relay_in_ack(r, relay_in_head(r)) != 0)
        abort();
    relay_in_read(r, 1 + sum % 100);
    ssize_t room = relay_out_space(r, &space);
    if (room > 0) {
        memset(space, 'x', (size_t)room);
        relay_out_commit(r, (size_t)room, space, MIN((size_t)room, 64));
    }
    if (relay_out_head(r) < relay_out_done(r) || relay_user(r) == NULL)
        abort();
    relay_out_flush(r);
    relay_trim(r);
    relay_out_fin(r);
    relay_out_flush(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct relay *relay = NULL;
    uint8_t junk[SENT_MAX] = {0};
    uint16_t sent;
    char path[64];
    int s[2], peek;

    signal(SIGPIPE, SIG_IGN);
    if (size < CONTROL || size > INPUT_MAX)
        return 0;
    memcpy(&peek, data, sizeof(peek));
    memcpy(&sent, data + 4, sizeof(sent));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s) < 0)
        abort();
    setsockopt(s[1], SOL_SOCKET, SO_PEEK_OFF, &peek, sizeof(peek));
    if (send(s[0], junk, sent % SENT_MAX, MSG_NOSIGNAL) < 0)
        abort();
    make_file(data + CONTROL, size - CONTROL, path, sizeof(path));
    if (data[6] == 1)
        close(TAKE_FD(s[0]));
    struct err err = ERR_INIT;
    int r = relay_recover(AT_FDCWD, path, s[1], &relay, &err);
    unlink(path);
    if ((r < 0) != (err.code != 0))
        abort();
    if (r == 0) {
        use(relay);
        relay_close(relay);
    } else {
        close(s[1]);
    }
    closep(&s[0]);
    return 0;
}
