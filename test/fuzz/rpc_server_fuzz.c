/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's bytes into the real server over a real socket. The first byte says into how large
 * pieces they are cut (into PIECES_MAX at most), or (253) that the last body is filled up with zeroes,
 * to more than a body may have. Whatever came, the
 * server must answer in whole, decodable frames and must close the half-closed connection when
 * nothing is due any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "adaptor/rpc.h"
#include "base/log.h"
#include "base/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TURNS_MAX 2000000
#define PIECES_MAX 64

static const uint8_t zeroes[TTRPC_BODY_MAX + 4096];

static uv_loop_t loop;
static struct rpc_server *server;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct rpc_call *parked[RPC_CALLS_PER_CONNECTION];
static size_t parked_count;

static void on_echo(struct rpc_call *call, void *owner)
{
    ProtobufCMessage *m = rpc_call_decode(call, &ttrpc__key_value__descriptor);
    (void)owner;

    if (!m)
        return;
    const char *value = rpc_call_metadata(call, "k", 1);
    if ((value && !*value && strlen(value) > 0) || rpc_call_timeout_ns(call) < 0 ||
        !rpc_call_connected(call) || strcmp(rpc_call_method(call), "E/e") != 0)
        abort();
    rpc_call_reply(call, m);
    protobuf_c_message_free_unpacked(m, NULL);
}

static void on_park(struct rpc_call *call, void *owner)
{
    (void)owner;
    parked[parked_count++] = call;
}

static const struct rpc_method methods[] = {{"E", "e", on_echo}, {"E", "p", on_park}, {0}};

static void start(void)
{
    char dir[] = "/tmp/pp-fuzz-XXXXXX";
    struct err err = ERR_INIT;
    int fd;

    log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    if (!mkdtemp(dir) || uv_loop_init(&loop) < 0 ||
        str_format(address.sun_path, sizeof(address.sun_path), "%s/s", dir) < 0 ||
        rpc_listen(address.sun_path, &fd, &err) < 0 ||
        rpc_server_new(&loop, fd, 8, NULL, methods, NULL, &server, &err) < 0)
        abort();
}

/* The name is only needed for the moment of connecting; so a killed run leaves no socket behind. */
static int dial(void)
{
    static int path_fd = -1;
    static struct sockaddr_un by_fd = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (path_fd < 0) {
        path_fd = open(address.sun_path, O_PATH | O_CLOEXEC);
        unlink(address.sun_path);
        *strrchr(address.sun_path, '/') = '\0';
        rmdir(address.sun_path);
        if (str_format(by_fd.sun_path, sizeof(by_fd.sun_path), "/proc/self/fd/%d", path_fd) < 0)
            abort();
    }
    if (connect(fd, (struct sockaddr *)&by_fd, sizeof(by_fd)) < 0)
        abort();
    return fd;
}

/* Takes what the server wrote; 0 at its end of file. */
static ssize_t drain(int fd, struct buf *in)
{
    char part[65536];
    ssize_t n = recv(fd, part, sizeof(part), 0);

    if (n > 0 && buf_add(in, part, (size_t)n) < 0)
        abort();
    return n;
}

static void write_all(int fd, const uint8_t *data, size_t size, size_t piece, struct buf *in)
{
    while (size > 0) {
        ssize_t n = send(fd, data, MIN(size, piece), MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN)
            abort();
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
        (void)drain(fd, in);
    }
}

static void check_answers(const struct buf *in)
{
    const uint8_t *at = (const uint8_t *)in->data;
    size_t left = in->len;

    while (left > 0) {
        struct ttrpc_header h;
        Ttrpc__Response *r;

        if (left < TTRPC_HEADER_SIZE)
            abort();
        ttrpc_header_decode(at, &h);
        if (h.type != TTRPC_RESPONSE || h.flags != 0 || h.length > left - TTRPC_HEADER_SIZE ||
            ttrpc_response_decode(at + TTRPC_HEADER_SIZE, h.length, &r, NULL) < 0)
            abort();
        if (r->status && r->status->code != 0 && r->payload.len > 0)
            abort();
        ttrpc__response__free_unpacked(r, NULL);
        at += TTRPC_HEADER_SIZE + h.length;
        left -= TTRPC_HEADER_SIZE + h.length;
    }
}

/* Bytes that the last frame lacks. */
static size_t lacks(const uint8_t *data, size_t size)
{
    uint8_t header[TTRPC_HEADER_SIZE] = {0};
    uint64_t left = 0;
    uint32_t have = 0;

    for (size_t at = 0; at < size;)
        at += ttrpc_walk(&left, &have, header, data + at, size - at);
    return (size_t)left;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf in = BUF_INIT(0);
    int fd, turns = 0;

    if (!server)
        start();
    fd = dial();
    if (size > 0)
        write_all(fd, data + 1, size - 1, MAX((size_t)data[0] * data[0] + 1, size / PIECES_MAX + 1),
                  &in);
    if (size > 0 && data[0] == 253)
        write_all(fd, zeroes, MIN(lacks(data + 1, size - 1), sizeof(zeroes)), sizeof(zeroes), &in);
    shutdown(fd, SHUT_WR);
    uv_run(&loop, UV_RUN_NOWAIT);
    do {
        uv_run(&loop, UV_RUN_NOWAIT);
        while (parked_count > 0)
            rpc_call_reply(parked[--parked_count], NULL);
        if (++turns > TURNS_MAX)
            abort(); /* a half-closed connection with nothing due is not closed */
    } while (drain(fd, &in) != 0);
    close(fd);
    check_answers(&in);
    buf_done(&in);
    while (rpc_server_connections(server) > 0 && ++turns < TURNS_MAX)
        uv_run(&loop, UV_RUN_NOWAIT);
    return 0;
}
