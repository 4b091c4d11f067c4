/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ttrpc server of hypervisor.sock and control.sock.
 *
 * Model: a connection is a raw descriptor under uv_poll with two halves. Its *reader* turns bytes
 * into whole frames: fill (one recv), peek at the first frame, consume it. Its *output* is a buffer
 * that is empty whenever the client keeps up: an answer is then one send straight from where it was
 * encoded. A *call* is a request under way; it is made when the frame is read, belongs to its
 * handler until it is answered, and only knows its connection while there is one.
 *
 * The reader is a struct of its own with the verbs fill, next and consume.
 *
 * Durable connections (a server with a name in the descriptor store) outlive the process with their
 * calls. The kernel's own queue is the journal: frames are peeked at (SO_PEEK_OFF makes the next
 * peek go on behind the last), and taken out only when they, and all before them, have been
 * answered. A successor finds in the queue every request that was not, and hands it to its handler
 * again; the methods are idempotent, and a second answer on a stream means nothing to a client. An
 * answer is one send of some hundred bytes to an empty buffer: all of it or nothing. While frames
 * wait in the queue the socket is readable all the time, so it is not polled for that, but looked at
 * every AGAIN_MS. What is more than a shim ever has under way (DURABLE_FRAMES, DURABLE_BYTES; a
 * CreateVM with very large initdata) makes its connection an ordinary one that ends with us.
 *
 * Happy path: readable -> reader_fill -> reader_next -> frame_request -> the handler ->
 * rpc_call_reply -> one send -> the call is freed.
 *
 * The stream id is nothing but the name of an answer: ids may come in any order, be reused, be the
 * highest number (clients hand out ids and send frames in two steps, so order means nothing). Only
 * an even id and one whose call is still in flight are refused, since the client could not tell
 * the answers apart.
 *
 * What bad input gets: kata-contract.md 1.3. Nothing that a client sends ends its connection, for
 * other calls share it; what cannot be answered on a stream is skipped. Bodies over the limit
 * are thrown away as they arrive and answered when they are through. Requests are unary whatever
 * their flags say, as in Go's server; data frames get an error on their stream, or nothing when the
 * stream is a call in flight, whose answer must stay the only one.
 *
 * End of file: a read of 0 is a half-close, answers are still due and the poll changes to hang-up
 * alone; when they are given the connection is closed. A hang-up (both directions closed; poll's
 * POLLHUP, which libuv does not pass on by name) means that the client is gone: what it had sent
 * completely is still served (a StopVM counts even when its client did not wait), then its calls
 * are cancelled. Errors on write only shut the socket down, so that this one place is where
 * connections end and no callback runs inside an answer.
 *
 * Bounds (rpc.h): connections, calls per connection, request bytes held before they are complete
 * (each connection has READ_BASE free, more comes out of RPC_BODIES_MAX; a body grows as it
 * arrives, not as it is announced), answers not yet read. A connection whose answers pile up is not
 * read from until they have gone. A frame that dribbles for over a minute ends its connection when
 * no call is in flight there; connections that are idle between frames live for ever. When all are
 * taken, the oldest that has never sent a whole frame goes: no shim is silent first. Where all have
 * spoken, new ones wait in the backlog.
 */
#include "adaptor/rpc.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stddef.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "relay/fdstore.h"

#define READ_BASE (4U << 10)     /* storage that each connection may have without asking */
#define READ_SCRATCH (64U << 10) /* one recv of bytes to throw away */
#define READ_TURN (256U << 10)   /* bytes read from one connection before others get a turn */
#define OUT_PAUSE (256U << 10)   /* unread answers at which reading pauses */
#define ACCEPT_TURN 32           /* connections accepted before others get a turn */
#define BACKLOG 1024
#define TICK_MS 5000
#define ACCEPT_AGAIN_MS 200 /* what it failed for, descriptors mostly, may be there by then */
#define DURABLE_FRAMES 32U
#define DURABLE_BYTES (64U << 10) /* well below what a sender's buffer holds: 208 KiB */
#define AGAIN_MS 50
#define DURABLE_DRIBBLE_MS 1000 /* for a whole frame; a shim's comes in one piece */

struct reader {
    struct rpc_server *server; /* whose budget it uses */
    uint8_t *data;             /* start..end: bytes not yet consumed */
    size_t start, end, cap;
    size_t discard; /* bytes of a refused body still to come */
    bool peek;      /* the bytes stay in the socket's queue: conn_settle takes them */
    bool refused;   /* `header` was refused; its answer is due when discard is 0 */
    bool starved;   /* refused for want of budget, not for its size */
    struct ttrpc_header header;
    int64_t since_ms; /* when the incomplete frame began; 0: none */
};

