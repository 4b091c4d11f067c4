/* SPDX-License-Identifier: Apache-2.0 */
/*
 * StartVM: from a record to a pod VM whose agent answers.
 *
 *   write the record (STARTING)  before the provider hears of it: no VM without a record
 *   job: inspect the pod's network (network.c), for the user data
 *   job: create                  -> the instance's id into the record, also when it failed half-way
 *   job: wait for addresses      -> into the record
 *   job: set up the pod's network (network.c)
 *   tunnel: dial, TLS, hello, enrolment (tunnel.c); its callbacks come here
 *   agent ready                  -> RUNNING, and the waiting StartVM calls are answered
 *
 * One clock bounds it all: the caller's timeout (less a little, so that it is our sentence that it
 * gets and not its own "deadline exceeded"), never more than -start-timeout: a runtime-rs shim asks
 * for 10^13 ns. -proxy-timeout bounds the part behind the instance's address.
 *
 * After a restart (sandbox_start_resume) the same steps are taken from where the record says that
 * they stopped. An instance that may have been made is looked up by tag first; then the same token
 * is sent again.
 *
 * Every failure ends in sandbox_start_fail: the text goes to all who wait, and the background
 * deletion takes back what was made. A job in flight is cancelled; deletion begins when it has
 * ended, so create and delete of one sandbox never run at once.
 */
#include <errno.h>
#include <netdb.h>
#include <openssl/evp.h>

#include "adaptor/plainmode.h"
#include "adaptor/podvminfo.h"
#include "adaptor/sandbox.h"
#include "base/clock.h"
#include "base/log.h"
#include "guest/apf.h"
#include "guest/initdata.h"
#include "guest/userdata.h"
#include "wire/ttrpc.h"

#define START_MARGIN_MS 2000 /* our answer comes so much before the caller's own deadline */
#define START_MIN_MS 1000
#define REFUSED_PATIENCE_MS 3000 /* for a peer that refuses, before StartVM fails */

/* -- the job: plain values in, plain values out -- */

struct vm_job {
    struct adaptor *adaptor; /* loop only */
    char token[RECORD_TOKEN_LEN + 1];
    struct provider *provider;
    bool look_first; /* our predecessor may have made it */
    bool external_network;
    struct tag tags[INSTANCE_TAGS_MAX];
    char *tag_values[INSTANCE_TAGS_MAX];
    struct instance_spec spec;
    char *user_data;
    size_t user_data_len;
    struct instance instance; /* in and out */
    int result;
    struct err err;
};

static void vm_job_free(struct vm_job *j)
{
    for (size_t i = 0; i < INSTANCE_TAGS_MAX; i++)
        free(j->tag_values[i]);
    if (j->user_data)
        secret_wipe(j->user_data, j->user_data_len);
    free(j->user_data);
    free(j);
}

static struct vm_job *vm_job_new(struct sandbox *sb)
{
    struct vm_job *j = xcalloc(1, sizeof(*j));
    j->adaptor = sb->adaptor;
    j->provider = sb->adaptor->provider;
    memcpy(j->token, sb->record.token, sizeof(j->token));
    j->spec = sb->record.spec;
    j->instance = sb->record.instance;
    return j;
}

static void add_tag(struct vm_job *j, size_t *n, const char *key, const char *value)
{
    if (str_empty(value))
        return;
    j->tag_values[*n] = xstrdup(value);
    j->tags[*n] = (struct tag){key, j->tag_values[*n]};
    ++*n;
}

static void add_tags(struct vm_job *j, const struct sandbox *sb)
{
    const struct adaptor_config *config = sb->adaptor->config;
    size_t n = 0;
    add_tag(j, &n, TAG_CREATOR, "cloud-api-adaptor");
    add_tag(j, &n, TAG_SANDBOX, sb->record.id);
    add_tag(j, &n, TAG_POD, sb->record.pod);
    add_tag(j, &n, TAG_NAMESPACE, sb->record.namespace);
    add_tag(j, &n, TAG_NODE, config->node_name);
    add_tag(j, &n, TAG_CLUSTER, config->cluster_uid);
    add_tag(j, &n, TAG_BOOT, sb->record.boot);
}

