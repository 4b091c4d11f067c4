/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider interface: how the daemon makes, finds and deletes pod VMs.
 *
 * All functions are synchronous and run in jobs, several at once: a provider locks what it shares.
 * They wait only through the job's helpers. Inputs and results are plain values without pointers
 * into the daemon. A provider registers itself with one `struct provider_type` in registry.c.
 *
 * No VM is lost: `create` reports what it made even when a later step failed (ret->id set together
 * with a negative return), and the same request sent again (same token, same name) finds what the
 * first one made instead of making a second. `delete` of what does not exist is success; it returns
 * 0 only when the provider confirms that the instance and everything made for it are gone.
 */
#pragma once

#include "base/err.h"
#include "base/opt.h"
#include "loop/job.h"

#define INSTANCE_NAME_MAX 63
#define INSTANCE_ID_MAX 512
#define INSTANCE_ADDRESSES_MAX 8
#define INSTANCE_ADDRESS_SIZE 64
#define INSTANCE_TYPE_MAX 128
#define INSTANCE_IMAGE_MAX 512
#define INSTANCE_TAGS_MAX 16

/* Tags on everything we make; their keys are the same with every provider (each maps the
 * characters its cloud refuses). */
#define TAG_CLUSTER "peerpod-cluster"
#define TAG_NODE "peerpod-node"
#define TAG_BOOT "peerpod-boot"
#define TAG_SANDBOX "peerpod-sandbox"
#define TAG_POD "peerpod-pod"
#define TAG_NAMESPACE "peerpod-namespace"
#define TAG_CREATOR "peerpod-creator" /* always "cloud-api-adaptor" */

struct tag {
    const char *key, *value; /* borrowed by requests, owned in results */
};

struct instance_spec {
    uint32_t vcpus;      /* 0: not asked for */
    uint64_t memory_mib; /* 0: not asked for */
    uint32_t gpus;
    char type[INSTANCE_TYPE_MAX];   /* "": the provider chooses */
    char image[INSTANCE_IMAGE_MAX]; /* "": the provider's default */
};

struct instance_request {
    const char *name;       /* podvm-<pod>-<8 of sandbox id>, [a-z0-9-], <= INSTANCE_NAME_MAX */
    const char *token;      /* idempotency token, 32 hex digits, the same for every retry */
    const struct tag *tags; /* ends with a NULL key */
    const char *user_data;  /* cloud-config, raw */
    size_t user_data_len;   /* <= the type's user_data_max */
    struct instance_spec spec;
    /* The pod reaches the world from the VM's second interface (-ext-network-via-podvm). */
    bool external_network;
};

struct instance {
    char id[INSTANCE_ID_MAX]; /* the provider's own; "" = nothing was made */
    char name[INSTANCE_NAME_MAX + 1];
    char sandbox[64 + 1];                                          /* from TAG_SANDBOX */
    char addresses[INSTANCE_ADDRESSES_MAX][INSTANCE_ADDRESS_SIZE]; /* numeric, first is primary */
    size_t n_addresses;
    bool gone;     /* stopped or being deleted at the provider's */
    char boot[40]; /* from TAG_BOOT */
};

/* What `peerpodctl verify` shows, one after the other. */
enum finding {
    FINDING_OK,
    FINDING_NOTE, /* worth knowing; pods start all the same */
    FINDING_BAD,  /* pods will not start */
};
typedef void provider_finding_fn(enum finding kind, const char *what, const char *text, void *arg);

struct provider; /* a provider's private state begins with this */

struct provider_type {
    const char *name;    /* the command-line word */
    const char *summary; /* one line for --help */
    const struct opt *opts;
    size_t config_size;      /* of the struct that opts fill */
    size_t user_data_max;    /* bytes of raw user data that fit; 0: no limit */
    bool runs_machines_here; /* its machines are children of ours and need all our rights */
    bool point_to_point;     /* a VM's gateway is this node: the VM finds us without our address */
    const char *warning;     /* said at start and by --help ("not for production"), or NULL */

    /* config: the filled struct, borrowed for the provider's life. */
    int (*open)(const void *config, struct provider **ret, struct err *err);
    void (*close)(struct provider *p);
    /* Can we work with this configuration (credentials, images, networks)? */
    int (*verify)(struct provider *p, struct job *job, struct err *err);
    /* Everything about it that can be known without making anything; negative when something is bad.
     * NULL: verify is all there is. */
    int (*diagnose)(struct provider *p, struct job *job, provider_finding_fn *fn, void *arg);
    int (*create)(struct provider *p, struct job *job, const struct instance_request *request,
                  struct instance *ret, struct err *err);
    /* By TAG_SANDBOX; -ENOENT when there is none (err set). */
    int (*find)(struct provider *p, struct job *job, const char *sandbox, struct instance *ret,
                struct err *err);
    /* All that carry every one of `tags` (ends with a NULL key; may be empty). ret is owned:
     * free().
     */
    int (*list)(struct provider *p, struct job *job, const struct tag *tags, struct instance **ret,
                size_t *ret_n, struct err *err);
    /* Waits until addresses are known and fills them in. -EHOSTDOWN: the instance has ended. */
    int (*wait_addresses)(struct provider *p, struct job *job, struct instance *instance,
                          struct err *err);
    int (*delete)(struct provider *p, struct job *job, const struct instance *instance,
                  struct err *err);
    /* For how long find may miss what a create has made whose caller died before the answer came: the
     * call may still be under way. NULL: not at all. */
    int64_t (*settle_ms)(struct provider *p);
};

struct provider {
    const struct provider_type *type;
};

/* registry.c: all types that were built in, ends with NULL. */
extern const struct provider_type *const provider_types[];
/* NULL when there is none of that name. */
const struct provider_type *provider_type_find(const char *name);
