/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slowing down a whole node when a provider says that it calls too often: one token bucket for each
 * group of operations that the provider counts together, shared by all jobs. See throttle.c.
 */
#pragma once

#include "loop/job.h"

#define THROTTLE_NAME_MAX 64
#define THROTTLE_REASON_MAX 128

/* One bucket, without lock or clock: times are the caller's, in ms. Zeroed: without limit. */
struct bucket {
    double rate;   /* calls per second; 0: no limit */
    double tokens; /* at filled_ms */
    int64_t filled_ms;
    int64_t cut_ms;   /* when the rate was last cut; 0: never */
    int64_t until_ms; /* no call before: the provider said so */
    double sent_rate; /* calls per second lately, measured */
    int64_t sent_ms;
};

/* How long until the caller's turn with `ahead` callers before it; 0: now, and one token is taken
 * when take is set. */
int64_t bucket_wait_ms(struct bucket *b, int64_t now_ms, unsigned ahead, bool take);
/* The provider refused a call that was sent at sent_ms; pause_ms: what it asked for, 0 for nothing. */
void bucket_refused(struct bucket *b, int64_t now_ms, int64_t sent_ms, int64_t pause_ms);
void bucket_accepted(struct bucket *b, int64_t now_ms);

struct throttle; /* the buckets of one provider, by name; any thread */

/* provider: "AWS", for people; borrowed. */
struct throttle *throttle_new(const char *provider);
void throttle_free(struct throttle *t);
DEFINE_CLEANUP(struct throttle, throttle_free)

/* Waits for the job's turn, in order of arrival. 0, -ECANCELED, -ETIMEDOUT (err set). While it
 * waits, the job says why (job_words). */
int throttle_wait(struct throttle *t, const char *bucket, struct job *job, struct err *err);
/*
 * For a job whose answer another job fetches: it says what that one waits for, and logs it once when it
 * takes a second. *since_ms: the caller's, 0 at first. job_say(job, NULL) ends it. The caller sees to it
 * that the other job does not end meanwhile.
 */
void throttle_follow(struct job *job, struct job *other, int64_t *since_ms);
/* reason: the provider's word ("RequestLimitExceeded"). */
void throttle_refused(struct throttle *t, const char *bucket, const char *reason, int64_t sent_ms,
                      int64_t pause_ms);
void throttle_accepted(struct throttle *t, const char *bucket);

/* For status and metrics: every bucket that has been limited. */
struct throttle_state {
    char provider[THROTTLE_NAME_MAX], bucket[THROTTLE_NAME_MAX], reason[THROTTLE_REASON_MAX];
    double rate; /* 0: no limit any more */
    unsigned waiting;
    uint64_t refused; /* since start */
};
typedef void throttle_each_fn(const struct throttle_state *state, void *arg);
void throttle_each(throttle_each_fn *fn, void *arg); /* of all throttles of the process */