struct conn {
    struct rpc_server *server;
    struct conn *next, **prev;
    uv_poll_t poll;
    int fd;
    int events; /* what the poll is set to */
    bool eof, closing;
    bool spoke; /* it has sent a whole frame */
    struct reader reader;
    struct buf out;
    struct rpc_call *calls; /* in flight */
    unsigned call_count;
    /* Durable connections: frames that are still in the socket's queue, by number. */
    char name[FDSTORE_NAME_MAX + 1]; /* "": not durable */
    uint64_t first_frame, next_frame;
    struct {
        size_t len;
        bool done;
    } frames[DURABLE_FRAMES];
    size_t queued; /* bytes peeked at and not taken out */
};

struct rpc_call {
    struct conn *conn; /* NULL: the client is gone */
    struct rpc_call *next, **prev;
    const struct rpc_method *method;
    uint64_t frame; /* of a durable connection */
    uint32_t stream;
    int64_t timeout_ns;
    Ttrpc__Request *request; /* NULL once the handler has returned */
    rpc_cancel_fn *cancel;
    void *cancel_arg;
    bool in_handler, answered;
    char name[]; /* service/method */
};

struct rpc_server {
    uv_loop_t *loop;
    const struct rpc_method *methods;
    void *owner;
    uv_poll_t listener;
    int listen_fd;
    uv_timer_t tick, again;
    char store[4]; /* prefix of names in the descriptor store; "": nothing is durable */
    bool accepting, closing;
    int64_t pause_logged_ms;
    unsigned handles; /* uv handles whose close is not through; the last one frees the server */
    unsigned max_connections, connection_count;
    struct conn *conns;
    size_t bodies; /* bytes that readers hold beyond their base */
    uint8_t scratch[READ_SCRATCH];
};

/* ---- reader ---- */

static void reader_done(struct reader *r)
{
    if (r->cap > READ_BASE)
        r->server->bodies -= r->cap - READ_BASE;
    free(r->data);
    *r = (struct reader){.server = r->server, .peek = r->peek};
}

static void reader_compact(struct reader *r)
{
    if (r->start > 0 && r->end > r->start)
        memmove(r->data, r->data + r->start, r->end - r->start);
    r->end -= r->start;
    r->start = 0;
}

/* -ENOBUFS: the budget is used up. */
static int reader_resize(struct reader *r, size_t cap)
{
    size_t old = r->cap > READ_BASE ? r->cap - READ_BASE : 0;
    size_t new = cap > READ_BASE ? cap - READ_BASE : 0;
    uint8_t *data;

    if (new > old && r->server->bodies + (new - old) > RPC_BODIES_MAX)
        return -ENOBUFS;
    data = realloc(r->data, cap);
    if (!data)
        return -ENOBUFS;
    r->server->bodies = r->server->bodies + new - old;
    r->data = data;
    r->cap = cap;
    return 0;
}

/* The bytes that are there become the beginning of a body that is thrown away. */
static void reader_refuse(struct reader *r, bool starved)
{
    size_t frame = TTRPC_HEADER_SIZE + (size_t)r->header.length;
    size_t here = MIN(r->end - r->start, frame);

    r->start += here;
    r->discard = frame - here;
    r->refused = true;
    r->starved = starved;
}

/* True when the header of the first frame is there; then it is in r->header. */
static bool reader_header(struct reader *r)
{
    if (r->end - r->start < TTRPC_HEADER_SIZE)
        return false;
    ttrpc_header_decode(r->data + r->start, &r->header);
    return true;
}

/* Makes room behind `end` for at least one byte, for a large frame by doubling. */
static void reader_room(struct reader *r)
{
    size_t want = READ_BASE;

    if (r->end < r->cap)
        return;
    reader_compact(r);
    if (reader_header(r))
        want = MAX(want, TTRPC_HEADER_SIZE + (size_t)r->header.length);
    if (r->cap == 0)
        want = READ_BASE;
    else
        want = MIN(want, r->cap * 2);
    if (want > r->cap && reader_resize(r, want) < 0)
        reader_refuse(r, true);
}

static ssize_t reader_recv(struct reader *r, int fd)
{
    ssize_t n;

    if (!r->refused)
        reader_room(r);
    if (r->peek && r->refused) {
        errno = EAGAIN; /* the connection is made an ordinary one first */
        return -1;
    }
    if (r->discard > 0) {
        n = recv(fd, r->server->scratch, MIN(r->discard, sizeof(r->server->scratch)), MSG_DONTWAIT);
        r->discard -= n > 0 ? (size_t)n : 0;
        return n;
    }
    n = recv(fd, r->data + r->end, r->cap - r->end, MSG_DONTWAIT | (r->peek ? MSG_PEEK : 0));
    r->end += n > 0 ? (size_t)n : 0;
    return n;
}

