/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output: read from the agent, write to our descriptor, until no data come. An error of the agent
 * ends a stream as silently as its end does (a terminal's end is told that way); a lost connection,
 * or an output of ours that nobody reads any more, is remembered in `err`.
 *
 * Input: wait for our stdin or for `stop`, write to the agent; at our end of file close the
 * container's stdin, or on a terminal send the end-of-file character, which is what a person's ^D
 * would have sent.
 */
#include "ctl/stdio.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "ctl/shim.h"

#define CHUNK 32768

static int write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        if (n < 0 && errno == EAGAIN)
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        data += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static void note(struct stdio *s, const struct err *err)
{
    pthread_mutex_lock(&s->lock);
    if (s->err.code == 0)
        s->err = *err;
    pthread_mutex_unlock(&s->lock);
}

static void output_run(struct stdio *s, const char *method, int fd)
{
    for (;;) {
        _cleanup_free_ uint8_t *data = NULL;
        struct err err = ERR_INIT;
        size_t len = 0;
        int r = shim_read(s->agent, s->container, method, &data, &len, &err);

        if (r < 0 && r != -EREMOTEIO)
            note(s, &err);
        if (r < 0 || len == 0)
            return;
        r = write_all(fd, data, len);
        if (r == 0)
            continue;
        err_errno(&err, r, "writing the container's output");
        note(s, &err);
        err_clear(&err);
        (void)shim_signal(s->agent, s->container, SIGKILL, &err);
        return;
    }
}

static void *out_main(void *arg)
{
    output_run(arg, "ReadStdout", STDOUT_FILENO);
    return NULL;
}

static void *error_main(void *arg)
{
    output_run(arg, "ReadStderr", STDERR_FILENO);
    return NULL;
}

static void input_end(struct stdio *s)
{
    struct err err = ERR_INIT;

    if (s->terminal)
        (void)shim_write(s->agent, s->container, "\x04", 1, &err);
    else
        (void)shim_close_stdin(s->agent, s->container, &err);
}

static void *in_main(void *arg)
{
    struct stdio *s = arg;
    _cleanup_free_ uint8_t *data = xcalloc(1, CHUNK);
    struct pollfd p[] = {{.fd = s->stop, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};

    for (;;) {
        struct err err = ERR_INIT;

        if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
            return NULL;
        if (p[0].revents)
            return NULL;
        ssize_t n = read(STDIN_FILENO, data, CHUNK);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0) {
            input_end(s);
            return NULL;
        }
        if (shim_write(s->agent, s->container, data, (size_t)n, &err) < 0)
            return NULL; /* the process does not read any more */
    }
}

int stdio_start(struct stdio *s, struct ttrpc_client *agent, const char *container, bool terminal,
                bool forward_stdin, struct err *err)
{
    *s = (struct stdio){.agent = agent,
                        .container = container,
                        .terminal = terminal,
                        .forward_stdin = forward_stdin,
                        .stop = eventfd(0, EFD_CLOEXEC)};
    pthread_mutex_init(&s->lock, NULL);
    if (s->stop < 0 || pthread_create(&s->out, NULL, out_main, s) != 0) {
        if (s->stop >= 0)
            close(s->stop);
        return err_set(err, -EAGAIN, "no thread for the container's output");
    }
    /* A terminal has one stream of output; the shim does not ask for the other. */
    s->has_error = !terminal && pthread_create(&s->error, NULL, error_main, s) == 0;
    if (forward_stdin)
        s->has_in = pthread_create(&s->in, NULL, in_main, s) == 0;
    else
        input_end(s);
    return 0;
}

void stdio_output_end(struct stdio *s)
{
    pthread_join(s->out, NULL);
    if (s->has_error)
        pthread_join(s->error, NULL);
}

void stdio_done(struct stdio *s)
{
    static const uint64_t one = 1;

    if (write(s->stop, &one, sizeof one) < 0)
        abort();
    if (s->has_in)
        pthread_join(s->in, NULL);
    close(s->stop);
    pthread_mutex_destroy(&s->lock);
}
