/* SPDX-License-Identifier: Apache-2.0 */
/* process-user-data: parses its options and provisions (docs/man/process-user-data.8.md). */
#include <stdio.h>

#include "base/harden.h"
#include "base/log.h"
#include "base/opt.h"
#include "base/str.h"
#include "forwarder/provision.h"

#define PROGRAM "process-user-data"
#define COMMAND "provision-files"
#define SECONDS_MAX 86400
#define NS_PER_MS 1000000

struct options {
    int64_t t, timeout; /* seconds; t is 0 when it was not given */
    int64_t retry;      /* nanoseconds */
    char *root, *source, *vendor, *azure, *aws, *gcp_host, *alibaba;
    struct opt_program program;
    bool v;
};

static const char *const source_words[] = {"auto", "file", "azure", "aws", "gcp", "alibaba", NULL};

#define STRING(name, variable, field, value, text)                                                 \
    {                                                                                              \
        .flag = name, .env = variable, .type = OPT_STRING,                                         \
        .offset = offsetof(struct options, field), .def = value, .help = text                      \
    }
#define WORD(name, variable, field, value, words, text)                                            \
    {                                                                                              \
        .flag = name, .env = variable, .type = OPT_STRING,                                         \
        .offset = offsetof(struct options, field), .def = value, .choices = words, .help = text    \
    }

static const struct opt table[] = {
    {.flag = "user-data-fetch-timeout",
     .type = OPT_INT,
     .offset = offsetof(struct options, timeout),
     .def = "180",
     .min = 1,
     .max = SECONDS_MAX,
     .help = "Seconds within which user data must be there"},
    {.flag = "t",
     .type = OPT_INT,
     .offset = offsetof(struct options, t),
     .min = 0,
     .max = SECONDS_MAX,
     .help = "Short for -user-data-fetch-timeout"},
    {.flag = "retry-interval",
     .env = "USER_DATA_RETRY_INTERVAL",
     .type = OPT_DURATION,
     .offset = offsetof(struct options, retry),
     .def = "5s",
     .flags = OPT_POSITIVE,
     .help = "Pause between attempts"},
    WORD("source", "USER_DATA_SOURCE", source, "auto", source_words, "Where user data is"),
    STRING("root", "USER_DATA_ROOT", root, "", "Prefix of every path that is read or written"),
    STRING("hypervisor-vendor", "USER_DATA_HYPERVISOR_VENDOR", vendor, "",
           "Taken instead of what the processor says"),
    STRING("azure-endpoint", "AZURE_METADATA_SERVICE_ENDPOINT", azure, "http://169.254.169.254",
           "Azure's metadata service"),
    STRING("aws-endpoint", "AWS_EC2_METADATA_SERVICE_ENDPOINT", aws, "http://169.254.169.254",
           "AWS's metadata service"),
    STRING("gcp-host", "GCE_METADATA_HOST", gcp_host, "metadata.google.internal",
           "Host and perhaps port of GCP's metadata service"),
    STRING("alibaba-endpoint", "ALIBABA_METADATA_SERVICE_ENDPOINT", alibaba,
           "http://100.100.100.200", "Alibaba Cloud's metadata service"),
    OPT_PROGRAM_ROWS(offsetof(struct options, program), NULL, NULL),
    {.flag = "v",
     .type = OPT_BOOL,
     .offset = offsetof(struct options, v),
     .help = "Short for -version"},
    OPT_END,
};

static int run(const struct options *o)
{
    const struct provision_config config = {
        .metadata = {.root = o->root,
                     .source = o->source,
                     .vendor = o->vendor,
                     .azure = o->azure,
                     .aws = o->aws,
                     .gcp_host = o->gcp_host,
                     .alibaba = o->alibaba},
        .timeout_ms = (o->t ? o->t : o->timeout) * 1000,
        .retry_ms = MAX(o->retry / NS_PER_MS, 1),
    };
    struct err err = ERR_INIT;

    if (provision_files(&config, &err) == 0)
        return EXIT_SUCCESS;
    log_error("%s", err_text(&err));
    return EXIT_FAILURE;
}

static int choose(const struct options *o, char *const *words)
{
    if (o->v) {
        puts(PROGRAM " " PP_VERSION);
        return EXIT_SUCCESS;
    }
    if (words && words[0] && str_eq(words[0], COMMAND) && !words[1])
        return run(o);
    fputs(PROGRAM ": one command is expected: " COMMAND "\nTry '" PROGRAM " --help'.\n", stderr);
    return OPT_EXIT_USAGE;
}

int main(int argc _unused_, char **argv)
{
    static const char usage[] =
        "Usage: " PROGRAM " " COMMAND " [OPTIONS]\n\n"
        "Fetches this pod VM's user data and writes its files below /run/peerpod.\n\n";
    struct options o = {0};
    struct opt_set sets[] = {{.title = PROGRAM, .opts = table, .target = &o}, {0}};
    _cleanup_free_ char **rest = NULL;

    harden_no_dumps();
    int status = opt_begin(PROGRAM, usage, sets, &o.program, argv, &rest);
    status = status < 0 ? choose(&o, rest) : status;
    opt_done(sets);
    return status;
}
