# SPDX-License-Identifier: Apache-2.0
pp_unit_test(net rtnl SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_rtnl_test.c DEPS pp_net)
pp_unit_test(net link SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_link_test.c DEPS pp_net pp_test_world)
pp_unit_test(net notrack SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_notrack_test.c
  DEPS pp_net pp_test_world)
pp_unit_test(net tunnel SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_tunnel_test.c
  DEPS pp_net pp_test_world)
if(BUILD_TESTING)
  set_tests_properties(net.link PROPERTIES SKIP_RETURN_CODE 77)
endif()
pp_fuzz_target(net rtnl DEPS pp_net PARSER "lib/net/rtnl.c:rtnl_(reply|attr).*|read_.*"
  "lib/net/link.c:parse_.*|link_parse|link_address_parse"
  "lib/net/route.c:get_address|metrics_mtu|route_(attr|body|read)|link_(route|neighbour)_parse")
