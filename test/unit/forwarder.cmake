# SPDX-License-Identifier: Apache-2.0
pp_unit_test(forwarder edit SOURCES ${CMAKE_CURRENT_LIST_DIR}/forwarder_edit_test.c
  DEPS pp_relay pp_wire TIMEOUT 120)
pp_unit_test(forwarder program SOURCES ${CMAKE_CURRENT_LIST_DIR}/forwarder_program_test.c
  DEPS pp_tunnel pp_guest pp_wire PkgConfig::LIBUV Threads::Threads TIMEOUT 180)
if(BUILD_TESTING)
  target_compile_definitions(test_forwarder_program PRIVATE
    PP_BIN="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}"
    PP_CORPUS="${CMAKE_SOURCE_DIR}/../shared/corpus")
  add_dependencies(test_forwarder_program agent-protocol-forwarder peerpod-keeper)
endif()

if(BUILD_TESTING)
  find_package(Python3 COMPONENTS Interpreter)
  set(edit_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/edit)
  add_custom_command(OUTPUT ${edit_seeds}/mixed
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${edit_seeds}
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/edit/seeds.hex
    DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/edit/seeds.hex
    VERBATIM)
  add_custom_target(edit_seeds DEPENDS ${edit_seeds}/mixed)
  pp_fuzz_target(forwarder edit SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/forwarder_edit_fuzz.c
    DEPS pp_forwarder CORPUS ${edit_seeds})
  add_dependencies(fuzz_forwarder_edit edit_seeds)
endif()