static void create_run(struct job *job, void *arg)
{
    struct vm_job *j = arg;
    const struct instance_request request = {
        .name = j->instance.name,
        .token = j->token,
        .tags = j->tags,
        .user_data = j->user_data,
        .user_data_len = j->user_data_len,
        .spec = j->spec,
        .external_network = j->external_network,
    };
    struct instance made = {0};
    job_about(job, j->instance.sandbox);
    if (j->look_first)
        j->result = j->provider->type->find(j->provider, job, j->instance.sandbox, &made, &j->err);
    /* What is found without an address may be half made: the same token makes the rest of it. */
    if (!j->look_first || j->result == -ENOENT ||
        (j->result == 0 && made.n_addresses == 0 && !made.gone)) {
        const struct instance found = made;
        err_clear(&j->err);
        j->result = j->provider->type->create(j->provider, job, &request, &made, &j->err);
        if (!*made.id)
            made = found;
    }
    if (*made.id) {
        memcpy(made.name, j->instance.name, sizeof(made.name));
        memcpy(made.sandbox, j->instance.sandbox, sizeof(made.sandbox));
        j->instance = made;
    }
}

static void wait_run(struct job *job, void *arg)
{
    struct vm_job *j = arg;
    job_about(job, j->instance.sandbox);
    j->result = j->provider->type->wait_addresses(j->provider, job, &j->instance, &j->err);
    if (j->result == 0 && j->instance.n_addresses == 0)
        j->result = err_set(&j->err, -EADDRNOTAVAIL, "the provider reports no address");
}

/* -- user data -- */

static int fill_native_apf(struct sandbox *sb, struct apf *apf, struct err *err)
{
    _cleanup_free_ char *key = NULL;
    int r = tls_identity_pem(sb->identity, &key, &apf->tls_client_ca, err);
    if (key)
        secret_wipe(key, strlen(key));
    apf->tunnel = APF_TUNNEL_NATIVE;
    memcpy(apf->sandbox_id, sb->record.id, sizeof(apf->sandbox_id));
    memcpy(apf->enrolment_secret, sb->secret, SANDBOX_SECRET_SIZE);
    apf->enrolment_secret_len = SANDBOX_SECRET_SIZE;
    return r;
}

static int apf_text(struct sandbox *sb, struct apf *network, char **ret, size_t *ret_len,
                    struct err *err)
{
    struct apf apf = {.has_network = true, .network = network->network};
    network->network = (struct apf_network){0};
    int r = sb->record.plain ? plainmode_fill_apf(sb, &apf, err) : fill_native_apf(sb, &apf, err);
    apf.pod_name = xstrdup(sb->record.pod);
    apf.pod_namespace = xstrdup(sb->record.namespace);
    if (r == 0)
        r = apf_build(&apf, ret, ret_len, err);
    apf_done(&apf);
    return r;
}

/* What the operator may look at, `apf.json` in the sandbox's directory: without key and secret. */
static int store_apf_copy(struct sandbox *sb, const char *apf, size_t len, struct err *err)
{
    static const char *const secrets[] = {"enrolment-secret", "tls-server-key"};
    struct json_object *o = NULL;
    int r = json_parse(apf, len, &o, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(secrets); i++) {
        struct json_object *v = json_object_object_get(o, secrets[i]);
        if (v)
            secret_wipe((char *)json_object_get_string(v), (size_t)json_object_get_string_len(v));
        json_object_object_del(o, secrets[i]);
    }
    const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
    r = fs_write_atomic(sb->dir, "apf.json", text, strlen(text), 0600, err);
    json_put(o);
    return r;
}

/* base64(gzip) of the stored TOML; NULL when the pod brought none. */
static int initdata_text(struct sandbox *sb, char **ret, size_t *ret_len, struct err *err)
{
    _cleanup_free_ char *toml = NULL;
    struct err local = ERR_INIT;
    size_t len;
    int r = fs_read(sb->dir, "initdata", INITDATA_TOML_MAX, &toml, &len, &local);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return err_set(err, r, "%s", local.text);
    return initdata_encode(toml, len, ret, ret_len, err);
}

static void set_digest(struct sandbox *sb, const char *initdata)
{
    struct record *rec = &sb->record;
    _cleanup_free_ char *text = str_asprintf(
        "%s\n%s\n%u\n%llu\n%u\n%s", rec->spec.type, rec->spec.image, rec->spec.vcpus,
        (unsigned long long)rec->spec.memory_mib, rec->spec.gpus, initdata ? initdata : "");
    uint8_t digest[32];
    if (EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL) == 1)
        str_hex(digest, sizeof(digest), rec->spec_digest);
}

