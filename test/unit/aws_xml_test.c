/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of AWS's answers: paths, texts, and what it refuses. */
#include "providers/aws/xml.h"

#include <errno.h>

#include "base/buf.h"
#include "base/str.h"
#include "unit/check.h"

static struct xml *parse(const char *text)
{
    struct err err = ERR_INIT;
    struct xml *xml = NULL;

    if (xml_parse(text, strlen(text), &xml, &err) < 0)
        fail_msg("%s", err.text);
    return xml;
}

static void tree(void **state)
{
    _cleanup_(xml_freep) struct xml *xml = parse(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<R xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\" xmlns:x=\"u\">\n <!-- c -->\n"
        " <new><unknown a=\"1\"/></new>\n"
        " <set>\n  <item><state><code>16</code><name>run<!-- c -->ning</name></state></item>\n"
        "  <item><x:v>a &lt;&amp;&#x41;<![CDATA[<b>]]></x:v></item>\n </set><n>-1</n></R>");
    const struct xml_node *root = xml_root(xml);
    const struct xml_node *item = xml_first(xml_find(root, "set"));
    char text[16];

    assert_string_equal(xml_name(root), "R");
    assert_true(xml_text_is(item, "state.name", "running"));
    assert_int_equal(xml_u64(item, "state.code", 0), 16);
    item = xml_next(item);
    assert_int_equal(xml_text(item, "v", text, sizeof(text)), 0);
    assert_string_equal(text, "a <&A<b>");
    assert_int_equal(xml_text(item, "v", text, 9), 0);
    assert_int_equal(xml_text(item, "v", text, 8), -ENAMETOOLONG);
    assert_string_equal(text, "");
    assert_null(xml_next(item));
    assert_null(xml_find(root, "set.nothing"));
    assert_null(xml_find(root, "se"));
    assert_null(xml_find(NULL, "set"));
    assert_int_equal(xml_u64(root, "n", 7), 7);
    assert_int_equal(xml_text(root, "nothing", text, sizeof(text)), 0);
    assert_string_equal(text, "");
}

static void refused(const char *text, size_t len, int code, const char *why)
{
    struct err err = ERR_INIT;
    struct xml *xml = NULL;
    int r = xml_parse(text, len, &xml, &err);

    assert_null(xml);
    assert_int_equal(r, code);
    assert_text_has(err.text, why);
}

static void refusals(void **state)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"", "not well-formed"},
        {"<a>", "not well-formed"},
        {"<a></b>", "not well-formed"},
        {"<a/><b/>", "not well-formed"},
        {"{\"a\": 1}", "not well-formed"},
        {"<a>&e;</a>", "not well-formed"},
        {"<a>\xff</a>", "not well-formed"},
        {"<!DOCTYPE a><a/>", "document type"},
        {"<!DOCTYPE a [<!ENTITY e \"x\">]><a>&e;</a>", "document type"},
        {"<!DOCTYPE a [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><a>&e;</a>", "document type"},
        {"<!DOCTYPE a SYSTEM \"http://127.0.0.1:1/x.dtd\"><a/>", "document type"},
        {"<!DOCTYPE z [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\">"
         "<!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;\">]><z>&c;&c;&c;</z>",
         "document type"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        refused(cases[i].text, strlen(cases[i].text), -EPROTO, cases[i].why);
}

static void limits(void **state)
{
    struct buf text = BUF_INIT(0);
    struct xml *xml = NULL;

    for (int depth = XML_DEPTH_MAX; depth <= XML_DEPTH_MAX + 1; depth++) {
        text.len = 0;
        for (int i = 0; i < depth; i++)
            buf_adds(&text, "<a>");
        for (int i = 0; i < depth; i++)
            buf_adds(&text, "</a>");
        if (depth > XML_DEPTH_MAX)
            refused(text.data, text.len, -EPROTO, "nested too deep");
        else
            assert_int_equal(xml_parse(text.data, text.len, &xml, NULL), 0);
    }
    xml_free(xml);
    text.len = 0;
    buf_adds(&text, "<a>");
    while (text.len <= XML_BYTES_MAX)
        buf_adds(&text, "<b>0123456789</b>");
    refused(text.data, text.len, -EFBIG, "bytes");
    refused(text.data, 1 << 20, -EPROTO, "not well-formed"); /* half an answer */
    buf_done(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tree),
        cmocka_unit_test(refusals),
        cmocka_unit_test(limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
