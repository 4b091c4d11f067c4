/* SPDX-License-Identifier: Apache-2.0 */
/* An answer of AWS's from any bytes: a tree whose texts can be read, or a refusal. */
#include <errno.h>

#include "providers/aws/xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const struct xml_node *node, int depth)
{
    char text[64];

    if (depth > XML_DEPTH_MAX)
        abort();
    for (const struct xml_node *n = xml_first(node); n; n = xml_next(n)) {
        int r = xml_text(n, "", text, sizeof(text));
        if (r != 0 && (r != -ENAMETOOLONG || *text))
            abort();
        if (!xml_find(node, xml_name(n)) && !strchr(xml_name(n), '.'))
            abort();
        (void)xml_u64(n, "state.code", 0);
        walk(n, depth + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = ERR_INIT;
    struct xml *xml = NULL;

    if (xml_parse((const char *)data, size, &xml, &err) == 0)
        walk(xml_root(xml), 1);
    else if (err.code >= 0 || xml)
        abort();
    xml_free(xml);
    return 0;
}
