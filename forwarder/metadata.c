/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A source is a row of a table: how a machine that has it is told, how the document is fetched, and
 * whether it arrives in base64. Detection goes through the rows in order and takes the first that
 * answers; it looks at files and at the processor alone, never at the network, because an address
 * like 169.254.169.254 means something else, or anybody, outside the cloud that owns it.
 *
 *     file      the config drive's user-data file exists
 *     azure     hypervisor vendor "Microsoft Hv" (CPUID), or Azure's chassis asset tag where there
 *               is no such instruction (ARM); a tag alone tells Azure from other Hyper-V machines
 *     aws       DMI system manufacturer "Amazon EC2"
 *     gcp       DMI system manufacturer "Google"
 *     alibaba   DMI system manufacturer "Alibaba Cloud"
 *
 * Fetching is one attempt: one request (two on AWS, whose session token comes first); the caller
 * decides when to try again. Every reply but 200 is a failure that names URL and status, as 404
 * means "not there yet" on all of them. Bodies are bounded before and after base64.
 *
 * Errors never hold a body: it may be a secret, and some services echo.
 */
#include "forwarder/metadata.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include "base/base64.h"
#include "base/fs.h"
#include "base/str.h"
#include "loop/http.h"

#define FILE_PATH "/media/cidata/user-data"
#define DMI "/sys/class/dmi/id/"
#define DMI_MAX 4096
#define AZURE_VENDOR "Microsoft Hv"
#define AZURE_ASSET_TAG "7783-7084-3265-9085-8269-3286-77"
#define AZURE_PATH "/metadata/instance/compute/userData?api-version=2021-01-01&format=text"
#define GCP_PATH "/computeMetadata/v1/instance/attributes/user-data"
#define AWS_TOKEN_MAX 4096
#define REQUEST_TIMEOUT_MS 10000
#define CONNECT_TIMEOUT_MS 3000

typedef bool detect_fn(const struct metadata_config *config);
typedef int fetch_fn(const struct metadata_config *config, struct job *job,
                     struct http_response *ret, struct err *err);

struct source {
    const char *name;
    detect_fn *detect;
    fetch_fn *fetch; /* NULL: the file */
    bool base64;
};

/* ---- detection ---- */

static char *rooted(const struct metadata_config *config, const char *path)
{
    return str_asprintf("%s%s", config->root, path);
}

static bool file_exists(const struct metadata_config *config)
{
    _cleanup_free_ char *path = rooted(config, FILE_PATH);

    return access(path, F_OK) == 0;
}

/* The DMI field without its newline; "" where there is none. */
static void dmi_read(const struct metadata_config *config, const char *field, char out[64])
{
    _cleanup_free_ char *path = str_asprintf("%s" DMI "%s", config->root, field);
    _cleanup_free_ char *text = NULL;

    out[0] = 0;
    if (fs_read(AT_FDCWD, path, DMI_MAX, &text, NULL, NULL) < 0)
        return;
    text[strcspn(text, "\n")] = 0;
    snprintf(out, 64, "%s", text);
}

static bool dmi_vendor_is(const struct metadata_config *config, const char *vendor)
{
    char text[64];

    dmi_read(config, "sys_vendor", text);
    return str_eq(text, vendor);
}

/* The hypervisor's signature (CPUID leaf 0x40000000), "" on bare metal and other processors. */
static void hypervisor_vendor(const struct metadata_config *config, char out[13])
{
    memset(out, 0, 13);
    if (!str_empty(config->vendor)) {
        snprintf(out, 13, "%s", config->vendor);
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    unsigned eax, ebx, ecx, edx;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & 1U << 31))
        return;
    __cpuid(0x40000000, eax, ebx, ecx, edx);
    memcpy(out, &ebx, 4);
    memcpy(out + 4, &ecx, 4);
    memcpy(out + 8, &edx, 4);
#endif
}

static bool is_azure(const struct metadata_config *config)
{
    char vendor[13], tag[64];

    hypervisor_vendor(config, vendor);
    if (str_eq(vendor, AZURE_VENDOR))
        return true;
    dmi_read(config, "chassis_asset_tag", tag);
    return str_eq(tag, AZURE_ASSET_TAG);
}

static bool is_aws(const struct metadata_config *config)
{
    return dmi_vendor_is(config, "Amazon EC2");
}

static bool is_gcp(const struct metadata_config *config)
{
    return dmi_vendor_is(config, "Google");
}

static bool is_alibaba(const struct metadata_config *config)
{
    return dmi_vendor_is(config, "Alibaba Cloud");
}

/* ---- fetching ---- */

static int request(struct job *job, const char *method, const char *url, const char *const *headers,
                   struct http_response *ret, struct err *err)
{
    const struct http_request r = {.method = method,
                                   .url = url,
                                   .headers = headers,
                                   .body_max = METADATA_BODY_MAX,
                                   .timeout_ms = REQUEST_TIMEOUT_MS,
                                   .connect_timeout_ms = CONNECT_TIMEOUT_MS};
    struct http_response response = {0};
    int e = job_http(job, &r, &response, err);

    if (e < 0)
        return e;
    if (response.status != 200) {
        long status = response.status;

        http_response_done(&response);
        return err_set(err, status == 404 ? -ENOENT : -EIO, "%s %s: HTTP %ld%s", method, url,
                       status, status == 404 ? " (the instance has no user data yet)" : "");
    }
    *ret = response;
    return 0;
}

