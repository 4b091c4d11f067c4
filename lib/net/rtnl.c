/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw rtnetlink, synchronous.
 *
 * Model: one datagram out, its answer back, nothing else in flight. The kernel handles a request
 * inside our sendmsg and has queued the answer (or the first part of a dump) before that returns,
 * so a receive never waits in practice; SO_RCVTIMEO is there against the unforeseen. Each request
 * has a sequence number of its own; messages with another one belong to an answer that nobody
 * walked to its end, and are skipped.
 *
 * An answer ends with NLMSG_ERROR (code 0: acknowledged) or NLMSG_DONE. Dumps come in several
 * datagrams; one that the kernel marks as interrupted (NLM_F_DUMP_INTR) may lack or repeat entries
 * and is reported as -EINTR at its end. rtnl_dump asks again, with growing pauses: links and
 * addresses of other pods come and go all the time, in bursts, and a dump of a thousand links has
 * met a change each time for some hundred ms.
 *
 * NETLINK_EXT_ACK asks for the kernel's own words, NETLINK_CAP_ACK keeps our request out of the
 * answer, strict checking makes unknown filters errors instead of silently ignored. Kernels that
 * lack one of them work as well, with poorer texts: their refusal is not looked at.
 *
 * A datagram may hold several messages, as nftables' batches need: they have one sequence number, and
 * the first error of any of them is the answer.
 *
 * Only datagrams of the kernel (sender port 0) are read: any process may send to our port.
 */
#include "net/rtnl.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/str.h"
#include "net/netns.h"

#define RECEIVE_TIMEOUT_S 10
#define DUMP_TRIES 40 /* 3.6 s of pauses */
#define DUMP_PAUSE_MAX_US 100000U

/* The kernel's macros are signed and do not survive -Wconversion. */
#define ATTR_HEADER sizeof(struct nlattr)
#define ATTR_TYPE_MASK 0x3fffU
#define ATTR_ALIGN(n) (((n) + 3U) & ~(size_t)3U)

struct rtnl {
    int fd;
    uint32_t seq;
    bool interrupted;
    char what[96];
    struct rtnl_reply reply;
    _Alignas(8) unsigned char buffer[RTNL_REPLY_MAX];
};

static int open_protocol(int protocol, struct rtnl **ret, struct err *err)
{
    const int on = 1;
    const struct timeval limit = {.tv_sec = RECEIVE_TIMEOUT_S};
    const struct sockaddr_nl self = {.nl_family = AF_NETLINK};
    _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);

    if (fd < 0)
        return err_errno(err, -errno, "opening a netlink socket");
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (bind(fd, (const struct sockaddr *)&self, sizeof(self)) < 0)
        return err_errno(err, -errno, "binding a netlink socket");

    struct rtnl *nl = xcalloc(1, sizeof(*nl));
    nl->fd = TAKE_FD(fd);
    *ret = nl;
    return 0;
}

int rtnl_open(struct rtnl **ret, struct err *err)
{
    return open_protocol(NETLINK_ROUTE, ret, err);
}

int rtnl_open_filter(struct rtnl **ret, struct err *err)
{
    return open_protocol(NETLINK_NETFILTER, ret, err);
}

int rtnl_open_events(uint32_t groups, int *ret, struct err *err)
{
    const struct sockaddr_nl self = {.nl_family = AF_NETLINK, .nl_groups = groups};
    _cleanup_close_ int fd =
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

    if (fd < 0 || bind(fd, (const struct sockaddr *)&self, sizeof(self)) < 0)
        return err_errno(err, -errno, "opening a netlink socket for events");
    *ret = TAKE_FD(fd);
    return 0;
}

void rtnl_events_drain(int fd)
{
    char unread[16];

    /* ENOBUFS says that events were lost: that is an event too, and the next call goes on. */
    while (recv(fd, unread, sizeof(unread), MSG_TRUNC) >= 0 || errno == EINTR || errno == ENOBUFS)
        continue;
}

static int open_here(void *arg, struct err *err)
{
    return rtnl_open(arg, err);
}

int rtnl_open_in(int netns_fd, struct rtnl **ret, struct err *err)
{
    return netns_run(netns_fd, open_here, ret, err);
}

void rtnl_close(struct rtnl *nl)
{
    if (!nl)
        return;
    close(nl->fd);
    free(nl);
}

/* ---- building ---- */

static struct nlmsghdr *request_header(struct rtnl_request *q)
{
    return (struct nlmsghdr *)(void *)(q->data + q->at);
}

