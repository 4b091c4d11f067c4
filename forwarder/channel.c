/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 *     tunnel  <->  edit (edit.c)  <->  relay and pump  <->  kata-agent
 *
 * A channel is opened by the daemon when the shim connects. Order at birth: connect to the agent,
 * make both files, give the socket to the descriptor store, and only then let a byte move. So
 * whatever a predecessor left behind is either whole, files and socket, or it has carried nothing and can be thrown away (the far side hears at the next hello that we do not know
 * it).
 *
 * In plain mode a channel's far side is a connection of its own instead of the tunnel, which
 * nothing can resume: such channels have high numbers, and recovery only clears them away. (What
 * lies in the store of theirs goes with drop_leftovers.)
 *
 * Names: files N.relay and N.edit in the state directory, socket cN.s in the store; N is the
 * channel's number, which is never used again.
 *
 * A channel ends
 *     - when both sides have sent their last byte and it has arrived: removed quietly;
 *     - when the agent's connection breaks or is closed: what the agent had sent is in the in ring
 *       and still goes to the shim (DestroySandbox's answer comes with the agent's exit), at the
 *       latest after LEFTOVER_MS it is removed with a reason;
 *     - when the far side closes it: its connection to the agent is closed at once, which is how
 *       the agent learns that nobody waits for its answers; but behind the far side's last byte where
 *       that has come, for we have said that we hold it.
 *
 * Everything happens in one function, progress(): whoever moved something calls it, it lets the
 * edit run and kicks both neighbours. It is cheap when there is nothing to do. A full file system
 * is tried again each tick.
 */
#include "forwarder/channel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "forwarder/edit.h"
#include "relay/fdstore.h"
#include "relay/pump.h"

#define CHANNELS_MAX 1024
#define PLAIN_IDS 0x80000000U /* from here on: plain mode; the daemon never counts so far */
#define TICK_MS 1000
#define LEFTOVER_MS 150000 /* as long as the daemon holds a shim whose tunnel is down */

struct agent_channel {
    struct channel_set *set;
    uint32_t id;
    struct relay *relay;
    struct edit *edit;
    struct pump *pump;
    struct plain_link *link; /* plain mode: in place of the tunnel */
    bool starved;            /* the last run met a full file system */
    bool fin_acked;          /* the far side knows that the agent has finished */
    int64_t dead_at; /* 0: the agent's connection lives; else when it ended (clock_mono_ms) */
    int64_t left_at; /* 0: the far side is there; else when it went, having said all */
    char why[128];   /* why it ended */
    struct agent_channel *next;
};

struct channel_set {
    struct channel_set_config config;
    struct agent_channel *first;
    unsigned n;
    struct tunnel *tunnel;
    uint32_t next_plain;
    uv_timer_t tick;
};

/* -- names -- */

struct names {
    char relay[24], edit[24];
    char store[FDSTORE_NAME_MAX + 1];
};

static void names_of(uint32_t id, struct names *ret)
{
    snprintf(ret->relay, sizeof(ret->relay), "%" PRIu32 ".relay", id);
    snprintf(ret->edit, sizeof(ret->edit), "%" PRIu32 ".edit", id);
    snprintf(ret->store, sizeof(ret->store), "c%" PRIu32 ".s", id);
}

static void erase(const struct channel_set *set, uint32_t id)
{
    struct names names;
    struct err err = ERR_INIT;
    names_of(id, &names);
    unlinkat(set->config.dirfd, names.relay, 0);
    unlinkat(set->config.dirfd, names.edit, 0);
    if (fdstore_remove(names.store, &err) < 0)
        log_warn("channel %" PRIu32 ": %s", id, err_text(&err));
}

/* -- end -- */

static void channel_free(struct agent_channel *ch)
{
    if (ch->pump)
        pump_stop(ch->pump);
    plain_close(ch->link);
    edit_close(ch->edit);
    relay_close(ch->relay);
    free(ch);
}

static void channel_end(struct agent_channel *ch, const char *reason)
{
    struct channel_set *set = ch->set;
    struct agent_channel **at = &set->first;
    while (*at != ch)
        at = &(*at)->next;
    *at = ch->next;
    set->n--;
    log_info("channel %" PRIu32 ": closed: %s", ch->id, reason);
    erase(set, ch->id);
    channel_free(ch);
}

static void remove_channel(struct agent_channel *ch, const char *reason)
{
    if (!ch->link && ch->set->tunnel)
        tunnel_channel_remove(ch->set->tunnel, ch->id, reason);
    channel_end(ch, reason);
}

