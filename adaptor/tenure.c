/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The right to serve the pods of one state directory (design.md 5, fencing). It is three things.
 *
 * The lock: an flock on `.lock`, held for the life of the process that touches a ring, inherited by
 * no child, never broken by a timeout. Who has it is alone.
 *
 * The token: an flock on `.token` whose descriptor lies in the descriptor store with all the others.
 * The lock alone would not do: while a daemon is dead and its keeper is about to start it again,
 * another daemon, under another keeper, would find the lock free, and the pods' descriptors nowhere.
 * The token stays locked as long as any keeper has it. So:
 *
 *     who has the current token has every descriptor; who has not, must not serve while it is held
 *
 * It is the last thing that a successor puts into its store and the first that a predecessor takes
 * out of his. A token is current when it is the file that has the name now; whoever takes his
 * right back from a successor that failed makes a new one, for what the other's keeper was given no
 * longer is the whole. When nobody has it (no keeper, first start), it is free, and a new one is made.
 *
 * The generation: a decimal number in `.generation`, raised at each lock and told to the forwarders,
 * who refuse lower ones: that fences a process that we cannot see. This file's format never
 * changes: what a later version has to add goes into another file.
 */
#include "adaptor/tenure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/str.h"

#define LOCK_FILE ".lock"
#define TOKEN_FILE ".token"
#define NEW_TOKEN_FILE ".token.new"
#define GENERATION_FILE ".generation"
#define STEP_US 1000

void tenure_init(struct tenure *t, int dir, const char *path)
{
    *t = (struct tenure){.dir = dir, .path = path, .lock_fd = -1, .token_fd = -1};
}

void tenure_done(struct tenure *t)
{
    closep(&t->token_fd);
    closep(&t->lock_fd);
    t->token_fd = t->lock_fd = -1;
}

/* -- the lock -- */

