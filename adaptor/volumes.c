/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CSI driver leaves, for each volume that goes to a pod VM, a directory
 *
 *     <direct-volumes>/<base64url of the volume's target path>/mountInfo.json
 *
 * and the container's spec has a bind mount whose source is that target path. What the forwarder
 * needs travels in annotations:
 *
 *     ...peerpodvolumes.target_path   the target paths among the mounts' sources, by commas
 *     ...cloud_volumes                {"vol-<n>": {mount_point, fs_type, lun, disk_id, ...}}, where
 *                                     n, the LUN, counts the pod's volumes in the directory's
 *                                     sorted order: the order in which the disks were attached.
 *                                     Volumes of the pod that this container does not mount count.
 *     cdi.k8s.io/peer-pods            nvidia.com/gpu=all when the pod asked for GPUs
 *
 * The directory is the node's, its files are written by node services; names and sizes are bounded
 * all the same. The pod's uid, when the spec has it, keeps volumes of other pods out. Reading is
 * done on the loop: a few small files of a tmpfs.
 */
#include "adaptor/volumes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/base64.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"

#define VOLUMES_MAX 4096 /* entries of the directory: all pods of the node */
#define NAME_MAX_BYTES 255
#define MOUNT_INFO_MAX (64U << 10)
#define CSI_PART "/volumes/kubernetes.io~csi/"

#define NOTE_TARGET_PATH "io.confidentialcontainers.org.peerpodvolumes.target_path"
#define NOTE_CLOUD_VOLUMES "io.confidentialcontainers.org.cloud_volumes"
#define NOTE_CDI "cdi.k8s.io/peer-pods"
#define CDI_ALL_GPUS "nvidia.com/gpu=all"
#define NOTE_GPUS "io.katacontainers.config.hypervisor.default_gpus"
#define NOTE_POD_UID "io.kubernetes.cri.sandbox-uid"

/* base64url to the plain alphabet and back. */
static void swap_alphabet(char *text, bool to_url)
{
    for (; *text; text++) {
        if (*text == (to_url ? '+' : '-'))
            *text = to_url ? '-' : '+';
        else if (*text == (to_url ? '/' : '_'))
            *text = to_url ? '_' : '/';
    }
}

/* The target path that a directory's name stands for; NULL: not one of ours. Owned. */
static char *path_of_name(const char *name)
{
    _cleanup_free_ char *plain = xstrdup(name);
    struct err err = ERR_INIT;
    uint8_t *path = NULL;
    size_t len = 0;
    if (strpbrk(name, "+/"))
        return NULL;
    swap_alphabet(plain, false);
    if (base64_decode(plain, strlen(plain), NAME_MAX_BYTES, &path, &len, &err) < 0)
        return NULL;
    if (memchr(path, '\0', len)) {
        free(path);
        return NULL;
    }
    return (char *)path;
}

static bool is_direct_volume(const char *dir, const char *source, size_t len)
{
    struct stat st;
    if (len == 0 || len > NAME_MAX_BYTES || !memmem(source, len, CSI_PART, strlen(CSI_PART)))
        return false;
    _cleanup_free_ char *name = base64_encode(source, len);
    swap_alphabet(name, true);
    _cleanup_free_ char *path = str_asprintf("%s/%s", dir, name);
    return stat(path, &st) == 0;
}

static void annotate_target_paths(const char *dir, struct splice_spec *spec)
{
    struct splice_mount m;
    struct buf list = BUF_INIT(TTRPC_BODY_MAX);
    const void *at = NULL;
    while (splice_spec_mount(spec, &at, &m)) {
        if (!is_direct_volume(dir, m.source, m.source_len))
            continue;
        if (list.len > 0)
            buf_adds(&list, ",");
        buf_add(&list, m.source, m.source_len);
    }
    if (list.len > 0 && buf_add(&list, "", 1) == 0)
        splice_spec_annotate(spec, NOTE_TARGET_PATH, list.data);
    buf_done(&list);
}

/* -- cloud_volumes -- */

static const char *text_at(struct json_object *o, const char *key)
{
    const char *text = NULL;
    struct err ignored = ERR_INIT;
    return json_get_string(o, key, &text, &ignored) == 0 ? text : "";
}

static void add_if(struct json_object *o, const char *key, const char *value)
{
    if (*value)
        json_add_string(o, key, value);
}