static bool all_delivered(const struct agent_channel *ch)
{
    return ch->fin_acked && relay_in_tail(ch->relay) == relay_in_head(ch->relay);
}

static bool is_over(int64_t since)
{
    return clock_mono_ms() - since > LEFTOVER_MS;
}

/* True when the channel is no more. */
static bool end_if_complete(struct agent_channel *ch)
{
    if (ch->left_at > 0 &&
        (ch->dead_at > 0 || relay_out_finished(ch->relay) || is_over(ch->left_at))) {
        channel_end(ch, "the far side is gone, and the agent has its last bytes");
        return true;
    }
    if (ch->dead_at > 0 && (all_delivered(ch) || is_over(ch->dead_at))) {
        remove_channel(ch, ch->why);
        return true;
    }
    if (all_delivered(ch) && relay_in_eof(ch->relay) && edit_rx_has_fin(ch->edit) &&
        relay_out_finished(ch->relay)) {
        remove_channel(ch, "both sides have finished");
        return true;
    }
    return false;
}

/* True when the channel is no more. */
static bool progress(struct agent_channel *ch)
{
    if (ch->left_at > 0) /* nobody wants the answers, and the agent must not wait for room */
        edit_in_ack(ch->edit, relay_in_head(ch->relay));
    int r = edit_run(ch->edit);
    ch->starved = r == -ENOSPC;
    if (r < 0 && r != -ENOSPC && ch->dead_at == 0) {
        remove_channel(ch, strerror(-r));
        return true;
    }
    if (end_if_complete(ch))
        return true;
    if (ch->pump)
        pump_kick(ch->pump);
    if (ch->link)
        plain_kick(ch->link);
    else if (ch->set->tunnel)
        tunnel_channel_kick(ch->set->tunnel, ch->id);
    return false;
}

/* -- the tunnel's side -- */

static uint64_t op_tx_head(void *ep)
{
    const struct agent_channel *ch = ep;
    return relay_in_head(ch->relay);
}

static bool op_tx_fin(void *ep)
{
    const struct agent_channel *ch = ep;
    return relay_in_eof(ch->relay) || ch->dead_at > 0;
}

static uint64_t op_tx_tail(void *ep)
{
    const struct agent_channel *ch = ep;
    return relay_in_tail(ch->relay);
}

static size_t op_tx_peek(void *ep, uint64_t offset, const uint8_t **ret)
{
    const struct agent_channel *ch = ep;
    return relay_in_peek(ch->relay, offset, ret);
}

static int op_tx_acked(void *ep, uint64_t offset)
{
    struct agent_channel *ch = ep;
    int r = edit_in_ack(ch->edit, offset);
    if (r == 0)
        progress(ch);
    return r;
}

static uint64_t op_rx_held(void *ep)
{
    const struct agent_channel *ch = ep;
    return edit_rx_held(ch->edit);
}

static uint64_t op_rx_limit(void *ep)
{
    const struct agent_channel *ch = ep;
    return edit_rx_limit(ch->edit);
}

static ssize_t op_rx_space(void *ep, uint8_t **ret)
{
    struct agent_channel *ch = ep;
    return edit_rx_space(ch->edit, ret);
}

static void op_rx_commit(void *ep, size_t n)
{
    struct agent_channel *ch = ep;
    edit_rx_commit(ch->edit, n);
    progress(ch);
}

static void op_rx_fin(void *ep)
{
    struct agent_channel *ch = ep;
    edit_rx_fin(ch->edit);
    progress(ch);
}

static bool op_rx_has_fin(void *ep)
{
    const struct agent_channel *ch = ep;
    return edit_rx_has_fin(ch->edit);
}

static void op_tx_fin_acked(void *ep)
{
    struct agent_channel *ch = ep;
    ch->fin_acked = true;
    progress(ch);
}

static void op_gone(void *ep, const char *reason)
{
    struct agent_channel *ch = ep;
    ch->link = NULL;
    if (!edit_rx_has_fin(ch->edit) || ch->dead_at > 0) {
        channel_end(ch, reason);
        return;
    }
    ch->left_at = clock_mono_ms();
    progress(ch);
}

