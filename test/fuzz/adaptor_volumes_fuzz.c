/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A volume's mountInfo.json of any content, for a CreateContainer that mounts the volume: what comes
 * out is a request again.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adaptor/volumes.h"
#include "base/base64.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VOLUME "/pods/u/volumes/kubernetes.io~csi/pvc/mount"

static char dir[] = "/tmp/volumes-fuzz.XXXXXX";
static int fd = -1;
static struct buf frame;

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void add(struct buf *b, uint8_t number, const void *content, size_t len)
{
    uint8_t tag[] = {(uint8_t)(number << 3 | 2), (uint8_t)(len | 0x80), (uint8_t)(len >> 7)};
    buf_add(b, tag, sizeof(tag));
    buf_add(b, content, len);
}

/* Owned: the volume's directory. */
static char *volume_dir(void)
{
    _cleanup_free_ char *name = base64_encode(VOLUME, strlen(VOLUME));
    for (char *c = name; *c; c++)
        *c = *c == '/' ? '_' : *c == '+' ? '-' : *c;
    return str_asprintf("%s/%s", dir, name);
}

static void make_frame(void)
{
    struct buf mount = {0}, note = {0}, spec = {0}, payload = {0}, body = {0};
    uint8_t header[TTRPC_HEADER_SIZE];
    add(&mount, 1, "/data", 5);
    add(&mount, 2, VOLUME, strlen(VOLUME));
    add(&note, 1, "io.katacontainers.config.hypervisor.default_gpus", 48);
    add(&note, 2, "1", 1);
    add(&spec, 5, mount.data, mount.len);
    add(&spec, 7, note.data, note.len);
    add(&payload, 6, spec.data, spec.len);
    add(&body, 1, "grpc.AgentService", 17);
    add(&body, 2, "CreateContainer", 15);
    add(&body, 3, payload.data, payload.len);
    ttrpc_header_encode(&(struct ttrpc_header){(uint32_t)body.len, 1, TTRPC_REQUEST, 0}, header);
    buf_add(&frame, header, sizeof(header));
    buf_add(&frame, body.data, body.len);
    buf_done(&mount);
    buf_done(&note);
    buf_done(&spec);
    buf_done(&payload);
    buf_done(&body);
}

static void finish(void)
{
    unlinkat(fd, "mountInfo.json", 0);
    close(fd);
    _cleanup_free_ char *path = volume_dir();
    rmdir(path);
    rmdir(dir);
    buf_done(&frame);
}

static void start(void)
{
    log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    check(mkdtemp(dir) != NULL);
    _cleanup_free_ char *path = volume_dir();
    check(mkdir(path, 0700) == 0 && (fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0);
    make_frame();
    atexit(finish);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct splice_rules rules = {.annotate = volumes_annotate, .arg = dir};
    struct buf out = {0};
    struct err err = ERR_INIT;
    Ttrpc__Request *request;
    if (fd < 0)
        start();
    check(fs_write_atomic(fd, "mountInfo.json", data, size, 0600, NULL) == 0);
    check(splice_frame((const uint8_t *)frame.data, frame.len, &rules, &out, &err) == 0);
    check(out.len > frame.len); /* the target path at least */
    check(ttrpc_request_decode((const uint8_t *)out.data + TTRPC_HEADER_SIZE,
                               out.len - TTRPC_HEADER_SIZE, &request, &err) == 0);
    ttrpc__request__free_unpacked(request, NULL);
    buf_done(&out);
    return 0;
}