/* One read. > 0: bytes, 0: end of file, or a negative errno (-EAGAIN: nothing there). */
static ssize_t reader_fill(struct reader *r, int fd)
{
    ssize_t n;

    do {
        n = reader_recv(r, fd);
    } while (n < 0 && errno == EINTR);
    if (n > 0 && r->since_ms == 0)
        r->since_ms = clock_mono_ms();
    if (n < 0)
        n = -errno;
    if (n <= 0 && r->start == r->end && !r->refused)
        reader_done(r); /* an idle connection holds no memory here */
    return n;
}

/* The first whole frame: r->header, *ret_body (NULL: the frame was refused). False: not yet there.
 * To be followed by reader_consume. */
static bool reader_next(struct reader *r, const uint8_t **ret_body)
{
    if (!r->refused) {
        if (!reader_header(r))
            return false;
        if (r->header.length > TTRPC_BODY_MAX)
            reader_refuse(r, false);
        else if (r->end - r->start < TTRPC_HEADER_SIZE + (size_t)r->header.length)
            return false;
    }
    *ret_body = r->refused ? NULL : r->data + r->start + TTRPC_HEADER_SIZE;
    return r->discard == 0;
}

static void reader_consume(struct reader *r)
{
    if (!r->refused)
        r->start += TTRPC_HEADER_SIZE + (size_t)r->header.length;
    r->refused = r->starved = false;
    if (r->start < r->end)
        r->since_ms = clock_mono_ms();
    else
        reader_done(r);
}

/* ---- durable connections ---- */

static void conn_watch(struct conn *conn);

static void take_out(struct conn *conn, size_t len)
{
    conn->queued -= len;
    while (len > 0) {
        ssize_t n = recv(conn->fd, conn->server->scratch, MIN(len, READ_SCRATCH), MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* cannot be: the bytes were seen */
        len -= (size_t)n;
    }
}

/* Frames at the front that are answered leave the queue. */
static void conn_settle(struct conn *conn)
{
    size_t len = 0;

    while (conn->first_frame < conn->next_frame &&
           conn->frames[conn->first_frame % DURABLE_FRAMES].done)
        len += conn->frames[conn->first_frame++ % DURABLE_FRAMES].len;
    take_out(conn, len);
}

static void conn_frame_done(struct conn *conn, uint64_t frame)
{
    if (!*conn->name)
        return;
    conn->frames[frame % DURABLE_FRAMES].done = true;
    conn_settle(conn);
    if (conn->queued == 0)
        conn_watch(conn); /* it is polled for reading again */
}

/* From now on it ends with this process. */
static void conn_make_ordinary(struct conn *conn)
{
    static const int off = -1;

    if (!*conn->name)
        return;
    fdstore_remove(conn->name, NULL);
    *conn->name = '\0';
    take_out(conn, conn->queued);
    setsockopt(conn->fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off));
    conn->reader.peek = false;
}

/* Before anything is read. Without a store too: there may be a take-over. stored: it comes from the store under `name`. */
static void conn_make_durable(struct conn *conn, const char *name, bool stored)
{
    static const int front = 0;

    if (!*conn->server->store ||
        setsockopt(conn->fd, SOL_SOCKET, SO_PEEK_OFF, &front, sizeof(front)) < 0)
        return;
    if (!stored && fdstore_add(name, conn->fd, NULL) < 0)
        return;
    snprintf(conn->name, sizeof(conn->name), "%s", name);
    conn->reader.peek = true;
}

/* ---- output ---- */

/* Ends a connection from wherever we are; the poll then sees the hang-up. */
static void conn_break(struct conn *conn)
{
    shutdown(conn->fd, SHUT_RDWR);
    conn->out.len = 0;
}

static void conn_keep(struct conn *conn, const char *data, size_t len)
{
    if (buf_add(&conn->out, data, len) == 0)
        return;
    log_warn("a client leaves more than %u bytes of answers unread: connection closed",
             RPC_OUT_MAX);
    conn_break(conn);
}

