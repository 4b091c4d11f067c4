/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of the AWS query services: XML, read as a tree in which only names and texts matter.
 * Namespaces, attributes and elements that nobody asks for are ignored.
 */
#pragma once

#include "base/err.h"

#define XML_BYTES_MAX (8U << 20)
#define XML_DEPTH_MAX 32

struct xml;
struct xml_node; /* borrowed from its struct xml */

/* -EPROTO when it is no well-formed document, or one with a DTD (AWS sends none, and entities live
 * there), or nested deeper than XML_DEPTH_MAX; -EFBIG beyond XML_BYTES_MAX. *ret is owned:
 * xml_free. */
int xml_parse(const char *text, size_t len, struct xml **ret, struct err *err);
void xml_free(struct xml *xml);
DEFINE_CLEANUP(struct xml, xml_free)

const struct xml_node *xml_root(const struct xml *xml);
const char *xml_name(const struct xml_node *node); /* borrowed, without prefix */
/* The first element at the path of names below node ("instanceState.name"); NULL when there is
 * none, or when node is NULL. */
const struct xml_node *xml_find(const struct xml_node *node, const char *path);
/* To walk over <set><item/><item/></set>: the first child element, the next element beside. */
const struct xml_node *xml_first(const struct xml_node *node);
const struct xml_node *xml_next(const struct xml_node *node);

/* The element's own text, "" when it has none or does not exist. -ENAMETOOLONG (ret is "" then) when
 * it does not fit: what is cut is not what was meant. */
int xml_text(const struct xml_node *node, const char *path, char *ret, size_t size);
bool xml_text_is(const struct xml_node *node, const char *path, const char *value);
/* otherwise: when absent or no number. */
uint64_t xml_u64(const struct xml_node *node, const char *path, uint64_t otherwise);
