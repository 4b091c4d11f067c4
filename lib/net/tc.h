/* SPDX-License-Identifier: Apache-2.0 */
/* Redirecting what arrives at one link out of another: ingress qdisc, u32 filter, mirred action. */
#pragma once

#include "net/rtnl.h"

/* Fine when it is there already, -EEXIST for another qdisc in its place. */
int tc_ingress_add(struct rtnl *nl, int index, struct err *err);
/* With all its filters; fine when there is none, and when the link has gone. */
int tc_ingress_delete(struct rtnl *nl, int index, struct err *err);
/* Every packet that arrives at link `from` leaves by link `to`. Once: a second call adds nothing. */
int tc_redirect_add(struct rtnl *nl, int from, int to, struct err *err);