/* What the socket does not take at once waits in conn->out. */
static void conn_send(struct conn *conn, const struct buf *frame)
{
    size_t sent = 0;

    if (conn->out.len == 0) {
        ssize_t n = send(conn->fd, frame->data, frame->len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            conn_break(conn);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
    }
    if (sent < frame->len) {
        conn_make_ordinary(conn); /* a successor would not know how much was sent */
        conn_keep(conn, frame->data + sent, frame->len - sent);
        conn_watch(conn);
    }
}

static void conn_flush(struct conn *conn)
{
    while (conn->out.len > 0) {
        ssize_t n = send(conn->fd, conn->out.data, conn->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            conn_break(conn);
            break;
        }
        buf_consume(&conn->out, (size_t)n);
    }
    buf_done(&conn->out);
    conn->out = BUF_INIT(RPC_OUT_MAX);
}

static void conn_send_error(struct conn *conn, uint32_t stream, enum ttrpc_code code,
                            const char *text)
{
    _cleanup_(buf_done) struct buf frame = BUF_INIT(0);

    ttrpc_add_error(&frame, stream, code, text);
    conn_send(conn, &frame);
}

/* ---- calls ---- */

static void call_unlink(struct rpc_call *call)
{
    if (!call->conn)
        return;
    *call->prev = call->next;
    if (call->next)
        call->next->prev = call->prev;
    call->conn->call_count--;
    call->conn = NULL;
}

static void call_link(struct rpc_call *call, struct conn *conn)
{
    call->conn = conn;
    call->next = conn->calls;
    call->prev = &conn->calls;
    if (conn->calls)
        conn->calls->prev = &call->next;
    conn->calls = call;
    conn->call_count++;
}

static void call_forget_request(struct rpc_call *call)
{
    if (call->request)
        ttrpc__request__free_unpacked(call->request, NULL);
    call->request = NULL;
}

/* Half-closed, everything answered and read: nothing more can come of this connection. */
static bool conn_spent(const struct conn *conn)
{
    return conn->eof && !conn->calls && conn->out.len == 0;
}

/* Answered calls go at once, or when their handler returns. */
static void call_end(struct rpc_call *call)
{
    struct conn *conn = call->conn;

    call_unlink(call);
    if (conn)
        conn_frame_done(conn, call->frame);
    if (conn && conn_spent(conn))
        conn_break(conn);
    call->answered = true;
    if (call->in_handler)
        return;
    call_forget_request(call);
    free(call);
}

static struct rpc_call *conn_find_call(const struct conn *conn, uint32_t stream)
{
    struct rpc_call *call = conn->calls;

    while (call && call->stream != stream)
        call = call->next;
    return call;
}

/* The call that this frame made and that is not answered yet. */
static struct rpc_call *conn_find_frame(const struct conn *conn, uint64_t frame)
{
    struct rpc_call *call = conn->calls;

    while (call && call->frame != frame)
        call = call->next;
    return call;
}

static const struct rpc_method *server_find(const struct rpc_server *server,
                                            const Ttrpc__Request *request, bool *ret_service)
{
    *ret_service = false;
    for (const struct rpc_method *m = server->methods; m->service; m++) {
        if (!str_eq(m->service, request->service))
            continue;
        *ret_service = true;
        if (str_eq(m->method, request->method))
            return m;
    }
    return NULL;
}

/* Takes request. */
static void conn_call(struct conn *conn, uint32_t stream, const struct rpc_method *method,
                      Ttrpc__Request *request)
{
    size_t size = strlen(method->service) + strlen(method->method) + 2;
    struct rpc_call *call = xcalloc(1, sizeof(*call) + size);

    snprintf(call->name, size, "%s/%s", method->service, method->method);
    call->method = method;
    call->stream = stream;
    call->timeout_ns = MAX(request->timeout_nano, 0);
    call->request = request;
    call->frame = conn->next_frame - 1;
    call_link(call, conn);
    call->in_handler = true;
    method->handler(call, conn->server->owner);
    call->in_handler = false;
    if (call->answered)
        call_end(call);
    else
        call_forget_request(call);
}

/* ---- frames ---- */

/* A refusal that needs no look at the body; NULL: none. */
static const char *request_refusal(const struct conn *conn, const struct ttrpc_header *h,
                                   enum ttrpc_code *ret_code)
{
    *ret_code = TTRPC_INVALID_ARGUMENT;
    if (h->stream % 2 == 0)
        return "the stream id of a request must be odd";
    if (conn_find_call(conn, h->stream))
        return "a call with this stream id is still in flight";
    *ret_code = TTRPC_RESOURCE_EXHAUSTED;
    if (conn->call_count >= RPC_CALLS_PER_CONNECTION)
        return "too many calls are in flight on this connection";
    return NULL;
}

static void frame_request(struct conn *conn, const struct ttrpc_header *h, const uint8_t *body)
{
    Ttrpc__Request *request;
    const struct rpc_method *method;
    struct err err = ERR_INIT;
    enum ttrpc_code code;
    const char *refusal = request_refusal(conn, h, &code);
    bool service;

    if (refusal) {
        conn_send_error(conn, h->stream, code, refusal);
        return;
    }
    if (ttrpc_request_decode(body, h->length, &request, &err) < 0) {
        conn_send_error(conn, h->stream, TTRPC_INVALID_ARGUMENT, err_text(&err));
        return;
    }
    method = server_find(conn->server, request, &service);
    if (method) {
        conn_call(conn, h->stream, method, request);
        return;
    }
    err_set(&err, -ENOSYS, "%s %.200s%s%.200s is not implemented here",
            service ? "method" : "service", request->service, service ? "/" : "",
            service ? request->method : "");
    conn_send_error(conn, h->stream, TTRPC_UNIMPLEMENTED, err_text(&err));
    ttrpc__request__free_unpacked(request, NULL);
}

static void frame_refused(struct conn *conn, const struct reader *r)
{
    struct err err = ERR_INIT;

    if (r->starved)
        err_set(&err, -ENOBUFS,
                "the daemon holds %u bytes of incomplete requests and takes no more now",
                RPC_BODIES_MAX);
    else
        err_set(&err, -EMSGSIZE, "a message of %u bytes exceeds the limit of %u", r->header.length,
                TTRPC_BODY_MAX);
    conn_send_error(conn, r->header.stream, TTRPC_RESOURCE_EXHAUSTED, err_text(&err));
}

static void conn_frame(struct conn *conn, const uint8_t *body)
{
    /* A copy: a handler's answer may end this connection's reader. */
    struct ttrpc_header h = conn->reader.header;

    if (h.type != TTRPC_REQUEST && h.type != TTRPC_DATA)
        log_debug("a frame of type %u is ignored", h.type);
    else if (!body)
        frame_refused(conn, &conn->reader);
    else if (h.type == TTRPC_REQUEST)
        frame_request(conn, &h, body);
    else if (!conn_find_call(conn, h.stream))
        conn_send_error(conn, h.stream, TTRPC_INVALID_ARGUMENT,
                        "there is no stream of this id; all methods here are unary");
}

/* ---- connections ---- */

static bool conn_reads(const struct conn *conn)
{
    return !conn->eof && conn->out.len < OUT_PAUSE;
}

/* A durable connection's frame is noted before its handler sees it. */
static uint64_t conn_note_frame(struct conn *conn)
{
    uint64_t frame = conn->next_frame++;

    conn->frames[frame % DURABLE_FRAMES].len =
        TTRPC_HEADER_SIZE + (size_t)conn->reader.header.length;
    conn->frames[frame % DURABLE_FRAMES].done = false;
    return frame;
}

static void conn_serve(struct conn *conn)
{
    const uint8_t *body;

    while (!conn->closing && conn->out.len < OUT_PAUSE && reader_next(&conn->reader, &body)) {
        uint64_t frame = conn_note_frame(conn);

        conn->spoke = true;
        conn_frame(conn, body);
        reader_consume(&conn->reader);
        if (!conn_find_frame(conn, frame))
            conn_frame_done(conn, frame);
    }
}

/* It has more under way than a durable connection may, or for longer: such a one costs a look every
 * AGAIN_MS. */
static bool conn_overflows(const struct conn *conn)
{
    int64_t since = conn->reader.since_ms;

    return *conn->name && (conn->queued > DURABLE_BYTES ||
                           conn->next_frame - conn->first_frame >= DURABLE_FRAMES - 1 ||
                           (since != 0 && clock_mono_ms() - since > DURABLE_DRIBBLE_MS));
}

/* Reads and serves until there is nothing more, the turn is over, or answers pile up. */
static void conn_read(struct conn *conn)
{
    size_t turn = 0;

    while (conn_reads(conn) && turn < READ_TURN) {
        ssize_t n = reader_fill(&conn->reader, conn->fd);

        if (conn->reader.refused)
            conn_make_ordinary(conn);
        if (n == -EAGAIN)
            break;
        if (n <= 0) {
            conn->eof = true;
            break;
        }
        turn += (size_t)n;
        conn->queued += conn->reader.peek ? (size_t)n : 0;
        conn_serve(conn);
        if (conn_overflows(conn) || conn->reader.refused)
            conn_make_ordinary(conn);
    }
}

static void server_unref(uv_handle_t *handle)
{
    struct rpc_server *server = handle->data;

    if (--server->handles == 0 && server->closing)
        free(server);
}

static void conn_closed(uv_handle_t *handle)
{
    struct conn *conn = container_of((uv_poll_t *)handle, struct conn, poll);

    handle->data = conn->server;
    server_unref(handle);
    free(conn);
}

static void server_accept_more(struct rpc_server *server);

/* Calls in flight live on without it. */
static void conn_close(struct conn *conn)
{
    struct rpc_server *server = conn->server;

    conn->closing = true;
    while (conn->calls)
        call_unlink(conn->calls);
    *conn->prev = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    server->connection_count--;
    if (*conn->name && !server->closing)
        fdstore_remove(conn->name, NULL);
    reader_done(&conn->reader);
    buf_done(&conn->out);
    uv_close((uv_handle_t *)&conn->poll, conn_closed);
    close(conn->fd);
    server_accept_more(server);
}

/* The client is gone: its calls are cancelled, then the connection is closed. A cancel callback may
 * answer its own call and others; so each round starts at the list's head. */
static void conn_hangup(struct conn *conn)
{
    while (conn->calls) {
        struct rpc_call *call = conn->calls;

        call_unlink(call);
        if (call->cancel)
            TAKE_PTR(call->cancel)(call, call->cancel_arg);
    }
    conn_close(conn);
}

static bool ready(int fd, short event)
{
    struct pollfd p = {.fd = fd, .events = event};

    return poll(&p, 1, 0) > 0 && p.revents & (event | POLLHUP | POLLERR | POLLNVAL);
}

static bool conn_hung_up(const struct conn *conn)
{
    return ready(conn->fd, 0);
}

static void server_again(uv_timer_t *timer);

static void conn_event(uv_poll_t *poll_handle, int status, int events)
{
    struct conn *conn = container_of(poll_handle, struct conn, poll);

    if (status < 0)
        conn->events = 0; /* libuv has stopped the poll; the calls below see the error themselves */
    if ((events & UV_PRIORITIZED) && !conn_hung_up(conn))
        conn_break(conn); /* an out-of-band byte, which no peek reads: it would be ready for ever */
    conn_flush(conn);
    conn_serve(conn); /* frames that waited for room in the output */
    conn_read(conn);
    if (conn_overflows(conn))
        conn_make_ordinary(conn);
    if (conn_hung_up(conn) && (conn->eof || !conn_reads(conn)))
        conn_hangup(conn);
    else if (conn_spent(conn))
        conn_close(conn);
    else
        conn_watch(conn);
}

/* Durable connections whose queue is not empty. A connection may end in its turn. */
static void server_again(uv_timer_t *timer)
{
    struct rpc_server *server = container_of(timer, struct rpc_server, again);
    bool any = false;

    for (struct conn *conn = server->conns, *next; conn; conn = next) {
        next = conn->next;
        if (conn->queued == 0)
            continue;
        any = true;
        conn_event(&conn->poll, 0, UV_READABLE);
    }
    if (!any)
        uv_timer_stop(timer);
}

/* UV_PRIORITIZED alone: hang-up and errors, which are always reported, and an out-of-band byte. */
static void conn_watch(struct conn *conn)
{
    int events = UV_PRIORITIZED;

    if (conn->closing)
        return;
    if (conn_reads(conn) && conn->queued == 0)
        events |= UV_READABLE;
    if (conn->queued > 0 && !uv_is_active((uv_handle_t *)&conn->server->again))
        uv_timer_start(&conn->server->again, server_again, AGAIN_MS, AGAIN_MS);
    if (conn->out.len > 0)
        events |= UV_WRITABLE;
    if (events != conn->events && uv_poll_start(&conn->poll, events, conn_event) == 0)
        conn->events = events;
}

/* ---- server ---- */

static bool peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
        log_warn("a connection without credentials is closed: %s", strerror(errno));
        return false;
    }
    if (peer.uid == 0 || peer.uid == geteuid())
        return true;
    log_warn("a connection of uid %u (pid %d) is closed: only root and uid %u may connect",
             peer.uid, (int)peer.pid, geteuid());
    return false;
}

