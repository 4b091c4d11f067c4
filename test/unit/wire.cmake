# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire recordings SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_recordings_test.c DEPS pp_wire)
pp_unit_test(wire ttrpc SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_ttrpc_test.c DEPS pp_wire)
if(TARGET test_wire_recordings)
  target_compile_definitions(test_wire_recordings PRIVATE
    PP_CORPUS_DEFAULT="${CMAKE_SOURCE_DIR}/../shared/corpus")
endif()
pp_fuzz_target(wire ttrpc DEPS pp_wire 
  PARSER "lib/wire/ttrpc.c:(?!ttrpc_add_response|ttrpc_code_).*")
pp_fuzz_target(wire gottrpc DEPS pp_wire PARSER
  "lib/wire/ttrpc.c:ttrpc_(message|request|response|header)_decode|ttrpc_walk|budget_.*")
if(BUILD_TESTING)
  set_tests_properties(wire.fuzz_gottrpc PROPERTIES FIXTURES_REQUIRED ttrpcjudge SKIP_RETURN_CODE 77)
endif()
