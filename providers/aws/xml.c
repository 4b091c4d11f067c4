/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XML by libxml2, with everything off that reaches outside the text.
 *
 * The parser is fed through a SAX table of our own in front of libxml2's tree builder: a DOCTYPE
 * stops it at once, before one entity is declared, so there is nothing to expand (neither a bomb
 * nor a file nor a URL), and an element below XML_DEPTH_MAX stops it too. XML_PARSE_NONET and the
 * absence of XML_PARSE_NOENT and XML_PARSE_HUGE keep libxml2's own limits as a second line. The size
 * is bounded before it begins.
 *
 * Errors are libxml2's own words; they may quote a few bytes of the answer, which holds no secret
 * (credentials come as XML from STS alone, and are not quoted: XML_ERROR_MAX cuts to the sentence).
 */
#include "providers/aws/xml.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <pthread.h>

#include "base/str.h"

#define NAME_MAX_LEN 128
#define XML_ERROR_MAX 160

struct xml {
    xmlDoc *doc;
};

/* What the two handlers tell the caller, in ctxt->_private. */
struct refusal {
    const char *why; /* NULL: none */
};

static startElementNsSAX2Func tree_start_element;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void set_up(void)
{
    xmlSAXHandler tree = {0};

    xmlInitParser();
    xmlSAXVersion(&tree, 2);
    tree_start_element = tree.startElementNs;
}

/* libxml2's default writes to stderr. */
static void on_error(_unused_ void *ctx, _unused_ const char *fmt, ...)
{
}

static void refuse(xmlParserCtxt *ctxt, const char *why)
{
    struct refusal *refusal = ctxt->_private;

    refusal->why = why;
    xmlStopParser(ctxt);
}

static void on_doctype(void *ctx, _unused_ const xmlChar *name, _unused_ const xmlChar *id,
                       _unused_ const xmlChar *uri)
{
    refuse(ctx, "it has a document type, which AWS never sends");
}

static void on_element(void *ctx, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri,
                       int n_namespaces, const xmlChar **namespaces, int n_attributes,
                       int n_defaulted, const xmlChar **attributes)
{
    xmlParserCtxt *ctxt = ctx;

    if (ctxt->nodeNr >= XML_DEPTH_MAX)
        refuse(ctxt, "its elements are nested too deep");
    else
        tree_start_element(ctx, name, prefix, uri, n_namespaces, namespaces, n_attributes,
                           n_defaulted, attributes);
}

static int parse_failed(xmlParserCtxt *ctxt, const struct refusal *refusal, struct err *err)
{
    const xmlError *last = xmlCtxtGetLastError(ctxt);
    char text[XML_ERROR_MAX] = "";

    if (refusal->why)
        return err_set(err, -EPROTO, "refused the XML of the answer: %s", refusal->why);
    if (last && last->message)
        snprintf(text, sizeof(text), "%s", last->message);
    text[strcspn(text, "\r\n")] = '\0';
    return err_set(err, -EPROTO, "the answer is not well-formed XML: line %d: %s",
                   last ? last->line : 0, *text ? text : "it is empty");
}

int xml_parse(const char *text, size_t len, struct xml **ret, struct err *err)
{
    struct refusal refusal = {0};

    if (len > XML_BYTES_MAX)
        return err_set(err, -EFBIG, "an XML answer of %zu bytes, more than %u", len, XML_BYTES_MAX);
    pthread_once(&once, set_up);
    xmlSetGenericErrorFunc(NULL, on_error); /* this thread's; some errors have no parser */
    xmlParserCtxt *ctxt = xmlNewParserCtxt();
    if (!ctxt)
        return err_set(err, -ENOMEM, "no memory for an XML parser");
    ctxt->_private = &refusal;
    ctxt->sax->internalSubset = on_doctype;
    ctxt->sax->externalSubset = on_doctype;
    ctxt->sax->startElementNs = on_element;
    ctxt->sax->error = ctxt->sax->warning = ctxt->sax->fatalError = on_error;
    ctxt->sax->serror = NULL;
    xmlDoc *doc = xmlCtxtReadMemory(ctxt, text, (int)len, NULL, NULL,
                                    XML_PARSE_NONET | XML_PARSE_NOBLANKS | XML_PARSE_NOCDATA);
    int r = 0;
    if (!doc || refusal.why || !xmlDocGetRootElement(doc)) {
        r = parse_failed(ctxt, &refusal, err);
        xmlFreeDoc(doc);
    } else {
        *ret = xcalloc(1, sizeof(**ret));
        (*ret)->doc = doc;
    }
    xmlFreeParserCtxt(ctxt);
    return r;
}

void xml_free(struct xml *xml)
{
    if (!xml)
        return;
    xmlFreeDoc(xml->doc);
    free(xml);
}

/* ---- the tree ---- */

static const xmlNode *native(const struct xml_node *node)
{
    return (const xmlNode *)(const void *)node;
}

static const struct xml_node *element_from(const xmlNode *n)
{
    while (n && n->type != XML_ELEMENT_NODE)
        n = n->next;
    return (const struct xml_node *)(const void *)n;
}

const struct xml_node *xml_root(const struct xml *xml)
{
    return (const struct xml_node *)(const void *)xmlDocGetRootElement(xml->doc);
}

const char *xml_name(const struct xml_node *node)
{
    return (const char *)native(node)->name;
}

const struct xml_node *xml_first(const struct xml_node *node)
{
    return node ? element_from(native(node)->children) : NULL;
}

const struct xml_node *xml_next(const struct xml_node *node)
{
    return element_from(native(node)->next);
}

const struct xml_node *xml_find(const struct xml_node *node, const char *path)
{
    while (node && *path) {
        size_t len = strcspn(path, ".");
        node = xml_first(node);
        while (node && (strncmp(xml_name(node), path, len) != 0 || xml_name(node)[len]))
            node = xml_next(node);
        path += len + (path[len] == '.');
    }
    return node;
}

int xml_text(const struct xml_node *node, const char *path, char *ret, size_t size)
{
    const struct xml_node *found = xml_find(node, path);
    size_t used = 0;

    *ret = '\0';
    if (!found)
        return 0;
    /* Comments and references cut a text into pieces. */
    for (const xmlNode *n = native(found)->children; n; n = n->next) {
        if (n->type != XML_TEXT_NODE && n->type != XML_CDATA_SECTION_NODE)
            continue;
        size_t len = strlen((const char *)n->content);
        if (len >= size - used) {
            *ret = '\0';
            return -ENAMETOOLONG;
        }
        memcpy(ret + used, n->content, len + 1);
        used += len;
    }
    return 0;
}

bool xml_text_is(const struct xml_node *node, const char *path, const char *value)
{
    char text[NAME_MAX_LEN];

    return xml_text(node, path, text, sizeof(text)) == 0 && str_eq(text, value);
}

uint64_t xml_u64(const struct xml_node *node, const char *path, uint64_t otherwise)
{
    char text[NAME_MAX_LEN];
    uint64_t value;

    if (xml_text(node, path, text, sizeof(text)) < 0 || str_to_u64(text, UINT64_MAX, &value) < 0)
        return otherwise;
    return value;
}