/* Takes fd. name: in the store already; NULL: a new connection. */
static void server_add(struct rpc_server *server, int fd, const char *name)
{
    char fresh[FDSTORE_NAME_MAX + 1];
    uint64_t number;
    struct conn *conn = xcalloc(1, sizeof(*conn));

    if (uv_poll_init(server->loop, &conn->poll, fd) < 0) {
        log_error("a connection cannot be watched and is closed");
        free(conn);
        close(fd);
        return;
    }
    conn->server = server;
    conn->fd = fd;
    conn->reader.server = server;
    conn->out = BUF_INIT(RPC_OUT_MAX);
    conn->next = server->conns;
    conn->prev = &server->conns;
    if (server->conns)
        server->conns->prev = &conn->next;
    server->conns = conn;
    server->connection_count++;
    server->handles++;
    if (getrandom(&number, sizeof(number), 0) == sizeof(number)) {
        snprintf(fresh, sizeof(fresh), "%s.%016" PRIx64, server->store, number);
        conn_make_durable(conn, name ? name : fresh, name);
    }
    conn->spoke = name; /* or may have, to our predecessor */
    conn_watch(conn);
}

static void server_pause(struct rpc_server *server, const char *why)
{
    server->accepting = false;
    uv_poll_stop(&server->listener);
    if (clock_mono_ms() - server->pause_logged_ms < TICK_MS)
        return;
    server->pause_logged_ms = clock_mono_ms();
    log_warn("%u connections are open, %s: new ones wait", server->connection_count, why);
}

