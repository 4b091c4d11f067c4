/* SPDX-License-Identifier: Apache-2.0 */
/* The hello message: whatever is accepted is within its limits and means the same written again. */
#include "wire/tunnel_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tunnel_hello a, b;
    struct buf out = BUF_INIT(1 << 20);
    if (tunnel_hello_decode(data, size, &a, NULL) < 0)
        return 0;
    if (tunnel_add_hello(&out, &a) < 0 ||
        tunnel_hello_decode((uint8_t *)out.data + TUNNEL_HEADER_SIZE, out.len - TUNNEL_HEADER_SIZE,
                            &b, NULL) < 0)
        abort();
    if (a.n_channels != b.n_channels || strcmp(a.sandbox, b.sandbox) != 0 ||
        memcmp(a.proof, b.proof, sizeof(a.proof)) != 0 ||
        memcmp(a.channels, b.channels, sizeof(a.channels[0]) * a.n_channels) != 0)
        abort();
    buf_done(&out);
    return 0;
}
