# SPDX-License-Identifier: Apache-2.0
pp_unit_test(net rtnl SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_rtnl_test.c DEPS pp_net)
pp_unit_test(net link SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_link_test.c DEPS pp_net pp_test_world)
pp_unit_test(net notrack SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_notrack_test.c
  DEPS pp_net pp_test_world)
pp_unit_test(net tunnel SOURCES ${CMAKE_CURRENT_LIST_DIR}/net_tunnel_test.c
  DEPS pp_net pp_test_world)
if(BUILD_TESTING)
  set_tests_properties(net.link PROPERTIES SKIP_RETURN_CODE 77)
  find_package(Python3 COMPONENTS Interpreter)
  set(net_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/net_rtnl)
  set(net_seeds_hex ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/net_rtnl/seeds.hex)
  add_custom_command(OUTPUT ${net_seeds}/links
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${net_seeds}
            ${net_seeds_hex}
    DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${net_seeds_hex} VERBATIM)
  add_custom_target(net_seeds DEPENDS ${net_seeds}/links)
  pp_fuzz_target(net rtnl SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/net_rtnl_fuzz.c
    DEPS pp_net CORPUS ${net_seeds})
  add_dependencies(fuzz_net_rtnl net_seeds)
endif()