static struct conn *oldest_silent(const struct rpc_server *server)
{
    struct conn *oldest = NULL;

    for (struct conn *conn = server->conns; conn; conn = conn->next)
        oldest = conn->spoke ? oldest : conn;
    return oldest;
}

/* What a silent connection has sent meanwhile is looked at first. False: all have spoken. */
static bool server_make_room(struct rpc_server *server)
{
    while (server->connection_count >= server->max_connections) {
        struct conn *conn = oldest_silent(server);

        if (!conn)
            return false;
        conn_event(&conn->poll, 0, UV_READABLE);
        if (!conn->closing && !conn->spoke)
            conn_close(conn);
    }
    return true;
}

static void server_tick(uv_timer_t *timer);

static void server_readable(uv_poll_t *poll_handle, int status, int events)
{
    struct rpc_server *server = container_of(poll_handle, struct rpc_server, listener);
    (void)status;
    (void)events;

    for (unsigned i = 0; i < ACCEPT_TURN && !server->closing; i++) {
        int fd;

        if (!ready(server->listen_fd, POLLIN))
            return;
        if (!server_make_room(server)) {
            server_pause(server, "which is the limit");
            return;
        }
        fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0 && errno != EAGAIN) {
            server_pause(server, strerror(errno));
            uv_timer_start(&server->tick, server_tick, ACCEPT_AGAIN_MS, TICK_MS);
        }
        if (fd < 0)
            return;
        if (peer_allowed(fd))
            server_add(server, fd, NULL);
        else
            close(fd);
    }
}

