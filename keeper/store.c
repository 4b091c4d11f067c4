/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * An array in order of arrival, because that is the order in which a new child gets the
 * descriptors. Some thousands of entries, changed a few times for each pod: a scan is fast enough.
 *
 * The protocol has no answers, so a descriptor that is refused is lost for the child's successor
 * without the child's knowledge; the caller logs why. There are two limits: the number (the
 * caller's, from RLIMIT_NOFILE, since the child gets them all and needs some of its own), and the
 * length of all names together (the kernel's, for one environment string).
 *
 * Descriptors are never polled: what systemd calls FDPOLL=0 is the only way, asked for or not. A
 * socket whose peer is gone stays until the child removes it.
 *
 * A message is lines of KEY=value. It comes from root or our own user, who could harm us in
 * simpler ways; it is parsed with care all the same.
 */
#include "keeper/store.h"

#include <errno.h>

void store_init(struct store *s, size_t max)
{
    *s = (struct store){.max = max};
}

void store_done(struct store *s)
{
    for (size_t i = 0; i < s->n; i++)
        close(s->entries[i].fd);
    free(s->entries);
    *s = (struct store){0};
}

struct message {
    bool add, remove;
    const char *name; /* NULL: absent; not terminated */
    size_t name_len;
};

static bool is(const char *line, size_t len, const char *text)
{
    return len == strlen(text) && memcmp(line, text, len) == 0;
}

static void parse_line(const char *line, size_t len, struct message *m)
{
    static const char fdname[] = "FDNAME=";
    size_t key = sizeof(fdname) - 1;

    if (is(line, len, "FDSTORE=1"))
        m->add = true;
    else if (is(line, len, "FDSTOREREMOVE=1"))
        m->remove = true;
    else if (len >= key && memcmp(line, fdname, key) == 0) {
        m->name = line + key;
        m->name_len = len - key;
    }
}

/* systemd takes longer names and more characters; 20 bytes are what LISTEN_FDNAMES has room for
 * when there are thousands. */
static int check_name(const struct message *m, struct err *err)
{
    if (m->name_len == 0 || m->name_len > STORE_NAME_MAX)
        return err_set(err, -EINVAL, "a name of %zu bytes; allowed: 1 to %d", m->name_len,
                       STORE_NAME_MAX);
    for (size_t i = 0; i < m->name_len; i++)
        if (m->name[i] <= ' ' || m->name[i] >= 127 || m->name[i] == ':')
            return err_set(err, -EINVAL, "a name with byte %d", (unsigned char)m->name[i]);
    return 0;
}

static int parse(const char *text, size_t len, struct message *m, struct err *err)
{
    while (len > 0) {
        const char *end = memchr(text, '\n', len);
        size_t n = end ? (size_t)(end - text) : len;
        parse_line(text, n, m);
        n = MIN(n + 1, len);
        text += n;
        len -= n;
    }
    if (m->name == NULL) {
        m->name = STORE_NAME_DEFAULT;
        m->name_len = sizeof(STORE_NAME_DEFAULT) - 1;
    }
    if (m->add && m->remove)
        return err_set(err, -EINVAL, "FDSTORE and FDSTOREREMOVE in one message");
    return m->add || m->remove ? check_name(m, err) : 0;
}

static int add(struct store *s, const struct message *m, int fd, struct err *err)
{
    if (s->n >= s->max)
        return err_set(err, -ENOSPC,
                       "descriptor '%.*s' refused: %zu are kept already, the limit that follows "
                       "from RLIMIT_NOFILE",
                       (int)m->name_len, m->name, s->n);
    if (s->names_len + m->name_len + 1 > STORE_NAMES_MAX)
        return err_set(err, -ENOSPC, "descriptor '%.*s' refused: the names of %zu fill %u bytes",
                       (int)m->name_len, m->name, s->n, STORE_NAMES_MAX);
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 64;
        s->entries = xrealloc(s->entries, s->cap * sizeof(*s->entries));
    }
    struct store_entry *e = &s->entries[s->n++];
    *e = (struct store_entry){.fd = fd};
    memcpy(e->name, m->name, m->name_len);
    s->names_len += m->name_len + 1;
    return 0;
}

static void remove_all(struct store *s, const struct message *m)
{
    size_t kept = 0;

    for (size_t i = 0; i < s->n; i++) {
        if (is(m->name, m->name_len, s->entries[i].name)) {
            close(s->entries[i].fd);
            s->names_len -= m->name_len + 1;
        } else {
            s->entries[kept++] = s->entries[i];
        }
    }
    s->n = kept;
}

int store_apply(struct store *s, const char *text, size_t len, const int *fds, size_t n_fds,
                struct err *err)
{
    struct message m = {0};
    size_t stored = 0;
    int r = parse(text, len, &m, err);

    if (r == 0 && m.remove)
        remove_all(s, &m);
    if (r == 0 && m.add && n_fds == 0)
        r = err_set(err, -EINVAL, "FDSTORE '%.*s' without a descriptor", (int)m.name_len, m.name);
    while (r == 0 && m.add && stored < n_fds) {
        r = add(s, &m, fds[stored], err);
        if (r == 0)
            stored++;
    }
    for (size_t i = stored; i < n_fds; i++)
        close(fds[i]);
    return r;
}

char *store_names(const struct store *s)
{
    char *names = xcalloc(1, s->names_len + 1), *at = names;

    for (size_t i = 0; i < s->n; i++) {
        size_t len = strlen(s->entries[i].name);
        if (i > 0)
            *at++ = ':';
        memcpy(at, s->entries[i].name, len);
        at += len;
    }
    return names;
}
