/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another keeper's messages, whole hand-overs with their batches and words among them, to a keeper in
 * any phase, with and without a command: no descriptor is leaked, and the table stays what it is.
 *
 * The first byte chooses the keeper. Messages end with 0xff; the first byte of each is how many
 * descriptors come with it (modulo 4).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"
#include "keeper/keeper.h"

#define FDS_MAX 3

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int listener = -1, file = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_len = sizeof(address);
static char path[64];

/* In place of the real ones: no pauses, no words. */
int usleep(useconds_t us _unused_)
{
    return 0;
}

void log_entry(enum log_level level _unused_, const char *sandbox _unused_,
               const char *step _unused_, const char *fmt _unused_, ...)
{
}

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void begin(void)
{
    if (listener >= 0)
        return;
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    address_len = sizeof(address); /* the kernel chooses a name */
    check(bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) == 0 &&
          listen(listener, 1) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &address_len) == 0);
    snprintf(path, sizeof(path), "/tmp/keeper-fuzz.%d", (int)getpid());
}

/* All that a peer ever says, and then the end. */
static int come(const uint8_t *data, size_t size)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int fds[FDS_MAX] = {file, file, listener};

    check(connect(fd, (struct sockaddr *)&address, address_len) == 0);
    for (const uint8_t *at = data, *stop = data + size; at < stop;) {
        const uint8_t *end = memchr(at, 0xff, (size_t)(stop - at)) ?: stop;
        if (end > at)
            fdpass_send(fd, (const char *)at + 1, (size_t)(end - at) - 1, fds, *at % (FDS_MAX + 1));
        at = end + 1;
    }
    shutdown(fd, SHUT_WR);
    return fd;
}

static void check_table(const struct fdtable *t)
{
    check(t->n <= t->max);
    for (size_t i = 0; i < t->n; i++) {
        check(fcntl(t->entries[i].fd, F_GETFD) == FD_CLOEXEC);
        for (size_t j = 0; j < i; j++)
            check(t->entries[i].fd != t->entries[j].fd);
    }
}

static void done(struct keeper *k)
{
    if (k->listen_fd != listener) { /* the keeper has closed that */
        closep(&k->listen_fd);
        listener = -1;
    }
    for (size_t i = 0; i < ARRAY_SIZE(k->peers); i++)
        handover_forget(&k->peers[i]);
    fdtable_done(&k->store);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char *const argv[] = {"command", NULL};

    begin();
    if (size < 1)
        return 0;
    int lowest = dup(file), fd = come(data + 1, size - 1);
    const struct keeper_config config = {.argv = data[0] & 1 ? argv : NULL, .socket = path};
    static struct keeper k;
    k.config = &config;
    k.listen_fd = listener;
    k.notify_fd = file;
    k.phase = (data[0] >> 1) % (PHASE_STANDING_BY + 1);
    k.peers[0] = k.peers[1] = NO_PEER;
    k.ended = false;
    fdtable_init(&k.store);
    k.store.max = 8;
    handover_accept(&k);
    while (k.peers[0].fd >= 0 && !k.ended)
        handover_receive(&k, &k.peers[0]);
    if (!k.ended)
        check_table(&k.store);
    done(&k);
    close(fd);
    close(lowest);
    if (listener < 0) {
        close(file);
        begin();
    }
    fd = dup(file);
    check(fd == lowest);
    close(fd);
    return 0;
}