static int build_user_data(struct sandbox *sb, struct vm_job *j, struct apf *network,
                           struct err *err)
{
    _cleanup_free_ char *apf = NULL;
    _cleanup_free_ char *initdata = NULL;
    size_t apf_len = 0, initdata_len = 0, n = 1;
    int r = apf_text(sb, network, &apf, &apf_len, err);
    if (r == 0)
        r = initdata_text(sb, &initdata, &initdata_len, err);
    if (r == 0)
        r = store_apf_copy(sb, apf, apf_len, err);
    if (r == 0) {
        struct userdata_file files[2] = {{"/run/peerpod/apf.json", apf, apf_len}};
        if (initdata)
            files[n++] = (struct userdata_file){"/run/peerpod/initdata", initdata, initdata_len};
        r = userdata_build(files, n, j->provider->type->user_data_max, &j->user_data,
                           &j->user_data_len, err);
        set_digest(sb, initdata);
    }
    if (apf)
        secret_wipe(apf, apf_len);
    return r;
}

static const char *const step_texts[START_STEPS] = {
    [START_INSPECT] = "inspecting the pod's network",
    [START_CREATE] = "creating the instance",
    [START_ADDRESS] = "waiting for the instance's address",
    [START_NETWORK] = "setting up the pod's network",
    [START_FORWARDER] = "waiting for the forwarder in the pod VM",
    [START_AGENT] = "waiting for the agent in the pod VM",
};

static void enter(struct sandbox *sb, enum start_step step)
{
    sb->step = step_texts[step];
    metrics_start_step(sb, step);
}

/* -- the tunnel's callbacks -- */

static void start_succeeded(struct sandbox *sb)
{
    struct err err = ERR_INIT;
    sb->record.state = SANDBOX_RUNNING;
    adaptor_trim_soon(sb->adaptor);
    free(TAKE_PTR(sb->record.last_error));
    if (sandbox_save(sb, &err) < 0) {
        sandbox_start_fail(sb, "record", &err);
        return;
    }
    metrics_start_over(sb, START_OK);
    log_entry(LOG_LEVEL_INFO, sb->record.id, "start", "pod VM %s at %s runs after %lld ms",
              sb->record.instance.name, sb->record.instance.addresses[0],
              (long long)(clock_mono_ms() - sb->start_began_ms));
    sandbox_disarm(sb);
    uv_timer_stop(&sb->watch);
    waiters_done(&sb->starters, NULL);
    sandbox_watch_shim(sb);
}

static void start_timed_out(uv_timer_t *timer);

static void arm_deadline(struct sandbox *sb)
{
    sandbox_arm(sb, sb->start_deadline_ms - clock_mono_ms(), start_timed_out);
}

static void check_started(struct sandbox *sb)
{
    if (sb->record.state != SANDBOX_STARTING || !sb->tunnel_up)
        return;
    enter(sb, START_AGENT);
    if (sb->agent_ready)
        start_succeeded(sb);
    else
        arm_deadline(sb);
}

static void note_gap(struct sandbox *sb)
{
    struct tunnel_stats stats;
    tunnel_get_stats(sb->tunnel, &stats);
    metrics_gap(sb->adaptor->metrics, stats.silence_ms);
}

static void on_up(void *owner, bool first)
{
    struct sandbox *sb = owner;
    sb->tunnel_up = true;
    if (!first)
        note_gap(sb);
    log_entry(first ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, sb->record.id, "tunnel",
              first ? "tunnel is up" : "tunnel is up again");
    sandbox_resumed(sb);
    sandbox_watch_tunnel(sb);
    check_started(sb);
}

static void on_down(void *owner, const struct err *why)
{
    struct sandbox *sb = owner;
    if (sb->tunnel_up)
        log_entry(LOG_LEVEL_WARN, sb->record.id, "tunnel", "tunnel is down, dialling again: %s",
                  err_text(why));
    sb->tunnel_up = false;
    sandbox_watch_tunnel(sb);
}

static void last_error(const struct sandbox *sb, struct err *ret)
{
    if (sb->tunnel)
        tunnel_last_error(sb->tunnel, ret);
    else
        plainmode_last_error(sb, ret);
}

static void refused_for_good(uv_timer_t *timer)
{
    struct sandbox *sb = timer->data;
    struct err err = ERR_INIT;
    last_error(sb, &err);
    err_wrap(&err, err.code ? err.code : -EPROTO,
             "the daemon and what listens on port %u of pod VM %s refuse each other",
             sb->adaptor->forwarder_port, sb->record.instance.name);
    sandbox_start_fail(sb, "tunnel", &err);
}

