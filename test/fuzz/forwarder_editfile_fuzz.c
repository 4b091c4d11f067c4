/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile or torn edit file, and the parser's state in the relay's file, through edit_recover; and
 * what is left of them through the life of a connection.
 *
 * Input: two bytes of how much of it is the state, the state as it stands in the relay's user state,
 * a byte of how much the agent has sent, then the beginning of the file; it is given the size that
 * its header asks for, within limits. Fields in host order.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "forwarder/edit.h"
#include "relay/relay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RING (32U << 10)
#define INPUT_MAX 65536
#define AREAS ((((size_t)TTRPC_HEADER_SIZE + TTRPC_BODY_MAX + 16383) / 16384) * 2 * 16384)

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void use(struct edit *e, struct relay *relay)
{
    static const uint8_t more[] = "\x00\x00\x00\x02\x00\x00\x00\x01\x01\x00xy";
    uint8_t *to;
    for (int round = 0; round < 4; round++) {
        check(edit_rx_held(e) <= edit_rx_limit(e));
        ssize_t room = edit_rx_space(e, &to);
        if (room > 0 && !edit_rx_has_fin(e)) {
            size_t n = MIN((size_t)room, sizeof(more) - 1);
            memcpy(to, more, n);
            edit_rx_commit(e, n);
        }
        check(edit_run(e) == 0);
        relay_out_flush(relay);
        check(relay_in_take(relay) == 0);
        relay_in_read(relay, edit_in_limit(e));
        check(edit_run(e) == 0);
        check(edit_in_ack(e, relay_in_head(relay)) == 0);
    }
    edit_trim(e);
    edit_rx_fin(e);
    check(edit_run(e) == 0);
    edit_close(e);
}

static void make_file(int dir, const char *name, const uint8_t *data, size_t size)
{
    uint32_t ring = 0;
    _cleanup_close_ int fd =
        openat(dir, name, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    if (size >= 16)
        memcpy(&ring, data + 12, sizeof(ring));
    if (ring <= 1U << 20)
        check(ftruncate(fd, (off_t)(16384 + (size_t)ring + AREAS)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct splice_rules rules = {.netns_path = "/run/netns/podns", .clear_dns = true};
    char names[2][64];
    int s[2];
    struct relay *relay;
    struct edit *edit;
    struct err err = ERR_INIT;
    if (size < 3 || size > INPUT_MAX)
        return 0;
    size_t n_state = MIN((size_t)(data[0] | data[1] << 8), MIN(size - 3, (size_t)RELAY_USER_SIZE));
    signal(SIGPIPE, SIG_IGN);
    snprintf(names[0], sizeof(names[0]), "fuzz_editfile.%d.relay", (int)getpid());
    snprintf(names[1], sizeof(names[1]), "fuzz_editfile.%d.edit", (int)getpid());
    _cleanup_close_ int dir = open(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp",
                                   O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(dir >= 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) == 0);
    unlinkat(dir, names[0], 0);
    check(relay_create(dir, names[0], s[0], RING, &relay, NULL) == 0);
    relay_out_commit(relay, 0, data + 2, n_state);
    check(send(s[1], data, MIN((size_t)data[2 + n_state], size), 0) >= 0);
    relay_in_read(relay, data[2 + n_state] / 2);
    make_file(dir, names[1], data + 3 + n_state, size - 3 - n_state);
    int r = edit_recover(dir, names[1], relay, &rules, &edit, &err);
    check((r < 0) == (err.code != 0));
    unlinkat(dir, names[0], 0);
    unlinkat(dir, names[1], 0);
    if (r == 0)
        use(edit, relay);
    relay_close(relay);
    close(s[1]);
    return 0;
}
