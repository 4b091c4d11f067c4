/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The agent removes its own socket's name during CreateSandbox (kata-contract.md 4), yet goes on
 * accepting. So an O_PATH descriptor of the socket is taken as soon as the socket is there, given
 * to the descriptor store, and connections go to /proc/self/fd/N.
 *
 *     WAITING  no descriptor: the path is looked at every POLL_MS (a stat costs a microsecond; a
 *              watch would need one on each directory above that does not exist yet)
 *     READY    a descriptor, and one connect through it has succeeded (it was closed at once: the
 *              name is there before the agent listens, so the name alone proves nothing)
 *
 * The descriptor that works stays, whatever appears at the path: nobody can put himself in the
 * agent's place later by making a socket of that name. Only when a connect is refused, which means
 * that nobody listens any more (the agent was restarted, or its pod is over), it is dropped, and
 * whoever listens at the path next is taken. Connections that exist are not touched by any of it.
 */
#include "forwarder/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/log.h"
#include "base/str.h"
#include "relay/fdstore.h"

#define STORE_NAME "agent"
#define POLL_MS 20
#define CONNECT_US 500000 /* the agent's backlog is full: it accepts at once or is in trouble */

struct agent {
    const char *path;
    agent_ready_fn *ready;
    void *owner;
    int fd; /* O_PATH, or -1 */
    bool told;
    uv_timer_t timer;
};

static int connect_through(int path_fd, int *ret)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_usec = CONNECT_US};
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    str_format(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", path_fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    limit = (struct timeval){0};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
        return -errno;
    *ret = TAKE_FD(fd);
    return 0;
}

/* The socket at the path, when someone listens there. */
static int open_path(const char *path, int *ret)
{
    struct stat st;
    _cleanup_close_ int probe = -1;
    _cleanup_close_ int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISSOCK(st.st_mode))
        return -ENOTSOCK;
    int r = connect_through(fd, &probe);
    if (r < 0)
        return r;
    *ret = TAKE_FD(fd);
    return 0;
}

static void on_timer(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    struct err err = ERR_INIT;
    if (a->fd < 0 && open_path(a->path, &a->fd) < 0)
        return;
    uv_timer_stop(timer);
    if (!a->told) {
        if (fdstore_add(STORE_NAME, a->fd, &err) < 0)
            log_warn("keeping the agent's socket: %s", err_text(&err));
        log_info("the agent is listening on %s", a->path);
    }
    a->told = true;
    a->ready(a->owner, true);
}

/* Nobody listens behind the descriptor. */
static void lose(struct agent *a)
{
    struct err err = ERR_INIT;
    if (fdstore_remove(STORE_NAME, &err) < 0)
        log_warn("forgetting the agent's socket: %s", err_text(&err));
    close(TAKE_FD(a->fd));
    a->told = false;
    log_warn("the agent listens no more; waiting for it at %s", a->path);
    uv_timer_start(&a->timer, on_timer, POLL_MS, POLL_MS);
    a->ready(a->owner, false);
}

int agent_start(uv_loop_t *loop, const char *path, agent_ready_fn *ready, void *owner,
                struct agent **ret, struct err *err)
{
    struct agent *a = xcalloc(1, sizeof(*a));
    *a = (struct agent){.path = path, .ready = ready, .owner = owner};
    a->fd = fdstore_take(STORE_NAME);
    a->told = a->fd >= 0;
    int r = uv_timer_init(loop, &a->timer);
    if (r < 0) {
        closep(&a->fd);
        free(a);
        return err_errno(err, r, "timer");
    }
    a->timer.data = a;
    uv_timer_start(&a->timer, on_timer, 0, POLL_MS);
    *ret = a;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    struct agent *a = handle->data;
    closep(&a->fd);
    free(a);
}

void agent_stop(struct agent *a)
{
    if (a)
        uv_close((uv_handle_t *)&a->timer, on_closed);
}

int agent_connect(struct agent *a, int *ret, struct err *err)
{
    if (a->fd < 0)
        return err_set(err, -ENOTCONN, "the agent does not listen on %s yet", a->path);
    int r = connect_through(a->fd, ret);
    if (r == -ECONNREFUSED)
        lose(a);
    return r < 0 ? err_errno(err, r, "connecting to the agent of %s", a->path) : 0;
}