/* Time may still mend it (a guest that is just being set up), but not much of it. */
static void on_refused(void *owner, const struct err *why)
{
    struct sandbox *sb = owner;
    sb->tunnel_up = false;
    sandbox_watch_tunnel(sb);
    log_entry(LOG_LEVEL_ERROR, sb->record.id, "tunnel", "%s", err_text(why));
    if (sb->record.state == SANDBOX_STARTING)
        sandbox_arm(sb, MIN(sb->start_deadline_ms - clock_mono_ms(), (int64_t)REFUSED_PATIENCE_MS),
                    refused_for_good);
}

static void on_agent_ready(void *owner, bool ready)
{
    struct sandbox *sb = owner;
    sb->agent_ready = ready;
    check_started(sb);
}

/* The pin is on disk before the forwarder hears of it; only then is the secret worthless. */
static int on_enrolled(void *owner, const uint8_t pin[TLS_PIN_SIZE])
{
    struct sandbox *sb = owner;
    struct err err = ERR_INIT;
    memcpy(sb->record.peer_pin, pin, TLS_PIN_SIZE);
    sb->record.enrolled = true;
    int r = sandbox_save(sb, &err);
    if (r < 0) {
        sb->record.enrolled = false;
        log_entry(LOG_LEVEL_ERROR, sb->record.id, "enrol", "%s", err_text(&err));
        return r;
    }
    unlinkat(sb->dir, "secret", 0);
    secret_wipe(sb->secret, sizeof(sb->secret));
    return 0;
}

static const struct tunnel_ops tunnel_callbacks = {
    .up = on_up,
    .down = on_down,
    .refused = on_refused,
    .agent_ready = on_agent_ready,
    .enrolled = on_enrolled,
};

