/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's rights.
 *
 * It needs CAP_NET_ADMIN (links, routes and filters of pods), CAP_SYS_ADMIN (entering a pod's network
 * namespace) and CAP_DAC_OVERRIDE (paths below directories of other owners); the rest goes, from the
 * bounding set too, and no_new_privs is set. Not with a provider whose children are machines of this
 * very node (`local`): they mount, change their root and become other users.
 *
 * No filter of system calls: libcurl, libvirt's client and what they load at run time would make it a
 * list of nearly all.
 *
 * Credentials that came by environment variables are in the options by then and are taken out of the
 * environment, those of the other providers too: a Secret often holds more than is used. Our parent
 * still has them, for it has to give them to our successor.
 */
#include "adaptor/confine.h"

#include <linux/capability.h>

#include "base/harden.h"
#include "base/log.h"

void confine_forget_secrets(void)
{
    for (size_t i = 0; provider_types[i]; i++)
        for (const struct opt *o = provider_types[i]->opts; o && o->flag; o++)
            if ((o->flags & OPT_SECRET) && o->env)
                harden_forget_variable(o->env);
}

void confine_daemon(const struct provider_type *type)
{
    static const uint64_t needed =
        HARDEN_CAP(CAP_NET_ADMIN) | HARDEN_CAP(CAP_SYS_ADMIN) | HARDEN_CAP(CAP_DAC_OVERRIDE);
    struct err err = ERR_INIT;
    if (type->runs_machines_here)
        return;
    if (harden_no_new_privs(&err) < 0 || harden_capabilities(needed, false, &err) < 0)
        log_warn("going on with more rights than are needed: %s", err_text(&err));
}