static int fetch_azure(const struct metadata_config *config, struct job *job,
                       struct http_response *ret, struct err *err)
{
    static const char *const headers[] = {"Metadata: true", NULL};
    _cleanup_free_ char *url = str_asprintf("%s" AZURE_PATH, config->azure);

    return request(job, "GET", url, headers, ret, err);
}

/* The session token that IMDSv2 wants with each request; it becomes a header, so it is checked. */
static int aws_token(const struct metadata_config *config, struct job *job, char **ret_header,
                     struct err *err)
{
    static const char *const headers[] = {"X-aws-ec2-metadata-token-ttl-seconds: 60", NULL};
    _cleanup_free_ char *url = str_asprintf("%s/latest/api/token", config->aws);
    struct http_response r = {0};
    int e = request(job, "PUT", url, headers, &r, err);

    if (e < 0)
        return e;
    for (size_t i = 0; i < r.body_len && e == 0; i++)
        if (r.body[i] <= ' ' || r.body[i] > '~')
            e = -EBADMSG;
    if (e < 0 || r.body_len == 0 || r.body_len > AWS_TOKEN_MAX)
        e = err_set(err, -EBADMSG, "PUT %s: the reply is not a token (%zu bytes)", url, r.body_len);
    else
        *ret_header = str_asprintf("X-aws-ec2-metadata-token: %s", r.body);
    http_response_done(&r);
    return e;
}

static int fetch_aws(const struct metadata_config *config, struct job *job,
                     struct http_response *ret, struct err *err)
{
    _cleanup_free_ char *url = str_asprintf("%s/latest/user-data", config->aws);
    _cleanup_free_ char *header = NULL;
    int r = aws_token(config, job, &header, err);

    return r < 0 ? r : request(job, "GET", url, (const char *[]){header, NULL}, ret, err);
}

static int fetch_gcp(const struct metadata_config *config, struct job *job,
                     struct http_response *ret, struct err *err)
{
    static const char *const headers[] = {"Metadata-Flavor: Google", NULL};
    _cleanup_free_ char *url = str_asprintf("http://%s" GCP_PATH, config->gcp_host);

    return request(job, "GET", url, headers, ret, err);
}

static int fetch_alibaba(const struct metadata_config *config, struct job *job,
                         struct http_response *ret, struct err *err)
{
    _cleanup_free_ char *url = str_asprintf("%s/latest/user-data", config->alibaba);

    return request(job, "GET", url, NULL, ret, err);
}

static const struct source sources[] = {
    {"file", file_exists, NULL, false},
    {"azure", is_azure, fetch_azure, true},
    {"aws", is_aws, fetch_aws, false},
    {"gcp", is_gcp, fetch_gcp, true},
    {"alibaba", is_alibaba, fetch_alibaba, false},
};

const char *const metadata_sources[] = {"file", "azure", "aws", "gcp", "alibaba", NULL};

const char *metadata_detect(const struct metadata_config *config, struct err *err)
{
    char vendor[13], dmi[64];

    for (size_t i = 0; i < ARRAY_SIZE(sources); i++) {
        if (str_eq(config->source, "auto") ? sources[i].detect(config)
                                           : str_eq(config->source, sources[i].name))
            return sources[i].name;
    }
    hypervisor_vendor(config, vendor);
    dmi_read(config, "sys_vendor", dmi);
    err_set(err, -ENOENT,
            "no source of user data: %s%s is not there, hypervisor vendor \"%s\" and system "
            "manufacturer \"%s\" belong to none of azure, aws, gcp, alibaba",
            config->root, FILE_PATH, vendor, dmi);
    return NULL;
}

static int read_file(const struct metadata_config *config, char **ret, size_t *ret_len,
                     struct err *err)
{
    _cleanup_free_ char *path = rooted(config, FILE_PATH);

    return fs_read(AT_FDCWD, path, METADATA_DOCUMENT_MAX, ret, ret_len, err);
}

static int take_body(const struct source *s, struct http_response *r, char **ret, size_t *ret_len,
                     struct err *err)
{
    uint8_t *data;
    int e;

    if (!s->base64 && r->body_len > METADATA_DOCUMENT_MAX)
        return err_set(err, -EFBIG, "user data of %zu bytes; at most %u are taken", r->body_len,
                       METADATA_DOCUMENT_MAX);
    if (!s->base64) {
        *ret = TAKE_PTR(r->body);
        *ret_len = r->body_len;
        return 0;
    }
    e = base64_decode(r->body, r->body_len, METADATA_DOCUMENT_MAX, &data, ret_len, err);
    if (e < 0)
        return err_wrap(err, e, "user data must be base64 here");
    *ret = (char *)data;
    return 0;
}

int metadata_fetch(const struct metadata_config *config, const char *source, struct job *job,
                   char **ret, size_t *ret_len, struct err *err)
{
    const struct source *s = sources;
    struct http_response response = {0};
    int r;

    while (!str_eq(s->name, source))
        s++;
    if (!s->fetch)
        return read_file(config, ret, ret_len, err);
    r = s->fetch(config, job, &response, err);
    if (r < 0)
        return r;
    r = take_body(s, &response, ret, ret_len, err);
    if (response.body)
        secret_wipe(response.body, response.body_len);
    http_response_done(&response);
    return r;
}