int sandbox_address(struct sandbox *sb, struct sockaddr_storage *ret, socklen_t *ret_len,
                    struct err *err)
{
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    char port[8];
    snprintf(port, sizeof(port), "%u", sb->adaptor->forwarder_port);
    if (getaddrinfo(sb->record.instance.addresses[0], port, &hints, &found) != 0)
        return err_set(err, -EADDRNOTAVAIL, "the provider's address '%s' is not numeric",
                       sb->record.instance.addresses[0]);
    memcpy(ret, found->ai_addr, found->ai_addrlen);
    *ret_len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

int sandbox_tunnel_open(struct sandbox *sb, struct err *err)
{
    struct sockaddr_storage address;
    socklen_t len = 0;
    struct tunnel_config config = {
        .role = TUNNEL_DAEMON,
        .sandbox_id = sb->record.id,
        .self = sb->identity,
        .ctx = sb->adaptor->tls,
        .generation = sb->adaptor->tenure.generation,
        .feature_mask = (uint64_t)sb->adaptor->config->tunnel_feature_mask,
    };
    if (sb->record.enrolled) {
        memcpy(config.peer_pin, sb->record.peer_pin, TLS_PIN_SIZE);
    } else {
        memcpy(config.secret, sb->secret, SANDBOX_SECRET_SIZE);
        config.secret_len = SANDBOX_SECRET_SIZE;
    }
    int r = sandbox_address(sb, &address, &len, err);
    if (r == 0)
        r = tunnel_new(sb->adaptor->loop, &config, &tunnel_callbacks, sb, &sb->tunnel, err);
    secret_wipe(config.secret, sizeof(config.secret));
    if (r < 0)
        return r;
    shimconn_attach_all(sb);
    return tunnel_dial(sb->tunnel, (struct sockaddr *)&address, len);
}

static void plain_up(struct sandbox *sb)
{
    sb->agent_ready = true; /* nobody tells: the stock forwarder looks for it on the first call */
    shimconn_attach_all(sb);
    on_up(sb, true);
}

static void plain_refused(struct sandbox *sb, const struct err *why)
{
    on_refused(sb, why);
}

static const struct plainmode_ops plain_callbacks = {.up = plain_up, .refused = plain_refused};

static int plain_begin(struct sandbox *sb, struct err *err)
{
    int r = plainmode_open(sb, err);
    return r < 0 ? r : plainmode_dial(sb, &plain_callbacks, err);
}

/* -- the course of things -- */

void sandbox_start_fail(struct sandbox *sb, const char *step, const struct err *err)
{
    struct err copy = *err;
    sandbox_note_error(sb, step, &copy);
    metrics_start_over(sb, START_FAILED);
    waiters_done(&sb->starters, &copy);
    sandbox_stop(sb, "StartVM failed");
}

static void start_timed_out(uv_timer_t *timer)
{
    struct sandbox *sb = timer->data;
    struct err err = ERR_INIT, last = ERR_INIT;
    long long s = (clock_mono_ms() - sb->start_began_ms) / 1000;
    if ((sb->tunnel || sb->plain) && !sb->tunnel_up) {
        last_error(sb, &last);
        err_set(&err, -ETIMEDOUT,
                "StartVM gave up after %lld s while waiting for the forwarder of pod VM %s at %s "
                "port %u (last: %s); check that the image runs agent-protocol-forwarder and that "
                "the network lets the node reach that port",
                s, sb->record.instance.name, sb->record.instance.addresses[0],
                sb->adaptor->forwarder_port, err_text(&last));
    } else {
        err_set(&err, -ETIMEDOUT, "StartVM gave up after %lld s while %s (pod VM %s)", s, sb->step,
                sb->record.instance.name);
    }
    sandbox_start_fail(sb, "start", &err);
}

static int dial_begin(struct sandbox *sb, struct err *err)
{
    int64_t proxy = clock_mono_ms() + sb->adaptor->config->proxy_timeout_ns / 1000000;
    enter(sb, START_FORWARDER);
    sb->start_deadline_ms = MIN(sb->start_deadline_ms, proxy);
    arm_deadline(sb);
    return sb->record.plain ? plain_begin(sb, err) : sandbox_tunnel_open(sb, err);
}

static int setup_next(struct sandbox *sb, struct apf *apf, struct err *err)
{
    (void)apf;
    return dial_begin(sb, err);
}

static int setup_begin(struct sandbox *sb, struct err *err)
{
    enter(sb, START_NETWORK);
    return sandbox_network_begin(sb, true, setup_next, err);
}

static void wait_done(void *arg, bool ran)
{
    struct vm_job *j = arg;
    struct sandbox *sb = sandbox_find_token(j->adaptor, j->token);
    struct err err = ERR_INIT;
    sb->job = NULL;
    if (sb->adaptor->ending) {
        /* as in create_done */
    } else if (sb->record.state == SANDBOX_DELETING) {
        sandbox_delete_continue(sb);
    } else if (!ran || j->result < 0) {
        err_wrap(&j->err, ran ? j->result : -ECANCELED, "waiting for the address of instance %s",
                 sb->record.instance.name);
        sandbox_start_fail(sb, "wait", &j->err);
    } else {
        sb->record.instance = j->instance;
        if (sandbox_save(sb, &err) < 0 || setup_begin(sb, &err) < 0)
            sandbox_start_fail(sb, "network", &err);
    }
    vm_job_free(j);
}

static void wait_begin(struct sandbox *sb)
{
    struct vm_job *j = vm_job_new(sb);
    struct err err = ERR_INIT;
    enter(sb, START_ADDRESS);
    if (job_start(sb->adaptor->jobs, JOB_CREATE, "wait", 0, wait_run, wait_done, j, &sb->job,
                  &err) < 0) {
        vm_job_free(j);
        sandbox_start_fail(sb, "wait", &err);
    }
}

static void create_done(void *arg, bool ran)
{
    struct vm_job *j = arg;
    struct sandbox *sb = sandbox_find_token(j->adaptor, j->token);
    struct err err = ERR_INIT;
    sb->job = NULL;
    sb->record.instance = j->instance;
    int saved = sandbox_save(sb, &err);
    if (sb->adaptor->ending) {
        /* the record has the instance: the next process goes on from there */
    } else if (sb->record.state == SANDBOX_DELETING) {
        sandbox_delete_continue(sb);
    } else if (!ran || j->result < 0) {
        err_wrap(&j->err, ran ? j->result : -ECANCELED, "creating instance %s",
                 sb->record.instance.name);
        sandbox_start_fail(sb, "create", &j->err);
    } else if (saved < 0) {
        sandbox_start_fail(sb, "record", &err);
    } else {
        podvminfo_instance_known(sb->adaptor);
        wait_begin(sb);
    }
    vm_job_free(j);
}

static int create_with(struct sandbox *sb, struct apf *network, bool look_first, struct err *err)
{
    struct vm_job *j = vm_job_new(sb);
    j->look_first = look_first;
    j->external_network = sb->adaptor->config->ext_network_via_podvm;
    enter(sb, START_CREATE);
    add_tags(j, sb);
    int r = build_user_data(sb, j, network, err);
    if (r == 0)
        r = sandbox_save(sb, err);
    if (r == 0)
        r = job_start(sb->adaptor->jobs, JOB_CREATE, "create", 0, create_run, create_done, j,
                      &sb->job, err);
    if (r < 0)
        vm_job_free(j);
    return r;
}

static int create_next(struct sandbox *sb, struct apf *apf, struct err *err)
{
    return create_with(sb, apf, false, err);
}

static int look_next(struct sandbox *sb, struct apf *apf, struct err *err)
{
    return create_with(sb, apf, true, err);
}

static int create_begin(struct sandbox *sb, bool look_first, struct err *err)
{
    enter(sb, START_INSPECT);
    sb->record.state = SANDBOX_STARTING;
    if (!look_first)
        sb->record.started_ms = clock_real_ms();
    int r = sandbox_network_reserve(sb, err);
    if (r == 0)
        r = sandbox_save(sb, err);
    return r < 0 ? r : sandbox_network_begin(sb, false, look_first ? look_next : create_next, err);
}

static int64_t start_bound_ms(const struct sandbox *sb, int64_t timeout_ns)
{
    int64_t bound = sb->adaptor->config->start_timeout_ns / 1000000;
    int64_t asked = timeout_ns / 1000000;
    if (timeout_ns > 0)
        bound = MIN(bound, asked - MIN((int64_t)START_MARGIN_MS, asked / 10));
    return MAX(bound, (int64_t)START_MIN_MS);
}

void sandbox_start(struct sandbox *sb, int64_t timeout_ns, struct waiter *w)
{
    struct err err = ERR_INIT;
    switch (sb->record.state) {
    case SANDBOX_RUNNING:
        w->done(w, NULL);
        return;
    case SANDBOX_STARTING:
        /* Taken over from a dead process: the caller's bound comes back with its call. */
        if (!sb->starters) {
            int64_t end = sb->start_began_ms + start_bound_ms(sb, timeout_ns);
            sb->start_deadline_ms = MIN(sb->start_deadline_ms, end);
            arm_deadline(sb);
        }
        waiter_add(&sb->starters, w);
        return;
    case SANDBOX_DELETING:
        err_set(&err, -ESHUTDOWN, "StartVM: sandbox %s is being deleted%s%s", sb->record.id,
                sb->record.last_error ? ": " : "",
                sb->record.last_error ? sb->record.last_error : "");
        w->done(w, &err);
        return;
    case SANDBOX_CREATED:
        break;
    }
    waiter_add(&sb->starters, w);
    sb->start_began_ms = clock_mono_ms();
    sb->start_deadline_ms = sb->start_began_ms + start_bound_ms(sb, timeout_ns);
    arm_deadline(sb);
    sandbox_watch_start(sb);
    if (create_begin(sb, false, &err) < 0)
        sandbox_start_fail(sb, "create", &err);
}

void sandbox_start_resume(struct sandbox *sb)
{
    struct err err = ERR_INIT;
    int64_t bound = sb->adaptor->config->start_timeout_ns / 1000000;
    int64_t spent = clock_real_ms() - sb->record.started_ms;
    int r = 0;
    if (spent < 0 || spent > bound)
        spent = 0; /* the clock has jumped */
    log_entry(LOG_LEVEL_INFO, sb->record.id, "recover", "going on with StartVM");
    sb->start_began_ms = clock_mono_ms() - spent;
    sb->start_deadline_ms = sb->start_began_ms + bound;
    arm_deadline(sb);
    sandbox_watch_start(sb);
    if (!*sb->record.instance.id)
        r = create_begin(sb, true, &err);
    else if (!sb->record.instance.n_addresses)
        wait_begin(sb);
    else
        r = setup_begin(sb, &err);
    if (r < 0)
        sandbox_start_fail(sb, "recover", &err);
}

void sandbox_start_abandon(struct sandbox *sb, struct waiter *w)
{
    if (waiter_remove(&sb->starters, w) && !sb->starters && sb->record.state == SANDBOX_STARTING)
        sandbox_stop(sb, "the caller of StartVM has gone away");
}