static void server_accept_more(struct rpc_server *server)
{
    if (server->accepting || server->closing || server->connection_count >= server->max_connections)
        return;
    server->accepting = uv_poll_start(&server->listener, UV_READABLE, server_readable) == 0;
}

static void server_tick(uv_timer_t *timer)
{
    struct rpc_server *server = container_of(timer, struct rpc_server, tick);
    int64_t limit = clock_mono_ms() - RPC_FRAME_TIME_MAX_MS;

    for (struct conn *conn = server->conns; conn; conn = conn->next)
        if (conn->reader.since_ms != 0 && conn->reader.since_ms < limit && !conn->calls &&
            conn->out.len == 0) {
            log_warn("a frame was not complete after %d s: connection closed",
                     RPC_FRAME_TIME_MAX_MS / 1000);
            conn_break(conn);
        }
    server_accept_more(server);
}

/* The connections that the predecessor left in the store. */
static void adopt(const char *name, int fd, void *arg)
{
    (void)fd;
    server_add(arg, fdstore_take(name), name);
}

static unsigned default_connections(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return RPC_CONNECTIONS_DEFAULT;
    return (unsigned)MIN(limit.rlim_cur / 4, (rlim_t)RPC_CONNECTIONS_DEFAULT);
}

int rpc_server_new(uv_loop_t *loop, int listen_fd, unsigned max_connections, const char *store,
                   const struct rpc_method *methods, void *owner, struct rpc_server **ret,
                   struct err *err)
{
    struct rpc_server *server = xcalloc(1, sizeof(*server));
    char prefix[sizeof(server->store) + 1];
    int r = uv_poll_init(loop, &server->listener, listen_fd);

    if (r < 0) {
        free(server);
        close(listen_fd);
        return err_errno(err, r, "watching the listening socket");
    }
    server->loop = loop;
    server->methods = methods;
    server->owner = owner;
    server->listen_fd = listen_fd;
    server->max_connections = max_connections ? max_connections : default_connections();
    server->listener.data = server;
    server->handles = 3;
    snprintf(server->store, sizeof(server->store), "%s", store ? store : "");
    snprintf(prefix, sizeof(prefix), "%s.", server->store);
    uv_timer_init(loop, &server->again);
    server->again.data = server;
    uv_timer_init(loop, &server->tick);
    server->tick.data = server;
    uv_timer_start(&server->tick, server_tick, TICK_MS, TICK_MS);
    if (*server->store)
        fdstore_each(prefix, adopt, server);
    server_accept_more(server);
    *ret = server;
    return 0;
}

void rpc_server_free(struct rpc_server *server)
{
    if (!server)
        return;
    server->closing = true;
    while (server->conns)
        conn_close(server->conns);
    uv_close((uv_handle_t *)&server->tick, server_unref);
    uv_close((uv_handle_t *)&server->again, server_unref);
    uv_close((uv_handle_t *)&server->listener, server_unref);
    close(server->listen_fd);
}

unsigned rpc_server_connections(const struct rpc_server *server)
{
    return server->connection_count;
}

/* ---- what handlers use ---- */

const uint8_t *rpc_call_payload(const struct rpc_call *call, size_t *ret_len)
{
    *ret_len = call->request ? call->request->payload.len : 0;
    return *ret_len > 0 ? call->request->payload.data : (const uint8_t *)"";
}

