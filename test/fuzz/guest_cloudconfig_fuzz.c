/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cloud-config reader on any document; and the builder with the input as a content: what it
 * accepts must come back out of the reader byte for byte.
 */
#include "guest/cloudconfig.h"
#include "guest/userdata.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void round_trip(const char *content, size_t len)
{
    const struct userdata_file files[] = {{"/a", content, len}, {"/b", "end\n", 4}};
    struct cloudconfig cc = {0};
    char *text = NULL;
    size_t text_len;

    if (userdata_build(files, 2, 0, &text, &text_len, NULL) < 0)
        return;
    check(cloudconfig_parse(text, text_len, &cc, NULL) == 0 && cc.n == 2);
    check(cc.files[0].len == len && memcmp(cc.files[0].content, content, len) == 0);
    check(cc.files[1].len == 4);
    cloudconfig_done(&cc);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    struct cloudconfig cc = {0};
    struct err err = ERR_INIT;

    if (cloudconfig_parse(text, size, &cc, &err) == 0) {
        for (size_t i = 0; i < cc.n; i++) {
            check(cc.files[i].path && cc.files[i].path[0]);
            check(!cc.files[i].content || strlen(cc.files[i].content) == cc.files[i].len);
        }
    } else {
        check(err.code < 0 && !cc.files);
    }
    cloudconfig_done(&cc);
    round_trip(size ? text : "", size);
    return 0;
}
