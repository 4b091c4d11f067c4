/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tunnel costs on loopback: bytes per second of one stream and of eight, and the round
 * trip of a small message, beside a plain blocking TLS connection of the same library and cipher
 * with the same record size, in the same run. Two threads, as daemon and forwarder are two
 * processes. Ends with one line of JSON.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include "base/clock.h"
#include "relay/tunnel.h"
#include "wire/tunnel_frame.h"

#define RING (256U << 10)
#define ROUNDS 7
#define ROUND_BYTES ((uint64_t)192 << 20)
#define TRIPS 3000
#define MESSAGE 128
#define CHANNELS_MAX 8

struct end {
    struct bench *b;
    uint32_t id;
    uint64_t total, tail, held; /* sends up to total, reads at once */
    uint64_t goal;              /* of this round */
};

struct bench {
    uv_loop_t loop[2];
    uv_async_t wake[2];
    struct tunnel *t[2];
    struct end ends[2][CHANNELS_MAX + 1];
    uv_timer_t timer;
    unsigned channels, trips;
    int64_t sent_us, trip_us[TRIPS];
    bool echo, up;
};

static uint8_t bytes[RING];

static uint64_t tx_head(void *p)
{
    struct end *e = p;
    return MIN(e->total, e->tail + RING);
}

static bool never(void *p _unused_)
{
    return false;
}

static uint64_t tx_tail(void *p)
{
    return ((struct end *)p)->tail;
}

static size_t tx_peek(void *p, uint64_t offset, const uint8_t **ret)
{
    size_t at = (size_t)(offset % RING);
    *ret = bytes + at;
    return (size_t)MIN(RING - at, tx_head(p) - offset);
}

static int tx_acked(void *p, uint64_t offset)
{
    ((struct end *)p)->tail = offset;
    return 0;
}

static uint64_t rx_held(void *p)
{
    return ((struct end *)p)->held;
}

static uint64_t rx_limit(void *p)
{
    return ((struct end *)p)->held + RING;
}

static uint8_t sink[2][RING];

static ssize_t rx_space(void *p, uint8_t **ret)
{
    struct end *e = p;
    size_t at = (size_t)(e->held % RING);
    *ret = sink[e >= e->b->ends[1]] + at;
    return (ssize_t)(RING - at);
}

static void trip_begin(struct bench *b)
{
    b->sent_us = clock_mono_us();
    b->ends[0][1].total += MESSAGE;
    tunnel_channel_kick(b->t[0], 1);
}

static void rx_commit(void *p, size_t n)
{
    struct end *e = p;
    struct bench *b = e->b;
    bool far = e >= b->ends[1];
    e->held += n;
    if (b->echo && far) {
        e->total += n;
        tunnel_channel_kick(b->t[1], e->id);
    } else if (b->echo && e->held == (b->trips + 1) * (uint64_t)MESSAGE) {
        b->trip_us[b->trips++] = clock_mono_us() - b->sent_us;
        if (b->trips == TRIPS)
            uv_stop(&b->loop[0]);
        else
            trip_begin(b);
    } else if (far && e->held == e->goal) {
        uv_async_send(&b->wake[0]);
    }
}

static void rx_fin(void *p _unused_)
{
}

static void gone(void *p _unused_, const char *reason)
{
    fprintf(stderr, "channel lost: %s\n", reason);
    exit(1);
}

static const struct channel_ops ep_ops = {.tx_head = tx_head,
                                          .tx_fin = never,
                                          .tx_tail = tx_tail,
                                          .tx_peek = tx_peek,
                                          .tx_acked = tx_acked,
                                          .rx_held = rx_held,
                                          .rx_limit = rx_limit,
                                          .rx_space = rx_space,
                                          .rx_commit = rx_commit,
                                          .rx_fin = rx_fin,
                                          .rx_has_fin = never,
                                          .gone = gone};

static void on_up(void *p, bool first _unused_)
{
    struct bench *b = p;
    b->up = true;
    uv_stop(&b->loop[0]);
}

static void ignore_up(void *p _unused_, bool first _unused_)
{
}

static void on_down(void *p _unused_, const struct err *why)
{
    fprintf(stderr, "%s\n", why->text);
}

static int on_pin(void *p _unused_, const uint8_t *pin _unused_)
{
    return 0;
}

static int on_generation(void *p _unused_, uint64_t generation _unused_)
{
    return 0;
}

static void on_ready(void *p _unused_, bool ready _unused_)
{
}

static int on_open(void *p, uint32_t id, const struct channel_ops **ret_ops, void **ret_ep)
{
    struct bench *b = p;
    *ret_ops = &ep_ops;
    *ret_ep = &b->ends[1][id];
    return 0;
}