static void *request_room(struct rtnl_request *q, size_t n)
{
    size_t aligned = NLMSG_ALIGN(n);

    if (q->failed || n > sizeof(q->data) || aligned > sizeof(q->data) - q->len) {
        q->failed = true;
        return NULL;
    }
    void *at = q->data + q->len;
    memset(at, 0, aligned);
    q->len += aligned;
    return at;
}

void rtnl_request_init(struct rtnl_request *q, uint16_t type, unsigned flags, const void *body,
                       size_t body_len)
{
    q->len = q->at = 0;
    q->failed = false;
    rtnl_request_next(q, type, flags, body, body_len);
}

void rtnl_request_next(struct rtnl_request *q, uint16_t type, unsigned flags, const void *body,
                       size_t body_len)
{
    size_t at = q->len;
    struct nlmsghdr *h = request_room(q, NLMSG_HDRLEN);

    if (!h)
        return;
    if (at > 0)
        request_header(q)->nlmsg_len = (uint32_t)(at - q->at);
    q->at = at;
    h->nlmsg_type = type;
    h->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    rtnl_put_raw(q, body, body_len);
}

void rtnl_put_raw(struct rtnl_request *q, const void *data, size_t len)
{
    void *at = request_room(q, len);

    if (at && len > 0)
        memcpy(at, data, len);
}

void rtnl_put(struct rtnl_request *q, uint16_t attr, const void *data, size_t len)
{
    if (len > RTNL_REQUEST_MAX) {
        q->failed = true;
        return;
    }
    struct nlattr *a = request_room(q, ATTR_HEADER + len);
    if (!a)
        return;
    a->nla_type = attr;
    a->nla_len = (uint16_t)(ATTR_HEADER + len);
    if (len > 0)
        memcpy((unsigned char *)a + ATTR_HEADER, data, len);
}

void rtnl_put_u8(struct rtnl_request *q, uint16_t attr, uint8_t value)
{
    rtnl_put(q, attr, &value, sizeof(value));
}

void rtnl_put_u16(struct rtnl_request *q, uint16_t attr, uint16_t value)
{
    rtnl_put(q, attr, &value, sizeof(value));
}

void rtnl_put_u32(struct rtnl_request *q, uint16_t attr, uint32_t value)
{
    rtnl_put(q, attr, &value, sizeof(value));
}

void rtnl_put_string(struct rtnl_request *q, uint16_t attr, const char *value)
{
    rtnl_put(q, attr, value, strlen(value) + 1);
}

size_t rtnl_nest(struct rtnl_request *q, uint16_t attr)
{
    size_t mark = q->len;

    rtnl_put(q, (uint16_t)(attr | NLA_F_NESTED), NULL, 0);
    return mark;
}

void rtnl_nest_end(struct rtnl_request *q, size_t mark)
{
    if (q->failed)
        return;
    struct nlattr *a = (struct nlattr *)(void *)(q->data + mark);
    a->nla_len = (uint16_t)(q->len - mark);
}

/* ---- sending and receiving ---- */

/* One number for all messages of the datagram: theirs is one answer. */
static void stamp(struct rtnl_request *q, uint32_t seq)
{
    request_header(q)->nlmsg_len = (uint32_t)(q->len - q->at);
    for (size_t at = 0; at < q->len;) {
        struct nlmsghdr *h = (struct nlmsghdr *)(void *)(q->data + at);
        h->nlmsg_seq = seq;
        at += h->nlmsg_len;
    }
}

int rtnl_start(struct rtnl *nl, struct rtnl_request *q, const char *what, struct err *err)
{
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

    if (str_format(nl->what, sizeof(nl->what), "%s", what) < 0)
        nl->what[sizeof(nl->what) - 1] = '\0';
    if (q->failed)
        return err_set(err, -E2BIG, "%s: the netlink request is over %u bytes", what,
                       RTNL_REQUEST_MAX);
    stamp(q, ++nl->seq);
    nl->interrupted = false;
    nl->reply = (struct rtnl_reply){.data = nl->buffer, .seq = nl->seq};

    ssize_t n;
    do
        n = sendto(nl->fd, q->data, q->len, 0, (const struct sockaddr *)&kernel, sizeof(kernel));
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_errno(err, -errno, "%s: sending to the kernel", what);
    return 0;
}

