/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the answer of an HTTP server, through the real client over loopback: a whole answer
 * within its limits, or an error with a reason.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "loop/http.h"
#include "loop/rest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BODY_MAX 4096
#define INPUT_MAX (128U << 10)
#define TIMEOUT_MS 5000

static int listener = -1;
static char url[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t answer[INPUT_MAX];
static size_t answer_len;

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void set_answer(const uint8_t *data, size_t size)
{
    pthread_mutex_lock(&lock);
    if (size > 0)
        memcpy(answer, data, size);
    answer_len = size;
    pthread_mutex_unlock(&lock);
}

static ssize_t send_answer(int fd)
{
    static uint8_t copy[INPUT_MAX];
    pthread_mutex_lock(&lock);
    size_t len = answer_len;
    memcpy(copy, answer, len);
    pthread_mutex_unlock(&lock);
    return send(fd, copy, len, MSG_NOSIGNAL);
}

static void *serve(void *arg)
{
    static const struct timeval linger = {.tv_usec = 500000};
    char request[4096];
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        /* Not for ever: a client that keeps this connection may wait on another one. */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &linger, sizeof(linger));
        ssize_t n = recv(fd, request, sizeof(request), 0); /* comes in one piece */
        if (n > 0)
            n = send_answer(fd);
        shutdown(fd, SHUT_WR);
        while (n > 0)
            n = recv(fd, request, sizeof(request), 0);
        close(fd);
    }
    return arg;
}

static void start(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    pthread_t thread;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener >= 0 && bind(listener, (struct sockaddr *)&a, sizeof(a)) == 0);
    check(listen(listener, 16) == 0 && getsockname(listener, (struct sockaddr *)&a, &len) == 0);
    snprintf(url, sizeof(url), "http://127.0.0.1:%d/latest", ntohs(a.sin_port));
    check(pthread_create(&thread, NULL, serve, NULL) == 0 && pthread_detach(thread) == 0);
}

static void check_response(const struct http_response *r)
{
    check(r->body && /* any status: "HTTP/222..." is one to libcurl */

          strnlen(r->body, r->body_len) <= BODY_MAX);
    check(r->body_len <= BODY_MAX && r->body[r->body_len] == '\0');
    for (size_t i = 0; r->headers && r->headers[i]; i++) {
        const char *colon = strchr(r->headers[i], ':');
        for (const char *c = r->headers[i]; colon && c < colon; c++)
            check(!isupper((unsigned char)*c));
    }
    check(rest_retry_after_ms(r, 0) >= 0);
    (void)http_response_header(r, "location");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > INPUT_MAX)
        return 0;
    if (listener < 0)
        start();
    const char *headers[] = {"Metadata: true", "Empty: ", NULL};
    struct http_request request = {
        .method = "GET",
        .url = url,
        .headers = headers,
        .body_max = BODY_MAX,
        .timeout_ms = TIMEOUT_MS,
    };
    struct http_response response = {0};
    struct err err = ERR_INIT;
    struct job *job = job_new_inline(TIMEOUT_MS);
    set_answer(data, size);
    int r = job_http(job, &request, &response, &err);
    check((r < 0) == (err.code != 0));
    check(r != -ETIMEDOUT); /* the server hangs up: nothing is left to wait for */
    if (r == 0)
        check_response(&response);
    http_response_done(&response);
    job_free_inline(job);
    return 0;
}
