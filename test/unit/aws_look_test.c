/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions about sandboxes that share one call (providers/aws/look.c), against a server that answers
 * when it is told to: who asks while another's call is under way, and who ends meanwhile.
 */
#include "unit/http_server.h"

#include <errno.h>

#include "base/clock.h"
#include "loop/http.h"
#include "providers/aws/look.h"

#define ASKERS 6

static struct server server;
static atomic_int permits;            /* so many calls may be answered */
static _Atomic(const char *) refusal; /* a code, or NULL */
static _Atomic(const char *) more;    /* a header of the refusal */
static atomic_int calls_begun;        /* they wait for a permit, or were answered */

/* An instance for each sandbox that the filter names. */
static bool answer_all(struct client *c, const struct buf *request)
{
    _cleanup_(buf_done) struct buf b = BUF_INIT(0);
    const char *at = strstr(request->data, "\r\n\r\n");
    char name[65];

    buf_adds(&b, "<R><reservationSet>");
    while ((at = strstr(at, "Filter.1.Value."))) {
        at = strchr(at, '=') + 1;
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(at, "&"), at);
        buf_addf(
            &b,
            "<item><instancesSet><item><instanceId>i-%s</instanceId><tagSet><item><key>"
            "peerpod-sandbox</key><value>%s</value></item></tagSet></item></instancesSet></item>",
            name, name);
    }
    buf_adds(&b, "</reservationSet></R>");
    return reply(c, "200 OK", "", b.data, b.len);
}

static bool serve(struct client *c, _unused_ const char *path, const struct buf *request)
{
    calls_begun++;
    while (permits <= 0 && !c->server->stop)
        pause_ms(c, 10);
    permits--;
    const char *code = refusal;
    if (!code)
        return answer_all(c, request);
    _cleanup_free_ char *body = str_asprintf(
        "<R><Errors><Error><Code>%s</Code><Message>No.</Message></Error></Errors></R>", code);
    return reply(c, "403 Forbidden", more, body, strlen(body));
}

struct asker {
    struct look *look;
    struct job *job;
    char sandbox[16];
    pthread_t thread;
    atomic_bool done;
    int r;
    char id[64];
    size_t n;
    struct err err;
};

static void *asker_main(void *arg)
{
    struct asker *a = arg;
    struct ec2_instance *found = NULL;

    a->r = look_sandbox(a->look, a->job, a->sandbox, &found, &a->n, &a->err);
    if (a->r == 0 && a->n > 0)
        snprintf(a->id, sizeof(a->id), "%s", found[0].id);
    free(found);
    a->done = true;
    return NULL;
}

static struct asker *ask(struct look *look, unsigned number)
{
    struct asker *a = xcalloc(1, sizeof(*a));

    a->look = look;
    a->job = job_new_inline(60000);
    snprintf(a->sandbox, sizeof(a->sandbox), "s%u", number);
    assert_int_equal(pthread_create(&a->thread, NULL, asker_main, a), 0);
    return a;
}

/* Its result; the asker is freed. */
static int end(struct asker *a, struct asker *ret)
{
    pthread_join(a->thread, NULL);
    job_free_inline(a->job);
    *ret = *a;
    free(a);
    return ret->r;
}

static void is_answered(struct asker *a)
{
    struct asker got;

    assert_int_equal(end(a, &got), 0);
    assert_int_equal(got.n, 1);
    assert_string_equal(got.id + 2, got.sandbox);
}

