# SPDX-License-Identifier: Apache-2.0
pp_unit_test(rpc client SOURCES ${CMAKE_CURRENT_LIST_DIR}/rpc_client_test.c DEPS pp_wire
  ARGS $<TARGET_FILE:rpc_test_server>)
if(TARGET test_rpc_client)
  add_dependencies(test_rpc_client rpc_test_server)
endif()

find_package(Python3 COMPONENTS Interpreter REQUIRED)
set(rpc_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/rpc_server)
add_custom_command(OUTPUT ${rpc_seeds}/echo
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${rpc_seeds}
          ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/rpc_server/seeds.hex
  DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py
          ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/rpc_server/seeds.hex
  VERBATIM)
add_custom_target(rpc_seeds DEPENDS ${rpc_seeds}/echo)
pp_fuzz_target(rpc server SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/rpc_server_fuzz.c DEPS pp_rpc
  CORPUS ${rpc_seeds})
add_dependencies(fuzz_rpc_server rpc_seeds)
