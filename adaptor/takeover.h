/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over between two daemons that run together on one state directory. See takeover.c. Loop.
 */
#pragma once

#include <uv.h>

#include "adaptor/tenure.h"
#include "loop/job.h"

struct takeover;

/*
 * Makes t ours: at once where nobody serves its directory, else by asking who does to hand over;
 * then his descriptors are as if inherited (fdstore.h). *ret: owned, borrows jobs and t.
 * -EALREADY: a younger daemon serves, and goes on; nothing is left in our store, and our exit status
 * is to be FDSTORE_EXIT_HANDED_OVER. -EBUSY and others: a later try may succeed.
 */
int takeover_begin(uv_loop_t *loop, struct job_pool *jobs, struct tenure *t, struct takeover **ret,
                   struct err *err);
/* We serve: the predecessor may go, and from now on a successor may ask. When it has got all, the
 * process ends, without a return to its caller. */
void takeover_serve(struct takeover *o);
void takeover_free(struct takeover *o);
