/* SPDX-License-Identifier: Apache-2.0 */
/* apf.json: what the Go adaptor writes is read, what we write is stable and read back, the rest is
 * refused by the name of its key. */
#include "guest/apf.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/str.h"

static void parse_ok(const char *text, struct apf *apf)
{
    struct err err = ERR_INIT;

    *apf = (struct apf){0};
    if (apf_parse(text, strlen(text), apf, &err) < 0)
        fail_msg("%s", err.text);
}

/* As the Go adaptor writes it: keys of routes in Go's spelling, "" for absent addresses. */
static const char go_text[] =
    "{\n  \"pod-network\": {\n"
    "    \"podip\": \"10.244.1.7/24\", \"pod-hw-addr\": \"0A:58:0a:f4:01:07\",\n"
    "    \"interface\": \"eth0\", \"worker-node-ip\": \"192.168.122.63/24\",\n"
    "    \"tunnel-type\": \"vxlan\",\n"
    "    \"routes\": [\n"
    "      {\"Dst\": \"\", \"GW\": \"10.244.1.1\", \"Dev\": \"eth0\", \"Protocol\": \"boot\", "
    "\"Scope\": \"universe\"},\n"
    "      {\"Dst\": \"10.244.1.0/24\", \"GW\": \"\", \"Dev\": \"eth0\", \"Protocol\": \"kernel\", "
    "\"Scope\": \"link\"}],\n"
    "    \"neighbors\": [{\"IP\": \"169.254.1.1\", \"dev\": \"eth0\", "
    "\"hw-addr\": \"ee:ee:ee:ee:ee:ee\", \"state\": \"permanent\"}, null],\n"
    "    \"mtu\": 1500, \"index\": 3, \"vxlan-port\": 4789, \"vxlan-id\": 555003,\n"
    "    \"dedicated\": false, \"external-net-via-pod-vm\": true, \"future\": [{}]},\n"
    "  \"POD-NAMESPACE\": \"default\", \"pod-name\": \"nginx\",\n"
    "  \"tls-server-key\": \"KEY\\n\", \"tls-server-cert\": \"CERT\\n\",\n"
    "  \"tls-client-ca\": \"CA\\n\", \"tls-min-version\": \"VersionTLS12\",\n"
    "  \"tls-cipher-suites\": [\"A\", \"B\"], \"unknown\": {\"a\": 1}}\n";

static void check_go(const struct apf *apf)
{
    const struct apf_network *net = &apf->network;

    assert_true(apf->has_network);
    assert_string_equal(net->podip, "10.244.1.7/24");
    assert_string_equal(net->pod_hw_addr, "0a:58:0a:f4:01:07");
    assert_string_equal(net->interface, "eth0");
    assert_string_equal(net->worker_node_ip, "192.168.122.63/24");
    assert_string_equal(net->tunnel_type, "vxlan");
    assert_int_equal(net->n_routes, 2);
    assert_string_equal(net->routes[0].dst, "");
    assert_string_equal(net->routes[0].gw, "10.244.1.1");
    assert_string_equal(net->routes[0].scope, "universe");
    assert_string_equal(net->routes[1].dst, "10.244.1.0/24");
    assert_string_equal(net->routes[1].protocol, "kernel");
    assert_int_equal(net->n_neighbors, 1);
    assert_string_equal(net->neighbors[0].ip, "169.254.1.1");
    assert_string_equal(net->neighbors[0].hw_addr, "ee:ee:ee:ee:ee:ee");
    assert_string_equal(net->neighbors[0].state, "permanent");
    assert_int_equal(net->mtu, 1500);
    assert_int_equal(net->index, 3);
    assert_int_equal(net->vxlan_port, 4789);
    assert_int_equal(net->vxlan_id, 555003);
    assert_false(net->dedicated);
    assert_true(net->external_net_via_pod_vm);
    assert_string_equal(apf->pod_namespace, "default");
    assert_string_equal(apf->pod_name, "nginx");
    assert_string_equal(apf->tls_server_key, "KEY\n");
    assert_string_equal(apf->tls_server_cert, "CERT\n");
    assert_string_equal(apf->tls_client_ca, "CA\n");
    assert_string_equal(apf->tls_min_version, "VersionTLS12");
    assert_int_equal(strv_len(apf->tls_cipher_suites), 2);
    assert_string_equal(apf->tls_cipher_suites[1], "B");
    assert_int_equal(apf->tunnel, APF_TUNNEL_UPSTREAM);
    assert_int_equal(apf->enrolment_secret_len, 0);
}

