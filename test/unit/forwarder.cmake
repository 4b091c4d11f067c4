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

pp_fuzz_target(forwarder edit DEPS pp_forwarder PARSER forwarder/edit.c)
pp_fuzz_target(forwarder editfile DEPS pp_forwarder
  PARSER "forwarder/edit.c:map_file|check_file|state_ok|settle_answer|recover_state|edit_recover")