static const struct channel_ops tunnel_side = {
    .tx_head = op_tx_head,
    .tx_fin = op_tx_fin,
    .tx_tail = op_tx_tail,
    .tx_peek = op_tx_peek,
    .tx_acked = op_tx_acked,
    .rx_held = op_rx_held,
    .rx_limit = op_rx_limit,
    .rx_space = op_rx_space,
    .rx_commit = op_rx_commit,
    .rx_fin = op_rx_fin,
    .rx_has_fin = op_rx_has_fin,
    .tx_fin_acked = op_tx_fin_acked,
    .gone = op_gone,
};

/* -- the agent's side -- */

static void on_moved(void *owner)
{
    progress(owner);
}

static void on_broken(void *owner, int error)
{
    struct agent_channel *ch = owner;
    ch->dead_at = clock_mono_ms();
    if (error == 0)
        snprintf(ch->why, sizeof(ch->why), "the agent has closed the connection");
    else
        snprintf(ch->why, sizeof(ch->why), "the connection to the agent broke: %s",
                 strerror(-error));
    pump_stop(TAKE_PTR(ch->pump));
    progress(ch);
}

static size_t on_limit(void *owner)
{
    struct agent_channel *ch = owner;
    return edit_in_limit(ch->edit);
}

static const struct pump_ops agent_side = {
    .in_ready = on_moved,
    .out_room = on_moved,
    .broken = on_broken,
    .in_limit = on_limit,
};

static int channel_start(struct agent_channel *ch, struct err *err)
{
    return pump_start(ch->set->config.loop, ch->relay, &agent_side, ch, &ch->pump, err);
}

/* -- birth -- */

static struct agent_channel *channel_add(struct channel_set *set, uint32_t id)
{
    struct agent_channel *ch = xcalloc(1, sizeof(*ch));
    *ch = (struct agent_channel){.set = set, .id = id, .next = set->first};
    set->first = ch;
    set->n++;
    return ch;
}

/* *fd is taken from the moment that the relay has it. */
static int create_files(struct agent_channel *ch, int *fd, struct err *err)
{
    const struct channel_set_config *c = &ch->set->config;
    struct names names;
    names_of(ch->id, &names);
    int r = relay_create(c->dirfd, names.relay, *fd, RELAY_RING_DEFAULT, &ch->relay, err);
    if (r < 0)
        return r;
    *fd = -1;
    r = edit_create(c->dirfd, names.edit, RELAY_RING_DEFAULT, ch->relay, c->rules, &ch->edit, err);
    return r < 0 ? r : fdstore_add(names.store, relay_socket(ch->relay), err);
}

static int channel_create(struct agent_channel *ch, struct err *err)
{
    const struct channel_set_config *c = &ch->set->config;
    _cleanup_close_ int fd = -1;
    int r = c->connect(c->owner, &fd, err);
    if (r == 0)
        r = create_files(ch, &fd, err);
    return r < 0 ? r : channel_start(ch, err);
}

int channel_set_open(struct channel_set *set, uint32_t id, const struct channel_ops **ret_ops,
                     void **ret_ep, struct err *err)
{
    if (set->n >= CHANNELS_MAX)
        return err_set(err, -EMFILE, "channel %" PRIu32 ": %d are open already", id, CHANNELS_MAX);
    struct agent_channel *ch = channel_add(set, id);
    int r = channel_create(ch, err);
    if (r < 0) {
        channel_end(ch, err_text(err));
        return r;
    }
    log_info("channel %" PRIu32 ": opened", id);
    *ret_ops = &tunnel_side;
    *ret_ep = ch;
    return 0;
}

int channel_set_open_plain(struct channel_set *set, struct plain_link *link, struct err *err)
{
    const struct channel_ops *ops;
    void *ep;
    uint32_t id = PLAIN_IDS + set->next_plain;
    int r = channel_set_open(set, id, &ops, &ep, err);
    if (r < 0)
        return r;
    set->next_plain = (set->next_plain + 1) % PLAIN_IDS;
    ((struct agent_channel *)ep)->link = link;
    plain_attach(link, ops, ep);
    return 0;
}

/* -- recovery -- */

static int recover_files(struct agent_channel *ch, struct err *err)
{
    const struct channel_set_config *c = &ch->set->config;
    struct names names;
    names_of(ch->id, &names);
    _cleanup_close_ int fd = fdstore_take(names.store);
    if (fd < 0)
        return err_set(err, -ENODATA, "its socket is not in the store");
    int r = relay_recover(c->dirfd, names.relay, fd, &ch->relay, err);
    if (r < 0)
        return r;
    TAKE_FD(fd);
    return edit_recover(c->dirfd, names.edit, ch->relay, c->rules, &ch->edit, err);
}