static void reads_go_and_round_trips(void **state)
{
    struct apf apf, again;
    char *text, *text2;
    size_t len, len2;

    parse_ok(go_text, &apf);
    check_go(&apf);
    assert_int_equal(apf_build(&apf, &text, &len, NULL), 0);
    parse_ok(text, &again);
    check_go(&again);
    assert_int_equal(apf_build(&again, &text2, &len2, NULL), 0);
    assert_string_equal(text, text2);
    assert_int_equal(len, strlen(text));
    free(text);
    free(text2);
    apf_done(&apf);
    apf_done(&again);
}

static const char native_text[] =
    "{\"pod-network\":{\"podip\":\"fd00::7/64\",\"podips\":[\"10.0.0.7/24\"],\"interface\":"
    "\"eth0\",\"routes\":[{\"gw\":\"fd00::1\"},{\"dst\":\"fd00::/64\",\"scope\":\"link\"}],"
    "\"neighbors\":[],\"mtu\":1450,\"index\":0,\"dedicated\":false,"
    "\"external-net-via-pod-vm\":false},\"pod-namespace\":\"ns\",\"pod-name\":\"pod\","
    "\"tls-client-ca\":\"-----BEGIN CERTIFICATE-----\\n/+\\n\",\"tunnel\":\"native\","
    "\"sandbox-id\":\"0123abc\",\"enrolment-secret\":\"000102030405060708090a0b0c0d0e0f\"}\n";

