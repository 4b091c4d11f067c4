/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of tunnel frames, cut into frames as a session does. */
#include "wire/tunnel_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void payload(const struct tunnel_header *h, const uint8_t *in)
{
    struct tunnel_position p;
    char reason[TUNNEL_REASON_MAX + 1];
    if (h->type == TUNNEL_DATA &&
        tunnel_data_decode(in, h->length - TUNNEL_DATA_PREFIX, &p, NULL) == 0 &&
        (p.offset + h->length < p.offset || p.limit < p.ack))
        abort();
    if (h->type == TUNNEL_ACK && tunnel_ack_decode(in, &p, NULL) == 0 && p.limit < p.ack)
        abort();
    if (h->type == TUNNEL_CLOSE)
        tunnel_reason_decode(in, h->length, reason);
    if (h->type == TUNNEL_REFUSE)
        tunnel_reason_decode(in + 2, h->length - 2, reason);
    if (h->type == TUNNEL_PING)
        tunnel_u64_decode(in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tunnel_header h;
    while (size >= TUNNEL_HEADER_SIZE && tunnel_header_decode(data, &h, NULL) == 0) {
        if (h.length > TUNNEL_PAYLOAD_MAX)
            abort();
        data += TUNNEL_HEADER_SIZE;
        size -= TUNNEL_HEADER_SIZE;
        if (h.length > size)
            break;
        if (h.known)
            payload(&h, data);
        data += h.length;
        size -= h.length;
    }
    return 0;
}