static int lock(struct tenure *t, struct err *err)
{
    if (t->lock_fd < 0)
        t->lock_fd = openat(t->dir, LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (t->lock_fd < 0)
        return err_errno(err, -errno, "opening %s/" LOCK_FILE, t->path);
    if (flock(t->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    return err_set(err, -EBUSY,
                   "another cloud-api-adaptor serves %s (it holds %s/" LOCK_FILE
                   "): stop it first, "
                   "or choose another -pods-dir",
                   t->path, t->path);
}

/* -- the token -- */

static bool is_current(const struct tenure *t, int fd)
{
    struct stat named, held;
    return fstatat(t->dir, TOKEN_FILE, &named, AT_SYMLINK_NOFOLLOW) == 0 && fstat(fd, &held) == 0 &&
           named.st_ino == held.st_ino && named.st_dev == held.st_dev;
}

static void note_current(const char *name, int fd, void *arg)
{
    struct tenure *t = arg;
    if (is_current(t, fd))
        snprintf(t->token, sizeof(t->token), "%s", name);
}

/* Is the current token among what we inherited? Its name is then in t->token. */
static bool inherited(struct tenure *t)
{
    *t->token = '\0';
    fdstore_each(TENURE_TOKEN, note_current, t);
    return *t->token;
}

static void name_token(struct tenure *t)
{
    uint32_t number = 0;
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        abort();
    snprintf(t->token, sizeof(t->token), TENURE_TOKEN "%08x", number);
}

static int open_token(const struct tenure *t, const char *file, int *ret, struct err *err)
{
    _cleanup_close_ int fd = openat(t->dir, file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_errno(err, -errno, "opening %s/%s", t->path, file);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, -EBUSY,
                       "the descriptors of the pods in %s are held by another keeper (%s/%s is "
                       "locked), whose daemon serves them or will be back: stop that keeper first, "
                       "or choose another -pods-dir",
                       t->path, t->path, file);
    *ret = TAKE_FD(fd);
    return 0;
}

/* One that nobody holds; not in the store yet. */
static int free_token(struct tenure *t, struct err *err)
{
    int r;
    do {
        closep(&t->token_fd);
        t->token_fd = -1;
        r = open_token(t, TOKEN_FILE, &t->token_fd, err);
    } while (r == 0 && !is_current(t, t->token_fd)); /* somebody has just renewed it */
    if (r == 0)
        name_token(t);
    return r;
}

int tenure_renew(struct tenure *t, struct err *err)
{
    char old[FDSTORE_NAME_MAX + 1];
    _cleanup_close_ int fd = -1;
    memcpy(old, t->token, sizeof(old));
    unlinkat(t->dir, NEW_TOKEN_FILE, 0);
    int r = open_token(t, NEW_TOKEN_FILE, &fd, err);
    if (r < 0)
        return r;
    name_token(t);
    r = fdstore_add(t->token, fd, err);
    if (r == 0 && renameat(t->dir, NEW_TOKEN_FILE, t->dir, TOKEN_FILE) < 0)
        r = err_errno(err, -errno, "renaming %s/" NEW_TOKEN_FILE, t->path);
    if (r < 0) {
        fdstore_remove(t->token, NULL);
        memcpy(t->token, old, sizeof(old));
        return r;
    }
    fdstore_remove(old, NULL);
    closep(&t->token_fd);
    t->token_fd = TAKE_FD(fd);
    return 0;
}

/* -- both -- */

int tenure_begin(struct tenure *t, struct err *err)
{
    bool have = inherited(t);
    int r = have ? 0 : free_token(t, err);
    if (r == 0)
        r = lock(t, err);
    if (r == 0 && have)
        t->token_fd = fdstore_take(t->token);
    else if (r == 0)
        r = fdstore_add(t->token, t->token_fd, err);
    if (r < 0)
        tenure_done(t);
    return r;
}

void tenure_pause(struct tenure *t)
{
    flock(t->lock_fd, LOCK_UN);
}

/* -- the generation -- */

static int read_generation(const struct tenure *t, uint64_t *ret, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    struct err local = ERR_INIT;
    int r = fs_read(t->dir, GENERATION_FILE, 32, &text, NULL, &local);
    *ret = 0;
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return err_set(err, r, "%s", local.text);
    if (str_to_u64(text, UINT64_MAX - 1, ret) < 0)
        return err_set(err, -EBADMSG, "%s/" GENERATION_FILE " does not hold a number", t->path);
    return 0;
}

static int overwrite(int dirfd, const char *name, const char *text)
{
    _cleanup_close_ int fd = openat(dirfd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t len = (ssize_t)strlen(text);
    return fd >= 0 && pwrite(fd, text, (size_t)len, 0) == len ? 0 : -EIO;
}

int tenure_raise(struct tenure *t, struct err *err)
{
    struct err local = ERR_INIT;
    char next[32];
    int r = read_generation(t, &t->generation, err);
    if (r < 0)
        return r;
    t->generation++;
    snprintf(next, sizeof(next), "%020llu", (unsigned long long)t->generation);
    r = fs_write_atomic(t->dir, GENERATION_FILE, next, strlen(next), 0600, &local);
    /* A full disk must not end the pods: the same bytes of the same file need no room. */
    if ((r == -ENOSPC || r == -EDQUOT) && overwrite(t->dir, GENERATION_FILE, next) == 0)
        return 0;
    return r < 0 ? err_set(err, r, "%s", local.text) : 0;
}

int tenure_resume(struct tenure *t, int64_t ms, struct err *err)
{
    int64_t end = clock_mono_ms() + ms;
    uint64_t now = 0;
    while (flock(t->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (clock_mono_ms() > end)
            return err_set(err, -EAGAIN, "the lock of %s is not to be had", t->path);
        usleep(STEP_US);
    }
    int r = read_generation(t, &now, err);
    if (r == 0 && now != t->generation)
        r = err_set(err, -EALREADY, "the successor had begun to write");
    return r;
}