/* The container's mount point for a volume; owned, NULL: it has none. */
static char *mount_point(const struct splice_spec *spec, const char *path)
{
    struct splice_mount m;
    const void *at = NULL;
    while (splice_spec_mount(spec, &at, &m))
        if (m.source_len == strlen(path) && memcmp(m.source, path, m.source_len) == 0)
            return str_asprintf("%.*s", (int)m.destination_len, m.destination);
    return NULL;
}

/* One volume of the pod: true when it counts. */
static bool add_volume(const struct splice_spec *spec, const char *path, struct json_object *info,
                       unsigned lun, struct json_object *all)
{
    struct err ignored = ERR_INIT;
    struct json_object *more = NULL;
    json_get_object(info, "metadata", &more, &ignored);
    const char *disk = more ? text_at(more, "cloud-volume-path") : "";
    const char *fs = text_at(info, "fstype");
    if (!*disk)
        disk = text_at(info, "device");
    if (!*disk) {
        log_warn("direct volume %s has no disk id: left out", path);
        return false;
    }
    _cleanup_free_ char *where = mount_point(spec, path);
    if (!where)
        return true;
    char number[16], key[32];
    snprintf(number, sizeof(number), "%u", lun);
    snprintf(key, sizeof(key), "vol-%u", lun);
    struct json_object *v = json_object_new_object();
    json_add_string(v, "mount_point", where);
    json_add_string(v, "fs_type", *fs ? fs : "ext4");
    json_add_string(v, "lun", number);
    json_add_string(v, "disk_id", disk);
    if (more) {
        add_if(v, "fs_group", text_at(more, "fsGroup"));
        add_if(v, "encrypt_type", text_at(more, "encrypt-type"));
        add_if(v, "key_id", text_at(more, "kbs-key-id"));
    }
    json_object_object_add(all, key, v);
    return true;
}

static int read_info(int dirfd, const char *name, struct json_object **ret, struct err *err)
{
    _cleanup_free_ char *file = str_asprintf("%s/mountInfo.json", name);
    _cleanup_free_ char *text = NULL;
    size_t len = 0;
    int r = fs_read(dirfd, file, MOUNT_INFO_MAX, &text, &len, err);
    return r < 0 ? r : json_parse(text, len, ret, err);
}

static bool is_of_pod(const char *path, const char *uid, size_t uid_len)
{
    if (!strstr(path, CSI_PART))
        return false;
    if (uid_len == 0)
        return true;
    _cleanup_free_ char *part = str_asprintf("/pods/%.*s/", (int)uid_len, uid);
    return strstr(path, part) != NULL;
}

static void annotate_cloud_volumes(const char *dir, struct splice_spec *spec)
{
    struct dirent **names = NULL;
    const char *uid = "";
    size_t uid_len = 0;
    unsigned lun = 0;
    splice_spec_annotation(spec, NOTE_POD_UID, &uid, &uid_len);
    _cleanup_close_ int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int n = dirfd < 0 ? 0 : scandirat(dirfd, ".", &names, NULL, NULL);
    if (n > 1)
        qsort(names, (size_t)n, sizeof(*names),
              (int (*)(const void *, const void *))(void (*)(void))alphasort);
    struct json_object *all = json_object_new_object();
    for (int i = 0; i < n && i < VOLUMES_MAX; i++) {
        _cleanup_free_ char *path = path_of_name(names[i]->d_name);
        struct json_object *info = NULL;
        struct err err = ERR_INIT;
        if (!path || !is_of_pod(path, uid, uid_len))
            continue;
        if (read_info(dirfd, names[i]->d_name, &info, &err) < 0)
            log_warn("direct volume %s: %s: left out", path, err_text(&err));
        else if (add_volume(spec, path, info, lun, all))
            lun++;
        json_put(info);
    }
    if (json_object_object_length(all) > 0)
        splice_spec_annotate(spec, NOTE_CLOUD_VOLUMES,
                             json_object_to_json_string_ext(
                                 all, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_put(all);
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

void volumes_annotate(void *arg, struct splice_spec *spec)
{
    const char *gpus;
    size_t len = 0;
    annotate_target_paths(arg, spec);
    if (splice_spec_annotation(spec, NOTE_GPUS, &gpus, &len) && len > 0)
        splice_spec_annotate(spec, NOTE_CDI, CDI_ALL_GPUS);
    annotate_cloud_volumes(arg, spec);
}