/* One datagram of the kernel's into the buffer. */
static int receive(struct rtnl *nl, struct err *err)
{
    for (;;) {
        struct sockaddr_nl from = {0};
        struct iovec iov = {.iov_base = nl->buffer, .iov_len = sizeof(nl->buffer)};
        struct msghdr m = {
            .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = recvmsg(nl->fd, &m, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno == EAGAIN ? -ETIMEDOUT : -errno,
                             "%s: waiting for the kernel's answer", nl->what);
        if (m.msg_flags & MSG_TRUNC)
            return err_set(err, -EMSGSIZE, "%s: the kernel's answer is over %u bytes", nl->what,
                           RTNL_REPLY_MAX);
        if (from.nl_pid != 0)
            continue;
        nl->reply.len = (size_t)n;
        nl->reply.pos = 0;
        return 0;
    }
}

int rtnl_next(struct rtnl *nl, const struct nlmsghdr **ret, struct err *err)
{
    for (;;) {
        int r = rtnl_reply_next(&nl->reply, ret);

        if (r > 0) {
            if ((*ret)->nlmsg_flags & NLM_F_DUMP_INTR)
                nl->interrupted = true;
            return 1;
        }
        if (r == 0 && nl->interrupted)
            return err_set(err, -EINTR, "%s: the tables changed meanwhile", nl->what);
        if (r == 0)
            return 0;
        if (r == -EAGAIN) {
            r = receive(nl, err);
            if (r < 0)
                return r;
            continue;
        }
        if (nl->reply.extack[0])
            return err_errno(err, r, "%s: %s", nl->what, nl->reply.extack);
        return err_errno(err, r, "%s", nl->what);
    }
}

int rtnl_call(struct rtnl *nl, struct rtnl_request *q, const char *what, struct err *err)
{
    const struct nlmsghdr *unused;
    int r;

    request_header(q)->nlmsg_flags |= NLM_F_ACK;
    r = rtnl_start(nl, q, what, err);
    if (r < 0)
        return r;
    do
        r = rtnl_next(nl, &unused, err);
    while (r > 0);
    return r;
}

/* rtnl_call that takes one code of the kernel's for success. */
int rtnl_call_unless(struct rtnl *nl, struct rtnl_request *q, const char *what, int fine,
                     struct err *err)
{
    struct err e = ERR_INIT;
    int r = rtnl_call(nl, q, what, &e);

    if (r < 0 && r != fine)
        return err_set(err, r, "%s", e.text);
    return 0;
}

/* ---- dumps ---- */

/* Grows an array by one element of size bytes; NULL beyond RTNL_LIST_MAX. */
static void *list_grow(void **list, size_t *n, size_t size)
{
    if (*n >= RTNL_LIST_MAX)
        return NULL;
    if ((*n & (*n - 1)) == 0)
        *list = xrealloc(*list, (*n ? *n * 2 : 1) * size);
    return (char *)*list + (*n)++ * size;
}

static int dump_once(struct rtnl *nl, struct rtnl_request *q, const char *what,
                     rtnl_parse_fn *parse, size_t size, void **ret, size_t *ret_n, struct err *err)
{
    _cleanup_free_ void *list = NULL;
    _cleanup_free_ void *item = xcalloc(1, size);
    const struct nlmsghdr *h;
    size_t n = 0;
    int r = rtnl_start(nl, q, what, err);

    if (r < 0)
        return r;
    while ((r = rtnl_next(nl, &h, err)) > 0) {
        if (!parse(h, item))
            continue;
        void *slot = list_grow(&list, &n, size);
        if (!slot)
            return err_set(err, -E2BIG, "%s: over %u entries", what, RTNL_LIST_MAX);
        memcpy(slot, item, size);
    }
    if (r < 0)
        return r;
    *ret = TAKE_PTR(list);
    *ret_n = n;
    return 0;
}

int rtnl_dump(struct rtnl *nl, uint16_t type, const void *body, size_t body_len, const char *what,
              rtnl_parse_fn *parse, size_t size, void **ret, size_t *ret_n, struct err *err)
{
    int r = -EINTR;

    for (unsigned i = 0; i < DUMP_TRIES && r == -EINTR; i++) {
        struct rtnl_request q;
        struct err e = ERR_INIT;

        rtnl_request_init(&q, type, NLM_F_DUMP, body, body_len);
        r = dump_once(nl, &q, what, parse, size, ret, ret_n, &e);
        if (r < 0 && (r != -EINTR || i + 1 == DUMP_TRIES))
            return err_set(err, r, "%s", e.text);
        if (r == -EINTR)
            usleep(MIN(500U << MIN(i, 10U), DUMP_PAUSE_MAX_US));
    }
    return r;
}

/* ---- reading ---- */

static void read_extack(struct rtnl_reply *it, const struct nlmsghdr *h)
{
    size_t fixed = sizeof(struct nlmsgerr);
    const struct nlmsgerr *e = (const void *)((const unsigned char *)h + NLMSG_HDRLEN);
    struct rtnl_attr a;

    if (!(h->nlmsg_flags & NLM_F_ACK_TLVS))
        return;
    /* Without NLM_F_CAPPED the request's body stands between, and its length comes with it. */
    if (!(h->nlmsg_flags & NLM_F_CAPPED)) {
        if (e->msg.nlmsg_len < NLMSG_HDRLEN || e->msg.nlmsg_len > h->nlmsg_len)
            return;
        fixed += e->msg.nlmsg_len - NLMSG_HDRLEN;
    }
    struct rtnl_attrs attrs = rtnl_attrs_of(h, fixed);
    while (rtnl_attr_next(&attrs, &a))
        if (a.type == NLMSGERR_ATTR_MSG)
            rtnl_attr_string(&a, it->extack, sizeof(it->extack));
}

/* The code of NLMSG_ERROR or NLMSG_DONE: 0 or a negative errno; anything else is malformed. */
static int read_code(struct rtnl_reply *it, const struct nlmsghdr *h)
{
    int32_t code;

    if (h->nlmsg_type == NLMSG_DONE && h->nlmsg_len < NLMSG_HDRLEN + sizeof(code))
        return 0;
    if (h->nlmsg_type == NLMSG_ERROR && h->nlmsg_len < NLMSG_HDRLEN + sizeof(struct nlmsgerr))
        return -EBADMSG;
    memcpy(&code, (const unsigned char *)h + NLMSG_HDRLEN, sizeof(code));
    if (code > 0 || code < -4095)
        return -EBADMSG;
    if (code < 0 && h->nlmsg_type == NLMSG_ERROR)
        read_extack(it, h);
    /* The walker's own word for "more to come": the kernel's would be taken for it. */
    return code == -EAGAIN ? -EBUSY : code;
}

int rtnl_reply_next(struct rtnl_reply *it, const struct nlmsghdr **ret)
{
    it->extack[0] = '\0';
    while (it->len - it->pos >= NLMSG_HDRLEN) {
        const struct nlmsghdr *h = (const void *)(it->data + it->pos);
        size_t left = it->len - it->pos;

        if (h->nlmsg_len < NLMSG_HDRLEN || h->nlmsg_len > left)
            return -EBADMSG;
        it->pos += MIN(NLMSG_ALIGN((size_t)h->nlmsg_len), left);
        if (h->nlmsg_seq != it->seq || h->nlmsg_type == NLMSG_NOOP)
            continue;
        if (h->nlmsg_type == NLMSG_ERROR || h->nlmsg_type == NLMSG_DONE)
            return read_code(it, h);
        *ret = h;
        return 1;
    }
    return it->pos == it->len ? -EAGAIN : -EBADMSG;
}

struct rtnl_attrs rtnl_attrs_of(const struct nlmsghdr *h, size_t body_len)
{
    size_t skip = NLMSG_HDRLEN + NLMSG_ALIGN(body_len);

    if (h->nlmsg_len < skip)
        return (struct rtnl_attrs){0};
    return (struct rtnl_attrs){(const unsigned char *)h + skip, h->nlmsg_len - skip};
}

bool rtnl_attr_next(struct rtnl_attrs *it, struct rtnl_attr *ret)
{
    struct nlattr a;

    if (it->len < ATTR_HEADER)
        return false;
    memcpy(&a, it->data, sizeof(a));
    if (a.nla_len < ATTR_HEADER || a.nla_len > it->len)
        return false;
    *ret = (struct rtnl_attr){.type = (uint16_t)(a.nla_type & ATTR_TYPE_MASK),
                              .data = it->data + ATTR_HEADER,
                              .len = (size_t)a.nla_len - ATTR_HEADER};
    size_t step = MIN(ATTR_ALIGN((size_t)a.nla_len), it->len);
    it->data += step;
    it->len -= step;
    return true;
}

uint32_t rtnl_attr_u32(const struct rtnl_attr *a)
{
    uint32_t v = 0;

    if (a->len == sizeof(v))
        memcpy(&v, a->data, sizeof(v));
    return v;
}

void rtnl_attr_string(const struct rtnl_attr *a, char *out, size_t size)
{
    size_t n = strnlen(a->data, a->len);

    if (n >= size)
        n = 0;
    memcpy(out, a->data, n);
    out[n] = '\0';
}
