/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The directory holds
 *
 *     lock          flock(2) for the life of the process that touches the rings
 *     boot-id       of the boot that all of it belongs to (/run is not a tmpfs everywhere)
 *     identity.pem  key and certificate, made inside this VM, never leaving it
 *     retired       SHA-256 of the enrolment secret that was used; a new apf.json (a machine that
 *                   is provisioned again) has a new secret, which is good once more
 *     generation    the highest daemon generation that was let in
 *     N.relay N.edit  of each channel (channel.c)
 *
 * Small files are written beside their name and renamed: a reader sees the old or the new. Nothing
 * is synced to a disk, because all of it dies with the boot.
 */
#include "forwarder/state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <sys/file.h>

#include "base/fs.h"
#include "base/str.h"

#define IDENTITY_MAX (2 * TLS_PEM_MAX)
#define SMALL_MAX 256
#define DIGEST_SIZE 32

struct state {
    char *path;
    int dirfd, lock;
};

void state_close(struct state *s)
{
    if (!s)
        return;
    closep(&s->dirfd);
    closep(&s->lock);
    free(s->path);
    free(s);
}

static int take_lock(struct state *s, struct err *err)
{
    s->dirfd = open(s->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (s->dirfd < 0)
        return err_errno(err, -errno, "opening %s", s->path);
    s->lock = openat(s->dirfd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (s->lock < 0)
        return err_errno(err, -errno, "opening %s/lock", s->path);
    if (flock(s->lock, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return err_set(err, -EBUSY,
                       "%s is in use by another agent-protocol-forwarder: end that one, or give "
                       "-state-dir another directory",
                       s->path);
    return err_errno(err, -errno, "locking %s/lock", s->path);
}

/* 0 when the file is absent, too: *ret stays "" then. */
static int read_small(struct state *s, const char *name, char ret[SMALL_MAX], struct err *err)
{
    _cleanup_free_ char *text = NULL;
    struct err why = ERR_INIT;
    size_t len = 0;
    ret[0] = '\0';
    int r = fs_read(s->dirfd, name, SMALL_MAX - 1, &text, &len, &why);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return err_set(err, r, "%s: %s", s->path, err_text(&why));
    memcpy(ret, text, len);
    ret[len] = '\0';
    ret[strcspn(ret, "\n")] = '\0';
    return 0;
}

static int write_small(struct state *s, const char *name, const char *text, struct err *err)
{
    int r = fs_write_atomic(s->dirfd, name, text, strlen(text), 0600, err);
    return r < 0 ? err_wrap(err, r, "%s", s->path) : 0;
}

static int check_boot(struct state *s, struct err *err)
{
    char now[FS_BOOT_ID_LEN + 1], then[SMALL_MAX] = "";
    int r = fs_boot_id(now, err);
    if (r == 0)
        r = read_small(s, "boot-id", then, err);
    if (r < 0)
        return r;
    if (str_eq(now, then))
        return 0;
    if (*then) {
        r = fs_remove_tree(AT_FDCWD, s->path, err);
        if (r == 0)
            r = fs_private_dir(s->path, err);
        closep(&s->dirfd);
        closep(&s->lock);
        s->dirfd = s->lock = -1;
        if (r == 0)
            r = take_lock(s, err);
    }
    return r < 0 ? r : write_small(s, "boot-id", now, err);
}

int state_open(const char *path, struct state **ret, struct err *err)
{
    _cleanup_(state_closep) struct state *s = xcalloc(1, sizeof(*s));
    _cleanup_free_ char *parent = xstrdup(path);
    s->path = xstrdup(path);
    s->dirfd = s->lock = -1;
    char *slash = strrchr(parent, '/');
    int r = 0;
    if (slash && slash != parent) {
        *slash = '\0';
        r = fs_mkdir_p(parent, 0755, err);
    }
    if (r == 0)
        r = fs_private_dir(path, err);
    if (r == 0)
        r = take_lock(s, err);
    if (r == 0)
        r = check_boot(s, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(s);
    return 0;
}

int state_dirfd(const struct state *s)
{
    return s->dirfd;
}

static void free_secret(char **text)
{
    if (*text)
        secret_wipe(*text, strlen(*text));
    free(*text);
}

static int make_identity(struct state *s, const char *common_name, struct tls_identity **ret,
                         struct err *err)
{
    _cleanup_(tls_identity_freep) struct tls_identity *id = NULL;
    _cleanup_(free_secret) char *key = NULL;
    _cleanup_free_ char *cert = NULL;
    int r = tls_identity_new(common_name, &id, err);
    if (r == 0)
        r = tls_identity_pem(id, &key, &cert, err);
    if (r < 0)
        return r;
    struct buf both = BUF_INIT(IDENTITY_MAX);
    buf_adds(&both, key);
    buf_adds(&both, cert);
    r = fs_write_atomic(s->dirfd, "identity.pem", both.data, both.len, 0600, err);
    buf_done_secret(&both);
    if (r < 0)
        return err_wrap(err, r, "keeping this VM's key in %s", s->path);
    *ret = TAKE_PTR(id);
    return 0;
}

int state_identity(struct state *s, const char *common_name, struct tls_identity **ret,
                   struct err *err)
{
    _cleanup_(free_secret) char *text = NULL;
    struct err why = ERR_INIT;
    size_t len;
    int r = fs_read(s->dirfd, "identity.pem", IDENTITY_MAX, &text, &len, &why);
    if (r == -ENOENT)
        return make_identity(s, common_name, ret, err);
    if (r < 0)
        return err_set(err, r, "%s: %s", s->path, err_text(&why));
    /* A PEM reader takes the first block of its kind and skips the other. */
    r = tls_identity_parse(text, text, ret, err);
    return r < 0 ? err_wrap(err, r, "%s/identity.pem", s->path) : 0;
}

static int digest_hex(const void *secret, size_t len, char ret[2 * DIGEST_SIZE + 1],
                      struct err *err)
{
    uint8_t digest[DIGEST_SIZE];
    if (EVP_Digest(secret, len, digest, NULL, EVP_sha256(), NULL) != 1)
        return tls_err(err, -EIO, "digest of the enrolment secret");
    str_hex(digest, sizeof(digest), ret);
    return 0;
}

int state_retired(struct state *s, const void *secret, size_t len, bool *ret, struct err *err)
{
    char stored[SMALL_MAX], hex[2 * DIGEST_SIZE + 1];
    int r = digest_hex(secret, len, hex, err);
    if (r == 0)
        r = read_small(s, "retired", stored, err);
    if (r == 0)
        *ret = str_eq(stored, hex);
    return r;
}

int state_retire(struct state *s, const void *secret, size_t len, struct err *err)
{
    char hex[2 * DIGEST_SIZE + 1];
    int r = digest_hex(secret, len, hex, err);
    return r < 0 ? r : write_small(s, "retired", hex, err);
}

int state_generation(struct state *s, uint64_t *ret, struct err *err)
{
    char text[SMALL_MAX];
    int r = read_small(s, "generation", text, err);
    *ret = 0;
    if (r == 0 && *text && str_to_u64(text, UINT64_MAX, ret) < 0)
        return err_set(err, -EBADMSG, "%s/generation is not a number: remove it", s->path);
    return r;
}

int state_store_generation(struct state *s, uint64_t generation, struct err *err)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRIu64, generation);
    return write_small(s, "generation", text, err);
}