static void native_golden(void **state)
{
    struct apf_route routes[] = {{.gw = "FD00:0::1"}, {.dst = "fd00::0/064", .scope = "link"}};
    struct apf apf = {
        .has_network = true,
        .network = {.podip = "fd00:0:0:0:0:0:0:7/64",
                    .podips = {"10.0.0.7/24"},
                    .n_podips = 1,
                    .interface = "eth0",
                    .routes = routes,
                    .n_routes = 2,
                    .mtu = 1450},
        .pod_namespace = (char *)"ns",
        .pod_name = (char *)"pod",
        .tls_client_ca = (char *)"-----BEGIN CERTIFICATE-----\n/+\n",
        .tunnel = APF_TUNNEL_NATIVE,
        .sandbox_id = "0123abc",
        .enrolment_secret = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        .enrolment_secret_len = 16,
    };
    struct err err = ERR_INIT;
    struct apf back;
    char *text = NULL;
    size_t len;

    if (apf_build(&apf, &text, &len, &err) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(text, native_text);
    parse_ok(text, &back);
    assert_int_equal(back.tunnel, APF_TUNNEL_NATIVE);
    assert_string_equal(back.sandbox_id, "0123abc");
    assert_int_equal(back.enrolment_secret_len, 16);
    assert_memory_equal(back.enrolment_secret, apf.enrolment_secret, 16);
    assert_int_equal(back.network.n_podips, 1);
    apf_done(&back);
    assert_int_equal(back.enrolment_secret[15], 0);
    free(text);
}

static void missing_network_is_a_field(void **state)
{
    struct apf apf;

    parse_ok("{}", &apf);
    assert_false(apf.has_network);
    apf_done(&apf);
    parse_ok("{\"pod-network\": null, \"pod-name\": null, \"tls-cipher-suites\": []}", &apf);
    assert_false(apf.has_network);
    assert_null(apf.pod_name);
    assert_null(apf.tls_cipher_suites);
    apf_done(&apf);
    parse_ok("{\"pod-network\": {}}", &apf);
    assert_true(apf.has_network);
    assert_string_equal(apf.network.podip, "");
    apf_done(&apf);
}

#define NET(text) "{\"pod-network\": {" text "}}"
#define HEX32 "000102030405060708090a0b0c0d0e0f"

static const struct {
    const char *text, *why;
} refusals[] = {
    {"", "reading apf.json: not valid JSON"},
    {"{", "not valid JSON at offset 1"},
    {"[]", "an object is expected"},
    {"null", "apf.json"},
    {"{} x", "not valid JSON"},
    {"{\"pod-network\": []}", "pod-network is array; an object is expected"},
    {"{\"pod-name\": 1}", "pod-name is int; a string is expected"},
    {"{\"pod-name\": \"a\", \"Pod-Name\": \"b\"}", "pod-name stands there twice"},
    {"{\"pod-name\": \"a\\u0000b\"}", "pod-name holds a NUL"},
    {NET("\"podip\": \"10.0.0.1\""), "pod-network.podip is \"10.0.0.1\"; an address with its"},
    {NET("\"podip\": \"10.0.0.1/33\""), "10.244.1.7/24"},
    {NET("\"podip\": \"10.0.0.1/\""), "podip"},
    {NET("\"podip\": \"10.0.0.256/8\""), "podip"},
    {NET("\"podip\": \"::1/129\""), "podip"},
    {NET("\"podip\": \"fe80::1%eth0/64\""), "podip"},
    {NET("\"podip\": \"000000000000000000000000000000000000000000000000001.0.0.1/8\""),
     "at most 49 are allowed"},
    {NET("\"podips\": [\"x\"]"), "pod-network.podips[0] is \"x\""},
    {NET("\"podips\": [null]"), "pod-network.podips[0] is null"},
    {NET("\"podips\": [\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"]"),
     "has 9 elements; at most 8"},
    {NET("\"routes\": {}"), "routes is object; an array is expected"},
    {NET("\"routes\": [1]"), "pod-network.routes[0] is int; an object"},
    {NET("\"routes\": [{},{\"gw\": \"x\"}]"), "pod-network.routes[1].gw is \"x\"; a numeric"},
    {NET("\"routes\": [{\"protocol\": 3}]"), "protocol is int; a string"},
    {NET("\"routes\": [{\"protocol\": \"bgp\"}]"), "allowed are static, boot, dhcp, kernel"},
    {NET("\"routes\": [{\"scope\": \"global\"}]"), "universe, site, link, host, nowhere"},
    {NET("\"neighbors\": [{\"state\": \"x\"}]"),
     "neighbors[0].state is \"x\"; allowed are permanent"},
    {NET("\"neighbors\": [{\"hw-addr\": \"1:2:3:4:5:6\"}]"), "a hardware address is expected"},
    {NET("\"neighbors\": [{\"ip\": \"1.2.3.4/8\"}]"), "neighbors[0].ip"},
    {NET("\"interface\": \"a/b\""), "interface is \"a/b\"; the name of a network interface"},
    {NET("\"interface\": \"0123456789abcdef\""), "at most 15 are allowed"},
    {NET("\"interface\": \"..\""), "interface"},
    {NET("\"mtu\": -1"), "mtu is -1; 0 to 65536"},
    {NET("\"mtu\": 1e3"), "mtu is double; an integer"},
    {NET("\"mtu\": 99999999999999999999"), "mtu is 9223372036854775807; 0 to"},
    {NET("\"vxlan-id\": 16777216"), "vxlan-id is 16777216; 0 to 16777215"},
    {NET("\"vxlan-port\": 65536"), "vxlan-port"},
    {NET("\"dedicated\": 1"), "dedicated is int; true or false"},
    {NET("\"tunnel-type\": \"gre\""), "tunnel-type is \"gre\"; allowed are vxlan, routing"},
    {"{\"tls-cipher-suites\": [1]}", "tls-cipher-suites[0] is int"},
    {"{\"tls-cipher-suites\": \"A\"}", "an array is expected"},
    {"{\"tunnel\": \"magic\"}", "tunnel is \"magic\"; allowed is native"},
    {"{\"tunnel\": \"native\"}", "sandbox-id is missing"},
    {"{\"tunnel\": \"native\", \"sandbox-id\": \"a\"}", "enrolment-secret is missing"},
    {"{\"sandbox-id\": \"a\"}", "tunnel is missing"},
    {"{\"enrolment-secret\": \"" HEX32 "\"}", "tunnel is missing"},
    {"{\"sandbox-id\": \"../x\"}", "a sandbox id is expected"},
    {"{\"enrolment-secret\": \"" HEX32 "0\"}", "32 to 128 hexadecimal digits"},
    {"{\"enrolment-secret\": \"0001020304\"}", "32 to 128 hexadecimal digits"},
    {"{\"enrolment-secret\": \"x" HEX32 "0\"}", "32 to 128 hexadecimal digits"},
};

static void refused(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        struct err err = ERR_INIT;
        struct apf apf = {0};
        int r = apf_parse(refusals[i].text, strlen(refusals[i].text), &apf, &err);

        if (r != -EINVAL || !strstr(err.text, refusals[i].why))
            fail_msg("'%s' gave %d, '%s'", refusals[i].text, r, err.text);
        if (strstr(err.text, HEX32))
            fail_msg("the secret is in the error");
    }
}