static void wait_calls(int n)
{
    for (int i = 0; i < 2000 && calls_begun < n; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(calls_begun, n);
}

/* So that whoever was started stands in the queue. */
static void settle(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
}

struct world {
    struct aws_config config;
    struct opt_set sets[2];
    struct aws_client *client;
    struct look *look;
    struct asker *first, *others[ASKERS];
};

/* One asks, and its call waits for its answer; ASKERS others have come meanwhile. */
static void begin(struct world *w)
{
    _cleanup_free_ char *url = str_asprintf("http://127.0.0.1:%d", server.port);
    char *argv[] = {(char *)"-aws-endpoint-url",
                    url,
                    (char *)"-aws-access-key-id",
                    (char *)"AKIDTEST",
                    (char *)"-aws-secret-key",
                    (char *)"hush",
                    (char *)"-aws-region",
                    (char *)"eu-test-1",
                    (char *)"-imageid",
                    (char *)"ami-1",
                    NULL};
    struct err err = ERR_INIT;

    *w = (struct world){0};
    refusal = NULL;
    more = "";
    calls_begun = 0;
    w->sets[0] = (struct opt_set){.title = "aws", .opts = aws_opts, .target = &w->config};
    if (opt_parse(w->sets, argv, NULL, NULL, &err) < 0 ||
        aws_client_new(&w->config, &w->client, &err) < 0)
        fail_msg("%s", err_text(&err));
    w->look = look_new(w->client);
    permits = 0;
    w->first = ask(w->look, 100);
    wait_calls(1);
    for (unsigned i = 0; i < ASKERS; i++)
        w->others[i] = ask(w->look, i);
    settle();
}

static void finish(struct world *w)
{
    look_free(w->look);
    aws_client_free(w->client);
    opt_done(w->sets);
    http_close_idle();
}

static void many_share_a_call(_unused_ void **state)
{
    struct world w;

    begin(&w);
    assert_int_equal(calls_begun, 1);
    permits = 100;
    is_answered(w.first);
    for (unsigned i = 0; i < ASKERS; i++)
        is_answered(w.others[i]);
    assert_int_equal(calls_begun, 2);
    finish(&w);
}

/* One after the other, whether it leads or has its question in another's call. */
static void who_ends_leaves_at_once(_unused_ void **state)
{
    struct asker got;
    struct world w;
    int64_t begun;

    begin(&w);
    for (unsigned i = 0; i + 1 < ASKERS / 2; i++) { /* from the queue */
        job_cancel(w.others[i]->job);
        assert_int_equal(end(w.others[i], &got), -ECANCELED);
    }
    permits = 1;
    is_answered(w.first);
    wait_calls(2);
    begun = clock_mono_ms();
    for (unsigned i = ASKERS / 2 - 1; i + 1 < ASKERS; i++) {
        job_cancel(w.others[i]->job);
        assert_int_equal(end(w.others[i], &got), -ECANCELED);
    }
    assert_true(clock_mono_ms() - begun < 10000);
    permits = 100;
    is_answered(w.others[ASKERS - 1]);
    finish(&w);
}

static void a_refusal_is_everybodys(_unused_ void **state)
{
    struct asker got;
    struct world w;

    begin(&w);
    refusal = "UnauthorizedOperation";
    permits = 100;
    assert_int_equal(end(w.first, &got), -EACCES);
    for (unsigned i = 0; i < ASKERS; i++) {
        assert_int_equal(end(w.others[i], &got), -EACCES);
        assert_text_has(err_text(&got.err), "ec2:DescribeInstances");
    }
    assert_int_equal(calls_begun, 2);
    finish(&w);
}

/* The leader waits for its turn; everybody says so, and nobody when it is over. */
static void all_are_told_why_they_wait(_unused_ void **state)
{
    char words[JOB_WORDS_MAX] = "";
    struct world w;

    begin(&w);
    refusal = "RequestLimitExceeded";
    more = "Retry-After: 2\r\n";
    permits = 100;
    for (unsigned i = 0; i < ASKERS; i++) {
        for (int k = 0; k < 200 && !words[0]; k++) {
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
            job_words(w.others[i]->job, words);
        }
        assert_text_has(words, "AWS throttles this node's read calls (RequestLimitExceeded)");
        words[0] = '\0';
    }
    refusal = NULL;
    is_answered(w.first);
    for (unsigned i = 0; i < ASKERS; i++) {
        pthread_join(w.others[i]->thread, NULL);
        job_words(w.others[i]->job, words);
        assert_string_equal(words, "");
        job_free_inline(w.others[i]->job);
        free(w.others[i]);
    }
    finish(&w);
}

static int set_up(_unused_ void **state)
{
    unsetenv("AWS_WEB_IDENTITY_TOKEN_FILE");
    setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
    server_start(&server, NULL, serve);
    return 0;
}

static int tear_down(_unused_ void **state)
{
    server_stop(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_share_a_call),
        cmocka_unit_test(who_ends_leaves_at_once),
        cmocka_unit_test(a_refusal_is_everybodys),
        cmocka_unit_test(all_are_told_why_they_wait),
    };
    return cmocka_run_group_tests_name("aws look", tests, set_up, tear_down);
}
