/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider with a meter.
 *
 * It is a provider itself whose functions time those of the real one, so that neither the callers
 * nor the providers know of it and no call is forgotten. Everything runs in jobs.
 *
 * What is no error: a cancel (we wanted it), and -ENOENT of find, which is an answer.
 */
#include "adaptor/meter.h"

#include <errno.h>

#include "base/clock.h"

struct meter {
    struct provider base;
    struct provider_type type; /* the real one's words and our functions */
    struct provider *inner;
    struct metrics *metrics;
};

static struct meter *meter_of(struct provider *p)
{
    return container_of(p, struct meter, base);
}

static int count(const struct meter *m, enum provider_call call, int64_t began_us, int r)
{
    bool answer = call == PROVIDER_FIND && r == -ENOENT;
    metrics_provider(m->metrics, call, clock_mono_us() - began_us,
                     r < 0 && r != -ECANCELED && !answer);
    return r;
}

static int meter_verify(struct provider *p, struct job *job, struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_VERIFY, began, m->inner->type->verify(m->inner, job, err));
}

static int meter_create(struct provider *p, struct job *job, const struct instance_request *request,
                        struct instance *ret, struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_CREATE, began,
                 m->inner->type->create(m->inner, job, request, ret, err));
}

static int meter_find(struct provider *p, struct job *job, const char *sandbox,
                      struct instance *ret, struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_FIND, began, m->inner->type->find(m->inner, job, sandbox, ret, err));
}

static int meter_list(struct provider *p, struct job *job, const struct tag *tags,
                      struct instance **ret, size_t *ret_n, struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_LIST, began,
                 m->inner->type->list(m->inner, job, tags, ret, ret_n, err));
}

static int meter_wait(struct provider *p, struct job *job, struct instance *instance,
                      struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_WAIT, began,
                 m->inner->type->wait_addresses(m->inner, job, instance, err));
}

static int meter_delete(struct provider *p, struct job *job, const struct instance *instance,
                        struct err *err)
{
    const struct meter *m = meter_of(p);
    int64_t began = clock_mono_us();
    return count(m, PROVIDER_DELETE, began, m->inner->type->delete (m->inner, job, instance, err));
}

static int64_t meter_settle(struct provider *p)
{
    const struct meter *m = meter_of(p);
    return m->inner->type->settle_ms(m->inner);
}

struct provider *meter_new(struct provider *inner, struct metrics *metrics)
{
    struct meter *m = xcalloc(1, sizeof(*m));
    m->inner = inner;
    m->metrics = metrics;
    m->type = *inner->type;
    m->type.open = NULL;
    m->type.close = NULL;
    m->type.verify = meter_verify;
    m->type.create = meter_create;
    m->type.find = meter_find;
    m->type.list = meter_list;
    m->type.wait_addresses = meter_wait;
    m->type.delete = meter_delete;
    m->type.settle_ms = inner->type->settle_ms ? meter_settle : NULL;
    m->base.type = &m->type;
    return &m->base;
}

void meter_free(struct provider *p)
{
    if (p)
        free(meter_of(p));
}