static void build_refuses_what_parse_refuses(void **state)
{
    struct apf_route route = {.gw = "nonsense"};
    struct apf apf = {.has_network = true, .network = {.routes = &route, .n_routes = 1}};
    _cleanup_free_ char *pem = xcalloc(1, APF_PEM_MAX + 2);
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t len;

    assert_int_equal(apf_build(&apf, &text, &len, &err), -EINVAL);
    assert_string_equal(err.text, "apf.json: pod-network.routes[0].gw is \"nonsense\"; a numeric "
                                  "address is expected");
    route = (struct apf_route){.protocol = "rip"};
    assert_int_equal(apf_build(&apf, &text, &len, NULL), -EINVAL);
    memset(&route, 'x', sizeof(route)); /* no NUL anywhere */
    assert_int_equal(apf_build(&apf, &text, &len, NULL), -EINVAL);
    apf = (struct apf){.network = {.n_routes = APF_ROUTES_MAX + 1}, .has_network = true};
    assert_int_equal(apf_build(&apf, &text, &len, NULL), -EINVAL);
    memset(pem, 'x', APF_PEM_MAX + 1);
    apf = (struct apf){.tls_client_ca = pem};
    err_clear(&err);
    assert_int_equal(apf_build(&apf, &text, &len, &err), -EINVAL);
    assert_non_null(strstr(err.text, "tls-client-ca is 65537 bytes long"));
    pem[APF_PEM_MAX] = 0;
    assert_int_equal(apf_build(&apf, &text, &len, NULL), 0);
    free(TAKE_PTR(text));
    apf = (struct apf){.enrolment_secret_len = 15, .tunnel = APF_TUNNEL_NATIVE, .sandbox_id = "a"};
    assert_int_equal(apf_build(&apf, &text, &len, NULL), -EINVAL);
    assert_null(text);
}

static void too_long(void **state)
{
    _cleanup_free_ char *text = xcalloc(1, APF_JSON_MAX + 1);
    struct apf apf = {0};

    memset(text, ' ', APF_JSON_MAX + 1);
    assert_int_equal(apf_parse(text, APF_JSON_MAX + 1, &apf, NULL), -E2BIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_go_and_round_trips),         cmocka_unit_test(native_golden),
        cmocka_unit_test(missing_network_is_a_field),       cmocka_unit_test(refused),
        cmocka_unit_test(build_refuses_what_parse_refuses), cmocka_unit_test(too_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