static int recover_one(struct channel_set *set, uint32_t id, struct err *err)
{
    struct err why = ERR_INIT;
    struct agent_channel *ch = channel_add(set, id);
    if (id >= PLAIN_IDS) { /* its other half ended with our predecessor */
        channel_end(ch, "plain mode ends with its process");
        return 0;
    }
    int r = recover_files(ch, &why);
    if (r == -EPROTONOSUPPORT)
        return err_set(err, r, "%s", err_text(&why));
    if (r < 0)
        channel_end(ch, err_text(&why));
    return 0;
}

/* "12.relay", "12.edit": 12; else 0. */
static uint32_t id_of_file(const char *name)
{
    char digits[16];
    uint64_t id;
    size_t n = strspn(name, "0123456789");
    if (n == 0 || n >= sizeof(digits) ||
        (!str_eq(name + n, ".relay") && !str_eq(name + n, ".edit")))
        return 0;
    memcpy(digits, name, n);
    digits[n] = '\0';
    return str_to_u64(digits, UINT32_MAX, &id) < 0 ? 0 : (uint32_t)id;
}

static int list_ids(int dirfd, uint32_t ret[CHANNELS_MAX], size_t *ret_n, struct err *err)
{
    const struct dirent *entry;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int r = -errno;
        closep(&fd);
        return err_errno(err, r, "reading the state directory");
    }
    while (*ret_n < CHANNELS_MAX && (entry = readdir(dir))) {
        uint32_t id = id_of_file(entry->d_name);
        size_t i = 0;
        while (i < *ret_n && ret[i] != id)
            i++;
        if (id > 0 && i == *ret_n)
            ret[(*ret_n)++] = id;
    }
    closedir(dir);
    return 0;
}

static void collect_name(const char *name, int fd, void *arg)
{
    (void)fd;
    if (name[0] == 'c') {
        buf_adds(arg, name);
        buf_add(arg, "", 1);
    }
}

/* Descriptors in the store that belong to no channel: a death between the store's removal and the
 * files', or a directory that was emptied. */
static void drop_leftovers(void)
{
    struct buf names = BUF_INIT(0);
    struct err err = ERR_INIT;
    fdstore_each("", collect_name, &names);
    for (size_t at = 0; at < names.len; at += strlen(names.data + at) + 1) {
        int fd = fdstore_take(names.data + at);
        closep(&fd);
        if (fdstore_remove(names.data + at, &err) < 0)
            break;
    }
    buf_done(&names);
}

int channel_set_recover(struct channel_set *set, struct err *err)
{
    uint32_t ids[CHANNELS_MAX];
    size_t n = 0;
    int r = list_ids(set->config.dirfd, ids, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        r = recover_one(set, ids[i], err);
    if (r < 0)
        return r;
    drop_leftovers();
    return (int)set->n;
}

/* -- the set -- */

static void on_tick(uv_timer_t *timer)
{
    struct channel_set *set = timer->data;
    struct agent_channel *next;
    for (struct agent_channel *ch = set->first; ch; ch = next) {
        next = ch->next;
        if (ch->starved && progress(ch))
            continue;
        if (!end_if_complete(ch))
            edit_trim(ch->edit);
    }
}

int channel_set_new(const struct channel_set_config *config, struct channel_set **ret,
                    struct err *err)
{
    struct channel_set *set = xcalloc(1, sizeof(*set));
    set->config = *config;
    int r = uv_timer_init(config->loop, &set->tick);
    if (r < 0) {
        free(set);
        return err_errno(err, r, "timer");
    }
    set->tick.data = set;
    uv_timer_start(&set->tick, on_tick, TICK_MS, TICK_MS);
    *ret = set;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void channel_set_free(struct channel_set *set)
{
    if (!set)
        return;
    while (set->first) {
        struct agent_channel *ch = set->first;
        set->first = ch->next;
        channel_free(ch);
    }
    uv_close((uv_handle_t *)&set->tick, on_closed);
}

int channel_set_attach(struct channel_set *set, struct tunnel *tunnel, struct err *err)
{
    struct agent_channel *next;
    set->tunnel = tunnel;
    for (struct agent_channel *ch = set->first; ch; ch = next) {
        next = ch->next;
        int r = tunnel_channel_add(tunnel, ch->id, &tunnel_side, ch);
        if (r == 0)
            r = channel_start(ch, err);
        if (r < 0)
            return err_wrap(err, r, "channel %" PRIu32, ch->id);
        progress(ch);
    }
    return 0;
}