static const struct tunnel_ops ops[2] = {
    {.up = on_up, .down = on_down, .refused = on_down, .agent_ready = on_ready, .enrolled = on_pin},
    {.up = ignore_up,
     .down = on_down,
     .refused = on_down,
     .enrolled = on_pin,
     .generation = on_generation,
     .open = on_open},
};

/* Some channel of the round has arrived: have all? */
static void on_wake(uv_async_t *wake)
{
    struct bench *b = wake->data;
    bool all = true;
    for (uint32_t i = 1; i <= b->channels; i++)
        all &= __atomic_load_n(&b->ends[1][i].held, __ATOMIC_RELAXED) == b->ends[1][i].goal;
    if (all)
        uv_stop(&b->loop[0]);
}

static void *far_thread(void *p)
{
    struct bench *b = p;
    uv_run(&b->loop[1], UV_RUN_DEFAULT);
    return NULL;
}

static int connect_pair(int ret[2], struct sockaddr_in *address)
{
    socklen_t len = sizeof(*address);
    *address =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    ret[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return bind(ret[0], (struct sockaddr *)address, len) < 0 || listen(ret[0], 4) < 0 ||
                   getsockname(ret[0], (struct sockaddr *)address, &len) < 0
               ? -1
               : 0;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Of both ends: on a busy machine the only figure that can be compared. */
static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double stream_mib(struct bench *b, unsigned channels, double *ret_cpu)
{
    int64_t took[ROUNDS];
    double cpu = cpu_s();
    b->channels = channels;
    for (int i = 0; i < ROUNDS; i++) {
        int64_t start = clock_mono_us();
        for (uint32_t id = 1; id <= channels; id++) {
            b->ends[1][id].goal += ROUND_BYTES / channels;
            b->ends[0][id].total += ROUND_BYTES / channels;
            tunnel_channel_kick(b->t[0], id);
        }
        uv_run(&b->loop[0], UV_RUN_DEFAULT);
        took[i] = clock_mono_us() - start;
    }
    *ret_cpu = (double)(ROUNDS * (ROUND_BYTES >> 20)) / (cpu_s() - cpu);
    qsort(took, ROUNDS, sizeof(took[0]), by_value);
    return (double)(ROUND_BYTES >> 20) / ((double)took[ROUNDS / 2] / 1e6);
}

/* -- the peer: blocking TLS, no frames, no offsets -- */

struct plain {
    SSL *ssl;
    int fd;
};

static bool read_all(SSL *ssl, uint8_t *to, size_t len)
{
    for (size_t done = 0; done < len;) {
        int n = SSL_read(ssl, to, (int)MIN(len - done, (size_t)16384));
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static void *plain_far(void *p)
{
    struct plain *far = p;
    SSL_accept(far->ssl);
    for (int i = 0; i < ROUNDS; i++) {
        if (!read_all(far->ssl, sink[1], ROUND_BYTES))
            return NULL;
        SSL_write(far->ssl, bytes, 1);
    }
    for (int i = 0; i < TRIPS; i++) {
        read_all(far->ssl, sink[1], MESSAGE);
        SSL_write(far->ssl, bytes, MESSAGE);
    }
    return NULL;
}

static void plain_run(struct tls_ctx *ctx[2], struct tls_identity *id[2], double *ret_mib,
                      double *ret_cpu, int64_t *ret_us)
{
    struct sockaddr_in address;
    struct err err = ERR_INIT;
    struct plain near = {0}, far = {0};
    int64_t took[ROUNDS], trips[TRIPS];
    int pair[2], on = 1;
    pthread_t thread;
    if (connect_pair(pair, &address) < 0)
        exit(1);
    near.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)connect(near.fd, (struct sockaddr *)&address, sizeof(address));
    far.fd = accept(pair[0], NULL, NULL);
    setsockopt(near.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(far.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    tls_connection_new(ctx[0], id[0], &near.ssl, &err);
    tls_connection_new(ctx[1], id[1], &far.ssl, &err);
    tls_connection_attach(ctx[0], near.ssl, near.fd, &err);
    tls_connection_attach(ctx[1], far.ssl, far.fd, &err);
    pthread_create(&thread, NULL, plain_far, &far);
    SSL_connect(near.ssl);
    double cpu = cpu_s();
    for (int i = 0; i < ROUNDS; i++) {
        int64_t start = clock_mono_us();
        for (uint64_t done = 0; done < ROUND_BYTES; done += 16384)
            SSL_write(near.ssl, bytes + done % RING, 16384);
        read_all(near.ssl, sink[0], 1);
        took[i] = clock_mono_us() - start;
    }
    *ret_cpu = (double)(ROUNDS * (ROUND_BYTES >> 20)) / (cpu_s() - cpu);
    for (int i = 0; i < TRIPS; i++) {
        int64_t start = clock_mono_us();
        SSL_write(near.ssl, bytes, MESSAGE);
        read_all(near.ssl, sink[0], MESSAGE);
        trips[i] = clock_mono_us() - start;
    }
    pthread_join(thread, NULL);
    qsort(took, ROUNDS, sizeof(took[0]), by_value);
    qsort(trips, TRIPS, sizeof(trips[0]), by_value);
    *ret_mib = (double)(ROUND_BYTES >> 20) / ((double)took[ROUNDS / 2] / 1e6);
    *ret_us = trips[TRIPS / 2];
    SSL_free(near.ssl);
    SSL_free(far.ssl);
    close(near.fd);
    close(far.fd);
    close(pair[0]);
}

static void tunnels_open(struct bench *b, struct tls_ctx *ctx[2], struct tls_identity *id[2])
{
    struct sockaddr_in address;
    struct err err = ERR_INIT;
    int listener[2];
    if (connect_pair(listener, &address) < 0)
        exit(1);
    for (int i = 0; i < 2; i++) {
        struct tunnel_config c = {.role = i ? TUNNEL_FORWARDER : TUNNEL_DAEMON,
                                  .sandbox_id = "bench",
                                  .self = id[i],
                                  .ctx = ctx[i]};
        tls_identity_pin(id[1 - i], c.peer_pin);
        uv_loop_init(&b->loop[i]);
        uv_async_init(&b->loop[i], &b->wake[i], on_wake);
        b->wake[i].data = b;
        if (tunnel_new(&b->loop[i], &c, &ops[i], b, &b->t[i], &err) < 0)
            exit(1);
    }
    tunnel_dial(b->t[0], (struct sockaddr *)&address, sizeof(address));
    uv_run(&b->loop[0], UV_RUN_ONCE);
    int fd = accept4(listener[0], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || tunnel_accept(b->t[1], fd, &err) < 0)
        exit(1);
    close(listener[0]);
}

int main(void)
{
    static struct bench b;
    struct err err = ERR_INIT;
    struct tls_identity *id[2];
    struct tls_ctx *ctx[2];
    struct utsname u;
    double plain_mib = 0, plain_cpu = 0, one_cpu, many_cpu;
    int64_t plain_us = 0;
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        if (tls_identity_new("bench", &id[i], &err) < 0 || tls_ctx_new(i == 1, &ctx[i], &err) < 0)
            return 1;
    plain_run(ctx, id, &plain_mib, &plain_cpu, &plain_us);

    for (int i = 0; i < 2; i++)
        for (uint32_t c = 0; c <= CHANNELS_MAX; c++)
            b.ends[i][c] = (struct end){.b = &b, .id = c};
    tunnels_open(&b, ctx, id);
    pthread_create(&thread, NULL, far_thread, &b);
    for (uint32_t c = 1; c <= CHANNELS_MAX; c++)
        tunnel_channel_add(b.t[0], c, &ep_ops, &b.ends[0][c]);
    uv_run(&b.loop[0], UV_RUN_DEFAULT); /* until up */
    double one = stream_mib(&b, 1, &one_cpu);
    double many = stream_mib(&b, CHANNELS_MAX, &many_cpu);
    b.echo = true;
    trip_begin(&b);
    uv_run(&b.loop[0], UV_RUN_DEFAULT);
    qsort(b.trip_us, TRIPS, sizeof(b.trip_us[0]), by_value);
    uname(&u);
    printf("%s %s, %ld processors; medians; plain: blocking TLS, same cipher and records\n",
           u.sysname, u.machine, sysconf(_SC_NPROCESSORS_ONLN));
    printf("{\"name\": \"tunnel-engine\", \"pass\": true, \"stream_mib_s\": %.0f, "
           "\"eight_streams_mib_s\": %.0f, \"plain_tls_mib_s\": %.0f, \"ratio\": %.2f, "
           "\"mib_per_cpu_s\": %.0f, \"eight_mib_per_cpu_s\": %.0f, \"plain_mib_per_cpu_s\": %.0f, "
           "\"round_trip_us\": %lld, \"round_trip_p99_us\": %lld, \"plain_round_trip_us\": %lld}\n",
           one, many, plain_mib, one / plain_mib, one_cpu, many_cpu, plain_cpu,
           (long long)b.trip_us[TRIPS / 2], (long long)b.trip_us[TRIPS * 99 / 100],
           (long long)plain_us);
    return 0;
}