const char *rpc_call_metadata(const struct rpc_call *call, const char *key, size_t index)
{
    for (size_t i = 0; call->request && i < call->request->n_metadata; i++) {
        const Ttrpc__KeyValue *entry = call->request->metadata[i];

        if (str_eq(entry->key, key) && index-- == 0)
            return entry->value;
    }
    return NULL;
}

int64_t rpc_call_timeout_ns(const struct rpc_call *call)
{
    return call->timeout_ns;
}

const char *rpc_call_method(const struct rpc_call *call)
{
    return call->name;
}

bool rpc_call_connected(const struct rpc_call *call)
{
    return call->conn != NULL;
}

ProtobufCMessage *rpc_call_decode(struct rpc_call *call, const ProtobufCMessageDescriptor *type)
{
    size_t len;
    const uint8_t *payload = rpc_call_payload(call, &len);
    struct err err = ERR_INIT;
    ProtobufCMessage *message = NULL;

    if (ttrpc_message_decode(type, payload, len, &message, &err) < 0)
        rpc_call_error(call, TTRPC_INVALID_ARGUMENT, err_text(&err));
    return message;
}

void rpc_call_on_cancel(struct rpc_call *call, rpc_cancel_fn *fn, void *arg)
{
    call->cancel = fn;
    call->cancel_arg = arg;
}

void rpc_call_reply(struct rpc_call *call, const ProtobufCMessage *message)
{
    _cleanup_(buf_done) struct buf frame = BUF_INIT(0);
    _cleanup_free_ uint8_t *payload = NULL;
    size_t len = message ? protobuf_c_message_get_packed_size(message) : 0;
    struct err err = ERR_INIT;

    if (call->conn) {
        payload = xcalloc(1, len + 1);
        if (message)
            protobuf_c_message_pack(message, payload);
        if (ttrpc_add_response(&frame, call->stream, payload, len, &err) < 0)
            ttrpc_add_error(&frame, call->stream, TTRPC_RESOURCE_EXHAUSTED, err_text(&err));
        conn_send(call->conn, &frame);
    }
    call_end(call);
}

void rpc_call_error(struct rpc_call *call, enum ttrpc_code code, const char *text)
{
    if (call->conn)
        conn_send_error(call->conn, call->stream, code == TTRPC_OK ? TTRPC_INTERNAL : code, text);
    call_end(call);
}

void rpc_call_fail(struct rpc_call *call, const struct err *err)
{
    rpc_call_error(call, ttrpc_code_from_errno(err->code), err_text(err));
}

/* ---- listening ---- */

static int path_to_address(const char *path, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (str_empty(path) || strlen(path) > RPC_SOCKET_PATH_MAX)
        return err_set(err, -EINVAL, "socket path '%s': 1 to %d bytes are allowed",
                       path ? path : "", RPC_SOCKET_PATH_MAX);
    memcpy(ret->sun_path, path, strlen(path));
    return 0;
}

static int make_parent(const char *path, struct err *err)
{
    _cleanup_free_ char *parent = xstrdup(path);
    char *slash = strrchr(parent, '/');

    if (!slash || slash == parent)
        return 0;
    *slash = '\0';
    return fs_mkdir_p(parent, 0700, err);
}

/* Only a socket that refuses connections is removed. */
static int clear_path(const char *path, const struct sockaddr_un *address, struct err *err)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_errno(err, -errno, "looking at %s", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, -EEXIST,
                       "%s exists and is not a socket: remove it or choose another path", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, -errno, "making a socket");
    /* EAGAIN: a live listener with a full backlog. */
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
        return err_set(err, -EADDRINUSE,
                       "%s is served by another process: stop that one or choose another path",
                       path);
    if (errno != ECONNREFUSED && errno != ENOENT)
        return err_errno(err, -errno, "trying whether %s is in use", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_errno(err, -errno, "removing the stale socket %s", path);
    return 0;
}

int rpc_listen(const char *path, int *ret_fd, struct err *err)
{
    _cleanup_close_ int fd = -1;
    struct sockaddr_un address;
    int r = path_to_address(path, &address, err);

    if (r < 0)
        return r;
    r = make_parent(path, err);
    if (r < 0)
        return r;
    r = clear_path(path, &address, err);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Linux gives the name the mode of the unbound socket, less the umask: never a moment open. */
    if (fd < 0 || fchmod(fd, 0600) < 0)
        return err_errno(err, -errno, "making a socket");
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        return err_errno(err, -errno, "binding %s", path);
    if (chmod(path, 0600) < 0 || listen(fd, BACKLOG) < 0) {
        r = -errno;
        unlink(path);
        return err_errno(err, r, "listening on %s", path);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}
