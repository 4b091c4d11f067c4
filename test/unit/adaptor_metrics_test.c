/* SPDX-License-Identifier: Apache-2.0 */
/* What /metrics says of HTTP requests: exact text, in OpenMetrics' form. The rest is judged by chain.metrics. */
#include "unit/check.h"

#include <stdlib.h>
#include <string.h>

#include "adaptor/metrics_int.h"
#include "loop/http_stats.h"

static char *text(void)
{
    struct buf out = BUF_INIT(0);
    metrics_write_requests(&out);
    return buf_steal(&out);
}

static void nothing_yet(void **state)
{
    _cleanup_free_ char *t = text();
    assert_text_has(t, "# TYPE peerpod_provider_requests counter\n");
    assert_null(strchr(t, '{'));
}

static void requests_are_written(void **state)
{
    http_stats_call("ec2.RunInstances", 200, 30000);
    http_stats_call("ec2.RunInstances", 503, 20000000);
    http_stats_call("ec2.RunInstances", 0, 1000);
    http_stats_retry("ec2.RunInstances");
    http_stats_throttled("ec2.RunInstances");
    http_stats_call("a\"b\\c\nd", 200, 1);
    _cleanup_free_ char *t = text();
    assert_text_has(
        t, "peerpod_provider_requests_total{operation=\"ec2.RunInstances\",code=\"2xx\"} 1\n");
    assert_text_has(
        t, "peerpod_provider_requests_total{operation=\"ec2.RunInstances\",code=\"5xx\"} 1\n");
    assert_text_has(
        t, "peerpod_provider_requests_total{operation=\"ec2.RunInstances\",code=\"none\"} 1\n");
    assert_text_has(t, "_duration_seconds_bucket{operation=\"ec2.RunInstances\",le=\"0.025\"} 1\n");
    assert_text_has(t, "_duration_seconds_bucket{operation=\"ec2.RunInstances\",le=\"1.0\"} 2\n");
    assert_text_has(t, "_duration_seconds_bucket{operation=\"ec2.RunInstances\",le=\"+Inf\"} 3\n");
    assert_text_has(t, "_duration_seconds_count{operation=\"ec2.RunInstances\"} 3\n");
    assert_text_has(t, "_duration_seconds_sum{operation=\"ec2.RunInstances\"} 20.031000\n");
    assert_text_has(t, "peerpod_provider_retries_total{operation=\"ec2.RunInstances\"} 1\n");
    assert_text_has(t, "peerpod_provider_throttled_total{operation=\"ec2.RunInstances\"} 1\n");
    assert_text_has(t, "{operation=\"a\\\"b\\\\c\\nd\",code=\"2xx\"} 1\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_yet),
        cmocka_unit_test(requests_are_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
